"""Signs of token vectors, for collections that ask for late interaction.

They are no part of a version: a passage is found without them too. So nobody waits for them when a
document is written; a worker makes them behind, and a passage that stays as it was keeps its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import BigInteger, LargeBinary

from app.db.snapshot import Snapshot

Signs = NDArray[np.uint8]

_FILLER = 0x746F6B65
"""First half of the advisory lock of whoever fills a collection; the second is the collection."""


@dataclass(frozen=True, slots=True)
class Wanting:
    """A collection whose token vectors are not as its settings say, as far as is known."""

    collection_id: int
    tenant_id: int
    model_id: int
    model_digest: str
    name: str
    generation: int
    is_wanted: bool


def bytes_per_token(dimensions: int) -> int:
    return -(-dimensions // 8)


async def read_signs(
    snapshot: Snapshot,
    model_id: int,
    tenant_id: int,
    collection_ids: NDArray[np.int64],
    chunk_ids: NDArray[np.int64],
    version: int,
) -> dict[int, Signs]:
    """The signs of these chunks, shape (tokens, bytes); chunks that have none are left out."""
    rows = await snapshot.fetch(
        _READ,
        {
            "chunk_ids": chunk_ids,
            "model_id": model_id,
            "tenant_id": tenant_id,
            "collection_ids": collection_ids,
            "version": version,
        },
    )
    return {
        chunk_id: np.frombuffer(signs, np.uint8).reshape(-1, width)
        for chunk_id, width, signs in rows
    }


async def add_signs(
    connection: AsyncConnection,
    wanting: Wanting,
    chunk_ids: Sequence[int],
    signs: Sequence[Signs],
    version: int,
) -> int:
    """Store those of chunks that are still there; how many they were."""
    added = await connection.execute(
        _ADD,
        {
            "chunk_ids": list(chunk_ids),
            "signs": [one.tobytes() for one in signs],
            "width": signs[0].shape[1] if signs else 0,
            "model_id": wanting.model_id,
            "version": version,
        },
    )
    return added.rowcount


async def keep_signs(connection: AsyncConnection, old_version_id: int, version_id: int) -> None:
    """Give the passages of a new version the signs of those of the old one that are the same."""
    await connection.execute(_KEEP, {"old_version_id": old_version_id, "version_id": version_id})


async def wanting_collections(connection: AsyncConnection) -> list[Wanting]:
    """The collections that ask for token vectors, and those that have some without asking."""
    return [Wanting(*row) for row in await connection.execute(_WANTING)]


async def may_fill(connection: AsyncConnection, collection_id: int) -> bool:
    """Whether nobody else fills it until this transaction ends."""
    lock = {"class": _FILLER, "collection_id": collection_id}
    return bool((await connection.execute(_MAY_FILL, lock)).scalar_one())


async def next_without_signs(
    connection: AsyncConnection, wanting: Wanting, *, after: int, limit: int, version: int
) -> Sequence[Any]:
    """Rows of passages (id, text, context, heading, title) that have none, by id."""
    scope = {
        "collection_id": wanting.collection_id,
        "model_id": wanting.model_id,
        "after": after,
        "limit": limit,
        "version": version,
    }
    return (await connection.execute(_NEXT, scope)).all()


async def drop_signs(connection: AsyncConnection, collection_id: int, limit: int) -> int:
    """Remove some of a collection that does not ask for them any more; how many they were."""
    dropped = await connection.execute(_DROP, {"collection_id": collection_id, "limit": limit})
    return dropped.rowcount


_READ = """
    SELECT chunk_id, width, signs FROM token_vectors
    WHERE chunk_id = ANY(%(chunk_ids)s) AND model_id = %(model_id)s
      AND tenant_id = %(tenant_id)s AND collection_id = ANY(%(collection_ids)s)
      AND version = %(version)s
"""
# The lock on each chunk keeps it there until what belongs to it is committed.
_ADD = text(
    """
    WITH here AS (
      SELECT c.id, c.tenant_id, c.collection_id FROM chunks AS c
      WHERE c.id = ANY(:chunk_ids) ORDER BY c.id FOR KEY SHARE
    )
    INSERT INTO token_vectors (chunk_id, model_id, tenant_id, collection_id, version, width, signs)
    SELECT here.id, :model_id, here.tenant_id, here.collection_id, :version, :width, given.signs
    FROM here JOIN unnest(:chunk_ids, :signs) AS given (id, signs) ON given.id = here.id
    ON CONFLICT (chunk_id) DO UPDATE
    SET model_id = excluded.model_id, version = excluded.version, width = excluded.width,
      signs = excluded.signs
    """
).bindparams(
    bindparam("chunk_ids", type_=ARRAY(BigInteger)), bindparam("signs", type_=ARRAY(LargeBinary))
)
_KEEP = text(
    """
    INSERT INTO token_vectors (chunk_id, model_id, tenant_id, collection_id, version, width, signs)
    SELECT DISTINCT ON (new.id) new.id, t.model_id, t.tenant_id, t.collection_id, t.version,
      t.width, t.signs
    FROM chunks AS new
    JOIN chunks AS old ON old.version_id = :old_version_id AND old.content_hash = new.content_hash
    JOIN token_vectors AS t ON t.chunk_id = old.id
    WHERE new.version_id = :version_id
    ORDER BY new.id
    """
)
_WANTING = text(
    """
    SELECT c.id, c.tenant_id, c.embedding_model_id, m.digest, c.name, c.generation,
      coalesce((c.settings #>> '{search,token_vectors}')::boolean, false)
    FROM collections AS c JOIN embedding_models AS m ON m.id = c.embedding_model_id
    WHERE coalesce((c.settings #>> '{search,token_vectors}')::boolean, false)
      OR EXISTS (SELECT FROM token_vectors AS t WHERE t.collection_id = c.id)
    ORDER BY c.id
    """
)
_MAY_FILL = text("SELECT pg_try_advisory_xact_lock(:class, :collection_id)")
_NEXT = text(
    """
    SELECT c.id, c.text, c.context, c.heading, d.title
    FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
    WHERE c.collection_id = :collection_id AND c.id > :after AND NOT EXISTS (
      SELECT FROM token_vectors AS t
      WHERE t.chunk_id = c.id AND t.model_id = :model_id AND t.version = :version)
    ORDER BY c.id LIMIT :limit
    """
)
_DROP = text(
    """
    DELETE FROM token_vectors WHERE chunk_id IN (
      SELECT chunk_id FROM token_vectors WHERE collection_id = :collection_id LIMIT :limit)
    """
)
