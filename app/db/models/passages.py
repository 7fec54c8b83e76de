"""Chunks, their vectors and their postings: what search reads.

Only chunks of serving versions are in these tables; a new version replaces the old one's rows in
one transaction, so readers see the whole old or the whole new version.
"""

from typing import Any
from uuid import UUID

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, BigId, CreatedAt, Sha256


class EmbeddingModel(Base):
    """A model whose vectors are stored; `digest` says exactly which weights made them.

    `name` is as it was configured, `location` the folder that it was found in then; None for the
    bundled one, whose folder moves with the installation.
    """

    __tablename__ = "embedding_models"
    __table_args__ = (UniqueConstraint("digest"),)

    id: Mapped[int] = mapped_column(SmallInteger, Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(Text)
    dimensions: Mapped[int] = mapped_column(Integer)
    location: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[CreatedAt]


class Chunk(Base):
    """A passage. `text` equals the version's `text[start_char:end_char]`.

    `context` is what the models see above the passage besides its title and headings, such as
    the header row of a split table. `content_hash` is the SHA-256 of the text that is embedded.
    `page` is the one that the passage begins on, `page_breaks` are the places in `text` where the
    following ones begin.
    """

    __tablename__ = "chunks"
    __table_args__ = (
        UniqueConstraint("version_id", "ordinal"),
        Index("ix_chunks_document", "document_id"),
        Index("ix_chunks_content_hash", "tenant_id", "content_hash"),
    )

    id: Mapped[BigId]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"))
    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id"))
    document_id: Mapped[UUID] = mapped_column(ForeignKey("documents.id"))
    version_id: Mapped[int] = mapped_column(ForeignKey("document_versions.id", ondelete="CASCADE"))
    ordinal: Mapped[int] = mapped_column(Integer)
    text: Mapped[str] = mapped_column(Text)
    context: Mapped[str] = mapped_column(Text, server_default="")
    heading: Mapped[list[str]] = mapped_column(ARRAY(Text))
    page: Mapped[int | None] = mapped_column(Integer)
    page_breaks: Mapped[list[int]] = mapped_column(ARRAY(Integer), server_default="{}")
    start_char: Mapped[int] = mapped_column(Integer)
    end_char: Mapped[int] = mapped_column(Integer)
    tokens: Mapped[int] = mapped_column(Integer)
    content_hash: Mapped[Sha256]


class Embedding(Base):
    """Unit vectors, one partition per model; see `app/db/vectors.py` for partitions and indexes.

    The parent has no dimension, because each model has its own; every partition checks its own.
    """

    __tablename__ = "embeddings"
    __table_args__ = (
        Index("ix_embeddings_collection", "model_id", "collection_id"),
        {"postgresql_partition_by": "LIST (model_id)"},
    )

    chunk_id: Mapped[int] = mapped_column(
        ForeignKey("chunks.id", ondelete="CASCADE"), primary_key=True
    )
    model_id: Mapped[int] = mapped_column(ForeignKey("embedding_models.id"), primary_key=True)
    tenant_id: Mapped[int] = mapped_column(Integer)
    collection_id: Mapped[int] = mapped_column(Integer)
    vector: Mapped[Any] = mapped_column(HALFVEC)


class StoredTokenVectors(Base):
    """The signs of a passage's token vectors, `width` bytes a token; see `app/db/token_vectors.py`.

    Rows of another `version` than the one in use were made in another way, and mean nothing.
    """

    __tablename__ = "token_vectors"
    __table_args__ = (Index("ix_token_vectors_collection", "collection_id"),)

    chunk_id: Mapped[int] = mapped_column(
        BigInteger,
        ForeignKey("chunks.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    )
    model_id: Mapped[int] = mapped_column(SmallInteger, ForeignKey("embedding_models.id"))
    tenant_id: Mapped[int] = mapped_column(Integer)
    collection_id: Mapped[int] = mapped_column(Integer)
    version: Mapped[int] = mapped_column(SmallInteger)
    width: Mapped[int] = mapped_column(SmallInteger)
    signs: Mapped[bytes] = mapped_column(LargeBinary)


class Posting(Base):
    """Where a term occurs: `payload` packs one 64-bit little-endian number per chunk, ascending.

    See `app/db/postings.py` for the packing. A row covers the chunks from `first_chunk_id` to
    `last_chunk_id`; rows of one term never overlap.
    """

    __tablename__ = "postings"

    collection_id: Mapped[int] = mapped_column(ForeignKey("collections.id"), primary_key=True)
    term: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    first_chunk_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    last_chunk_id: Mapped[int] = mapped_column(BigInteger)
    payload: Mapped[bytes] = mapped_column(LargeBinary)
