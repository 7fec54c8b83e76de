"""Search: two legs over one scope and one snapshot, fused into one order."""

from contextlib import AbstractAsyncContextManager, AsyncExitStack

import numpy as np
from numpy.typing import NDArray

from app.access import Caller
from app.db.collection_settings import RerankerChoice
from app.db.snapshot import Snapshots
from app.embedding.base import QueryEmbedding
from app.embedding.known import ModelMissing
from app.embedding.query_models import QueryModels, Question
from app.errors import InvalidInput
from app.search.base import SearchRequest, SearchResult
from app.search.beginning import Beginnings, Begun
from app.search.explanation import explain_search
from app.search.kinds import JUDGED, are_code
from app.search.late_interaction import LateInteraction
from app.search.matching import NOTHING_ASKED, find_matches, languages_of
from app.search.passages import read_hits
from app.search.phrases import find_demands
from app.search.query import read_query
from app.search.ranking import (
    CANDIDATES,
    CODE_WEIGHTS,
    rank_by_both,
    rank_by_keyword,
    rank_by_vector,
)
from app.search.reranking import Rerankers, choose
from app.search.scope import Scope, allowed_chunks
from app.search.vector import find_neighbours
from app.telemetry import stage


class HybridSearcher:
    """Exact BM25 and nearest vectors over the same passages, each standardised and added up.

    All of a search reads one snapshot of the database, in which also the caller's scope was
    decided; the query is embedded meanwhile.
    """

    def __init__(self, snapshots: Snapshots, models: QueryModels, rerankers: Rerankers) -> None:
        self._beginnings = Beginnings(snapshots, models)
        self._models = models
        self._rerankers = rerankers
        self._late_interaction = LateInteraction()

    async def search(
        self,
        caller: Caller,
        request: SearchRequest,
        begun: AbstractAsyncContextManager[Begun] | None = None,
    ) -> SearchResult:
        """Implements Searcher; goes on with what was `begun` for this request, and ends it."""
        times_ms: dict[str, float] = {}
        query = read_query(request.query.encode("utf-8", "replace").decode())
        candidates = max(CANDIDATES, request.limit)
        matches = NOTHING_ASKED
        vector = embedder = None
        async with AsyncExitStack() as stack:
            with stage("search", "scope", times_ms):
                beginning = begun or self._beginnings.begin(caller, request, query.text)
                opened = await stack.enter_async_context(beginning)
                embedding, sight = opened.question, opened.sight
                snapshot, scope = sight.snapshot, sight.scope
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
                if request.mode == "hybrid" and any(one.token_vectors for one in scope.collections):
                    with stage("search", "late_interaction", times_ms):
                        ranking = await self._late_interaction.add(
                            snapshot, scope, ranking, matches, query.text, embedder
                        )
            choices: set[RerankerChoice | None] = {one.reranker for one in scope.collections}
            reranker, reason = choose(request.rerank, choices, self._rerankers.own)
            count = max(request.limit, JUDGED, self._rerankers.candidates if reranker else 0)
            with stage("search", "passages", times_ms):
                hits = await read_hits(snapshot, scope, ranking, request, count)
                if request.mode == "hybrid" and are_code([hit.text for hit in hits]):
                    ranking = ranking.reweighed(CODE_WEIGHTS)
                    hits = await read_hits(snapshot, scope, ranking, request, count)
        told = f"not done: {reason}" if reason else None
        if reranker:
            # Only now: no connection is held while a model reads.
            with stage("search", "rerank", times_ms):
                hits, told = await self._rerankers.reorder(reranker, query.text, hits)
        return SearchResult(
            hits=hits[: request.limit],
            scope=scope,
            query_vector=vector,
            embedder=embedder,
            query_terms=list(matches.term_counts),
            coverage=matches.coverage(scope.chunks_count),
            explanation=explain_search(
                request, scope, query, demands, matches, ranking, allowed, told, times_ms
            ),
        )

    async def _vector(
        self, question: Question, scope: Scope
    ) -> tuple[NDArray[np.float32], QueryEmbedding]:
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
