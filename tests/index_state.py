"""What is in the index, and whether all of it fits together: judged on the tables themselves."""

from collections import Counter
from typing import Any

import numpy as np
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.postings import PostingList
from app.terms import extract_terms
from ingestion.types import Chunk, embedded_text, heading_path


async def contents(engine: AsyncEngine) -> dict[str, list[tuple[Any, ...]]]:
    """The passages of every serving version by URI: what two runs must agree on."""
    async with engine.connect() as connection:
        rows = await connection.execute(
            text(
                """
                SELECT d.uri, c.ordinal, c.text, c.context, c.heading, c.page, c.page_breaks,
                  c.start_char, c.end_char, c.tokens, c.content_hash, e.vector::text AS vector
                FROM documents AS d JOIN chunks AS c ON c.version_id = d.current_version_id
                LEFT JOIN embeddings AS e ON e.chunk_id = c.id
                ORDER BY d.uri, c.ordinal
                """
            )
        )
        found: dict[str, list[tuple[Any, ...]]] = {}
        for uri, ordinal, *rest in rows:
            found.setdefault(uri, []).append((ordinal, *map(_frozen, rest)))
        return found


async def generation(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT sum(generation) FROM collections"))
        return int(found.scalar_one())


async def assert_consistent(engine: AsyncEngine) -> None:
    """Nothing doubled, nothing left over, every count and every posting as recomputed."""
    async with engine.connect() as connection:
        for name, query in _ORPHANS.items():
            assert (await connection.execute(text(query))).all() == [], name
        for collection in await connection.execute(text("SELECT * FROM collections")):
            await _check_collection(connection, collection)


async def _check_collection(connection: AsyncConnection, collection: Any) -> None:
    rows = await connection.execute(text(_CHUNKS), {"collection_id": collection.id})
    expected: dict[str, dict[int, int]] = {}
    terms_count = chunks_count = 0
    documents = set[Any]()
    for row in rows:
        assert row.whole[row.start_char : row.end_char] == row.text
        chunk = Chunk(
            row.ordinal, row.text, row.start_char, row.end_char, tuple(row.heading), row.page,
            row.tokens, row.context,
        )  # fmt: skip
        terms = extract_terms(embedded_text(row.title, chunk), row.language)
        occurring = Counter(terms)
        occurring.update(extract_terms(heading_path(row.title, chunk), row.language))
        for term, occurrences in occurring.items():
            expected.setdefault(term, {})[row.id] = occurrences
        terms_count += len(terms)
        chunks_count += 1
        documents.add(row.document_id)
    assert (collection.documents_count, collection.chunks_count, collection.terms_count) == (
        len(documents),
        chunks_count,
        terms_count,
    )
    stored = await connection.execute(
        text("SELECT term, payload FROM postings WHERE collection_id = :id"), {"id": collection.id}
    )
    found: dict[str, dict[int, int]] = {}
    for term, payload in stored:
        postings = PostingList(np.frombuffer(payload, "<u8"))
        for chunk_id, occurrences in zip(
            postings.chunk_ids.tolist(), postings.occurrences.tolist(), strict=True
        ):
            assert found.setdefault(term, {}).setdefault(chunk_id, occurrences) == occurrences
    assert found == expected


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_CHUNKS = """
    SELECT c.*, d.title, v.language, v.text AS whole
    FROM chunks AS c JOIN document_versions AS v ON v.id = c.version_id
    JOIN documents AS d ON d.current_version_id = v.id
    WHERE c.collection_id = :collection_id
"""
_ORPHANS = {
    "versions that do not serve": """
        SELECT v.id FROM document_versions AS v
        WHERE NOT EXISTS (SELECT FROM documents AS d WHERE d.current_version_id = v.id)
    """,
    "chunks of other versions": """
        SELECT c.id FROM chunks AS c
        WHERE NOT EXISTS (SELECT FROM documents AS d WHERE d.current_version_id = c.version_id)
    """,
    "chunks without one vector each": """
        SELECT c.id FROM chunks AS c LEFT JOIN embeddings AS e ON e.chunk_id = c.id
        GROUP BY c.id HAVING count(e.chunk_id) <> 1
    """,
    "versions whose counts are wrong": """
        SELECT v.id FROM document_versions AS v LEFT JOIN chunks AS c ON c.version_id = v.id
        GROUP BY v.id HAVING count(c.id) <> v.chunks_count OR min(c.id) <> v.first_chunk_id
          OR max(c.id) <> v.last_chunk_id OR v.chunks_count = 0
    """,
    "originals that nothing needs": """
        SELECT b.sha256 FROM blobs AS b
        WHERE NOT EXISTS (SELECT FROM documents AS d WHERE d.blob_sha256 = b.sha256)
          AND NOT EXISTS (SELECT FROM document_versions AS v WHERE v.blob_sha256 = b.sha256)
    """,
    "ready documents that cannot be found": """
        SELECT id FROM documents WHERE status = 'ready' AND current_version_id IS NULL
    """,
    "documents left claimed": """
        SELECT id FROM documents WHERE claim IS NOT NULL AND status <> 'processing'
    """,
}
