"""The command itself: what it prints, how it ends, and what is left when it is killed."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from typer.testing import CliRunner, Result

from app.access import LOCAL_OWNER
from app.config import Settings
from app.db.session import open_sessions
from app.documents.library import Library
from app.documents.records import Upload
from app.embedding.base import Embedder
from app.errors import EmbeddingUnavailable, FootnoteError
from app.home import prepare_home
from app.jobs import Jobs
from ingestion import cli
from ingestion.pipeline import open_tools
from ingestion.runner import Order, sync
from tests.doubles.word_embedder import WordEmbedder
from tests.index_state import assert_consistent, contents
from tests.test_ingest import Silence, put, sections

Command = Callable[..., Result]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    put(folder, "a.md", "# First", *sections("one"))
    put(folder, "b.md", "# Second", *sections("two"))
    return folder


@pytest.fixture
def command(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`footnote …` in this process, with a quick model; the result has its output and exit code."""
    monkeypatch.setenv("FOOTNOTE_DATABASE_URL", database_url)
    monkeypatch.setattr("app.embedding.lazy.open_embedder", lambda _: WordEmbedder())
    monkeypatch.setattr("ingestion.cli.configure_logging", lambda _: None)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli.app, list(map(str, arguments)))

    return run


def last_line(result: Result) -> str:
    return result.stdout.strip().splitlines()[-1]


def test_counts_and_exit_codes(command: Command, docs: Path) -> None:
    result = command("ingest", docs)
    assert (result.exit_code, last_line(result)) == (
        0,
        "added 2, updated 0, unchanged 0, deleted 0, failed 0, chunks 2, embedded 2",
    )
    put(docs, "c.md", "")
    (docs / "b.md").unlink()
    put(docs, "a.md", "# First", *sections("one", "more"))
    result = command("ingest", docs)
    assert (result.exit_code, last_line(result)) == (
        1,
        "added 0, updated 1, unchanged 0, deleted 1, failed 1, chunks 2, embedded 1",
    )
    assert f"failed: {docs / 'c.md'}: " in result.stderr
    assert "empty" in result.stderr


def test_json_is_one_object(command: Command, docs: Path) -> None:
    put(docs, "c.md", "")
    result = command("ingest", docs, "--json", "--collection", "handbook")
    assert result.exit_code == 1
    [line] = result.stdout.splitlines()
    told = json.loads(line)
    assert told.pop("took_ms") > 0
    [failure] = told.pop("failures")
    assert failure["path"] == str(docs / "c.md")
    assert failure["reason"]
    assert told == {
        "collection": "handbook",
        "dry_run": False,
        "added": 2,
        "updated": 0,
        "unchanged": 0,
        "deleted": 0,
        "failed": 1,
        "chunks": 2,
        "embedded": 2,
    }


def test_a_dry_run_changes_nothing(command: Command, docs: Path) -> None:
    for _ in range(2):
        result = command("ingest", docs, "--dry-run")
        assert result.exit_code == 0
        assert "added 2, updated 0, unchanged 0, deleted 0, failed 0" in result.stdout
        assert "nothing was changed" in result.stderr
        assert "Estimated from 2 of 2 documents" in result.stdout
        assert result.stdout.count(" to ") >= 4
    told = json.loads(command("ingest", docs, "--dry-run", "--json").stdout)
    assert (told["dry_run"], told["added"], told["chunks"]) == (True, 2, 0)
    assert told["estimate"]["documents"] == 2
    assert told["estimate"]["chunks"] == {"low": 2, "likely": 2, "high": 2}
    assert set(told["estimate"]) >= {"embedded", "seconds", "storage_bytes"}


def test_patterns(command: Command, docs: Path) -> None:
    put(docs, "c.txt", *sections("three"))
    result = command("ingest", docs, "--include", "*.md", "--exclude", "b.md")
    assert last_line(result).startswith("added 1,")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ingest", "/no/such/path"], "no such path"),
        (["ingest", ""], "location is empty"),
        (["ingest", ".", "--collection", "Not a name"], "collection's name"),
        (["ingest", ".", "--exclude", "!"], "Invalid git pattern"),
        (["ingest", ".", "--watch", "--dry-run"], "exclude each other"),
        (["ingest", ".", "--every", "5"], "--watch"),
        (["ingest", "ftp://example.com/docs"], "cannot ingest from ftp:"),
    ],
)
def test_wrong_use_is_said(command: Command, arguments: list[str], words: str) -> None:
    result = command(*arguments)
    assert isinstance(result.exception, FootnoteError)
    assert words in str(result.exception)


def test_without_a_location_the_usage_is_said(command: Command) -> None:
    result = command("ingest")
    assert result.exit_code == 2
    assert "Missing argument" in result.output


def test_a_home_within_a_folder_is_nobodys_document(command: Command, docs: Path) -> None:
    home = prepare_home(docs / "footnote")
    put(home, "postgres/base/1.txt", "A page of a table.")
    put(home, "postgres.log", "ready")
    put(home, "notes.md", *sections("three"))
    assert last_line(command("ingest", docs)).startswith("added 3,")


def test_what_is_away_is_said(
    command: Command, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Settings) -> Embedder:
        raise EmbeddingUnavailable("There is no such model.")

    monkeypatch.setattr("app.embedding.lazy.open_embedder", refuse)
    assert "no such model" in str(command("ingest", docs).exception)
    monkeypatch.setenv("FOOTNOTE_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    assert "cannot be reached" in str(command("ingest", docs).exception)


async def test_watching_follows_changes_and_survives_trouble(
    docs: Path,
    database_url: str,
    engine: AsyncEngine,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    embedder = WordEmbedder()
    monkeypatch.setattr("app.embedding.lazy.open_embedder", lambda _: embedder)
    monkeypatch.setattr("ingestion.following.WATCH_TICK_MS", 100)
    monkeypatch.setattr("ingestion.following.PAUSE_SECONDS", 0.1)
    order = Order([docs], "default")
    watching = asyncio.create_task(
        cli._ingest_into(settings, database_url, order, watch_seconds=60, as_json=True)
    )

    async def until(count: int) -> None:
        async with asyncio.timeout(30):
            while len(await contents(engine)) != count:
                assert not watching.done()
                await asyncio.sleep(0.05)

    await until(2)
    put(docs, "c.md", "# Third", *sections("three"))
    await until(3)
    embedder.failure = EmbeddingUnavailable("The model is away.")
    put(docs, "d.md", "# Fourth", *sections("four"))
    while "The model is away." not in (told := capsys.readouterr().err):
        assert not told
        await asyncio.sleep(0.05)
    embedder.failure = None
    await until(4)
    (docs / "a.md").unlink()
    await until(3)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await assert_consistent(engine)


# --- as a process ---------------------------------------------------------------------------------


@pytest.fixture
def started(
    settings: Settings, database_url: str, embedder: Embedder, tmp_path: Path
) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts `python -m …`; the fixture `embedder` has exported the model by then."""
    environment = {
        **os.environ,
        "FOOTNOTE_HOME": str(settings.home),
        "FOOTNOTE_DATABASE_URL": database_url,
    }

    def start(*arguments: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


async def rows(engine: AsyncEngine, query: str) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text(query))).scalar_one())


async def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = await asyncio.to_thread(process.communicate, timeout=120)
    return process.returncode, out, err


async def test_killed_at_any_moment_the_next_run_completes_it(
    tmp_path: Path,
    engine: AsyncEngine,
    started: Callable[..., "subprocess.Popen[str]"],
    settings: Settings,
    embedder: Embedder,
    server_url: Callable[[str], str],
) -> None:
    docs = tmp_path / "docs"
    for number in range(40):
        names = [f"n{number} part {part}" for part in range(3)]
        put(docs, f"{number % 7}/{number}.md", f"# Number {number}", *sections(*names))
    seed = random.randrange(10**6)
    sys.stderr.write(f"seed {seed}\n")
    moments = random.Random(seed)
    for goal in (1, 12, 25):
        process = started("ingestion", docs)
        async with asyncio.timeout(120):
            while await rows(engine, "SELECT count(*) FROM documents") < goal:
                assert process.poll() is None, process.communicate()
                await asyncio.sleep(0.01)
        await asyncio.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        await ended(process)
        await assert_consistent(engine)
        # An edit between the runs must count as well.
        put(docs, "0/0.md", "# Number 0", *sections(f"edited at {goal}"))
    code, out, err = await ended(started("ingestion", docs, "--json"))
    assert code == 0, err
    told = json.loads(out)
    assert told["added"] + told["updated"] + told["unchanged"] == 40
    await assert_consistent(engine)
    resumed = await contents(engine)

    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM chunks"))
        await connection.execute(text("DELETE FROM documents"))
        await connection.execute(text("DELETE FROM postings"))
        await connection.execute(
            text("UPDATE collections SET documents_count = 0, chunks_count = 0, terms_count = 0")
        )
    async with open_tools(settings, engine, embedder) as tools:
        await sync(Order([docs], "default"), tools, Silence())
    clean = await contents(engine)
    assert resumed.keys() == clean.keys()
    for uri, passages in clean.items():
        assert [passage[:-1] for passage in passages] == [one[:-1] for one in resumed[uri]]
        for passage, other in zip(passages, resumed[uri], strict=True):
            assert np.allclose(json.loads(passage[-1]), json.loads(other[-1]), atol=2e-3)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupt_says_that_nothing_is_lost(
    docs: Path,
    engine: AsyncEngine,
    started: Callable[..., "subprocess.Popen[str]"],
    sent: signal.Signals,
) -> None:
    process = started("ingestion", docs, "--watch")
    async with asyncio.timeout(120):
        while await rows(engine, "SELECT count(*) FROM documents WHERE status = 'ready'") < 2:
            assert process.poll() is None, process.communicate()
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    process.send_signal(sent)
    code, _, err = await ended(process)
    assert code == 130
    assert "Stopped" in err
    assert "Traceback" not in err


async def test_a_worker_process_drains_on_sigterm_and_is_replaced_after_sigkill(
    engine: AsyncEngine,
    database_url: str,
    started: Callable[..., "subprocess.Popen[str]"],
    settings: Settings,
    embedder: Embedder,
) -> None:

    jobs = Jobs(database_url)
    await jobs.open()
    library = Library(open_sessions(engine), jobs, settings, embedder)

    async def send(name: str, parts: int) -> Any:
        content = "\n\n".join(["# Title", *sections(*(f"{name} {part}" for part in range(parts)))])
        return await library.register_upload(LOCAL_OWNER, Upload(name, content.encode()))

    async def until(query: str) -> None:
        async with asyncio.timeout(120):
            while await rows(engine, query) == 0:
                await asyncio.sleep(0.01)

    killed = started("app.cli", "worker")
    await send("small.md", 1)
    await until("SELECT count(*) FROM documents WHERE status = 'ready'")
    large = await send("large.md", 100)
    await until("SELECT count(*) FROM documents WHERE status = 'processing'")
    killed.send_signal(signal.SIGKILL)
    await ended(killed)
    assert (await library.get(LOCAL_OWNER, large.document_id)).status == "processing"
    # As if the dead worker's last sign of life were long ago.
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 minute'")
        )
    drained = started("app.cli", "worker")
    await until("SELECT count(*) FROM documents WHERE uri LIKE '%large.md' AND status = 'ready'")
    drained.send_signal(signal.SIGTERM)
    code, _, err = await ended(drained)
    assert code == 0, err
    assert "Traceback" not in err
    await assert_consistent(engine)
    assert await rows(engine, "SELECT count(*) FROM procrastinate_workers") <= 1
    await jobs.close()
