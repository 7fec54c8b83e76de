"""The wire: what requests may hold and what replies hold. Nothing else stands in this file."""

import math
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, Self, cast
from uuid import UUID

from fastapi import UploadFile
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictBool,
    model_validator,
)

from app.costs.prices import written_amount
from app.language_models import Tier

MAX_NAME_CHARS = 100
MAX_COLLECTIONS = 50
MAX_MESSAGES = 200
MAX_FILTER_FIELDS = 50
DEFAULT_COLLECTION = "default"


class Wire(BaseModel):
    """A body that says no to what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL character cannot be stored or searched")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("there is nothing in it but white space")
    return text


def _check_values(value: object) -> None:
    match value:
        case str():
            _storable(value)
        case float() if not math.isfinite(value):
            raise ValueError("numbers must be finite")
        case list() | tuple() | dict():
            items = cast("Iterable[object]", value)
            for item in items:
                _check_values(item)
            if isinstance(value, dict):
                _check_values(list(cast("dict[str, object]", value).values()))
        case _:
            pass


def _storable_values(values: dict[str, Any]) -> dict[str, Any]:
    _check_values(values)
    return values


Text = Annotated[str, AfterValidator(_storable)]
Question = Annotated[Text, AfterValidator(_not_blank), Field(min_length=1)]
CollectionName = Annotated[Text, Field(min_length=1, max_length=MAX_NAME_CHARS)]
Values = Annotated[dict[str, Any], AfterValidator(_storable_values)]
Filters = Annotated[
    Values,
    Field(
        max_length=MAX_FILTER_FIELDS,
        description="Metadata equality, `$in` and ranges (`$gt`, `$gte`, `$lt`, `$lte`).",
        examples=[{"year": {"$gte": 2024}, "team": {"$in": ["sales", "support"]}}],
    ),
]
Money = Annotated[
    Decimal,
    PlainSerializer(written_amount, return_type=str, when_used="json"),
    Field(description="An exact amount, as a string.", examples=["0.000125"]),
]
Milliseconds = Annotated[float, Field(ge=0, examples=[12.4])]


class InCollections(Wire):
    """Where to look: `collection`, or several as `collections`; by default `default`."""

    collection: CollectionName | None = None
    collections: (
        Annotated[list[CollectionName], Field(min_length=1, max_length=MAX_COLLECTIONS)] | None
    ) = None

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if self.collection is not None and self.collections is not None:
            raise ValueError("give collection or collections, not both")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        if self.collections is not None:
            return tuple(dict.fromkeys(self.collections))
        return (self.collection or DEFAULT_COLLECTION,)


# --- collections and documents --------------------------------------------------------------------


class Removal(BaseModel):
    """The receipt of a deletion, committed when it is given.

    `token_vectors` are the passages that had some, `postings` entries of the keyword index.
    `originals` are those that nothing else needs, and `bytes` theirs.
    """

    documents: int
    chunks: int
    vectors: int
    token_vectors: int
    postings: int
    originals: int
    bytes: int
    deleted_at: datetime


class UploadForm(Wire):
    file: UploadFile
    collection: CollectionName = DEFAULT_COLLECTION
    metadata: Annotated[
        Text | None, Field(description="A JSON object.", examples=['{"year": 2025}'])
    ] = None
    groups: Annotated[
        list[Annotated[Text, Field(min_length=1, max_length=MAX_NAME_CHARS)]],
        Field(description="Access groups that may see it; none: the whole tenant.", max_length=100),
    ] = Field(default=[])
    priority: Annotated[
        Literal["interactive", "bulk"],
        Field(description="`bulk` for one of many: it waits until nobody waits for another."),
    ] = "interactive"


DocumentStatus = Literal["queued", "processing", "ready", "failed"]


class Accepted(BaseModel):
    document_id: UUID
    job_id: int | None
    status: DocumentStatus


class DocumentInfo(BaseModel):
    """`reason` says why a document failed; `version` counts the versions that came to serve.

    `personal_data` counts what a scan found, by kind; null where none was asked for.
    """

    id: UUID
    collection: str
    title: str
    uri: str
    media_type: str
    size_bytes: int
    status: DocumentStatus
    reason: str | None
    warnings: list[str]
    chunks: int
    pages: int | None
    version: int | None
    metadata: dict[str, Any]
    groups: list[str]
    job_id: int | None
    created_at: datetime
    updated_at: datetime
    personal_data: dict[str, int] | None


class DocumentQuery(Wire):
    collection: CollectionName | None = None
    status: DocumentStatus | None = None
    personal_data: bool | None = None
    limit: Annotated[int, Field(ge=1)] = 50
    cursor: Annotated[Text, Field(max_length=500)] | None = None


class DocumentPage(BaseModel):
    """`next_cursor` is null on the last page."""

    documents: list[DocumentInfo]
    next_cursor: str | None


# --- search ---------------------------------------------------------------------------------------


class SearchBody(InCollections):
    query: Question = Field(examples=["How are incidents escalated?"])
    limit: Annotated[int, Field(strict=True, ge=1)] = 10
    mode: Literal["hybrid", "vector", "keyword"] = "hybrid"
    rerank: StrictBool | None = Field(
        default=None, description="True asks, false forbids; left out, the collection decides."
    )
    rewrite: StrictBool | None = Field(
        default=None,
        description="Let a language model put the query in other words; left out, the collection"
        " decides.",
    )
    filters: Filters = {}
    explain: StrictBool = False
    collapse_duplicates: StrictBool = Field(
        default=False, description="Give a passage that several documents hold only once."
    )
    candidate_model: StrictBool = Field(
        default=False, description="With the embedding model that the collections are to get."
    )


class CopyInfo(BaseModel):
    """The same passage in another document."""

    chunk_id: int
    document_id: UUID
    title: str
    uri: str


class HitInfo(BaseModel):
    """A passage; `start` and `end` are character offsets in the document's parsed text."""

    chunk_id: int
    document_id: UUID
    collection: str
    title: str
    uri: str
    text: str
    heading: tuple[str, ...]
    page: int | None
    start: int
    end: int
    score: float
    explanation: dict[str, Any] | None = None
    copies: list[CopyInfo] | None = None


class SearchReply(BaseModel):
    """Hits in descending score, ties by `chunk_id`."""

    hits: list[HitInfo]
    took_ms: Milliseconds
    cache: dict[str, str]
    explanation: dict[str, Any] | None = None


# --- chat -----------------------------------------------------------------------------------------


class ChatMessage(Wire):
    role: Literal["user", "assistant"]
    content: Question


class ChatBody(InCollections):
    """A `question`, or `messages` of which the last is the question."""

    question: Question | None = Field(default=None, examples=["Who approves travel?"])
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = (
        None
    )
    conversation_id: UUID | None = None
    stream: StrictBool = False
    model: Annotated[Text, Field(min_length=1, max_length=200)] = "auto"
    tier: Tier | None = Field(
        default=None,
        description="With the model `auto`: which tier answers; left out, the question decides.",
    )
    filters: Filters = {}
    lane: Literal["interactive", "batch"] = Field(
        default="interactive", description="`batch`: nobody waits for it, so it goes last."
    )
    max_wait_ms: Annotated[int, Field(ge=0, le=3_600_000)] | None = Field(
        default=None, description="Refuse it when no model server is free so soon."
    )

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        if (self.question is None) == (self.messages is None):
            raise ValueError("give either question or messages")
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError("the last of messages must be the user's")
        if self.messages is not None and self.conversation_id is not None:
            raise ValueError("a conversation brings its own history: give question, not messages")
        return self


class CitationInfo(BaseModel):
    """`quote` is the exact text of the document at `start:end`."""

    marker: int
    chunk_id: int
    document_id: UUID
    title: str
    uri: str
    page: int | None
    start: int
    end: int
    quote: str


class SentenceInfo(BaseModel):
    """`citations` are places in the reply's list of citations: those that bear this one out."""

    text: str
    markers: tuple[int, ...]
    supported: bool
    citations: tuple[int, ...] = ()


class AttemptInfo(BaseModel):
    """A model that could not be asked, or failed before its first word."""

    model: str
    reason: str


class RoutingInfo(BaseModel):
    """Which tier and model were chosen, and why; whoever of `tried` failed was stood in for."""

    tier: Tier
    model: str
    reason: str
    tried: list[AttemptInfo]


class UsageInfo(BaseModel):
    """`cached_tokens` are part of `prompt_tokens`; `cost` is exact, in `currency`.

    What is `saved_…` an answer had cost that was known before, or came to somebody else just now.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost: Money
    saved_prompt_tokens: int
    saved_completion_tokens: int
    saved_cost: Money
    currency: str


class ExperimentNote(BaseModel):
    """The arm of an experiment that gave the answer; `place` is 0 for the control."""

    id: str
    name: str
    arm: str
    place: int


class ChatReply(BaseModel):
    """`grounded`: every sentence is borne out by a source that it cites.

    `declined` says that the documents do not hold the answer. `notice` says in words what was
    degraded, for example that no model is configured. `routing` is null where no model was asked.
    """

    answer: str
    citations: list[CitationInfo]
    sentences: list[SentenceInfo]
    grounded: bool
    mode: Literal["generated", "extractive", "declined"]
    model: str | None
    routing: RoutingInfo | None
    notice: str | None
    conversation_id: UUID
    message_id: UUID | None = Field(description="What feedback refers to.")
    cache: dict[str, str]
    paraphrase_of: str | None = Field(
        default=None, description="The wording that a known answer was given to, if another."
    )
    usage: UsageInfo
    experiment: ExperimentNote | None = None
    took_ms: Milliseconds


class SourcesEvent(BaseModel):
    """The passages that the answer may cite; marker n is `hits[n - 1]`."""

    hits: list[HitInfo]


class QueueEvent(BaseModel):
    """Every model server is busy: the place in line, from 1, and the wait that is expected."""

    position: int
    wait_ms: Milliseconds


class TokenEvent(BaseModel):
    text: str


class MessageInfo(BaseModel):
    id: UUID
    role: Literal["user", "assistant"]
    content: str
    answer: dict[str, Any] | None
    created_at: datetime


class ConversationInfo(BaseModel):
    id: UUID
    created_at: datetime
    messages: list[MessageInfo]


class ConversationRemoval(BaseModel):
    messages: int


class FeedbackBody(Wire):
    message_id: UUID
    rating: Annotated[Literal[-1, 1], Field(description="-1 or 1")]
    comment: Annotated[Text, Field(max_length=4000)] | None = None


class FeedbackReply(BaseModel):
    id: UUID


# --- problems and operation -----------------------------------------------------------------------


class FieldProblem(BaseModel):
    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457; `hint` says what to do."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    request_id: str | None
    fields: list[FieldProblem] | None = None


CheckStatus = Literal["ok", "degraded", "down", "off"]


class Check(BaseModel):
    """One part; `reason` says in words what is wrong with it."""

    status: CheckStatus
    reason: str | None = None


class DatabaseCheck(Check):
    hint: str | None = None
    latency_ms: Milliseconds | None = None


class RedisCheck(Check):
    """`kind` is `external`, or what the embedded one is; `in-process` where there is none."""

    kind: str
    latency_ms: Milliseconds | None = None


class ModelServersCheck(Check):
    servers: int = 0
    usable: int = 0


class ProviderInfo(BaseModel):
    """`models` are those that it offers, the first ones by name; null where it did not say."""

    provider: str
    kind: str
    healthy: bool
    latency_ms: Milliseconds | None
    models: list[str] | None
    models_count: int | None
    reason: str | None


class ProvidersCheck(Check):
    """Model providers beside Ollama: `healthy` of those that are `configured`."""

    configured: int = 0
    healthy: int = 0
    providers: list[ProviderInfo] = []


class EmbeddingCheck(Check):
    model: str
    runtime: str
    dimensions: int


class QueueCheck(Check):
    """Documents that wait and are worked on, and the workers that are alive."""

    queued: int | None = None
    processing: int | None = None
    oldest_seconds: float | None = None
    workers: int | None = None


class Checks(BaseModel):
    database: DatabaseCheck
    redis: RedisCheck
    ollama: ModelServersCheck
    providers: ProvidersCheck
    embedding: EmbeddingCheck
    queue: QueueCheck


class HealthReply(BaseModel):
    status: Literal["ok", "degraded", "down"]
    checks: Checks
    version: str


class Readiness(BaseModel):
    ready: bool
    reason: str | None = None


class Liveness(BaseModel):
    alive: Literal[True] = True
