"""One protocol for everything that re-orders passages."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


class RerankerUnavailable(Exception):
    """A reranker that cannot be had, or gave no scores; the message says why, for the reply."""


class Reranker(Protocol):
    """Calls block, and are safe from several threads at once."""

    @property
    def name(self) -> str:
        """What users know it by."""
        ...

    @property
    def digest(self) -> str:
        """Names what decides the scores, as far as it is known here."""
        ...

    def score(self, query: str, passages: Sequence[str]) -> Scores:
        """Relevance of each passage to the query: finite, shape (len(passages),), higher is better.

        Raises RerankerUnavailable.
        """
        ...

    def close(self) -> None:
        """Release threads and connections; whoever is still being scored for gets an error."""
        ...


def checked(scores: Scores, *, count: int, name: str) -> Scores:
    """The scores, if there is a finite one for each passage; raises RerankerUnavailable."""
    if scores.shape != (count,) or not np.isfinite(scores).all():
        raise RerankerUnavailable(f"{name} gave no usable scores")
    return scores
