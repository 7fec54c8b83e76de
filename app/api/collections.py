"""Collections: made, listed, deleted."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path

from app.api.bodies import BodyRoute
from app.api.problems import DOCUMENTED
from app.api.schemas import CollectionInfo, CollectionList, NewCollection, Removal, Text
from app.db.collections import Removed
from app.dependencies import CallerDep, LibraryDep
from app.documents.records import CollectionRecord

router = APIRouter(route_class=BodyRoute, tags=["collections"], responses=DOCUMENTED)


@router.get("/api/collections")
async def list_collections(caller: CallerDep, library: LibraryDep) -> CollectionList:
    records = await library.list_collections(caller)
    return CollectionList(collections=[_collection_info(one) for one in records])


@router.post("/api/collections", status_code=201)
async def create_collection(
    body: NewCollection, caller: CallerDep, library: LibraryDep
) -> CollectionInfo:
    return _collection_info(await library.create_collection(caller, body.name))


@router.delete("/api/collections/{name}")
async def delete_collection(
    name: Annotated[Text, Path()], caller: CallerDep, library: LibraryDep
) -> Removal:
    """Delete a collection with all its documents, vectors and originals."""
    return removal(await library.delete_collection(caller, name))


def removal(removed: Removed) -> Removal:
    return Removal(
        documents=removed.documents,
        chunks=removed.chunks,
        vectors=removed.vectors,
        postings=removed.postings,
        originals=removed.originals,
        bytes=removed.bytes,
        deleted_at=datetime.now(UTC),
    )


def _collection_info(record: CollectionRecord) -> CollectionInfo:
    return CollectionInfo(
        name=record.name,
        embedding_model=record.embedding_model,
        documents=record.documents,
        chunks=record.chunks,
        created_at=record.created_at,
    )
