"""How a search came to its order, in words and numbers."""

from collections.abc import Mapping
from typing import Any

from app.search.base import SearchRequest
from app.search.matching import Matches
from app.search.phrases import Demands
from app.search.query import ParsedQuery
from app.search.ranking import Ranking
from app.search.reranking import Told
from app.search.scope import AllowedChunks, Scope

NOT_CACHED = "off: nothing is cached here"


def explain_search(
    request: SearchRequest,
    scope: Scope,
    query: ParsedQuery,
    demands: Demands,
    matches: Matches,
    ranking: Ranking,
    allowed: AllowedChunks | None,
    reranked: Told | None,
    times_ms: Mapping[str, float],
) -> dict[str, Any] | None:
    """What the reply says of the search as a whole.

    Without `explain` it says only what came otherwise than was asked: a phrase that no passage
    holds, a reranker that did not run.
    """
    explanation: dict[str, Any] = {}
    if reranked is not None and (request.explain or request.rerank or isinstance(reranked, str)):
        explanation["rerank"] = reranked
    if demands.is_waived or (request.explain and not query.is_plain):
        explanation["query"] = demands.explain(query)
    if not request.explain:
        return explanation or None
    models = {"embedding": scope.model.name} if request.mode != "keyword" else {}
    if isinstance(reranked, Mapping):
        models["reranker"] = reranked["model"]
    explanation |= {
        "mode": request.mode,
        "models": models,
        "weights": {leg.name: leg.weight for leg in ranking.legs},
        "candidates": {leg.name: len(leg.ranked) for leg in ranking.legs},
        "terms": matches.explain(scope.chunks_count),
        "passages": scope.chunks_count,
        "cache": {"embedding": NOT_CACHED, "chunks": NOT_CACHED},
        "stages_ms": {name: round(taken, 3) for name, taken in times_ms.items()},
    }
    if request.filters and allowed is not None:
        explanation["filtered"] = {"fields": sorted(request.filters), "left": len(allowed)}
    return explanation
