"""The queue's order, and what people do with jobs: look, cancel, try again."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import LOCAL_OWNER, Caller
from app.config import Settings
from app.db.models import Document
from app.db.queue import BAND_TOPS, BAND_WIDTH, PUT_BACK_PLACES, Priority, put_back_place
from app.db.session import open_sessions
from app.documents.job_states import Progress
from app.documents.library import Library
from app.documents.overview import Overlook
from app.documents.queue import CANCELLED, Queue
from app.documents.records import Accepted, Upload
from app.errors import Conflict, InvalidInput, NotFound
from app.jobs import Jobs


@dataclass(frozen=True)
class Model:
    name: str = "a model"
    digest: str = "digest of a model"
    dimensions: int = 4


@pytest.fixture
async def jobs(database_url: str) -> AsyncIterator[Jobs]:
    opened = Jobs(database_url)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def library(engine: AsyncEngine, jobs: Jobs, settings: Settings) -> Library:
    return Library(open_sessions(engine), jobs, settings, Model())


@pytest.fixture
def queue(engine: AsyncEngine, jobs: Jobs, settings: Settings) -> Queue:
    return Queue(open_sessions(engine), jobs, settings)


@pytest.fixture
def overlook(engine: AsyncEngine, jobs: Jobs) -> Overlook:
    return Overlook(open_sessions(engine), jobs)


async def send(library: Library, name: str, collection: str = "default", **more: Any) -> Accepted:
    upload = Upload(f"{name}.md", name.encode(), collection=collection, **more)
    return await library.register_upload(LOCAL_OWNER, upload)


async def send_many(
    library: Library, collection: str, count: int, **more: Any
) -> dict[UUID, tuple[str, int]]:
    """Ids of the documents, each with its collection and its number there."""
    return {
        (await send(library, f"{number}", collection, **more)).document_id: (collection, number)
        for number in range(count)
    }


async def set_documents(engine: AsyncEngine, *document_ids: UUID, **values: Any) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            update(Document).where(Document.id.in_(document_ids)).values(**values)
        )


async def job_status(engine: AsyncEngine, job_id: int) -> str:
    async with engine.connect() as connection:
        found = await connection.execute(
            text("SELECT status::text FROM procrastinate_jobs WHERE id = :id"), {"id": job_id}
        )
        return found.scalar_one()


async def worked(
    jobs: Jobs, count: int, then: Callable[[UUID], Awaitable[None]] | None = None
) -> list[UUID]:
    """The documents of the next jobs, in the order in which one worker takes them."""
    taken: list[UUID] = []
    stop = asyncio.Event()

    async def process(document_id: UUID, _: int) -> bool:
        taken.append(document_id)
        if then is not None:
            await then(document_id)
        if len(taken) == count:
            stop.set()
        return True

    async with asyncio.timeout(60):
        await jobs.work(process, concurrency=1, stop=stop)
    return taken


# --- the order ------------------------------------------------------------------------------------


async def test_a_collection_with_many_documents_delays_another_by_one_at_a_time(
    library: Library, jobs: Jobs
) -> None:
    for name in ("a", "b"):
        await library.create_collection(LOCAL_OWNER, name)
    sent = await send_many(library, "a", 200)
    before = [sent[one] for one in await worked(jobs, 50)]
    sent |= await send_many(library, "b", 3)
    after = [sent[one] for one in await worked(jobs, 153)]

    assert before == [("a", number) for number in range(50)]
    assert after[:6] == [("a", 50), ("b", 0), ("a", 51), ("b", 1), ("a", 52), ("b", 2)]
    assert after[6:] == [("a", number) for number in range(53, 200)]


async def test_whoever_has_waited_is_not_pushed_back_by_those_who_keep_coming(
    library: Library, jobs: Jobs
) -> None:
    """Neither by another collection nor by the later documents of its own."""
    for name in ("a", "b"):
        await library.create_collection(LOCAL_OWNER, name)
    sent = await send_many(library, "a", 20)
    numbers = iter(range(1000))

    async def more_come(_: UUID) -> None:
        number = next(numbers)
        for collection in ("a", "b"):
            later = await send(library, f"late-{number}", collection)
            sent[later.document_id] = (f"later in {collection}", number)

    taken = [sent[one] for one in await worked(jobs, 45, more_come)]
    assert [one for one in taken if one[0] == "a"] == [("a", number) for number in range(20)]
    others = [number for name, number in taken if name == "later in b"]
    assert others == list(range(len(others)))
    assert len(others) >= 18


async def test_what_somebody_waits_for_comes_before_what_came_in_bulk(
    library: Library, jobs: Jobs, engine: AsyncEngine
) -> None:
    bulk = await send_many(library, "default", 30, priority="bulk")
    repair = await send(library, "repair")
    async with engine.begin() as connection:
        await connection.execute(
            text("DELETE FROM procrastinate_jobs WHERE id = :id"), {"id": repair.job_id}
        )
        await connection.execute(
            text("UPDATE documents SET status_at = now() - interval '1 hour' WHERE job_id = :id"),
            {"id": repair.job_id},
        )
    assert await jobs.requeue_lost(engine) == 1
    more_bulk = await send(library, "more", priority="bulk")
    urgent = [await send(library, name) for name in ("urgent", "urgent too")]

    taken = await worked(jobs, 34)
    assert taken[:2] == [one.document_id for one in urgent]
    assert taken[2:] == [*bulk, more_bulk.document_id, repair.document_id]


async def test_a_retry_that_is_not_due_yet_leaves_its_place_to_nobody(
    library: Library, jobs: Jobs, engine: AsyncEngine
) -> None:
    """Else each newcomer would get it, and stand before those who wait."""
    await library.create_collection(LOCAL_OWNER, "b")
    sent = await send_many(library, "default", 4)
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "UPDATE procrastinate_jobs SET scheduled_at = now() + interval '1 hour'"
                " WHERE id = (SELECT min(id) FROM procrastinate_jobs)"
            )
        )
    sent |= await send_many(library, "b", 1)
    taken = [sent[one] for one in await worked(jobs, 4)]
    assert taken == [("default", 1), ("b", 0), ("default", 2), ("default", 3)]


async def with_the_dead(engine: AsyncEngine, *document_ids: UUID) -> None:
    """Workers that were killed a minute ago had taken these."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                """
                WITH dead AS (
                  INSERT INTO procrastinate_workers (last_heartbeat)
                  VALUES (now() - interval '1 minute') RETURNING id)
                UPDATE procrastinate_jobs SET status = 'doing', worker_id = (SELECT id FROM dead)
                WHERE id IN (SELECT job_id FROM documents WHERE id = ANY(:document_ids))
                """
            ),
            {"document_ids": list(document_ids)},
        )
    await set_documents(engine, *document_ids, status="processing")


@pytest.mark.parametrize("priority", ["interactive", "bulk", "background"])
async def test_what_is_put_back_comes_before_all_that_came_meanwhile(
    priority: Priority, library: Library, jobs: Jobs, engine: AsyncEngine
) -> None:
    """It had been taken, the band became empty, and newcomers stand in the first places again."""
    await library.create_collection(LOCAL_OWNER, "b")
    sent = await send_many(library, "default", 40, priority=priority)
    *_, abandoned = sent
    await worked(jobs, 39)
    await with_the_dead(engine, abandoned)
    meanwhile = [(await send(library, f"new {n}", priority=priority)).document_id for n in range(3)]

    assert await jobs.rescue_stalled() == 1
    other = await send(library, "of another collection", "b", priority=priority)
    taken = await worked(jobs, 5)
    assert taken[0] == abandoned
    # Nor does it make room for others before those who wait.
    assert taken[1:] == [meanwhile[0], other.document_id, *meanwhile[1:]]


async def test_what_is_put_back_again_waits_for_those_that_were_before_it(
    library: Library, jobs: Jobs, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the oldest few would be taken and cut short for ever, and the others never taken."""
    seconds = iter(range(100))

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2026, 11, 21, tzinfo=tz) + timedelta(seconds=next(seconds))

    monkeypatch.setattr("app.db.retries.datetime", Clock)
    older, newer = await send_many(library, "default", 2)
    for cut_short in (older, newer, older):
        await with_the_dead(engine, cut_short)
        assert await jobs.rescue_stalled() == 1
    assert await worked(jobs, 2) == [newer, older]


def test_places_of_what_is_put_back_are_those_of_its_band_and_never_run_out() -> None:
    for top in BAND_TOPS.values():
        first_in_line, last = top - PUT_BACK_PLACES, top - BAND_WIDTH + 1
        for place in (top, first_in_line, last):
            years = (1999, 2026, 2040, 2100)
            put_back = [put_back_place(place, datetime(year, 6, 1, tzinfo=UTC)) for year in years]
            assert top >= put_back[0] >= put_back[1] > put_back[2] >= put_back[3] > first_in_line


async def test_what_is_put_back_does_not_come_before_what_is_more_urgent(
    library: Library, jobs: Jobs, engine: AsyncEngine
) -> None:
    bulk = list(await send_many(library, "default", 3, priority="bulk"))
    await with_the_dead(engine, bulk[2])
    urgent = await send(library, "urgent")
    assert await jobs.rescue_stalled() == 1
    assert await worked(jobs, 4) == [urgent.document_id, bulk[2], bulk[0], bulk[1]]


async def test_what_a_stopped_worker_puts_back_comes_first(
    library: Library, jobs: Jobs, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.jobs.DRAIN_SECONDS", 0.1)
    first, second = await send_many(library, "default", 2)
    begun, stop = asyncio.Event(), asyncio.Event()

    async def never_done(document_id: UUID, _: int) -> bool:
        if document_id == second:
            begun.set()
            await asyncio.Event().wait()
        return True

    working = asyncio.create_task(jobs.work(never_done, concurrency=1, stop=stop))
    await begun.wait()
    await set_documents(engine, first, status="ready")
    meanwhile = (await send(library, "meanwhile")).document_id
    stop.set()
    await working
    assert await worked(jobs, 2) == [second, meanwhile]


# --- looking --------------------------------------------------------------------------------------


async def test_the_state_of_a_job_is_that_of_its_document(
    library: Library, queue: Queue, engine: AsyncEngine
) -> None:
    first, second = await send(library, "first"), await send(library, "second")
    state = await queue.job(LOCAL_OWNER, second.job_id)
    assert (state.status, state.document_id, state.attempts) == ("queued", second.document_id, 0)
    assert (state.title, state.collection, state.position) == ("second.md", "default", 1)
    assert (await queue.job(LOCAL_OWNER, first.job_id)).position == 0

    progress = {"stage": "embedding", "done": 3, "total": 9}
    await set_documents(engine, second.document_id, status="processing", progress=progress)
    state = await queue.job(LOCAL_OWNER, second.job_id)
    assert (state.status, state.progress) == ("processing", Progress("embedding", 3, 9))

    await set_documents(engine, second.document_id, status="failed", reason="it is encrypted")
    state = await queue.job(LOCAL_OWNER, second.job_id)
    assert (state.status, state.reason, state.is_final) == ("failed", "it is encrypted", True)

    # A later job has the document now; what is left of this one is what the queue knows.
    await set_documents(engine, second.document_id, job_id=second.job_id + 1)
    state = await queue.job(LOCAL_OWNER, second.job_id)
    assert (state.status, state.reason, state.progress) == ("queued", None, None)


async def test_events_tell_every_change_and_end(
    library: Library, queue: Queue, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.documents.queue.EVENT_POLL_SECONDS", 0.01)
    accepted = await send(library, "a")
    half = {"stage": "embedding", "done": 5, "total": 10}
    changes: list[dict[str, Any]] = [
        {"status": "processing"},
        {"progress": half},
        {"progress": half | {"done": 10}},
        {"status": "ready", "progress": None},
    ]
    seen: list[tuple[str, int | None]] = []
    async for state in queue.events(LOCAL_OWNER, accepted.job_id):
        seen.append((state.status, state.progress.done if state.progress else None))
        if changes:
            await set_documents(engine, accepted.document_id, **changes.pop(0))
    assert seen == [
        ("queued", None),
        ("processing", None),
        ("processing", 5),
        ("processing", 10),
        ("ready", None),
    ]

    monkeypatch.setattr("app.documents.queue.EVENTS_MAX_SECONDS", 0.05)
    await set_documents(engine, accepted.document_id, status="processing")
    states = [state.status async for state in queue.events(LOCAL_OWNER, accepted.job_id)]
    assert states == ["processing"]


async def test_jobs_are_listed_newest_first(
    library: Library, queue: Queue, engine: AsyncEngine
) -> None:
    await library.create_collection(LOCAL_OWNER, "b")
    sent = [await send(library, str(number)) for number in range(5)]
    other = await send(library, "other", "b")
    await set_documents(engine, sent[1].document_id, sent[3].document_id, status="failed")
    again = await send(library, "0")

    async def listed(**wanted: Any) -> list[int]:
        found: list[int] = []
        while True:
            page = await queue.list(LOCAL_OWNER, limit=2, **wanted)
            found += [one.id for one in page.jobs]
            if page.next_cursor is None:
                return found
            wanted["cursor"] = page.next_cursor

    latest = [again, other, *reversed(sent[1:])]
    assert await listed() == [one.job_id for one in latest]
    assert await listed(collection="b") == [other.job_id]
    assert await listed(status="failed") == [sent[3].job_id, sent[1].job_id]
    with pytest.raises(NotFound):
        await queue.list(LOCAL_OWNER, collection="nothing")
    with pytest.raises(InvalidInput):
        await queue.list(LOCAL_OWNER, limit=10**6)


async def test_a_job_that_a_caller_may_not_see_is_not_there(
    library: Library, queue: Queue, engine: AsyncEngine, overlook: Overlook
) -> None:
    hidden = await send(library, "secret plans", groups=["board"])
    await set_documents(engine, hidden.document_id, status="failed", reason="it is encrypted")
    guest = Caller(tenant_id=1, scopes=frozenset({"write"}), groups=frozenset({"staff"}))
    elsewhere = Caller(tenant_id=1, scopes=frozenset({"write"}), collections=frozenset({"b"}))
    foreign = Caller(tenant_id=2, scopes=frozenset({"write"}))
    for caller in (guest, elsewhere, foreign):
        for job_id in (hidden.job_id, hidden.job_id + 1):
            for call in (queue.job, queue.cancel, queue.retry):
                with pytest.raises(NotFound, match="no such job"):
                    await call(caller, job_id)
            with pytest.raises(NotFound, match="no such job"):
                await anext(queue.events(caller, job_id))
        for document_id in (hidden.document_id, uuid4()):
            with pytest.raises(NotFound, match="no such document"):
                await queue.retry_document(caller, document_id)
        assert (await queue.list(caller)).jobs == []
        assert (await queue.retry_failed(caller)).queued == 0
        overview = await overlook.overview(caller)
        assert (overview.failed, overview.collections, overview.failures) == (0, [], [])
    assert (await overlook.overview(LOCAL_OWNER)).failed == 1
    board = Caller(tenant_id=1, scopes=frozenset({"write"}), groups=frozenset({"board"}))
    assert (await queue.job(board, hidden.job_id)).status == "failed"
    assert (await overlook.overview(board)).failures[0].reason == "it is encrypted"


# --- cancelling and trying again ------------------------------------------------------------------


async def test_a_cancelled_job_is_never_taken(
    library: Library, queue: Queue, jobs: Jobs, engine: AsyncEngine
) -> None:
    cancelled, other = await send(library, "cancelled"), await send(library, "other")
    state = await queue.cancel(LOCAL_OWNER, cancelled.job_id)
    assert (state.status, state.reason) == ("failed", CANCELLED)
    assert await job_status(engine, cancelled.job_id) == "cancelled"
    assert await worked(jobs, 1) == [other.document_id]
    with pytest.raises(Conflict, match="ended already"):
        await queue.cancel(LOCAL_OWNER, cancelled.job_id)

    again = await queue.retry(LOCAL_OWNER, cancelled.job_id)
    assert again.document_id == cancelled.document_id
    assert again.job_id != cancelled.job_id
    assert await worked(jobs, 1) == [cancelled.document_id]


async def test_only_the_latest_job_of_a_document_can_be_cancelled_or_retried(
    library: Library, queue: Queue, engine: AsyncEngine
) -> None:
    first = await send(library, "a")
    second = await send(library, "a")
    assert second.document_id == first.document_id
    with pytest.raises(Conflict):
        await queue.cancel(LOCAL_OWNER, first.job_id)
    await set_documents(engine, first.document_id, status="failed")
    with pytest.raises(Conflict, match=str(second.job_id)):
        await queue.retry(LOCAL_OWNER, first.job_id)
    assert (await queue.retry(LOCAL_OWNER, second.job_id)).document_id == first.document_id


async def test_only_what_has_failed_is_tried_again(
    library: Library, queue: Queue, engine: AsyncEngine
) -> None:
    accepted = await send(library, "a")
    for status in ("queued", "processing", "ready"):
        await set_documents(engine, accepted.document_id, status=status)
        with pytest.raises(Conflict, match=status) as told:
            await queue.retry_document(LOCAL_OWNER, accepted.document_id)
        assert "failed" in told.value.hint


async def test_a_file_that_is_not_here_is_tried_again_where_it_is(
    library: Library, queue: Queue, engine: AsyncEngine
) -> None:
    accepted = await send(library, "a")
    await set_documents(
        engine,
        accepted.document_id,
        status="failed",
        uri="file:///home/footnote/my%20files/a.md",
    )
    with pytest.raises(Conflict) as told:
        await queue.retry(LOCAL_OWNER, accepted.job_id)
    command = "footnote ingest --retry-failed --collection default"
    assert f"`{command} '/home/footnote/my files/a.md'`" in told.value.hint
    await set_documents(engine, accepted.document_id, root="file:///home/footnote/my%20files")
    with pytest.raises(Conflict) as told:
        await queue.retry_document(LOCAL_OWNER, accepted.document_id)
    assert f"`{command} '/home/footnote/my files'`" in told.value.hint
    await set_documents(engine, accepted.document_id, root="https://docs.test/a%20b/")
    with pytest.raises(Conflict) as told:
        await queue.retry_document(LOCAL_OWNER, accepted.document_id)
    assert f"`{command} https://docs.test/a%20b/`" in told.value.hint
    retried = await queue.retry_failed(LOCAL_OWNER)
    assert (retried.queued, retried.skipped) == (0, 1)


async def test_all_that_failed_in_a_collection_is_tried_again_at_once(
    library: Library,
    queue: Queue,
    jobs: Jobs,
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.documents.queue.RETRIED_AT_ONCE", 3)
    await library.create_collection(LOCAL_OWNER, "b")
    ours = list(await send_many(library, "default", 7))
    theirs = list(await send_many(library, "b", 2))
    await worked(jobs, 9)
    await set_documents(engine, *ours[1:], *theirs, status="failed", reason="no text")
    await set_documents(engine, ours[0], status="ready")

    retried = await queue.retry_failed(LOCAL_OWNER, collection="default")
    assert (retried.queued, retried.skipped) == (6, 0)
    urgent = await send(library, "urgent")
    taken = await worked(jobs, 7)
    assert taken[0] == urgent.document_id
    assert set(taken[1:]) == set(ours[1:])
    document = await library.get(LOCAL_OWNER, ours[1])
    assert (document.status, document.reason) == ("queued", None)
    assert (await queue.retry_failed(LOCAL_OWNER)).queued == 2
    with pytest.raises(NotFound):
        await queue.retry_failed(LOCAL_OWNER, collection="nothing")


# --- ingestion as a whole -------------------------------------------------------------------------


async def test_the_overview_counts_what_waits_and_says_when_it_is_done(
    library: Library, overlook: Overlook, engine: AsyncEngine
) -> None:
    empty = await overlook.overview(LOCAL_OWNER)
    assert (empty.queued, empty.eta_seconds, empty.workers, empty.collections) == (0, 0.0, [], [])

    await library.create_collection(LOCAL_OWNER, "b")
    ids = [*await send_many(library, "default", 12), *await send_many(library, "b", 2)]
    assert (await overlook.overview(LOCAL_OWNER)).eta_seconds is None
    ready: Sequence[UUID] = ids[:6]
    await set_documents(engine, *ready, status="ready")
    await set_documents(engine, ids[6], status="failed", reason="it is encrypted")
    await set_documents(engine, ids[7], status="processing")
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "UPDATE documents SET status_at = now() - make_interval(secs => CASE status"
                " WHEN 'ready' THEN 120 WHEN 'queued' THEN 40 ELSE 0 END)"
            )
        )
        await connection.execute(
            text(
                "UPDATE documents SET status_at = now() - interval '1 hour'"
                " WHERE id = (SELECT id FROM documents WHERE status = 'ready' LIMIT 1)"
            )
        )
        await connection.execute(
            text(
                "INSERT INTO procrastinate_workers (last_heartbeat)"
                # Of each process two.
                " SELECT now() - silence FROM unnest(ARRAY[interval '0', '0', '1 minute',"
                " '1 minute', '1 hour', '1 hour']) AS silence"
            )
        )

    overview = await overlook.overview(LOCAL_OWNER)
    assert (overview.queued, overview.processing, overview.failed) == (6, 1, 1)
    assert 40 <= overview.oldest_seconds < 60
    assert overview.rate_per_minute == pytest.approx(2.5, rel=0.1)
    assert overview.eta_seconds == pytest.approx(7 / 2.5 * 60, rel=0.1)
    assert [(one.name, one.queued, one.failed) for one in overview.collections] == [
        ("b", 2, 0),
        ("default", 4, 1),
    ]
    assert [(one.document_id, one.reason) for one in overview.failures] == [
        (ids[6], "it is encrypted")
    ]
    assert [one.is_alive for one in overview.workers] == [True, False]
