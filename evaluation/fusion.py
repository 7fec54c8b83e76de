"""Which ways to make one ranking of several signals are worth their time?

Every variant ranks the same questions over the same index, in this process. A constant is tuned on
one half of the questions of all sets together and judged on the other half, and the other way
round, so that each question is judged with a constant that it had no part in choosing. No set
weighs more than another, however many questions it has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from app.search.kinds import JUDGED, are_code
from evaluation.datasets import Dataset
from evaluation.fusion_index import Tell
from evaluation.fusion_signals import Case, Places, Scores, listed
from evaluation.fusion_typos import with_typo
from evaluation.statistics import RESAMPLES, SEED, Estimate

DEPTH = 10
RANK_CONSTANT = 60

BASE = "z-score"
"""What every variant is compared with: both legs standardised and added up."""

SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Weights that are tried for a further signal beside the two legs, which weigh 1."""

Ranked = tuple[Places, Scores]
Ranker = Callable[[Case], Ranked]


@dataclass(frozen=True, slots=True)
class Variant:
    """Rankers by the constant that each stands for; one alone has nothing to tune."""

    name: str
    rankers: Mapping[str, Ranker]


@dataclass(frozen=True, slots=True)
class Judged:
    """What a variant came to.

    `scores` are the nDCG@10 of each set's questions; `constants` those chosen on either half.
    """

    name: str
    constants: tuple[str, ...]
    scores: dict[str, NDArray[np.float64]]


# --- variants -----------------------------------------------------------------------------------


def weighted(**weights: float) -> Ranker:
    """The weighted sum of standardised signals; `_` in a name stands for a blank."""
    return _sum({name.replace("_", " "): weight for name, weight in weights.items()})


def _sum(weights: Mapping[str, float]) -> Ranker:
    def rank(case: Case) -> Ranked:
        scores = [weight * case.standardised(name) for name, weight in weights.items()]
        return case.candidates, np.sum(scores, axis=0)

    return rank


def _beside_both(*names: str) -> dict[str, Ranker]:
    """Both legs with one weight for each of these signals together."""
    return {
        f"{share}": _sum({"vector": 1.0, "keyword": 1.0} | dict.fromkeys(names, share))
        for share in SHARES
    }


def _reciprocal(case: Case) -> Ranked:
    """Reciprocal rank fusion of what each leg finds (Cormack et al., 2009)."""
    best, nearest = case.matches.top(100), case.nearest(100)
    totals: dict[int, float] = {}
    for leg in (nearest.chunk_ids, best.chunk_ids):
        for rank, place in enumerate(leg.tolist(), 1):
            totals[place] = totals.get(place, 0.0) + 1 / (RANK_CONSTANT + rank)
    return np.array(list(totals), np.int64), np.array(list(totals.values()))


def _keyword(case: Case) -> Ranked:
    best = case.matches.top(100)
    return best.chunk_ids, best.scores


def _vector(case: Case) -> Ranked:
    nearest = case.nearest(100)
    return nearest.chunk_ids, nearest.similarities


def _by_shape(shape: Callable[[Case, str], float], power: float) -> Ranker:
    """Each leg weighs as much as the shape of its scores says, in this question."""

    def rank(case: Case) -> Ranked:
        shapes = {name: max(shape(case, name), 1e-6) ** power for name in ("vector", "keyword")}
        whole = sum(shapes.values())
        return _sum({name: 2 * one / whole for name, one in shapes.items()})(case)

    return rank


def _gap(case: Case, name: str) -> float:
    """How far the best stands above the tenth, in standard deviations."""
    scores = np.sort(case.standardised(name))[::-1]
    return float(scores[0] - scores[min(9, len(scores) - 1)])


def _certainty(case: Case, name: str) -> float:
    """One minus the entropy of the scores as a distribution, 0…1."""
    scores = np.exp(case.standardised(name))
    shares = scores / scores.sum()
    return float(1 + (shares * np.log(shares)).sum() / np.log(max(len(shares), 2)))


def _coverage(case: Case, name: str) -> float:
    """For keywords, the share of the query's IDF mass that one passage holds; vectors know all."""
    return 1.0 if name == "vector" else float(case.signal("matched share").max(initial=0.0))


def by_kind(vector: float) -> Ranker:
    """More weight for vectors where the best passages are programs, as the product does it."""

    def rank(case: Case) -> Ranked:
        places, scores = even = weighted(vector=1.0, keyword=1.0)(case)
        best = places[np.lexsort((places, -scores))][:JUDGED]
        if not are_code([case.index.passages[place].embedded for place in listed(best)]):
            return even
        return weighted(vector=vector, keyword=2 - vector)(case)

    return rank


def _candidates(limit: int) -> Ranker:
    return lambda case: case.fused(limit)


def _mended(case: Case) -> Ranked:
    """Words that the index does not know, replaced by what they may be mistyped from."""
    mended = case.mender.mended(case.terms)
    if mended == case.terms:
        return weighted(vector=1.0, keyword=1.0)(case)
    return case.with_terms(mended).fused()


VARIANTS = (
    Variant("BM25", {"": _keyword}),
    Variant("vectors", {"": _vector}),
    Variant("RRF", {"": _reciprocal}),
    Variant(BASE, {"": weighted(vector=1.0, keyword=1.0)}),
    Variant("50 candidates", {"": _candidates(50)}),
    Variant("200 candidates", {"": _candidates(200)}),
    Variant(
        "other weights",
        {f"{v}:{2 - v:.1f}": weighted(vector=v, keyword=2 - v) for v in (0.6, 0.8, 1.0, 1.2, 1.4)},
    ),
    Variant("weights by kind", {f"{v}:{2 - v:.1f}": by_kind(v) for v in (0.8, 1.2, 1.4, 1.6)}),
    *(
        Variant(f"weights by {name}", {f"{p}": _by_shape(shape, p) for p in (0.25, 0.5, 1.0)})
        for name, shape in (("gap", _gap), ("entropy", _certainty), ("coverage", _coverage))
    ),
    *(
        Variant(f"+ {name}", _beside_both(name))
        for name in (
            "late, floats",
            "late, signs",
            "heading",
            "neighbours",
            "document",
            "matched share",
            "keyword feedback",
            "vector feedback",
        )
    ),
    Variant("mended words", {"": _mended}),
)


# --- judging ------------------------------------------------------------------------------------


def ndcg(case: Case, ranked: Ranked) -> float:
    """nDCG@10 of one question over documents, each at its best passage; gains are the grades.

    (Järvelin and Kekäläinen, 2002, with trec_eval's linear gain.)
    """
    index = case.index
    places, scores = ranked
    order = np.lexsort((places, -scores))
    grades = index.dataset.judgements[index.query_ids[case.query]]
    found: dict[int, None] = {}
    for place in listed(places[order]):
        found[index.passages[place].number] = None
        if len(found) == DEPTH:
            break
    gains = [max(0, grades.get(index.dataset.documents[number].id, 0)) for number in found]
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:DEPTH]
    return _discounted(gains) / _discounted(ideal)


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / np.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def judge(cases: Mapping[str, Sequence[Case]], tell: Tell) -> list[Judged]:
    """All variants over all sets."""
    judged: list[Judged] = []
    for done, variant in enumerate(VARIANTS):
        tell("variants", done, len(VARIANTS))
        scores = {
            constant: {
                name: np.array([ndcg(case, rank(case)) for case in own])
                for name, own in cases.items()
            }
            for constant, rank in variant.rankers.items()
        }
        judged.append(cross_judged(variant.name, scores))
    tell("variants", len(VARIANTS), len(VARIANTS))
    return judged


def cross_judged(name: str, scores: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> Judged:
    """Every question by the constant that was best, on the average of sets, for the other half."""
    chosen = [
        max(
            scores,
            key=lambda constant: np.mean(
                [own[half::2].mean() for own in scores[constant].values()]
            ),
        )
        for half in (1, 0)
    ]
    mixed: dict[str, NDArray[np.float64]] = {}
    for set_name in next(iter(scores.values())):
        mixed[set_name] = scores[chosen[0]][set_name].copy()
        mixed[set_name][1::2] = scores[chosen[1]][set_name][1::2]
    return Judged(name, tuple(chosen), mixed)


# --- what it comes to ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A variant's nDCG@10 of each set and their average, and what each is ahead of BASE."""

    name: str
    constants: tuple[str, ...]
    means: dict[str, float]
    gains: dict[str, Estimate]

    @property
    def is_worth_it(self) -> bool:
        """It gains on the average of the sets, and loses on none by more than the interval."""
        sets = [gain for name, gain in self.gains.items() if name != AVERAGE]
        return self.gains[AVERAGE].low > 0 and all(gain.high >= 0 for gain in sets)


AVERAGE = "average"


def compare(judged: Sequence[Judged], *, seed: int = SEED) -> list[Row]:
    """All variants beside BASE, with paired bootstrap intervals.

    For the average of the sets the questions of each set are drawn by themselves.
    """
    base = next(one for one in judged if one.name == BASE)
    draws = {name: _draws(len(own), seed) for name, own in base.scores.items()}
    rows: list[Row] = []
    for one in judged:
        means = {name: float(own.mean()) for name, own in one.scores.items()}
        drawn = {name: draws[name] @ (own - base.scores[name]) for name, own in one.scores.items()}
        gains = {
            name: _estimate(means[name] - float(base.scores[name].mean()), values)
            for name, values in drawn.items()
        }
        average = float(np.mean(list(means.values())))
        gain = average - float(np.mean([own.mean() for own in base.scores.values()]))
        gains[AVERAGE] = _estimate(gain, np.mean(list(drawn.values()), axis=0))
        rows.append(Row(one.name, one.constants, means | {AVERAGE: average}, gains))
    return rows


def _draws(count: int, seed: int) -> NDArray[np.float64]:
    """How much each of `count` questions weighs in each of RESAMPLES draws."""
    even = np.full(count, 1 / count)
    return np.random.default_rng(seed).multinomial(count, even, RESAMPLES) / count


def _estimate(mean: float, drawn: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(mean, float(low), float(high))


def fusion_table(rows: Sequence[Row]) -> Table:
    """nDCG@10 in per cent; what is ahead of BASE below it, with the interval."""
    sets = list(rows[0].means)
    table = Table("", *sets, "constants", title="nDCG@10, %, and the difference to z-score fusion")
    for row in rows:
        cells = [
            f"{100 * row.means[name]:.1f}"
            if row.name == BASE
            else f"{100 * row.means[name]:.1f}\n{_signed(row.gains[name])}"
            for name in sets
        ]
        constants = ", ".join(dict.fromkeys(one for one in row.constants if one))
        table.add_row(f"[bold]{row.name}[/]" if row.is_worth_it else row.name, *cells, constants)
    return table


def _signed(gain: Estimate) -> str:
    return f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f}…{100 * gain.high:+.1f})"


def fusion_record(rows: Sequence[Row], cases: Mapping[str, Sequence[Case]]) -> dict[str, Any]:
    """As JSON values, shares to four digits."""
    return {
        "base": BASE,
        "sets": {
            name: {
                "documents": len(own[0].index.dataset.documents),
                "passages": len(own[0].index.passages),
                "questions": len(own),
            }
            for name, own in cases.items()
        },
        "variants": [
            {
                "name": row.name,
                "constants": list(row.constants),
                "worth_it": row.is_worth_it,
                "ndcg_10": {name: round(value, 4) for name, value in row.means.items()},
                "gain": {name: gain.record() for name, gain in row.gains.items()},
            }
            for row in rows
        ],
    }


def mistyped(dataset: Dataset, seed: int = SEED) -> Dataset:
    """The set with a typing mistake in every question."""
    random = Random(seed)
    queries = {query_id: with_typo(text, random) for query_id, text in dataset.queries.items()}
    return replace(dataset, name=f"{dataset.name}, mistyped", queries=queries)


def sampled(dataset: Dataset, documents: int | None, seed: int = SEED) -> Dataset:
    """The set with so many of its documents at most, all judged ones among them."""
    judged = {one for grades in dataset.judgements.values() for one in grades}
    others = [one.id for one in dataset.documents if one.id not in judged]
    room = max(0, (documents or len(dataset.documents)) - len(dataset.documents) + len(others))
    if room >= len(others):
        return dataset
    kept = {one.id for one in dataset.documents if one.id in judged}
    kept |= set(Random(seed).sample(others, room))
    return replace(dataset, documents=[one for one in dataset.documents if one.id in kept])
