"""Search: two legs over one scope and one snapshot, fused into one order."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from app.access import Caller
from app.config import Settings
from app.db.postings import PostingList, read_postings
from app.db.snapshot import Snapshot, Snapshots
from app.embedding.query import QueryEmbedder
from app.errors import InvalidInput
from app.search.base import Hit, SearchRequest, SearchResult
from app.search.duplicates import collapse
from app.search.keyword import NO_MATCHES, KeywordScores, inverse_document_frequency, score
from app.search.ranking import LEG_WEIGHT, Ranking, rank_by_both, rank_by_keyword, rank_by_vector
from app.search.scope import AllowedChunks, Scope, allowed_chunks, resolve
from app.search.vector import SETTINGS, find_neighbours
from app.telemetry import stage
from app.terms import extract_terms

log = structlog.get_logger(__name__)

CANDIDATES = 100
"""How many passages each leg puts forward, at least; both are then scored for all of them. Over six
judged sets 100 found what 200 and 400 did."""

DEFAULT_LANGUAGE = "english"

THREAD_FROM_POSTINGS = 50_000
"""Scoring fewer takes less than a millisecond, and starting a thread for it would cost more."""


@dataclass(frozen=True, slots=True)
class _Matches:
    """What the keyword leg knows: the query's terms, where they occur, and all scores."""

    term_counts: Counter[str]
    postings: dict[str, PostingList]
    scores: KeywordScores


class HybridSearcher:
    """Exact BM25 and nearest vectors over the same passages, each standardised and added up.

    All of a search reads one snapshot of the database, in which also the caller's scope was
    decided; the query is embedded meanwhile.
    """

    def __init__(
        self, snapshots: Snapshots, query_embedder: QueryEmbedder, settings: Settings
    ) -> None:
        self._snapshots = snapshots
        self._query_embedder = query_embedder
        self._reranker = settings.reranker

    async def search(self, caller: Caller, request: SearchRequest) -> SearchResult:
        times_ms: dict[str, float] = {}
        query = request.query.encode("utf-8", "replace").decode()
        candidates = max(CANDIDATES, request.limit)
        matches = _Matches(Counter(), {}, NO_MATCHES)
        vector = None
        async with (
            self._embedding(query, request) as embedding,
            self._snapshots.open(SETTINGS) as snapshot,
        ):
            with stage("search", "scope", times_ms):
                scope = await resolve(snapshot, caller, request.collections, request.filters)
                if embedding is not None:
                    self._check_model(scope)
                allowed = await allowed_chunks(snapshot, scope) if scope.condition else None
            if request.mode != "vector":
                with stage("search", "keyword", times_ms):
                    matches = await _find_matches(snapshot, scope, query, allowed)
            best = matches.scores.top(candidates)
            if embedding is None:
                ranking = rank_by_keyword(best)
            else:
                with stage("search", "embedding", times_ms):
                    vector = (await embedding)[0]
                with stage("search", "vector", times_ms):
                    nearest, similar = await find_neighbours(
                        snapshot, scope, vector, candidates, allowed=allowed, others=best.chunk_ids
                    )
                with stage("search", "fusion", times_ms):
                    if request.mode == "vector":
                        ranking = rank_by_vector(nearest)
                    else:
                        ranking = rank_by_both(nearest, best, similar, matches.scores)
            with stage("search", "passages", times_ms):
                hits = await _read_hits(snapshot, scope, ranking, request)
        return SearchResult(
            hits=hits,
            query_vector=vector,
            query_terms=list(matches.term_counts),
            coverage=_coverage(matches, scope.chunks_count),
            explanation=self._explanation(request, scope, matches, ranking, allowed, times_ms),
        )

    @asynccontextmanager
    async def _embedding(
        self, query: str, request: SearchRequest
    ) -> AsyncGenerator["asyncio.Task[NDArray[np.float32]] | None"]:
        """The embedding of the query under way; ended with the search, however that ends."""
        if request.mode == "keyword":
            yield None
            return
        task = asyncio.create_task(self._query_embedder.embed([query], "query"))
        try:
            yield task
        finally:
            if not task.done():
                task.cancel()
            elif not task.cancelled():
                task.exception()  # seen, even when the search failed before it was needed

    def _check_model(self, scope: Scope) -> None:
        running = self._query_embedder.embedder
        if scope.model.digest != running.digest:
            names = ", ".join(collection.name for collection in scope.collections)
            raise InvalidInput(
                f"{names} was embedded with {scope.model.name}; this service runs {running.name}, "
                "whose vectors mean something else.",
                hint="Ingest the collection again, or search it with mode keyword.",
            )

    def _explanation(
        self,
        request: SearchRequest,
        scope: Scope,
        matches: _Matches,
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
        if not request.explain:
            return explanation or None
        chunks_count = scope.chunks_count
        explanation |= {
            "mode": request.mode,
            "weights": {leg.name: LEG_WEIGHT for leg in ranking.legs},
            "candidates": {leg.name: len(leg.ranked) for leg in ranking.legs},
            "terms": {
                term: _term_explanation(term, matches, chunks_count) for term in matches.term_counts
            },
            "stages_ms": {name: round(taken, 3) for name, taken in times_ms.items()},
        }
        if request.filters and allowed is not None:
            explanation["filtered"] = {"fields": sorted(request.filters), "left": len(allowed)}
        return explanation


async def _find_matches(
    snapshot: Snapshot, scope: Scope, query: str, allowed: AllowedChunks | None
) -> _Matches:
    term_counts = _query_terms(query, scope.languages or [DEFAULT_LANGUAGE])
    if not term_counts:
        return _Matches(term_counts, {}, NO_MATCHES)
    postings = await read_postings(snapshot, scope.parameters["collection_ids"], list(term_counts))

    def scored() -> KeywordScores:
        scores = score(
            postings,
            term_counts,
            chunks_count=scope.chunks_count,
            terms_count=scope.terms_count,
        )
        return scores if allowed is None else scores.where(allowed.holds(scores.chunk_ids))

    if sum(map(len, postings.values())) < THREAD_FROM_POSTINGS:
        return _Matches(term_counts, postings, scored())
    return _Matches(term_counts, postings, await asyncio.to_thread(scored))


def _query_terms(query: str, languages: Sequence[str]) -> Counter[str]:
    """The terms of the query read in each language; one read alike in several counts once."""
    term_counts: Counter[str] = Counter()
    for language in languages:
        term_counts |= Counter(extract_terms(query, language))
    return term_counts


def _coverage(matches: _Matches, chunks_count: int) -> float:
    masses = {
        term: inverse_document_frequency(chunks_count, len(matches.postings.get(term, ())))
        for term in matches.term_counts
    }
    known = sum(mass for term, mass in masses.items() if term in matches.postings)
    return known / sum(masses.values()) if known else 0.0


def _term_explanation(term: str, matches: _Matches, chunks_count: int) -> dict[str, Any]:
    holding_count = len(matches.postings.get(term, ()))
    return {
        "passages": holding_count,
        "idf": round(inverse_document_frequency(chunks_count, holding_count), 4),
    }


async def _read_hits(
    snapshot: Snapshot, scope: Scope, ranking: Ranking, request: SearchRequest
) -> list[Hit]:
    # Copies may take up many places before the limit is reached; the candidates are a bound.
    wanted = CANDIDATES if request.collapse_duplicates else 0
    best = ranking.chunk_ids[: max(request.limit, wanted)]
    if len(best) == 0:
        return []
    rows = await snapshot.fetch(
        f"""
        SELECT c.id, c.document_id, c.collection_id, d.title, d.uri, c.text, c.heading, c.page,
          c.start_char, c.end_char, c.content_hash
        FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
        WHERE c.id = ANY(%(chunk_ids)s) AND {scope.visible_documents}
        """,  # noqa: S608 - conditions of the scope
        {**scope.parameters, "chunk_ids": best},
    )
    chunk_ids: list[int] = best.tolist()
    names = {collection.id: collection.name for collection in scope.collections}
    found = {row[0]: row for row in rows}
    if len(found) < len(chunk_ids):
        log.error("index_names_passages_that_are_not_there", missing=len(chunk_ids) - len(found))
    hits = [
        Hit(
            chunk_id=chunk_id,
            document_id=row[1],
            collection=names[row[2]],
            title=row[3],
            uri=row[4],
            text=row[5],
            heading=tuple(row[6]),
            page=row[7],
            start=row[8],
            end=row[9],
            score=float(ranking.scores[place]),
            content_hash=row[10],
            similarity=ranking.similarity(place),
            explanation=ranking.explain(place) if request.explain else None,
        )
        for place, chunk_id in enumerate(chunk_ids)
        if (row := found.get(chunk_id)) is not None
    ]
    return collapse(hits, request.limit) if request.collapse_duplicates else hits
