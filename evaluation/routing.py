"""How well the kind of a question is told, on questions that the classifier has not seen.

Beside it two controls, fitted on the same questions: the number of words, and the most frequent
kind. The intervals are those of `statistics.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import combinations

import yaml
from rich.table import Table

from app.embedding.base import Embedder
from app.llm.question_kinds import (
    KINDS,
    Examples,
    KindClassifier,
    QuestionKind,
    fitted_examples,
)
from evaluation.statistics import Estimate, estimates

LONGEST_WORDS = 30


@dataclass(frozen=True, slots=True)
class RoutingFound:
    """Accuracy by method; `confusion[true][told]` counts the classifier's verdicts."""

    questions: int
    fitted: int
    accuracy: Mapping[str, Estimate]
    confusion: Mapping[str, Mapping[str, int]]

    def record(self) -> dict[str, object]:
        return {
            "questions": self.questions,
            "fitted": self.fitted,
            "accuracy": {name: found.record() for name, found in self.accuracy.items()},
            "confusion": {kind: dict(told) for kind, told in self.confusion.items()},
        }


def measure_routing(embedder: Embedder) -> RoutingFound:
    fitted, unseen = fitted_examples(), _unseen_examples()
    classifier = KindClassifier(embedder.embed(fitted.texts, "query"), fitted.kinds)
    told = [classifier.kind_of(vector) for vector in embedder.embed(unseen.texts, "query")]
    by_length = _by_length(fitted)
    most_frequent = max(KINDS, key=fitted.kinds.count)
    right = {
        "classifier": _right(unseen, told),
        "number of words": _right(unseen, [by_length(text) for text in unseen.texts]),
        "most frequent kind": _right(unseen, [most_frequent] * len(unseen.texts)),
    }
    pairs = list(zip(unseen.kinds, told, strict=True))
    confusion = {true: {one: pairs.count((true, one)) for one in KINDS} for true in KINDS}
    return RoutingFound(len(unseen.texts), len(fitted.texts), estimates(right), confusion)


def routing_tables(found: RoutingFound) -> list[Table]:
    accuracy = Table(title=f"The kind of {found.questions} unseen questions", box=None)
    for column in ("told by", "right", "95 % interval"):
        accuracy.add_column(column)
    for name, one in found.accuracy.items():
        accuracy.add_row(name, f"{one.mean:.1%}", f"{one.low:.1%} to {one.high:.1%}")
    confusion = Table(title="What the classifier told", box=None)
    confusion.add_column("asks for")
    for kind in KINDS:
        confusion.add_column(f"told {kind}", justify="right")
    for kind, told in found.confusion.items():
        confusion.add_row(kind, *(str(told[one]) for one in KINDS))
    return [accuracy, confusion]


def _unseen_examples() -> Examples:
    text = resources.files("evaluation").joinpath("question_kinds.yaml").read_text("utf-8")
    return Examples.of(yaml.safe_load(text))


def _right(examples: Examples, told: Sequence[str]) -> list[float]:
    return [float(true == one) for true, one in zip(examples.kinds, told, strict=True)]


def _by_length(examples: Examples) -> Callable[[str], QuestionKind]:
    """By two thresholds on the number of words, the best ones for these questions."""

    def told_by(short: int, middle: int) -> Callable[[str], QuestionKind]:
        def told(text: str) -> QuestionKind:
            words = len(text.split())
            return "fact" if words <= short else "explanation" if words <= middle else "analysis"

        return told

    candidates = [told_by(*pair) for pair in combinations(range(1, LONGEST_WORDS), 2)]
    return max(
        candidates, key=lambda told: sum(_right(examples, [told(one) for one in examples.texts]))
    )
