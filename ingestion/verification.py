"""Proves that what search reads is what was given: counts, offsets, postings, vectors, originals.

Everything is read in one snapshot, while others go on writing. Postings are compared by a sum of
hashes per passage, so that a collection of millions needs 16 bytes of memory for each.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db.collections import StoredCollection, find_collection, list_collections
from app.db.postings import ChunkTerms, PostingList
from app.db.transactions import translated_errors
from app.db.vectors import StoredModel, read_model
from app.embedding.base import Embedder
from app.errors import EmbeddingUnavailable, NotFound
from app.terms import extract_terms
from ingestion.types import Chunk, embedded_text, heading_path

OpenModel = Callable[[StoredModel], Embedder]
"""Raises EmbeddingUnavailable."""

PROBLEMS_MAX = 100
"""So many are told of each collection; all are counted."""

ROWS_AT_ONCE = 500
COSINE_MIN = 0.999
"""Between a stored vector, rounded to half precision, and the same text embedded again."""

Sums = NDArray[np.uint64]


@dataclass(slots=True)
class Verdict:
    """What a collection holds, and what is wrong with it, in sentences."""

    collection: str
    documents: int = 0
    chunks: int = 0
    vectors: int = 0
    token_vectors: int = 0
    postings: int = 0
    originals: int = 0
    embedded_again: int = 0
    problems_count: int = 0
    problems: list[str] = field(default_factory=list[str])

    def complain(self, problem: str) -> None:
        self.problems_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


async def verify(
    engine: AsyncEngine,
    tenant_id: int,
    collection: str | None = None,
    *,
    deep: bool = False,
    open_model: OpenModel | None = None,
    sample_count: int = 0,
) -> list[Verdict]:
    """A verdict on each collection, or on the one that is named; NotFound when there is none.

    `deep` reads every original and compares it with its SHA-256. With `open_model`, `sample_count`
    passages of each collection are embedded again by its own model and compared; a model that
    cannot be opened counts as a problem.
    """
    with translated_errors():
        async with engine.connect() as opened:
            connection = await opened.execution_options(isolation_level="REPEATABLE READ")
            await connection.execute(text("SET TRANSACTION READ ONLY"))
            if collection is None:
                found = await list_collections(connection, tenant_id)
            else:
                one = await find_collection(connection, tenant_id, collection)
                if one is None:
                    raise NotFound(f"There is no collection {collection}.")
                found = [one]
            verdicts = [await _Examination(connection, one).verdict(deep=deep) for one in found]
            if open_model is not None:
                opened_models: dict[int, Embedder] = {}
                for one, verdict in zip(found, verdicts, strict=True):
                    try:
                        if one.model_id not in opened_models:
                            model = await read_model(connection, one.model_id)
                            opened_models[one.model_id] = open_model(model)
                    except EmbeddingUnavailable as error:
                        verdict.complain(error.detail)
                        continue
                    embedder = opened_models[one.model_id]
                    await _embed_again(connection, one, verdict, embedder, sample_count)
            await connection.rollback()
    return verdicts


class _Passages(NamedTuple):
    """Ids of all chunks, ascending, and the sum over each one's postings as they should be."""

    ids: NDArray[np.int64]
    sums: Sums


class _Examination:
    def __init__(self, connection: AsyncConnection, collection: StoredCollection) -> None:
        self._connection = connection
        self._collection = collection
        self._verdict = Verdict(collection.name)

    async def verdict(self, *, deep: bool) -> Verdict:
        for problem, query in _MISFITS.items():
            async for row in self._rows(query):
                self._verdict.complain(problem.format(*row))
        passages = await self._read_passages()
        await self._compare_postings(passages)
        await self._count_vectors()
        if deep:
            await self._read_originals()
        self._compare_counts()
        return self._verdict

    async def _rows(self, query: str) -> AsyncIterator[Any]:
        scope = {"id": self._collection.id, "model_id": self._collection.model_id}
        streamed = await self._connection.stream(
            text(query).execution_options(yield_per=ROWS_AT_ONCE), scope
        )
        async for row in streamed:
            yield row

    async def _read_passages(self) -> _Passages:
        """Hold every passage against its document's text, and work out its postings."""
        ids: list[int] = []
        sums: list[int] = []
        document, document_terms = None, 0
        self._terms_count = 0
        async for row in self._rows(_PASSAGES):
            if row.document_id != document:
                document, document_terms = row.document_id, 0
                self._verdict.documents += 1
            place = f"passage {row.id} of {row.uri}"
            if not row.is_in_place:
                self._verdict.complain(
                    f"{place}: it is not what the text holds at {row.start_char}:{row.end_char}"
                )
            chunk = Chunk(
                ordinal=row.ordinal,
                text=row.text,
                start=row.start_char,
                end=row.end_char,
                heading=tuple(row.heading),
                page=row.page,
                tokens=row.tokens,
                context=row.context,
            )
            seen = embedded_text(row.title, chunk)
            if hashlib.sha256(seen.encode()).digest() != bytes(row.content_hash):
                self._verdict.complain(f"{place}: its content hash is another text's")
            terms = extract_terms(seen, row.language)
            ids.append(row.id)
            title_terms = extract_terms(heading_path(row.title, chunk), row.language)
            sums.append(_sum_of(ChunkTerms(row.id, terms, title_terms)))
            self._terms_count += len(terms)
            document_terms += len(terms)
            if row.is_last and document_terms != row.version_terms:
                self._verdict.complain(
                    f"{row.uri}: {row.version_terms} terms are noted, {document_terms} are there"
                )
        self._verdict.chunks = len(ids)
        order = np.argsort(np.array(ids, np.int64))
        return _Passages(np.array(ids, np.int64)[order], np.array(sums, np.uint64)[order])

    async def _compare_postings(self, passages: _Passages) -> None:
        found = np.zeros(len(passages.ids), np.uint64)
        async for row in self._rows(_POSTINGS):
            postings = PostingList(np.frombuffer(row.payload, "<u8"))
            chunk_ids = postings.chunk_ids
            self._verdict.postings += len(postings)
            if not (
                len(postings) > 0
                and np.all(np.diff(chunk_ids) > 0)
                and (chunk_ids[0], chunk_ids[-1]) == (row.first_chunk_id, row.last_chunk_id)
            ):
                self._verdict.complain(f"the postings of “{row.term}” are not in order")
                continue
            places = np.searchsorted(passages.ids, chunk_ids)
            known = places < len(passages.ids)
            known[known] = passages.ids[places[known]] == chunk_ids[known]
            for chunk_id in chunk_ids[~known].tolist():
                self._verdict.complain(
                    f"“{row.term}” is noted for passage {chunk_id}, which is not there"
                )
            # A chunk comes once in a row, so no place is added to twice at a time.
            found[places[known]] += _mixed(_hash_of(row.term), postings.packed[known])
        for chunk_id in passages.ids[found != passages.sums].tolist():
            self._verdict.complain(f"the postings of passage {chunk_id} are not those of its text")

    async def _count_vectors(self) -> None:
        async for row in self._rows(_VECTORS):
            self._verdict.vectors = row.vectors_count
        async for row in self._rows(_WITH_TOKENS):
            self._verdict.token_vectors = row.passages_count

    async def _read_originals(self) -> None:
        async for row in self._rows(_ORIGINALS):
            self._verdict.originals += 1
            if not row.is_sound:
                self._verdict.complain(f"the original {row.sha256.hex()} has changed")

    def _compare_counts(self) -> None:
        noted, verdict = self._collection, self._verdict
        for name, expected, there in (
            ("documents", noted.documents_count, verdict.documents),
            ("passages", noted.chunks_count, verdict.chunks),
            ("terms", noted.terms_count, self._terms_count),
        ):
            if expected != there:
                verdict.complain(
                    f"{expected} {name} are noted for the collection, {there} are there"
                )


def _sum_of(chunk: ChunkTerms) -> int:
    """The sum over the postings that a passage of these terms should have."""
    postings = dict(chunk.packed())
    hashes = np.array([_hash_of(term) for term in postings], np.uint64)
    return int(np.sum(_mixed(hashes, np.array(list(postings.values()), np.uint64))))


def _mixed(term_hash: "np.uint64 | Sums", packed: Sums) -> Sums:
    """A number for each posting of a term, so that sums over different postings differ.

    The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    with np.errstate(over="ignore"):
        mixed = term_hash ^ (packed * np.uint64(0x9E3779B97F4A7C15))
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


@lru_cache(maxsize=200_000)
def _hash_of(term: str) -> np.uint64:
    return np.uint64(
        int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "little")
    )


async def _embed_again(
    connection: AsyncConnection,
    collection: StoredCollection,
    verdict: Verdict,
    embedder: Embedder,
    sample_count: int,
) -> None:
    scope = {"id": collection.id, "model_id": collection.model_id}
    rows = (await connection.execute(text(_SAMPLE), {**scope, "count": sample_count})).all()
    if not rows:
        return
    texts = [_text_of(row) for row in rows]
    vectors = embedder.embed(texts, "document")
    for row, vector in zip(rows, vectors, strict=True):
        stored = np.array(row.vector, np.float32)
        cosine = float(stored @ vector / np.linalg.norm(stored))
        verdict.embedded_again += 1
        if not cosine >= COSINE_MIN:
            verdict.complain(
                f"passage {row.id} of {row.uri}: its vector is another text's (cosine {cosine:.3f})"
            )


def _text_of(row: Any) -> str:
    heading = tuple(row.heading)
    chunk = Chunk(0, row.text, 0, len(row.text), heading, None, 0, row.context)
    return embedded_text(row.title, chunk)


def is_sound(verdicts: Iterable[Verdict]) -> bool:
    return not any(verdict.problems_count for verdict in verdicts)


# --- the statements -------------------------------------------------------------------------------

_PASSAGES = """
    SELECT c.id, c.document_id, c.ordinal, c.text, c.context, c.heading, c.page, c.start_char,
      c.end_char, c.tokens, c.content_hash, d.title, d.uri, v.language,
      substr(v.text, c.start_char + 1, c.end_char - c.start_char) = c.text AS is_in_place,
      c.id = v.last_chunk_id AS is_last, v.terms_count AS version_terms
    FROM chunks AS c JOIN document_versions AS v ON v.id = c.version_id
    JOIN documents AS d ON d.current_version_id = v.id
    WHERE c.collection_id = :id
    ORDER BY c.document_id, c.ordinal
"""
_POSTINGS = """
    SELECT term, first_chunk_id, last_chunk_id, payload FROM postings WHERE collection_id = :id
"""
_VECTORS = """
    SELECT count(*) AS vectors_count FROM embeddings
    WHERE collection_id = :id AND model_id = :model_id
"""
_WITH_TOKENS = """
    SELECT count(*) AS passages_count FROM token_vectors WHERE collection_id = :id
"""
_ORIGINALS = """
    SELECT b.sha256, sha256(b.content) = b.sha256 AS is_sound
    FROM blobs AS b WHERE (b.tenant_id, b.sha256) IN (
      SELECT tenant_id, blob_sha256 FROM documents WHERE collection_id = :id)
"""
_SAMPLE = """
    SELECT c.id, c.text, c.context, c.heading, d.title, d.uri, e.vector::real[] AS vector
    FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
    JOIN embeddings AS e ON e.chunk_id = c.id AND e.model_id = :model_id
    WHERE c.collection_id = :id
    ORDER BY md5(c.id::text) LIMIT :count
"""
_MISFITS = {
    "{0}: version {1} is kept though it does not serve": """
        SELECT d.uri, v.number FROM document_versions AS v
        JOIN documents AS d ON d.id = v.document_id
        WHERE d.collection_id = :id AND d.current_version_id IS DISTINCT FROM v.id
    """,
    "passage {0} belongs to a version that does not serve": """
        SELECT c.id FROM chunks AS c
        WHERE c.collection_id = :id
          AND NOT EXISTS (SELECT FROM documents AS d WHERE d.current_version_id = c.version_id)
    """,
    "{0}: {1} passages are noted, and {2} are there": """
        SELECT d.uri, v.chunks_count, count(c.id) FROM documents AS d
        JOIN document_versions AS v ON v.id = d.current_version_id
        LEFT JOIN chunks AS c ON c.version_id = v.id
        WHERE d.collection_id = :id GROUP BY d.uri, v.id
        HAVING count(c.id) <> v.chunks_count OR v.chunks_count = 0
          OR min(c.id) <> v.first_chunk_id OR max(c.id) <> v.last_chunk_id
    """,
    "passage {0} has {1} vectors of the collection's model": """
        SELECT c.id, count(e.chunk_id) FROM chunks AS c
        LEFT JOIN embeddings AS e ON e.chunk_id = c.id AND e.model_id = :model_id
          AND e.collection_id = c.collection_id AND e.tenant_id = c.tenant_id
        WHERE c.collection_id = :id GROUP BY c.id HAVING count(e.chunk_id) <> 1
    """,
    "{0} vectors are of the model {1}, which the collection does not have": """
        SELECT count(*), m.name FROM embeddings AS e JOIN embedding_models AS m ON m.id = e.model_id
        WHERE e.collection_id = :id AND e.model_id <> :model_id AND NOT EXISTS (
          SELECT FROM model_switches AS s WHERE s.collection_id = :id AND s.model_id = e.model_id)
        GROUP BY m.name
    """,
    "{0} passages have no vector of the model {1}, though all are said to": """
        SELECT count(*), m.name FROM model_switches AS s
        JOIN collections AS own ON own.id = s.collection_id AND own.generation = s.complete_at
        JOIN embedding_models AS m ON m.id = s.model_id
        JOIN chunks AS c ON c.collection_id = s.collection_id
        WHERE s.collection_id = :id AND s.status IN ('prepared', 'retained') AND NOT EXISTS (
          SELECT FROM embeddings AS e WHERE e.chunk_id = c.id AND e.model_id = s.model_id)
        GROUP BY m.name
    """,
    "the vector of passage {0} has the length {1}, not 1": """
        SELECT chunk_id, round(l2_norm(vector)::numeric, 3) FROM embeddings
        WHERE collection_id = :id AND NOT abs(l2_norm(vector) - 1) < 0.01
    """,
    "the token vectors of passage {0} are of another collection or no whole tokens": """
        SELECT t.chunk_id FROM token_vectors AS t JOIN chunks AS c ON c.id = t.chunk_id
        WHERE (t.collection_id = :id OR c.collection_id = :id) AND (
          t.collection_id <> c.collection_id OR t.tenant_id <> c.tenant_id
          OR t.width <= 0 OR octet_length(t.signs) % nullif(t.width, 0) <> 0)
    """,
    "{0} is ready, but no version of it serves": """
        SELECT uri FROM documents
        WHERE collection_id = :id AND status = 'ready' AND current_version_id IS NULL
    """,
    "{0} is claimed by a worker, though nobody processes it": """
        SELECT uri FROM documents
        WHERE collection_id = :id AND claim IS NOT NULL AND status <> 'processing'
    """,
    "{0} waits for a job that is not there": """
        SELECT d.uri FROM documents AS d
        WHERE d.collection_id = :id AND d.status IN ('queued', 'processing') AND NOT EXISTS (
          SELECT FROM procrastinate_jobs AS j
          WHERE j.id = d.job_id AND j.status IN ('todo', 'doing'))
    """,
    "{0}: its original is not there": """
        SELECT d.uri FROM documents AS d JOIN document_versions AS v ON v.id = d.current_version_id
        WHERE d.collection_id = :id AND NOT EXISTS (
          SELECT FROM blobs AS b WHERE b.tenant_id = d.tenant_id AND b.sha256 = v.blob_sha256)
    """,
}
