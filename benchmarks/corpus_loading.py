"""Puts a made corpus into a database as the product's own writer would leave it, in bulk."""

import hashlib
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import accumulate, islice
from typing import Any
from uuid import UUID, uuid5

import numpy as np
from psycopg.types.json import Jsonb
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.access import DEFAULT_TENANT_ID
from app.config import Settings
from app.db.chunks import ChunkRow, add_chunks
from app.db.collections import count_change, ensure_collection
from app.db.documents import reserve_chunk_ids
from app.db.postings import ChunkTerms, add_postings, merge_postings
from app.db.schema import ready_database
from app.db.session import open_engine
from app.db.vector_partitions import bulk_load, ensure_index
from app.db.vectors import add_vectors, register_model
from app.embedding.base import Embedder
from benchmarks.corpus import LANGUAGE, SEPARATOR, Corpus, MadeDocument, embedded_text

TRANSACTION_DOCUMENTS = 800
"""About 8,000 chunks, as many as a full row of postings holds."""
SMALL_SHARE = 100
PIPELINE = "benchmark"
_NAMESPACE = UUID("6b1f0d5e-0b34-4d0e-9a52-3c1d1d0c5a11")


async def load_into_home(
    settings: Settings, embedder: Embedder, corpus: Corpus, collection: str
) -> dict[str, Any]:
    """Fill the settings' database with the corpus and its small sister; what it took."""
    with ready_database(settings) as url:
        engine = open_engine(settings, url)
        try:
            small = Corpus(corpus.sources, max(1, corpus.count // SMALL_SHARE), seed=1)
            loaded = await load(
                engine, embedder, corpus, collection, {f"{collection}-small": small}
            )
            return {**loaded, "bytes": await sizes(engine)}
        finally:
            await engine.dispose()


async def load(
    engine: AsyncEngine,
    embedder: Embedder,
    corpus: Corpus,
    collection: str = "corpus",
    others: dict[str, Corpus] | None = None,
) -> dict[str, Any]:
    """Fill new collections, then merge the postings, build the vector index and analyse.

    Gives the seconds of each stage.
    """
    seconds: dict[str, float] = {}
    async with engine.begin() as connection:
        model_id = await register_model(
            connection,
            name=embedder.name,
            digest=embedder.digest,
            dimensions=embedder.dimensions,
        )
    collection_ids: list[int] = []
    async with _timed(seconds, "rows"), bulk_load(engine, model_id):
        for name, made in {collection: corpus, **(others or {})}.items():
            async with engine.begin() as connection:
                stored = await ensure_collection(connection, DEFAULT_TENANT_ID, name, model_id)
            if stored.chunks_count:
                raise SystemExit(f"The collection {name} is not empty.")
            collection_ids.append(stored.id)
            for documents in _batches(made):
                await _write(engine, stored.id, model_id, name, documents)
    async with _timed(seconds, "postings_merged"):
        for collection_id in collection_ids:
            await merge_postings(engine, collection_id)
    async with _timed(seconds, "vector_index"):
        await ensure_index(engine, model_id)
    async with _timed(seconds, "vacuum"), engine.connect() as opened:
        connection = await opened.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE"))
    return {"passages": corpus.count, "seconds": seconds}


async def sizes(engine: AsyncEngine) -> dict[str, int]:
    """Bytes of the tables that search reads, and of their indexes."""
    async with engine.connect() as connection:
        rows = await connection.execute(text(_SIZES))
        return {name: int(size) for name, size in rows}


async def _write(
    engine: AsyncEngine,
    collection_id: int,
    model_id: int,
    collection: str,
    documents: list[MadeDocument],
) -> None:
    counts = [len(document.passages) for document in documents]
    async with engine.begin() as connection:
        first = await reserve_chunk_ids(connection, sum(counts))
        version_id = await _reserve_versions(connection, len(documents))
    firsts = [first, *(first + end for end in accumulate(counts))][:-1]
    ids = [uuid5(_NAMESPACE, f"{collection}/{document.number}") for document in documents]
    async with engine.begin() as connection:
        # Every row that is referred to comes with it; checking that would take most of the time.
        await connection.execute(text("SET LOCAL session_replication_role = replica"))
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await _copy(driver, _BLOBS, _blob_rows(documents))
        await _copy(driver, _DOCUMENTS, _document_rows(documents, ids, collection_id, version_id))
        await _copy(driver, _VERSIONS, _version_rows(documents, ids, firsts, version_id))
        await add_chunks(connection, _chunk_rows(documents, ids, firsts, collection_id, version_id))
        chunk_ids = range(first, first + sum(counts))
        await add_vectors(
            connection,
            model_id,
            DEFAULT_TENANT_ID,
            collection_id,
            chunk_ids,
            np.concatenate([document.vectors for document in documents]),
        )
        terms = [terms for document in documents for terms in document.terms]
        titles = [document.title_terms for document in documents for _ in document.terms]
        await add_postings(connection, collection_id, map(ChunkTerms, chunk_ids, terms, titles))
        await count_change(
            connection,
            collection_id,
            documents=len(documents),
            chunks=len(chunk_ids),
            terms=sum(map(len, terms)),
            language=LANGUAGE,
        )


def _blob_rows(documents: list[MadeDocument]) -> Iterator[tuple[Any, ...]]:
    for document in documents:
        content = _content(document)
        yield DEFAULT_TENANT_ID, hashlib.sha256(content).digest(), content, len(content)


def _content(document: MadeDocument) -> bytes:
    """With its number, so that no two originals are the same."""
    return f"{document.number}\n{document.text}".encode()


def _document_rows(
    documents: list[MadeDocument], ids: list[UUID], collection_id: int, version_id: int
) -> Iterator[tuple[Any, ...]]:
    for place, (document, document_id) in enumerate(zip(documents, ids, strict=True)):
        content = _content(document)
        yield (
            document_id,
            DEFAULT_TENANT_ID,
            collection_id,
            f"made:{document.number}",
            document.title,
            "text/plain",
            len(content),
            hashlib.sha256(content).digest(),
            Jsonb(document.metadata),
            document.groups,
            "ready",
            PIPELINE,
            version_id + place,
        )


def _version_rows(
    documents: list[MadeDocument], ids: list[UUID], firsts: list[int], version_id: int
) -> Iterator[tuple[Any, ...]]:
    for place, (document, document_id, first) in enumerate(
        zip(documents, ids, firsts, strict=True)
    ):
        yield (
            version_id + place,
            DEFAULT_TENANT_ID,
            document_id,
            1,
            hashlib.sha256(_content(document)).digest(),
            PIPELINE,
            document.text,
            LANGUAGE,
            len(document.passages),
            sum(map(len, document.terms)),
            sorted({term for terms in document.terms for term in terms}),
            first,
            first + len(document.passages) - 1,
        )


def _chunk_rows(
    documents: list[MadeDocument],
    ids: list[UUID],
    firsts: list[int],
    collection_id: int,
    version_id: int,
) -> Iterator[ChunkRow]:
    for place, document in enumerate(documents):
        start = 0
        for ordinal, passage in enumerate(document.passages):
            yield ChunkRow(
                id=firsts[place] + ordinal,
                tenant_id=DEFAULT_TENANT_ID,
                collection_id=collection_id,
                document_id=ids[place],
                version_id=version_id + place,
                ordinal=ordinal,
                text=passage,
                context="",
                heading=[],
                page=None,
                start_char=start,
                end_char=start + len(passage),
                tokens=document.tokens[ordinal],
                content_hash=hashlib.sha256(embedded_text(document, ordinal).encode()).digest(),
                page_breaks=[],
            )
            start += len(passage) + len(SEPARATOR)


async def _reserve_versions(connection: AsyncConnection, count: int) -> int:
    reserved = await connection.execute(text(_RESERVE_VERSIONS), {"count": count})
    return int(reserved.scalar_one()) - count + 1


async def _copy(driver: Any, columns: dict[str, list[str]], rows: Iterable[Any]) -> None:
    [(table, types)] = columns.items()
    names = ", ".join(one.split()[0] for one in types)
    async with (
        driver.cursor() as cursor,
        cursor.copy(f"COPY {table} ({names}) FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.set_types([one.split()[1] for one in types])
        for row in rows:
            await copy.write_row(row)


def _batches(corpus: Corpus) -> Iterator[list[MadeDocument]]:
    documents = iter(corpus)
    while batch := list(islice(documents, TRANSACTION_DOCUMENTS)):
        yield batch


@asynccontextmanager
async def _timed(seconds: dict[str, float], stage: str) -> AsyncGenerator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 1)


_BLOBS = {"blobs": ["tenant_id int4", "sha256 bytea", "content bytea", "size_bytes int8"]}
_DOCUMENTS = {
    "documents": [
        *("id uuid", "tenant_id int4", "collection_id int4", "uri text", "title text"),
        *("media_type text", "size_bytes int8", "blob_sha256 bytea", "metadata jsonb"),
        *("groups text[]", "status text", "pipeline_digest text", "current_version_id int8"),
    ]
}
_VERSIONS = {
    "document_versions": [
        *("id int8", "tenant_id int4", "document_id uuid", "number int4", "blob_sha256 bytea"),
        *("pipeline_digest text", "text text", "language text", "chunks_count int4"),
        *("terms_count int8", "terms text[]", "first_chunk_id int8", "last_chunk_id int8"),
    ]
}
_RESERVE_VERSIONS = """
    SELECT setval(name, nextval(name) + :count - 1)
    FROM (SELECT pg_get_serial_sequence('document_versions', 'id')::regclass AS name) AS sequence
"""
_SIZES = """
    SELECT relname, pg_table_size(oid) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i')
      AND relname ~ '^(pk_|ix_|uq_)?(chunks|documents|document_versions|postings|embeddings|blobs)'
      AND pg_table_size(oid) > 1048576
    ORDER BY relname
"""
