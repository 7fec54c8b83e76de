"""Numbers learnt as they come in. Pure: nothing here waits or asks the time.

Quantities above zero that vary by factors are kept as logarithms.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from itertools import accumulate
from math import exp, log, sqrt

WEIGHT = 0.2
"""Of the newest sample, once there are some: about the last ten count."""
OUTLIER_FACTOR = 1.6
CHANGE_SAMPLES = 2
"""So many outliers in a row on one side are no outliers but another speed."""
SMALLEST = 1e-9


class Estimate:
    """A level that follows drifts, is not led astray by an outlier, and takes over a jump.

    Starts at `prior`, which the first sample replaces.
    """

    def __init__(self, prior: float) -> None:
        self.value = prior
        self.samples_count = 0
        self._log = log(prior)
        self._is_doubted = True
        self._outliers: list[float] = []

    def doubt(self) -> None:
        """The next sample says how it is now, however far it is from what was."""
        self._is_doubted = True

    def add(self, sample: float) -> None:
        logged = log(max(sample, SMALLEST))
        distance = logged - self._log
        if self._is_doubted:
            self._log = logged
            self._is_doubted = False
            self._outliers.clear()
        elif abs(distance) <= log(OUTLIER_FACTOR):
            self._outliers.clear()
            self._log += max(WEIGHT, 1 / (self.samples_count + 1)) * distance
        else:
            self._weigh_outlier(logged)
        self.samples_count += 1
        self.value = exp(self._log)

    def _weigh_outlier(self, logged: float) -> None:
        is_above = logged > self._log
        if self._outliers and (self._outliers[-1] > self._log) != is_above:
            self._outliers.clear()
        self._outliers.append(logged)
        if len(self._outliers) >= CHANGE_SAMPLES:
            self._log = sum(self._outliers) / len(self._outliers)
            self._outliers.clear()


class Spread:
    """How far what happens lies from what was predicted, as a ratio."""

    LEAST_DEVIATION = 0.1
    MOST_DISTANCE = 1.0

    def __init__(self) -> None:
        self._mean = 0.0
        self._variance = 0.25
        self.samples_count = 0

    def add(self, predicted: float, actual: float) -> None:
        ratio = log(max(actual, SMALLEST) / max(predicted, SMALLEST))
        # How far beyond does not matter: it was another speed then, which is learnt elsewhere.
        ratio = min(self.MOST_DISTANCE, max(-self.MOST_DISTANCE, ratio))
        weight = max(0.05, 1 / (self.samples_count + 2))
        distance = ratio - self._mean
        self._mean += weight * distance
        self._variance = (1 - weight) * (self._variance + weight * distance * distance)
        self.samples_count += 1

    def factor(self, deviations: float) -> float:
        """By which to multiply a prediction; 2.33 deviations are passed once in a hundred."""
        deviation = max(self.LEAST_DEVIATION, sqrt(self._variance))
        return exp(min(3.0, self._mean + deviations * deviation))


class OutputLengths:
    """How many tokens answers have: the latest ones stand for the next.

    Nothing is known of an answer before it is written, except how much of it is written already;
    so what is left is the mean of those that were longer.
    """

    def __init__(self, prior: Iterable[int] = (32, 64, 128, 256), kept: int = 256) -> None:
        self._latest = deque(prior, maxlen=kept)
        self._prior_left = len(self._latest)
        self._arrange()

    def add(self, tokens: int) -> None:
        if self._prior_left:
            self._latest.popleft()
            self._prior_left -= 1
        self._latest.append(max(1, tokens))
        self._arrange()

    def expected(self, written: int = 0) -> float:
        """Tokens still to come of an answer that has `written` of them; at least one."""
        longer = bisect_right(self._sorted, written)
        count = len(self._sorted) - longer
        if count == 0:
            # Longer than any that was seen: as long again as the answers that came near it.
            return max(1.0, 0.25 * written)
        return max(1.0, self._sums_from[longer] / count - written)

    def _arrange(self) -> None:
        self._sorted = sorted(self._latest)
        backwards = list(accumulate(reversed(self._sorted)))
        self._sums_from = [*reversed(backwards)]
