"""Workers as real processes: stopped gently, killed, and put to sleep in the middle of their work."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import app.jobs
import ingestion.worker
from app.access import LOCAL_OWNER
from app.config import Settings
from app.db.session import open_sessions
from app.documents.library import Library
from app.documents.records import DocumentRecord, Upload
from app.jobs import Jobs
from ingestion.worker import run_worker
from tests.conftest import ROOT
from tests.doubles.word_embedder import WordEmbedder
from tests.index_state import assert_consistent, contents, generation

QUICK = {"HEARTBEAT_SECONDS": 0.2, "DEAD_AFTER_SECONDS": 2.0, "POLL_SECONDS": 1.0}


class HeldWorker:
    """See tests/held_worker.py."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def is_asked(self) -> None:
        """Returns when its model is wanted: it has claimed a document, and works on it."""
        assert self.process.stdout is not None
        while b"asked" not in (line := await self.process.stdout.readline()):
            assert line, "it died"

    def let_go(self, times: int = 1) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n" * times)

    async def end(self) -> int:
        """Wait for it; its exit code."""
        async with asyncio.timeout(60):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


HeldWorkers = Callable[..., AbstractAsyncContextManager[HeldWorker]]


@pytest.fixture
def held_worker(settings: Settings, database_url: str) -> HeldWorkers:
    @asynccontextmanager
    async def start(**constants: float) -> AsyncGenerator[HeldWorker]:
        arguments = [database_url, str(settings.home), json.dumps(QUICK | constants)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.held_worker", *arguments),
            cwd=ROOT,
            stdin=PIPE,
            stdout=PIPE,
        )
        try:
            yield HeldWorker(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    return start


@pytest.fixture
async def jobs(database_url: str) -> AsyncIterator[Jobs]:
    opened = Jobs(database_url)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def library(engine: AsyncEngine, jobs: Jobs, settings: Settings) -> Library:
    return Library(open_sessions(engine), jobs, settings, WordEmbedder())


@asynccontextmanager
async def another_worker(settings: Settings, database_url: str) -> AsyncGenerator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(
        run_worker(settings, database_url, concurrency=2, stop=stop, embedder=WordEmbedder())
    )
    try:
        yield
    finally:
        stop.set()
        await task


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUICK.items():
        monkeypatch.setattr(app.jobs, name, value)
    monkeypatch.setattr(ingestion.worker, "RESCUE_SECONDS", 0.2)


async def upload(library: Library, name: str) -> UUID:
    content = f"# {name}\n\nThe text of {name}.".encode()
    return (await library.register_upload(LOCAL_OWNER, Upload(f"{name}.md", content))).document_id


async def settled(library: Library, document_id: UUID) -> DocumentRecord:
    async with asyncio.timeout(60):
        while True:
            document = await library.get(LOCAL_OWNER, document_id)
            if document.status in ("ready", "failed"):
                return document
            await asyncio.sleep(0.02)


def test_a_dead_worker_is_noticed_within_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the constants as they are: silent for so long, looked for so often."""
    monkeypatch.undo()
    assert app.jobs.DEAD_AFTER_SECONDS >= 5 * app.jobs.HEARTBEAT_SECONDS
    noticed_seconds = app.jobs.DEAD_AFTER_SECONDS + 2 * ingestion.worker.RESCUE_SECONDS
    assert noticed_seconds + app.jobs.POLL_SECONDS <= 30


async def test_a_worker_that_is_told_to_stop_finishes_what_it_has(
    library: Library, held_worker: HeldWorkers, engine: AsyncEngine
) -> None:
    async with held_worker() as worker:
        at_hand = await upload(library, "at hand")
        await worker.is_asked()
        await listening(engine, 1)
        worker.process.send_signal(signal.SIGTERM)
        await listening(engine, 0)
        waiting = await upload(library, "waiting")
        worker.let_go()
        assert await worker.end() == 0
    assert (await library.get(LOCAL_OWNER, at_hand)).status == "ready"
    document = await library.get(LOCAL_OWNER, waiting)
    assert (document.status, document.version) == ("queued", None)
    await assert_consistent(engine)


async def listening(engine: AsyncEngine, count: int) -> None:
    """Returns when so many workers are told of new jobs."""
    async with asyncio.timeout(60):
        while True:
            async with engine.connect() as connection:
                found = await connection.scalar(
                    text(
                        "SELECT count(*) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
                    )
                )
            if found == count:
                return
            await asyncio.sleep(0.02)


async def test_what_cannot_be_finished_in_time_is_taken_by_another_at_once(
    library: Library,
    held_worker: HeldWorkers,
    settings: Settings,
    database_url: str,
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Neither a poll nor a missing sign of life may be what brings it to the other one.
    monkeypatch.setattr(app.jobs, "POLL_SECONDS", 600.0)
    monkeypatch.setattr(app.jobs, "DEAD_AFTER_SECONDS", 600.0)
    async with held_worker(DRAIN_SECONDS=0.2) as worker:
        document_id = await upload(library, "long")
        await worker.is_asked()
        async with another_worker(settings, database_url):
            await listening(engine, 2)
            worker.process.send_signal(signal.SIGTERM)
            # The first one's model still computes, and nobody waits for it.
            document = await settled(library, document_id)
            assert (document.status, document.version) == ("ready", 1)
            before = await contents(engine), await generation(engine)
            worker.let_go()
            assert await worker.end() == 0
    assert (await contents(engine), await generation(engine)) == before
    await assert_consistent(engine)


async def test_the_work_of_a_killed_worker_is_done_by_another(
    library: Library,
    held_worker: HeldWorkers,
    settings: Settings,
    database_url: str,
    engine: AsyncEngine,
) -> None:
    async with held_worker() as worker:
        ids = [await upload(library, f"number {number}") for number in range(4)]
        await worker.is_asked()
        worker.process.kill()
        assert await worker.end() == -signal.SIGKILL
    async with another_worker(settings, database_url):
        documents = [await settled(library, document_id) for document_id in ids]
    assert {(document.status, document.version) for document in documents} == {("ready", 1)}
    assert len(await contents(engine)) == 4
    await assert_consistent(engine)


async def test_a_worker_that_wakes_up_too_late_changes_nothing(
    library: Library,
    held_worker: HeldWorkers,
    settings: Settings,
    database_url: str,
    engine: AsyncEngine,
) -> None:
    async with held_worker() as worker:
        document_id = await upload(library, "asleep")
        await worker.is_asked()
        worker.process.send_signal(signal.SIGSTOP)
        async with another_worker(settings, database_url):
            document = await settled(library, document_id)
        assert (document.status, document.version) == ("ready", 1)
        before = await contents(engine), await generation(engine)

        worker.process.send_signal(signal.SIGCONT)
        worker.let_go(times=10)
        # It finds out, and goes on with what comes next.
        following = await settled(library, await upload(library, "following"))
        assert following.status == "ready"
        after = await contents(engine)
        assert {uri: after[uri] for uri in before[0]} == before[0]
        assert await generation(engine) == before[1] + 1
        assert (await library.get(LOCAL_OWNER, document_id)).updated_at == document.updated_at
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.end() == 0
    await assert_consistent(engine)
