"""Fusion weights for one's own questions: chosen on one half, judged on the other.

The service tells of every hit how far it stands out in each leg (`explain`), so other weights are
tried here without asking again. Only the hits of the present weights are reordered: what others
would bring up from further below is not seen.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import InvalidInput
from evaluation.judging import Hit
from evaluation.metrics import MEASURES, score_questions
from evaluation.run import SEARCHES_AT_ONCE, Judged, Tell, each
from evaluation.service import HITS_MAX, Service
from evaluation.statistics import SEED, Estimate, difference, estimates

STEPS = 10
"""Weights are tried in tenths of their sum."""

DEPTH = 100
LEADING = MEASURES[0]
LEAST_QUESTIONS = 10

Weights = dict[str, float]


@dataclass(frozen=True, slots=True)
class Half:
    """What a half of the questions came to with the present weights, and with the chosen ones."""

    questions: int
    present: Estimate
    chosen: Estimate
    gain: Estimate


@dataclass(frozen=True, slots=True)
class Tuning:
    """`chosen_on` is the half that the weights were chosen on, `judged_on` the other.

    `present` are the weights of most questions; the service may weigh those whose passages are of
    another kind differently, and the present figures are of what it does for each.
    """

    dataset: str
    present: Weights
    chosen: Weights
    chosen_on: Half
    judged_on: Half

    @property
    def is_worth_it(self) -> bool:
        """The half that had no say gains, and not by chance."""
        return self.judged_on.gain.low > 0


async def tune(service: Service, judged: Judged, seed: int, tell: Tell) -> Tuning:
    """Ask every query once; raises InvalidInput for too few, or where there are no two legs."""
    collection, queries, judge = judged.collection, judged.queries, judged.judge
    if len(queries) < LEAST_QUESTIONS:
        raise InvalidInput(
            f"{judged.name} has {len(queries)} questions; halves of fewer than {LEAST_QUESTIONS} tell"
            " nothing.",
            hint="Write more, or let `footnote eval generate` make some.",
        )

    async def search(query: tuple[str, str]) -> "_Hits":
        reply = await service.searched(collection, query[1], "hybrid", HITS_MAX, explain=True)
        return _Hits(query[0], reply["hits"], reply["explanation"]["weights"])

    asked = await each(queries.items(), search, SEARCHES_AT_ONCE, tell, "search")
    present = _of_most(asked)
    if len(present) < 2:
        raise InvalidInput(
            "The search had one leg only, so there is nothing to weigh.",
            hint="Tune with questions that both legs can answer.",
        )
    legs = tuple(present)
    signals = {one.query_id: _signals(one, legs) for one in asked}
    hits = {one.query_id: one.hits for one in asked}

    def order(query_id: str, weights: Weights | None) -> Sequence[Hit]:
        if weights is None:
            return hits[query_id][:DEPTH]
        wanted = np.array([weights[leg] for leg in legs])
        return _reordered(hits[query_id], signals[query_id], wanted)

    def score(query_ids: Sequence[str], weights: Weights | None = None) -> list[float]:
        """With these weights, or as the service ordered them."""
        run = {query_id: judge.units(query_id, order(query_id, weights)) for query_id in query_ids}
        judgements = {query_id: judge.judgements[query_id] for query_id in query_ids}
        return score_questions(judgements, run, [LEADING])[LEADING]

    everything = list(queries)
    first, second = halves(dict(zip(everything, score(everything), strict=True)), seed)
    chosen = choose(present, fmean(score(first)), lambda weights: fmean(score(first, weights)))
    return Tuning(
        dataset=judged.name,
        present=present,
        chosen=chosen or present,
        chosen_on=_half(score(first), score(first, chosen), seed),
        judged_on=_half(score(second), score(second, chosen), seed),
    )


def halves(scores: Mapping[str, float], seed: int) -> tuple[list[str], list[str]]:
    """Two halves as hard as each other: of every two neighbours by score, one goes into either."""
    random = Random(seed)
    ordered = sorted(scores, key=lambda query_id: (scores[query_id], query_id))
    first: list[str] = []
    second: list[str] = []
    for start in range(0, len(ordered), 2):
        pair = ordered[start : start + 2]
        random.shuffle(pair)
        first.append(pair[0])
        second += pair[1:]
    return first, second


def choose(
    present: Weights, present_value: float, value: Callable[[Weights], float]
) -> Weights | None:
    """The best weights of the grid, with the sum of the present ones; None unless they are better.

    Of weights that do as well as each other, the nearest to the present ones.
    """
    total = sum(present.values())
    best, best_value = None, present_value
    grid = [_scaled(present, parts, total) for parts in _compositions(len(present))]
    for weights in sorted(grid, key=lambda one: _distance(one, present)):
        if (found := value(weights)) > best_value:
            best, best_value = weights, found
    return best


@dataclass(frozen=True, slots=True)
class _Hits:
    query_id: str
    hits: list[dict[str, Any]]
    weights: Weights


def _of_most(asked: Sequence[_Hits]) -> Weights:
    """The weights that most questions had, of those with most legs."""
    legs_count = max(len(one.weights) for one in asked)
    counts = Counter(tuple(one.weights.items()) for one in asked if len(one.weights) == legs_count)
    return dict(counts.most_common(1)[0][0])


def _signals(asked: _Hits, legs: Sequence[str]) -> NDArray[np.float64]:
    """Shape (hits, legs): how far each hit stands out in each leg, in standard deviations."""
    rows = [
        [float(hit["explanation"].get(leg, {}).get("standardised") or 0.0) for leg in legs]
        for hit in asked.hits
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(legs))


def _reordered(
    hits: Sequence[Hit], signals: NDArray[np.float64], weights: NDArray[np.float64]
) -> list[Hit]:
    order = np.argsort(-(signals @ weights), kind="stable")[:DEPTH]
    return [hits[int(place)] for place in order]


def _compositions(count: int) -> list[tuple[int, ...]]:
    """All ways to give STEPS tenths to `count` legs."""
    return [
        (*parts, STEPS - sum(parts))
        for parts in product(range(STEPS + 1), repeat=count - 1)
        if sum(parts) <= STEPS
    ]


def _scaled(present: Weights, parts: Sequence[int], total: float) -> Weights:
    return {leg: round(total * part / STEPS, 4) for leg, part in zip(present, parts, strict=True)}


def _distance(weights: Weights, present: Weights) -> float:
    return sum((weights[leg] - present[leg]) ** 2 for leg in present)


def _half(present: Sequence[float], chosen: Sequence[float], seed: int = SEED) -> Half:
    both = estimates({"present": present, "chosen": chosen}, seed=seed)
    gain = difference(chosen, present, seed=seed)
    return Half(len(present), both["present"], both["chosen"], gain)
