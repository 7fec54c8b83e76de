"""Documents that are nearly the same: found by the bands they share, judged by their signatures."""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access import Caller
from app.db.collections import find_collection
from app.db.models import Collection, Document, DocumentVersion
from app.db.session import Sessions
from app.db.transactions import in_transaction
from app.documents.visibility import may_enter, visible
from app.errors import NotFound

SIMILAR = 0.85
"""Share of common word sequences from which on two documents count as nearly the same."""

DIFFERENT_MAX = 20
"""With how many different documents of its band each one is compared, at most."""


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """`similarity` is the estimated share of word sequences in common, 0 to 1, give or take 0.03."""

    document_id: UUID
    title: str
    uri: str
    similarity: float


Group = Sequence[NearDuplicate]
"""Nearly equal documents, oldest first; `similarity` compares each with that one."""


class Duplicates:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def of_document(self, caller: Caller, document_id: UUID) -> list[NearDuplicate]:
        """Nearly equal documents of its collection, most similar first.

        Raises NotFound; a document that does not serve yet has none.
        """

        async def work(connection: AsyncConnection) -> list[NearDuplicate]:
            own = (
                await connection.execute(_documents(caller).where(Document.id == document_id))
            ).one_or_none()
            if own is None:
                raise NotFound("There is no such document.")
            if own.signature is None:
                return []
            rows = await connection.execute(
                _documents(caller).where(
                    Document.collection_id == own.collection_id,
                    Document.id != document_id,
                    DocumentVersion.bands.bool_op("&&")(own.bands),
                )
            )
            found = [_compared(row, own) for row in rows]
            similar = [one for one in found if one.similarity >= SIMILAR]
            return sorted(similar, key=lambda one: (-one.similarity, one.uri))

        return await in_transaction(self._begin, work)

    async def in_collection(self, caller: Caller, name: str) -> list[Group]:
        """All groups of nearly equal documents, largest first; raises NotFound."""

        async def work(connection: AsyncConnection) -> list[Group]:
            collection = None
            if may_enter(caller, name):
                collection = await find_collection(connection, caller.tenant_id, name)
            if collection is None:
                raise NotFound("There is no such collection.")
            inside = _documents(caller).where(Document.collection_id == collection.id)
            met = (await connection.execute(_met_in_a_band(inside))).scalars().all()
            members = {document_id for band in met for document_id in band}
            rows = await connection.execute(
                inside.where(Document.id.in_(members)).order_by(Document.created_at, Document.id)
            )
            return group({row.id: row for row in rows}, met)

        return await in_transaction(self._begin, work)

    @asynccontextmanager
    async def _begin(self) -> AsyncGenerator[AsyncConnection]:
        async with self._sessions.begin() as session:
            yield await session.connection()


def group(documents: Mapping[UUID, Any], met: Iterable[Sequence[UUID]]) -> list[Group]:
    """Those of the documents, given oldest first, that are similar, by the bands they met in."""
    age = {document_id: place for place, document_id in enumerate(documents)}
    leader = {document_id: document_id for document_id in documents}

    def first_of(document_id: UUID) -> UUID:
        while leader[document_id] != document_id:
            document_id = leader[document_id]
        return document_id

    for band in met:
        different: list[UUID] = []
        for member in sorted(band, key=age.__getitem__):
            for other in different:
                if first_of(other) == first_of(member):
                    break
                if _similarity(documents[other], documents[member]) >= SIMILAR:
                    older, younger = sorted(
                        (first_of(other), first_of(member)), key=age.__getitem__
                    )
                    leader[younger] = older
                    break
            else:
                # A band that very different texts share would otherwise cost their number squared.
                if len(different) < DIFFERENT_MAX:
                    different.append(member)
    groups: dict[UUID, list[NearDuplicate]] = {}
    for document_id, row in documents.items():
        first = first_of(document_id)
        groups.setdefault(first, []).append(_compared(row, documents[first]))
    return sorted((one for one in groups.values() if len(one) > 1), key=len, reverse=True)


def _documents(caller: Caller) -> "Select[*tuple[Any, ...]]":
    return (
        select(
            Document.id,
            Document.collection_id,
            Document.title,
            Document.uri,
            DocumentVersion.signature,
            DocumentVersion.bands,
        )
        .join(Collection, Collection.id == Document.collection_id)
        .outerjoin(DocumentVersion, DocumentVersion.id == Document.current_version_id)
        .where(*visible(caller))
    )


def _met_in_a_band(documents: "Select[*tuple[Any, ...]]") -> "Select[*tuple[Any, ...]]":
    """The ids of documents that share a band, a list per band."""
    found = documents.subquery()
    one = select(found.c.id, func.unnest(found.c.bands).label("band")).subquery()
    ids = func.array_agg(one.c.id)
    return select(ids).group_by(one.c.band).having(func.count() > 1)


def _compared(row: Any, other: Any) -> NearDuplicate:
    return NearDuplicate(row.id, row.title, row.uri, _similarity(row, other))


def _similarity(one: Any, other: Any) -> float:
    """The share of equal minima, which estimates the share of common shingles."""
    minima: NDArray[np.bool_] = np.frombuffer(one.signature, "<u4") == np.frombuffer(
        other.signature, "<u4"
    )
    return round(float(np.mean(minima)), 3)
