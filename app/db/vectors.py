"""Stored vectors: one partition of `embeddings` per model, with an HNSW index once it pays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.types import Integer, LargeBinary

from app.failpoints import reach

INDEX_FROM_ROWS = 5_000
"""Below this an exact scan is as fast as the index, and inserting is faster without one."""

_INLINE_DIMENSIONS = 3_500
"""Up to here a vector fits into a page of the table itself, where a scan finds it sooner."""

_LOCK_CLASS = 0x686E7377
"""First half of the advisory locks' keys; the second is the model, or 0 while one is registered."""


def partition_name(model_id: int) -> str:
    return f"embeddings_m{model_id:d}"


def index_name(model_id: int) -> str:
    return f"{partition_name(model_id)}_hnsw"


async def register_model(
    connection: AsyncConnection, *, name: str, digest: str, dimensions: int
) -> int:
    """The id of the model with this digest; its row and partition are made if they are new.

    Safe when several processes register the same model at once. Making a partition locks `chunks`
    against writers until the transaction ends, so give it a short transaction of its own.
    """
    known = await connection.execute(_MODEL_ID, {"digest": digest})
    if (model_id := known.scalar()) is not None:
        return int(model_id)
    await connection.execute(_LOCK, {"class": _LOCK_CLASS, "model_id": 0})
    known = await connection.execute(_MODEL_ID, {"digest": digest})
    if (model_id := known.scalar()) is not None:
        return int(model_id)
    inserted = await connection.execute(
        _INSERT_MODEL, {"name": name, "digest": digest, "dimensions": dimensions}
    )
    model_id = int(inserted.scalar_one())
    partition = partition_name(model_id)
    await connection.execute(
        text(
            f"CREATE TABLE {partition} PARTITION OF embeddings"
            f" (CONSTRAINT dimensions CHECK (vector_dims(vector) = {dimensions:d}))"
            f" FOR VALUES IN ({model_id:d})"
        )
    )
    if dimensions <= _INLINE_DIMENSIONS:
        await connection.execute(
            text(f"ALTER TABLE {partition} ALTER COLUMN vector SET STORAGE PLAIN")
        )
    return model_id


_LOCK = text("SELECT pg_advisory_xact_lock(:class, :model_id)")
_MODEL_ID = text("SELECT id FROM embedding_models WHERE digest = :digest")
_INSERT_MODEL = text(
    """
    INSERT INTO embedding_models (name, digest, dimensions)
    VALUES (:name, :digest, :dimensions) RETURNING id
    """
)


async def add_vectors(
    connection: AsyncConnection,
    model_id: int,
    tenant_id: int,
    collection_id: int,
    chunk_ids: Sequence[int],
    vectors: NDArray[np.float32],
) -> None:
    """Store unit vectors, shape (len(chunk_ids), dimensions), rounded to half precision."""
    if len(chunk_ids) != len(vectors):
        raise ValueError(f"{len(chunk_ids)} chunks but {len(vectors)} vectors")
    if not chunk_ids:
        return
    dimensions = vectors.shape[1]
    # The rows of a binary COPY, which are all of one size here; each value follows its length.
    rows = np.zeros(
        len(chunk_ids),
        [
            ("columns", ">i2"),
            ("chunk_id_bytes", ">i4"),
            ("chunk_id", ">i8"),
            ("model_id_bytes", ">i4"),
            ("model_id", ">i2"),
            ("tenant_id_bytes", ">i4"),
            ("tenant_id", ">i4"),
            ("collection_id_bytes", ">i4"),
            ("collection_id", ">i4"),
            ("vector_bytes", ">i4"),
            ("dimensions", ">i2"),
            ("unused", ">i2"),
            ("vector", ">f2", (dimensions,)),
        ],
    )
    rows["columns"] = 5
    rows["chunk_id_bytes"], rows["chunk_id"] = 8, chunk_ids
    rows["model_id_bytes"], rows["model_id"] = 2, model_id
    rows["tenant_id_bytes"], rows["tenant_id"] = 4, tenant_id
    rows["collection_id_bytes"], rows["collection_id"] = 4, collection_id
    rows["vector_bytes"], rows["dimensions"] = 4 + 2 * dimensions, dimensions
    rows["vector"] = vectors
    if not connection.in_transaction():
        await connection.begin()
    driver: Any = (await connection.get_raw_connection()).driver_connection
    async with (
        driver.cursor() as cursor,
        cursor.copy(
            f"COPY {partition_name(model_id)}"
            " (chunk_id, model_id, tenant_id, collection_id, vector) FROM STDIN (FORMAT BINARY)"
        ) as copy,
    ):
        await copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8) + rows.tobytes() + b"\xff\xff")


def decode_vector(sent: bytes) -> NDArray[np.float32]:
    """The vector that `halfvec_send` wrote."""
    return np.frombuffer(sent, ">f2", offset=4).astype(np.float32)


async def known_vectors(
    connection: AsyncConnection, tenant_id: int, model_id: int, content_hashes: Sequence[bytes]
) -> dict[bytes, NDArray[np.float32]]:
    """Vectors that the tenant already has for these texts; unknown hashes are left out."""
    rows = await connection.execute(
        text(
            f"""
            SELECT DISTINCT ON (c.content_hash) c.content_hash, halfvec_send(e.vector)
            FROM chunks AS c
            JOIN {partition_name(model_id)} AS e ON e.chunk_id = c.id AND e.model_id = :model_id
            WHERE c.tenant_id = :tenant_id AND c.content_hash = ANY(:content_hashes)
            ORDER BY c.content_hash, c.id
            """  # noqa: S608 - the name is made of a number
        ).bindparams(bindparam("content_hashes", type_=ARRAY(LargeBinary))),
        {
            "tenant_id": tenant_id,
            "model_id": model_id,
            "content_hashes": list(content_hashes),
        },
    )
    return {bytes(content_hash): decode_vector(sent) for content_hash, sent in rows}


async def ensure_index(engine: AsyncEngine, model_id: int) -> bool:
    """Build the model's HNSW index if it is due and missing; True when this call built it.

    Reads and writes go on meanwhile. A leftover of an interrupted build is dropped first. When
    another process is building, this returns at once.
    """
    partition, index = partition_name(model_id), index_name(model_id)
    lock = {"class": _LOCK_CLASS, "model_id": model_id}
    async with engine.connect() as opened:
        connection = await opened.execution_options(isolation_level="AUTOCOMMIT")
        if not (await connection.execute(_TRY_LOCK, lock)).scalar_one():
            return False
        try:
            dimensions = (await connection.execute(_DIMENSIONS, {"model_id": model_id})).scalar()
            valid = (await connection.execute(_INDEX_VALID, {"index": index})).scalar()
            if valid or dimensions is None:
                return False
            enough = await connection.execute(
                text(f"SELECT count(*) FROM (SELECT FROM {partition} LIMIT :rows)"),  # noqa: S608 - the name is made of a number
                {"rows": INDEX_FROM_ROWS},
            )
            if enough.scalar_one() < INDEX_FROM_ROWS:
                return False
            if valid is False:
                await connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {index}"))
            reach("vectors.before_index")
            await connection.execute(_BUILD_SETTINGS)
            await connection.execute(
                text(
                    f"CREATE INDEX CONCURRENTLY {index} ON {partition}"
                    f" USING hnsw ((vector::halfvec({dimensions:d})) halfvec_ip_ops)"
                    " WITH (m = 16, ef_construction = 128)"
                )
            )
            reach("vectors.index_built")
            return True
        finally:
            # The settings and the lock belong to the connection, which goes back to the pool.
            await connection.invalidate()


_TRY_LOCK = text("SELECT pg_try_advisory_lock(:class, :model_id)")
_DIMENSIONS = text("SELECT dimensions FROM embedding_models WHERE id = :model_id").bindparams(
    bindparam("model_id", type_=Integer)
)
_INDEX_VALID = text(
    "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(quote_ident(:index))"
)
_BUILD_SETTINGS = text(
    """
    SELECT set_config('statement_timeout', '0', false),
      set_config('maintenance_work_mem', '512MB', false),
      set_config('max_parallel_maintenance_workers', '2', false)
    """
)
