"""Measures of saved logits: pure functions on numpy arrays.

Every function takes `logits` (N, C), any real type, and `labels` int64 (N,), or what `judge` made of them.
Where two classes have the same logit, the one with the lower index is ranked first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinlab.errors import TinlabError

CALIBRATION_BINS = 15
BOOTSTRAP_DRAWS = 10_000
ROWS_AT_ONCE = 8192
"""Rows taken to float64 at once, so that measuring 100,000 images x 200 classes stays under 100 MB."""


class NotFinite(TinlabError):
    """Logits that are not finite numbers: the training that led to them has diverged."""


@dataclass(frozen=True)
class Judged:
    """What became of each image; every array has N rows.

    `rank` int64: how many classes were put before the true one (0: right). `predicted` int64: the class put
    first. `confidence` float64: the softmax probability of `predicted`, 0..1. `loss` float64: cross-entropy
    in nats.
    """

    labels: np.ndarray
    rank: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    classes: int

    @property
    def correct(self) -> np.ndarray:
        """bool (N,): the predicted class is the true one."""
        return self.rank == 0


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose confidence lies above `low` and not above `high`, both 0..1. The two percentages are
    means over these images, and None where there are none."""

    low: float
    high: float
    images: int
    confidence_percent: float | None
    accuracy_percent: float | None


@dataclass(frozen=True)
class Confusion:
    """`images` images of class `true` were taken for class `predicted` (two different class indices)."""

    true: int
    predicted: int
    images: int


@dataclass(frozen=True)
class Metrics:
    """What `measure` finds in one split.

    `top1_interval_percent` is the 95% bootstrap interval over images: it covers the chance of which images
    were measured, not that of the training seed. `loss` is the mean cross-entropy in nats.
    `calibration_error_percent` is the expected calibration error. `per_class_percent` has one entry a class,
    None where the split has no image of it. `confusions` come most frequent first.
    """

    images: int
    classes: int
    top1_percent: float
    top1_interval_percent: tuple[float, float]
    top5_percent: float
    loss: float
    calibration_error_percent: float
    mean_confidence_percent: float
    reliability: tuple[ReliabilityBin, ...]
    per_class_percent: tuple[float | None, ...]
    per_class_images: tuple[int, ...]
    confusions: tuple[Confusion, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; tuples become lists once written."""
        return asdict(self)


def measure(logits: np.ndarray, labels: np.ndarray, *, confusions: int = 100, seed: int = 0) -> Metrics:
    """Measure `logits` (N, C) against `labels` (N,).

    `confusions` is how many pairs are kept; `seed` drives the bootstrap. Raises TinlabError on empty input,
    shapes that do not fit, labels that are -1 (unpublished) or outside 0..C-1, and non-finite logits.
    """
    judged = judge(logits, labels)
    error_percent, reliability = calibration(judged.confidence, judged.correct)
    return Metrics(
        images=len(judged.labels),
        classes=judged.classes,
        top1_percent=top_k_percent(judged, 1),
        top1_interval_percent=bootstrap_interval_percent(int(judged.correct.sum()), len(labels), seed=seed),
        top5_percent=top_k_percent(judged, 5),
        loss=float(judged.loss.mean()),
        calibration_error_percent=error_percent,
        mean_confidence_percent=100 * float(judged.confidence.mean()),
        reliability=reliability,
        per_class_percent=per_class_percent(judged),
        per_class_images=tuple(np.bincount(judged.labels, minlength=judged.classes).tolist()),
        confusions=confusion_pairs(judged, limit=confusions),
    )


def judge(logits: np.ndarray, labels: np.ndarray) -> Judged:
    """Rank, predicted class, confidence and loss of each image. Raises TinlabError as `measure` does."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    _check(logits, labels)
    count, classes = logits.shape
    rank, predicted = np.empty(count, np.int64), np.empty(count, np.int64)
    confidence, loss = np.empty(count), np.empty(count)
    for start in range(0, count, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        block = logits[rows].astype(np.float64)  # (B, C)
        of_true = np.take_along_axis(block, labels[rows, None], axis=1)  # (B, 1)
        tied_before = (block == of_true) & (np.arange(classes) < labels[rows, None])
        rank[rows] = ((block > of_true) | tied_before).sum(axis=1)
        predicted[rows] = block.argmax(axis=1)  # the first of equals
        # Subtracting the largest logit leaves softmax as it is, and keeps exp from overflowing.
        highest = block.max(axis=1, keepdims=True)
        total = np.exp(block - highest).sum(axis=1)
        confidence[rows] = 1 / total
        loss[rows] = np.log(total) + (highest - of_true)[:, 0]
    return Judged(labels.astype(np.int64), rank, predicted, confidence, loss, classes)


def top_k_percent(judged: Judged, k: int) -> float:
    """Share of images with the true class among the first `k`, in percent; 100 where k >= C."""
    if k < 1:
        raise TinlabError(f"top-{k} has no meaning; k starts at 1")
    return 100 * float((judged.rank < k).mean())


def per_class_percent(judged: Judged) -> tuple[float | None, ...]:
    """Top-1 of each class (its recall) in percent; None for a class without images."""
    images = np.bincount(judged.labels, minlength=judged.classes)
    right = np.bincount(judged.labels[judged.correct], minlength=judged.classes)
    return tuple(100 * int(r) / int(n) if n else None for r, n in zip(right, images, strict=True))


def confusion_pairs(judged: Judged, *, limit: int | None = None) -> tuple[Confusion, ...]:
    """The most frequent (true, predicted) pairs of different classes, ties in the order of class indices."""
    wrong = ~judged.correct
    pairs = judged.labels[wrong] * judged.classes + judged.predicted[wrong]
    found, images = np.unique(pairs, return_counts=True)
    order = np.argsort(-images, kind="stable")[:limit]
    return tuple(
        Confusion(int(found[i]) // judged.classes, int(found[i]) % judged.classes, int(images[i]))
        for i in order
    )


def calibration(
    confidence: np.ndarray, correct: np.ndarray, *, bins: int = CALIBRATION_BINS
) -> tuple[float, tuple[ReliabilityBin, ...]]:
    """Expected calibration error in percent, and its bins of equal width.

    `confidence` (N,) in 0..1, `correct` bool (N,). The error is the mean, weighted by images, of the distance
    between a bin's accuracy and its mean confidence (Guo et al. 2017, "On Calibration of Modern Neural
    Networks", equation 3).
    """
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    sure = np.bincount(place, weights=confidence, minlength=bins)
    right = np.bincount(place, weights=correct, minlength=bins)
    found = tuple(
        ReliabilityBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            images=int(images[i]),
            confidence_percent=100 * float(sure[i] / images[i]) if images[i] else None,
            accuracy_percent=100 * float(right[i] / images[i]) if images[i] else None,
        )
        for i in range(bins)
    )
    return 100 * float(np.abs(right - sure).sum() / len(confidence)), found


def bootstrap_interval_percent(
    right: int, images: int, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> tuple[float, float]:
    """95% percentile bootstrap interval, in percent, of `right` of `images`.

    Drawing `images` images with replacement and counting the right ones is one binomial draw, so the
    resampling needs no loop. At 0% and 100% the interval has no width: every resample is the same.
    """
    shares = np.random.default_rng(seed).binomial(images, right / images, size=draws) / images
    low, high = np.percentile(shares, [2.5, 97.5])
    return 100 * float(low), 100 * float(high)


def _check(logits: np.ndarray, labels: np.ndarray) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise TinlabError(
            f"logits have shape {logits.shape} and labels {labels.shape}, "
            "where (images, classes) and (images,) were expected; predict again"
        )
    count, classes = logits.shape
    if count == 0 or classes == 0:
        raise TinlabError(f"logits have shape {logits.shape}: there is nothing to measure; predict again")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TinlabError(f"labels are {labels.dtype}; give class indices, int64")
    if (labels == -1).any():
        raise TinlabError(
            f"{int((labels == -1).sum())} of {count} images have no published label (-1); "
            "measure a labelled split, such as val"
        )
    if labels.min() < 0 or labels.max() >= classes:
        outside = int(labels[(labels < 0) | (labels >= classes)][0])
        raise TinlabError(f"label {outside} is outside 0 to {classes - 1}, the classes that logits have")
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise NotFinite(
            f"the logits of {int((~finite).sum())} of {count} images are not finite "
            f"(row {finite.argmin()} is the first); the training diverged: "
            "train again with a lower learning rate"
        )
