"""Bootstrap intervals, against the normal distribution's closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.evaluation.statistics import mean_interval, paired_difference


def by_photo(values: np.ndarray) -> dict[str, float]:
    return {f"{i}.png": float(value) for i, value in enumerate(values)}


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(20, 3, 400)
    found = mean_interval(by_photo(values))
    assert found.mean == pytest.approx(values.mean()) and found.count == 400
    expected = 1.96 * values.std() / 20
    assert found.high - found.mean == pytest.approx(expected, rel=0.1)
    assert found.mean - found.low == pytest.approx(expected, rel=0.1)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    found = [mean_interval(by_photo(rng.exponential(size=80))) for _ in range(300)]
    # Three standard deviations of 300 trials, and what the bootstrap loses of a skewed mean.
    assert np.mean([one.low < 1 < one.high for one in found]) == pytest.approx(0.935, abs=0.045)


def test_a_small_difference_on_every_photo_is_seen_beside_their_spread() -> None:
    rng = np.random.default_rng(3)
    difficulty = rng.normal(25, 5, 50)
    worse = by_photo(difficulty)
    better = by_photo(difficulty + 0.2 + rng.normal(0, 0.1, 50))
    assert paired_difference(better, worse).low > 0
    assert paired_difference(worse, better).excludes_zero
    alone = mean_interval(better), mean_interval(worse)
    assert alone[0].low < alone[1].high
    assert (
        not paired_difference(by_photo(difficulty), by_photo(rng.permutation(difficulty))).low > 0
    )
    assert not paired_difference(worse, worse).excludes_zero


def test_photos_without_a_finite_value_and_too_few_of_them_say_nothing() -> None:
    found = mean_interval({"a": 1.0, "b": math.inf, "c": 3.0})
    assert (found.mean, found.count, found.excludes_zero) == (2.0, 2, False)
    assert math.isnan(found.low)
    assert paired_difference({"a": 1.0}, {"b": 2.0}).count == 0
