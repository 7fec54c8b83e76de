"""Makes one order of several: each signal in its own standard deviations, then added up.

Cosine and BM25 have neither unit nor range in common; how far a passage stands out among the
candidates is comparable, and keeps the distances that a fusion of ranks throws away.
"""

from collections.abc import Sequence
from math import isnan, sqrt

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

_NOISE = 1e-9
"""A spread below this share of the largest value is rounding, not opinion."""


def standardise(scores: Scores) -> Scores:
    """Distance from the mean in standard deviations; all zero when the scores do not differ.

    NaN stands for no opinion: it becomes zero, and the others are measured among themselves.
    """
    if len(scores) == 0:
        return scores
    centred = scores - scores.mean()
    deviation = sqrt(centred @ centred / len(scores))
    if isnan(deviation):
        unknown = np.isnan(scores)
        known = np.zeros_like(scores)
        known[~unknown] = standardise(scores[~unknown])
        return known
    if deviation <= _NOISE * max(scores.max(), -scores.min()):
        return np.zeros_like(scores)
    return centred / deviation


def fuse(signals: Sequence[Scores], weights: Sequence[float]) -> Scores:
    """The weighted sum of the standardised signals; entry i of each is about the same passage."""
    fused = np.zeros_like(signals[0])
    for scores, weight in zip(signals, weights, strict=True):
        fused += weight * standardise(scores)
    return fused
