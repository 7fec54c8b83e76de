"""An edit of one paragraph in a long document, counted in passages that are embedded again."""

import random
from collections.abc import AsyncIterator
from pathlib import Path
from textwrap import wrap

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from ingestion.pipeline import Tools, open_tools
from tests.doubles.word_embedder import WordEmbedder
from tests.index_state import assert_consistent
from tests.samples import pdf_of_streams
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


PDF_WORDS = 16_000
LINE_CHARS, PAGE_LINES = 90, 46


def printed(paragraphs: list[str]) -> bytes:
    """Set in pages that are full, with a line left empty between paragraphs."""
    lines = [line for each in paragraphs for line in (*wrap(each, LINE_CHARS), "")]
    pages = [lines[start : start + PAGE_LINES] for start in range(0, len(lines), PAGE_LINES)]
    return pdf_of_streams(
        ["\n".join(["BT /F1 10 Tf 14 TL 60 750 Td", *(f"({line}) Tj T*" for line in page), "ET"])
         .encode() for page in pages]
    )  # fmt: skip


async def test_a_pdf_whose_lines_move_over_its_pages_is_no_different(
    tmp_path: Path, tools: Tools, engine: AsyncEngine
) -> None:
    rng = random.Random(7)
    vocabulary = ["".join(rng.choices("aeioubdfglmnprst", k=rng.randint(2, 9))) for _ in range(999)]
    sentences = [" ".join(rng.choices(vocabulary, k=rng.randint(6, 26))).capitalize() + "."
                 for _ in range(PDF_WORDS // 16)]  # fmt: skip
    paragraphs = [" ".join(sentences[at : at + 4]) for at in range(0, len(sentences), 4)]
    path = tmp_path / "printed.pdf"

    async def embedded(text: list[str]) -> tuple[int, int]:
        path.write_bytes(printed(text))
        report = await run(tools, path)
        assert not report.failures
        return report.chunks, report.embedded

    chunks, _ = await embedded(paragraphs)
    assert chunks > 60
    middle = len(paragraphs) // 2
    more = f"{paragraphs[0]} It has another line, and a page or two more to be moved through."
    changes = [
        [more, *paragraphs[1:]],
        [*paragraphs[:middle], sentences[0], *paragraphs[middle:]],
        [*paragraphs[:2], *paragraphs[3:]],
    ]
    for changed in changes:
        count, again = await embedded(changed)
        assert count > 60
        assert again <= AT_MOST
        await embedded(paragraphs)
    async with engine.connect() as connection:
        passages = await connection.execute(text("SELECT text, page, page_breaks FROM chunks"))
        over = [row for row in passages if row.page_breaks]
    assert len(over) > 10
    assert all(0 < place < len(row.text) for row in over for place in row.page_breaks)
    await assert_consistent(engine)
