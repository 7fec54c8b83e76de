"""Collections with settings of their own, and documents brought to them behind what serves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import LOCAL_OWNER
from app.config import Settings
from app.db.collection_settings import DEFAULTS
from app.db.collections import count_change, find_collection
from app.db.rebuilds import is_any_due
from app.db.session import open_sessions
from app.documents.library import Library
from app.documents.records import CollectionOverview, Upload
from app.errors import DocumentRejected, InvalidInput, NotFound
from app.jobs import Jobs
from ingestion.parsing.sandbox import ParserPool
from ingestion.pipeline import open_tools
from ingestion.rebuilding import Rebuilder
from ingestion.runner import Order, sync
from ingestion.worker import run_worker
from tests.doubles.word_embedder import WordEmbedder
from tests.index_state import assert_consistent, contents
from tests.service import Service

SENTENCES = [
    f"Sentence {number} tells what happened on that day in spring." for number in range(60)
]
LONG = ("# Report\n\n" + " ".join(SENTENCES)).encode()
SMALL = {"chunking": {"tokens": 30}}


class CountingEmbedder(WordEmbedder):
    def __init__(self) -> None:
        super().__init__()
        self.texts_count = 0

    def embed(self, texts: Any, kind: Any) -> Any:
        self.texts_count += len(texts)
        return super().embed(texts, kind)


class Silent:
    def begin(self, files_count: int, bytes_count: int) -> None: ...

    def advance(self, file: Any) -> None: ...


@pytest.fixture
def embedder() -> CountingEmbedder:
    return CountingEmbedder()


@pytest.fixture
async def jobs(database_url: str) -> AsyncIterator[Jobs]:
    opened = Jobs(database_url)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def library(engine: AsyncEngine, jobs: Jobs, settings: Settings, embedder: WordEmbedder) -> Library:
    return Library(open_sessions(engine), jobs, settings, embedder)


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.jobs.POLL_SECONDS", 0.05)
    monkeypatch.setattr("ingestion.worker.RETRY_PAUSES_SECONDS", (0.0,))
    monkeypatch.setattr("ingestion.worker.RESCUE_SECONDS", 0.05)
    monkeypatch.setattr("ingestion.worker.REBUILD_SECONDS", 0.05)


Working = Callable[..., Any]


@pytest.fixture
def working(settings: Settings, database_url: str, embedder: WordEmbedder) -> Working:
    @asynccontextmanager
    async def work() -> AsyncIterator[None]:
        stop = asyncio.Event()
        task = asyncio.create_task(
            run_worker(settings, database_url, concurrency=4, stop=stop, embedder=embedder)
        )
        try:
            yield
        finally:
            stop.set()
            await task

    return work


async def upload(library: Library, *names: str, content: bytes = LONG, **more: Any) -> None:
    for name in names:
        await library.register_upload(LOCAL_OWNER, Upload(name, content, **more))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.02)


async def settled(library: Library, engine: AsyncEngine, collection: str = "default") -> None:
    """Nothing waits, nothing is worked on, and no rebuild is due."""

    async def is_settled() -> bool:
        async with engine.connect() as connection:
            left = await connection.scalar(
                text(
                    "SELECT (SELECT count(*) FROM documents"
                    " WHERE status IN ('queued', 'processing'))"
                    " + (SELECT count(*) FROM collections WHERE rebuild_since IS NOT NULL)"
                )
            )
        return left == 0

    await until(is_settled)
    assert (await library.get_collection(LOCAL_OWNER, collection)).outdated == 0


async def change(library: Library, **settings: Any) -> CollectionOverview:
    return await library.change_collection(LOCAL_OWNER, "default", settings)


async def versions(engine: AsyncEngine) -> dict[str, int]:
    async with engine.connect() as connection:
        rows = await connection.execute(
            text("SELECT d.uri, v.number FROM documents AS d"
                 " JOIN document_versions AS v ON v.id = d.current_version_id")
        )  # fmt: skip
        return {row.uri: row.number for row in rows}


# --- settings -------------------------------------------------------------------------------------


async def test_settings_are_merged_and_null_resets(library: Library) -> None:
    made = await library.create_collection(
        LOCAL_OWNER, "notes", {"chunking": {"tokens": 100, "overlap": 20}}
    )
    assert (made.settings.chunking.tokens, made.settings.chunking.overlap) == (100, 20)

    async def merged(change: dict[str, Any]) -> dict[str, Any]:
        changed = await library.change_collection(LOCAL_OWNER, "notes", change)
        return changed.settings.stored()

    assert await merged({"personal_data": "report"}) == {
        "chunking": {"tokens": 100, "overlap": 20},
        "personal_data": "report",
    }
    assert await merged({"chunking": {"overlap": None, "strategy": "fixed"}}) == {
        "chunking": {"tokens": 100, "strategy": "fixed"},
        "personal_data": "report",
    }
    assert await merged({"chunking": None, "personal_data": None}) == {}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"chunking": {"tokens": 3}}, "settings.chunking.tokens"),
        ({"chunking": {"tokens": 40, "overlap": 30}}, "overlap may be at most half"),
        ({"chunking": {"strategy": "magic"}}, "settings.chunking.strategy"),
        ({"chunking": {"colour": 1}}, "settings.chunking.colour"),
        ({"chunking": 7}, "settings.chunking"),
        ({"personal_data": "sell"}, "settings.personal_data"),
        ({"search": {"reranker": "/srv/models/other"}}, "settings.search.reranker"),
        ({"search": {"reranker": "http://rerank.example/v1/rerank"}}, "settings.search.reranker"),
        ({"search": {"reranker": "cross-encoder/ms-marco-MiniLM-L6-v2"}}, "search.reranker"),
    ],
)
async def test_wrong_settings_are_named_and_change_nothing(
    library: Library, change: dict[str, Any], named: str
) -> None:
    await library.create_collection(LOCAL_OWNER, "notes", SMALL)
    with pytest.raises(InvalidInput, match=named):
        await library.change_collection(LOCAL_OWNER, "notes", change)
    with pytest.raises(InvalidInput, match=named):
        await library.create_collection(LOCAL_OWNER, "other", change)
    kept = await library.get_collection(LOCAL_OWNER, "notes")
    assert kept.settings.stored() == SMALL
    assert len(await library.list_collections(LOCAL_OWNER)) == 1


async def test_a_scan_that_cannot_be_is_refused_early(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.documents.collections.SCAN_PACKAGES", ("no_such_package",))
    with pytest.raises(InvalidInput) as refused:
        await library.create_collection(LOCAL_OWNER, "notes", {"personal_data": "mask"})
    assert "footnote[pii]" in refused.value.hint
    assert await library.list_collections(LOCAL_OWNER) == []


async def test_what_concerns_search_alone_makes_no_document_anew(
    library: Library, engine: AsyncEngine
) -> None:
    before = await library.create_collection(LOCAL_OWNER, "notes", SMALL)
    changed = await library.change_collection(
        LOCAL_OWNER, "notes", {"search": {"reranker": "late-interaction"}}
    )
    assert changed.settings.stored() == {**SMALL, "search": {"reranker": "late-interaction"}}
    assert changed.generation == before.generation + 1  # another order would be found
    async with engine.begin() as connection:
        assert not await is_any_due(connection)
        notes = await find_collection(connection, LOCAL_OWNER.tenant_id, "notes")
        assert notes is not None
        # Who wrote under the older choice shaped the document no otherwise.
        await count_change(connection, notes.id, built_with=before.settings)
        assert not await is_any_due(connection)
        await count_change(connection, notes.id, built_with=DEFAULTS)
        assert await is_any_due(connection)


# --- rebuilding -----------------------------------------------------------------------------------


async def test_documents_are_cut_anew_behind_what_serves(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    await upload(library, "a.md", "b.md", metadata={"year": 2024}, groups=["hr"])
    async with working():
        await settled(library, engine)
    before = await contents(engine)
    changed = await change(library, **SMALL)
    assert (changed.outdated, changed.documents) == (2, 2)
    # Nothing happens to what is found until a worker has made the new version.
    assert await contents(engine) == before
    async with working():
        await settled(library, engine)
    after = await contents(engine)
    assert after.keys() == before.keys()
    assert all(len(after[uri]) > len(before[uri]) for uri in after)
    assert set((await versions(engine)).values()) == {2}
    page = await library.list(LOCAL_OWNER)
    assert {one.status for one in page.documents} == {"ready"}
    assert [(one.metadata["year"], one.groups) for one in page.documents] == [(2024, ["hr"])] * 2
    await assert_consistent(engine)


async def test_going_back_embeds_nothing_that_is_known(
    library: Library, working: Working, engine: AsyncEngine, embedder: CountingEmbedder
) -> None:
    paragraphs = "\n\n".join(f"## Part {n}\n\nWhat part {n} says." for n in range(20)).encode()
    await upload(library, "a.md", content=paragraphs)
    await upload(library, "b.md", content=b"# Other\n\nSomething else.")
    async with working():
        await settled(library, engine)
    embedded = embedder.texts_count
    await library.rebuild_collection(LOCAL_OWNER, "default")
    await change(library, chunking={"strategy": "structure", "tokens": 199})
    async with working():
        await settled(library, engine)
    assert set((await versions(engine)).values()) == {2}
    assert embedder.texts_count == embedded
    await assert_consistent(engine)


async def test_the_last_of_two_changes_counts(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    names = [f"{number}.md" for number in range(6)]
    await upload(library, *names)
    async with working():
        await settled(library, engine)
        wide = await contents(engine)
        await change(library, **SMALL)
        await until(lambda: some_version(engine, 2))
        await change(library, chunking={"tokens": 60})
        await settled(library, engine)
    sixty = await contents(engine)
    assert len({len(chunks) for chunks in sixty.values()}) == 1
    async with working():
        await change(library, **SMALL)
        await change(library, chunking=None)
        await settled(library, engine)
    assert without_ids(await contents(engine)) == without_ids(wide)
    await assert_consistent(engine)


async def some_version(engine: AsyncEngine, number: int) -> bool:
    return number in (await versions(engine)).values()


def without_ids(found: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    return {uri: [row[:-1] for row in rows] for uri, rows in found.items()}


async def test_there_and_back_before_anybody_looked_rebuilds_nothing(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    await upload(library, "a.md")
    async with working():
        await settled(library, engine)
    await change(library, **SMALL)
    await change(library, chunking=None)
    async with working():
        await settled(library, engine)
    assert set((await versions(engine)).values()) == {1}


async def test_the_same_settings_again_change_nothing(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    await upload(library, "a.md")
    async with working():
        await settled(library, engine)
    assert (await change(library, chunking={"tokens": None})).outdated == 0
    assert (await library.rebuild_collection(LOCAL_OWNER, "default")).outdated == 1
    async with working():
        await settled(library, engine)
    assert set((await versions(engine)).values()) == {1}


async def test_a_rebuild_that_fails_keeps_the_old_version_and_is_not_repeated(
    library: Library, working: Working, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await upload(library, "a.md")
    async with working():
        await settled(library, engine)
    before = await contents(engine)
    calls: list[str] = []

    async def stumble(_pool: ParserPool, _content: bytes, filename: str) -> Any:
        calls.append(filename)
        raise DocumentRejected("it cannot be read any more")

    await change(library, **SMALL)
    monkeypatch.setattr(ParserPool, "parse", stumble)
    async with working():
        await settled(library, engine)
        await library.rebuild_collection(LOCAL_OWNER, "default")
        await settled(library, engine)
    [document] = (await library.list(LOCAL_OWNER)).documents
    assert (document.status, document.reason) == ("failed", "it cannot be read any more")
    assert (document.version, await contents(engine)) == (1, before)
    assert len(calls) == 1
    monkeypatch.undo()
    await assert_consistent(engine)


async def test_a_walk_goes_on_where_it_was_cut_short(
    library: Library,
    working: Working,
    engine: AsyncEngine,
    jobs: Jobs,
    settings: Settings,
    embedder: WordEmbedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"{number}.md" for number in range(7)]
    await upload(library, *names)
    async with working():
        await settled(library, engine)
    await change(library, **SMALL)
    monkeypatch.setattr("ingestion.rebuilding.DOCUMENTS_AT_ONCE", 2)
    monkeypatch.setattr("ingestion.rebuilding.DOCUMENTS_QUEUED", 4)
    async with open_tools(settings, engine, embedder) as tools:

        async def opened() -> Any:
            return tools

        first, second = (Rebuilder(engine, jobs, opened) for _ in range(2))
        await asyncio.gather(first.queue_outdated(), second.queue_outdated())
        await second.queue_outdated()
    page = await library.list(LOCAL_OWNER, status="queued")
    # Two walks at once may overstep by what each had in hand, but never queue one twice.
    assert 4 <= len(page.documents) <= 6
    assert (await library.get_collection(LOCAL_OWNER, "default")).outdated == 7
    async with engine.connect() as connection:
        waiting = await connection.scalar(
            text("SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo'")
        )
    assert waiting == len(page.documents)
    async with working():
        await settled(library, engine)
    assert list((await versions(engine)).values()) == [2] * 7
    await assert_consistent(engine)


async def test_a_run_of_the_command_under_old_settings_leaves_nothing_old(
    library: Library,
    working: Working,
    engine: AsyncEngine,
    settings: Settings,
    embedder: WordEmbedder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.md").write_bytes(LONG)
    parse = ParserPool.parse
    started, go_on = asyncio.Event(), asyncio.Event()

    async def held(pool: ParserPool, content: bytes, filename: str) -> Any:
        started.set()
        await go_on.wait()
        return await parse(pool, content, filename)

    monkeypatch.setattr(ParserPool, "parse", held)
    async with open_tools(settings, engine, embedder) as tools:
        order = Order([str(tmp_path)], "default")
        run = asyncio.create_task(sync(order, tools, Silent()))
        await started.wait()
        await change(library, **SMALL)
        # The walk finds nothing to do, and takes its note back, while the run still goes on.
        async with working():
            await settled(library, engine)
        go_on.set()
        report = await run
        assert report.counts["added"] == 3
        async with working():
            await settled(library, engine)
        found = await contents(engine)
        assert {len(chunks) for chunks in found.values()} == {len(next(iter(found.values())))}
        assert min(map(len, found.values())) > 20
        # What the worker rebuilt is what the next run would have made.
        again = await sync(order, tools, Silent())
        assert again.counts["unchanged"] == 3
    await assert_consistent(engine)


async def test_a_deleted_collection_is_not_rebuilt(
    library: Library, working: Working, engine: AsyncEngine
) -> None:
    await upload(library, "a.md")
    async with working():
        await settled(library, engine)
    await change(library, **SMALL)
    await library.delete_collection(LOCAL_OWNER, "default")
    with pytest.raises(NotFound):
        await change(library, **SMALL)
    await upload(library, "b.md")
    async with working():
        await settled(library, engine)
    assert await versions(engine) == {"upload:///b.md": 1}


# --- over HTTP ------------------------------------------------------------------------------------


async def test_collections_over_http(service: Service) -> None:
    client = service.client
    made = await client.post(
        "/api/collections",
        json={
            "name": "notes",
            "settings": {"chunking": {"tokens": 120}, "personal_data": "report"},
        },
    )
    assert made.status_code == 201, made.text
    assert made.json()["settings"] == {
        "chunking": {"tokens": 120, "overlap": 0, "strategy": "structure"},
        "personal_data": "report",
        "search": {"reranker": None, "token_vectors": False, "rewrite": False},
        "answers": {"quote_when_busy": False},
    }
    patched = await client.patch(
        "/api/collections/notes",
        json={"settings": {"chunking": {"tokens": None, "strategy": "recursive"}}},
    )
    assert patched.status_code == 200, patched.text
    shown = await client.get("/api/collections/notes")
    assert shown.json() == patched.json()
    assert shown.json()["settings"]["chunking"] == {
        "tokens": None,
        "overlap": 0,
        "strategy": "recursive",
    }
    assert (shown.json()["outdated"], shown.json()["personal_data"]) == (0, {})
    [listed] = (await client.get("/api/collections")).json()["collections"]
    assert listed["settings"] == shown.json()["settings"]
    rebuilt = await client.post("/api/collections/notes/rebuild")
    assert (rebuilt.status_code, rebuilt.json()["name"]) == (202, "notes")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"settings": None},
        {"settings": {"chunking": {"tokens": 5}}},
        {"settings": {"chunking": {"tokens": 100, "overlap": 80}}},
        {"settings": {"chunking": {"tokens": True}}},
        {"settings": {"chunking": {"tokens": "100"}}},
        {"settings": {"chunking": {"strategy": ""}}},
        {"settings": {"unknown": 1}},
        {"settings": {"personal_data": "share"}},
        {"settings": {"search": {"reranker": "http://rerank.example"}}},
    ],
)
async def test_wrong_settings_over_http(service: Service, body: Any) -> None:
    await service.client.post("/api/collections", json={"name": "notes"})
    reply = await service.client.patch("/api/collections/notes", json=body)
    assert reply.status_code == 422, reply.text
    assert "settings" in reply.json()["detail"]
    assert reply.json()["hint"]
    shown = (await service.client.get("/api/collections/notes")).json()
    assert shown["settings"]["personal_data"] == "off"


async def test_unknown_collections_are_not_there(service: Service) -> None:
    for method, path in (("GET", ""), ("PATCH", ""), ("POST", "/rebuild")):
        reply = await service.client.request(
            method,
            f"/api/collections/nothing{path}",
            json={"settings": {}} if method == "PATCH" else None,
        )
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
