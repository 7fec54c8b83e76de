"""The SQL of rebuilding a collection: what is outdated, and until when somebody has to look.

`collections.rebuild_since` is the note that versions from before that moment may be outdated. It is
written together with the change that made them so, and taken back when nothing is outdated any
more. A version from after it is not: so a rebuild ends, whoever else is writing. A writer that
began under older settings renews the note as it commits (`count_change`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Uuid

from app.db.collection_settings import CollectionSettings


@dataclass(frozen=True, slots=True)
class DueRebuild:
    """A collection whose documents may be outdated; `since` identifies the note."""

    collection_id: int
    name: str
    since: datetime
    settings: CollectionSettings


async def lock_settings(
    connection: AsyncConnection, collection_id: int
) -> CollectionSettings | None:
    """The settings, which nobody changes until this transaction ends; None if it is gone."""
    found = (await connection.execute(_LOCK, {"collection_id": collection_id})).scalar()
    return CollectionSettings.model_validate(found) if found is not None else None


async def change_settings(
    connection: AsyncConnection,
    collection_id: int,
    before: CollectionSettings,
    after: CollectionSettings,
) -> None:
    """Store them; note a rebuild if they shape documents, and a new order if they shape search."""
    values = {
        "collection_id": collection_id,
        "settings": after.stored(),
        "found_otherwise": int(after.search != before.search),
    }
    await connection.execute(_CHANGE, values)
    if after.shaping() != before.shaping():
        await note_rebuild(connection, collection_id)


async def note_rebuild(connection: AsyncConnection, collection_id: int) -> None:
    await connection.execute(_NOTE, {"collection_id": collection_id})


async def count_outdated(connection: AsyncConnection, collection_id: int) -> int:
    """How many documents serve a version that is to be rebuilt, as far as is known."""
    found = await connection.execute(_COUNT, {"collection_id": collection_id})
    return int(found.scalar_one())


async def due_rebuilds(connection: AsyncConnection) -> list[DueRebuild]:
    """The collections with a note, the oldest first."""
    rows = await connection.execute(_DUE)
    return [
        DueRebuild(row.id, row.name, row.rebuild_since, CollectionSettings.model_validate(row[3]))
        for row in rows
    ]


async def is_any_due(connection: AsyncConnection) -> bool:
    return bool((await connection.execute(_ANY_DUE)).scalar_one())


async def say_digest(connection: AsyncConnection, due: DueRebuild, digest: str) -> None:
    """Let everybody know what the documents are brought to."""
    await connection.execute(_SAY, {**_key(due), "digest": digest})


async def count_queued(connection: AsyncConnection, collection_id: int) -> int:
    found = await connection.execute(_QUEUED, {"collection_id": collection_id})
    return int(found.scalar_one())


async def lock_outdated(
    connection: AsyncConnection, due: DueRebuild, digest: str, *, after: UUID, limit: int
) -> Sequence[UUID]:
    """The next documents that nobody is about to process, by id, locked."""
    scope = {"collection_id": due.collection_id, "digest": digest, "after": after, "limit": limit}
    document_ids = (await connection.execute(_NEXT, scope)).scalars().all()
    if document_ids:
        # Where the newest file could not be read, it is to be looked at again: what is rebuilt is
        # the version before it.
        await connection.execute(_LOOK_AGAIN, {"document_ids": document_ids})
    return document_ids


async def end_rebuild(connection: AsyncConnection, due: DueRebuild, digest: str) -> bool:
    """Take the note back unless something is outdated, or it was renewed meanwhile."""
    done = await connection.execute(_END, {**_key(due), "digest": digest})
    return bool(done.rowcount)


def _key(due: DueRebuild) -> dict[str, Any]:
    return {"collection_id": due.collection_id, "since": due.since}


# What failed under the very same pipeline would fail again.
_OUTDATED = """
    d.blob_sha256 IS NOT NULL AND v.created_at < c.rebuild_since
    AND v.pipeline_digest IS DISTINCT FROM {digest}
    AND NOT (d.status = 'failed' AND coalesce(d.pipeline_digest = {digest}, false))
"""
_DOCUMENTS = """
    documents AS d JOIN document_versions AS v ON v.id = d.current_version_id
    JOIN collections AS c ON c.id = d.collection_id
"""
_LOCK = text("SELECT settings FROM collections WHERE id = :collection_id FOR UPDATE")
_CHANGE = text(
    """
    UPDATE collections SET settings = :settings, generation = generation + :found_otherwise
    WHERE id = :collection_id
    """
).bindparams(bindparam("settings", type_=JSONB))
_NOTE = text(
    """
    UPDATE collections SET rebuild_since = clock_timestamp(), rebuild_digest = NULL
    WHERE id = :collection_id
    """
)
_COUNT = text(
    f"""
    SELECT count(*) FROM {_DOCUMENTS}
    WHERE c.id = :collection_id AND {_OUTDATED.format(digest="c.rebuild_digest")}
    """  # noqa: S608 - put together from constants, as below
)
_ANY_DUE = text("SELECT EXISTS (SELECT 1 FROM collections WHERE rebuild_since IS NOT NULL)")
_DUE = text(
    """
    SELECT c.id, c.name, c.rebuild_since, c.settings
    FROM collections AS c WHERE c.rebuild_since IS NOT NULL ORDER BY c.rebuild_since
    """
)
_SAY = text(
    """
    UPDATE collections SET rebuild_digest = :digest
    WHERE id = :collection_id AND rebuild_since = :since AND rebuild_digest IS DISTINCT FROM :digest
    """
)
_QUEUED = text(
    "SELECT count(*) FROM documents WHERE collection_id = :collection_id AND status = 'queued'"
)
_NEXT = text(
    f"""
    SELECT d.id FROM {_DOCUMENTS}
    WHERE c.id = :collection_id AND d.id > :after AND d.status IN ('ready', 'failed')
      AND {_OUTDATED.format(digest=":digest")}
    ORDER BY d.id LIMIT :limit FOR UPDATE OF d SKIP LOCKED
    """  # noqa: S608
).bindparams(bindparam("after", type_=Uuid))
_LOOK_AGAIN = text(
    """
    UPDATE documents SET modified_ns = NULL, source_tag = NULL
    WHERE id = ANY(:document_ids) AND status = 'failed'
    """
).bindparams(bindparam("document_ids", type_=ARRAY(Uuid)))
_END = text(
    f"""
    UPDATE collections AS own SET rebuild_since = NULL, rebuild_digest = NULL
    WHERE own.id = :collection_id AND own.rebuild_since = :since AND NOT EXISTS (
      SELECT 1 FROM {_DOCUMENTS}
      WHERE c.id = :collection_id AND {_OUTDATED.format(digest=":digest")})
    """  # noqa: S608
)
