"""What the stages of a cluster do with a block, without a cluster."""

import hashlib
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from ingestion.books import open_books
from ingestion.cluster_stages import Assignment, Made, Prepared, write_block
from ingestion.pipeline import Original, Tools, chunk, embed, open_tools, parse
from ingestion.sources.selection import Selection
from ingestion.writing import SourceFile
from tests.doubles.word_embedder import WordEmbedder
from tests.index_state import assert_consistent, contents
from tests.test_ingest import sections


@pytest.fixture
async def tools(settings: Settings, engine: AsyncEngine) -> AsyncIterator[Tools]:
    async with open_tools(settings, engine, WordEmbedder()) as opened:
        yield opened


@pytest.fixture
async def assignment(tools: Tools, settings: Settings) -> Assignment:
    books = await open_books("default", tools, is_rehearsal=False)
    assert books.shelf is not None
    return Assignment(settings, "", books.shelf, books.pipeline_digest, Selection())


async def made(name: str, words: str, assignment: Assignment, tools: Tools) -> Made:
    """A document of two passages, as the stages before writing leave it."""
    content = "\n\n".join(sections(f"{words} one", f"{words} two")).encode()
    sha256 = hashlib.sha256(content).digest()
    original = Original(name, sha256, content)
    parsed = await parse(original, tools)
    passages = await chunk(parsed, assignment.shelf, tools)
    vectors = await embed(passages, assignment.shelf, tools)
    file = SourceFile(
        name, f"file:///{name}", "file:///", len(content), 1, content=content, sha256=sha256
    )
    return Made("written", Prepared(file, original, parsed), passages, vectors)


async def transactions(engine: AsyncEngine) -> int:
    """How many of them made the versions that there are."""
    async with engine.connect() as connection:
        found = await connection.execute(
            text("SELECT count(DISTINCT xmin::text) FROM document_versions")
        )
        return int(found.scalar_one())


async def test_a_block_is_one_transaction_and_the_second_time_nothing(
    tools: Tools, assignment: Assignment, engine: AsyncEngine
) -> None:
    block = [await made(f"{name}.md", name, assignment, tools) for name in ("c", "a", "b")]
    failed = Made("failed", None, None, None)
    written = await write_block([*block, failed], assignment, tools)
    chunks = [len(one.passages.chunks) for one in block if one.passages]
    assert written == [*(("written", count) for count in chunks), ("failed", 0)]
    assert await transactions(engine) == 1
    await assert_consistent(engine)
    before = await contents(engine)
    assert len(before) == 3
    await write_block([*block, failed], assignment, tools)
    assert await contents(engine) == before
    assert await transactions(engine) == 1


async def test_what_others_changed_meanwhile_is_left_and_the_rest_is_written(
    tools: Tools, assignment: Assignment, engine: AsyncEngine
) -> None:
    await write_block([await made("b.md", "later", assignment, tools)], assignment, tools)
    block = [await made(f"{name}.md", name, assignment, tools) for name in ("a", "b", "c")]
    written = await write_block(block, assignment, tools)
    assert [outcome for outcome, _ in written] == ["written", "left", "written"]
    assert written[1] == ("left", 0)
    found = await contents(engine)
    assert set(found) == {"file:///a.md", "file:///b.md", "file:///c.md"}
    assert "later" in str(found["file:///b.md"])
    await assert_consistent(engine)


async def test_a_block_with_nothing_to_write_asks_nobody(
    tools: Tools, assignment: Assignment, engine: AsyncEngine
) -> None:
    left = Made("left", None, None, None)
    assert await write_block([left], assignment, tools) == [("left", 0)]
    assert await contents(engine) == {}
