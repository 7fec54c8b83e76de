"""A process is killed at every failpoint there is; what is left is whole, and the rest is made up.

The oracle is equality with a run that nobody killed, judged on the tables.
"""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.access import LOCAL_OWNER
from app.config import Settings
from app.db.session import open_engine, open_sessions
from app.documents.library import Library
from app.documents.records import Upload
from app.failpoints import PLACES, FailpointError, arm, reach
from app.jobs import Jobs
from tests.conftest import new_database
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
from tests.index_state import assert_consistent, contents
from tests.repository import TEXTS

OLD = "# Travel\n\nOld words of it.\n\n## Rail\n\nSecond class.\n"
NEW = "# Travel\n\nNew words of it.\n\n## Air\n\nNever.\n"

PIPELINE = [
    place
    for place in PLACES
    if place.startswith(("pipeline.", "version.", "postings.", "vectors."))
]
OF_WORKER = [place for place in PLACES if place.startswith(("claim.", "worker.", "rescue."))]
OF_COMMAND = [place for place in PLACES if place.startswith("folder.")]
OF_UPLOAD = [place for place in PLACES if place.startswith("upload.")]
OF_SWITCH = [place for place in PLACES if place.startswith("switch.")]
"""Killed at in tests/test_model_switch.py."""
OF_DELETE = [place for place in PLACES if place.startswith("delete.")]
IN_COMMAND_TOO = ["delete.version_removed", "delete.before_commit"]


def test_every_place_is_in_the_code_once_and_killed_at_here() -> None:
    placed = [
        place
        for name, code in TEXTS.items()
        if name.startswith(("app/", "ingestion/"))
        for place in re.findall(r'\breach\("([\w.]+)"\)', code)
    ]
    assert sorted(placed) == sorted(PLACES)
    tried = {*PIPELINE, *OF_WORKER, *OF_COMMAND, *OF_UPLOAD, *OF_DELETE, *OF_SWITCH}
    assert tried == set(PLACES)


def test_a_failpoint_is_set_by_the_environment() -> None:
    program = (
        "from app.failpoints import reach\nfor n in range(3): reach('pipeline.parsed'); print(n)"
    )
    for words, status, printed in (
        ("", 0, "0\n1\n2\n"),
        ("pipeline.parsed=kill@2", -9, "0\n"),
        ("pipeline.chunked=kill,pipeline.parsed=error@3", 1, "0\n1\n"),
        ("pipeline.lost=kill", 1, ""),
        ("pipeline.parsed=vanish", 1, ""),
    ):
        done = subprocess.run(
            [sys.executable, "-u", "-c", program],
            env={"FOOTNOTE_FAILPOINTS": words},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (status, printed), done.stderr


def test_a_failpoint_fails_at_its_hit_only() -> None:
    arm("delete.committed=error@2")
    reach("delete.committed")
    with pytest.raises(FailpointError):
        reach("delete.committed")
    reach("delete.committed")
    arm("")


# --- the scene: some documents, and changes that wait ---------------------------------------------


@pytest.fixture(scope="module")
def copied(server_url: Callable[[str], str]) -> Callable[[str], Any]:
    """Call it with a database's URL for a copy, as long as the block runs."""

    @contextmanager
    def copy(url: str) -> Iterator[str]:
        name = f"crash_{uuid4().hex}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
            sql.Identifier(name), sql.Identifier(str(make_url(url).database))
        )
        with psycopg.connect(server_url("postgres"), autocommit=True) as admin:
            admin.execute(statement)
            yield server_url(name)
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    return copy


@pytest.fixture
async def opened(settings: Settings, copied: Any) -> AsyncIterator[Callable[..., Any]]:
    """Call it with a database's URL for the URL of a copy and an engine on it."""
    blocks: list[Any] = []
    engines: list[AsyncEngine] = []

    def open_copy(url: str) -> tuple[str, AsyncEngine]:
        block = copied(url)
        blocks.append(block)
        own = block.__enter__()
        engines.append(open_engine(settings, own))
        return own, engines[-1]

    yield open_copy
    for engine in engines:
        await engine.dispose()
    for block in blocks:
        block.__exit__(None, None, None)


@pytest.fixture(scope="module")
async def uploads(
    server_url: Callable[[str], str], settings: Settings
) -> AsyncIterator[tuple[str, Any]]:
    """A database with two documents, an edit of one and a third one queued; and its clean end."""
    with new_database(server_url) as url:
        await _upload(url, settings, ("a.md", OLD), ("b.md", "# Other\n\nWords of it.\n"))
        await _work_off(url, settings)
        await _upload(url, settings, ("a.md", NEW), ("c.md", "# Third\n\nMore words.\n"))
        with new_database(server_url) as clean:
            await _upload(
                clean, settings, ("a.md", NEW), ("b.md", "# Other\n\nWords of it.\n"),
                ("c.md", "# Third\n\nMore words.\n"),
            )  # fmt: skip
            yield url, await _work_off(clean, settings)


async def _upload(url: str, settings: Settings, *files: tuple[str, str]) -> None:
    engine, jobs = open_engine(settings, url), Jobs(url)
    await jobs.open()
    library = Library(open_sessions(engine), jobs, settings, AnyEmbedder())
    for name, content in files:
        await library.register_upload(LOCAL_OWNER, Upload(name, content.encode()))
    await jobs.close()
    await engine.dispose()


async def _work_off(url: str, settings: Settings) -> Any:
    """What there is to be found when a worker has done all there is to do."""
    engine = open_engine(settings, url)
    # The index is left to be built by those who are killed.
    async with child(work, url, index_from_rows=1000):
        await until(lambda: is_settled(engine))
    found = await contents(engine)
    await assert_consistent(engine)
    await engine.dispose()
    return found


async def assert_is(engine: AsyncEngine, clean: Any) -> None:
    """Everything as if nobody had been killed: the edited document twice written, the others once."""
    assert await contents(engine) == clean
    ready = {"a.md": ("ready", 2), "b.md": ("ready", 1), "c.md": ("ready", 1)}
    assert await documents(engine) == ready
    await assert_consistent(engine)


async def assert_each_job_is_over(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        rows = await connection.execute(
            text("SELECT DISTINCT status::text FROM procrastinate_jobs")
        )
        assert set(rows.scalars()) == {"succeeded"}


# --- the worker -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [*OF_WORKER, *PIPELINE])
async def test_a_worker_is_killed(place: str, uploads: Any, opened: Callable[..., Any]) -> None:
    scene, clean = uploads
    url, engine = opened(scene)
    before = await contents(engine)
    async with child(work, url, traps=f"{place}=kill") as worker:
        await worker.dies()
    for uri, passages in (await contents(engine)).items():
        assert passages in (before.get(uri), clean[uri]), f"{uri} is neither old nor new"
    await assert_consistent(engine)

    await bury(engine)
    async with child(work, url):
        await until(lambda: is_settled(engine))
    await assert_is(engine, clean)
    await assert_each_job_is_over(engine)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def folder(
    server_url: Callable[[str], str], settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[str, Path, Any]]:
    """A database that knows a folder as it was before an edit, a touch, an addition and a removal;
    the folder; and the clean end.
    """
    docs = tmp_path_factory.mktemp("crash") / "docs"
    docs.mkdir()
    (docs / "a.md").write_text(OLD)
    (docs / "b.md").write_text("# Other\n\nWords of it.\n")
    (docs / "d.md").write_text("# Fourth\n\nIt goes.\n")
    with new_database(server_url) as url, new_database(server_url) as clean:
        # Its index is left to be built by those who are killed.
        await _ingest(url, docs, index_from_rows=1000)
        # Whatever it finds, the next run has a time to note, however fresh the file is.
        with psycopg.connect(url) as connection:
            connection.execute("UPDATE documents SET modified_ns = 1 WHERE uri LIKE '%/b.md'")
        (docs / "a.md").write_text(NEW)
        os.utime(docs / "b.md", (1, 1))
        (docs / "c.md").write_text("# Third\n\nMore words.\n")
        (docs / "d.md").unlink()
        await _ingest(clean, docs)
        engine = open_engine(settings, clean)
        found = await contents(engine)
        await engine.dispose()
        yield url, docs, found


async def _ingest(url: str, docs: Path, **options: int) -> None:
    async with child(ingest, url, str(docs), **options) as command:
        assert await command.end() == 0, command.output


@pytest.mark.parametrize("place", [*OF_COMMAND, *PIPELINE, *IN_COMMAND_TOO])
async def test_a_command_is_killed(place: str, folder: Any, opened: Callable[..., Any]) -> None:
    scene, docs, clean = folder
    url, engine = opened(scene)
    before = await contents(engine)
    async with child(ingest, url, str(docs), traps=f"{place}=kill") as command:
        await command.dies()
    for uri, passages in (await contents(engine)).items():
        assert passages in (before.get(uri), clean.get(uri)), f"{uri} is neither old nor new"
    await assert_consistent(engine)

    await _ingest(url, docs)
    await assert_is(engine, clean)


# --- the API --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def survivor(
    server_url: Callable[[str], str],
) -> AsyncIterator[tuple[str, httpx.AsyncClient]]:
    """A database of its own, and another API on it that nobody kills."""
    with new_database(server_url) as url:
        async with api(url) as (_, client):
            yield url, client


def file_of(place: str) -> dict[str, Any]:
    return {"file": (f"{place}.md", f"# About {place}\n\nIts words.\n".encode())}


@pytest.mark.parametrize("place", OF_UPLOAD)
async def test_an_api_is_killed_in_an_upload(place: str, survivor: Any, settings: Settings) -> None:
    url, other = survivor
    headers = {"Idempotency-Key": place}
    async with api(url, traps=f"{place}=kill") as (process, client):
        with pytest.raises(httpx.TransportError):
            await client.post("/api/documents", files=file_of(place), headers=headers)
        await process.dies()
    engine = open_engine(settings, url)
    known = {f"{place}.md": ("queued", None)} if place == "upload.committed" else {}
    assert {name: it for name, it in (await documents(engine)).items() if place in name} == known
    await assert_consistent(engine)

    # Whoever got no answer asks again, and gets the one that it would have got.
    again = await other.post("/api/documents", files=file_of(place), headers=headers)
    assert again.status_code == 202, again.text
    async with child(work, url):
        await until(lambda: is_settled(engine))
    found = (await other.get(f"/api/documents/{again.json()['document_id']}")).json()
    assert (found["status"], found["version"], found["title"]) == ("ready", 1, f"About {place}")
    await assert_each_job_is_over(engine)
    await assert_consistent(engine)
    await engine.dispose()


@pytest.mark.parametrize("place", OF_DELETE)
async def test_an_api_is_killed_in_a_deletion(
    place: str, survivor: Any, settings: Settings
) -> None:
    url, other = survivor
    engine = open_engine(settings, url)
    uploaded = await other.post("/api/documents", files=file_of(place))
    async with child(work, url):
        await until(lambda: is_settled(engine))
    before = await contents(engine)
    address = f"/api/documents/{uploaded.json()['document_id']}"
    async with api(url, traps=f"{place}=kill") as (process, client):
        with pytest.raises(httpx.TransportError):
            await client.delete(address)
        await process.dies()
    uri = f"upload:///{place}.md"
    is_gone = place == "delete.committed"
    assert await contents(engine) == {
        name: passages for name, passages in before.items() if not (is_gone and name == uri)
    }
    await assert_consistent(engine)
    assert (await other.delete(address)).status_code == (404 if is_gone else 200)
    assert uri not in await contents(engine)
    await assert_consistent(engine)
    await engine.dispose()
