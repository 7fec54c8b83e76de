"""The SQL of documents that uploads, the ingestion command and the worker share.

Whoever changes a document locks its row first, inside `enter_collection`, and counts the change
last. So writers of one document follow each other, and the collection's row is held briefly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import bindparam, func, text, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import BigInteger, Uuid

from app.db.blobs import drop_unused_blobs
from app.db.collections import Removed, count_change, enter_collection
from app.db.models import Document
from app.db.models.documents import DocumentStatus
from app.db.postings import remove_postings
from app.failpoints import reach

_CHUNK_IDS_LOCK = 0x63687565


@dataclass(frozen=True, slots=True)
class StoredVersion:
    id: int
    number: int
    blob_sha256: bytes
    pipeline_digest: str
    chunks_count: int
    terms_count: int
    terms: Sequence[str]
    first_chunk_id: int
    last_chunk_id: int


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document's row, and the version that serves if there is one."""

    id: UUID
    tenant_id: int
    collection_id: int
    uri: str
    root: str | None
    blob_sha256: bytes | None
    metadata: dict[str, Any]
    groups: Sequence[str]
    pending: dict[str, Any] | None
    status: DocumentStatus
    claim: UUID | None
    job_id: int | None
    version: StoredVersion | None

    def serves(self, blob_sha256: bytes, pipeline_digest: str) -> bool:
        """Whether the serving version was made of this original by this pipeline."""
        version = self.version
        return (
            version is not None
            and version.blob_sha256 == blob_sha256
            and version.pipeline_digest == pipeline_digest
        )


@dataclass(frozen=True, slots=True)
class SourceState:
    """What a sync needs to know of a document to tell whether its file changed."""

    id: UUID
    uri: str
    root: str | None
    size_bytes: int
    modified_ns: int | None
    source_tag: str | None
    status: DocumentStatus
    reason: str | None
    pipeline_digest: str | None
    version_id: int | None
    version_blob_sha256: bytes | None
    version_pipeline_digest: str | None

    def serves(self, blob_sha256: bytes, pipeline_digest: str) -> bool:
        """Whether the serving version was made of this original by this pipeline."""
        return (
            self.version_blob_sha256 == blob_sha256
            and self.version_pipeline_digest == pipeline_digest
        )


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a source says of a document whose content is as it was: time, tag and root."""

    document_id: UUID
    changed_ns: int | None
    tag: str | None
    root: str | None


# --- reading and locking --------------------------------------------------------------------------


async def lock_document(connection: AsyncConnection, document_id: UUID) -> StoredDocument | None:
    """The document, which nobody else changes until this transaction ends; None if it is gone."""
    await connection.execute(_LOCK, {"document_id": document_id})
    # A statement of its own: it has to see the version that the lock's last holder committed.
    found = await connection.execute(_READ, {"document_id": document_id})
    row = found.one_or_none()
    return _stored(row) if row is not None else None


async def lock_document_at(
    connection: AsyncConnection,
    *,
    tenant_id: int,
    collection_id: int,
    uri: str,
    title: str,
    media_type: str,
) -> tuple[StoredDocument, bool]:
    """The document at this URI, locked, and whether it was made just now."""
    place = {"collection_id": collection_id, "uri": uri}
    values = {"tenant_id": tenant_id, "title": title, "media_type": media_type, **place}
    while True:
        created = (await connection.execute(_CREATE, {"id": uuid4(), **values})).scalar()
        document_id = created or (await connection.execute(_FIND, place)).scalar()
        document = await lock_document(connection, document_id) if document_id else None
        if document is not None:
            return document, created is not None


async def list_sources(
    connection: AsyncConnection, collection_id: int, uri_prefixes: Sequence[str]
) -> list[SourceState]:
    """The documents whose URI begins like one of these, each once."""
    rows = await connection.execute(
        _SOURCES, {"collection_id": collection_id, "uri_prefixes": list(uri_prefixes)}
    )
    return [SourceState(*row) for row in rows]


# --- changing -------------------------------------------------------------------------------------


async def set_status(
    connection: AsyncConnection,
    document_id: UUID,
    status: DocumentStatus,
    reason: str | None = None,
    **values: Any,
) -> None:
    """Change the status, and whatever columns change with it; progress was that of the old one."""
    await connection.execute(
        update(Document)
        .where(Document.id == document_id)
        .values(status=status, reason=reason, status_at=func.now(), progress=None, **values)
    )


async def note_unchanged(connection: AsyncConnection, seen: Sequence[Sighting]) -> None:
    """Remember how unchanged content was found; a root that is known already stays."""
    if seen:
        await connection.execute(
            _NOTE_UNCHANGED,
            {
                "document_ids": [sighting.document_id for sighting in seen],
                "modified_ns": [sighting.changed_ns for sighting in seen],
                "tags": [sighting.tag for sighting in seen],
                "roots": [sighting.root for sighting in seen],
            },
        )


async def reserve_chunk_ids(connection: AsyncConnection, count: int) -> int:
    """The first of `count` consecutive chunk ids that nobody else gets.

    In a short transaction of its own: the lock lasts to its end, and ids never come back.
    """
    reserved = await connection.execute(_RESERVE, {"lock": _CHUNK_IDS_LOCK, "count": count})
    return int(reserved.scalar_one()) - count + 1


async def remove_version(
    connection: AsyncConnection, collection_id: int, version: StoredVersion
) -> Removed:
    """Take a version out of the index; the caller counts the change."""
    postings_count = await remove_postings(
        connection,
        collection_id,
        version.terms,
        version.first_chunk_id,
        version.last_chunk_id,
    )
    scope = {
        "version_id": version.id,
        "first": version.first_chunk_id,
        "last": version.last_chunk_id,
    }
    vectors = await connection.execute(_DELETE_VECTORS, scope)
    tokens = await connection.execute(_DELETE_TOKENS, scope)
    chunks = await connection.execute(_DELETE_CHUNKS, {"version_id": version.id})
    await connection.execute(_DELETE_VERSION, {"version_id": version.id})
    return Removed(
        chunks=chunks.rowcount,
        vectors=vectors.rowcount,
        token_vectors=tokens.rowcount,
        postings=postings_count,
    )


async def delete_document(connection: AsyncConnection, document_id: UUID) -> Removed | None:
    """Remove the document with all that was made of it; None when there is none.

    Work in progress on it finds it gone and writes nothing.
    """
    found = await connection.execute(_COLLECTION_OF, {"document_id": document_id})
    if (collection_id := found.scalar()) is None:
        return None
    await enter_collection(connection, collection_id)
    document = await lock_document(connection, document_id)
    if document is None:
        return None
    version = document.version
    removed = Removed()
    if version is not None:
        removed = await remove_version(connection, collection_id, version)
        reach("delete.version_removed")
    await connection.execute(_DELETE_DOCUMENT, {"document_id": document_id})
    freed = await drop_unused_blobs(
        connection,
        document.tenant_id,
        [document.blob_sha256, version.blob_sha256 if version else None],
    )
    if version is not None:
        await count_change(
            connection,
            collection_id,
            documents=-1,
            chunks=-version.chunks_count,
            terms=-version.terms_count,
        )
    reach("delete.before_commit")
    return replace(removed, documents=1, originals=freed.originals, bytes=freed.bytes)


# --- the statements -------------------------------------------------------------------------------


def _stored(row: Any) -> StoredDocument:
    columns = tuple[Any, ...](row)
    version = columns[_FIRST_VERSION_COLUMN:]
    return StoredDocument(
        *columns[:_FIRST_VERSION_COLUMN],
        version=StoredVersion(*version) if version[0] is not None else None,
    )


_FIRST_VERSION_COLUMN = 12
_LOCK = text("SELECT 1 FROM documents WHERE id = :document_id FOR UPDATE")
_READ = text(
    """
    SELECT d.id, d.tenant_id, d.collection_id, d.uri, d.root, d.blob_sha256, d.metadata,
      d.groups, d.pending, d.status, d.claim, d.job_id,
      v.id, v.number, v.blob_sha256, v.pipeline_digest, v.chunks_count, v.terms_count, v.terms,
      v.first_chunk_id, v.last_chunk_id
    FROM documents AS d LEFT JOIN document_versions AS v ON v.id = d.current_version_id
    WHERE d.id = :document_id
    """
)
_FIND = text("SELECT id FROM documents WHERE collection_id = :collection_id AND uri = :uri")
_CREATE = text(
    """
    INSERT INTO documents (id, tenant_id, collection_id, uri, title, media_type, size_bytes)
    VALUES (:id, :tenant_id, :collection_id, :uri, :title, :media_type, 0)
    ON CONFLICT (collection_id, uri) DO NOTHING RETURNING id
    """
)
_SOURCES = text(
    """
    SELECT d.id, d.uri, d.root, d.size_bytes, d.modified_ns, d.source_tag, d.status, d.reason,
      d.pipeline_digest, v.id, v.blob_sha256, v.pipeline_digest
    FROM documents AS d LEFT JOIN document_versions AS v ON v.id = d.current_version_id
    WHERE d.collection_id = :collection_id AND EXISTS (
      SELECT FROM unnest(cast(:uri_prefixes AS text[])) AS prefix WHERE starts_with(d.uri, prefix))
    """
)
_NOTE_UNCHANGED = text(
    """
    UPDATE documents AS d
    SET modified_ns = f.modified_ns, source_tag = f.tag, root = coalesce(d.root, f.root)
    FROM unnest(:document_ids, :modified_ns, cast(:tags AS text[]), cast(:roots AS text[]))
      AS f (id, modified_ns, tag, root)
    WHERE d.id = f.id
    """
).bindparams(
    bindparam("document_ids", type_=ARRAY(Uuid)), bindparam("modified_ns", type_=ARRAY(BigInteger))
)
# The lock comes first: an outer SELECT calls its functions once per row of its source.
_RESERVE = text(
    """
    WITH held AS MATERIALIZED (SELECT pg_advisory_xact_lock(:lock)),
    sequence AS (SELECT pg_get_serial_sequence('chunks', 'id')::regclass AS name)
    SELECT setval(sequence.name, nextval(sequence.name) + :count - 1) FROM held, sequence
    """
)
_DELETE_VECTORS = text("DELETE FROM embeddings WHERE chunk_id BETWEEN :first AND :last")
_DELETE_TOKENS = text("DELETE FROM token_vectors WHERE chunk_id BETWEEN :first AND :last")
_DELETE_CHUNKS = text("DELETE FROM chunks WHERE version_id = :version_id")
_DELETE_VERSION = text("DELETE FROM document_versions WHERE id = :version_id")
_COLLECTION_OF = text("SELECT collection_id FROM documents WHERE id = :document_id")
_DELETE_DOCUMENT = text("DELETE FROM documents WHERE id = :document_id")
