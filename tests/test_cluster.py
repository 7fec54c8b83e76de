"""A run on a Ray cluster: the same rows as a run on one machine, also when a node dies of it."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from typer.testing import CliRunner

from app.config import Settings
from app.db import vector_partitions
from app.db.session import open_engine
from app.db.vector_partitions import list_leaves
from app.embedding.base import Embedder
from app.errors import InvalidInput, Unavailable
from ingestion import cli, cluster
from ingestion.cluster_stages import Assignment, Due
from ingestion.pipeline import open_tools
from ingestion.runner import Order, Report, sync
from ingestion.sources.base import Item
from ingestion.writing import Shelf
from tests.conftest import ROOT, new_database
from tests.index_state import assert_consistent, contents
from tests.test_ingest import Silence, put, sections

FILES = 40
START_SECONDS = 180.0


def quiet_environment(**more: str) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **more}


class Nodes:
    """The process of `tests/ray_nodes.py`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_nodes"],
            env=quiet_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.address = self._line()

    def kill_one(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()
        assert self._line() == "killed"

    def end(self) -> None:
        started = psutil.Process(self.process.pid).children(recursive=True)
        self.process.communicate(timeout=60)
        _, alive = psutil.wait_procs(started, timeout=30)
        for left in alive:
            left.kill()
        assert not alive

    def _line(self) -> str:
        assert self.process.stdout is not None
        # Ray prints of its own accord now and then.
        for line in self.process.stdout:
            if line.strip() == "killed" or line.strip().replace(".", "").replace(":", "").isdigit():
                return line.strip()
        raise AssertionError("the cluster did not start")


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    started = Nodes()
    yield started
    started.end()


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    for number in range(FILES):
        names = [f"n{number} part {part}" for part in range(number % 3 + 1)]
        put(folder, f"{number % 7}/{number}.md", f"# Number {number}", *sections(*names))
    put(folder, "empty.md", "")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 and then nothing of the kind")
    return folder


Run = Callable[..., Awaitable[tuple[int, dict[str, Any]]]]


@pytest.fixture
def run(database_url: str, settings: Settings, embedder: Embedder) -> Run:
    """`python -m ingestion …` as a process; the fixture `embedder` has exported the model."""

    async def ran(*arguments: object) -> tuple[int, dict[str, Any]]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ingestion", *map(str, arguments), "--json"),
            env=quiet_environment(
                FOOTNOTE_HOME=str(settings.home), FOOTNOTE_DATABASE_URL=database_url
            ),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode in (0, 1), err.decode()
        assert b"Traceback" not in err, err.decode()
        return process.returncode, json.loads(out)

    return ran


@pytest.fixture
async def elsewhere(
    settings: Settings, server_url: Callable[[str], str]
) -> AsyncIterator[AsyncEngine]:
    """A second database, for the run that the cluster's is compared with."""
    with new_database(server_url) as url:
        opened = open_engine(settings, url)
        yield opened
        await opened.dispose()


async def assert_same(one: AsyncEngine, other: AsyncEngine) -> None:
    """All rows alike: documents, passages, hashes; vectors as near as two batches of one model."""
    mine, theirs = await contents(one), await contents(other)
    assert mine.keys() == theirs.keys()
    for uri, passages in mine.items():
        assert [passage[:-1] for passage in passages] == [each[:-1] for each in theirs[uri]]
        for passage, same in zip(passages, theirs[uri], strict=True):
            vectors = (json.loads(passage[-1]), json.loads(same[-1]))
            assert np.allclose(*vectors, atol=2e-3)
    assert await documents(one) == await documents(other)


async def documents(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    async with engine.connect() as connection:
        rows = await connection.execute(
            text(
                """
                SELECT d.uri, d.root, d.title, d.media_type, d.size_bytes, d.blob_sha256,
                  d.metadata::text, d.status, d.reason, d.pipeline_digest, v.number, v.text,
                  v.language, v.chunks_count, v.terms_count, v.terms::text
                FROM documents AS d LEFT JOIN document_versions AS v ON v.id = d.current_version_id
                ORDER BY d.uri
                """
            )
        )
        return [tuple(row) for row in rows]


async def count(engine: AsyncEngine, query: str) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text(query))).scalar_one())


async def test_the_same_rows_though_a_node_dies_in_the_middle(
    nodes: Nodes,
    docs: Path,
    run: Run,
    engine: AsyncEngine,
    elsewhere: AsyncEngine,
    settings: Settings,
    embedder: Embedder,
) -> None:
    running = asyncio.create_task(run(docs, "--ray", nodes.address))
    async with asyncio.timeout(START_SECONDS):
        while await count(engine, "SELECT count(*) FROM documents WHERE status = 'ready'") == 0:
            assert not running.done(), await running
            await asyncio.sleep(0.02)
    await asyncio.to_thread(nodes.kill_one)
    in_the_middle = await count(engine, "SELECT count(*) FROM documents WHERE status = 'ready'")
    code, told = await running
    assert in_the_middle < FILES
    async with open_tools(settings, elsewhere, embedder) as tools:
        alone = await sync(Order([docs], "default"), tools, Silence())
    assert code == 1
    assert {name: told[name] for name in alone.counts} == alone.counts
    assert told["chunks"] == alone.chunks
    assert told["failures"] == [
        {"path": failure.path, "reason": failure.reason} for failure in alone.failures
    ]
    await assert_consistent(engine)
    await assert_same(engine, elsewhere)

    # What is unchanged stays as it is, what was edited is done again, what is gone is deleted.
    put(docs, "0/0.md", "# Number 0", *sections("edited"))
    (docs / "1/1.md").unlink()
    code, told = await run("--ray", nodes.address, docs)
    assert (code, told["added"], told["updated"], told["deleted"]) == (1, 0, 1, 1)
    assert (told["unchanged"], told["failed"]) == (FILES - 2, 2)
    async with open_tools(settings, elsewhere, embedder) as tools:
        await sync(Order([docs], "default"), tools, Silence())
    await assert_consistent(engine)
    await assert_same(engine, elsewhere)


# --- without a cluster ----------------------------------------------------------------------------


@pytest.fixture
def order(docs: Path) -> Order:
    return Order([docs], "default")


@pytest.mark.parametrize(
    ("address", "words"),
    [("auto", "embedded database"), ("ray://127.0.0.1:10001", "client protocol")],
)
async def test_what_cannot_work_is_said_before_anything_starts(
    engine: AsyncEngine,
    settings: Settings,
    embedder: Embedder,
    order: Order,
    address: str,
    words: str,
) -> None:
    async with open_tools(settings, engine, embedder) as tools:
        with pytest.raises(InvalidInput, match=words):
            await cluster.sync_on_cluster(
                order, tools, Silence(), address=address, database_url="unused"
            )
    assert await count(engine, "SELECT count(*) FROM collections") == 0


async def test_without_the_extra_the_command_to_install_it_is_named(
    engine: AsyncEngine,
    settings: Settings,
    embedder: Embedder,
    order: Order,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    async with open_tools(settings, engine, embedder) as tools:
        with pytest.raises(InvalidInput) as refused:
            await cluster.sync_on_cluster(order, tools, Silence(), address=None, database_url="")
    assert "pip install 'footnote[ray]'" in refused.value.hint


async def test_a_node_s_own_words_come_through() -> None:
    class Wrapped(Exception):
        cause = Unavailable("The document parser does not start.")

    with pytest.raises(Unavailable, match="parser does not start"), translated():
        raise RuntimeError("a task failed") from Wrapped()
    with pytest.raises(Unavailable, match="gave up: the disk is full"), translated():
        raise RuntimeError("a task failed") from OSError("the disk is full")


translated = cluster._translated_errors  # pyright: ignore[reportPrivateUsage]


def test_blocks_are_bounded_in_documents_and_in_bytes() -> None:
    def due(number: int, size_bytes: int) -> Due:
        return Due(Item(f"test:{number}", "x.md", size_bytes=size_bytes), "/", None)

    small = [due(number, 10) for number in range(70)]
    blocks = list(cluster._blocks(small))  # pyright: ignore[reportPrivateUsage]
    assert [len(block) for block in blocks] == [32, 32, 6]
    assert [one for block in blocks for one in block] == small
    large = [due(number, cluster.BLOCK_BYTES // 2) for number in range(3)]
    blocks = list(cluster._blocks(large))  # pyright: ignore[reportPrivateUsage]
    assert [len(block) for block in blocks] == [1, 1, 1]


async def test_a_leaf_is_begun_when_enough_is_still_to_come(
    engine: AsyncEngine,
    settings: Settings,
    embedder: Embedder,
    order: Order,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half a sample is no sample; a small rest is not worth it; a leaf without index is enough."""
    monkeypatch.setattr(cluster, "SAMPLE_DOCUMENTS", 4)
    monkeypatch.setattr(cluster, "LEAF_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(vector_partitions, "INDEX_FROM_ROWS", 1)
    due = [Due(Item(f"test:{number}", "x.md", size_bytes=1000), "/", None) for number in range(8)]
    async with open_tools(settings, engine, embedder) as tools:
        await sync(order, tools, Silence())
        model_id = await tools.model_id()
        assignment = Assignment(settings, "", Shelf(1, 1, model_id), "", order.selection)

        async def leaves_after(documents: int, chunks_each: int) -> int:
            ahead = cluster._Ahead(due, assignment, tools, Silence())  # pyright: ignore[reportPrivateUsage]
            for one in due[:documents]:
                ahead._count(one, "written", chunks_each)  # pyright: ignore[reportPrivateUsage]
                await ahead._begin_leaf_if_it_pays()  # pyright: ignore[reportPrivateUsage]
            async with engine.connect() as connection:
                return len(await list_leaves(connection, model_id))

        assert await leaves_after(3, 10_000) == 1
        assert await leaves_after(4, 4_999) == 1
        assert await leaves_after(4, 5_000) == 2
        assert await leaves_after(8, 10_000) == 2


@pytest.mark.parametrize(
    ("arguments", "ray", "locations"),
    [
        (["a", "--ray"], "local", ["a"]),
        (["--ray", "a"], "local", ["a"]),
        (["--ray", "auto", "a"], "auto", ["a"]),
        (["a", "--ray", "10.0.0.1:6379", "--json"], "10.0.0.1:6379", ["a"]),
        (["a", "b"], None, ["a", "b"]),
    ],
)
def test_the_address_may_be_left_out(
    arguments: list[str], ray: str | None, locations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def ingest(_settings: Settings, order: Order, **options: Any) -> Report:
        asked.update(options, locations=order.locations)
        return Report()

    monkeypatch.setattr("ingestion.cli._ingest", ingest)
    monkeypatch.setattr("ingestion.cli.configure_logging", lambda _: None)
    monkeypatch.setattr("ingestion.sources.opening.check_location", lambda _: None)
    assert CliRunner().invoke(cli.app, ["ingest", *arguments]).exit_code == 0
    assert (asked["ray"], asked["locations"]) == (ray, locations)
