"""Documents that are nearly the same."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path
from pydantic import BaseModel

from app.api.bodies import BodyRoute
from app.api.problems import DOCUMENTED
from app.api.schemas import Text
from app.dependencies import CallerDep, DuplicatesDep
from app.documents.duplicates import NearDuplicate

router = APIRouter(route_class=BodyRoute, tags=["documents"], responses=DOCUMENTED)


class NearDuplicateInfo(BaseModel):
    """`similarity` is the estimated share of word sequences in common, 0 to 1."""

    document_id: UUID
    title: str
    uri: str
    similarity: float


class NearDuplicates(BaseModel):
    """Most similar first."""

    duplicates: list[NearDuplicateInfo]


class DuplicateGroups(BaseModel):
    """Largest first; in a group the oldest first, with which the others are compared."""

    groups: list[list[NearDuplicateInfo]]


@router.get("/api/documents/{document_id}/duplicates")
async def read_duplicates(
    document_id: UUID, caller: CallerDep, duplicates: DuplicatesDep
) -> NearDuplicates:
    """Documents of the same collection that say nearly the same."""
    found = await duplicates.of_document(caller, document_id)
    return NearDuplicates(duplicates=[_info(one) for one in found])


@router.get("/api/collections/{name}/duplicates")
async def list_duplicates(
    name: Annotated[Text, Path()], caller: CallerDep, duplicates: DuplicatesDep
) -> DuplicateGroups:
    """All groups of nearly equal documents in a collection."""
    groups = await duplicates.in_collection(caller, name)
    return DuplicateGroups(groups=[[_info(one) for one in group] for group in groups])


def _info(one: NearDuplicate) -> NearDuplicateInfo:
    return NearDuplicateInfo(
        document_id=one.document_id, title=one.title, uri=one.uri, similarity=one.similarity
    )
