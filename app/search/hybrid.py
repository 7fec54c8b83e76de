"""Search: two legs over one scope and one snapshot, fused into one order."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.access import Caller
from app.config import Settings
from app.db.snapshot import Snapshots
from app.embedding.known import ModelMissing
from app.embedding.query import QueryEmbedder
from app.embedding.query_models import QueryModels, Question
from app.errors import InvalidInput
from app.search.base import SearchRequest, SearchResult
from app.search.candidate import with_candidate_model
from app.search.matching import NOTHING_ASKED, Matches, find_matches, languages_of
from app.search.passages import read_hits
from app.search.phrases import Demands, find_demands
from app.search.query import ParsedQuery, read_query
from app.search.ranking import (
    CANDIDATES,
    LEG_WEIGHT,
    Ranking,
    rank_by_both,
    rank_by_keyword,
    rank_by_vector,
)
from app.search.scope import AllowedChunks, Scope, allowed_chunks, resolve
from app.search.vector import SETTINGS, find_neighbours
from app.telemetry import stage


class HybridSearcher:
    """Exact BM25 and nearest vectors over the same passages, each standardised and added up.

    All of a search reads one snapshot of the database, in which also the caller's scope was
    decided; the query is embedded meanwhile.
    """

    def __init__(self, snapshots: Snapshots, models: QueryModels, settings: Settings) -> None:
        self._snapshots = snapshots
        self._models = models
        self._reranker = settings.reranker

    async def search(self, caller: Caller, request: SearchRequest) -> SearchResult:
        times_ms: dict[str, float] = {}
        query = read_query(request.query.encode("utf-8", "replace").decode())
        candidates = max(CANDIDATES, request.limit)
        matches = NOTHING_ASKED
        vector = embedder = None
        async with (
            self._embedding(query.text, caller, request) as embedding,
            self._snapshots.open(caller.tenant_id, SETTINGS) as snapshot,
        ):
            with stage("search", "scope", times_ms):
                scope = await resolve(snapshot, caller, request.collections, request.filters)
                if request.candidate_model:
                    scope = await with_candidate_model(snapshot, scope)
                if embedding is not None:
                    embedding.settle(scope.model.id, scope.model.digest)
                allowed = await allowed_chunks(snapshot, scope) if scope.condition else None
                demands = await find_demands(snapshot, scope, query, allowed, languages_of(scope))
            if request.mode != "vector":
                with stage("search", "keyword", times_ms):
                    matches = await find_matches(snapshot, scope, query, allowed, demands)
            best = matches.scores.top(candidates)
            if embedding is None:
                ranking = rank_by_keyword(best)
            else:
                with stage("search", "embedding", times_ms):
                    vector, embedder = await self._vector(embedding, scope)
                with stage("search", "vector", times_ms):
                    nearest, similar = await find_neighbours(
                        snapshot,
                        scope,
                        vector,
                        candidates,
                        allowed=allowed,
                        others=best.chunk_ids,
                        among=demands.among,
                        without=demands.without,
                    )
                with stage("search", "fusion", times_ms):
                    if request.mode == "vector":
                        ranking = rank_by_vector(nearest)
                    else:
                        ranking = rank_by_both(nearest, best, similar, matches.scores)
            with stage("search", "passages", times_ms):
                hits = await read_hits(snapshot, scope, ranking, request)
        return SearchResult(
            hits=hits,
            query_vector=vector,
            embedder=embedder,
            query_terms=list(matches.term_counts),
            coverage=matches.coverage(scope.chunks_count),
            explanation=self._explanation(
                request, scope, query, demands, matches, ranking, allowed, times_ms
            ),
        )

    @asynccontextmanager
    async def _embedding(
        self, query: str, caller: Caller, request: SearchRequest
    ) -> AsyncGenerator[Question | None]:
        """The embedding of the query under way; ended with the search, however that ends."""
        if request.mode == "keyword":
            yield None
            return
        place = (caller.tenant_id, request.collections, request.candidate_model)
        async with self._models.question(query, place) as question:
            yield question

    async def _vector(
        self, question: Question, scope: Scope
    ) -> tuple[NDArray[np.float32], QueryEmbedder]:
        """The query as the scope's own model sees it; raises InvalidInput when that is gone."""
        try:
            return await question.vector()
        except ModelMissing as error:
            names = ", ".join(collection.name for collection in scope.collections)
            running = self._models.default.embedder.name
            raise InvalidInput(
                f"{names} was embedded with {scope.model.name}; this service runs {running}, "
                f"whose vectors mean something else. {error.detail}",
                hint=f"{error.hint} Or search it with mode keyword.",
            ) from error

    def _explanation(
        self,
        request: SearchRequest,
        scope: Scope,
        query: ParsedQuery,
        demands: Demands,
        matches: Matches,
        ranking: Ranking,
        allowed: AllowedChunks | None,
        times_ms: dict[str, float],
    ) -> dict[str, Any] | None:
        explanation: dict[str, Any] = {}
        if request.rerank:
            explanation["rerank"] = (
                f"not done: this version cannot run {self._reranker}"
                if self._reranker
                else "not done: no reranker is configured"
            )
        if demands.is_waived or (request.explain and not query.is_plain):
            explanation["query"] = demands.explain(query)
        if not request.explain:
            return explanation or None
        chunks_count = scope.chunks_count
        explanation |= {
            "mode": request.mode,
            "weights": {leg.name: LEG_WEIGHT for leg in ranking.legs},
            "candidates": {leg.name: len(leg.ranked) for leg in ranking.legs},
            "terms": matches.explain(chunks_count),
            "stages_ms": {name: round(taken, 3) for name, taken in times_ms.items()},
        }
        if request.filters and allowed is not None:
            explanation["filtered"] = {"fields": sorted(request.filters), "left": len(allowed)}
        return explanation
