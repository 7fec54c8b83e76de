"""One protocol for everything that re-orders passages."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


class Reranker(Protocol):
    @property
    def name(self) -> str: ...

    def score(self, query: str, passages: Sequence[str]) -> Scores:
        """Relevance of each passage to the query: shape (len(passages),), higher is better."""
        ...
