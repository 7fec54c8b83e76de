"""Syncing folders: what changes is done once, what does not is left alone."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.access import LOCAL_OWNER
from app.config import Settings
from app.db.session import open_sessions
from app.documents.library import Library
from app.embedding.known import ModelMissing
from app.errors import (
    DatabaseUnavailable,
    EmbeddingUnavailable,
    InvalidInput,
    StorageFull,
)
from app.jobs import Jobs
from ingestion.pipeline import Tools, open_tools
from ingestion.runner import Order, Report, sync
from ingestion.sources.base import Item
from ingestion.sources.selection import Selection
from tests.doubles.word_embedder import WordEmbedder, vector_of
from tests.index_state import assert_consistent, contents, generation


class Silence:
    def begin(self, items_count: int, bytes_count: int) -> None: ...

    def advance(self, item: Item) -> None: ...


@pytest.fixture
def embedder() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture
async def tools(
    settings: Settings, engine: AsyncEngine, embedder: WordEmbedder
) -> AsyncIterator[Tools]:
    async with open_tools(settings, engine, embedder) as opened:
        yield opened


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    return folder


def put(folder: Path, name: str, *paragraphs: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(paragraphs))
    return path


def sections(*names: str) -> list[str]:
    """Paragraphs that are long enough for a chunk each."""
    return [
        paragraph
        for name in names
        for paragraph in (f"## Section {name}", f"Of {name}: " + f"words about {name} " * 40)
    ]


async def run(tools: Tools, *paths: Path, **options: Any) -> Report:
    return await sync(Order(paths, "default", **options), tools, Silence())


def counts(report: Report) -> tuple[int, ...]:
    """Added, updated, unchanged, deleted, failed."""
    return tuple(report.counts.values())


async def test_a_folder_is_kept_in_step(
    docs: Path, tools: Tools, engine: AsyncEngine, embedder: WordEmbedder
) -> None:
    put(docs, "a.md", "# First", *sections("one", "two"))
    put(docs, "sub/b.md", "# Second", *sections("three"))
    assert counts(await run(tools, docs)) == (2, 0, 0, 0, 0)
    await assert_consistent(engine)
    first = await contents(engine)
    assert {uri.rsplit("/", 1)[1] for uri in first} == {"a.md", "b.md"}
    generation_before = await generation(engine)

    embedded_before = len(embedder.texts)
    assert counts(await run(tools, docs)) == (0, 0, 2, 0, 0)
    assert await contents(engine) == first
    assert await generation(engine) == generation_before
    assert len(embedder.texts) == embedded_before

    put(docs, "a.md", "# First", *sections("one", "two", "four"))
    (docs / "sub" / "b.md").unlink()
    put(docs, "c.md", "# Third", *sections("five"))
    assert counts(await run(tools, docs)) == (1, 1, 0, 1, 0)
    await assert_consistent(engine)
    second = await contents(engine)
    assert {uri.rsplit("/", 1)[1] for uri in second} == {"a.md", "c.md"}
    assert await generation(engine) > generation_before


async def test_an_edit_embeds_only_what_is_new(
    docs: Path, tools: Tools, engine: AsyncEngine, embedder: WordEmbedder
) -> None:
    put(docs, "a.md", "# First", *sections("one", "two", "three"))
    await run(tools, docs)
    before = set(embedder.texts)
    assert len(before) == len(embedder.texts) >= 3
    embedder.texts.clear()
    put(docs, "a.md", "# First", *sections("one", "new", "three"))
    await run(tools, docs)
    assert embedder.texts
    assert all("new" in text for text in embedder.texts)
    assert not before.intersection(embedder.texts)
    await assert_consistent(engine)
    async with engine.connect() as connection:
        rows = await connection.execute(text("SELECT number FROM document_versions"))
        assert rows.scalars().all() == [2]


async def test_a_renamed_file_costs_no_embedding(
    docs: Path, tools: Tools, engine: AsyncEngine, embedder: WordEmbedder
) -> None:
    path = put(docs, "a.md", "# First", *sections("one", "two"))
    await run(tools, docs)
    embedder.texts.clear()
    path.rename(docs / "b.md")
    assert counts(await run(tools, docs)) == (1, 0, 0, 1, 0)
    assert embedder.texts == []
    await assert_consistent(engine)


async def test_a_touched_file_is_unchanged(
    docs: Path, tools: Tools, embedder: WordEmbedder
) -> None:
    path = put(docs, "a.md", "# First", *sections("one"))
    await run(tools, docs)
    embedder.texts.clear()
    path.write_bytes(path.read_bytes())
    assert counts(await run(tools, docs)) == (0, 0, 1, 0, 0)
    assert embedder.texts == []


async def test_an_edit_that_hides_its_time_is_found(docs: Path, tools: Tools) -> None:
    path = put(docs, "a.md", "# First", *sections("one"))
    status = path.stat()
    await run(tools, docs)
    path.write_text(path.read_text().replace("one", "two"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert counts(await run(tools, docs)) == (0, 1, 0, 0, 0)


async def test_a_file_that_fails_keeps_its_last_version(
    docs: Path, tools: Tools, engine: AsyncEngine
) -> None:
    good = put(docs, "good.md", "# Good", *sections("one"))
    put(docs, "empty.md", "")
    report = await run(tools, docs)
    assert counts(report) == (1, 0, 0, 0, 1)
    [failure] = report.failures
    assert failure.path == str(docs / "empty.md")
    assert "empty" in failure.reason
    serving = await contents(engine)

    text_before = good.read_text()
    good.write_text("")
    report = await run(tools, docs)
    assert counts(report) == (0, 0, 0, 0, 2)
    assert await contents(engine) == serving
    await assert_consistent(engine)
    async with engine.connect() as connection:
        rows = await connection.execute(text("SELECT status, reason FROM documents"))
        assert all(row.status == "failed" and "empty" in row.reason for row in rows)

    good.write_text(text_before)
    assert counts(await run(tools, docs)) == (0, 1, 0, 0, 1)
    assert await contents(engine) == serving
    await assert_consistent(engine)
    (docs / "empty.md").unlink()
    assert counts(await run(tools, docs)) == (0, 0, 1, 1, 0)


async def test_a_failed_file_is_not_parsed_again_unless_asked(
    docs: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(docs, "empty.md", "")
    monkeypatch.setattr("ingestion.sources.files.FRESH_NS", -1)
    parsed: list[str] = []
    parse = tools.parsers.parse

    async def spy(content: bytes, filename: str) -> Any:
        parsed.append(filename)
        return await parse(content, filename)

    monkeypatch.setattr(tools.parsers, "parse", spy)
    first = await run(tools, docs)
    assert (await run(tools, docs)).failures == first.failures
    assert parsed == ["empty.md"]
    assert counts(await run(tools, docs, retry_failed=True)) == (0, 0, 0, 0, 1)
    assert parsed == ["empty.md"] * 2


async def test_another_pipeline_does_everything_again(
    docs: Path, tools: Tools, engine: AsyncEngine, settings: Settings, embedder: WordEmbedder
) -> None:
    put(docs, "a.md", "# First", *sections("one", "two"))
    await run(tools, docs)
    other = settings.model_copy(update={"chunk_tokens": 60})
    async with open_tools(other, engine, embedder) as smaller:
        assert counts(await run(smaller, docs)) == (0, 1, 0, 0, 0)
        assert counts(await run(smaller, docs)) == (0, 0, 1, 0, 0)
    await assert_consistent(engine)


async def test_a_model_that_is_away_is_told(
    docs: Path, tools: Tools, engine: AsyncEngine, settings: Settings
) -> None:
    put(docs, "a.md", "# First", *sections("one"))
    await run(tools, docs)
    async with open_tools(settings, engine, WordEmbedder("words-2")) as other:
        with pytest.raises(ModelMissing, match="words"):
            await run(other, docs)


async def test_vectors_and_hashes_are_those_of_the_text(
    docs: Path, tools: Tools, engine: AsyncEngine, embedder: WordEmbedder
) -> None:
    put(docs, "a.md", "# First", *sections("one", "two"))
    put(docs, "b.md", "# First", *sections("one", "two"))
    await run(tools, docs)
    # The same passages under the same title are embedded once.
    assert len(set(embedder.texts)) == len(embedder.texts)
    async with engine.connect() as connection:
        rows = await connection.execute(
            text(
                """
                SELECT c.content_hash, e.vector::text FROM chunks AS c
                JOIN embeddings AS e ON e.chunk_id = c.id
                """
            )
        )
        expected = {hashlib.sha256(one.encode()).digest(): vector_of(one) for one in embedder.texts}
        for content_hash, vector in rows:
            assert np.allclose(json.loads(vector), expected[content_hash], atol=1e-3)


async def test_only_files_of_ingested_folders_are_deleted(
    docs: Path, tmp_path: Path, tools: Tools, engine: AsyncEngine, settings: Settings
) -> None:
    inside = put(docs, "sub/a.md", "# A", *sections("one"))
    sibling = put(tmp_path / "docs-2", "b.md", "# B", *sections("two"))
    alone = put(tmp_path, "alone.md", "# C", *sections("three"))
    await run(tools, docs, sibling.parent, alone)
    for path in (inside, sibling, alone):
        path.unlink()
    assert counts(await run(tools, docs)) == (0, 0, 0, 1, 0)
    assert {uri.rsplit("/", 1)[1] for uri in await contents(engine)} == {"b.md", "alone.md"}
    await assert_consistent(engine)


async def test_a_file_named_first_and_its_folder_later_belongs_to_the_folder(
    docs: Path, tools: Tools
) -> None:
    path = put(docs, "a.md", "# A", *sections("one"))
    assert counts(await run(tools, path)) == (1, 0, 0, 0, 0)
    assert counts(await run(tools, docs)) == (0, 0, 1, 0, 0)
    path.unlink()
    assert counts(await run(tools, docs)) == (0, 0, 0, 1, 0)


async def test_a_part_of_a_folder_can_be_brought_in_step_alone(docs: Path, tools: Tools) -> None:
    path = put(docs, "sub/a.md", "# A", *sections("one"))
    put(docs, "b.md", "# B", *sections("two"))
    await run(tools, docs)
    path.unlink()
    assert counts(await run(tools, docs / "sub")) == (0, 0, 0, 1, 0)
    assert counts(await run(tools, docs)) == (0, 0, 1, 0, 0)


async def test_patterns_limit_a_run_and_ignore_files_the_collection(
    docs: Path, tools: Tools
) -> None:
    put(docs, "a.md", "# A", *sections("one"))
    put(docs, "b.txt", *sections("two"))
    await run(tools, docs)
    assert counts(await run(tools, docs, selection=Selection(include=["*.md"]))) == (0, 0, 1, 0, 0)
    (docs / ".footnoteignore").write_text("*.txt")
    assert counts(await run(tools, docs)) == (0, 0, 1, 1, 0)


async def test_a_missing_folder_deletes_nothing(
    docs: Path, tools: Tools, engine: AsyncEngine
) -> None:
    put(docs, "a.md", "# A", *sections("one"))
    await run(tools, docs)
    docs.rename(docs.with_name("moved"))
    with pytest.raises(InvalidInput, match="no such path"):
        await run(tools, docs)
    assert len(await contents(engine)) == 1


async def test_files_that_cannot_be_read_fail_and_stay(
    docs: Path, tools: Tools, settings: Settings, engine: AsyncEngine, embedder: WordEmbedder
) -> None:
    link = docs / "link.md"
    target = put(docs.parent, "target.md", "# T", *sections("one"))
    link.symlink_to(target)
    put(docs, "large.md", "# L", *sections("two", "three", "four", "five"))
    small = settings.model_copy(update={"max_upload_bytes": 1500})
    async with open_tools(small, engine, embedder) as limited:
        report = await run(limited, docs)
        assert counts(report) == (1, 0, 0, 0, 1)
        assert "FOOTNOTE_MAX_UPLOAD_BYTES" in report.failures[0].reason
        target.unlink()
        report = await run(limited, docs)
        assert counts(report) == (0, 0, 0, 0, 2)
        assert len(await contents(engine)) == 1
    assert counts(await run(tools, docs)) == (1, 0, 0, 0, 1)
    await assert_consistent(engine)


async def test_a_rehearsal_changes_nothing(docs: Path, tools: Tools, engine: AsyncEngine) -> None:
    put(docs, "a.md", "# A", *sections("one"))
    gone = put(docs, "b.md", "# B", *sections("two"))
    assert counts(await run(tools, docs, is_rehearsal=True)) == (2, 0, 0, 0, 0)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT FROM collections"))).all() == []
    await run(tools, docs)
    before = await contents(engine), await generation(engine)
    put(docs, "a.md", "# A", *sections("one", "three"))
    put(docs, "c.md", "# C", *sections("four"))
    gone.unlink()
    report = await run(tools, docs, is_rehearsal=True)
    assert counts(report) == (1, 1, 0, 1, 0)
    assert (report.chunks, report.embedded) == (0, 0)
    assert (await contents(engine), await generation(engine)) == before


async def test_two_runs_at_once_double_nothing(
    docs: Path, settings: Settings, engine: AsyncEngine
) -> None:
    for number in range(30):
        put(docs, f"{number}.md", f"# Number {number}", *sections(f"n{number}"))

    @asynccontextmanager
    async def opened() -> AsyncIterator[Tools]:
        async with open_tools(settings, engine, WordEmbedder()) as tools:
            yield tools

    async with opened() as one, opened() as two:
        reports = await asyncio.gather(run(one, docs), run(two, docs))
    assert not any(report.failures for report in reports)
    assert sum(report.counts["added"] for report in reports) == 30
    assert len(await contents(engine)) == 30
    await assert_consistent(engine)


async def test_odd_names_and_odd_texts(docs: Path, tools: Tools, engine: AsyncEngine) -> None:
    (docs / os.fsdecode(b"\xff\xfe.md")).write_text("# Odd\n\nA name that is no text.")
    put(docs, "nul.md", "# Nul\n\nA \0 byte, and \u200b a zero-width space.")
    put(docs, "long word.md", "# Word\n\n" + "x" * 200_000)
    report = await run(tools, docs)
    assert counts(report) == (3, 0, 0, 0, 0)
    await assert_consistent(engine)
    assert counts(await run(tools, docs)) == (0, 0, 3, 0, 0)


async def test_an_internal_error_fails_its_document_alone_and_is_tried_again(
    docs: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(docs, "a.md", "# A", *sections("one"))
    put(docs, "b.md", "# B", *sections("two"))
    parse = tools.parsers.parse

    async def stumble(content: bytes, filename: str) -> Any:
        if filename == "a.md":
            raise ZeroDivisionError
        return await parse(content, filename)

    with monkeypatch.context() as patched:
        patched.setattr(tools.parsers, "parse", stumble)
        report = await run(tools, docs)
    assert counts(report) == (1, 0, 0, 0, 1)
    assert "ZeroDivisionError" in report.failures[0].reason
    assert counts(await run(tools, docs)) == (1, 0, 1, 0, 0)


async def test_a_model_that_fails_ends_the_run_and_loses_nothing(
    docs: Path, tools: Tools, engine: AsyncEngine, embedder: WordEmbedder
) -> None:
    for number in range(5):
        put(docs, f"{number}.md", f"# Number {number}", *sections(f"n{number}"))
    embedder.failure = EmbeddingUnavailable("it gave NaN")
    with pytest.raises(EmbeddingUnavailable):
        await run(tools, docs)
    assert await contents(engine) == {}
    await assert_consistent(engine)
    embedder.failure = None
    assert counts(await run(tools, docs)) == (5, 0, 0, 0, 0)


async def test_a_bad_collection_name_is_refused(docs: Path, tools: Tools) -> None:
    with pytest.raises(InvalidInput):
        await sync(Order([docs], "Not a name"), tools, Silence())


async def test_the_library_sees_what_was_ingested(
    docs: Path,
    tools: Tools,
    engine: AsyncEngine,
    settings: Settings,
    embedder: WordEmbedder,
    database_url: str,
) -> None:
    path = put(docs, "a.md", "# First", *sections("one", "two"))
    await run(tools, docs)
    library = Library(open_sessions(engine), Jobs(database_url), settings, embedder)
    [document] = (await library.list(LOCAL_OWNER, collection="default")).documents
    assert (document.title, document.status, document.version) == ("First", "ready", 1)
    assert document.uri == path.as_uri()
    assert document.chunks == len(next(iter((await contents(engine)).values())))
    assert (await library.content(LOCAL_OWNER, document.id)).content == path.read_bytes()
    removed = await library.delete(LOCAL_OWNER, document.id)
    assert (removed.chunks, removed.vectors) == (document.chunks, document.chunks)
    assert removed.bytes == path.stat().st_size
    await assert_consistent(engine)
    assert await contents(engine) == {}
    # The file is still there, so the next run brings the document back.
    assert counts(await run(tools, docs)) == (1, 0, 0, 0, 0)


class FlakyEngine:
    """Loses the connection now and then: before COMMIT, or right after it, where nobody knows."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.begun = 0

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        self.begun += 1
        number = self.begun
        async with self._engine.begin() as connection:
            yield connection
            if number % 5 == 0:
                raise psycopg.OperationalError("lost before COMMIT")
        if number % 3 == 0:
            raise psycopg.OperationalError("lost after COMMIT")


async def test_connections_lost_at_commit_double_nothing(
    docs: Path, tools: Tools, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = FlakyEngine(engine)
    monkeypatch.setattr("app.db.transactions.FIRST_PAUSE_SECONDS", 0.001)
    for number in range(12):
        put(docs, f"{number}.md", f"# Number {number}", *sections(f"n{number}"))
    put(docs, "empty.md", "")
    with monkeypatch.context() as patched:
        patched.setattr(tools, "engine", flaky)
        patched.setattr("ingestion.books._Collection.tidy", lambda _: asyncio.sleep(0))
        report = await run(tools, docs)
        assert report.counts["failed"] == 1
        assert len(await contents(engine)) == 12
        for number in range(6):
            (docs / f"{number}.md").unlink()
        put(docs, "7.md", "# Number 7", *sections("edited"))
        await run(tools, docs)
    assert flaky.begun > 60
    await assert_consistent(engine)
    assert len(await contents(engine)) == 6
    assert counts(await run(tools, docs)) == (0, 0, 6, 0, 1)


async def test_a_database_that_stays_away_ends_the_run(
    docs: Path, tools: Tools, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(docs, "a.md", "# A", *sections("one"))
    monkeypatch.setattr("ingestion.pipeline.DATABASE_PATIENCE_SECONDS", 0.2)

    class Away:
        def begin(self) -> None:
            raise psycopg.OperationalError("connection refused by db.internal")

    with monkeypatch.context() as patched:
        patched.setattr(tools, "engine", Away())
        with pytest.raises(DatabaseUnavailable) as raised:
            await run(tools, docs)
    assert "db.internal" not in raised.value.detail
    assert counts(await run(tools, docs)) == (1, 0, 0, 0, 0)


async def test_a_full_disk_ends_the_run_and_leaves_no_part(
    docs: Path, tools: Tools, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(docs, "a.md", "# A", *sections("one"))

    async def full(*_: object) -> None:
        raise psycopg.errors.DiskFull("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("ingestion.writing.add_postings", full)
        with pytest.raises(StorageFull):
            await run(tools, docs)
    assert await contents(engine) == {}
    await assert_consistent(engine)
    assert counts(await run(tools, docs)) == (1, 0, 0, 0, 0)
