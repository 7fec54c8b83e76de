"""The SQL of the queue: in which order documents come, and what the service knows of their jobs.

Procrastinate takes the job of the highest priority, the oldest of equals. Priorities lie in bands,
one for each kind of work; within a band every collection has a line of its own, and the lines are
served in turn: the place of a new job is one behind the last of its collection's, but never before
the place that is served now. So a collection with a million documents delays another one by a
document at a time, and whoever came late cannot push past those who have waited.

The first half of each band is for jobs whose worker was taken from them: they had their turn already.
Behind the others one could wait long, for when a band has become empty meanwhile, the next to come
stand in its first places again. The place is the second at which a job was put back, so one that is cut
short again and again leaves room for those that were put back before it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Integer, bindparam, column, table, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import BigInteger, String, Uuid

DOCUMENTS_QUEUE = "documents"

Priority = Literal["interactive", "bulk", "background"]
"""Somebody waits for it; many came at once; nobody asked for it."""

BAND_WIDTH = 1_000_000_000
BAND_TOPS: dict[Priority, int] = {"interactive": BAND_WIDTH, "bulk": 0, "background": -BAND_WIDTH}
"""The priority of the first place in each band. Its last one is shared by all who come later."""

PUT_BACK_PLACES = BAND_WIDTH // 2
PUT_BACK_SINCE = datetime(2026, 1, 1, tzinfo=UTC)
"""When the first of these places was given out; each is worth a second, so they last for 15 years."""

LINE_ENDS_EXAMINED = 100
"""Of a collection's waiting documents the latest so many are looked at for the end of its line."""

POSITIONS_COUNTED = 1000

JOBS = table(
    "procrastinate_jobs",
    column("id", BigInteger),
    column("status", String),
    column("attempts", Integer),
    column("args", JSONB),
)
"""What is read of procrastinate's table in queries of our own."""


def put_back_place(place: int, now: datetime) -> int:
    """The priority of a job that had this one when it was taken, now that its worker is gone."""
    top = -(-place // BAND_WIDTH) * BAND_WIDTH
    seconds = int((now - PUT_BACK_SINCE).total_seconds())
    return top - min(max(seconds, 0), PUT_BACK_PLACES - 1)


async def next_places(
    connection: AsyncConnection, document_id: UUID, priority: Priority, count: int
) -> list[int]:
    """The priorities of the next jobs of the document's collection, first come first served."""
    top = BAND_TOPS[priority] - PUT_BACK_PLACES
    bottom = BAND_TOPS[priority] - BAND_WIDTH + 1
    scope = {
        "document_id": document_id,
        "top": top,
        "bottom": bottom,
        "examined": LINE_ENDS_EXAMINED,
    }
    first = int((await connection.execute(_NEXT_PLACE, scope)).scalar_one())
    return [max(bottom, first - number) for number in range(count)]


async def position(connection: AsyncConnection, job_id: int) -> int | None:
    """How many jobs come before this one; None when it does not wait, or is far behind."""
    scope = {"job_id": job_id, "limit": POSITIONS_COUNTED + 1}
    found = (await connection.execute(_POSITION, scope)).scalar()
    return None if found is None or found > POSITIONS_COUNTED else int(found)


async def queue_again(
    connection: AsyncConnection, document_ids: Sequence[UUID], job_ids: Sequence[int]
) -> None:
    """The documents wait for these jobs now, whoever worked on them before."""
    await connection.execute(
        _QUEUE_AGAIN, {"document_ids": list(document_ids), "job_ids": list(job_ids)}
    )


async def lock_lost(connection: AsyncConnection, limit: int) -> Sequence[Any]:
    """Documents (id, collection_id) that wait for a job that is not there, locked."""
    return (await connection.execute(_LOST, {"limit": limit})).all()


# Retries that are not due yet keep their old place, and say nothing about how far the band is.
_NEXT_PLACE = text(
    """
    SELECT least(
      coalesce((
        SELECT priority FROM procrastinate_jobs
        WHERE status = 'todo' AND queue_name = 'documents' AND priority BETWEEN :bottom AND :top
          AND (scheduled_at IS NULL OR scheduled_at <= now())
        ORDER BY priority DESC, id LIMIT 1), :top),
      coalesce((
        SELECT min(j.priority) - 1 FROM (
          SELECT job_id FROM documents
          WHERE collection_id = (SELECT collection_id FROM documents WHERE id = :document_id)
            AND status = 'queued'
          ORDER BY status_at DESC LIMIT :examined) AS line
        JOIN procrastinate_jobs AS j ON j.id = line.job_id
        WHERE j.status = 'todo' AND j.priority BETWEEN :bottom AND :top), :top))
    """
).bindparams(
    bindparam("bottom", type_=Integer),
    bindparam("top", type_=Integer),
    bindparam("document_id", type_=Uuid),
)
_POSITION = text(
    """
    SELECT (SELECT count(*) FROM (
      SELECT 1 FROM procrastinate_jobs AS before
      WHERE before.status = 'todo' AND before.queue_name = own.queue_name
        AND before.priority >= own.priority
        AND (before.priority > own.priority OR before.id < own.id)
      LIMIT :limit) AS those_before)
    FROM procrastinate_jobs AS own WHERE own.id = :job_id AND own.status = 'todo'
    """
)
_QUEUE_AGAIN = text(
    """
    UPDATE documents AS d SET job_id = f.job_id, status = 'queued', status_at = now(),
      reason = NULL, claim = NULL, progress = NULL
    FROM unnest(:document_ids, :job_ids) AS f (document_id, job_id) WHERE d.id = f.document_id
    """
).bindparams(
    bindparam("document_ids", type_=ARRAY(Uuid)), bindparam("job_ids", type_=ARRAY(BigInteger))
)
_LOST = text(
    """
    SELECT d.id, d.collection_id FROM documents AS d
    WHERE d.status IN ('queued', 'processing') AND d.status_at < now() - interval '30 seconds'
      AND NOT EXISTS (
        SELECT 1 FROM procrastinate_jobs AS j
        WHERE j.id = d.job_id AND j.status IN ('todo', 'doing'))
    ORDER BY d.collection_id, d.id LIMIT :limit FOR UPDATE OF d SKIP LOCKED
    """
)

# Asked on the queue's own connections, in the driver's own notation. To procrastinate every process
# is two workers, which begin one right after the other: one for documents and one for sources.
BACKLOG = """
    SELECT count(*) FILTER (WHERE status = 'queued') AS queued,
      count(*) FILTER (WHERE status = 'processing') AS processing,
      coalesce(extract(epoch FROM now() - min(status_at) FILTER (WHERE status = 'queued')), 0)
        AS oldest_seconds,
      (SELECT ceil(count(*) / 2.0)::int FROM procrastinate_workers
        WHERE last_heartbeat > now() - make_interval(secs => %(alive_seconds)s)) AS workers
    FROM documents WHERE status IN ('queued', 'processing')
"""
WORKERS = """
    SELECT min(id) AS id, min(age_seconds) AS heartbeat_age_seconds
    FROM (
      SELECT id, extract(epoch FROM now() - last_heartbeat) AS age_seconds,
        (row_number() OVER (ORDER BY id) - 1) / 2 AS pair
      FROM procrastinate_workers
      WHERE last_heartbeat > now() - make_interval(secs => %(within_seconds)s))
    GROUP BY pair ORDER BY 1
"""
HELD = """
    SELECT id, queue_name, priority FROM procrastinate_jobs
    WHERE status = 'doing' AND worker_id = ANY(%(worker_ids)s)
"""
WAKE = """SELECT pg_notify('procrastinate_queue_v1#' || %(queue)s,
    '{"type": "job_inserted", "job_id": 0}')"""
