"""Stored vectors, and the models that made them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import LargeBinary

from app.db.vector_partitions import make_partition, partition_name

_REGISTRATION = 0x6D6F6465
"""The advisory lock of whoever registers a model."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model as it was registered; `location` is the folder it was found in, unless bundled."""

    id: int
    name: str
    digest: str
    dimensions: int
    location: str | None


async def read_model(connection: AsyncConnection, model_id: int) -> StoredModel:
    found = await connection.execute(_MODEL, {"model_id": model_id})
    return StoredModel(*found.one())


async def wanted_models(connection: AsyncConnection) -> list[StoredModel]:
    """The models that collections are searched with, or may be soon: those on their way first."""
    return [StoredModel(*row) for row in await connection.execute(_WANTED)]


async def find_model(connection: AsyncConnection, digest: str) -> int | None:
    """The id of the model with this digest; None when it never was registered here."""
    known = await connection.execute(_MODEL_ID, {"digest": digest})
    return known.scalar()


async def register_model(
    connection: AsyncConnection,
    *,
    name: str,
    digest: str,
    dimensions: int,
    location: str | None = None,
) -> int:
    """The id of the model with this digest; its row and partition are made if they are new.

    Safe when several processes register the same model at once. Making a partition locks `chunks`
    against writers until the transaction ends, so give it a short transaction of its own.
    """
    if (known := await find_model(connection, digest)) is not None:
        return known
    await connection.execute(_LOCK, {"lock": _REGISTRATION})
    if (known := await find_model(connection, digest)) is not None:
        return known
    inserted = await connection.execute(
        _INSERT_MODEL,
        {"name": name, "digest": digest, "dimensions": dimensions, "location": location},
    )
    model_id = int(inserted.scalar_one())
    await make_partition(connection, model_id, dimensions)
    return model_id


_LOCK = text("SELECT pg_advisory_xact_lock(:lock)")
_MODEL_ID = text("SELECT id FROM embedding_models WHERE digest = :digest")
_MODEL = text(
    "SELECT id, name, digest, dimensions, location FROM embedding_models WHERE id = :model_id"
)
_WANTED = text(
    """
    SELECT m.id, m.name, m.digest, m.dimensions, m.location
    FROM embedding_models AS m
    JOIN LATERAL (
      SELECT min(place) AS place FROM (
        SELECT CASE status WHEN 'retained' THEN 3 ELSE 1 END AS place FROM model_switches
        WHERE model_id = m.id AND status IN ('preparing', 'prepared', 'retained')
        UNION ALL
        SELECT 2 FROM collections WHERE embedding_model_id = m.id)) AS wanted
      ON wanted.place IS NOT NULL
    ORDER BY wanted.place, m.id
    """
)
_INSERT_MODEL = text(
    """
    INSERT INTO embedding_models (name, digest, dimensions, location)
    VALUES (:name, :digest, :dimensions, :location) RETURNING id
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
    """Vectors that the tenant already has for these texts; unknown hashes are left out.

    However often a text occurs, one vector of it is read.
    """
    rows = await connection.execute(
        text(
            f"""
            SELECT wanted.content_hash, known.vector
            FROM unnest(:content_hashes) AS wanted (content_hash)
            CROSS JOIN LATERAL (
              SELECT halfvec_send(e.vector) AS vector
              FROM chunks AS c
              JOIN {partition_name(model_id)} AS e ON e.chunk_id = c.id AND e.model_id = :model_id
              WHERE c.tenant_id = :tenant_id AND c.content_hash = wanted.content_hash
              LIMIT 1) AS known
            """  # noqa: S608 - the name is made of a number
        ).bindparams(bindparam("content_hashes", type_=ARRAY(LargeBinary))),
        {
            "tenant_id": tenant_id,
            "model_id": model_id,
            "content_hashes": list(content_hashes),
        },
    )
    return {bytes(content_hash): decode_vector(sent) for content_hash, sent in rows}
