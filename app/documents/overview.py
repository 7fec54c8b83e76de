"""Ingestion at a glance: what waits, how fast it goes, when it will be done, and what failed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access import Caller
from app.db.models import Collection, Document
from app.db.models.documents import DocumentStatus
from app.db.session import Sessions
from app.documents.visibility import countable, visible
from app.jobs import Jobs, LivingWorker

RATE_WINDOW = timedelta(minutes=5)
RATE_SPAN_SECONDS_MIN = 10.0
"""A rate over less than this would jump about."""

FAILURES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class CollectionBacklog:
    name: str
    queued: int = 0
    processing: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    document_id: UUID
    job_id: int | None
    collection: str
    title: str
    reason: str | None
    failed_at: datetime


@dataclass(frozen=True, slots=True)
class Overview:
    """What a caller may see of it; the workers are everybody's.

    `oldest_seconds` says how long the document has waited that waits longest. `rate_per_minute`
    counts documents that became ready, over the last minutes; `eta_seconds` follows from it, None
    while nothing does. `collections` are those in which something waits or has failed, by name;
    `failures` are the latest.
    """

    queued: int
    processing: int
    failed: int
    oldest_seconds: float
    rate_per_minute: float
    eta_seconds: float | None
    workers: Sequence[LivingWorker]
    collections: Sequence[CollectionBacklog]
    failures: Sequence[Failure]


class Overlook:
    """Looks at ingestion; cheap enough to be asked every second."""

    def __init__(self, sessions: Sessions, jobs: Jobs) -> None:
        self._sessions = sessions
        self._jobs = jobs

    async def overview(self, caller: Caller) -> Overview:
        async with self._sessions.begin() as session:
            connection = await session.connection()
            collections, oldest_seconds = await _backlog(connection, caller)
            rate_per_minute = await _rate_per_minute(connection, caller)
            failures = await _failures(connection, caller)
        queued = sum(one.queued for one in collections)
        processing = sum(one.processing for one in collections)
        eta_seconds = 0.0
        if waiting := queued + processing:
            eta_seconds = waiting / rate_per_minute * 60 if rate_per_minute else None
        return Overview(
            queued=queued,
            processing=processing,
            failed=sum(one.failed for one in collections),
            oldest_seconds=oldest_seconds,
            rate_per_minute=rate_per_minute,
            eta_seconds=eta_seconds,
            workers=await self._jobs.workers(),
            collections=collections,
            failures=failures,
        )


async def _backlog(
    connection: AsyncConnection, caller: Caller
) -> tuple[list[CollectionBacklog], float]:
    rows = await connection.execute(
        select(
            Collection.name,
            Document.status,
            func.count().label("count"),
            func.extract("epoch", func.now() - func.min(Document.status_at)).label("oldest"),
        )
        .join(Collection, Collection.id == Document.collection_id)
        .where(*countable(caller), Document.status.in_(("queued", "processing", "failed")))
        .group_by(Collection.name, Document.status)
    )
    counts: dict[str, dict[DocumentStatus, int]] = {}
    oldest_seconds = 0.0
    for name, status, count, oldest in rows:
        counts.setdefault(name, {})[cast("DocumentStatus", status)] = count
        if status == "queued":
            oldest_seconds = max(oldest_seconds, float(oldest))
    return [CollectionBacklog(name, **counts[name]) for name in sorted(counts)], oldest_seconds


async def _rate_per_minute(connection: AsyncConnection, caller: Caller) -> float:
    rows = await connection.execute(
        select(func.count(), func.extract("epoch", func.now() - func.min(Document.status_at)))
        .join(Collection, Collection.id == Document.collection_id)
        .where(
            *countable(caller),
            Document.status == "ready",
            Document.status_at > func.now() - RATE_WINDOW,
        )
    )
    count, span_seconds = rows.one()
    if not count:
        return 0.0
    # Since the first of them: who has only just begun would seem slow otherwise.
    return count / max(float(span_seconds), RATE_SPAN_SECONDS_MIN) * 60


async def _failures(connection: AsyncConnection, caller: Caller) -> list[Failure]:
    rows = await connection.execute(
        select(
            Document.id,
            Document.job_id,
            Collection.name,
            Document.title,
            Document.reason,
            Document.status_at,
        )
        .join(Collection, Collection.id == Document.collection_id)
        .where(*visible(caller), Document.status == "failed")
        .order_by(Document.status_at.desc(), Document.id)
        .limit(FAILURES_SHOWN)
    )
    return [Failure(*row) for row in rows]
