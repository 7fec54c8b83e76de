"""The wire of sources."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from app.api.schemas import CollectionName, Text, Wire
from app.db.models.sources import SourceStatus
from app.urls import URL_CHARS_MAX

YEAR_MINUTES = 366 * 24 * 60

Pattern = Annotated[Text, Field(min_length=1, max_length=1000)]


class NewSource(Wire):
    """A place to keep a collection in step with: every so many minutes, or only when asked to."""

    location: Annotated[
        Text,
        Field(
            min_length=1,
            max_length=URL_CHARS_MAX,
            examples=["https://example.com/sitemap.xml"],
        ),
    ]
    collection: CollectionName = "default"
    include: Annotated[tuple[Pattern, ...], Field(max_length=100)] = ()
    exclude: Annotated[tuple[Pattern, ...], Field(max_length=100)] = ()
    every_minutes: Annotated[int, Field(ge=1, le=YEAR_MINUTES)] | None = None


class SourceFailure(BaseModel):
    path: str
    reason: str


class SourceReport(BaseModel):
    """What the last complete sync did; at most a hundred failures are named."""

    added: int
    updated: int
    unchanged: int
    deleted: int
    failed: int
    failures: list[SourceFailure]
    took_ms: float


class SourceInfo(BaseModel):
    """`reason` says why the last sync could not be done at all; `report` is of the last that was."""

    id: UUID
    collection: str
    location: str
    include: list[str]
    exclude: list[str]
    every_minutes: int | None
    status: SourceStatus
    reason: str | None
    report: SourceReport | None
    synced_at: datetime | None
    next_at: datetime | None
    created_at: datetime


class SourceList(BaseModel):
    sources: list[SourceInfo]


class SourceRemoval(BaseModel):
    """`removing`: a worker deletes the documents, and then the source."""

    status: Literal["removing", "removed"]
