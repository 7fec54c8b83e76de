"""The words of search: what is asked, what is found, and who can find it."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from uuid import UUID

from app.access import Caller
from app.embedding.base import QueryEmbedding
from app.search.scope import Scope

Mode = Literal["hybrid", "vector", "keyword"]


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A question to the index. `collections` are names; `filters` are as in the contract.

    `rerank` and `rewrite` ask for it or forbid it; None leaves it to the collections.
    With `collapse_duplicates` a passage that several documents hold is given once. With
    `candidate_model` the vectors are those of the model that the collections are to get.
    """

    query: str
    collections: tuple[str, ...]
    limit: int = 10
    mode: Mode = "hybrid"
    rerank: bool | None = None
    rewrite: bool | None = None
    filters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    explain: bool = False
    collapse_duplicates: bool = False
    candidate_model: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage. `start` and `end` are character offsets in the document's parsed text."""

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
    content_hash: bytes
    similarity: float | None
    """Cosine of query and passage, −1…1; None when the vector leg did not run."""
    explanation: Mapping[str, Any] | None = None
    copies: "tuple[Hit, ...]" = ()
    """The same passage in other documents, best first, where duplicates were collapsed."""
    page_breaks: tuple[int, ...] = ()
    """The places in `text` where the pages after `page` begin."""

    def page_at(self, place: int) -> int | None:
        """The page that the character `text[place]` is on."""
        return None if self.page is None else self.page + bisect_right(self.page_breaks, place)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Hits in descending score, ties by chunk id; `query_vector` serves whoever comes next."""

    hits: Sequence[Hit]
    query_vector: Any = None
    query_terms: Sequence[str] = ()
    coverage: float = 0.0
    """Share (0…1) of the query's IDF mass that occurs in the collections at all."""
    cache: Mapping[str, str] = field(default_factory=lambda: {"embedding": "off", "chunks": "off"})
    explanation: Mapping[str, Any] | None = None
    embedder: QueryEmbedding | None = None
    """The model of the query's vector, for texts that are compared with it."""
    scope: Scope | None = None
    """What was searched, of which generation."""

    @property
    def quotes_when_busy(self) -> bool:
        """Whether all collections allow quoting instead of refusing when no model server is free."""
        return self.scope is not None and all(
            one.quotes_when_busy for one in self.scope.collections
        )


class Searcher(Protocol):
    async def search(self, caller: Caller, request: SearchRequest) -> SearchResult:
        """Passages that the caller may see, best first.

        Raises NotFound for a collection that does not exist for this caller, InvalidInput for a
        filter that makes no sense, Unavailable when database or model are away.
        """
        ...
