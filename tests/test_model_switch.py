"""Another embedding model while the collection is searched and written: old or new, never both."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app import failpoints
from app.access import LOCAL_OWNER
from app.config import Settings
from app.db.retries import RetryLater
from app.errors import FootnoteError
from app.failpoints import FailpointError
from app.search.base import Hit, SearchRequest
from ingestion import switching
from ingestion.pipeline import open_tools
from ingestion.switching import advance_switch
from ingestion.types import Chunk, embedded_text
from ingestion.verification import is_sound, verify
from tests.crashing import child, until
from tests.doubles.known_models import Models, NamedEmbedder
from tests.service import Service, ingest, open_service, working

DOCUMENTS = 6
QUESTION = "what is in the third drawer"


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    found = Models()
    found.install_for(monkeypatch)
    return found


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.jobs.POLL_SECONDS", 0.05)
    monkeypatch.setattr("app.resources.MODELS_SECONDS", 0.05)
    monkeypatch.setattr("ingestion.worker.RESCUE_SECONDS", 0.2)
    monkeypatch.setattr(switching, "PASSAGES_AT_ONCE", 2)
    monkeypatch.setattr(switching, "PASSAGES_PER_JOB", 4)
    monkeypatch.setattr(switching, "ELSEWHERE_PAUSE_SECONDS", 0.05)


@pytest.fixture
async def service(service_settings: Settings, models: Models) -> AsyncIterator[Service]:
    async with open_service(service_settings) as opened:
        yield opened


@pytest.fixture
async def worker(service_settings: Settings, models: Models) -> AsyncIterator[None]:
    async with working(service_settings, models.default):
        yield


async def fill(service: Service, count: int = DOCUMENTS) -> None:
    for number in range(count):
        await ingest(service, f"{number}.md", document(number))


def document(number: int | str) -> str:
    return f"# Drawer {number}\n\nIn drawer {number} lie spoons.\n\n## Key\n\nIts key is under it."


async def call(service: Service, path: str = "", **body: Any) -> Any:
    given = body or None
    method = "POST" if body else "GET"
    reply = await service.client.request(method, f"/api/models/switches{path}", json=given)
    assert reply.is_success, reply.text
    return reply.json()["switches"]


async def status(service: Service) -> list[tuple[str, str]]:
    return [(one["model"], one["status"]) for one in await call(service)]


def is_now(service: Service, *wanted: tuple[str, str]) -> Callable[[], Awaitable[bool]]:
    async def is_so() -> bool:
        found = await status(service)
        assert all(state != "failed" for _, state in found)
        return found == list(wanted)

    return is_so


async def search(service: Service) -> tuple[str, list[Hit]]:
    """The model that embedded the question, and what it found."""
    result = await service.resources.searcher.search(
        LOCAL_OWNER, SearchRequest(QUESTION, ("default",))
    )
    assert result.embedder is not None
    return result.embedder.embedder.name, list(result.hits)


def assert_of(model: NamedEmbedder, hits: list[Hit]) -> None:
    """That the question and every passage were embedded by this model and by no other."""
    question = model.vector(QUESTION)
    for hit in hits:
        chunk = Chunk(0, hit.text, 0, len(hit.text), hit.heading, None, 0)
        expected = float(model.vector(embedded_text(hit.title, chunk)) @ question)
        assert hit.similarity == pytest.approx(expected, abs=0.01)


async def vectors(engine: AsyncEngine, model: NamedEmbedder) -> tuple[int, int]:
    """How many passages have a vector of the model, and how many have none."""
    async with engine.connect() as connection:
        row = await connection.execute(
            text(
                """
                SELECT count(e.chunk_id), count(*) - count(e.chunk_id) FROM chunks AS c
                LEFT JOIN embeddings AS e ON e.chunk_id = c.id AND e.model_id = (
                  SELECT id FROM embedding_models WHERE digest = :digest)
                """
            ),
            {"digest": model.digest},
        )
        return tuple(row.one())  # pyright: ignore[reportReturnType]


@asynccontextmanager
async def meanwhile(work: Callable[[int], Awaitable[None]]) -> AsyncGenerator[None]:
    """`work` is called again and again, with a number, as long as the block runs."""
    is_over = asyncio.Event()

    async def repeat() -> int:
        number = 0
        while not is_over.is_set():
            await work(number)
            number += 1
        return number

    repeating = asyncio.create_task(repeat())
    try:
        yield
    finally:
        is_over.set()
        assert await repeating > 0


async def test_a_switch_under_traffic_never_mixes(
    service: Service, worker: None, models: Models, engine: AsyncEngine
) -> None:
    await fill(service)
    seen: list[str] = []

    async def ask(_: int) -> None:
        name, hits = await search(service)
        assert hits
        assert_of(models.here[name], hits)
        if seen[-1:] != [name]:
            seen.append(name)

    async def met_wide() -> bool:
        return seen[-1] == "wide"

    async def write(number: int) -> None:
        await ingest(service, f"{number % 3}.md", document(f"again {number}"))
        added = await ingest(service, f"new {number}.md", document(f"new {number}"))
        await service.client.delete(f"/api/documents/{added['id']}")

    async with meanwhile(ask), meanwhile(write):
        await call(service, model="wide")
        await until(is_now(service, ("default", "retained")))
        await until(met_wide)
    assert seen == ["default", "wide"]
    assert (await vectors(engine, models.wide))[1] == 0

    async with meanwhile(ask):
        await call(service, "/rollback", collections=["default"])
        await until(is_now(service, ("wide", "retained")))
        await call(service, "/rollback", collections=["default"])
        await until(is_now(service, ("default", "retained")))
        await until(met_wide)
    assert seen[:4] == ["default", "wide", "default", "wide"]
    assert is_sound(await verify(engine, LOCAL_OWNER.tenant_id))

    await call(service, "/drop", collections=["default"])
    await until(is_now(service))
    assert (await vectors(engine, models.default))[0] == 0
    assert is_sound(await verify(engine, LOCAL_OWNER.tenant_id))


async def test_a_kept_model_stays_complete_and_leads_back_at_once(
    service: Service, worker: None, models: Models, engine: AsyncEngine
) -> None:
    await fill(service, 2)
    await call(service, model="wide")
    await until(is_now(service, ("default", "retained")))
    await ingest(service, "later.md", document("later"))

    async def is_complete() -> bool:
        return (await vectors(engine, models.default))[1] == 0

    await until(is_complete)
    assert [one["status"] for one in await call(service, "/rollback", collections=["default"])] == [
        "retained"
    ]
    name, hits = await search(service)
    assert name == "default"
    assert_of(models.default, hits)


async def test_collections_switch_together(service: Service, worker: None, models: Models) -> None:
    await service.client.post("/api/collections", json={"name": "other"})
    await fill(service, 2)
    await ingest(service, "a.md", document("a"), collection="other")
    both = SearchRequest(QUESTION, ("default", "other"))

    async def ask(_: int) -> None:
        assert (await service.resources.searcher.search(LOCAL_OWNER, both)).hits

    async with meanwhile(ask):
        await call(service, model="wide")
        await until(is_now(service, ("default", "retained"), ("default", "retained")))


async def test_nothing_is_embedded_twice(
    service: Service, models: Models, engine: AsyncEngine, service_settings: Settings
) -> None:
    async with working(service_settings, models.default):
        await fill(service)
    await call(service, model="wide", activate=False)
    failpoints.arm("switch.round_committed=error@2")
    try:
        async with open_tools(service_settings, engine, models.default) as tools:
            with pytest.raises(FailpointError):
                await finish(tools, await collection_id(engine))
            failpoints.arm("")
            await finish(tools, await collection_id(engine))
    finally:
        failpoints.arm("")
    assert (
        len(models.wide.texts)
        == len(set(models.wide.texts))
        == (await vectors(engine, models.wide))[0]
    )
    assert await status(service) == [("wide", "prepared")]
    name, _ = await search(service)
    assert name == "default"


async def collection_id(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text("SELECT min(id) FROM collections"))).scalar_one())


async def finish(tools: Any, collection_id: int) -> None:
    """All jobs of a switch, one after the other."""
    while True:
        try:
            await advance_switch(tools, collection_id)
        except RetryLater:
            continue
        return


def advance(settings: Settings, collection_id: int) -> None:
    """The jobs of a switch, as a worker does them, in a process of their own."""
    from app.db.session import open_engine  # noqa: PLC0415 - for the child

    switching.PASSAGES_AT_ONCE = 2
    switching.PASSAGES_PER_JOB = 4
    models = Models()
    models.install()
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()

    async def run() -> None:
        engine = open_engine(settings, url)
        async with open_tools(settings, engine, models.default) as tools:
            await finish(tools, collection_id)
            await finish(tools, collection_id)  # the job that removes the old vectors
        await engine.dispose()

    asyncio.run(run())


KILLED_AT = [place for place in failpoints.PLACES if place.startswith("switch.")]


async def test_a_worker_killed_anywhere_leaves_one_model_and_the_next_goes_on(
    service: Service, models: Models, engine: AsyncEngine, service_settings: Settings
) -> None:
    async with working(service_settings, models.default):
        await fill(service, 3)
    only = await collection_id(engine)
    for number, place in enumerate(KILLED_AT):
        target = "wide" if number % 2 == 0 else "default"
        await call(service, model=target, keep_old=False)
        async with child(advance, service_settings, only, traps=f"{place}=kill@1") as process:
            await process.dies()
        name, hits = await search(service)
        assert_of(models.here[name], hits)
        async with child(advance, service_settings, only) as process:
            assert await process.end() == 0, process.output
        assert await status(service) == [], place
        name, hits = await search(service)
        assert name == target, place
        assert_of(models.here[name], hits)
        assert (await vectors(engine, models.here[name]))[1] == 0
        assert is_sound(await verify(engine, LOCAL_OWNER.tenant_id))


async def test_a_switch_is_followed_by_its_job(
    service: Service, models: Models, service_settings: Settings
) -> None:
    async with working(service_settings, models.default):
        await fill(service, 1)
    switch = (await call(service, model="wide"))[0]
    path = f"/api/jobs/{switch['job_id']}"
    job = (await service.client.get(path)).json()
    assert (job["status"], job["collection"], job["title"]) == ("queued", "default", "wide")
    assert job["document_id"] is None
    assert job["progress"] == {"stage": "embedding", "done": 0, "total": switch["passages"]}
    for what in ("cancel", "retry"):
        reply = await service.client.post(f"{path}/{what}")
        assert reply.status_code == 409
        assert "footnote models drop-old --collection default" in reply.json()["hint"]
    limited = await service.key("read", collections=["elsewhere"])
    assert (await service.client.get(path, headers=limited)).status_code == 404
    async with working(service_settings, models.default):
        events = await service.client.get(f"{path}/events")
    assert "event: done" in events.text
    job = (await service.client.get(path)).json()
    assert (job["status"], job["reason"], job["progress"]) == ("ready", None, None)
    await call(service, model="default")
    assert (await service.client.get(path)).json() == {**job, "title": ""}


async def test_what_cannot_be_switched_is_refused(
    service: Service, models: Models, service_settings: Settings
) -> None:
    async with working(service_settings, models.default):
        await fill(service, 1)

    async def refused(code: int, path: str = "", **body: Any) -> None:
        reply = await service.client.post(f"/api/models/switches{path}", json=body)
        assert reply.status_code == code, reply.text
        assert reply.json()["hint"]

    await refused(503, model="unheard-of")
    await refused(404, model="wide", collections=["nowhere"])
    await refused(409, model="default")
    await refused(409, "/rollback", collections=["default"])
    await refused(409, "/activate", collections=["default"])
    await refused(404, "/drop", collections=["default"])
    await call(service, model="wide")
    await refused(409, model="third")
    await call(service, model="wide")
    limited = await service.key("read", "write", "admin", collections=["elsewhere"])
    reply = await service.client.get("/api/models/switches", headers=limited)
    assert reply.json()["switches"] == []
    reply = await service.client.post(
        "/api/models/switches/drop", json={"collections": ["default"]}, headers=limited
    )
    assert reply.status_code == 404
    reader = await service.key("read")
    for path in ("", "/drop", "/rollback", "/activate"):
        reply = await service.client.post(
            f"/api/models/switches{path}", json={"model": "wide"}, headers=reader
        )
        assert reply.status_code == 403


async def test_a_model_that_is_lost_fails_and_the_old_one_serves_on(
    service: Service, models: Models, service_settings: Settings
) -> None:
    async with working(service_settings, models.default):
        await fill(service, 1)
    await call(service, model="wide")
    del models.here["wide"]
    async with working(service_settings, models.default):

        async def has_failed() -> bool:
            return await status(service) == [("wide", "failed")]

        await until(has_failed)
        assert "not as it was" in (await call(service))[0]["reason"]
        assert (await search(service))[0] == "default"
        await call(service, "/drop", collections=["default"])
        await until(is_now(service))


async def test_a_collection_goes_on_with_its_model_when_another_is_configured(
    service: Service, models: Models, service_settings: Settings, engine: AsyncEngine
) -> None:
    async with working(service_settings, models.default):
        await fill(service, 2)
    models.default = models.wide
    async with open_service(service_settings) as later, working(service_settings, models.wide):
        name, hits = await search(later)
        assert name == "default"
        assert_of(models.here["default"], hits)
        await ingest(later, "later.md", document("later"))
        assert (await vectors(engine, models.here["default"]))[1] == 0
        listed = (await later.client.get("/api/models/embedding")).json()["models"]
        assert [(one["name"], one["configured"]) for one in listed] == [
            ("wide", True), ("default", False),
        ]  # fmt: skip
        assert listed[1]["collections"][0]["state"] == "serving"
        assert listed[1]["bytes"] > 0


async def test_a_candidate_is_searched_only_when_it_is_ready(
    service: Service, models: Models, service_settings: Settings
) -> None:
    candidate = SearchRequest(QUESTION, ("default",), candidate_model=True)
    async with working(service_settings, models.default):
        await fill(service, 2)
        with pytest.raises(FootnoteError, match="no other embedding model"):
            await service.resources.searcher.search(LOCAL_OWNER, candidate)
        await call(service, model="wide", activate=False)
        await until(is_now(service, ("wide", "prepared")))
    result = await service.resources.searcher.search(LOCAL_OWNER, candidate)
    assert_of(models.wide, list(result.hits))
    assert (await search(service))[0] == "default"
