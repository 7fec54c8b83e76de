"""Collections: made, listed, set up, rebuilt, deleted."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path

from app.api.bodies import BodyRoute
from app.api.problems import DOCUMENTED
from app.api.schemas import Removal, Text
from app.api.schemas_ingestion import (
    CollectionChange,
    CollectionDetail,
    CollectionInfo,
    CollectionList,
    NewCollection,
    PersonalDataInfo,
    SettingsChange,
)
from app.db.collections import Removed
from app.dependencies import CallerDep, LibraryDep
from app.documents.records import CollectionOverview, CollectionRecord

router = APIRouter(route_class=BodyRoute, tags=["collections"], responses=DOCUMENTED)

Name = Annotated[Text, Path()]


@router.get("/api/collections")
async def list_collections(caller: CallerDep, library: LibraryDep) -> CollectionList:
    records = await library.list_collections(caller)
    return CollectionList(collections=[_collection_info(one) for one in records])


@router.post("/api/collections", status_code=201)
async def create_collection(
    body: NewCollection, caller: CallerDep, library: LibraryDep
) -> CollectionDetail:
    return _detail(await library.create_collection(caller, body.name, _patch(body.settings)))


@router.get("/api/collections/{name}")
async def read_collection(name: Name, caller: CallerDep, library: LibraryDep) -> CollectionDetail:
    return _detail(await library.get_collection(caller, name))


@router.patch("/api/collections/{name}")
async def change_collection(
    name: Name, body: CollectionChange, caller: CallerDep, library: LibraryDep
) -> CollectionDetail:
    """Change settings; documents are brought to them in the background, `outdated` counts them."""
    return _detail(await library.change_collection(caller, name, _patch(body.settings)))


@router.post("/api/collections/{name}/rebuild", status_code=202)
async def rebuild_collection(
    name: Name, caller: CallerDep, library: LibraryDep
) -> CollectionDetail:
    """Make documents anew that an older version of Footnote made, in the background."""
    return _detail(await library.rebuild_collection(caller, name))


@router.delete("/api/collections/{name}")
async def delete_collection(name: Name, caller: CallerDep, library: LibraryDep) -> Removal:
    """Delete a collection with all its documents, vectors and originals."""
    return removal(await library.delete_collection(caller, name))


def removal(removed: Removed) -> Removal:
    return Removal(
        documents=removed.documents,
        chunks=removed.chunks,
        vectors=removed.vectors,
        token_vectors=removed.token_vectors,
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
        settings=record.settings,
    )


def _detail(overview: CollectionOverview) -> CollectionDetail:
    return CollectionDetail(
        **dict(_collection_info(overview)),
        outdated=overview.outdated,
        personal_data={
            kind: PersonalDataInfo(documents=count.documents, found=count.found)
            for kind, count in overview.personal_data.items()
        },
    )


def _patch(change: SettingsChange) -> dict[str, Any]:
    return change.model_dump(exclude_unset=True)
