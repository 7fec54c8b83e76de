"""What a dry run foretells, against what the run then does."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from ingestion import estimate as estimating
from ingestion.estimate import Candidate, Range
from ingestion.pipeline import Tools, open_tools
from ingestion.sources.base import Item
from ingestion.sources.files import open_folder
from ingestion.sources.selection import Selection
from tests.doubles.word_embedder import WordEmbedder
from tests.test_ingest import put, run, sections


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
    """Sixty documents of one to nine passages, each with one that all of them share."""
    rng = random.Random(0)
    for number in range(60):
        own = [f"n{number} part {part}" for part in range(rng.randint(0, 8))]
        put(tmp_path / "docs", f"{number}.md", "# Same title", *sections("shared", *own))
    return tmp_path / "docs"


def holds(figures: Range, truth: float) -> bool:
    return figures.low <= truth <= figures.high


async def test_an_estimate_holds_what_the_run_then_does(
    docs: Path, tools: Tools, embedder: WordEmbedder, engine: AsyncEngine, settings: Settings
) -> None:
    rehearsed = await run(tools, docs, is_rehearsal=True)
    foretold = rehearsed.estimate
    assert foretold is not None
    assert (foretold.documents, foretold.sampled_documents) == (60, 40)
    assert len(embedder.texts) <= estimating.SAMPLED_PASSAGES + 1
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT FROM collections"))).all() == []
        assert (await connection.execute(text("SELECT FROM blobs"))).all() == []
    # Opened anew: what was embedded last is remembered for as long as it is open.
    async with open_tools(settings, engine, embedder) as fresh:
        report = await run(fresh, docs)
    assert holds(foretold.chunks, report.chunks)
    # The shared passage is embedded once; a sample knows that it repeats, not how often.
    assert foretold.embedded.likely < foretold.chunks.likely
    assert 0.8 < foretold.embedded.likely / report.embedded < 1.25
    assert foretold.seconds.high < 60
    assert (await run(tools, docs, is_rehearsal=True)).estimate is None


async def test_what_the_collection_knows_is_not_embedded_again(docs: Path, tools: Tools) -> None:
    await run(tools, docs)
    for path in docs.iterdir():
        path.write_text(path.read_text() + "\n\n" + sections(f"new {path.name}")[1])
    foretold = (await run(tools, docs, is_rehearsal=True)).estimate
    assert foretold is not None
    assert foretold.documents == 60
    assert foretold.embedded.high < foretold.chunks.likely / 2
    assert foretold.embedded.low > 0


async def test_storage_is_foretold_within_a_factor_of_two(
    docs: Path, tools: Tools, engine: AsyncEngine
) -> None:
    async def database_bytes() -> int:
        async with engine.connect() as connection:
            found = await connection.execute(text("SELECT pg_database_size(current_database())"))
            return int(found.scalar_one())

    foretold = (await run(tools, docs, is_rehearsal=True)).estimate
    assert foretold is not None
    before = await database_bytes()
    await run(tools, docs)
    grown = await database_bytes() - before
    assert foretold.storage_bytes.likely / 2 < grown < foretold.storage_bytes.likely * 2


async def test_what_cannot_be_read_costs_no_estimate(
    docs: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_folder(str(docs), Selection())
    gone = Candidate(Item((docs / "gone.md").as_uri(), "gone.md"), source)
    failed: list[tuple[str, str]] = []

    def fail(found: Candidate, reason: str) -> None:
        failed.append((found.item.name, reason))

    assert await estimating.estimate([], tools, None, fail) is None
    assert await estimating.estimate([gone], tools, None, fail) is None
    empty = put(docs, "empty.md", "")
    failing = Candidate(Item(empty.as_uri(), "empty.md", size_bytes=0), source)
    foretold = await estimating.estimate([failing, gone], tools, None, fail)
    assert ("empty.md", "the file is empty") in failed
    assert foretold is not None
    assert (foretold.sampled_documents, foretold.chunks) == (1, Range(0, 0, 0))
    assert foretold.storage_bytes.likely > 0
    monkeypatch.setattr(estimating, "SAMPLING_SECONDS", 0.0)
    items = (await source.changes({})).items
    everything = [Candidate(item, source) for item in items]
    hurried = await estimating.estimate(everything, tools, None, fail)
    assert hurried is None or hurried.sampled_documents == 1


async def test_what_the_sample_cannot_read_is_told_as_failed(tmp_path: Path, tools: Tools) -> None:
    docs = tmp_path / "docs"
    for name in ("kept.md", "spoiled.md"):
        put(docs, name, *sections(name))
    await run(tools, docs)
    spoiled, empty = put(docs, "spoiled.md", ""), put(docs, "empty.md", "")
    put(docs, "new.md", *sections("new"))
    rehearsed = await run(tools, docs, is_rehearsal=True)
    told = {failure.path: failure.reason for failure in rehearsed.failures}
    assert told == dict.fromkeys(map(str, (empty, spoiled)), "the file is empty")
    carried_out = await run(tools, docs)
    assert rehearsed.counts == carried_out.counts
    assert (carried_out.counts["added"], carried_out.counts["failed"]) == (1, 2)


async def test_the_same_documents_give_the_same_sample(docs: Path) -> None:
    source = open_folder(str(docs), Selection())
    items = (await source.changes({})).items
    candidates = [Candidate(item, source) for item in items]
    shuffled = random.Random(1).sample(candidates, len(candidates))
    chosen = estimating._chosen(candidates, random.Random(7))
    assert chosen == estimating._chosen(shuffled, random.Random(7))
    assert len(set(chosen)) == estimating.SAMPLED_DOCUMENTS
