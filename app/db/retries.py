"""When a job is taken again, and before which others."""

import asyncio
from datetime import UTC, datetime
from typing import TypedDict

from procrastinate import BaseRetryStrategy, RetryDecision
from procrastinate.jobs import Job

from app.db.queue import DOCUMENTS_QUEUE, put_back_place


class RetryLater(Exception):
    """This attempt failed; another one is due after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"again in {seconds:g} s")
        self.seconds = seconds


class Return(TypedDict):
    """As procrastinate asks for it."""

    retry_at: datetime
    priority: int


def put_back(queue: str, place: int) -> Return:
    """At once, and before all that wait like it: its worker was taken from it."""
    now = datetime.now(UTC)
    # Sources have no lines.
    return {
        "retry_at": now,
        "priority": put_back_place(place, now) if queue == DOCUMENTS_QUEUE else place,
    }


class Retries(BaseRetryStrategy):
    """For those who ask for it by RetryLater, and for those whose worker is shutting down."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        if isinstance(exception, RetryLater):
            return RetryDecision(retry_in={"milliseconds": int(exception.seconds * 1000)})
        if isinstance(exception, asyncio.CancelledError):
            return RetryDecision(**put_back(job.queue, job.priority))
        return None
