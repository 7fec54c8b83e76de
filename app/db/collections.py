"""The SQL of collections: found, made, counted, deleted."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.blobs import drop_unused_blobs
from app.db.collection_settings import DEFAULTS, CollectionSettings
from app.db.postings import remove_all_postings
from app.errors import Conflict, InvalidInput, NotFound

DEFAULT_COLLECTION = "default"

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

_LOCK_CLASS = 0x636F6C6C
"""First half of the advisory lock's key; the second is the collection."""


@dataclass(frozen=True, slots=True)
class StoredCollection:
    id: int
    tenant_id: int
    name: str
    model_id: int
    model_name: str
    generation: int
    documents_count: int
    chunks_count: int
    terms_count: int
    created_at: datetime
    settings: CollectionSettings = DEFAULTS

    def check_model(self, model_id: int, model_name: str) -> None:
        """Raise Conflict when its passages were embedded by another model than this one."""
        if self.model_id != model_id:
            raise Conflict(
                f"The collection {self.name} was made with the embedding model {self.model_name}, "
                f"not with this {model_name}.",
                hint=f"Set FOOTNOTE_EMBEDDING_MODEL={self.model_name}, or use a new collection.",
            )


@dataclass(frozen=True, slots=True)
class Removed:
    """What a deletion took away.

    `token_vectors` are the passages that had some, `postings` entries of the keyword index.
    `originals` are those that nothing else needs, and `bytes` theirs.
    """

    documents: int = 0
    chunks: int = 0
    vectors: int = 0
    token_vectors: int = 0
    postings: int = 0
    originals: int = 0
    bytes: int = 0


def check_name(name: str) -> str:
    """The name itself; raises InvalidInput when it cannot be a collection's."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            "A collection's name has 1 to 64 characters of a-z, 0-9, _ and -, and begins with a "
            "letter or a digit.",
            hint="Choose another name for the collection.",
        )
    return name


async def find_collection(
    connection: AsyncConnection, tenant_id: int, name: str
) -> StoredCollection | None:
    found = await connection.execute(_FIND, {"tenant_id": tenant_id, "name": name})
    row = found.one_or_none()
    return _stored(row) if row else None


async def list_collections(connection: AsyncConnection, tenant_id: int) -> list[StoredCollection]:
    """All of the tenant's collections by name."""
    rows = await connection.execute(_LIST, {"tenant_id": tenant_id})
    return [_stored(row) for row in rows]


async def create_collection(
    connection: AsyncConnection,
    tenant_id: int,
    name: str,
    model_id: int,
    settings: CollectionSettings = DEFAULTS,
) -> bool:
    """False when the name is taken."""
    values = {
        "tenant_id": tenant_id,
        "name": check_name(name),
        "model_id": model_id,
        "settings": settings.stored(),
    }
    return (await connection.execute(_CREATE, values)).scalar() is not None


async def ensure_collection(
    connection: AsyncConnection, tenant_id: int, name: str, model_id: int
) -> StoredCollection:
    """The collection of this name, made for this model if it is new."""
    found = await find_collection(connection, tenant_id, name)
    if found is None:
        await create_collection(connection, tenant_id, name, model_id)
        found = await find_collection(connection, tenant_id, name)
    if found is None:
        raise NotFound(f"The collection {name} was deleted just now.")
    return found


async def enter_collection(connection: AsyncConnection, collection_id: int) -> int:
    """Begin a write into the collection; first thing in every transaction that does.

    Gives the id of the model that its passages are embedded with, until the transaction ends.
    Writers share the collection; only its deletion, and another model that is put in service, keep
    them out. Raises NotFound when the collection is gone.
    """
    await connection.execute(_ENTER, {"class": _LOCK_CLASS, "collection_id": collection_id})
    return await _model_in(connection, collection_id)


async def enter_alone(connection: AsyncConnection, collection_id: int) -> int:
    """The same with no other writer in it."""
    await connection.execute(_ALONE, {"class": _LOCK_CLASS, "collection_id": collection_id})
    return await _model_in(connection, collection_id)


async def _model_in(connection: AsyncConnection, collection_id: int) -> int:
    # A statement of its own: it has to see what the lock's last holder committed.
    found = await connection.execute(_MODEL, {"collection_id": collection_id})
    if (model_id := found.scalar()) is None:
        raise NotFound("The collection was deleted.")
    return int(model_id)


async def count_change(
    connection: AsyncConnection,
    collection_id: int,
    *,
    documents: int = 0,
    chunks: int = 0,
    terms: int = 0,
    language: str | None = None,
    built_with: CollectionSettings | None = None,
) -> None:
    """Add to the statistics and raise the generation: last in a transaction, for it locks.

    `language` is that of a document that was added, `built_with` the settings that shaped it. If
    the collection has others by now, this notes that documents are outdated.
    """
    await connection.execute(
        _COUNT,
        {
            "collection_id": collection_id,
            "documents": documents,
            "chunks": chunks,
            "terms": terms,
            "language": language,
            "built_with": built_with.shaping() if built_with is not None else None,
        },
    )


async def delete_collection(connection: AsyncConnection, collection: StoredCollection) -> Removed:
    """Remove it with all that is in it, originals included, when nobody is writing to it."""
    scope = {"collection_id": collection.id}
    await connection.execute(_ALONE, {"class": _LOCK_CLASS, **scope})
    if (await connection.execute(_LOCK_ROW, scope)).scalar() is None:
        return Removed()
    postings_count = await remove_all_postings(connection, collection.id)
    vectors = await connection.execute(_DELETE_VECTORS, scope)
    tokens = await connection.execute(_DELETE_TOKENS, scope)
    chunks = await connection.execute(_DELETE_CHUNKS, scope)
    originals = (await connection.execute(_ORIGINALS, scope)).scalars().all()
    documents = await connection.execute(_DELETE_DOCUMENTS, scope)
    freed = await drop_unused_blobs(connection, collection.tenant_id, originals)
    await connection.execute(_DELETE, scope)
    return Removed(
        documents=documents.rowcount,
        chunks=chunks.rowcount,
        vectors=vectors.rowcount,
        token_vectors=tokens.rowcount,
        postings=postings_count,
        originals=freed.originals,
        bytes=freed.bytes,
    )


def _stored(row: Any) -> StoredCollection:
    *columns, settings = row
    return StoredCollection(*columns, settings=CollectionSettings.model_validate(settings))


_COLUMNS = """
    c.id, c.tenant_id, c.name, c.embedding_model_id, m.name, c.generation, c.documents_count,
    c.chunks_count, c.terms_count, c.created_at, c.settings
    FROM collections AS c JOIN embedding_models AS m ON m.id = c.embedding_model_id
    WHERE c.tenant_id = :tenant_id
"""
_FIND = text(f"SELECT {_COLUMNS} AND c.name = :name")
_LIST = text(f"SELECT {_COLUMNS} ORDER BY c.name")
_CREATE = text(
    """
    INSERT INTO collections (tenant_id, name, embedding_model_id, settings)
    VALUES (:tenant_id, :name, :model_id, :settings)
    ON CONFLICT (tenant_id, name) DO NOTHING RETURNING id
    """
).bindparams(bindparam("settings", type_=JSONB))
_ENTER = text("SELECT pg_advisory_xact_lock_shared(:class, :collection_id)")
_MODEL = text("SELECT embedding_model_id FROM collections WHERE id = :collection_id")
_COUNT = text(
    """
    UPDATE collections SET generation = generation + 1,
      documents_count = documents_count + :documents,
      chunks_count = chunks_count + :chunks,
      terms_count = terms_count + :terms,
      languages = CASE
        WHEN CAST(:language AS text) = ANY(languages) THEN languages
        ELSE array_remove(languages || CAST(:language AS text), NULL)
      END,
      rebuild_since = CASE
        WHEN settings - 'search' <> CAST(:built_with AS jsonb) THEN clock_timestamp()
        ELSE rebuild_since
      END
    WHERE id = :collection_id
    """
).bindparams(bindparam("built_with", type_=JSONB(none_as_null=True)))
_ALONE = text("SELECT pg_advisory_xact_lock(:class, :collection_id)")
_LOCK_ROW = text("SELECT id FROM collections WHERE id = :collection_id FOR UPDATE")
_DELETE_VECTORS = text(
    """
    DELETE FROM embeddings AS e USING chunks AS c
    WHERE c.collection_id = :collection_id AND e.chunk_id = c.id
    """
)
_DELETE_TOKENS = text("DELETE FROM token_vectors WHERE collection_id = :collection_id")
_DELETE_CHUNKS = text("DELETE FROM chunks WHERE collection_id = :collection_id")
_ORIGINALS = text(
    """
    SELECT blob_sha256 FROM documents WHERE collection_id = :collection_id
    UNION
    SELECT v.blob_sha256 FROM document_versions AS v JOIN documents AS d ON d.id = v.document_id
    WHERE d.collection_id = :collection_id
    """
)
_DELETE_DOCUMENTS = text("DELETE FROM documents WHERE collection_id = :collection_id")
_DELETE = text("DELETE FROM collections WHERE id = :collection_id")
