"""Late interaction as a third opinion, in collections that ask for token vectors."""

import asyncio
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from app.db.snapshot import Snapshot
from app.db.token_vectors import read_signs
from app.embedding.base import QueryEmbedding, ReadsTokens
from app.embedding.token_signs import SIGNS_VERSION, TokenReader
from app.search.keyword import inverse_document_frequency
from app.search.matching import Matches, languages_of, query_terms
from app.search.ranking import Leg, Ranking
from app.search.scope import Scope
from app.terms import extract_terms
from reranker.fusion import standardise
from reranker.late_interaction import max_sim

LATE_WEIGHT = 0.5
"""Beside the two legs, which weigh 1. Of eight judged sets one half chose 0.5 and the other 0.3."""

LATE_CANDIDATES = 200
"""So many of the candidates are compared token by token, those that both legs put first."""


class LateInteraction:
    """Keeps of each model what its token vectors are measured against."""

    def __init__(self) -> None:
        self._readers: dict[str, TokenReader] = {}

    async def add(
        self,
        snapshot: Snapshot,
        scope: Scope,
        ranking: Ranking,
        matches: Matches,
        query: str,
        query_embedder: QueryEmbedding,
    ) -> Ranking:
        """The ranking with the opinion of the query's tokens; as it was where there is none.

        A passage that has no token vectors yet is neither better nor worse for it.
        """
        tokens = await query_embedder.tokens(query)
        if tokens is None or not isinstance(query_embedder.embedder, ReadsTokens):
            return ranking
        chosen = ranking.chunk_ids[:LATE_CANDIDATES]
        known = await read_signs(
            snapshot,
            scope.model.id,
            scope.parameters["tenant_id"],
            scope.parameters["collection_ids"],
            chosen,
            SIGNS_VERSION,
        )
        if not known:
            return ranking
        reader = self._readers.setdefault(
            query_embedder.embedder.digest,
            TokenReader(query_embedder.embedder, lambda word: bool(extract_terms(word))),
        )

        def compared() -> Ranking:
            asked = reader.signs(query, tokens)
            weights = _weights(asked.words, scope, matches)
            none = np.empty((0, asked.signs.shape[1]), np.uint8)
            found = [known.get(chunk_id, none) for chunk_id in chosen.tolist()]
            scores = np.full(len(ranking.chunk_ids), np.nan)
            scores[: len(chosen)] = max_sim(asked.signs, weights, found)
            return _reordered(ranking, scores)

        return await asyncio.to_thread(compared)


def _weights(words: tuple[str, ...], scope: Scope, matches: Matches) -> NDArray[np.float32]:
    """How telling the word of each token is: the mean IDF of its terms."""
    languages = languages_of(scope)
    known = {word: _idf(word, languages, scope, matches) for word in set(words)}
    return np.array([known[word] for word in words], np.float32)


def _idf(word: str, languages: list[str], scope: Scope, matches: Matches) -> float:
    terms = list(query_terms(word, languages))
    if not terms:
        return 0.0
    held = [len(matches.postings.get(term, ())) for term in terms]
    return sum(inverse_document_frequency(scope.chunks_count, one) for one in held) / len(held)


def _reordered(ranking: Ranking, scores: NDArray[np.float64]) -> Ranking:
    fused = ranking.scores + LATE_WEIGHT * standardise(scores)
    order = np.lexsort((ranking.chunk_ids, -fused))
    ranked = np.lexsort((ranking.chunk_ids, -np.nan_to_num(scores, nan=-np.inf)))
    told = int(np.isfinite(scores).sum())
    late = Leg(
        "late_interaction", ranking.chunk_ids[ranked[:told]], scores[order], weight=LATE_WEIGHT
    )
    return Ranking(
        ranking.chunk_ids[order],
        fused[order],
        (*(replace(leg, scores=leg.scores[order]) for leg in ranking.legs), late),
    )
