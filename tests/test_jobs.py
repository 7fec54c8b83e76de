"""The queue: jobs that exist with their documents, are retried, rescued and never lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db.models import Collection, Document, EmbeddingModel
from app.db.retries import RetryLater
from app.errors import DatabaseUnavailable
from app.jobs import Jobs


@pytest.fixture
async def jobs(database_url: str) -> AsyncIterator[Jobs]:
    opened = Jobs(database_url)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def queue(engine: AsyncEngine, jobs: Jobs) -> Callable[[], Awaitable[tuple[UUID, int]]]:
    """Call it for a new document with its job."""
    async with engine.begin() as connection:
        model_id = await connection.scalar(
            insert(EmbeddingModel)
            .values(name="m", digest="d", dimensions=4)
            .returning(EmbeddingModel.id)
        )
        collection_id = await connection.scalar(
            insert(Collection)
            .values(tenant_id=1, name="default", embedding_model_id=model_id)
            .returning(Collection.id)
        )

    async def add() -> tuple[UUID, int]:
        document_id = uuid4()
        async with engine.begin() as connection:
            job_id = await jobs.defer_document(connection, document_id)
            await connection.execute(
                insert(Document).values(
                    id=document_id,
                    tenant_id=1,
                    collection_id=collection_id,
                    uri=f"upload:///{document_id}",
                    title="a document",
                    media_type="text/plain",
                    size_bytes=1,
                    job_id=job_id,
                )
            )
        return document_id, job_id

    return add


async def set_document(engine: AsyncEngine, document_id: UUID, **values: object) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            update(Document).where(Document.id == document_id).values(**values)
        )


@asynccontextmanager
async def working(
    jobs: Jobs, process: Callable[[UUID, int], Awaitable[bool]], concurrency: int = 1
) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(jobs.work(process, concurrency=concurrency, stop=stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(15):
        while not await condition():
            await asyncio.sleep(0.02)


async def job_row(engine: AsyncEngine, job_id: int) -> tuple[str, int]:
    async with engine.connect() as connection:
        rows = await connection.execute(
            text("SELECT status::text, attempts FROM procrastinate_jobs WHERE id = :id"),
            {"id": job_id},
        )
        status, attempts = rows.one()
        return status, attempts


async def test_a_job_exists_only_if_its_transaction_commits(
    engine: AsyncEngine, jobs: Jobs
) -> None:
    async with engine.connect() as connection:
        await jobs.defer_document(connection, uuid4())
        assert await jobs_count(engine) == 0
        await connection.rollback()
    assert await jobs_count(engine) == 0


async def jobs_count(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        counted = await connection.execute(text("SELECT count(*) FROM procrastinate_jobs"))
        return int(counted.scalar_one())


async def test_work_is_done_once_and_ends_as_it_should(
    engine: AsyncEngine, jobs: Jobs, queue: Callable[[], Awaitable[tuple[UUID, int]]]
) -> None:
    good, good_job = await queue()
    bad, bad_job = await queue()
    seen: list[tuple[UUID, int]] = []

    async def process(document_id: UUID, attempt: int) -> bool:
        seen.append((document_id, attempt))
        return document_id == good

    async with working(jobs, process):
        await until(lambda: ended(engine, good_job, bad_job))
    assert sorted(seen) == sorted([(good, 1), (bad, 1)])
    assert await job_row(engine, good_job) == ("succeeded", 1)
    assert await job_row(engine, bad_job) == ("aborted", 1)


async def ended(engine: AsyncEngine, *job_ids: int) -> bool:
    rows = [await job_row(engine, job_id) for job_id in job_ids]
    return all(status not in ("todo", "doing") for status, _ in rows)


async def test_a_failed_attempt_comes_again(
    engine: AsyncEngine, jobs: Jobs, queue: Callable[[], Awaitable[tuple[UUID, int]]]
) -> None:
    _, job_id = await queue()
    attempts: list[int] = []

    async def process(_: UUID, attempt: int) -> bool:
        attempts.append(attempt)
        if attempt < 3:
            raise RetryLater(0)
        return True

    async with working(jobs, process):
        async with asyncio.timeout(15):
            while not await ended(engine, job_id):
                # Retries are polled for; a notification wakes the worker sooner.
                await queue_nothing(engine)
                await asyncio.sleep(0.05)
    assert attempts == [1, 2, 3]


async def queue_nothing(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "SELECT pg_notify('procrastinate_queue_v1#documents',"
                """ '{"type": "job_inserted", "job_id": 0}')"""
            )
        )


async def test_jobs_of_dead_workers_are_rescued(
    engine: AsyncEngine, jobs: Jobs, queue: Callable[[], Awaitable[tuple[UUID, int]]]
) -> None:
    _, dead_job = await queue()
    _, living_job = await queue()
    async with engine.begin() as connection:
        for job_id, silence_seconds in ((dead_job, 60), (living_job, 1)):
            await connection.execute(
                text(
                    """
                    WITH worker AS (
                      INSERT INTO procrastinate_workers (last_heartbeat)
                      VALUES (now() - make_interval(secs => :silence)) RETURNING id)
                    UPDATE procrastinate_jobs SET status = 'doing',
                      worker_id = (SELECT id FROM worker)
                    WHERE id = :job_id
                    """
                ),
                {"silence": silence_seconds, "job_id": job_id},
            )
    assert await jobs.rescue_stalled() == 1
    assert await job_row(engine, dead_job) == ("todo", 1)
    assert await job_row(engine, living_job) == ("doing", 0)


async def test_documents_whose_job_is_lost_get_another(
    engine: AsyncEngine, jobs: Jobs, queue: Callable[[], Awaitable[tuple[UUID, int]]]
) -> None:
    (lost, lost_job), (ready, ready_job), (waiting, waiting_job) = [await queue() for _ in "abc"]
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE documents SET status_at = now() - interval '1 hour'"))
        await connection.execute(
            text("UPDATE procrastinate_jobs SET status = 'succeeded' WHERE id <> :id"),
            {"id": waiting_job},
        )
    await set_document(engine, lost, status="processing", claim=uuid4())
    await set_document(engine, ready, status="ready")
    assert await jobs.requeue_lost(engine) == 1
    assert await jobs.requeue_lost(engine) == 0
    async with engine.connect() as connection:
        rows = await connection.execute(text("SELECT id, job_id, status, claim FROM documents"))
        found = {row.id: row for row in rows}
    assert found[lost].job_id not in (lost_job, ready_job, waiting_job)
    assert (found[lost].status, found[lost].claim) == ("queued", None)
    assert (found[ready].job_id, found[waiting].job_id) == (ready_job, waiting_job)


async def test_stopping_waits_for_the_work_at_hand(
    engine: AsyncEngine, jobs: Jobs, queue: Callable[[], Awaitable[tuple[UUID, int]]]
) -> None:
    _, job_id = await queue()
    started, finish = asyncio.Event(), asyncio.Event()

    async def process(_: UUID, __: int) -> bool:
        started.set()
        await finish.wait()
        return True

    stop = asyncio.Event()
    task = asyncio.create_task(jobs.work(process, concurrency=1, stop=stop))
    await started.wait()
    stop.set()
    await asyncio.sleep(0.1)
    assert not task.done()
    finish.set()
    await task
    assert await job_row(engine, job_id) == ("succeeded", 1)


async def test_work_that_takes_too_long_to_stop_goes_back(
    engine: AsyncEngine,
    jobs: Jobs,
    queue: Callable[[], Awaitable[tuple[UUID, int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.jobs.DRAIN_SECONDS", 0.1)
    _, job_id = await queue()
    started = asyncio.Event()

    async def process(_: UUID, __: int) -> bool:
        started.set()
        await asyncio.sleep(60)
        return True

    async with working(jobs, process):
        await started.wait()
    assert await job_row(engine, job_id) == ("todo", 1)


async def test_old_jobs_are_forgotten(
    engine: AsyncEngine, jobs: Jobs, queue: Callable[[], Awaitable[tuple[UUID, int]]]
) -> None:
    _, old = await queue()
    _, recent = await queue()
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE procrastinate_jobs SET status = 'aborted'"))
        await connection.execute(
            text("UPDATE procrastinate_events SET at = now() - interval '9 d' WHERE job_id = :id"),
            {"id": old},
        )
    await jobs.delete_finished()
    assert await job_ids(engine) == [recent]


async def job_ids(engine: AsyncEngine) -> list[int]:
    async with engine.connect() as connection:
        return list(await connection.scalars(text("SELECT id FROM procrastinate_jobs")))


async def test_the_backlog_says_how_long_people_wait(
    engine: AsyncEngine, jobs: Jobs, queue: Callable[[], Awaitable[tuple[UUID, int]]]
) -> None:
    assert (await jobs.backlog()).oldest_seconds == 0
    await queue()
    processing, _ = await queue()
    await set_document(engine, processing, status="processing")
    backlog = await jobs.backlog()
    assert (backlog.queued, backlog.processing, backlog.workers) == (1, 1, 0)
    assert backlog.oldest_seconds > 0


async def test_without_a_database_it_says_so_and_comes_back(
    database_url: str, engine: AsyncEngine
) -> None:
    away = Jobs("postgresql://127.0.0.1:1/none", timeout_seconds=0.2)
    await away.open()
    with pytest.raises(DatabaseUnavailable):
        await away.backlog()
    with pytest.raises(DatabaseUnavailable):
        await away.work(lambda *_: asyncio.sleep(0, True), concurrency=1, stop=asyncio.Event())
    await away.close()

    jobs = Jobs(database_url)
    await jobs.open()
    assert (await jobs.backlog()).queued == 0
    async with engine.connect() as connection:
        await connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'footnote-jobs'"
            )
        )
    assert (await jobs.backlog()).queued == 0
    await jobs.close()
