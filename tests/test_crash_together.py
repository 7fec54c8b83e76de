"""Processes that stand still, lose their connections or meet each other at the wrong moment."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import LOCAL_OWNER
from app.config import Settings
from app.db.session import open_engine, open_sessions
from app.documents.library import Library
from app.documents.records import Upload
from app.jobs import Jobs
from ingestion.parsing import sandbox
from ingestion.pipeline import open_tools
from ingestion.runner import Order, sync
from ingestion.worker import run_worker
from tests.crashing import (
    AnyEmbedder,
    api,
    bury,
    child,
    documents,
    ingest,
    is_settled,
    until,
    work,
)
from tests.doubles.socket_proxy import SocketProxy
from tests.index_state import assert_consistent, contents
from tests.service import unix_socket_of
from tests.test_ingest import Silence


@pytest.fixture
async def library(engine: AsyncEngine, database_url: str, settings: Settings) -> AsyncIterator[Any]:
    jobs = Jobs(database_url)
    await jobs.open()
    yield Library(open_sessions(engine), jobs, settings, AnyEmbedder())
    await jobs.close()


async def upload(library: Library, name: str, words: str) -> UUID:
    content = f"# About {name}\n\n{words}\n".encode()
    return (await library.register_upload(LOCAL_OWNER, Upload(name, content))).document_id


async def value(engine: AsyncEngine, query: str) -> Any:
    async with engine.connect() as connection:
        return await connection.scalar(text(query))


async def count(engine: AsyncEngine, table: str) -> int:
    rows: int = await value(engine, f"SELECT count(*) FROM {table}")  # noqa: S608 - names of ours
    return rows


# --- standing still -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    ["worker.claimed", "pipeline.embedded", "version.before_commit", "worker.before_job_done"],
)
async def test_a_worker_that_stood_still_too_long_changes_nothing(
    place: str, library: Library, engine: AsyncEngine, database_url: str
) -> None:
    await upload(library, "a.md", "Its words.")
    async with child(work, database_url, traps=f"{place}=stop") as late:
        await late.stands_still()
        await bury(engine)
        async with child(work, database_url):
            await until(lambda: is_settled(engine))
            # Another version, so that the late one would show.
            await upload(library, "a.md", "Other words.")
            await until(lambda: is_settled(engine))
        before = await contents(engine)
        late.signal(signal.SIGCONT)
        # It is as good as any other from now on.
        await upload(library, "b.md", "Its words.")
        await until(lambda: is_settled(engine))
        assert await documents(engine) == {"a.md": ("ready", 2), "b.md": ("ready", 1)}
        assert (await contents(engine))["upload:///a.md"] == before["upload:///a.md"]
        await late.stop()
    await assert_consistent(engine)


@pytest.mark.parametrize("place", ["pipeline.embedded", "version.before_commit"])
async def test_a_document_is_deleted_under_a_worker_that_stands_still(
    place: str, library: Library, engine: AsyncEngine, database_url: str
) -> None:
    document_id = await upload(library, "a.md", "Its words.")
    async with child(work, database_url, traps=f"{place}=stop") as worker:
        await worker.stands_still()
        await library.delete(LOCAL_OWNER, document_id)
        worker.signal(signal.SIGCONT)
        await until(lambda: is_settled(engine))
        await worker.stop()
    assert await documents(engine) == {}
    for table in ("chunks", "embeddings", "postings", "document_versions", "blobs"):
        assert await count(engine, table) == 0, table


# --- lost connections -----------------------------------------------------------------------------


class LossyProxy(SocketProxy):
    """Breaks the connection at every other COMMIT: in turn before the server gets it, and after
    the server has done it but before anybody is told.
    """

    def __init__(self, socket_path: Path, losses: int) -> None:
        super().__init__(socket_path)
        self.losses_left = losses
        self._commits = 0

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(65536):
            is_commit = b"COMMIT" in content and self.losses_left > 0
            self._commits += is_commit
            if is_commit and self._commits % 2 == 0:
                self.losses_left -= 1
                if self._commits % 4 == 0:
                    writer.write(content)
                    await writer.drain()
                    await asyncio.sleep(0.05)
                self.cut()
                return
            writer.write(content)
            await writer.drain()
        writer.close()


@pytest.fixture
async def lossy(service_settings: Settings) -> AsyncIterator[tuple[LossyProxy, str]]:
    """A way to the database that loses connections at COMMIT, and its URL."""
    assert service_settings.database_url is not None
    name = service_settings.database_url.get_secret_value().split("?")[0].rpartition("/")[2]
    async with LossyProxy(unix_socket_of(service_settings), losses=8) as proxy:
        yield proxy, f"postgresql://footnote@127.0.0.1:{proxy.port}/{name}"


async def test_a_worker_loses_its_connection_at_commit(
    lossy: tuple[LossyProxy, str],
    library: Library,
    engine: AsyncEngine,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy, url = lossy
    for name, seconds in (("POLL", 0.05), ("HEARTBEAT", 0.1), ("DEAD_AFTER", 1.0)):
        monkeypatch.setattr(f"app.jobs.{name}_SECONDS", seconds)
    monkeypatch.setattr("ingestion.worker.RESCUE_SECONDS", 0.2)
    monkeypatch.setattr("ingestion.worker.RETRY_PAUSES_SECONDS", (0.0,))
    monkeypatch.setattr("ingestion.worker.RECONNECT_PAUSES_SECONDS", (0.05,))
    for name in ("a.md", "b.md", "c.md", "d.md"):
        await upload(library, name, "Its words.")
    stop = asyncio.Event()
    running = asyncio.create_task(
        run_worker(settings, url, concurrency=2, stop=stop, embedder=AnyEmbedder())
    )
    await until(lambda: is_settled(engine))
    stop.set()
    await running
    assert proxy.losses_left < 8
    assert set((await documents(engine)).values()) == {("ready", 1)}
    assert len(await contents(engine)) == 4
    await assert_consistent(engine)


async def test_a_command_loses_its_connection_at_commit(
    lossy: tuple[LossyProxy, str],
    service_settings: Settings,
    engine: AsyncEngine,
    tmp_path: Path,
) -> None:
    proxy, url = lossy
    settings = service_settings.model_copy(update={"database_url": SecretStr(url)})
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.md").write_text(f"# About {name}\n\nIts words.\n")
    lossy_engine = open_engine(settings, url)
    async with open_tools(settings, lossy_engine, AnyEmbedder()) as tools:
        report = await sync(Order([tmp_path], "default"), tools, Silence())
    await lossy_engine.dispose()
    assert report.failures == []
    assert proxy.losses_left < 8
    assert set((await documents(engine)).values()) == {("ready", 1)}
    assert len(await contents(engine)) == 4
    await assert_consistent(engine)


# --- together -------------------------------------------------------------------------------------


async def test_one_key_fifty_times_at_once(engine: AsyncEngine, database_url: str) -> None:
    headers = {"Idempotency-Key": "the one"}

    def file(words: bytes) -> dict[str, Any]:
        return {"file": ("a.md", b"# A\n\n" + words)}

    async with api(database_url) as (_, client):
        replies = await asyncio.gather(
            *(client.post("/api/documents", files=file(b"A."), headers=headers) for _ in range(50))
        )
        assert {reply.status_code for reply in replies} == {202}
        assert len({reply.text for reply in replies}) == 1
        other = await client.post("/api/documents", files=file(b"B."), headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert await documents(engine) == {"a.md": ("queued", None)}
    assert await value(engine, "SELECT count(*) FROM procrastinate_jobs") == 1


async def test_commands_and_uploads_bring_the_same_bytes_together(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    content = b"# Same\n\nThe same words for all.\n"
    (tmp_path / "same.md").write_bytes(content)
    async with (
        api(database_url) as (_, client),
        child(work, database_url, 2),
        child(work, database_url, 2),
        child(ingest, database_url, str(tmp_path)) as one,
        child(ingest, database_url, str(tmp_path)) as two,
    ):
        replies = await asyncio.gather(
            *(client.post("/api/documents", files={"file": ("same.md", content)}) for _ in range(6))
        )
        assert {reply.status_code for reply in replies} == {202}
        assert (await one.end(), await two.end()) == (0, 0), one.output + two.output
        await until(lambda: is_settled(engine))
    found = await contents(engine)
    assert sorted(found) == [f"file://{tmp_path}/same.md", "upload:///same.md"]
    assert len({tuple(passages) for passages in found.values()}) == 1
    assert await value(engine, "SELECT count(*) FROM document_versions WHERE number = 1") == 2
    assert await value(engine, "SELECT count(*) FROM blobs") == 1
    await assert_consistent(engine)


async def test_a_search_sees_a_whole_version(engine: AsyncEngine, database_url: str) -> None:
    def edition(number: int) -> dict[str, Any]:
        sections = [f"## Part {part}\n\nedition{number} part{part} words.\n" for part in range(9)]
        return {"file": ("book.md", "\n".join(["# Book\n", *sections]).encode())}

    async with api(database_url) as (_, client), child(work, database_url):
        await client.post("/api/documents", files=edition(0))
        await until(lambda: is_settled(engine))
        seen: list[tuple[str, ...]] = []
        done = asyncio.Event()

        async def look() -> None:
            while not done.is_set():
                body = {"query": "words", "mode": "keyword", "limit": 50}
                reply = await client.post("/api/search", json=body)
                assert reply.status_code == 200, reply.text
                words = " ".join(hit["text"] for hit in reply.json()["hits"]).split()
                seen.append(tuple(word for word in words if word.startswith("edition")))

        looking = [asyncio.create_task(look()) for _ in range(3)]
        for number in range(1, 6):
            await client.post("/api/documents", files=edition(number))
            await until(lambda: is_settled(engine))
        done.set()
        await asyncio.gather(*looking)
    assert {len(editions) for editions in seen} == {9}
    assert all(len(set(editions)) == 1 for editions in seen), "editions were mixed"
    assert len({editions[0] for editions in seen}) > 1


# --- what cannot go well --------------------------------------------------------------------------


async def test_a_document_that_kills_its_parser_each_time(
    library: Library,
    engine: AsyncEngine,
    database_url: str,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spawn = sandbox._spawn  # pyright: ignore[reportPrivateUsage]
    killed: list[int] = []

    async def watched(*arguments: Any) -> Any:
        process = await spawn(*arguments)
        send = process.stdin.write

        def write(content: bytes) -> None:
            if b"deadly" in content:
                killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)
            send(content)

        monkeypatch.setattr(process.stdin, "write", write)
        return process

    monkeypatch.setattr(sandbox, "_spawn", watched)
    monkeypatch.setattr("app.jobs.POLL_SECONDS", 0.05)
    monkeypatch.setattr("ingestion.worker.RETRY_PAUSES_SECONDS", (0.0,))
    ids = [await upload(library, f"{n}.md", "deadly" if n == 2 else "good") for n in range(5)]
    stop = asyncio.Event()
    running = asyncio.create_task(
        run_worker(settings, database_url, concurrency=2, stop=stop, embedder=AnyEmbedder())
    )
    await until(lambda: is_settled(engine))
    stop.set()
    await running
    assert {name: status for name, (status, _) in (await documents(engine)).items()} == {
        f"{n}.md": "failed" if n == 2 else "ready" for n in range(5)
    }
    assert (await library.get(LOCAL_OWNER, ids[2])).reason == "crashed the parser"
    assert len(killed) >= 3
    assert await value(engine, "SELECT max(attempts) FROM procrastinate_jobs") == 3
    await assert_consistent(engine)


async def fill(engine: AsyncEngine, event: str) -> None:
    """Let the database have no room for this."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                """
                CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$
                """
            )
        )
        await connection.execute(
            text(f"CREATE TRIGGER full_disk BEFORE {event} EXECUTE FUNCTION full_disk()")
        )


async def empty(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("DROP FUNCTION full_disk CASCADE"))


async def test_an_upload_to_a_full_disk(engine: AsyncEngine, database_url: str) -> None:
    file = {"file": ("a.md", b"# A\n\nText.")}
    async with api(database_url) as (_, client):
        await client.post("/api/collections", json={"name": "default"})
        for table in ("blobs", "procrastinate_jobs", "documents"):
            await fill(engine, f"INSERT ON {table}")
            reply = await client.post("/api/documents", files=file)
            assert (reply.status_code, reply.json()["code"]) == (507, "storage_full")
            for emptied in ("documents", "blobs", "procrastinate_jobs"):
                assert await count(engine, emptied) == 0, emptied
            await empty(engine)
        assert (await client.post("/api/documents", files=file)).status_code == 202


@pytest.mark.parametrize(
    "event",
    [
        "INSERT ON chunks",
        "INSERT ON postings",
        "UPDATE ON documents",
        # The document is ready then, or waits for another attempt, and its job cannot say so.
        "UPDATE OF attempts ON procrastinate_jobs",
    ],
)
async def test_a_worker_outlives_a_full_disk(
    event: str, library: Library, engine: AsyncEngine, database_url: str
) -> None:
    await upload(library, "a.md", "Its words.")
    async with engine.begin() as connection:
        # It has been so for a while, and is nothing that a document is given up for.
        await connection.execute(text("UPDATE procrastinate_jobs SET attempts = 20"))
    await fill(engine, event)
    async with child(work, database_url) as worker:
        await until(lambda: "could not extend file" in worker.output or "space" in worker.output)
        await empty(engine)
        await until(lambda: is_settled(engine))
        assert worker.is_alive
    assert set((await documents(engine)).values()) == {("ready", 1)}
    await assert_consistent(engine)


# --- under load -----------------------------------------------------------------------------------


async def test_a_worker_is_told_to_stop_under_load(
    library: Library, engine: AsyncEngine, database_url: str
) -> None:
    for number in range(40):
        await upload(library, f"{number}.md", f"Words of {number}.")
    async with child(work, database_url, 4) as worker:
        await until(lambda: has_ready(engine))
        await worker.stop()
    assert await value(engine, "SELECT count(*) FROM documents WHERE status = 'processing'") == 0
    assert (
        await value(engine, "SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing'") == 0
    )
    await assert_consistent(engine)
    async with child(work, database_url, 4):
        await until(lambda: is_settled(engine))
    assert list((await documents(engine)).values()) == [("ready", 1)] * 40


async def has_ready(engine: AsyncEngine) -> bool:
    return bool(await value(engine, "SELECT count(*) FROM documents WHERE status = 'ready'"))


@pytest.mark.parametrize(
    "files", [150, pytest.param(4000, marks=[pytest.mark.benchmark, pytest.mark.timeout(900)])]
)
async def test_everything_queued_survives_a_restart_of_all(
    files: int, library: Library, engine: AsyncEngine, database_url: str
) -> None:
    for number in range(files):
        await upload(library, f"{number}.md", f"Words of {number}.")
    for _ in range(2):
        async with child(work, database_url, 4) as one, child(work, database_url, 4) as two:
            done = await value(engine, "SELECT count(*) FROM documents WHERE status = 'ready'")
            await until(lambda done=done: has_more_ready(engine, done))
            for worker in (one, two):
                worker.signal(signal.SIGKILL)
                await worker.dies()
        await bury(engine)
    async with child(work, database_url, 4):
        await until(lambda: is_settled(engine), seconds=900)
    assert list((await documents(engine)).values()) == [("ready", 1)] * files
    await assert_consistent(engine)


async def has_more_ready(engine: AsyncEngine, count: int) -> bool:
    ready = await value(engine, "SELECT count(*) FROM documents WHERE status = 'ready'")
    return bool(ready > count)
