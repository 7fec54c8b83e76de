"""The worker: takes uploaded documents from the queue and makes them searchable."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Self
from uuid import UUID

import structlog
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.config import Settings
from app.db.idempotency import forget_old_keys
from app.db.models import Collection
from app.db.postings import merge_postings
from app.db.retries import RetryLater
from app.db.schema import check_database
from app.db.session import WRITERS_IDLE_SECONDS, open_engine
from app.db.transactions import translated_errors
from app.db.vector_partitions import ensure_index
from app.embedding.base import Embedder
from app.embedding.known import ModelMissing
from app.errors import (
    DatabaseUnavailable,
    DocumentRejected,
    FootnoteError,
    StorageFull,
    Unavailable,
)
from app.failpoints import reach
from app.jobs import Jobs
from app.telemetry import DOCUMENTS
from ingestion.claims import (
    Claim,
    claim_document,
    fail_claimed,
    release_claim,
    write_claimed,
)
from ingestion.noting import ProgressNotes
from ingestion.personal_data import PersonalDataRefused
from ingestion.pipeline import DATABASE_CONNECTIONS, Original, Tools, open_tools, process
from ingestion.rebuilding import Rebuilder
from ingestion.switching import advance_switch
from ingestion.token_filling import TokenFiller
from ingestion.writing import NewVersion

log = structlog.get_logger(__name__)

MAX_ATTEMPTS = 3
MAX_STARTS = 6
"""Attempts when it is not the document's fault."""
MAX_STARTS_CUT_SHORT = 15
"""Attempts when workers died over it without a word. That is seldom the document's fault either, for
what reads files is a process of its own: under workers that are killed every three seconds one
version in 400 is cut short five times. One that does kill its worker costs 15 of them."""
RETRY_PAUSES_SECONDS = (2.0, 8.0, 30.0, 60.0, 120.0)
SYNC_PAUSE_SECONDS = 30.0
RECONNECT_PAUSES_SECONDS = (0.5, 1.0, 2.0, 5.0)

RESCUE_SECONDS = 5.0
REBUILD_SECONDS = 10.0
TIDY_SECONDS = 60.0
FORGET_SECONDS = 3600.0
CANCELLED_AGAIN_SECONDS = 1.0

SyncSource = Callable[[Tools, UUID], Awaitable[bool]]
"""Brings a registered source in step; False when that could not be done."""

_ONE_RESCUER = text("SELECT pg_try_advisory_xact_lock(1718579060)")


async def run_worker(
    settings: Settings,
    url: str,
    *,
    concurrency: int,
    stop: asyncio.Event | None = None,
    embedder: Embedder | None = None,
    sync_source: SyncSource | None = None,
) -> None:
    """Work until `stop` is set, by default by SIGINT or SIGTERM; the jobs at hand are finished.

    Lives on while the database is away. Raises DatabaseUnsuitable. The model is loaded when the
    first document comes, unless one is given. With `sync_source` it looks after registered sources
    as well.
    """
    if stop is None:
        stop = _stopped_by_signals()
    # More connections than the pipeline takes: for the maintenance, for its lock, for token vectors.
    engine = open_engine(
        settings,
        url,
        pool_size=DATABASE_CONNECTIONS + 3,
        idle_seconds=WRITERS_IDLE_SECONDS,
        pre_ping=False,
    )
    jobs = Jobs(url, timeout_seconds=settings.database_timeout_seconds)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        await jobs.open()
        stack.push_async_callback(jobs.close)
        worker = await stack.enter_async_context(Worker(settings, engine, embedder))
        rebuilder = Rebuilder(engine, jobs, worker.opened_tools)
        maintenance = asyncio.create_task(Maintenance(engine, jobs, rebuilder.queue_outdated).run())
        stack.push_async_callback(_cancelled, maintenance)
        filling = asyncio.create_task(TokenFiller(engine, worker.opened_tools).run())
        stack.push_async_callback(_cancelled, filling)
        take = partial(jobs.work, worker.process_document, advance_switch=worker.advance_switch)
        takers = [partial(take, concurrency=concurrency, stop=stop)]
        if sync_source is not None:
            sync = partial(_sync, worker, sync_source)
            takers.append(partial(jobs.work_on_sources, sync, stop=stop))
        await _work(takers, engine, concurrency=concurrency, stop=stop)


async def _sync(worker: "Worker", sync_source: SyncSource, source_id: UUID) -> bool:
    """As `app.jobs.Sync` says."""
    try:
        return await sync_source(await worker.opened_tools(), source_id)
    except (Unavailable, StorageFull) as error:
        log.warning("source_retried_later", source=str(source_id), reason=error.detail)
        raise RetryLater(SYNC_PAUSE_SECONDS) from error


async def _work(
    takers: Sequence[Callable[[], Awaitable[None]]],
    engine: AsyncEngine,
    *,
    concurrency: int,
    stop: asyncio.Event,
) -> None:
    failures = 0
    while not stop.is_set():
        started = time.monotonic()
        try:
            await check_database(engine)
            log.info("worker_ready", concurrency=concurrency)
            await _take_jobs(takers, stop)
        except Unavailable as error:
            log.warning("worker_without_database", detail=error.detail)
        failures = 0 if time.monotonic() - started > RESCUE_SECONDS else failures + 1
        pause_seconds = RECONNECT_PAUSES_SECONDS[min(failures, len(RECONNECT_PAUSES_SECONDS) - 1)]
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_seconds):
                await stop.wait()


async def _take_jobs(takers: Sequence[Callable[[], Awaitable[None]]], stop: asyncio.Event) -> None:
    """Until all have stopped, or the database went away under one of them."""
    tasks = [asyncio.ensure_future(take()) for take in takers]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            done, _ = await asyncio.wait(tasks)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _stopped_by_signals() -> asyncio.Event:
    """Set by the first signal; a second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def begin_to_stop() -> None:
        log.info("worker_stopping")
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, begin_to_stop)
    return stop


async def _cancelled(task: asyncio.Task[None]) -> None:
    # Until Python 3.12 wait_for, in the pool of connections, swallows a cancellation that comes as
    # it ends; then the task goes on, and whoever waits for its end would wait for ever.
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCELLED_AGAIN_SECONDS)


class Worker:
    """Processes one document per call; safe to call several times at once."""

    def __init__(self, settings: Settings, engine: AsyncEngine, embedder: Embedder | None) -> None:
        self._settings = settings
        self._engine = engine
        self._embedder = embedder
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._tools: Tools | None = None
        self._notes = ProgressNotes(engine)

    async def __aenter__(self) -> Self:
        self._stack.push_async_callback(_cancelled, asyncio.create_task(self._notes.run()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def process_document(self, document_id: UUID, attempt: int) -> bool:
        """As `app.jobs.Process` says."""
        try:
            tools = await self.opened_tools()
            claim = await tools.transaction(
                lambda connection: claim_document(connection, document_id, tools.digest)
            )
            reach("worker.claimed")
            is_done = claim is None or await self._attempt(claim, attempt, tools)
            reach("worker.before_job_done")
            return is_done
        except (Unavailable, StorageFull) as error:
            raise _later(attempt, error.detail) from error

    async def advance_switch(self, collection_id: int) -> bool:
        """As `app.jobs.AdvanceSwitch` says."""
        try:
            return await advance_switch(await self.opened_tools(), collection_id)
        except (Unavailable, StorageFull) as error:
            raise _later(1, error.detail) from error

    async def _attempt(self, claim: Claim, attempt: int, tools: Tools) -> bool:
        if claim.is_second_hand and attempt >= MAX_STARTS_CUT_SHORT:
            return await self._fail(
                claim, f"processing it was cut short {attempt - 1} times", tools
            )
        refused: Mapping[str, int] | None = None
        try:
            is_written = await self._make(claim, tools)
        except PersonalDataRefused as error:
            reason, may_repeat, refused = error.reason, False, error.counts
        except DocumentRejected as error:
            reason, may_repeat = error.reason, error.retryable and attempt < MAX_ATTEMPTS
        except (DatabaseUnavailable, StorageFull) as error:
            # However long it lasts: no document is lost to a disk that somebody will empty.
            reason, may_repeat = error.detail, True
        except Unavailable as error:
            reason, may_repeat = error.detail, attempt < MAX_STARTS
        except asyncio.CancelledError:
            # The worker is being stopped: whoever comes next need not wait for a sign of life.
            await self._release(claim, tools, None)
            raise
        except Exception as error:
            log.exception("document_failed", document=str(claim.document_id), attempt=attempt)
            reason = f"it could not be processed (internal error: {type(error).__name__})"
            may_repeat = attempt < MAX_ATTEMPTS
        else:
            DOCUMENTS.labels("ready" if is_written else "discarded").inc()
            return True
        if not may_repeat:
            return await self._fail(claim, reason, tools, refused)
        await self._release(claim, tools, reason)
        raise _later(attempt, reason)

    async def _make(self, claim: Claim, tools: Tools) -> bool:
        try:
            # Asks the database once for each model, not for each document.
            await tools.check_model(claim.shelf.model_id)
        except ModelMissing as error:
            raise DocumentRejected(
                f"its collection is of another embedding model than {tools.embedder.name}. "
                f"{error.detail}"
            ) from error

        async def write(connection: AsyncConnection, version: NewVersion) -> bool:
            return await write_claimed(connection, claim, version)

        original = Original(claim.filename, claim.sha256, claim.content, claim.given)
        with self._notes.of(claim) as report:
            return await process(original, claim.shelf, tools, write, report)

    async def _fail(
        self,
        claim: Claim,
        reason: str,
        tools: Tools,
        refused: Mapping[str, int] | None = None,
    ) -> bool:
        is_ours = await tools.transaction(
            lambda connection: fail_claimed(connection, claim, reason, refused)
        )
        if is_ours:
            DOCUMENTS.labels("failed").inc()
            log.info("document_rejected", document=str(claim.document_id), reason=reason)
        # Somebody else's document by now is nothing that this job failed at.
        return not is_ours

    async def _release(self, claim: Claim, tools: Tools, reason: str | None) -> None:
        # While the database is away the claim stays, and the next attempt takes it over.
        with suppress(FootnoteError):
            await tools.transaction(lambda connection: release_claim(connection, claim, reason))

    async def opened_tools(self) -> Tools:
        async with self._opening:
            if self._tools is None:
                self._tools = await self._stack.enter_async_context(
                    open_tools(self._settings, self._engine, self._embedder)
                )
            return self._tools


def _later(attempt: int, reason: str) -> RetryLater:
    pause_seconds = RETRY_PAUSES_SECONDS[min(attempt, len(RETRY_PAUSES_SECONDS)) - 1]
    log.warning("document_retried_later", reason=reason, attempt=attempt, in_seconds=pause_seconds)
    return RetryLater(pause_seconds)


class Maintenance:
    """What somebody has to do now and then, whichever worker it is."""

    def __init__(
        self, engine: AsyncEngine, jobs: Jobs, rebuild: Callable[[], Awaitable[None]]
    ) -> None:
        self._engine = engine
        self._jobs = jobs
        self._rebuild = rebuild
        self._generations: dict[int, int] | None = None
        self._due: dict[str, float] = {}

    async def run(self) -> None:
        """For ever; what fails is tried again next time."""
        while True:
            for name, every_seconds, work in (
                ("rescue", RESCUE_SECONDS, self.rescue),
                ("rebuild", REBUILD_SECONDS, self._rebuild),
                ("tidy", TIDY_SECONDS, self.tidy),
                ("forget", FORGET_SECONDS, self.forget),
            ):
                if time.monotonic() < self._due.get(name, 0):
                    continue
                self._due[name] = time.monotonic() + every_seconds
                try:
                    with translated_errors():
                        await work()
                except Unavailable as error:
                    log.info("maintenance_put_off", what=name, reason=error.detail)
                except Exception:
                    log.exception("maintenance_failed", what=name)
            await asyncio.sleep(RESCUE_SECONDS)

    async def rescue(self) -> None:
        """Bring back the jobs of dead workers, and documents whose job got lost."""
        await self._jobs.put_back_dropped()
        async with self._engine.begin() as connection:
            if (await connection.execute(_ONE_RESCUER)).scalar_one():
                await self._jobs.rescue_stalled()
                reach("rescue.jobs_put_back")
                await self._jobs.requeue_lost(self._engine)
                await self._jobs.requeue_due(self._engine)
                await self._jobs.requeue_switches(self._engine)

    async def tidy(self) -> None:
        """Keep the indexes of the collections fast that changed since the last time."""
        async with self._engine.connect() as connection:
            rows = (await connection.execute(_COLLECTIONS)).all()
        before = self._generations
        self._generations = {row.id: row.generation for row in rows}
        for row in rows:
            if before is not None and before.get(row.id) != row.generation:
                await merge_postings(self._engine, row.id)
                await ensure_index(self._engine, row.embedding_model_id)

    async def forget(self) -> None:
        """Drop finished jobs and used Idempotency-Keys that are old."""
        await self._jobs.delete_finished()
        async with self._engine.begin() as connection:
            await forget_old_keys(connection)


_COLLECTIONS = select(Collection.id, Collection.generation, Collection.embedding_model_id)
