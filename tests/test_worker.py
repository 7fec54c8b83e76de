"""Uploads through the worker: each becomes ready or failed, once, whatever happens meanwhile."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import LOCAL_OWNER
from app.config import Settings
from app.db.schema import check_database
from app.db.session import open_sessions
from app.documents.job_states import Progress
from app.documents.library import Library
from app.documents.queue import Queue
from app.documents.records import DocumentRecord, Upload
from app.embedding.base import TextKind, Vectors
from app.errors import DocumentRejected, NotFound
from app.jobs import Jobs
from ingestion import worker as worker_module
from ingestion.claims import claim_document, fail_claimed, release_claim, write_claimed
from ingestion.noting import ProgressNotes
from ingestion.parsing.sandbox import ParserPool
from ingestion.pipeline import Original, Tools, open_tools, process
from ingestion.worker import Maintenance, run_worker
from tests.doubles.word_embedder import WordEmbedder
from tests.index_state import assert_consistent, contents, generation

TEXT = b"# Title\n\nThe first paragraph of it.\n\n## More\n\nThe second one."


class HeldEmbedder(WordEmbedder):
    """Computes only while the test does not hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self.is_asked = threading.Event()

    def embed(self, texts: Sequence[str], kind: TextKind) -> Vectors:
        self.is_asked.set()
        assert self.let_go.wait(30)
        return super().embed(texts, kind)


@pytest.fixture
def embedder() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture
async def jobs(database_url: str) -> AsyncIterator[Jobs]:
    opened = Jobs(database_url)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def library(engine: AsyncEngine, jobs: Jobs, settings: Settings, embedder: WordEmbedder) -> Library:
    return Library(open_sessions(engine), jobs, settings, embedder)


@pytest.fixture
def queue(engine: AsyncEngine, jobs: Jobs, settings: Settings) -> Queue:
    return Queue(open_sessions(engine), jobs, settings)


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.jobs.POLL_SECONDS", 0.05)
    monkeypatch.setattr("ingestion.worker.RETRY_PAUSES_SECONDS", (0.0,))


Working = Callable[..., Any]


@pytest.fixture
def working(settings: Settings, database_url: str, embedder: WordEmbedder) -> Working:
    """A worker for as long as the block runs."""

    @asynccontextmanager
    async def work(given: WordEmbedder | None = None, concurrency: int = 4) -> AsyncIterator[None]:
        stop = asyncio.Event()
        task = asyncio.create_task(
            run_worker(
                settings,
                database_url,
                concurrency=concurrency,
                stop=stop,
                embedder=given or embedder,
            )
        )
        try:
            yield
        finally:
            stop.set()
            await task

    return work


async def upload(library: Library, name: str = "a.md", content: bytes = TEXT, **more: Any) -> UUID:
    accepted = await library.register_upload(LOCAL_OWNER, Upload(name, content, **more))
    return accepted.document_id


async def settled(library: Library, document_id: UUID) -> DocumentRecord:
    async with asyncio.timeout(30):
        while True:
            document = await library.get(LOCAL_OWNER, document_id)
            if document.status in ("ready", "failed"):
                return document
            await asyncio.sleep(0.02)


async def until(condition: Callable[[], Awaitable[bool] | bool]) -> None:
    async with asyncio.timeout(30):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.01)


async def test_an_upload_becomes_searchable(
    library: Library, queue: Queue, working: Working, engine: AsyncEngine
) -> None:
    accepted = await library.register_upload(
        LOCAL_OWNER, Upload("a.md", TEXT, metadata={"year": 2025}, groups=["hr"])
    )
    generation_before = await generation(engine)
    async with working():
        document = await settled(library, accepted.document_id)
        await until(lambda: job_is(queue, accepted.job_id, "ready"))
    assert (document.status, document.reason, document.version) == ("ready", None, 1)
    assert document.title == "Title"
    assert document.chunks >= 1
    assert document.metadata["year"] == 2025
    assert document.groups == ["hr"]
    assert await generation(engine) == generation_before + 1
    state = await queue.job(LOCAL_OWNER, accepted.job_id)
    assert (state.status, state.attempts) == ("ready", 1)
    await assert_consistent(engine)


async def job_is(queue: Queue, job_id: int, status: str) -> bool:
    return (await queue.job(LOCAL_OWNER, job_id)).status == status


async def test_many_uploads_and_two_workers(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    ids = [
        await upload(library, f"{number}.md", b"# Number %d\n\nIts text." % number)
        for number in range(20)
    ]
    async with working(), working(WordEmbedder()):
        documents = [await settled(library, document_id) for document_id in ids]
    assert {document.status for document in documents} == {"ready"}
    assert len(await contents(engine)) == 20
    await assert_consistent(engine)


async def test_the_old_version_serves_until_the_new_one_is_ready(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    document_id = await upload(library, metadata={"old": True}, groups=["few"])
    async with working():
        await settled(library, document_id)
    before = await contents(engine)
    await upload(library, content=b"# New\n\nOther text.", metadata={"new": True}, groups=["many"])
    waiting = await library.get(LOCAL_OWNER, document_id)
    assert (waiting.status, waiting.version, waiting.title) == ("queued", 1, "Title")
    # The old text must not be shown to the new text's readers.
    assert (waiting.groups, waiting.metadata["old"]) == (["few"], True)
    assert await contents(engine) == before
    async with working():
        document = await settled(library, document_id)
    assert (document.version, document.title, document.groups) == (2, "New", ["many"])
    assert document.metadata == {"new": True}
    await assert_consistent(engine)


async def test_a_new_version_that_fails_leaves_the_old_one(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    document_id = await upload(library)
    async with working():
        await settled(library, document_id)
        before = await contents(engine)
        await upload(library, content=b"   \n  ")
        document = await settled(library, document_id)
    assert (document.status, document.version) == ("failed", 1)
    assert document.reason
    assert await contents(engine) == before
    await assert_consistent(engine)


async def test_a_document_that_cannot_be_read_fails_at_once(
    library: Library, queue: Queue, working: Working, engine: AsyncEngine, embedder: WordEmbedder
) -> None:
    accepted = await library.register_upload(LOCAL_OWNER, Upload("a.md", b"\n \n"))
    async with working():
        document = await settled(library, accepted.document_id)
        await until(lambda: finished(engine, accepted.job_id))
    assert document.status == "failed"
    assert document.reason
    state = await queue.job(LOCAL_OWNER, accepted.job_id)
    assert (state.status, state.attempts, state.reason) == ("failed", 1, document.reason)
    assert embedder.texts == []
    assert (await library.content(LOCAL_OWNER, document.id)).content == b"\n \n"


async def finished(engine: AsyncEngine, job_id: int) -> bool:
    async with engine.connect() as connection:
        status = await connection.scalar(
            text("SELECT status::text FROM procrastinate_jobs WHERE id = :id"), {"id": job_id}
        )
        return status not in ("todo", "doing")


@pytest.mark.parametrize("failures", [2, 3])
async def test_a_crashing_parser_gets_three_attempts(
    library: Library,
    working: Working,
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
    failures: int,
) -> None:
    parse = ParserPool.parse
    attempts: list[str] = []

    async def crash(pool: ParserPool, content: bytes, filename: str) -> Any:
        if filename == "bad.md":
            attempts.append(filename)
            if len(attempts) <= failures:
                raise DocumentRejected("it crashed the parser", retryable=True)
        return await parse(pool, content, filename)

    monkeypatch.setattr(ParserPool, "parse", crash)
    bad = await upload(library, "bad.md")
    neighbour = await upload(library, "good.md")
    async with working():
        document = await settled(library, bad)
        assert (await settled(library, neighbour)).status == "ready"
    assert len(attempts) == 3
    expected = ("ready", None) if failures == 2 else ("failed", "it crashed the parser")
    assert (document.status, document.reason) == expected
    await assert_consistent(engine)


async def test_an_internal_error_is_retried_then_told(
    library: Library, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stumble(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(ParserPool, "parse", stumble)
    accepted = await library.register_upload(LOCAL_OWNER, Upload("a.md", TEXT))
    async with working():
        document = await settled(library, accepted.document_id)
    assert document.status == "failed"
    assert document.reason
    assert "internal error: ZeroDivisionError" in document.reason


async def test_a_deleted_document_does_not_come_back(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    held = HeldEmbedder()
    accepted = await library.register_upload(LOCAL_OWNER, Upload("a.md", TEXT))
    async with working(held):
        await until(held.is_asked.is_set)
        await library.delete(LOCAL_OWNER, accepted.document_id)
        held.let_go.set()
        await until(lambda: finished(engine, accepted.job_id))
    with pytest.raises(NotFound):
        await library.get(LOCAL_OWNER, accepted.document_id)
    assert await contents(engine) == {}
    await assert_consistent(engine)


async def test_a_deleted_collection_does_not_come_back(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    held = HeldEmbedder()
    accepted = await library.register_upload(LOCAL_OWNER, Upload("a.md", TEXT))
    async with working(held):
        await until(held.is_asked.is_set)
        await library.delete_collection(LOCAL_OWNER, "default")
        held.let_go.set()
        await until(lambda: finished(engine, accepted.job_id))
    assert await contents(engine) == {}
    assert await library.list_collections(LOCAL_OWNER) == []


async def test_what_is_sent_meanwhile_wins(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    held = HeldEmbedder()
    document_id = await upload(library, content=b"# Old\n\nOld text.")
    async with working(held):
        await until(held.is_asked.is_set)
        await upload(library, content=b"# New\n\nNew text.")
        held.let_go.set()
        await until(lambda: title_is(library, document_id, "New"))
        document = await settled(library, document_id)
    assert (document.title, document.version, document.status) == ("New", 1, "ready")
    [chunks] = (await contents(engine)).values()
    assert all("Old" not in chunk[1] for chunk in chunks)
    await assert_consistent(engine)


async def title_is(library: Library, document_id: UUID, title: str) -> bool:
    return (await library.get(LOCAL_OWNER, document_id)).title == title


async def prepared(tools: Tools, claim: Any) -> Any:
    """The version that a claim's attempt would write."""
    caught: list[Any] = []

    async def catch(_: Any, version: Any) -> None:
        caught.append(version)

    original = Original(claim.filename, claim.sha256, claim.content)
    await process(original, claim.shelf, tools, catch)
    return caught[0]


async def test_a_late_writer_changes_nothing(
    library: Library, engine: AsyncEngine, settings: Settings, embedder: WordEmbedder
) -> None:
    document_id = await upload(library)
    async with open_tools(settings, engine, embedder) as tools:
        late, early = [
            await tools.transaction(
                lambda connection: claim_document(connection, document_id, tools.digest)
            )
            for _ in range(2)
        ]
        assert late is not None
        assert early is not None
        assert (late.is_second_hand, early.is_second_hand) == (False, True)
        version = await prepared(tools, late)
        assert await tools.transaction(lambda c: write_claimed(c, early, version))
        before = await contents(engine), await generation(engine)
        assert not await tools.transaction(lambda c: write_claimed(c, late, version))
        assert not await tools.transaction(lambda c: fail_claimed(c, late, "late"))
        await tools.transaction(lambda c: release_claim(c, late, "late"))
        assert (await contents(engine), await generation(engine)) == before
        assert (await library.get(LOCAL_OWNER, document_id)).status == "ready"
        assert (
            await tools.transaction(
                lambda connection: claim_document(connection, document_id, tools.digest)
            )
            is None
        )
    await assert_consistent(engine)


async def test_a_document_of_another_model_fails_with_the_reason(
    library: Library, working: Working
) -> None:
    document_id = await upload(library)
    async with working(WordEmbedder("words-2")):
        document = await settled(library, document_id)
    assert document.status == "failed"
    assert document.reason
    assert "another embedding model" in document.reason


async def test_a_document_that_kills_workers_is_given_up(
    library: Library, queue: Queue, working: Working, engine: AsyncEngine
) -> None:
    accepted = await library.register_upload(LOCAL_OWNER, Upload("a.md", TEXT))
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE documents SET status = 'processing', claim = gen_random_uuid()")
        )
        await connection.execute(text("UPDATE procrastinate_jobs SET attempts = 14"))
    async with working():
        await until(lambda: job_is(queue, accepted.job_id, "failed"))
    document = await library.get(LOCAL_OWNER, accepted.document_id)
    assert document.reason == "processing it was cut short 14 times"


async def test_the_worker_outlives_its_connections(
    library: Library, working: Working, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.jobs.DEAD_AFTER_SECONDS", 0.5)
    monkeypatch.setattr("app.jobs.HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr("ingestion.worker.RESCUE_SECONDS", 0.3)
    held = HeldEmbedder()
    first = await upload(library, "first.md")
    async with working(held):
        await until(held.is_asked.is_set)
        async with engine.connect() as connection:
            await connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND application_name LIKE 'footnote%'"
                )
            )
        held.let_go.set()
        assert (await settled(library, first)).status == "ready"
        second = await upload(library, "second.md", b"# Second\n\nText.")
        assert (await settled(library, second)).status == "ready"
    assert len(await contents(engine)) == 2
    await assert_consistent(engine)


async def test_a_worker_waits_for_its_database(
    settings: Settings, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.worker.RECONNECT_PAUSES_SECONDS", (0.05,))
    tried: list[AsyncEngine] = []

    async def away(engine: AsyncEngine) -> None:
        tried.append(engine)
        await check_database(engine)

    monkeypatch.setattr("ingestion.worker.check_database", away)
    stop = asyncio.Event()
    nowhere = "postgresql://127.0.0.1:1/none"
    task = asyncio.create_task(
        run_worker(settings, nowhere, concurrency=1, stop=stop, embedder=embedder)
    )
    await until(lambda: len(tried) > 3)
    assert not task.done()
    stop.set()
    await task


async def test_a_stopped_worker_puts_its_work_back(
    library: Library, working: Working, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.jobs.DRAIN_SECONDS", 0.1)
    held = HeldEmbedder()
    document_id = await upload(library)

    async def let_go_later() -> None:
        await asyncio.sleep(0.5)
        held.let_go.set()

    async with working(held):
        await until(held.is_asked.is_set)
        letting_go = asyncio.create_task(let_go_later())
    await letting_go
    document = await library.get(LOCAL_OWNER, document_id)
    assert (document.status, document.version) == ("queued", None)
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT claim FROM documents")) is None
    async with working():
        assert (await settled(library, document_id)).status == "ready"
    await assert_consistent(engine)


async def test_maintenance_tidies_what_changed(
    library: Library, working: Working, engine: AsyncEngine, jobs: Jobs
) -> None:
    maintenance = Maintenance(engine, jobs, rebuild=nothing)
    await maintenance.tidy()
    for number in range(20):
        await upload(library, f"{number}.md", b"# Same words\n\nSame words.")
    async with working():
        await until(lambda: all_ready(library))
    rows_before = await postings_rows(engine)
    await maintenance.tidy()
    assert await postings_rows(engine) < rows_before
    await maintenance.rescue()
    await maintenance.forget()
    await assert_consistent(engine)


async def nothing() -> None: ...


async def all_ready(library: Library) -> bool:
    page = await library.list(LOCAL_OWNER, status="ready", limit=100)
    return len(page.documents) == 20


async def postings_rows(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT count(*) FROM postings"))
        return int(found.scalar_one())


# --- watched and cancelled ------------------------------------------------------------------------


async def test_progress_is_told_while_a_document_is_worked_on(
    library: Library,
    queue: Queue,
    working: Working,
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ingestion.noting.NOTE_SECONDS", 0.02)
    held = HeldEmbedder()
    accepted = await library.register_upload(LOCAL_OWNER, Upload("a.md", TEXT))

    async def is_embedding() -> bool:
        state = await queue.job(LOCAL_OWNER, accepted.job_id)
        return state.progress == Progress("embedding", 0, 1)

    async with working(held):
        await until(is_embedding)
        assert (await queue.job(LOCAL_OWNER, accepted.job_id)).status == "processing"
        held.let_go.set()
        await settled(library, accepted.document_id)
    assert (await queue.job(LOCAL_OWNER, accepted.job_id)).progress is None


async def test_progress_is_noted_only_for_a_claim_that_is_good(
    library: Library, engine: AsyncEngine, settings: Settings, embedder: WordEmbedder
) -> None:
    document_id = await upload(library)
    async with open_tools(settings, engine, embedder) as tools:
        late, early = [
            await tools.transaction(
                lambda connection: claim_document(connection, document_id, tools.digest)
            )
            for _ in range(2)
        ]
    assert late is not None
    assert early is not None
    notes = ProgressNotes(engine)
    with notes.of(early) as report_early, notes.of(late) as report_late:
        report_early("embedding", 1, 10)
        report_late("embedding", 9, 10)
        await notes.write()
    async with engine.connect() as connection:
        progress = await connection.scalar(text("SELECT progress FROM documents"))
    assert progress == {"stage": "embedding", "done": 1, "total": 10}


async def test_a_job_that_is_cancelled_at_work_leaves_nothing(
    library: Library, queue: Queue, working: Working, engine: AsyncEngine
) -> None:
    held = HeldEmbedder()
    accepted = await library.register_upload(LOCAL_OWNER, Upload("a.md", TEXT))
    async with working(held):
        await until(held.is_asked.is_set)
        state = await queue.cancel(LOCAL_OWNER, accepted.job_id)
        assert (state.status, state.reason) == ("failed", "cancelled")
        # The worker lets go of it at once, though its model is still busy.
        await until(lambda: finished(engine, accepted.job_id))
        held.let_go.set()
        neighbour = await settled(library, await upload(library, "b.md", b"# B\n\nText."))
    assert neighbour.status == "ready"
    document = await library.get(LOCAL_OWNER, accepted.document_id)
    assert (document.status, document.reason, document.version) == ("failed", "cancelled", None)
    assert list(await contents(engine)) == [neighbour.uri]
    await assert_consistent(engine)


async def test_a_cancelled_update_leaves_the_old_version_and_can_be_taken_up_again(
    library: Library, queue: Queue, working: Working, engine: AsyncEngine
) -> None:
    document_id = await upload(library, content=b"# Old\n\nOld text.")
    async with working():
        await settled(library, document_id)
    before = await contents(engine), await generation(engine)
    held = HeldEmbedder()
    accepted = await library.register_upload(LOCAL_OWNER, Upload("a.md", b"# New\n\nNew text."))
    async with working(held):
        await until(held.is_asked.is_set)
        await queue.cancel(LOCAL_OWNER, accepted.job_id)
        held.let_go.set()
        await until(lambda: finished(engine, accepted.job_id))
    assert (await contents(engine), await generation(engine)) == before
    document = await library.get(LOCAL_OWNER, document_id)
    assert (document.title, document.status, document.version) == ("Old", "failed", 1)

    again = await queue.retry_document(LOCAL_OWNER, document_id)
    assert again.document_id == document_id
    async with working():
        document = await settled(library, document_id)
    assert (document.title, document.status, document.version) == ("New", "ready", 2)
    await assert_consistent(engine)


async def test_a_worker_that_was_about_to_begin_finds_the_job_cancelled(
    library: Library, queue: Queue, engine: AsyncEngine, settings: Settings, embedder: WordEmbedder
) -> None:
    """Taken from the queue, but not claimed yet: there is nobody to be told."""
    accepted = await library.register_upload(LOCAL_OWNER, Upload("a.md", TEXT))
    await queue.cancel(LOCAL_OWNER, accepted.job_id)
    async with open_tools(settings, engine, embedder) as tools:
        claim = await tools.transaction(
            lambda connection: claim_document(connection, accepted.document_id, tools.digest)
        )
    assert claim is None
    assert (await library.get(LOCAL_OWNER, accepted.document_id)).status == "failed"


async def test_cancelling_a_rebuild_leaves_the_document_ready(
    library: Library, queue: Queue, jobs: Jobs, working: Working, engine: AsyncEngine
) -> None:
    document_id = await upload(library)
    async with working():
        await settled(library, document_id)
    async with engine.begin() as connection:
        rows = await connection.execute(text("SELECT id, collection_id FROM documents"))
        await jobs.requeue(connection, [tuple(row) for row in rows], priority="background")
    job_id = (await library.get(LOCAL_OWNER, document_id)).job_id
    assert job_id is not None
    assert (await queue.job(LOCAL_OWNER, job_id)).status == "queued"
    assert (await queue.cancel(LOCAL_OWNER, job_id)).status == "ready"
    assert (await library.get(LOCAL_OWNER, document_id)).reason is None


async def test_a_cancellation_that_is_swallowed_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "CANCELLED_AGAIN_SECONDS", 0.01)
    swallowed = 0

    async def deaf() -> None:
        nonlocal swallowed
        while swallowed < 3:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await worker_module._cancelled(task)  # pyright: ignore[reportPrivateUsage]
    assert task.done()
