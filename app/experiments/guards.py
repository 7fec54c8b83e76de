"""When an experiment is halted by itself: a candidate is worse than the control, beyond doubt. Pure."""

from dataclasses import dataclass
from math import isnan

from app.experiments.intervals import (
    Interval,
    Rate,
    Sample,
    of_mean_difference,
    of_rate_difference,
)

CONFIDENCE = 0.99
"""Higher than a report's, because guards are asked again and again: a chance is taken each time."""

LEAST_OUTCOMES = 10
"""Of an arm; before that nothing is judged."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much worse a candidate may be; None does not guard that.

    Rates as shares of all answers (of all ratings for `negative_feedback`), added to the control's.
    `ttft` and `cost` as factors of the control's mean.
    """

    errors: float | None = 0.05
    declined: float | None = 0.10
    negative_feedback: float | None = 0.15
    ttft: float | None = 1.5
    cost: float | None = 1.5


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of an arm; `ttft_ms` and `cost` of answers that came."""

    errors: Rate
    declined: Rate
    negative_feedback: Rate
    ttft_ms: Sample
    cost: Sample


def breach(candidate: Measured, control: Measured, tolerance: Tolerance) -> str | None:
    """Which guard a candidate broke, in words; None while it may go on.

    Broken means that even the lower bound of the difference is beyond what is tolerated.
    """
    if min(candidate.errors.total, control.errors.total) < LEAST_OUTCOMES:
        return None
    for words, share, one, other in (
        ("errors", tolerance.errors, candidate.errors, control.errors),
        ("answers declined", tolerance.declined, candidate.declined, control.declined),
        (
            "negative feedback",
            tolerance.negative_feedback,
            candidate.negative_feedback,
            control.negative_feedback,
        ),
    ):
        if share is not None and _is_beyond(of_rate_difference(one, other, CONFIDENCE), share):
            return f"{words}: {one.count} of {one.total} instead of {other.count} of {other.total}"
    for words, factor, one, other in (
        ("milliseconds to the first text", tolerance.ttft, candidate.ttft_ms, control.ttft_ms),
        ("cost of an answer", tolerance.cost, candidate.cost, control.cost),
    ):
        if factor is not None and _is_beyond(
            of_mean_difference(one, other, CONFIDENCE, times=factor), 0.0
        ):
            return f"{words}: {one.mean:.6g} instead of {other.mean:.6g}"
    return None


def _is_beyond(difference: Interval, tolerated: float) -> bool:
    return not isnan(difference.low) and difference.low > tolerated
