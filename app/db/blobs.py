"""The SQL of originals: stored once per tenant, gone with the last document that needs them."""

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import LargeBinary


class Freed(NamedTuple):
    """How many originals were dropped, and their bytes."""

    originals: int = 0
    bytes: int = 0


async def store_blob(
    connection: AsyncConnection, tenant_id: int, sha256: bytes, content: bytes
) -> None:
    """Keep an original; it cannot be dropped by others before this transaction ends."""
    key = {"tenant_id": tenant_id, "sha256": sha256}
    if (await connection.execute(_HOLD, key)).scalar() is None:
        await connection.execute(_STORE, {**key, "content": content, "size_bytes": len(content)})


async def read_blob(connection: AsyncConnection, tenant_id: int, sha256: bytes) -> bytes | None:
    found = await connection.execute(_READ, {"tenant_id": tenant_id, "sha256": sha256})
    return found.scalar()


async def drop_unused_blobs(
    connection: AsyncConnection, tenant_id: int, hashes: Iterable[bytes | None]
) -> Freed:
    """Drop those originals that no document and no version needs."""
    scope = {"tenant_id": tenant_id, "hashes": sorted({sha for sha in hashes if sha is not None})}
    if not scope["hashes"]:
        return Freed()
    # Two statements: the second has to see the documents of those who held a blob until now.
    await connection.execute(_LOCK, scope)
    originals, freed_bytes = (await connection.execute(_DROP, scope)).one()
    return Freed(originals, int(freed_bytes))


_HASHES = bindparam("hashes", type_=ARRAY(LargeBinary))
_HOLD = text("SELECT 1 FROM blobs WHERE tenant_id = :tenant_id AND sha256 = :sha256 FOR KEY SHARE")
# The update changes nothing; it locks a row that somebody else has just stored.
_STORE = text(
    """
    INSERT INTO blobs (tenant_id, sha256, content, size_bytes)
    VALUES (:tenant_id, :sha256, :content, :size_bytes)
    ON CONFLICT (tenant_id, sha256) DO UPDATE SET size_bytes = excluded.size_bytes
    """
).bindparams(bindparam("content", type_=LargeBinary))
_READ = text("SELECT content FROM blobs WHERE tenant_id = :tenant_id AND sha256 = :sha256")
_LOCK = text(
    """
    SELECT 1 FROM blobs WHERE tenant_id = :tenant_id AND sha256 = ANY(:hashes)
    ORDER BY sha256 FOR UPDATE
    """
).bindparams(_HASHES)
_DROP = text(
    """
    WITH dropped AS (
      DELETE FROM blobs AS b
      WHERE b.tenant_id = :tenant_id AND b.sha256 = ANY(:hashes)
        AND NOT EXISTS (
          SELECT 1 FROM documents AS d
          WHERE d.tenant_id = b.tenant_id AND d.blob_sha256 = b.sha256)
        AND NOT EXISTS (
          SELECT 1 FROM document_versions AS v
          WHERE v.tenant_id = b.tenant_id AND v.blob_sha256 = b.sha256)
      RETURNING b.size_bytes
    )
    SELECT count(*), coalesce(sum(size_bytes), 0) FROM dropped
    """
).bindparams(_HASHES)
