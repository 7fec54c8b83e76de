"""From what the two legs found to one order, with the reasons. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.search.keyword import KeywordScores
from app.search.vector import Neighbours
from reranker.fusion import fuse, standardise

ChunkIds = NDArray[np.int64]
Scores = NDArray[np.float64]

CANDIDATES = 100
"""How many passages each leg puts forward, at least; both are then scored for all of them. Over six
judged sets 100 found what 200 and 400 did."""

LEG_WEIGHT = 1.0

CODE_WEIGHTS = {"vector": 1.4, "keyword": 0.6}
"""Between programs: who asks for a function seldom uses its words. Chosen on one set of code and
judged on another, each way round; prose is best served by equal weights."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One leg's opinion.

    `ranked` are its own candidates, best first; `scores` are about the candidates of both legs, in
    the order of the ranking's `chunk_ids`, NaN where it has no opinion.
    """

    name: str
    ranked: ChunkIds
    scores: Scores
    weight: float = LEG_WEIGHT


@dataclass(frozen=True, slots=True)
class Ranking:
    """Chunks in descending `scores`, ties in the order of their ids."""

    chunk_ids: ChunkIds
    scores: Scores
    legs: tuple[Leg, ...]

    def reweighed(self, weights: Mapping[str, float]) -> "Ranking":
        """The same opinions added up with other weights; legs that are not named keep theirs."""
        legs = [replace(leg, weight=weights.get(leg.name, leg.weight)) for leg in self.legs]
        fused = fuse([leg.scores for leg in legs], [leg.weight for leg in legs])
        order = np.lexsort((self.chunk_ids, -fused))
        return Ranking(
            self.chunk_ids[order],
            fused[order],
            tuple(replace(leg, scores=leg.scores[order]) for leg in legs),
        )

    def similarity(self, place: int) -> float | None:
        """The cosine of the chunk at this place; None when the vector leg did not run."""
        for leg in self.legs:
            if leg.name == "vector":
                return float(leg.scores[place])
        return None

    def explain(self, place: int) -> dict[str, Any]:
        """Each leg's rank (from 1, None if only the other leg found it), score and share."""
        return {leg.name: self._opinion(leg, place) for leg in self.legs}

    def _opinion(self, leg: Leg, place: int) -> dict[str, Any]:
        found = np.flatnonzero(leg.ranked == self.chunk_ids[place])
        score = float(leg.scores[place])
        opinion: dict[str, Any] = {
            "rank": int(found[0]) + 1 if len(found) else None,
            "score": None if isnan(score) else score,
        }
        if len(self.legs) > 1:
            opinion["standardised"] = float(standardise(leg.scores)[place])
        return opinion


def rank_by_vector(nearest: Neighbours) -> Ranking:
    leg = Leg("vector", nearest.chunk_ids, nearest.similarities)
    return Ranking(nearest.chunk_ids, nearest.similarities, (leg,))


def rank_by_keyword(best: KeywordScores) -> Ranking:
    return Ranking(best.chunk_ids, best.scores, (Leg("keyword", best.chunk_ids, best.scores),))


def rank_by_both(
    nearest: Neighbours, best: KeywordScores, similar: Neighbours, matches: KeywordScores
) -> Ranking:
    """Fuse the candidates of both legs, `nearest` and `best`.

    `similar` holds the similarities of `best`, and `matches` all keyword scores there are.
    """
    chunk_ids = np.union1d(nearest.chunk_ids, best.chunk_ids)
    similarities = np.zeros(len(chunk_ids))
    for known in (similar, nearest):
        similarities[np.searchsorted(chunk_ids, known.chunk_ids)] = known.similarities
    keyword_scores = matches.of(chunk_ids)
    fused = fuse([similarities, keyword_scores], [LEG_WEIGHT, LEG_WEIGHT])
    order = np.lexsort((chunk_ids, -fused))
    return Ranking(
        chunk_ids[order],
        fused[order],
        (
            Leg("vector", nearest.chunk_ids, similarities[order]),
            Leg("keyword", best.chunk_ids, keyword_scores[order]),
        ),
    )
