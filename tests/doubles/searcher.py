"""A searcher over a few passages in memory, by meaning alone."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid5

import numpy as np

from app.access import Caller
from app.embedding.query import QueryEmbedder
from app.search.base import Hit, SearchRequest, SearchResult
from app.search.scope import Scope, ScopedCollection, ScopedModel
from app.terms import extract_terms

NAMESPACE = UUID("7b6f9d1e-6d0c-4f53-9f63-5d5f6c6a2f10")


SCOPE = Scope(
    ScopedModel(1, "words", "digest", 8, 3),
    [
        ScopedCollection(
            1, "default", 1, 3, 30, (), False, None, False, False, quotes_when_busy=True
        )
    ],
    condition=None,
    parameters={},
)


class Shelf:
    """Documents of one passage each; `preface` is text of the document before its passage."""

    def __init__(self, embedder: QueryEmbedder) -> None:
        self.embedder = embedder
        self.hits: list[Hit] = []
        self.documents: dict[UUID, str] = {}
        self.requests: list[SearchRequest] = []
        self.quotes_when_busy = False

    def add(self, title: str, text: str, *, preface: str = "", heading: str = "") -> None:
        document_id = uuid5(NAMESPACE, title)
        self.documents[document_id] = preface + text
        self.hits.append(
            Hit(
                chunk_id=len(self.hits) + 1,
                document_id=document_id,
                collection="default",
                title=title,
                uri=f"file:///{title}.md",
                text=text,
                heading=(heading,) if heading else (),
                page=None,
                start=len(preface),
                end=len(preface) + len(text),
                score=0.0,
                content_hash=text.encode(),
                similarity=None,
            )
        )

    async def search(self, caller: Caller, request: SearchRequest) -> SearchResult:
        self.requests.append(request)
        texts = [request.query, *(f"{hit.title}\n{hit.text}" for hit in self.hits)]
        query, *passages = await self.embedder.embed(texts, "document")
        similarities = [float(query @ passage) for passage in passages]
        best_first = np.argsort(similarities)[::-1][: request.limit]
        known = {term for hit in self.hits for term in extract_terms(f"{hit.title} {hit.text}")}
        terms = extract_terms(request.query)
        return SearchResult(
            hits=[self._ranked(int(place), similarities) for place in best_first],
            query_vector=query,
            query_terms=terms,
            coverage=sum(term in known for term in terms) / max(1, len(terms)),
            cache={"embedding": "miss", "chunks": "off"},
            scope=SCOPE if self.quotes_when_busy else None,
        )

    def _ranked(self, place: int, similarities: Sequence[float]) -> Hit:
        hit = self.hits[place]
        fields: dict[str, Any] = {name: getattr(hit, name) for name in hit.__slots__}
        similarity = similarities[place]
        return Hit(**{**fields, "score": similarity, "similarity": similarity})
