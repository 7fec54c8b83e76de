"""Collections, documents and their versions: what was given to Footnote."""

from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, BigId, CreatedAt, Moment, Sha256

DocumentStatus = Literal["queued", "processing", "ready", "failed"]


class Collection(Base):
    """`generation` rises with whatever changes what a caller could find in the collection.

    `chunks_count` and `terms_count` (all term occurrences) are BM25's statistics, kept by the
    write that changes them; `documents_count` counts the documents that have a serving version.
    `languages` are those that documents were ever indexed in: a query is read in each of them.

    `rebuild_since` notes that versions from before that moment may be outdated, None when none are;
    `rebuild_digest` is the pipeline that they are brought to, None until a worker has said it.
    """

    __tablename__ = "collections"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(Text)
    embedding_model_id: Mapped[int] = mapped_column(ForeignKey("embedding_models.id"))
    settings: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=sql("'{}'"))
    generation: Mapped[int] = mapped_column(BigInteger, server_default=sql("0"))
    documents_count: Mapped[int] = mapped_column(BigInteger, server_default=sql("0"))
    chunks_count: Mapped[int] = mapped_column(BigInteger, server_default=sql("0"))
    terms_count: Mapped[int] = mapped_column(BigInteger, server_default=sql("0"))
    languages: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=sql("'{}'"))
    rebuild_since: Mapped[Moment | None]
    rebuild_digest: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[CreatedAt]


class Blob(Base):
    """An original, byte for byte, stored once per tenant."""

    __tablename__ = "blobs"

    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    sha256: Mapped[Sha256] = mapped_column(primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[CreatedAt]


class Document(Base):
    """One source, known by its URI within a collection.

    `root` is the ingested folder that the document came from, so that files gone from it can be
    told apart from documents that were uploaded. `modified_ns` is when the file last changed in
    any way (its ctime), None when it was too fresh to be trusted.

    `claim` names the worker's attempt that may write the next version; a late writer finds another
    claim and writes nothing. `blob_sha256` is what is wanted; the version that serves may still be
    an older one. It is None for a file that could not be read or parsed and that nothing serves:
    its original is still where it was found. `pending` holds the metadata and groups that come
    with the next version, so that they become visible together with its text.

    `status_at` is when `status` last changed, `pipeline_digest` the pipeline that brought it there.
    `progress` says how far the work on the next version is, for people only.

    `source_tag` is what a web server or a bucket calls the content that was read last, such as its
    ETag. `personal_data` counts what the scan found, by kind.
    """

    __tablename__ = "documents"
    __table_args__ = (
        UniqueConstraint("collection_id", "uri"),
        ForeignKeyConstraint(["tenant_id", "blob_sha256"], ["blobs.tenant_id", "blobs.sha256"]),
        CheckConstraint("status IN ('queued', 'processing', 'ready', 'failed')", name="status"),
        Index("ix_documents_blob", "tenant_id", "blob_sha256"),
        Index("ix_documents_listing", "collection_id", "created_at", "id"),
        Index("ix_documents_metadata", "metadata", postgresql_using="gin"),
        Index("ix_documents_grouped", "collection_id", postgresql_where=sql("groups <> '{}'")),
        Index("ix_documents_status", "collection_id", "status", "status_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"))
    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id"))
    uri: Mapped[str] = mapped_column(Text)
    root: Mapped[str | None] = mapped_column(Text)
    title: Mapped[str] = mapped_column(Text)
    media_type: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    blob_sha256: Mapped[Sha256 | None]
    modified_ns: Mapped[int | None] = mapped_column(BigInteger)
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, server_default=sql("'{}'"))
    groups: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=sql("'{}'"))
    pending: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    status: Mapped[str] = mapped_column(Text, server_default="queued")
    reason: Mapped[str | None] = mapped_column(Text)
    status_at: Mapped[Moment] = mapped_column(server_default=func.now())
    pipeline_digest: Mapped[str | None] = mapped_column(Text)
    current_version_id: Mapped[int | None] = mapped_column(
        ForeignKey("document_versions.id", use_alter=True, ondelete="SET NULL")
    )
    job_id: Mapped[int | None] = mapped_column(BigInteger)
    claim: Mapped[UUID | None]
    source_tag: Mapped[str | None] = mapped_column(Text)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    personal_data: Mapped[dict[str, int] | None] = mapped_column(JSONB(none_as_null=True))
    created_at: Mapped[CreatedAt]


class DocumentVersion(Base):
    """One parsing of one original. `text` is the parsed text that all offsets count in.

    `pipeline_digest` names parser, chunking and embedding model: the same original under the
    same digest need not be processed again. Its chunks have ids from `first_chunk_id` to
    `last_chunk_id`; `terms` are its distinct index terms, sorted, so that its postings can be
    found again when it goes. `signature` is the text's MinHash, `bands` its hashes by which nearly
    equal texts are found.
    """

    __tablename__ = "document_versions"
    __table_args__ = (
        UniqueConstraint("document_id", "number"),
        Index("ix_document_versions_blob", "tenant_id", "blob_sha256"),
        Index("ix_document_versions_bands", "bands", postgresql_using="gin"),
    )

    id: Mapped[BigId]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"))
    document_id: Mapped[UUID] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(Integer)
    blob_sha256: Mapped[Sha256]
    pipeline_digest: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)
    language: Mapped[str] = mapped_column(Text)
    pages_count: Mapped[int | None] = mapped_column(Integer)
    chunks_count: Mapped[int] = mapped_column(Integer)
    terms_count: Mapped[int] = mapped_column(BigInteger)
    terms: Mapped[list[str]] = mapped_column(ARRAY(Text))
    first_chunk_id: Mapped[int] = mapped_column(BigInteger)
    last_chunk_id: Mapped[int] = mapped_column(BigInteger)
    warnings: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=sql("'{}'"))
    signature: Mapped[bytes | None] = mapped_column(LargeBinary)
    bands: Mapped[list[int] | None] = mapped_column(ARRAY(Integer))
    created_at: Mapped[CreatedAt]


class IdempotencyKey(Base):
    """The reply that an upload with this key got, so that a repeat gets the same one."""

    __tablename__ = "idempotency_keys"

    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    request_digest: Mapped[Sha256]
    response: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[CreatedAt]
