"""What the pipeline's tools hand out."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from ingestion.pipeline import CHUNK_IDS_RESERVED, Tools, open_tools
from tests.doubles.word_embedder import WordEmbedder


@pytest.fixture
async def tools(settings: Settings, engine: AsyncEngine) -> AsyncIterator[Tools]:
    async with open_tools(settings, engine, WordEmbedder()) as opened:
        yield opened


async def last_given_out(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT last_value FROM chunks_id_seq"))
        return int(found.scalar_one())


async def test_no_chunk_id_is_given_twice_whoever_asks(
    tools: Tools, settings: Settings, engine: AsyncEngine
) -> None:
    counts = [1, 7, CHUNK_IDS_RESERVED - 3, 40, 2 * CHUNK_IDS_RESERVED, 5, 300, 900]
    async with open_tools(settings, engine, WordEmbedder()) as others:
        asked = [(one, count) for count in counts for one in (tools, others)]
        firsts = await asyncio.gather(*(one.chunk_ids(count) for one, count in asked))
    given = [
        chunk_id
        for first, (_, count) in zip(firsts, asked, strict=True)
        for chunk_id in range(first, first + count)
    ]
    assert len(set(given)) == len(given)
    assert max(given) <= await last_given_out(engine)


async def test_chunk_ids_are_reserved_for_many_documents_at_once(
    tools: Tools, engine: AsyncEngine
) -> None:
    first = await tools.chunk_ids(10)
    reserved = await last_given_out(engine)
    later = [await tools.chunk_ids(10) for _ in range(CHUNK_IDS_RESERVED // 10 - 1)]
    assert later == list(range(first + 10, first + CHUNK_IDS_RESERVED, 10))
    assert await last_given_out(engine) == reserved
