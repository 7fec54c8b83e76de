"""What kind of question is asked: a fact, an explanation or an analysis. Pure.

A linear model on the query's embedding, fitted in closed form (ridge regression on one-hot labels)
on the questions of question_kinds.yaml. It is fitted with the vectors of whichever embedding model
finds the passages, because no other model's vectors can be compared with them.
`footnote eval routing` measures it on questions that it has not seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

import numpy as np
import yaml
from numpy.typing import NDArray

QuestionKind = Literal["fact", "explanation", "analysis"]
KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)

RIDGE = 1.0
"""Between under- and overfitting; chosen by leave-one-out on the fitted questions alone."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Examples:
    """Questions and their kinds, in the same order."""

    texts: tuple[str, ...]
    kinds: tuple[QuestionKind, ...]

    @classmethod
    def of(cls, by_kind: Mapping[QuestionKind, Sequence[str]]) -> "Examples":
        texts = [text for of_kind in by_kind.values() for text in of_kind]
        kinds: list[QuestionKind] = []
        for kind, of_kind in by_kind.items():
            kinds.extend(kind for _ in of_kind)
        return cls(tuple(texts), tuple(kinds))


@cache
def fitted_examples() -> Examples:
    """What the classifier is fitted on."""
    text = resources.files("app.llm").joinpath("question_kinds.yaml").read_text("utf-8")
    return Examples.of(yaml.safe_load(text))


class KindClassifier:
    """A fitted model of one embedding model's space."""

    def __init__(self, vectors: Vectors, kinds: Sequence[QuestionKind]) -> None:
        """`vectors`: unit vectors, float32, shape (len(kinds), dimensions)."""
        self._mean = vectors.mean(axis=0)
        centred = (vectors - self._mean).astype(np.float64)
        targets = np.array([[kind == one for one in KINDS] for kind in kinds], dtype=np.float64)
        self._offsets: NDArray[np.float64] = targets.mean(axis=0)
        # In the dual form, because there are fewer questions than dimensions.
        gram = centred @ centred.T + RIDGE * np.eye(len(kinds))
        self._weights: NDArray[np.float64] = centred.T @ np.linalg.solve(
            gram, targets - self._offsets
        )

    def kind_of(self, vector: Any) -> QuestionKind:
        """The kind of the question with this unit vector, shape (dimensions,)."""
        scores = (np.asarray(vector) - self._mean) @ self._weights + self._offsets
        return KINDS[int(np.argmax(scores))]
