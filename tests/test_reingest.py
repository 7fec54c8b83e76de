"""An edit of one paragraph in a long document, counted in passages that are embedded again."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from ingestion.pipeline import Tools, open_tools
from tests.doubles.word_embedder import WordEmbedder
from tests.index_state import assert_consistent
from tests.test_ingest import run

PAGES = 500
WORDS_PER_PAGE = 250
AT_MOST = 3


@pytest.fixture
async def tools(settings: Settings, engine: AsyncEngine) -> AsyncIterator[Tools]:
    async with open_tools(settings, engine, WordEmbedder()) as opened:
        yield opened


def manuscript() -> list[str]:
    """Paragraphs of 20 to 120 words, for 500 pages, with a heading every few of them."""
    rng = random.Random(5)
    vocabulary = ["".join(rng.choices("aeioubdfglmnprst", k=rng.randint(2, 9))) for _ in range(999)]
    blocks, words_count = list[str](), 0
    while words_count < PAGES * WORDS_PER_PAGE:
        if len(blocks) % 12 == 0:
            blocks.append(f"## {' '.join(rng.choices(vocabulary, k=4))}")
        words = rng.choices(vocabulary, k=rng.randint(20, 120))
        words_count += len(words)
        blocks.append(" ".join(words).capitalize() + ".")
    return blocks


async def test_one_changed_paragraph_embeds_three_passages_at_most(
    tmp_path: Path, tools: Tools, engine: AsyncEngine
) -> None:
    blocks = manuscript()
    path = tmp_path / "long.md"

    async def embedded(text: list[str]) -> tuple[int, int]:
        path.write_text("\n\n".join(text))
        report = await run(tools, path)
        assert not report.failures
        return report.chunks, report.embedded

    chunks, first = await embedded(blocks)
    assert chunks > PAGES
    assert first >= chunks - 1
    start, middle, end = 1, len(blocks) // 2 + blocks[len(blocks) // 2].startswith("#"), -1
    changed = "A sentence that was not there before."
    for edited in (
        [*blocks[:start], f"{blocks[start]} {changed}", *blocks[start + 1 :]],
        [*blocks[:middle], f"{blocks[middle]} {changed}", *blocks[middle + 1 :]],
        [*blocks[:end], f"{blocks[end]} {changed}"],
        [*blocks[:start], "A paragraph came in here. " * 12, *blocks[start:]],
        [*blocks[:middle], *blocks[middle + 1 :]],
    ):
        count, again = await embedded(edited)
        assert count > PAGES
        assert again <= AT_MOST
    await assert_consistent(engine)
