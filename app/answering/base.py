"""The words of answering: a question in, events out, the last of which is the whole answer."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, Protocol
from uuid import UUID

from app.access import Caller
from app.answering.prompts import PROMPT_VERSION
from app.language_models import Tier
from app.llm.base import Attempt, ChatModel, GenerationOptions, Lane, Message, Queued
from app.llm.tiers import Offer, Routing
from app.search.base import Hit, SearchResult

AnswerMode = Literal["generated", "extractive", "declined"]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """How passages for an answer are found; None leaves it to the collections and the settings.

    Keywords alone do not do, because what fits is judged by vectors.
    """

    mode: Literal["hybrid", "vector"] = "hybrid"
    rerank: bool | None = None
    passages_count: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """`history` holds the earlier turns, oldest first; `text` is the turn to answer.

    `model` is a name, `auto` or `extractive`; with `auto` a `tier` may be asked for.

    `prompt_version` is one of `PROMPTS`. What an answer depends on beside its evidence stands here
    and in the options of the model.
    """

    text: str
    collections: tuple[str, ...]
    history: tuple[Message, ...] = ()
    model: str = "auto"
    tier: Tier | None = None
    filters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    prompt_version: str = PROMPT_VERSION
    retrieval: Retrieval = Retrieval()
    lane: Lane = "interactive"
    wait_seconds: float | None = None
    """The longest that it may wait for a model server; None for the service's own limit."""


@dataclass(frozen=True, slots=True)
class Citation:
    """`quote` is the exact text of the document at `start:end` that bears the sentence out.

    `page` is the one that the quote begins on.
    """

    marker: int
    chunk_id: int
    document_id: UUID
    title: str
    uri: str
    page: int | None
    start: int
    end: int
    quote: str


@dataclass(frozen=True, slots=True)
class Sentence:
    """`citations` are places in the answer's list of citations: those that belong to this one."""

    text: str
    markers: tuple[int, ...]
    supported: bool
    citations: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """`cached_tokens` are those of the prompt that the model's server had read before."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class InExperiment:
    """The arm that gave an answer; `place` is its place among the arms, 0 for the control."""

    id: str
    name: str
    arm: str
    place: int


@dataclass(frozen=True, slots=True)
class Answer:
    """`grounded` is true when every sentence is supported by a source that it cites.

    `notice` says in words what was degraded, for example that no model is configured. An answer
    that was cut off is not complete, nor is one of a model that stood in for those in `tried`.
    `saved` is what an answer that was known before had cost; `paraphrase_of` is the question that
    it was an answer to, where that was another wording. `routing` says why this model was
    chosen; None where none was asked.
    """

    text: str
    citations: Sequence[Citation]
    sentences: Sequence[Sentence]
    grounded: bool
    mode: AnswerMode
    model: str | None
    cache: Mapping[str, str]
    usage: Usage = Usage()
    notice: str | None = None
    is_complete: bool = True
    saved: Usage = Usage()
    paraphrase_of: str | None = None
    experiment: InExperiment | None = None
    tried: tuple[Attempt, ...] = ()
    routing: Routing | None = None


@dataclass(frozen=True, slots=True)
class SourcesFound:
    """The passages that the answer may cite; marker n is `hits[n - 1]`."""

    hits: Sequence[Hit]


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class CitationFound:
    citation: Citation


@dataclass(frozen=True, slots=True)
class Finished:
    answer: Answer


AnswerEvent = SourcesFound | Queued | TextDelta | CitationFound | Finished


class Answerer(Protocol):
    def answer(self, caller: Caller, question: Question) -> AsyncGenerator[AnswerEvent]:
        """Events in order: sources, text and citations, then exactly one Finished.

        Between sources and text may stand Queued, as often as the place in line changes.

        Raises what search raises, InvalidInput for a model that is not there,
        GenerationUnavailable before the first text and GenerationInterrupted after it. Closing
        the iterator ends the work behind it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Brief:
    """All that an answer is written from.

    `query` is what was searched for. `model` is None where the passages' own sentences answer;
    `notice` goes with the answer.
    """

    question: Question
    query: str
    result: SearchResult
    model: ChatModel | None
    options: GenerationOptions
    notice: str | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """Who answers, with which options, and why; `notice` says why nobody but the passages does."""

    model: ChatModel | None
    options: GenerationOptions
    routing: Routing | None = None
    notice: str | None = None


class ModelChoice(Protocol):
    async def offered(self, caller: Caller, question: Question) -> Offer | None:
        """What the question may be answered by; None for the passages' own sentences.

        Asked before the search, so that a wrong name costs none. Raises InvalidInput for a model
        that is not there, DatabaseUnavailable.
        """
        ...

    async def chosen(self, offer: Offer | None, query: str, result: SearchResult) -> Chosen:
        """Who answers, now that it is known what there is to read.

        Raises Forbidden or GenerationUnavailable for a model that was asked for by name and may
        not or cannot be asked.
        """
        ...


class Writer(Protocol):
    def write(self, caller: Caller, brief: Brief) -> AsyncGenerator[AnswerEvent]:
        """Events as Answerer.answer gives them; raises what comes of models there."""
        ...
