from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from reranker.fusion import fuse, standardise

Scores = NDArray[np.float64]

# Steps of 1/64 are exact in floating point, so that equal stays equal under a shift.
value = st.integers(-6400, 6400).map(lambda number: number / 64)
pairs = st.lists(st.tuples(value, value), min_size=1, max_size=50).map(
    lambda rows: np.array(rows, np.float64)
)


def close(left: Scores, right: Scores) -> bool:
    return bool(np.allclose(left, right, rtol=1e-9, atol=1e-9))


def both(rows: NDArray[np.float64]) -> Scores:
    return fuse([rows[:, 0], rows[:, 1]], [1.0, 1.0])


@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_does_not_matter(
    rows: NDArray[np.float64], random: Random
) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    assert close(both(rows[order]), both(rows)[order])


@given(pairs, value, st.integers(-6, 6))
def test_units_and_zero_points_do_not_matter(
    rows: NDArray[np.float64], shift: float, exponent: int
) -> None:
    changed = rows.copy()
    changed[:, 0] = (changed[:, 0] + shift) * 2.0**exponent
    assert close(both(changed), both(rows))


@given(pairs)
def test_better_in_both_is_better(rows: NDArray[np.float64]) -> None:
    fused = both(rows)
    for left in range(len(rows)):
        better = (rows[left] > rows).all(axis=1)
        assert (fused[left] > fused[better]).all()


@given(pairs, value)
def test_a_signal_without_opinion_changes_nothing(
    rows: NDArray[np.float64], constant: float
) -> None:
    flat = np.full(len(rows), constant)
    assert close(fuse([rows[:, 0], flat], [1.0, 1.0]), standardise(rows[:, 0]))


@given(pairs)
def test_standardised_scores_have_mean_zero_and_deviation_one_or_none(
    rows: NDArray[np.float64],
) -> None:
    scores = standardise(rows[:, 0])
    assert abs(scores.mean()) < 1e-9
    assert close(np.array([scores.std()]), np.array([float(len(set(rows[:, 0].tolist())) > 1)]))


def test_rounding_noise_is_not_an_opinion() -> None:
    assert standardise(np.array([0.1 + 0.2, 0.3, 0.3])).tolist() == [0, 0, 0]


def test_weights_scale_their_signals() -> None:
    left, right = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert fuse([left, right], [1.0, 1.0]).tolist() == [0, 0]
    assert fuse([left, right], [3.0, 1.0]).tolist() == [2, -2]


def test_nothing_fuses_to_nothing() -> None:
    nothing = np.array([], np.float64)
    assert len(fuse([nothing, nothing], [1.0, 1.0])) == 0


def test_every_signal_needs_a_weight() -> None:
    with pytest.raises(ValueError, match="shorter"):
        fuse([np.array([1.0]), np.array([1.0])], [1.0])
