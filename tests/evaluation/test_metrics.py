"""Metrics against scikit-learn, scipy and cases worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from tinlab.errors import TinlabError
from tinlab.evaluation.metrics import (
    ROWS_AT_ONCE,
    Confusion,
    bootstrap_interval_percent,
    calibration,
    confusion_pairs,
    judge,
    measure,
    top_k_percent,
)


def _made(images: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes)) * 2
    logits[np.arange(images), labels] += 2
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("classes", [6, 20, 200])
def test_agrees_with_scikit_learn(classes: int) -> None:
    logits, labels = _made(ROWS_AT_ONCE + 100, classes)  # more than one block
    metrics, every = measure(logits, labels), np.arange(classes)
    softmax = scipy.special.softmax(logits.astype(np.float64), axis=1)
    predicted = logits.argmax(axis=1)
    assert metrics.top1_percent == pytest.approx(100 * sklearn.metrics.accuracy_score(labels, predicted))
    assert metrics.top5_percent == pytest.approx(
        100 * sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=every)
    )
    assert metrics.loss == pytest.approx(sklearn.metrics.log_loss(labels, softmax, labels=every))
    recall = sklearn.metrics.recall_score(labels, predicted, average=None, labels=every)
    assert metrics.per_class_percent == pytest.approx(100 * recall)
    matrix = sklearn.metrics.confusion_matrix(labels, predicted, labels=every)
    np.fill_diagonal(matrix, 0)
    pairs = confusion_pairs(judge(logits, labels))
    assert sum(pair.images for pair in pairs) == matrix.sum()
    assert all(matrix[pair.true, pair.predicted] == pair.images for pair in pairs)
    assert [pair.images for pair in pairs] == sorted((pair.images for pair in pairs), reverse=True)


def test_a_case_worked_out_by_hand() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]]))
    metrics = measure(logits.astype(np.float32), np.array([0, 1, 2, 1]))
    assert metrics.top1_percent == 50
    assert metrics.top5_percent == 100, "five is more than the three classes"
    assert metrics.loss == pytest.approx(-np.log([0.7, 0.3, 0.8, 0.3]).mean(), rel=1e-6)
    assert metrics.per_class_percent == (100, 0, 100)
    assert metrics.per_class_images == (1, 2, 1)
    assert metrics.confusions == (Confusion(1, 0, 2),)
    assert metrics.mean_confidence_percent == pytest.approx(65)
    # Every image stands alone in its bin: |1 - .7|, |0 - .5|, |1 - .8|, |0 - .6|, each a quarter.
    assert metrics.calibration_error_percent == pytest.approx(100 * (0.3 + 0.5 + 0.2 + 0.6) / 4, rel=1e-6)


def test_equal_logits_rank_the_lower_index_first() -> None:
    logits = np.zeros((4, 4), np.float32)
    judged = judge(logits, np.arange(4))
    assert judged.rank.tolist() == [0, 1, 2, 3]
    assert judged.predicted.tolist() == [0, 0, 0, 0]
    assert [top_k_percent(judged, k) for k in (1, 2, 4, 9)] == [25, 50, 100, 100]
    assert judged.loss == pytest.approx(np.full(4, math.log(4)))


def test_loss_is_stable_for_huge_logits() -> None:
    logits = np.array([[3e38, -3e38], [-3e38, 3e38], [5e4, 5e4]], np.float32)
    judged = judge(logits, np.array([0, 0, 1]))
    assert judged.loss[0] == 0
    assert judged.loss[1] == pytest.approx(6e38, rel=1e-6)
    assert judged.loss[2] == pytest.approx(math.log(2))


def test_a_class_without_images_has_no_accuracy() -> None:
    metrics = measure(np.eye(3, dtype=np.float32)[[0, 2]], np.array([0, 2]))
    assert metrics.per_class_percent == (100, None, 100)


def test_bins_are_open_below_and_closed_above() -> None:
    confidence = np.array([0.0, 0.5, np.nextafter(0.5, 1), 1.0])
    error, bins = calibration(confidence, np.array([True, True, False, True]), bins=2)
    assert [found.images for found in bins] == [2, 2]
    assert [found.accuracy_percent for found in bins] == [100, 50]
    assert error == pytest.approx(100 * ((2 - 0.5) + (1.5 - 1)) / 4)
    assert bins[0].low == 0
    assert bins[-1].high == 1


def test_a_calibrated_network_has_almost_no_calibration_error() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.2, 1, 200_000)
    error, bins = calibration(confidence, rng.uniform(size=len(confidence)) < confidence)
    assert error < 1
    assert bins[0].confidence_percent is None
    assert len(bins) == 15


def test_the_interval_is_that_of_resampling_images() -> None:
    rng = np.random.default_rng(0)
    correct = rng.uniform(size=2000) < 0.6
    low, high = bootstrap_interval_percent(int(correct.sum()), len(correct), seed=3)
    resampled = [100 * correct[rng.integers(0, len(correct), len(correct))].mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.3)
    exact = scipy.stats.binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((100 * exact.low, 100 * exact.high), abs=0.2)
    assert (low, high) == bootstrap_interval_percent(int(correct.sum()), len(correct), seed=3)


def test_to_json_can_be_written() -> None:
    value = json.loads(json.dumps(measure(*_made(50, 4)).to_json(), allow_nan=False))
    assert value["images"] == 50
    assert value["top1_interval_percent"][0] <= value["top1_percent"] <= value["top1_interval_percent"][1]
    assert set(value["confusions"][0]) == {"true", "predicted", "images"}


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3), np.float32), np.zeros(0, np.int64), "nothing to measure"),
        (np.zeros((2, 3), np.float32), np.zeros(3, np.int64), "shape"),
        (np.zeros(3, np.float32), np.zeros(3, np.int64), "shape"),
        (np.zeros((2, 3), np.float32), np.array([0, -1]), "no published label"),
        (np.zeros((2, 3), np.float32), np.array([0, 3]), "label 3 is outside 0 to 2"),
        (np.zeros((2, 3), np.float32), np.array([0, -2]), "label -2 is outside"),
        (np.zeros((2, 3), np.float32), np.array([0.0, 1.0]), "class indices"),
        (np.array([[0, 1], [0, np.nan]], np.float32), np.array([0, 1]), "row 1 is the first"),
        (np.array([[np.inf, 1]], np.float32), np.array([0]), "not finite"),
    ],
)
def test_bad_input_is_refused(logits: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(TinlabError, match=message):
        measure(logits, labels)


def test_top_zero_is_refused() -> None:
    with pytest.raises(TinlabError, match="k starts at 1"):
        top_k_percent(judge(*_made(3, 3)), 0)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_what_always_holds(images: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(-2, 3, (images, classes)).astype(np.float32)  # many ties
    labels = rng.integers(0, classes, images)
    judged, metrics = judge(logits, labels), measure(logits, labels)
    # A stable sort of the negated logits puts the lower index first among equals.
    order = np.argsort(-logits, axis=1, kind="stable")
    assert judged.rank.tolist() == [list(row).index(label) for row, label in zip(order, labels, strict=True)]
    assert metrics.top1_percent <= metrics.top5_percent <= 100
    assert sum(found.images for found in metrics.reliability) == images
    wrong = sum(pair.images for pair in metrics.confusions)
    assert wrong == images - round(metrics.top1_percent * images / 100)
    low, high = metrics.top1_interval_percent
    assert low <= metrics.top1_percent + 1e-9
    assert metrics.top1_percent <= high + 1e-9
