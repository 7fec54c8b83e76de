"""The wire of ingestion: jobs, the queue, and what else documents go through."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field, StrictBool, StrictInt

from app.api.schemas import CollectionName, DocumentStatus, Wire
from app.db.collection_settings import (
    ChunkingStrategy,
    CollectionSettings,
    PersonalDataPolicy,
    RerankerChoice,
)

MAX_JOB_ID = 2**63 - 1

Seconds = Annotated[float, Field(ge=0, examples=[3.5])]


# --- jobs -----------------------------------------------------------------------------------------


class JobProgress(BaseModel):
    """Passages done, and passages in all: 0 while that is not known yet."""

    stage: str = Field(examples=["embedding"])
    done: int
    total: int


class JobInfo(BaseModel):
    """How far a document's processing is; `attempts` counts those that have begun.

    A job that gives a collection another embedding model has no `document_id`, and that model as its
    `title`. `position` says how many jobs come before one that is queued; null when more than 1,000 do, and
    in lists.
    """

    id: int
    status: DocumentStatus
    document_id: UUID | None
    collection: str
    title: str
    attempts: int
    reason: str | None
    progress: JobProgress | None
    position: int | None


class JobQuery(Wire):
    collection: CollectionName | None = None
    status: DocumentStatus | None = None
    limit: Annotated[int, Field(ge=1)] = 50
    cursor: Annotated[int, Field(ge=1, le=MAX_JOB_ID)] | None = None


class JobPage(BaseModel):
    """`next_cursor` is null on the last page."""

    jobs: list[JobInfo]
    next_cursor: int | None


class RetryBody(Wire):
    """Which failed documents to try again: those of a collection, by default all."""

    collection: CollectionName | None = None
    status: Literal["failed"] = "failed"


class RetriedInfo(BaseModel):
    """How many were queued; `skipped` counts documents whose original is not kept here."""

    queued: int
    skipped: int


# --- ingestion as a whole -------------------------------------------------------------------------


class WorkerInfo(BaseModel):
    id: int
    heartbeat_age_seconds: Seconds
    alive: bool


class CollectionBacklogInfo(BaseModel):
    name: str
    queued: int
    processing: int
    failed: int


class FailureInfo(BaseModel):
    document_id: UUID
    job_id: int | None
    collection: str
    title: str
    reason: str | None
    failed_at: datetime


class IngestionInfo(BaseModel):
    """Of what the caller may see; `eta_seconds` is null while nothing becomes ready.

    `collections` are those in which something waits or has failed; `failures` are the latest ten.
    """

    queued: int
    processing: int
    failed: int
    oldest_seconds: Seconds
    rate_per_minute: Annotated[float, Field(ge=0, examples=[240.0])]
    eta_seconds: Seconds | None
    workers: list[WorkerInfo]
    collections: list[CollectionBacklogInfo]
    failures: list[FailureInfo]


# --- collections ----------------------------------------------------------------------------------


class ChunkingChange(Wire):
    """How texts are cut; null resets."""

    tokens: StrictInt | None = Field(
        default=None, description="The size to aim for, 16 to 2000; null: the service's own."
    )
    overlap: StrictInt | None = Field(
        default=None, description="Tokens that a passage repeats of the one before it."
    )
    strategy: ChunkingStrategy | None = None


class SearchChange(Wire):
    """How passages are found; null resets."""

    reranker: RerankerChoice | None = Field(
        default=None, description="What re-orders the best passages; null: the service's own."
    )
    token_vectors: StrictBool | None = None
    rewrite: StrictBool | None = Field(
        default=None, description="Let a language model put queries in other words."
    )


class AnswersChange(Wire):
    quote_when_busy: bool | None = Field(
        default=None,
        description="Quote the passages' own sentences when no model server is free in time.",
    )


class SettingsChange(Wire):
    """A JSON merge patch: what is left out stays, null resets."""

    chunking: ChunkingChange | None = None
    personal_data: PersonalDataPolicy | None = None
    search: SearchChange | None = None
    answers: AnswersChange | None = None


class NewCollection(Wire):
    name: CollectionName = Field(examples=["handbook"])
    settings: SettingsChange = SettingsChange()


class CollectionChange(Wire):
    settings: SettingsChange = Field(examples=[{"chunking": {"tokens": 300, "overlap": 30}}])


class CollectionInfo(BaseModel):
    name: str
    embedding_model: str
    documents: int
    chunks: int
    created_at: datetime
    settings: CollectionSettings


class CollectionList(BaseModel):
    collections: list[CollectionInfo]


class PersonalDataInfo(BaseModel):
    """In how many documents there is some, and how much of it was found in them."""

    documents: int
    found: int


class CollectionDetail(CollectionInfo):
    """`outdated` documents serve a version that is yet to be rebuilt with the settings."""

    outdated: int
    personal_data: dict[str, PersonalDataInfo] = Field(
        examples=[{"email": {"documents": 3, "found": 7}}]
    )
