"""How far a job is, as its document and the queue tell of it."""

from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from sqlalchemy import cast as sql_cast
from sqlalchemy import select
from sqlalchemy.types import Uuid

from app.db.models import Collection, Document
from app.db.models.documents import DocumentStatus
from app.db.queue import JOBS
from app.db.switch_jobs import SwitchJob


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work at hand is: passages done, and passages in all (0 while not known)."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class JobState:
    """How far a document's processing is, or a collection's other model, which is the `title` then.

    `attempts` counts those that have begun; `position` the jobs that come before this one, None
    when it does not wait, when many do, and in lists.
    """

    id: int
    status: DocumentStatus
    document_id: UUID | None
    collection: str
    title: str
    attempts: int
    reason: str | None
    progress: Progress | None
    position: int | None = None

    @property
    def is_final(self) -> bool:
        return self.status in ("ready", "failed")


def state_of(row: Any) -> JobState:
    """Of a row of STATES."""
    # The document knows best, as long as this is its latest job.
    is_latest = row.latest_job_id == row.id
    status = row.document_status if is_latest else _STATUS_OF_JOB[row.job_status]
    return JobState(
        id=row.id,
        status=cast("DocumentStatus", status),
        document_id=row.document_id,
        collection=row.collection,
        title=row.title,
        attempts=row.attempts + (row.job_status == "doing"),
        reason=row.reason if is_latest else _superseded(status, row.latest_job_id),
        progress=Progress(**row.progress) if is_latest and row.progress else None,
    )


def _superseded(status: str, latest_job_id: int | None) -> str | None:
    """Why a job has ended badly that is not its document's latest: that is all that is known."""
    if status != "failed" or latest_job_id is None:
        return None
    return f"job {latest_job_id} has taken its place"


def switch_state(job: SwitchJob) -> JobState:
    switch = job.switch
    status = _STATUS_OF_JOB[job.status]
    if switch is not None and status in ("queued", "processing"):
        # It comes back for the rest again and again, and is worked on all the time.
        status = "processing" if switch.embedded or job.attempts else status
    return JobState(
        id=job.id,
        status="failed" if switch is not None and switch.status == "failed" else status,
        document_id=None,
        collection=job.collection,
        title=switch.model_name if switch is not None else "",
        attempts=job.attempts + (job.status == "doing"),
        reason=switch.reason if switch is not None else None,
        progress=Progress("embedding", switch.embedded, switch.chunks_count)
        if switch is not None and switch.status == "preparing"
        else None,
    )


_STATUS_OF_JOB: dict[str, DocumentStatus] = {
    "todo": "queued",
    "doing": "processing",
    "succeeded": "ready",
    "failed": "failed",
    "cancelled": "failed",
    "aborting": "failed",
    "aborted": "failed",
}

STATES = (
    select(
        JOBS.c.id,
        JOBS.c.status.label("job_status"),
        JOBS.c.attempts,
        Document.id.label("document_id"),
        Document.title,
        Document.status.label("document_status"),
        Document.reason,
        Document.progress,
        Document.job_id.label("latest_job_id"),
        Collection.name.label("collection"),
    )
    .select_from(JOBS)
    .join(Document, Document.id == sql_cast(JOBS.c.args["document_id"].astext, Uuid))
    .join(Collection, Collection.id == Document.collection_id)
)
