"""How much faster does a bulk load store vectors than inserting them into the live HNSW index?

Hypothesis: by COPY into a leaf without an index they are stored 20 times as fast, or more.

Control: the same number of vectors of the same distribution, one INSERT (prepared, sent by psycopg)
per vector, into the leaf whose index is live, in transactions as large as a document. It may be
measured on fewer rows, for it takes minutes; what counts is rows per second.

The bulk load is measured in two ways: with a COPY per document and a transaction per block of
documents, as `footnote ingest --ray` writes, and with a COPY and a transaction per 2,000 rows. Then the index is built, and both rates are told again
with the time of that counted in.

Caveats: vectors are drawn, 384 numbers each: a common mean and 64 hidden directions, so that they
lie about as near to each other as those of a real model; an index takes longer over vectors without
any structure. Their chunks are there already, because both sides need them alike. Both sides keep the
primary key, the index by collection and the reference to `chunks`. The embedded PostgreSQL runs with
its defaults: every COMMIT is on the disk. The client and two builders of an index share the cores.

    python benchmarks/bulk.py [--live 20000] [--rows 20000] [--inserted 2000] [--rounds 3] [--record]
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config import Settings
from app.db.documents import reserve_chunk_ids
from app.db.embedded import EmbeddedPostgres
from app.db.schema import migrate
from app.db.session import libpq_url, open_engine
from app.db.vector_partitions import begin_leaf, bulk_load, ensure_index
from app.db.vectors import add_vectors, register_model
from app.embedding.loading import usable_cores
from ingestion.cluster import BLOCK_DOCUMENTS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "bulk.json"

DIMENSIONS = 384
DOCUMENT_CHUNKS = 12
"""Passages of a document in the corpus that benchmarks/ingest.py is recorded on."""
BLOCK_CHUNKS = BLOCK_DOCUMENTS * DOCUMENT_CHUNKS
BATCH_CHUNKS = 2_000

INSERT = (
    "INSERT INTO embeddings (chunk_id, model_id, tenant_id, collection_id, vector)"
    " VALUES (%s, %s, 1, 1, %s)"
)


def drawn_vectors(generator: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Unit vectors that share a mean and vary in 64 directions."""
    hidden = np.random.default_rng(0).standard_normal((64, DIMENSIONS))
    mean = np.random.default_rng(1).standard_normal(DIMENSIONS) * 4
    vectors = mean + generator.standard_normal((count, 64)) @ hidden
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


SETUP = """
    INSERT INTO collections (id, tenant_id, name, embedding_model_id)
    OVERRIDING SYSTEM VALUE SELECT 1, 1, 'benchmark', id FROM embedding_models;
    INSERT INTO documents (id, tenant_id, collection_id, uri, title, media_type, size_bytes)
    VALUES (gen_random_uuid(), 1, 1, 'test:1', '', 'text/plain', 0);
    INSERT INTO blobs (tenant_id, sha256, content, size_bytes) VALUES (1, sha256(''), '', 0);
    INSERT INTO document_versions (tenant_id, document_id, number, blob_sha256, pipeline_digest,
      text, language, chunks_count, terms_count, terms, first_chunk_id, last_chunk_id)
    SELECT 1, id, 1, sha256(''), '', '', 'english', 0, 0, '{}', 0, 0 FROM documents
"""
"""One document, whose version all chunks belong to."""
CHUNKS = """
    INSERT INTO chunks (id, tenant_id, collection_id, document_id, version_id, ordinal, text,
      heading, start_char, end_char, tokens, content_hash)
    OVERRIDING SYSTEM VALUE
    SELECT n, 1, 1, v.document_id, v.id, n, '', '{}', 0, 0, 0, sha256('')
    FROM generate_series(cast(:first AS bigint), :last) AS n, document_versions AS v
"""


async def model(engine: AsyncEngine, digest: str) -> int:
    async with engine.begin() as connection:
        return await register_model(
            connection, name="benchmark", digest=digest, dimensions=DIMENSIONS
        )


async def make_chunks(engine: AsyncEngine, count: int) -> range:
    async with engine.begin() as connection:
        first = await reserve_chunk_ids(connection, count)
        await connection.execute(text(CHUNKS), {"first": first, "last": first + count - 1})
    return range(first, first + count)


async def copy(
    engine: AsyncEngine,
    model_id: int,
    chunk_ids: Sequence[int],
    vectors: NDArray[np.float32],
    copied: int,
    committed: int,
) -> None:
    """A COPY per `copied` rows, and a transaction per `committed`."""
    for start in range(0, len(chunk_ids), committed):
        end = min(start + committed, len(chunk_ids))
        async with engine.begin() as connection:
            for first in range(start, end, copied):
                part = slice(first, min(first + copied, end))
                await add_vectors(connection, model_id, 1, 1, chunk_ids[part], vectors[part])


def insert_one_by_one(
    url: str, model_id: int, chunk_ids: Sequence[int], vectors: NDArray[np.float32]
) -> float:
    """Seconds that it takes."""
    rows = [
        (chunk_id, model_id, HalfVector(vector))
        for chunk_id, vector in zip(chunk_ids, vectors, strict=True)
    ]
    with psycopg.connect(libpq_url(url)) as connection:
        register_vector(connection)
        cursor = connection.cursor()
        started = time.perf_counter()
        for start in range(0, len(rows), DOCUMENT_CHUNKS):
            for row in rows[start : start + DOCUMENT_CHUNKS]:
                cursor.execute(INSERT, row, prepare=True)
            connection.commit()
        return time.perf_counter() - started


async def measure_round(
    engine: AsyncEngine, url: str, number: int, live: int, rows: int, inserted: int
) -> dict[str, float]:
    """Rows per second of every way, each into an index of its own."""
    generator = np.random.default_rng(100 + number)
    rates: dict[str, float] = {}
    ways = {"blocks": (DOCUMENT_CHUNKS, BLOCK_CHUNKS), "batches": (BATCH_CHUNKS, BATCH_CHUNKS)}
    for way, rows_each in ways.items():
        model_id = await model(engine, f"{way} of round {number}")
        chunk_ids = await make_chunks(engine, live)
        await copy(engine, model_id, chunk_ids, drawn_vectors(generator, live), *ways["batches"])
        assert await ensure_index(engine, model_id)
        if not rates:
            chunk_ids = await make_chunks(engine, inserted)
            vectors = drawn_vectors(generator, inserted)
            seconds = await asyncio.to_thread(insert_one_by_one, url, model_id, chunk_ids, vectors)
            rates["inserted"] = inserted / seconds
        async with bulk_load(engine, model_id):
            assert await begin_leaf(engine, model_id)
            chunk_ids = await make_chunks(engine, rows)
            vectors = drawn_vectors(generator, rows)
            started = time.perf_counter()
            await copy(engine, model_id, chunk_ids, vectors, *rows_each)
            loaded = time.perf_counter()
        assert await ensure_index(engine, model_id)
        indexed = time.perf_counter()
        rates[f"loaded_by_{way}"] = rows / (loaded - started)
        rates[f"loaded_by_{way}_and_indexed"] = rows / (indexed - started)
    return rates


async def measure(live: int, rows: int, inserted: int, rounds: int) -> dict[str, Any]:
    load_average = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as home, EmbeddedPostgres(Path(home)) as url:
        migrate(url)
        engine = open_engine(Settings(home=Path(home)), url)
        try:
            await model(engine, "of the collection")
            async with engine.begin() as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                await driver.execute(SETUP)
            rates = [
                await measure_round(engine, url, number, live, rows, inserted)
                for number in range(rounds)
            ]
        finally:
            await engine.dispose()
    ways = [way for way in rates[0] if way != "inserted"]
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": usable_cores(), "load_average_before": load_average},
        "vectors": f"{DIMENSIONS} dimensions, halfvec; {live} in the live index, {rows} loaded,"
        f" {inserted} inserted",
        "rows_per_second": {
            way: [round(one[way], 1) for one in rates] for way in ("inserted", *ways)
        },
        "ratio": {
            way: round(median(one[way] / one["inserted"] for one in rates), 1) for way in ways
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--live", type=int, default=20_000, help="rows in the live index")
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the bulk load")
    parser.add_argument("--inserted", type=int, default=2_000, help="rows inserted one by one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    result = asyncio.run(
        measure(arguments.live, arguments.rows, arguments.inserted, arguments.rounds)
    )
    print(json.dumps(result, indent=2))
    if arguments.record:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
