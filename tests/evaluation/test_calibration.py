"""Calibration against scikit-learn, and cases that are calibrated, or not, by construction."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.special
import sklearn.metrics
import sklearn.preprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from tinlab.errors import TinlabError
from tinlab.evaluation.calibration import (
    adaptive_calibration,
    brier,
    calibrated,
    fit_temperature,
    temperature_scaling,
)
from tinlab.evaluation.metrics import calibration, judge


def _drawn(images: int, classes: int, seed: int = 0, sharpness: float = 2) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their own softmax: calibrated by construction."""
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.normal(size=(images, classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # a draw from the softmax
    return logits, labels


def test_brier_agrees_with_scikit_learn() -> None:
    logits, labels = _drawn(700, 5)
    softmax = scipy.special.softmax(logits, axis=1)
    one_hot = sklearn.preprocessing.label_binarize(labels, classes=range(5))
    each = [sklearn.metrics.brier_score_loss(one_hot[:, k], softmax[:, k]) for k in range(5)]
    assert brier(logits, labels) == pytest.approx(sum(each), rel=1e-9)


def test_brier_of_a_sure_and_of_a_clueless_network() -> None:
    assert brier(1e4 * np.eye(3), np.arange(3)) == 0
    assert brier(1e4 * np.eye(3), np.array([1, 2, 0])) == pytest.approx(2)
    assert brier(np.zeros((4, 4)), np.arange(4)) == pytest.approx((1 - 1 / 4) ** 2 + 3 / 16)


def test_a_calibrated_network_has_almost_no_error() -> None:
    found = calibrated(*_drawn(40_000, 10))
    # Sampling alone gives each bin of 2,700 images a distance of about 0.8 * 0.5 / sqrt(2700) = 0.8 points.
    assert found.error_percent < 1.2
    assert found.adaptive_error_percent < 1.2
    assert found.mean_confidence_percent == pytest.approx(found.top1_percent, abs=0.7)


def test_an_overconfident_network_has_a_known_error() -> None:
    """Sure to 99.99%, right in 70%: every image is in one bin, and the error is the gap."""
    labels = np.zeros(1000, int)
    logits = np.zeros((1000, 2))
    logits[:700, 0] = logits[700:, 1] = math.log(9999)
    found = calibrated(logits, labels)
    assert found.error_percent == pytest.approx(29.99)
    assert found.adaptive_error_percent == pytest.approx(29.99)
    assert [b.images for b in found.adaptive_reliability] == [1000]


def test_equal_bins_hold_equally_many() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.beta(8, 2, 3000)
    correct = rng.uniform(size=3000) < 0.6
    error, bins = adaptive_calibration(confidence, correct)
    assert [b.images for b in bins] == [200] * 15
    order = np.argsort(confidence)
    by_hand = [
        abs(confidence[part].mean() - correct[part].mean()) * len(part) / 3000 for part in np.split(order, 15)
    ]
    assert error == pytest.approx(100 * sum(by_hand))
    assert all(before.high == after.low for before, after in itertools.pairwise(bins))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_bins_do_not_depend_on_order_or_copies(images: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.integers(1, 8, images) / 8  # many equals
    correct = rng.uniform(size=images) < 0.5
    order = rng.permutation(images)
    for measure in (calibration, adaptive_calibration):
        error, bins = measure(confidence, correct)
        assert sum(b.images for b in bins) == images
        assert measure(confidence[order], correct[order])[0] == pytest.approx(error)
        assert measure(np.tile(confidence, 2), np.tile(correct, 2))[0] == pytest.approx(error)


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.7])
def test_the_temperature_recovers_a_known_scaling(scale: float) -> None:
    logits, labels = _drawn(20_000, 10)
    assert fit_temperature(scale * logits, labels) == pytest.approx(scale, rel=0.03)


def test_the_temperature_is_where_the_loss_is_least() -> None:
    logits, labels = _drawn(2000, 6, seed=3)
    logits *= 2.3
    best = fit_temperature(logits, labels)
    every = [float(judge(logits / t, labels).loss.mean()) for t in (best / 1.02, best, best * 1.02)]
    assert every[1] == min(every)
    assert sklearn.metrics.log_loss(labels, scipy.special.softmax(logits / best, axis=1)) == pytest.approx(
        every[1]
    )


def test_temperature_mends_another_split_and_leaves_the_answers() -> None:
    logits, labels = _drawn(10_000, 10, seed=1)
    tune, tune_labels = _drawn(10_000, 10, seed=2)
    found = temperature_scaling(
        4 * logits, labels, 4 * tune, tune_labels, measured_on="val", fitted_on="tune"
    )
    assert found.temperature == pytest.approx(4, rel=0.05)
    assert not found.at_limit
    assert found.after.error_percent < 2 < 10 < found.before.error_percent
    assert found.after.loss < found.before.loss
    assert found.after.top1_percent == found.before.top1_percent
    assert (found.fitted_on, found.fitted_images, found.measured_on) == ("tune", 10_000, "val")


def test_where_the_loss_always_falls_the_limit_is_named() -> None:
    logits = np.eye(3)[[0, 1, 2, 0]]
    found = temperature_scaling(
        logits, np.array([0, 1, 2, 0]), logits, np.array([0, 1, 2, 0]), measured_on="val", fitted_on="tune"
    )
    assert found.at_limit
    assert found.temperature == 0.01
    wrong = temperature_scaling(
        logits, np.array([1, 2, 0, 1]), logits, np.array([1, 2, 0, 1]), measured_on="val", fitted_on="tune"
    )
    assert (wrong.temperature, wrong.at_limit) == (100, True)


def test_huge_logits_do_not_overflow() -> None:
    logits = np.array([[3e38, -3e38], [-3e38, 3e38], [0, 1]], np.float32)
    found = calibrated(logits, np.array([0, 1, 1]))
    assert math.isfinite(found.loss)
    assert 0.01 <= fit_temperature(logits, np.array([0, 1, 1])) <= 100


def test_bad_input_is_refused() -> None:
    with pytest.raises(TinlabError, match="no published label"):
        fit_temperature(np.zeros((2, 3)), np.array([0, -1]))
    with pytest.raises(TinlabError, match="not finite"):
        calibrated(np.array([[np.nan, 0]]), np.array([0]))
