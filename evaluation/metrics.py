"""Measures of rankings, by ir-measures, and two rankings compared by them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from app.errors import InvalidInput, StartupError
from evaluation.datasets import Judgements
from evaluation.statistics import SEED, Estimate, difference, estimates

Ranking = Sequence[str]
"""What was found for a question, best first, each once."""

Run = Mapping[str, Ranking]
"""The ranking of each question."""

MEASURES = ("nDCG@10", "R@5", "R@10", "R@20", "R@100", "RR")

_OTHER_NAMES = {"mrr": "RR", "recall@": "R@", "ndcg@": "nDCG@"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of two rankings of the same questions; `gain` is what the second is ahead."""

    before: Estimate
    after: Estimate
    gain: Estimate


def score_questions(
    judgements: Judgements, run: Run, measures: Sequence[str] = MEASURES
) -> dict[str, list[float]]:
    """Each measure of every judged question, in their order; one that found nothing scores 0."""
    try:
        import ir_measures  # noqa: PLC0415 - only who evaluates needs it
    except ImportError:
        raise StartupError(
            "Evaluating needs ir-measures.", hint="Install footnote[eval]."
        ) from None
    library: Any = ir_measures
    parsed = {str(library.parse_measure(name)): name for name in measures}
    scores = {name: dict.fromkeys(judgements, 0.0) for name in measures}
    # Places instead of scores, because trec_eval would reorder what scores alike.
    places = {
        query_id: {unit: float(-place) for place, unit in enumerate(run.get(query_id, ()))}
        for query_id in judgements
    }
    asked = [library.parse_measure(name) for name in measures]
    for one in library.iter_calc(asked, judgements, places):
        scores[parsed[str(one.measure)]][one.query_id] = float(one.value)
    return {name: list(values.values()) for name, values in scores.items()}


def measure(
    judgements: Judgements, run: Run, measures: Sequence[str] = MEASURES
) -> dict[str, float]:
    """The mean of each measure over the judged questions."""
    scores = score_questions(judgements, run, measures)
    return {name: fmean(values) if values else 0.0 for name, values in scores.items()}


def compare_runs(
    judgements: Judgements,
    before: Run,
    after: Run,
    measures: Sequence[str] = MEASURES,
    seed: int = SEED,
) -> dict[str, Comparison]:
    """Two rankings of one golden set, measure by measure, with paired intervals."""
    old, new = (score_questions(judgements, run, measures) for run in (before, after))
    return {
        name: Comparison(
            before=estimates({name: old[name]}, seed=seed)[name],
            after=estimates({name: new[name]}, seed=seed)[name],
            gain=difference(new[name], old[name], seed=seed),
        )
        for name in measures
    }


def measure_name(given: str) -> str:
    """The measure that is meant by `ndcg@10`, `recall@5`, `MRR` and the like; else InvalidInput."""
    wanted = given.strip().lower()
    for other, usual in _OTHER_NAMES.items():
        wanted = wanted.replace(other, usual.lower())
    for name in MEASURES:
        if name.lower() == wanted:
            return name
    raise InvalidInput(
        f"{given!r} is not a measure.", hint=f"Measures are {', '.join(MEASURES)} (RR is MRR)."
    )


def first_of_each(units: Iterable[str]) -> list[str]:
    """A ranking in which each stands once, at its best place."""
    return list(dict.fromkeys(units))


def fuse_ranks(rankings: Iterable[Sequence[int]], constant: int = 60) -> list[int]:
    """Reciprocal rank fusion: Σ 1 / (constant + rank), ranks from 1 (Cormack et al., 2009)."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, unit in enumerate(ranking, 1):
            scores[unit] = scores.get(unit, 0.0) + 1 / (constant + rank)
    return sorted(scores, key=lambda unit: (-scores[unit], unit))
