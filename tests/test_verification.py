"""Whatever is changed behind Footnote's back is found; what it wrote itself is sound."""

import hashlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.config import Settings
from app.db.collections import ensure_collection
from app.db.vectors import StoredModel
from app.embedding.base import Embedder
from app.errors import NotFound
from ingestion.pipeline import Original, Tools, open_tools, process
from ingestion.verification import PROBLEMS_MAX, Verdict, is_sound, verify
from ingestion.writing import NewVersion, Shelf, SourceFile, write_file
from tests.doubles.word_embedder import WordEmbedder

TEXTS = {
    "travel.md": "# Travel\n\n## Approval\n\n"
    + "Every trip is approved by the manager. " * 30
    + "\n\n## Hotels\n\n"
    + "A hotel may cost 140 euros per night. " * 30,
    "security.md": "# Security\n\nLost laptops are reported within one hour.",
}


def source_file(name: str, content: bytes) -> SourceFile:
    return SourceFile(
        name=name,
        uri=f"file:///docs/{name}",
        root="file:///docs",
        size_bytes=len(content),
        changed_ns=None,
        content=content,
        sha256=hashlib.sha256(content).digest(),
    )


@pytest.fixture
async def tools(settings: Settings, engine: AsyncEngine) -> AsyncIterator[Tools]:
    async with open_tools(settings, engine, WordEmbedder()) as opened:
        yield opened


def _its_model(tools: Tools, _: StoredModel) -> Embedder:
    return tools.embedder


@pytest.fixture
async def filled(tools: Tools) -> Tools:
    model_id = await tools.model_id()
    collection = await tools.transaction(
        lambda connection: ensure_collection(connection, 1, "default", model_id)
    )
    shelf = Shelf(1, collection.id, model_id)
    for name, content in TEXTS.items():
        file = source_file(name, content.encode())

        async def write(
            connection: AsyncConnection, version: NewVersion, file: SourceFile = file
        ) -> str:
            return await write_file(connection, shelf, file, version)

        await process(Original(name, file.sha256, file.content), shelf, tools, write)
    return tools


async def verdict_of(tools: Tools, **options: Any) -> Verdict:
    [verdict] = await verify(tools.engine, 1, "default", **options)
    return verdict


async def test_what_was_ingested_is_sound(filled: Tools) -> None:
    verdict = await verdict_of(
        filled, deep=True, open_model=partial(_its_model, filled), sample_count=3
    )
    assert is_sound([verdict]), verdict.problems
    assert (verdict.documents, verdict.originals, verdict.embedded_again) == (2, 2, 3)
    assert verdict.chunks == verdict.vectors == 3
    assert verdict.postings > verdict.chunks


DAMAGES = {
    "UPDATE chunks SET text = text || '.' WHERE ordinal = 1": "not what the text holds",
    "UPDATE chunks SET start_char = start_char + 1, end_char = end_char + 1 WHERE ordinal = 0": (
        "not what the text holds"
    ),
    "UPDATE chunks SET heading = '{other}' WHERE ordinal = 0": "another text's",
    "DELETE FROM chunks WHERE ordinal = 0": "passages are noted",
    "DELETE FROM embeddings WHERE chunk_id = (SELECT min(id) FROM chunks)": "has 0 vectors",
    "UPDATE embeddings SET collection_id = 0 WHERE chunk_id = (SELECT min(id) FROM chunks)": (
        "has 0 vectors"
    ),
    "UPDATE embeddings SET vector = (SELECT array_agg(0.5) FROM generate_series(1,"
    " vector_dims(vector)))::real[]::halfvec": "not 1",
    "DELETE FROM postings WHERE term = 'hotel'": "not those of its text",
    "UPDATE postings SET term = 'motel' WHERE term = 'hotel'": "not those of its text",
    "UPDATE postings SET payload = set_byte(payload, 1, get_byte(payload, 1) # 16)"
    " WHERE term = 'hotel'": "not those of its text",
    "UPDATE postings SET payload = payload || payload WHERE term = 'hotel'": "not in order",
    "INSERT INTO postings SELECT collection_id, 'ghost', 99, 99, int8send(99::int8 << 24)"
    " FROM postings LIMIT 1": "are not in order|is not there",
    "UPDATE collections SET documents_count = 3": "3 documents are noted",
    "UPDATE collections SET chunks_count = chunks_count + 1": "passages are noted",
    "UPDATE collections SET terms_count = terms_count - 1": "terms are noted",
    "UPDATE document_versions SET terms_count = terms_count + 1": "terms are noted",
    "UPDATE documents SET claim = gen_random_uuid()": "claimed by a worker",
    "UPDATE documents SET status = 'queued'": "a job that is not there",
    "UPDATE documents SET current_version_id = NULL": "does not serve",
    "UPDATE blobs SET content = content || 'x'::bytea": "has changed",
}


@pytest.mark.parametrize(("damage", "finding"), DAMAGES.items(), ids=range(len(DAMAGES)))
async def test_damage_is_found(filled: Tools, damage: str, finding: str) -> None:
    async with filled.engine.begin() as connection:
        assert (await connection.execute(text(damage))).rowcount > 0
    verdict = await verdict_of(filled, deep=True)
    assert not is_sound([verdict])
    found = "\n".join(verdict.problems)
    assert any(one in found for one in finding.split("|")), found


async def test_a_vector_of_another_text_is_found_by_embedding_again(filled: Tools) -> None:
    async with filled.engine.begin() as connection:
        await connection.execute(
            text(
                """
                UPDATE embeddings AS e SET vector = o.vector FROM embeddings AS o
                WHERE e.chunk_id = (SELECT min(id) FROM chunks)
                  AND o.chunk_id = (SELECT max(id) FROM chunks)
                """
            )
        )
    assert is_sound([await verdict_of(filled)])
    verdict = await verdict_of(filled, open_model=partial(_its_model, filled), sample_count=100)
    assert ["its vector is another text's" in problem for problem in verdict.problems] == [True]


async def test_so_many_findings_are_told_and_all_are_counted() -> None:
    verdict = Verdict("default")
    for number in range(PROBLEMS_MAX + 5):
        verdict.complain(str(number))
    assert (len(verdict.problems), verdict.problems_count) == (PROBLEMS_MAX, PROBLEMS_MAX + 5)


async def test_a_collection_that_is_not_there(tools: Tools) -> None:
    with pytest.raises(NotFound):
        await verify(tools.engine, 1, "nowhere")
    assert await verify(tools.engine, 1) == []
