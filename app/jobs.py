"""Documents waiting to be processed: the one place that talks to procrastinate.

A job is deferred on the connection that writes the document's row, so both exist or neither does.
Jobs of dead workers are found by their missing heartbeat; what a late worker then still writes is
kept out by the document's claim, not here.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any, cast
from uuid import UUID

import structlog
from procrastinate import App, BaseRetryStrategy, JobContext, PsycopgConnector, RetryDecision
from procrastinate.exceptions import ConnectorException, JobAborted
from procrastinate.jobs import Job
from procrastinate.worker import Worker
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from app.db.models.documents import DocumentStatus
from app.db.session import libpq_url
from app.db.transactions import translated_errors
from app.errors import DatabaseUnavailable

log = structlog.get_logger(__name__)

QUEUE = "documents"
TASK = "process_document"

UPLOAD_PRIORITY = 10
"""Somebody waits for an upload; whatever the service starts by itself comes after it."""
REPAIR_PRIORITY = 0

HEARTBEAT_SECONDS = 5.0
DEAD_AFTER_SECONDS = 20.0
POLL_SECONDS = 5.0
DRAIN_SECONDS = 30.0
RECONNECT_SECONDS = 5.0
EVENT_POLL_SECONDS = 0.5
EVENTS_MAX_SECONDS = 3600.0
KEEP_FINISHED_HOURS = 72

Process = Callable[[UUID, int], Awaitable[bool]]
"""Works on a document, attempt 1 first. True: done, or not needed any more. False: failed for
good. Raises RetryLater to be called again."""


@dataclass(frozen=True, slots=True)
class JobState:
    """How far a document's processing is. `attempts` counts those that have begun."""

    id: int
    status: DocumentStatus
    document_id: UUID
    attempts: int
    reason: str | None

    @property
    def is_final(self) -> bool:
        return self.status in ("ready", "failed")


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many documents wait and are worked on, and for how long the oldest has been waiting.

    `workers` counts those with a heartbeat, busy or not.
    """

    queued: int
    processing: int
    oldest_seconds: float
    workers: int


class RetryLater(Exception):
    """This attempt failed; another one is due after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"again in {seconds:g} s")
        self.seconds = seconds


class Jobs:
    """`open()` succeeds while the database is away; what needs it raises DatabaseUnavailable."""

    def __init__(
        self, url: str, *, connections_count: int = 4, timeout_seconds: float = 10
    ) -> None:
        self._pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            libpq_url(url),
            min_size=0,
            max_size=connections_count,
            timeout=timeout_seconds,
            # The pool's own pauses double while it waits; a fresh attempt comes sooner.
            reconnect_timeout=RECONNECT_SECONDS,
            open=False,
            check=AsyncConnectionPool.check_connection,
            kwargs={
                "row_factory": dict_row,
                "connect_timeout": max(1, round(timeout_seconds)),
                "application_name": "footnote-jobs",
            },
        )
        self._app = App(connector=PsycopgConnector())
        self._app.task(name=TASK, queue=QUEUE, retry=_Retries(), pass_context=True)(
            self._process_document
        )

    async def open(self) -> None:
        await self._pool.open(wait=False)
        await self._app.open_async(self._pool)

    async def close(self) -> None:
        await self._app.close_async()
        await self._pool.close()

    # --- the service's side -----------------------------------------------------------------------

    async def defer_document(
        self,
        connection: AsyncConnection | AsyncSession,
        document_id: UUID,
        *,
        priority: int = UPLOAD_PRIORITY,
    ) -> int:
        """The id of a new job, which exists once the connection's transaction commits."""
        if isinstance(connection, AsyncSession):
            connection = await connection.connection()
        raw = await connection.get_raw_connection()
        job = self._app.configure_task(
            TASK, queue=QUEUE, priority=priority, connection=raw.driver_connection
        )
        return await job.defer_async(document_id=str(document_id))

    async def status(self, job_id: int) -> JobState | None:
        """None when there is no such job (any more)."""
        rows = await self._query(_STATUS, job_id=job_id)
        return _state(rows[0]) if rows else None

    async def events(self, job_id: int) -> AsyncIterator[JobState]:
        """The state now and whenever it changes, the final one last.

        Ends early when the job is removed, or after an hour. No connection is held in between.
        """
        deadline = monotonic() + EVENTS_MAX_SECONDS
        last: JobState | None = None
        while monotonic() < deadline:
            state = await self.status(job_id)
            if state is None:
                return
            if state != last:
                yield state
            if state.is_final:
                return
            last = state
            await asyncio.sleep(EVENT_POLL_SECONDS)

    async def backlog(self) -> Backlog:
        row = (await self._query(_BACKLOG, alive_seconds=DEAD_AFTER_SECONDS))[0]
        return Backlog(
            row["queued"], row["processing"], float(row["oldest_seconds"]), row["workers"]
        )

    # --- the worker's side ------------------------------------------------------------------------

    async def work(self, process: Process, *, concurrency: int, stop: asyncio.Event) -> None:
        """Take jobs until `stop` is set; then finish those at hand, or put them back.

        Returns early when the database goes away; the caller decides when to come back.
        """
        self._process = process
        worker = Worker(
            self._app,
            queues=[QUEUE],
            concurrency=concurrency,
            fetch_job_polling_interval=POLL_SECONDS,
            shutdown_graceful_timeout=DRAIN_SECONDS,
            install_signal_handlers=False,
            update_heartbeat_interval=HEARTBEAT_SECONDS,
            stalled_worker_timeout=DEAD_AFTER_SECONDS,
        )
        running = asyncio.create_task(worker.run())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            worker.stop()
            with _translated():
                await running
        finally:
            stopping.cancel()
            running.cancel()

    async def _process_document(self, context: JobContext, document_id: str) -> None:
        if not await self._process(UUID(document_id), context.job.attempts + 1):
            # Procrastinate's quiet way to end a job without success: the document has the
            # reason, and a trace of the worker's stack would explain nothing.
            raise JobAborted

    async def rescue_stalled(self) -> int:
        """Put jobs of workers without a heartbeat back into the queue; how many."""
        rescued = 0
        with _translated():
            stalled = await self._app.job_manager.get_stalled_jobs(
                queue=QUEUE, seconds_since_heartbeat=DEAD_AFTER_SECONDS
            )
        for job in stalled:
            try:
                await self._app.job_manager.retry_job(job, retry_at=datetime.now(UTC))
            except ConnectorException as error:
                # It ended by itself meanwhile.
                log.info("stalled_job_not_rescued", job=job.id, error=str(error))
            else:
                rescued += 1
                log.warning("stalled_job_rescued", job=job.id, attempts=job.attempts + 1)
        return rescued

    async def requeue_lost(self, engine: AsyncEngine) -> int:
        """Give every document that waits for a job which is not there a new one; how many."""
        async with engine.begin() as connection:
            lost = (await connection.execute(_LOST)).scalars().all()
            for document_id in lost:
                job_id = await self.defer_document(
                    connection, document_id, priority=REPAIR_PRIORITY
                )
                await connection.execute(_SET_JOB, {"document_id": document_id, "job_id": job_id})
                log.warning("lost_document_requeued", document=str(document_id), job=job_id)
        return len(lost)

    async def delete_finished(self) -> None:
        """Forget jobs that ended more than `KEEP_FINISHED_HOURS` ago."""
        with _translated():
            await self._app.job_manager.delete_old_jobs(
                KEEP_FINISHED_HOURS,
                queue=QUEUE,
                include_failed=True,
                include_cancelled=True,
                include_aborted=True,
            )

    async def _query(self, query: Any, **values: Any) -> list[DictRow]:
        with _translated():
            async with self._pool.connection() as connection:
                return await (await connection.execute(query, values)).fetchall()


class _Retries(BaseRetryStrategy):
    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        if isinstance(exception, RetryLater):
            return RetryDecision(retry_in={"milliseconds": int(exception.seconds * 1000)})
        if isinstance(exception, asyncio.CancelledError):
            # The worker is shutting down; somebody else may take the job at once.
            return RetryDecision(retry_at=datetime.now(UTC))
        return None


@contextmanager
def _translated() -> Generator[None]:
    try:
        with translated_errors():
            yield
    except (ConnectorException, PoolTimeout) as error:
        raise DatabaseUnavailable from error


def _state(row: DictRow) -> JobState:
    # The document knows best, as long as this is its latest job.
    status = cast(
        "DocumentStatus",
        row["document_status"] if row["is_latest"] else _STATUS_OF_JOB[row["job_status"]],
    )
    begun = row["attempts"] + (row["job_status"] == "doing")
    reason = row["reason"] if row["is_latest"] else None
    return JobState(row["id"], status, UUID(row["document_id"]), begun, reason)


_STATUS_OF_JOB: dict[str, DocumentStatus] = {
    "todo": "queued",
    "doing": "processing",
    "succeeded": "ready",
    "failed": "failed",
    "cancelled": "failed",
    "aborting": "failed",
    "aborted": "failed",
}

_STATUS = """
    SELECT j.id, j.status AS job_status, j.attempts, j.args ->> 'document_id' AS document_id,
      d.status AS document_status, d.reason, coalesce(d.job_id = j.id, false) AS is_latest
    FROM procrastinate_jobs AS j
    LEFT JOIN documents AS d ON d.id = (j.args ->> 'document_id')::uuid
    WHERE j.id = %(job_id)s AND j.task_name = 'process_document'
"""
_BACKLOG = """
    SELECT count(*) FILTER (WHERE status = 'queued') AS queued,
      count(*) FILTER (WHERE status = 'processing') AS processing,
      coalesce(extract(epoch FROM now() - min(status_at) FILTER (WHERE status = 'queued')), 0)
        AS oldest_seconds,
      (SELECT count(*) FROM procrastinate_workers
        WHERE last_heartbeat > now() - make_interval(secs => %(alive_seconds)s)) AS workers
    FROM documents WHERE status IN ('queued', 'processing')
"""
_LOST = text(
    """
    SELECT d.id FROM documents AS d
    WHERE d.status IN ('queued', 'processing') AND d.status_at < now() - interval '1 minute'
      AND NOT EXISTS (
        SELECT 1 FROM procrastinate_jobs AS j
        WHERE j.id = d.job_id AND j.status IN ('todo', 'doing'))
    ORDER BY d.id LIMIT 500 FOR UPDATE OF d SKIP LOCKED
    """
)
_SET_JOB = text(
    """
    UPDATE documents SET job_id = :job_id, status = 'queued', claim = NULL, status_at = now()
    WHERE id = :document_id
    """
)
