"""Bootstrap intervals against scipy's bootstrap and the theory of means."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from tinlab.evaluation.intervals import mean_interval, percentile_interval, resampled_means
from tinlab.evaluation.metrics import bootstrap_interval_percent, judge
from tinlab.evaluation.scores import scores


def test_agrees_with_scipys_bootstrap() -> None:
    values = np.random.default_rng(0).exponential(size=80)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    found = mean_interval(values, draws=20_000, seed=2)
    # Two Monte Carlo estimates of the same quantiles: a hundredth of the mean apart at most.
    assert found == pytest.approx((expected.low, expected.high), abs=0.01)


def test_all_resamples_of_three_images() -> None:
    """Of three values there are 27 equally likely resamples, so that every mean's share is known."""
    values = np.array([0.0, 1.0, 5.0])
    every = [(a + b + c) / 3 for a in values for b in values for c in values]
    found = resampled_means(values, draws=40_000, seed=0)
    for mean in set(every):
        share = np.isclose(found, mean).mean()
        assert share == pytest.approx(every.count(mean) / 27, abs=0.01)
    assert set(np.round(found, 6)) == set(np.round(every, 6))


def test_a_binary_mean_has_the_interval_of_top1() -> None:
    correct = np.random.default_rng(0).uniform(size=3000) < 0.4
    low, high = bootstrap_interval_percent(int(correct.sum()), len(correct))
    assert mean_interval(100 * correct) == pytest.approx((low, high), abs=0.25)


def test_it_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(300):
        low, high = mean_interval(rng.normal(size=60), draws=400)
        covered.append(low <= 0 <= high)
    assert 0.90 <= np.mean(covered) <= 0.98  # 95%, less a little for 60 images; 3 standard errors are 4%


def test_the_order_of_blocks_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=40)
    whole = resampled_means(values, draws=100, seed=7)
    monkeypatch.setattr("tinlab.evaluation.intervals._PLACES_AT_ONCE", 400)
    assert np.allclose(resampled_means(values, draws=100, seed=7), whole)


def test_one_value_has_no_width_and_none_is_refused() -> None:
    assert mean_interval(np.full(10, 2.5)) == pytest.approx((2.5, 2.5))
    assert percentile_interval(np.arange(0, 101)) == pytest.approx((2.5, 97.5))
    with pytest.raises(ValueError, match="no images"):
        mean_interval(np.empty(0))


def test_scores_lie_in_their_intervals() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 10)), rng.integers(0, 10, 500)
    logits[np.arange(500), labels] += 1
    found = scores(judge(logits, labels))
    assert found.top1_interval_percent[0] < found.top1_percent < found.top1_interval_percent[1]
    assert found.top5_interval_percent[0] < found.top5_percent < found.top5_interval_percent[1]
    error = scipy.stats.sem(judge(logits, labels).loss)
    assert found.loss_interval == pytest.approx(
        (found.loss - 1.96 * error, found.loss + 1.96 * error), abs=0.02
    )
