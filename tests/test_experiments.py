"""Who gets which arm, what is said of arms, and when one is halted: all pure."""

from collections import Counter
from math import isnan
from uuid import UUID, uuid4

import numpy as np
import pytest
from scipy import stats

from app.experiments.assignment import CONTROL, STEPS, arm_place, position, unit_of
from app.experiments.guards import Measured, Tolerance, breach
from app.experiments.intervals import (
    Rate,
    Sample,
    of_mean,
    of_mean_difference,
    of_rate,
    of_rate_difference,
    of_rate_exactly,
)

UNITS = [unit_of(1, UUID(int=number)) for number in range(20_000)]


def test_a_caller_always_gets_the_same_arm() -> None:
    assert position("seed", "1:a") == position("seed", "1:a")
    # Pinned, so that no later version moves callers of a running experiment.
    assert position("seed", "1:a") == pytest.approx(0.478451882619, abs=1e-11)


def test_positions_are_uniform_and_independent() -> None:
    first = [position("one", unit) for unit in UNITS]
    second = [position("two", unit) for unit in UNITS]
    assert stats.kstest(first, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


@pytest.mark.parametrize("candidates_count", [1, 3])
def test_steps_only_ever_add_callers_to_a_candidate(candidates_count: int) -> None:
    for unit in UNITS[:2000]:
        places = [arm_place("seed", unit, candidates_count, step) for step in STEPS]
        given = [place for place in places if place != CONTROL]
        assert given == places[len(places) - len(given) :]
        assert len(set(given)) == 1  # at 100 % everybody has one, and always the same


@pytest.mark.parametrize("percent", STEPS)
def test_each_step_gives_its_share_and_candidates_share_alike(percent: int) -> None:
    counts = Counter(arm_place("seed", unit, 2, percent) for unit in UNITS)
    exposed = len(UNITS) - counts[CONTROL]
    assert exposed / len(UNITS) == pytest.approx(percent / 100, abs=0.012)
    assert counts[1] / exposed == pytest.approx(0.5, abs=0.04)


def test_another_experiment_draws_anew() -> None:
    same = sum(arm_place("one", unit, 1, 50) == arm_place("two", unit, 1, 50) for unit in UNITS)
    assert same / len(UNITS) == pytest.approx(0.5, abs=0.02)


def test_without_keys_a_tenant_is_one_caller() -> None:
    assert unit_of(1, None) == unit_of(1, None) != unit_of(2, None)
    assert unit_of(1, uuid4()) != unit_of(1, None)


# --- intervals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_as_published(count: int, total: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), 857–872, table I, method 3."""
    found = of_rate(Rate(count, total))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("count", "total", "confidence", "low", "high"),
    [
        (5, 10, 0.95, 0.1871, 0.8129),
        (0, 300, 0.9, 0.0, 0.0099),
        (0, 299, 0.9, 0.0, 0.01),
        (10, 10, 0.95, 0.6915, 1.0),
        (1, 5, 0.9, 0.0102, 0.6574),
    ],
)
def test_the_exact_interval_is_that_of_clopper_and_pearson(
    count: int, total: int, confidence: float, low: float, high: float
) -> None:
    found = of_rate_exactly(Rate(count, total), confidence)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    wilson = of_rate(Rate(count, total), confidence)
    assert found.high - found.low > wilson.high - wilson.low


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0000),
        ((5, 56), (0, 29), -0.0381, 0.1926),
    ],
)
def test_newcombes_difference_as_published(
    one: tuple[int, int], other: tuple[int, int], low: float, high: float
) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), 873–890, table II, method 10."""
    found = of_rate_difference(Rate(*one), Rate(*other))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def sample(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Sample:
    return Sample(len(values), float(values.mean()), float(values.var(ddof=1)))


def test_welchs_interval_is_scipys() -> None:
    random = np.random.default_rng(5)
    one, other = random.normal(10, 4, 40), random.normal(8, 1, 12)
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    found = of_mean_difference(sample(one), sample(other))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    # A factor of the control's mean is the same as a control that is so much larger.
    times = of_mean_difference(sample(one), sample(other), times=1.5)
    scaled = of_mean_difference(sample(one), sample(other * 1.5))
    assert (times.low, times.high) == pytest.approx((scaled.low, scaled.high))
    mean = stats.ttest_1samp(one, 0).confidence_interval(0.95)
    own = of_mean(sample(one))
    assert (own.low, own.high) == pytest.approx((mean.low, mean.high))


def test_nothing_is_said_of_too_little() -> None:
    nothing, one = Sample(0, 0, 0), Sample(1, 5, 0)
    assert isnan(of_rate(Rate(0, 0)).estimate)
    assert isnan(of_rate_exactly(Rate(0, 0)).estimate)
    assert isnan(of_rate_difference(Rate(1, 2), Rate(0, 0)).low)
    assert isnan(of_mean(one).low)
    assert isnan(of_mean_difference(one, nothing).low)
    same = of_mean_difference(Sample(5, 0, 0), Sample(5, 0, 0))
    assert (same.low, same.high) == (0, 0)


# --- guards ---------------------------------------------------------------------------------------

WELL = Measured(
    errors=Rate(2, 400),
    declined=Rate(40, 398),
    negative_feedback=Rate(10, 100),
    ttft_ms=Sample(398, 500, 200**2),
    cost=Sample(398, 0.002, 0.001**2),
)


def changed(**values: Rate | Sample) -> Measured:
    parts = {name: getattr(WELL, name) for name in Measured.__slots__}
    return Measured(**{**parts, **values})


def test_an_arm_that_is_alike_goes_on() -> None:
    assert breach(WELL, WELL, Tolerance()) is None


@pytest.mark.parametrize(
    ("worse", "said"),
    [
        (changed(errors=Rate(60, 400)), "errors: 60 of 400 instead of 2 of 400"),
        (changed(errors=Rate(10, 10)), "errors"),
        (changed(declined=Rate(120, 398)), "declined"),
        (changed(negative_feedback=Rate(50, 100)), "negative feedback"),
        (changed(ttft_ms=Sample(200, 900, 200**2)), "first text: 900 instead of 500"),
        (changed(cost=Sample(200, 0.004, 0.001**2)), "cost"),
    ],
)
def test_an_arm_that_is_worse_beyond_doubt_is_halted(worse: Measured, said: str) -> None:
    why = breach(worse, WELL, Tolerance())
    assert why is not None
    assert said in why
    off = Tolerance(errors=None, declined=None, negative_feedback=None, ttft=None, cost=None)
    assert breach(worse, WELL, off) is None


@pytest.mark.parametrize(
    "doubtful",
    [
        changed(errors=Rate(2, 9)),  # too few to judge
        changed(errors=Rate(2, 12)),  # worse, and yet it may be chance
        changed(errors=Rate(16, 400)),  # worse, and tolerated
        changed(negative_feedback=Rate(2, 3)),
        changed(ttft_ms=Sample(3, 2000, 1500**2)),
    ],
)
def test_an_arm_that_may_be_worse_by_chance_goes_on(doubtful: Measured) -> None:
    assert breach(doubtful, WELL, Tolerance()) is None


def test_equal_arms_are_seldom_halted_however_often_they_are_judged() -> None:
    """A hundred experiments without any difference, judged after each ten answers of an arm."""
    random = np.random.default_rng(11)
    halted = 0
    for _ in range(100):
        errors = random.random((2, 300)) < 0.02
        declined = random.random((2, 300)) < 0.15
        times = random.lognormal(6, 0.6, (2, 300))
        for count in range(10, 301, 10):
            arms = [
                Measured(
                    errors=Rate(int(errors[place, :count].sum()), count),
                    declined=Rate(int(declined[place, :count].sum()), count),
                    negative_feedback=Rate(0, 0),
                    ttft_ms=sample(times[place, :count]),
                    cost=Sample(count, 0.0, 0.0),
                )
                for place in (0, 1)
            ]
            if breach(arms[1], arms[0], Tolerance()) is not None:
                halted += 1
                break
    assert halted <= 2
