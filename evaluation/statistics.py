"""Means of questions with their intervals, by the bootstrap.

Questions are drawn again and again with replacement, and the same draws serve all columns, so that
what is said of a difference is paired (Efron and Tibshirani, An Introduction to the Bootstrap, the
percentile interval; for retrieval: Sakai, SIGIR 2006).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0

_ROUNDING = 1e-9
_NUMBERS_AT_ONCE = 20_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, and the interval that holds it in LEVEL of the draws."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > _ROUNDING or self.high < -_ROUNDING

    def record(self, digits: int = 4) -> dict[str, float]:
        return {
            name: round(value, digits)
            for name, value in (("mean", self.mean), ("low", self.low), ("high", self.high))
        }


def estimates(
    columns: Mapping[str, Sequence[float]], *, seed: int = SEED, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """An estimate of each column's mean; entry i of every column is about the same question."""
    values = np.array(list(columns.values()), dtype=np.float64).T
    if values.size == 0:
        return {}
    means = values.mean(axis=0)
    low, high = np.quantile(
        _resampled_means(values, seed, resamples), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0
    )
    return {
        name: Estimate(float(means[place]), float(low[place]), float(high[place]))
        for place, name in enumerate(columns)
    }


def difference(first: Sequence[float], second: Sequence[float], *, seed: int = SEED) -> Estimate:
    """By how much `first` is above `second`, question by question."""
    pairs = zip(first, second, strict=True)
    return estimates({"": [one - other for one, other in pairs]}, seed=seed)[""]


def _resampled_means(values: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Shape (resamples, columns): how often each question is drawn, times what it came to."""
    random = np.random.default_rng(seed)
    count = len(values)
    even = np.full(count, 1 / count)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, _NUMBERS_AT_ONCE // count)
    for start in range(0, resamples, step):
        draws = random.multinomial(count, even, size=min(step, resamples - start))
        means[start : start + len(draws)] = draws @ values / count
    return means
