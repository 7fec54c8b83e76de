"""Intervals of rates, means and their differences. Pure.

Every function takes `confidence`, the probability (0…1) with which an interval holds the truth.
"""

from dataclasses import dataclass
from math import inf, nan, sqrt
from statistics import NormalDist
from typing import Any


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate between its bounds; all NaN where there is nothing to estimate from."""

    estimate: float
    low: float
    high: float


UNKNOWN = Interval(nan, nan, nan)


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` of `total` had what is counted."""

    count: int
    total: int


@dataclass(frozen=True, slots=True)
class Sample:
    """`total` values by their mean and their variance (of a sample: over total − 1)."""

    total: int
    mean: float
    variance: float


def of_rate(rate: Rate, confidence: float = 0.95) -> Interval:
    """Wilson's score interval.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal
    of the American Statistical Association 22 (1927), 209–212. It is right for few cases and for
    rates near 0 and 1 as well.
    """
    if rate.total == 0:
        return UNKNOWN
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n, p = rate.total, rate.count / rate.total
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def of_rate_exactly(rate: Rate, confidence: float = 0.95) -> Interval:
    """The interval that never holds the truth less often than it says, whatever the truth is.

    C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the
    case of the binomial", Biometrika 26 (1934), 404–413. Wider than Wilson's; for promises.
    """
    if rate.total == 0:
        return UNKNOWN
    # Heavy, and not every service compares; it carries no types.
    from scipy.special import betaincinv  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs]

    inverse: Any = betaincinv
    count, others, tail = rate.count, rate.total - rate.count, (1 - confidence) / 2
    low = float(inverse(count, others + 1, tail)) if count else 0.0
    high = float(inverse(count + 1, others, 1 - tail)) if others else 1.0
    return Interval(count / rate.total, low, high)


def of_rate_difference(rate: Rate, control: Rate, confidence: float = 0.95) -> Interval:
    """How much higher a rate is than that of a control.

    Newcombe's hybrid of two Wilson intervals: R. G. Newcombe, "Interval estimation for the
    difference between independent proportions", Statistics in Medicine 17 (1998), 873–890,
    method 10.
    """
    one, other = of_rate(rate, confidence), of_rate(control, confidence)
    if UNKNOWN in (one, other):
        return UNKNOWN
    difference = one.estimate - other.estimate
    below = sqrt((one.estimate - one.low) ** 2 + (other.high - other.estimate) ** 2)
    above = sqrt((one.high - one.estimate) ** 2 + (other.estimate - other.low) ** 2)
    return Interval(difference, difference - below, difference + above)


def of_mean(sample: Sample, confidence: float = 0.95) -> Interval:
    """Student's interval of a mean."""
    if sample.total < 2:
        return UNKNOWN
    half = _t(sample.total - 1, confidence) * sqrt(sample.variance / sample.total)
    return Interval(sample.mean, sample.mean - half, sample.mean + half)


def of_mean_difference(
    sample: Sample, control: Sample, confidence: float = 0.95, *, times: float = 1.0
) -> Interval:
    """How much a mean is above `times` that of a control.

    Welch's interval, for samples of different spread: B. L. Welch, "The generalization of
    'Student's' problem when several different population variances are involved", Biometrika 34
    (1947), 28–35, with the degrees of freedom of Welch and Satterthwaite.
    """
    if min(sample.total, control.total) < 2:
        return UNKNOWN
    difference = sample.mean - times * control.mean
    own = sample.variance / sample.total
    others = times * times * control.variance / control.total
    if own + others == 0:
        return Interval(difference, difference, difference)
    freedom = (own + others) ** 2 / (
        own * own / (sample.total - 1) + others * others / (control.total - 1)
    )
    half = _t(freedom, confidence) * sqrt(own + others)
    return Interval(difference, difference - half, difference + half)


def _t(freedom: float, confidence: float) -> float:
    """The quantile of Student's distribution that bounds its middle `confidence`."""
    # Heavy, and not every service compares; it carries no types.
    from scipy.special import stdtrit  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs]

    quantile: Any = stdtrit(freedom, (1 + confidence) / 2)
    return float(quantile) if freedom > 0 else inf
