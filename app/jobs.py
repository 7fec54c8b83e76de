"""Documents waiting to be processed: the one place that talks to procrastinate.

A job is deferred on the connection that writes the document's row, so both exist or neither does.
Jobs of dead workers are found by their missing heartbeat; what a late worker then still writes is
kept out by the document's claim, not here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from uuid import UUID

import psycopg
import structlog
from procrastinate import App, JobContext, PsycopgConnector
from procrastinate.exceptions import ConnectorException, JobAborted
from procrastinate.job_context import AbortReason
from procrastinate.worker import Worker
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from app.db.model_switches import lock_unattended, note_job
from app.db.queue import (
    BACKLOG,
    BAND_TOPS,
    DOCUMENTS_QUEUE,
    HELD,
    WAKE,
    WORKERS,
    Priority,
    lock_lost,
    next_places,
    queue_again,
)
from app.db.retries import Retries, RetryLater, put_back
from app.db.session import libpq_url
from app.db.sources import lock_due, queue_sync
from app.db.transactions import translated_queue_errors

log = structlog.get_logger(__name__)

TASK = "process_document"
SOURCES_QUEUE = "sources"
SYNC_TASK = "sync_source"
SWITCH_TASK = "switch_model"
SYNCS_AT_ONCE = 2
"""Of one worker, beside the documents: whoever uploads does not wait behind a whole site."""

HEARTBEAT_SECONDS = 3.0
DEAD_AFTER_SECONDS = 15.0
"""Five signs of life. Work that is wrongly believed abandoned counts once, but is done twice."""
WORKER_SHOWN_SECONDS = 300.0
POLL_SECONDS = 5.0
DRAIN_SECONDS = 30.0
RECONNECT_SECONDS = 5.0
KEEP_FINISHED_HOURS = 72
LOST_AT_ONCE = 500
SOURCES_AT_ONCE = 100
SWITCHES_AT_ONCE = 100

Process = Callable[[UUID, int], Awaitable[bool]]
"""Works on a document, attempt 1 first. True: done, or not needed any more. False: failed for
good. Raises RetryLater to be called again."""

AdvanceSwitch = Callable[[int], Awaitable[bool]]
"""Does some of what a collection's other embedding model needs; returns and raises as `Process`."""

Sync = Callable[[UUID], Awaitable[bool]]
"""Brings a registered source in step, as often as it is called; returns and raises as `Process`."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many documents wait and are worked on, and for how long the oldest has been waiting.

    `workers` counts those with a heartbeat, busy or not.
    """

    queued: int
    processing: int
    oldest_seconds: float
    workers: int


@dataclass(frozen=True, slots=True)
class LivingWorker:
    """A worker process, and how long ago it last gave a sign of life."""

    id: int
    heartbeat_age_seconds: float

    @property
    def is_alive(self) -> bool:
        return self.heartbeat_age_seconds <= DEAD_AFTER_SECONDS


async def _commit_each_statement(connection: psycopg.AsyncConnection[Any]) -> None:
    """Whatever the queue asks on its own connections is one statement."""
    await connection.set_autocommit(True)


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
            configure=_commit_each_statement,
            kwargs={
                "row_factory": dict_row,
                "connect_timeout": max(1, round(timeout_seconds)),
                "application_name": "footnote-jobs",
            },
        )
        self._app = App(connector=PsycopgConnector())
        self._app.task(name=TASK, queue=DOCUMENTS_QUEUE, retry=Retries(), pass_context=True)(
            self._process_document
        )
        self._app.task(name=SWITCH_TASK, queue=DOCUMENTS_QUEUE, retry=Retries())(self._switch_model)
        self._app.task(name=SYNC_TASK, queue=SOURCES_QUEUE, retry=Retries())(self._sync_source)
        self._workers: dict[str, Worker] = {}
        self._at_hand: set[int | None] = set()
        self._suspects: set[int] = set()

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
        priority: Priority = "interactive",
    ) -> int:
        """The id of a new job, which exists once the connection's transaction commits."""
        return (await self.defer_documents(connection, [document_id], priority=priority))[0]

    async def defer_documents(
        self,
        connection: AsyncConnection | AsyncSession,
        document_ids: Sequence[UUID],
        *,
        priority: Priority,
    ) -> list[int]:
        """The ids of new jobs for documents of one collection, which stand in its line."""
        if isinstance(connection, AsyncSession):
            connection = await connection.connection()
        places = await next_places(connection, document_ids[0], priority, len(document_ids))
        jobs = [
            self._app.configure_task(TASK, queue=DOCUMENTS_QUEUE, priority=place).make_new_job(
                document_id=str(document_id)
            )
            for document_id, place in zip(document_ids, places, strict=True)
        ]
        raw = await connection.get_raw_connection()
        deferred = await self._app.job_manager.batch_defer_jobs_async(
            jobs, connection=raw.driver_connection
        )
        return [job.id for job in deferred if job.id is not None]

    async def defer_sync(self, connection: AsyncConnection, source_id: UUID) -> int:
        """The id of a new job; jobs of one source run one after the other."""
        raw = await connection.get_raw_connection()
        job = self._app.configure_task(
            SYNC_TASK,
            queue=SOURCES_QUEUE,
            lock=f"source:{source_id}",
            connection=raw.driver_connection,
        )
        return await job.defer_async(source_id=str(source_id))

    async def defer_switch(self, connection: AsyncConnection, collection_id: int) -> int:
        """The id of a new job behind whatever somebody waits for; one at a time per collection."""
        raw = await connection.get_raw_connection()
        job = self._app.configure_task(
            SWITCH_TASK,
            queue=DOCUMENTS_QUEUE,
            priority=BAND_TOPS["background"] - 1,
            lock=f"switch:{collection_id}",
            connection=raw.driver_connection,
        )
        return await job.defer_async(collection_id=collection_id)

    async def requeue(
        self,
        connection: AsyncConnection,
        documents: Sequence[tuple[UUID, int]],
        *,
        priority: Priority,
    ) -> None:
        """Give documents, each with the id of its collection, new jobs; the caller holds them."""
        for _, line in groupby(documents, key=lambda document: document[1]):
            document_ids = [document_id for document_id, _ in line]
            job_ids = await self.defer_documents(connection, document_ids, priority=priority)
            await queue_again(connection, document_ids, job_ids)

    async def cancel(self, connection: AsyncConnection, job_id: int) -> None:
        """Keep a job from being taken, and stop the worker that has it.

        What that one may still write, the document's claim has to keep out.
        """
        raw = await connection.get_raw_connection()
        await self._app.job_manager.cancel_job_by_id_async(
            job_id, abort=True, connection=raw.driver_connection
        )

    async def backlog(self) -> Backlog:
        row = (await self._query(BACKLOG, alive_seconds=DEAD_AFTER_SECONDS))[0]
        return Backlog(
            row["queued"], row["processing"], float(row["oldest_seconds"]), row["workers"]
        )

    async def workers(self) -> list[LivingWorker]:
        """Those that gave a sign of life within the last minutes, the oldest worker first."""
        rows = await self._query(WORKERS, within_seconds=WORKER_SHOWN_SECONDS)
        return [LivingWorker(row["id"], float(row["heartbeat_age_seconds"])) for row in rows]

    # --- the worker's side ------------------------------------------------------------------------

    async def work(
        self,
        process: Process,
        *,
        concurrency: int,
        stop: asyncio.Event,
        advance_switch: AdvanceSwitch | None = None,
    ) -> None:
        """Take jobs until `stop` is set; then finish those at hand, or put them back.

        Without `advance_switch`, those of other models are for other workers. Returns early when
        the database goes away; the caller decides when to come back.
        """
        self._process = process
        self._advance_switch = advance_switch
        await self._take_jobs(DOCUMENTS_QUEUE, concurrency, stop)

    async def work_on_sources(self, sync: Sync, *, stop: asyncio.Event) -> None:
        """The same for the jobs of sources."""
        self._sync = sync
        await self._take_jobs(SOURCES_QUEUE, SYNCS_AT_ONCE, stop)

    async def _take_jobs(self, queue: str, concurrency: int, stop: asyncio.Event) -> None:
        worker = self._workers[queue] = Worker(
            self._app,
            queues=[queue],
            worker_middleware=[self._remember],
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
            with translated_queue_errors():
                await running
            # What was put back is for another worker, and nothing else tells it so.
            await self._wake()
        finally:
            stopping.cancel()
            running.cancel()

    async def _process_document(self, context: JobContext, document_id: str) -> None:
        # JobAborted is procrastinate's quiet way to end a job without success: the document has
        # the reason, and a trace of the worker's stack would explain nothing.
        try:
            if not await self._process(UUID(document_id), context.job.attempts + 1):
                raise JobAborted
        except asyncio.CancelledError:
            if context.abort_reason() is AbortReason.USER_REQUEST:
                raise JobAborted from None
            raise

    async def _remember(
        self, proceed: Callable[[], Awaitable[Any]], context: JobContext, _: Worker
    ) -> Any:
        self._at_hand.add(context.job.id)
        try:
            return await proceed()
        finally:
            self._at_hand.discard(context.job.id)

    async def put_back_dropped(self) -> int:
        """Put back jobs that the queue believes in this process's hands and that are not; how many.

        A lost connection or a full disk leaves such, and signs of life would keep them for ever.
        A job on its way in or out is seen so once, not twice in a row.
        """
        worker_ids = [worker.worker_id for worker in self._workers.values() if worker.worker_id]
        rows = await self._query(HELD, worker_ids=worker_ids)
        held = {int(row["id"]): put_back(row["queue_name"], row["priority"]) for row in rows}
        suspects = held.keys() - self._at_hand
        dropped, self._suspects = suspects & self._suspects, suspects
        for job_id in dropped:
            with translated_queue_errors():
                await self._app.job_manager.retry_job_by_id_async(job_id, **held[job_id])
            log.warning("dropped_job_put_back", job=job_id)
        if dropped:
            await self._wake()
        return len(dropped)

    async def _sync_source(self, source_id: str) -> None:
        if not await self._sync(UUID(source_id)):
            raise JobAborted

    async def _switch_model(self, collection_id: int) -> None:
        if self._advance_switch is None:
            raise RetryLater(POLL_SECONDS)
        if not await self._advance_switch(collection_id):
            raise JobAborted

    async def rescue_stalled(self) -> int:
        """Put jobs of workers without a heartbeat back, before all that wait like them; how many."""
        rescued = 0
        with translated_queue_errors():
            stalled = await self._app.job_manager.get_stalled_jobs(
                seconds_since_heartbeat=DEAD_AFTER_SECONDS
            )
        for job in stalled:
            try:
                await self._app.job_manager.retry_job(job, **put_back(job.queue, job.priority))
            except ConnectorException as error:
                # It ended by itself meanwhile.
                log.info("stalled_job_not_rescued", job=job.id, error=str(error))
            else:
                rescued += 1
                log.warning("stalled_job_rescued", job=job.id, attempts=job.attempts + 1)
        if rescued:
            await self._wake()
        return rescued

    async def requeue_lost(self, engine: AsyncEngine) -> int:
        """Give every document that waits for a job which is not there a new one; how many."""
        async with engine.begin() as connection:
            lost = await lock_lost(connection, LOST_AT_ONCE)
            await self.requeue(connection, lost, priority="background")
        if lost:
            log.warning("lost_documents_requeued", count=len(lost), first=str(lost[0][0]))
        return len(lost)

    async def delete_finished(self) -> None:
        """Forget jobs that ended more than `KEEP_FINISHED_HOURS` ago."""
        with translated_queue_errors():
            await self._app.job_manager.delete_old_jobs(
                KEEP_FINISHED_HOURS,
                include_failed=True,
                include_cancelled=True,
                include_aborted=True,
            )

    async def requeue_due(self, engine: AsyncEngine) -> int:
        """Give sources that are due, or whose job got lost, a new job; how many."""
        async with engine.begin() as connection:
            due = await lock_due(connection, SOURCES_AT_ONCE)
            for source_id in due:
                job_id = await self.defer_sync(connection, source_id)
                await queue_sync(connection, source_id, job_id)
        return len(due)

    async def requeue_switches(self, engine: AsyncEngine) -> int:
        """Give other models that have something to do, and no job that does it, one; how many."""
        async with engine.begin() as connection:
            unattended = await lock_unattended(connection, SWITCHES_AT_ONCE)
            for collection_id in unattended:
                job_id = await self.defer_switch(connection, collection_id)
                await note_job(connection, collection_id, job_id)
        return len(unattended)

    async def _wake(self) -> None:
        """Have idle workers look for jobs now, not when they poll the next time."""
        await self._query(WAKE, queue=DOCUMENTS_QUEUE)

    async def _query(self, query: Any, **values: Any) -> list[DictRow]:
        with translated_queue_errors():
            async with self._pool.connection() as connection:
                return await (await connection.execute(query, values)).fetchall()
