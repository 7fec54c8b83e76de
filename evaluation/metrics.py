"""Measures of rankings, by ir-measures."""

from collections.abc import Iterable, Mapping
from typing import Any

from app.errors import StartupError
from evaluation.datasets import Judgements

Run = Mapping[str, Mapping[str, float]]
"""Of each query: the documents that were found, and their scores."""

MEASURES = ("nDCG@10", "R@100", "RR")


def measure(judgements: Judgements, run: Run) -> dict[str, float]:
    """The mean of each of MEASURES over the judged queries; one that found nothing counts 0."""
    try:
        import ir_measures  # noqa: PLC0415 - only who evaluates needs it
    except ImportError:
        raise StartupError(
            "Evaluating needs ir-measures.", hint="Install footnote[dev], or ir-measures alone."
        ) from None
    library: Any = ir_measures
    measures = [library.parse_measure(name) for name in MEASURES]
    values = library.calc_aggregate(measures, judgements, run)
    return {str(one): float(values[one]) for one in measures}


def best_passages(hits: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Documents by the score of their best passage."""
    best: dict[str, float] = {}
    for document_id, score in hits:
        best[document_id] = max(score, best.get(document_id, score))
    return best
