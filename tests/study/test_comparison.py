"""The intervals, against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tinlab.study.comparison import over_images, over_seeds, spread


def test_spread_is_the_sample_standard_deviation_and_the_t_interval():
    values = [51.2, 52.9, 50.4, 53.3]
    found = spread(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)


def test_one_value_has_no_spread():
    found = spread([51.2])
    assert (found.n, found.mean, found.deviation, found.low) == (1, 51.2, None, None)


def test_paired_seeds_are_the_paired_t_test():
    dice = np.random.default_rng(0)
    reference = dict(enumerate(50 + 3 * dice.standard_normal(6)))
    values = {seed: value + 1 + 0.5 * dice.standard_normal() for seed, value in reference.items()}
    found = over_seeds(values, reference)
    tested = stats.ttest_rel(list(values.values()), list(reference.values()))
    interval = tested.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.n == 6
    assert found.clear == (tested.pvalue < 0.05)


def test_only_common_seeds_are_paired_and_one_is_too_few():
    found = over_seeds({0: 5.0, 1: 7.0, 9: 100.0}, {1: 6.0, 0: 3.0, 4: 0.0})
    assert (found.n, found.mean) == (2, 1.5)
    assert over_seeds({0: 1.0, 1: 2.0}, {1: 1.0, 2: 5.0}) is None


def test_paired_images_are_scipys_bootstrap_of_the_mean_difference():
    dice = np.random.default_rng(1)
    reference = dice.random(800) < 0.5
    correct = np.where(dice.random(800) < 0.8, reference, dice.random(800) < 0.7)
    found = over_images(correct, reference)
    difference = 100 * (correct.astype(float) - reference)
    expected = stats.bootstrap(
        (difference,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.mean == pytest.approx(difference.mean())
    # Both ends are themselves drawn: a quantile of 10,000 draws is good to some hundredths of a point.
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.2)


def test_equal_runs_differ_by_nothing():
    right = np.array([True, False, True])
    found = over_images(right, right)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert not found.clear
