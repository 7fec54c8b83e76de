"""Registered sources: from the request that adds one to the worker that keeps it in step."""

import asyncio
import json
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from app.cli import cli
from app.config import Settings
from ingestion.pipeline import open_tools
from ingestion.syncing import sync_source
from ingestion.worker import run_worker
from tests.doubles.plain_parser import PlainParser
from tests.doubles.web_server import Answer, WebServer, serving_web
from tests.doubles.word_embedder import WordEmbedder
from tests.index_state import assert_consistent
from tests.service import Service, open_service, over_sockets

TEXT = {"Content-Type": "text/plain"}


@pytest.fixture
async def web() -> AsyncIterator[WebServer]:
    async with serving_web() as server:
        yield server


@pytest.fixture
async def opened(
    service_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Service]:
    """A service and its settings, whose model is a double, and that may reach the tests' servers."""
    monkeypatch.setattr(
        "app.resources.open_for_questions", lambda *_args, **_options: WordEmbedder()
    )
    settings = service_settings.model_copy(
        update={
            "source_allow_networks": (ip_network("127.0.0.1/32"),),
            "source_pause_seconds": 0,
            "source_buckets": ("s3://open/*",),
        }
    )
    async with open_service(settings) as service:
        await service.client.post("/api/collections", json={"name": "web"})
        yield service


async def call(service: Service, method: str, path: str = "", **body: Any) -> dict[str, Any]:
    reply = await service.client.request(method, f"/api/sources{path}", json=body or None)
    assert reply.is_success, reply.text
    return dict(reply.json())


async def add(service: Service, location: str, **options: Any) -> dict[str, Any]:
    return await call(service, "POST", location=location, collection="web", **options)


async def sync(service: Service, source: dict[str, Any]) -> dict[str, Any]:
    """The source after a worker did what is queued for it."""
    resources = service.resources
    async with open_tools(resources.settings, resources.engine, WordEmbedder()) as tools:
        await tools.parsers.close()
        tools.parsers = PlainParser()  # type: ignore[assignment]
        await sync_source(tools, UUID(source["id"]))
    reply = await service.client.get(f"/api/sources/{source['id']}")
    return dict(reply.json())


async def documents(service: Service) -> list[str]:
    reply = await service.client.get("/api/documents", params={"collection": "web"})
    return sorted(one["uri"] for one in reply.json()["documents"])


async def jobs(service: Service) -> int:
    """How many jobs of sources wait."""
    async with service.resources.engine.connect() as connection:
        rows = await connection.execute(
            text("SELECT count(*) FROM procrastinate_jobs WHERE task_name = 'sync_source'")
        )
        return int(rows.scalar_one())


async def test_a_source_is_kept_in_step_until_it_is_removed(
    opened: Service, web: WebServer
) -> None:
    for name in "ab":
        web.routes[f"/{name}.txt"] = Answer(f"The page {name}.".encode(), headers=TEXT)
    web.routes["/sitemap.txt"] = Answer(
        f"{web.url('/a.txt')}\n{web.url('/b.txt')}".encode(), headers=TEXT
    )
    source = await add(opened, web.url("/sitemap.txt"), every_minutes=60, exclude=["c.txt"])
    assert (source["status"], source["report"], await jobs(opened)) == ("queued", None, 1)

    done = await sync(opened, source)
    assert (done["status"], done["reason"]) == ("ready", None)
    assert (done["report"]["added"], done["report"]["failed"]) == (2, 0)
    assert done["synced_at"] < done["next_at"]
    assert await documents(opened) == [web.url("/a.txt"), web.url("/b.txt")]

    assert (await call(opened, "POST", f"/{source['id']}/sync"))["status"] == "queued"
    assert (await call(opened, "POST", f"/{source['id']}/sync"))["status"] == "queued"
    assert await jobs(opened) == 2
    web.routes["/sitemap.txt"] = Answer(web.url("/a.txt").encode(), headers=TEXT)
    assert (await sync(opened, source))["report"]["deleted"] == 1

    removal = await call(opened, "DELETE", f"/{source['id']}?documents=true")
    assert removal == {"status": "removing"}
    assert (await sync(opened, source))["code"] == "not_found"
    assert await documents(opened) == []
    await assert_consistent(opened.resources.engine)


async def test_a_source_may_go_and_leave_its_documents(opened: Service, web: WebServer) -> None:
    web.routes["/a.txt"] = Answer(b"The page.", headers=TEXT)
    source = await add(opened, web.url("/a.txt"))
    await sync(opened, source)
    assert await call(opened, "DELETE", f"/{source['id']}") == {"status": "removed"}
    assert (await call(opened, "GET"))["sources"] == []
    assert await documents(opened) == [web.url("/a.txt")]


async def test_a_source_that_cannot_be_read_says_why(opened: Service, web: WebServer) -> None:
    source = await add(opened, web.url("/sitemap.xml"))
    failed = await sync(opened, source)
    assert failed["status"] == "failed"
    assert "404" in failed["reason"]
    assert failed["report"] is None

    closed = await add(opened, "http://127.0.0.2/page")
    report = (await sync(opened, closed))["report"]
    assert "private or special network" in report["failures"][0]["reason"]


async def test_the_worker_syncs_what_is_queued_and_what_is_due(
    opened: Service, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.worker.RESCUE_SECONDS", 0.2)
    fetched = asyncio.Event()
    times = 0

    async def page(writer: asyncio.StreamWriter) -> None:
        nonlocal times
        times += 1
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nContent-Type: text/plain\r\n\r\nThe page."
        )
        await writer.drain()
        fetched.set()

    web.routes["/a.txt"] = page
    source = await add(opened, web.url("/a.txt"), every_minutes=60)
    resources, stop = opened.resources, asyncio.Event()
    assert resources.settings.database_url is not None
    worker = asyncio.create_task(
        run_worker(
            resources.settings,
            resources.settings.database_url.get_secret_value(),
            concurrency=1,
            stop=stop,
            embedder=WordEmbedder(),
            sync_source=sync_source,
        )
    )
    try:
        async with asyncio.timeout(60):
            await fetched.wait()
            await _until_ready(opened, source)
            fetched.clear()
            async with resources.engine.begin() as connection:
                await connection.execute(text("UPDATE sources SET next_at = now()"))
            await fetched.wait()
            await _until_ready(opened, source)
    finally:
        stop.set()
        await worker
    assert times == 2
    assert await documents(opened) == [web.url("/a.txt")]


async def _until_ready(service: Service, source: dict[str, Any]) -> None:
    while (await call(service, "GET", f"/{source['id']}"))["status"] != "ready":
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"location": "/etc"}, 422),
        ({"location": "file:///etc/passwd"}, 422),
        ({"location": "ftp://docs.example/"}, 422),
        ({"location": "https://name:word@docs.example/"}, 422),
        ({"location": "http://0x7f.1/"}, 422),
        ({"location": "s3://key:secret@open/docs"}, 422),
        ({"location": "s3://closed/docs"}, 403),
        ({"location": "gs://open/docs"}, 403),
        ({"location": ""}, 422),
        ({"location": "https://docs.example/", "every_minutes": 0}, 422),
        ({"location": "https://docs.example/", "include": ["x" * 2000]}, 422),
        ({"location": "https://docs.example/", "include": ["!"]}, 422),
        ({"location": "https://docs.example/", "collection": "nowhere"}, 404),
        ({"location": "https://docs.example/", "endpoint": "http://127.0.0.1/"}, 422),
    ],
)
async def test_what_cannot_be_a_source_is_refused(
    opened: Service, body: dict[str, Any], status: int
) -> None:
    reply = await opened.client.post("/api/sources", json={"collection": "web", **body})
    assert reply.status_code == status, reply.text
    assert reply.json()["hint"]
    assert await jobs(opened) == 0


@pytest.mark.parametrize("location", ["s3://x/y", "gs:///docs", "az://open/a?b", "s3://k:w@b/c"])
async def test_what_names_no_bucket_is_told_so(opened: Service, location: str) -> None:
    reply = await opened.client.post(
        "/api/sources", json={"location": location, "collection": "web"}
    )
    assert reply.status_code == 422
    assert f"what follows {location[:5]} names no bucket" in reply.text
    assert "2 to 63 letters" in reply.json()["hint"]
    assert "k:w" not in reply.text


async def test_a_location_is_a_source_of_a_collection_once(opened: Service) -> None:
    await add(opened, "HTTPS://Docs.Example/a#part")
    reply = await opened.client.post(
        "/api/sources", json={"location": "https://docs.example/a", "collection": "web"}
    )
    assert reply.status_code == 409
    assert (await add(opened, "s3://open/docs"))["location"] == "s3://open/docs"
    listed = (await call(opened, "GET"))["sources"]
    assert [one["location"] for one in listed] == ["https://docs.example/a", "s3://open/docs"]


async def test_a_source_goes_with_its_collection(opened: Service) -> None:
    source = await add(opened, "https://docs.example/")
    await opened.client.delete("/api/collections/web")
    assert (await opened.client.get(f"/api/sources/{source['id']}")).status_code == 404
    async with open_tools(
        opened.resources.settings, opened.resources.engine, WordEmbedder()
    ) as tools:
        assert await sync_source(tools, UUID(source["id"]))
        assert await sync_source(tools, uuid4())


async def test_a_source_whose_job_got_lost_gets_another(opened: Service) -> None:
    source = await add(opened, "https://docs.example/")
    resources = opened.resources
    assert await resources.jobs.requeue_due(resources.engine) == 0
    async with resources.engine.begin() as connection:
        await connection.execute(text("DELETE FROM procrastinate_jobs"))
    assert await resources.jobs.requeue_due(resources.engine) == 1
    assert await jobs(opened) == 1
    assert (await call(opened, "GET", f"/{source['id']}"))["status"] == "queued"


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_logging")
async def test_sources_are_managed_by_command(
    opened: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FOOTNOTE_HOME", str(tmp_path))
    async with over_sockets(opened) as client:

        async def run(*arguments: str) -> Any:
            command = [*arguments, "--url", str(client.base_url)]
            done = await asyncio.to_thread(CliRunner().invoke, cli, ["sources", *command])
            assert done.exit_code == 0, done.output
            return json.loads(done.stdout) if "--json" in arguments else done.stdout

        added = await run("add", "https://docs.example/", "-c", "web", "--every", "5", "--json")
        assert (added["status"], added["every_minutes"]) == ("queued", 5)
        assert (await run("list", "--json"))["sources"] == [added]
        listed = await run("list")
        assert "https://docs.example/" in listed.replace("\n", "")
        assert added["id"] in await run("sync", added["id"])
        assert await run("remove", added["id"], "--json") == {"status": "removed"}
        assert "There are no sources" in await run("list")
