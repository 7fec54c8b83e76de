"""One document version, in one transaction: all of it becomes visible, or none of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote
from uuid import UUID

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.blobs import drop_unused_blobs, store_blob
from app.db.chunks import ChunkRow, add_chunks
from app.db.collection_settings import DEFAULTS, CollectionSettings
from app.db.collections import count_change, enter_collection
from app.db.documents import (
    StoredDocument,
    lock_document_at,
    remove_version,
    set_status,
)
from app.db.models import DocumentVersion
from app.db.postings import ChunkTerms, add_postings
from app.db.token_vectors import keep_signs
from app.db.vectors import add_vectors
from app.embedding.base import Vectors
from app.failpoints import reach
from ingestion.signatures import Signature
from ingestion.types import Chunk, ParsedDocument

UNKNOWN_MEDIA_TYPE = "application/octet-stream"

Change = Literal["added", "updated", "unchanged"]


class Superseded(Exception):
    """Somebody else wrote this document meanwhile; look at its source again."""


class ModelSwitched(Exception):
    """Another model serves the collection by now; embed the passages with that one."""

    def __init__(self, model_id: int) -> None:
        super().__init__(f"model {model_id} serves now")
        self.model_id = model_id


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where documents are written: a collection, the model that serves it, and its settings."""

    tenant_id: int
    collection_id: int
    model_id: int
    settings: CollectionSettings = DEFAULTS


@dataclass(frozen=True, slots=True)
class Passages:
    """Chunks with what both search legs see of them, row by row.

    `hashes` are the SHA-256 of the texts that are embedded, `terms` their index terms and
    `title_terms` those of title and headings among them; `signature` is that of the whole text.
    """

    chunks: Sequence[Chunk]
    texts: Sequence[str]
    hashes: Sequence[bytes]
    terms: Sequence[Sequence[str]]
    title_terms: Sequence[Sequence[str]]
    signature: Signature


@dataclass(frozen=True, slots=True)
class NewVersion:
    """Everything about a version before it is written; its chunk ids are reserved already.

    `model_id` is the model that made the vectors, `given` the metadata that came with the original.
    """

    sha256: bytes
    pipeline_digest: str
    parsed: ParsedDocument
    passages: Passages
    model_id: int
    vectors: Vectors
    first_chunk_id: int
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def chunk_ids(self) -> range:
        return range(self.first_chunk_id, self.first_chunk_id + len(self.passages.chunks))

    @property
    def terms_count(self) -> int:
        return sum(map(len, self.passages.terms))


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A source's document as it was read; `name` ends as what it is does, `tag` is its ETag.

    `seen_version_id` is the version that served when it was judged.
    """

    name: str
    uri: str
    root: str | None
    size_bytes: int
    changed_ns: int | None
    tag: str | None = None
    seen_version_id: int | None = None
    content: bytes = field(default=b"", repr=False)
    sha256: bytes = b""


# --- documents of sources -------------------------------------------------------------------------


async def write_file(
    connection: AsyncConnection, shelf: Shelf, file: SourceFile, version: NewVersion
) -> Change:
    """Make the version serve. Done a second time, after a COMMIT that got lost, it does nothing.

    Raises Superseded when another version serves than the one that the file was compared with, and
    ModelSwitched when its vectors are of another model than the one that serves.
    """
    document = await _enter_file(connection, shelf, file, version)
    served = document.version
    if document.serves(version.sha256, version.pipeline_digest):
        await _restore(connection, document, file)
        return "unchanged"
    if (served.id if served else None) != file.seen_version_id:
        raise Superseded
    await store_blob(connection, shelf.tenant_id, file.sha256, file.content)
    await put_version(
        connection,
        shelf,
        document,
        version,
        metadata_=version.parsed.metadata,
        root=document.root or file.root,
        modified_ns=file.changed_ns,
        source_tag=file.tag,
        blob_sha256=file.sha256,
        size_bytes=file.size_bytes,
    )
    return "updated" if served else "added"


async def restore_file(connection: AsyncConnection, shelf: Shelf, file: SourceFile) -> None:
    """Note that the file holds again what the serving version was made of."""
    await _restore(connection, await _enter_file(connection, shelf, file), file)


async def record_failed_file(
    connection: AsyncConnection,
    shelf: Shelf,
    file: SourceFile,
    reason: str,
    pipeline_digest: str | None,
    refused: Mapping[str, int] | None = None,
) -> None:
    """Note why the file cannot be found; an older version goes on serving.

    With a pipeline digest the failure is final for this pipeline; without, it is tried again.
    `refused` counts the personal data for which it was refused, see `refuse`.
    """
    document = await _enter_file(connection, shelf, file)
    if refused is not None:
        await refuse(
            connection,
            document,
            reason,
            refused,
            pipeline_digest,
            root=document.root or file.root,
            modified_ns=file.changed_ns,
            source_tag=file.tag,
            size_bytes=file.size_bytes,
        )
        return
    await set_status(
        connection,
        document.id,
        "failed",
        reason,
        claim=None,
        root=document.root or file.root,
        modified_ns=file.changed_ns,
        source_tag=file.tag,
        pipeline_digest=pipeline_digest,
        # The original stays where it is; only what serves is kept here.
        blob_sha256=document.version.blob_sha256 if document.version else None,
        size_bytes=file.size_bytes,
    )
    await drop_unused_blobs(connection, shelf.tenant_id, [document.blob_sha256])


async def _enter_file(
    connection: AsyncConnection, shelf: Shelf, file: SourceFile, version: NewVersion | None = None
) -> StoredDocument:
    await enter_with(connection, shelf.collection_id, version)
    document, _ = await lock_document_at(
        connection,
        tenant_id=shelf.tenant_id,
        collection_id=shelf.collection_id,
        uri=file.uri,
        title=file.name,
        media_type=UNKNOWN_MEDIA_TYPE,
    )
    return document


async def _restore(connection: AsyncConnection, document: StoredDocument, file: SourceFile) -> None:
    version = document.version
    await set_status(
        connection,
        document.id,
        "ready",
        claim=None,
        root=document.root or file.root,
        modified_ns=file.changed_ns,
        source_tag=file.tag,
        pipeline_digest=version.pipeline_digest if version else None,
        blob_sha256=file.sha256,
        size_bytes=file.size_bytes,
    )


async def enter_with(
    connection: AsyncConnection, collection_id: int, version: NewVersion | None
) -> None:
    """Begin to write; raises ModelSwitched when the version has another model's vectors."""
    model_id = await enter_collection(connection, collection_id)
    if version is not None and model_id != version.model_id:
        raise ModelSwitched(model_id)


# --- what both write ------------------------------------------------------------------------------


async def refuse(
    connection: AsyncConnection,
    document: StoredDocument,
    reason: str,
    counts: Mapping[str, int],
    pipeline_digest: str | None,
    **values: Any,
) -> None:
    """Keep nothing of a document that its collection does not take but its name and the counts.

    A version that serves stays only if it passed the same scan.
    """
    old = document.version
    kept = old if old is not None and old.pipeline_digest == pipeline_digest else None
    if old is not None and kept is None:
        await remove_version(connection, document.collection_id, old)
    if kept is None:
        values |= {"title": unquote(document.uri.rsplit("/", 1)[-1]), "metadata_": {}}
    await set_status(
        connection,
        document.id,
        "failed",
        reason,
        claim=None,
        pending=None,
        personal_data=dict(counts),
        pipeline_digest=pipeline_digest,
        blob_sha256=kept.blob_sha256 if kept else None,
        **values,
    )
    await drop_unused_blobs(
        connection,
        document.tenant_id,
        [document.blob_sha256, old.blob_sha256 if old else None],
    )
    if old is not None and kept is None:
        await count_change(
            connection,
            document.collection_id,
            documents=-1,
            chunks=-old.chunks_count,
            terms=-old.terms_count,
        )


async def put_version(
    connection: AsyncConnection,
    shelf: Shelf,
    document: StoredDocument,
    version: NewVersion,
    **values: Any,
) -> None:
    """Put a version in the place of the one that serves, if any; `values` are the document's."""
    old = document.version
    version_id = await _insert_version(connection, shelf, document, version)
    await add_chunks(connection, _chunk_rows(shelf, document.id, version_id, version))
    reach("version.chunks_written")
    await add_vectors(
        connection,
        version.model_id,
        shelf.tenant_id,
        shelf.collection_id,
        version.chunk_ids,
        version.vectors,
    )
    reach("version.vectors_written")
    await add_postings(
        connection,
        shelf.collection_id,
        map(ChunkTerms, version.chunk_ids, version.passages.terms, version.passages.title_terms),
    )
    reach("version.postings_written")
    await set_status(
        connection,
        document.id,
        "ready",
        title=version.parsed.title,
        media_type=version.parsed.media_type,
        current_version_id=version_id,
        pipeline_digest=version.pipeline_digest,
        personal_data=version.parsed.personal_data,
        claim=None,
        **values,
    )
    reach("version.status_set")
    if old is not None:
        if shelf.settings.search.token_vectors:
            await keep_signs(connection, old.id, version_id)
        await remove_version(connection, shelf.collection_id, old)
        reach("version.old_removed")
    replaced = {document.blob_sha256, old.blob_sha256 if old else None} - {version.sha256}
    await drop_unused_blobs(connection, shelf.tenant_id, replaced)
    await count_change(
        connection,
        shelf.collection_id,
        documents=0 if old else 1,
        chunks=len(version.chunk_ids) - (old.chunks_count if old else 0),
        terms=version.terms_count - (old.terms_count if old else 0),
        language=version.parsed.language,
        built_with=shelf.settings,
    )
    reach("version.before_commit")


async def _insert_version(
    connection: AsyncConnection, shelf: Shelf, document: StoredDocument, version: NewVersion
) -> int:
    parsed = version.parsed
    inserted = await connection.execute(
        insert(DocumentVersion)
        .values(
            tenant_id=shelf.tenant_id,
            document_id=document.id,
            number=document.version.number + 1 if document.version else 1,
            blob_sha256=version.sha256,
            pipeline_digest=version.pipeline_digest,
            text=parsed.text,
            language=parsed.language,
            pages_count=len(parsed.pages) or None,
            chunks_count=len(version.chunk_ids),
            terms_count=version.terms_count,
            terms=sorted({term for terms in version.passages.terms for term in terms}),
            first_chunk_id=version.chunk_ids[0],
            last_chunk_id=version.chunk_ids[-1],
            warnings=list(parsed.warnings),
            signature=version.passages.signature.minhash,
            bands=version.passages.signature.bands,
        )
        .returning(DocumentVersion.id)
    )
    return inserted.scalar_one()


def _chunk_rows(
    shelf: Shelf, document_id: UUID, version_id: int, version: NewVersion
) -> Iterator[ChunkRow]:
    passages = version.passages
    for chunk_id, chunk, content_hash in zip(
        version.chunk_ids, passages.chunks, passages.hashes, strict=True
    ):
        yield ChunkRow(
            id=chunk_id,
            tenant_id=shelf.tenant_id,
            collection_id=shelf.collection_id,
            document_id=document_id,
            version_id=version_id,
            ordinal=chunk.ordinal,
            text=chunk.text,
            context=chunk.context,
            heading=list(chunk.heading),
            page=chunk.page,
            start_char=chunk.start,
            end_char=chunk.end,
            tokens=chunk.tokens,
            content_hash=content_hash,
            page_breaks=list(chunk.page_breaks),
        )
