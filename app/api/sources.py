"""Sources: registered, followed, synced, removed."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from app.api.bodies import BodyRoute
from app.api.problems import DOCUMENTED
from app.api.schemas_sources import NewSource, SourceInfo, SourceList, SourceRemoval, SourceReport
from app.db.sources import StoredSource
from app.dependencies import CallerDep, SourcesDep

router = APIRouter(route_class=BodyRoute, tags=["sources"], responses=DOCUMENTED)


@router.get("/api/sources")
async def list_sources(caller: CallerDep, sources: SourcesDep) -> SourceList:
    return SourceList(sources=[_info(one) for one in await sources.list(caller)])


@router.post("/api/sources", status_code=202)
async def add_source(body: NewSource, caller: CallerDep, sources: SourcesDep) -> SourceInfo:
    """Keep a collection in step with a page, a sitemap or a bucket; the first sync is queued."""
    return _info(
        await sources.add(
            caller,
            collection=body.collection,
            location=body.location,
            include=body.include,
            exclude=body.exclude,
            every_minutes=body.every_minutes,
        )
    )


@router.get("/api/sources/{source_id}")
async def read_source(source_id: UUID, caller: CallerDep, sources: SourcesDep) -> SourceInfo:
    return _info(await sources.get(caller, source_id))


@router.post("/api/sources/{source_id}/sync", status_code=202)
async def sync_source(source_id: UUID, caller: CallerDep, sources: SourcesDep) -> SourceInfo:
    """Queue a sync now, unless one is queued or running."""
    return _info(await sources.sync(caller, source_id))


@router.delete("/api/sources/{source_id}", status_code=202)
async def remove_source(
    source_id: UUID,
    caller: CallerDep,
    sources: SourcesDep,
    documents: Annotated[bool, Query()] = False,
) -> SourceRemoval:
    """Forget a source; with `documents=true` a worker deletes its documents first."""
    left = await sources.remove(caller, source_id, with_documents=documents)
    return SourceRemoval(status="removing" if left else "removed")


def _info(source: StoredSource) -> SourceInfo:
    return SourceInfo(
        id=source.id,
        collection=source.collection,
        location=source.location,
        include=list(source.include),
        exclude=list(source.exclude),
        every_minutes=source.every_minutes,
        status=source.status,
        reason=source.reason,
        report=SourceReport.model_validate(source.report) if source.report else None,
        synced_at=source.synced_at,
        next_at=source.next_at,
        created_at=source.created_at,
    )
