"""Puts passages into the database directly, so that search can be tested without ingestion."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access import DEFAULT_TENANT_ID
from app.db.chunks import ChunkRow, add_chunks
from app.db.collections import count_change
from app.db.documents import reserve_chunk_ids
from app.db.models import Blob, Collection, Document, DocumentVersion, Tenant
from app.db.postings import ChunkTerms, add_postings
from app.db.snapshot import Snapshot
from app.db.vectors import add_vectors
from app.terms import extract_terms


@dataclass(frozen=True)
class Source:
    """A document of some passages; each passage is one chunk."""

    passages: Sequence[str]
    uri: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    groups: Sequence[str] = ()
    language: str = "english"


@dataclass(frozen=True)
class Stored:
    document_id: UUID
    version_id: int
    chunk_ids: list[int]
    terms: list[str]


async def reading(connection: AsyncConnection) -> Snapshot:
    """Reads inside the connection's own transaction."""
    driver: Any = (await connection.get_raw_connection()).driver_connection
    return Snapshot(driver)


async def add_tenant(connection: AsyncConnection, tenant_id: int) -> None:
    await connection.execute(insert(Tenant).values(id=tenant_id, name=f"tenant {tenant_id}"))


async def add_collection(
    connection: AsyncConnection,
    name: str,
    model_id: int,
    tenant_id: int = DEFAULT_TENANT_ID,
) -> int:
    made = await connection.execute(
        insert(Collection)
        .values(tenant_id=tenant_id, name=name, embedding_model_id=model_id)
        .returning(Collection.id)
    )
    return int(made.scalar_one())


async def add_document(
    connection: AsyncConnection,
    collection_id: int,
    source: Source,
    vectors: NDArray[np.float32],
) -> Stored:
    """One ready document with its chunks, vectors (one per passage) and postings."""
    tenant_id, model_id = (
        await connection.execute(
            select(Collection.tenant_id, Collection.embedding_model_id).where(
                Collection.id == collection_id
            )
        )
    ).one()
    document_id = uuid4()
    uri = source.uri or f"test:{document_id}"
    whole = "\n\n".join(source.passages)
    digest = hashlib.sha256(uri.encode() + whole.encode()).digest()
    await connection.execute(
        insert(Blob).values(
            tenant_id=tenant_id, sha256=digest, content=whole.encode(), size_bytes=len(whole)
        )
    )
    await connection.execute(
        insert(Document).values(
            id=document_id,
            tenant_id=tenant_id,
            collection_id=collection_id,
            uri=uri,
            title=f"Title of {uri}",
            media_type="text/plain",
            size_bytes=len(whole),
            blob_sha256=digest,
            metadata_=dict(source.metadata),
            groups=list(source.groups),
            status="ready",
        )
    )
    terms = [extract_terms(passage, source.language) for passage in source.passages]
    first = await reserve_chunk_ids(connection, len(source.passages))
    chunk_ids = list(range(first, first + len(source.passages)))
    version_id = (
        await connection.execute(
            insert(DocumentVersion)
            .values(
                tenant_id=tenant_id,
                document_id=document_id,
                number=1,
                blob_sha256=digest,
                pipeline_digest="test",
                text=whole,
                language=source.language,
                chunks_count=len(chunk_ids),
                terms_count=sum(map(len, terms)),
                terms=sorted({term for chunk in terms for term in chunk}),
                first_chunk_id=chunk_ids[0],
                last_chunk_id=chunk_ids[-1],
            )
            .returning(DocumentVersion.id)
        )
    ).scalar_one()
    ends = list(accumulate(len(passage) + 2 for passage in source.passages))
    await add_chunks(
        connection,
        (
            ChunkRow(
                id=chunk_id,
                tenant_id=tenant_id,
                collection_id=collection_id,
                document_id=document_id,
                version_id=version_id,
                ordinal=ordinal,
                text=passage,
                context="",
                heading=[],
                page=None,
                start_char=end - 2 - len(passage),
                end_char=end - 2,
                tokens=len(passage.split()),
                content_hash=hashlib.sha256(passage.encode()).digest(),
                page_breaks=[],
            )
            for ordinal, (chunk_id, passage, end) in enumerate(
                zip(chunk_ids, source.passages, ends, strict=True)
            )
        ),
    )
    await add_vectors(connection, model_id, tenant_id, collection_id, chunk_ids, vectors)
    await add_postings(
        connection,
        collection_id,
        [ChunkTerms(*pair) for pair in zip(chunk_ids, terms, strict=True)],
    )
    await connection.execute(
        update(Document).where(Document.id == document_id).values(current_version_id=version_id)
    )
    await count_change(
        connection,
        collection_id,
        documents=1,
        chunks=len(chunk_ids),
        terms=sum(map(len, terms)),
        language=source.language,
    )
    return Stored(
        document_id, version_id, chunk_ids, sorted({term for chunk in terms for term in chunk})
    )


def unit_vectors(seed: int, count: int, dimensions: int) -> NDArray[np.float32]:
    """Random directions, the same for the same seed."""
    drawn = np.random.default_rng(seed).standard_normal((count, dimensions))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
