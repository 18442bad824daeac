"""Classes and confusions against scikit-learn's confusion matrix, and under changes that must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics

from tinlab.data.pack import ClassInfo
from tinlab.evaluation.calibration import calibrated
from tinlab.evaluation.classes import class_accuracies, confused_pairs
from tinlab.evaluation.metrics import judge
from tinlab.evaluation.scores import scores

CLASSES = tuple(ClassInfo(f"n{i}", f"word {i}, other {i}") for i in range(8))


@pytest.fixture(scope="module")
def made() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 8, 600)
    logits = rng.normal(size=(600, 8))
    logits[np.arange(600), labels] += 1.2
    logits[labels == 3, 5] += 2  # one class that is taken for another
    return logits, labels


def test_agrees_with_the_confusion_matrix(made) -> None:
    logits, labels = made
    judged = judge(logits, labels)
    matrix = sklearn.metrics.confusion_matrix(labels, logits.argmax(1))
    rows = class_accuracies(judged, np.arange(600), CLASSES)
    assert [row.top1_percent for row in rows] == sorted((row.top1_percent for row in rows), reverse=True)
    for row in rows:
        assert (row.right, row.images) == (matrix[row.label, row.label], matrix[row.label].sum())
        assert row.taken_images == np.delete(matrix[row.label], row.label).max()
        assert row.taken_for is not None
        assert matrix[row.label, row.taken_for] == row.taken_images
        assert (row.id, row.words) == (CLASSES[row.label].id, CLASSES[row.label].words)
    pairs = confused_pairs(judged, np.arange(600), CLASSES, limit=None)
    assert (pairs[0].true, pairs[0].predicted) == (3, 5)
    np.fill_diagonal(matrix, 0)
    assert sum(found.images for found in pairs) == matrix.sum()
    for found in pairs:
        assert found.images == matrix[found.true, found.predicted]
        assert found.images_back == matrix[found.predicted, found.true]
        assert (found.of_images, found.of_images_back) == tuple(
            np.bincount(labels)[[found.true, found.predicted]]
        )


def test_examples_are_of_their_kind_and_surest_first(made) -> None:
    logits, labels = made
    judged, indices = judge(logits, labels), np.arange(600) + 1000
    for row in class_accuracies(judged, indices, CLASSES, examples=5):
        for examples, right in ((row.right_examples, True), (row.wrong_examples, False)):
            places = np.array(examples) - 1000
            assert len(places) == min(5, row.right if right else row.images - row.right)
            assert (judged.labels[places] == row.label).all()
            assert (judged.correct[places] == right).all()
            assert (np.diff(judged.confidence[places]) <= 0).all()
            pool = judged.confidence[(judged.labels == row.label) & (judged.correct == right)]
            assert judged.confidence[places[0]] == pool.max()
    first = confused_pairs(judged, indices, CLASSES, limit=3, examples=4)
    assert len(first) == 3
    for found in first:
        places = np.array(found.examples) - 1000
        assert (judged.labels[places] == found.true).all()
        assert (judged.predicted[places] == found.predicted).all()


def test_a_class_without_images_and_one_without_errors() -> None:
    judged = judge(np.eye(3)[[0, 0, 2]], np.array([0, 0, 1]))
    rows = class_accuracies(judged, np.arange(3), CLASSES[:3])
    assert [row.label for row in rows] == [0, 1]
    assert (rows[0].taken_for, rows[0].taken_images, rows[0].wrong_examples) == (None, 0, ())
    assert (rows[1].taken_for, rows[1].taken_for_words) == (2, CLASSES[2].words)


def test_metrics_follow_changes_that_must_not_matter(made) -> None:
    """Shuffled images, images twice, and renamed classes give the same numbers."""
    logits, labels = made
    rng = np.random.default_rng(1)
    order, names = rng.permutation(600), rng.permutation(8)
    renamed = np.empty_like(logits)
    renamed[:, names] = logits
    changed = {
        "shuffled": (logits[order], labels[order]),
        "twice": (np.tile(logits, (2, 1)), np.tile(labels, 2)),
        "renamed": (renamed, names[labels]),
        "shifted": (logits + rng.normal(size=(600, 1)), labels),
    }
    first, plain = scores(judge(logits, labels)), calibrated(logits, labels)
    pairs = {(p.true, p.predicted): p.images for p in _pairs(logits, labels)}
    for kind, (other_logits, other_labels) in changed.items():
        found, other = scores(judge(other_logits, other_labels)), calibrated(other_logits, other_labels)
        for name in ("top1_percent", "top5_percent", "loss"):
            assert getattr(found, name) == pytest.approx(getattr(first, name)), (kind, name)
        for name in ("error_percent", "adaptive_error_percent", "brier", "mean_confidence_percent"):
            assert getattr(other, name) == pytest.approx(getattr(plain, name)), (kind, name)
        width = found.top1_interval_percent[1] - found.top1_interval_percent[0]
        before = first.top1_interval_percent[1] - first.top1_interval_percent[0]
        shrinks = np.sqrt(2) if kind == "twice" else 1
        assert width * shrinks == pytest.approx(before, rel=0.1), kind
        of_pairs = {(p.true, p.predicted): p.images for p in _pairs(other_logits, other_labels)}
        if kind == "renamed":
            assert of_pairs == {(names[t], names[p]): n for (t, p), n in pairs.items()}
        else:
            assert of_pairs == {pair: n * (2 if kind == "twice" else 1) for pair, n in pairs.items()}


def _pairs(logits, labels):
    return confused_pairs(judge(logits, labels), np.arange(len(labels)), CLASSES, limit=None)
