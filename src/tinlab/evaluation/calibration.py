"""Whether a network is as often right as it is sure, and the one number that mends much of it.

`metrics.calibration` has the bins of equal width; here are bins of equal mass, the Brier score and the
temperature (Guo et al. 2017, "On Calibration of Modern Neural Networks").
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinlab.evaluation.metrics import (
    CALIBRATION_BINS,
    ROWS_AT_ONCE,
    Judged,
    ReliabilityBin,
    calibration,
    judge,
)

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0


@dataclass(frozen=True)
class Calibration:
    """How far confidence and accuracy are apart on some images.

    `error_percent` is the expected calibration error over bins of equal width, `adaptive_error_percent` over
    bins of equal mass. `brier` is the mean over images of the squared distance between the probabilities and
    the one-hot label, 0..2 (Brier 1950). `loss` is the mean cross-entropy in nats. The bins are what a
    reliability chart draws.
    """

    images: int
    error_percent: float
    adaptive_error_percent: float
    brier: float
    loss: float
    mean_confidence_percent: float
    top1_percent: float
    reliability: tuple[ReliabilityBin, ...]
    adaptive_reliability: tuple[ReliabilityBin, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class TemperatureScaling:
    """The temperature that logits are divided by, and what it did to `measured_on`.

    It was fitted on the `fitted_images` of `fitted_on`. `at_limit`: the loss still fell at the end of the
    range that was searched, 0.01 to 100.
    """

    temperature: float
    at_limit: bool
    fitted_on: str
    fitted_images: int
    measured_on: str
    before: Calibration
    after: Calibration

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def calibrated(logits: np.ndarray, labels: np.ndarray, *, judged: Judged | None = None) -> Calibration:
    """The calibration of `logits` (N, C). `judged` is what `judge` made of them, where that is there already.

    Raises TinlabError as `judge` does.
    """
    judged = judge(logits, labels) if judged is None else judged
    error, bins = calibration(judged.confidence, judged.correct)
    adaptive_error, adaptive_bins = adaptive_calibration(judged.confidence, judged.correct)
    return Calibration(
        images=len(judged.labels),
        error_percent=error,
        adaptive_error_percent=adaptive_error,
        brier=brier(logits, labels),
        loss=float(judged.loss.mean()),
        mean_confidence_percent=100 * float(judged.confidence.mean()),
        top1_percent=100 * float(judged.correct.mean()),
        reliability=bins,
        adaptive_reliability=adaptive_bins,
    )


def adaptive_calibration(
    confidence: np.ndarray, correct: np.ndarray, *, bins: int = CALIBRATION_BINS
) -> tuple[float, tuple[ReliabilityBin, ...]]:
    """Calibration error in percent over `bins` bins of equally many images, and the bins (Nguyen and O'Connor
    2015).

    Images of one confidence stay in one bin, so that their order does not matter; bins can then differ in
    size, and an empty one is left out.
    """
    count = len(confidence)
    ranked = np.sort(confidence)
    last = [math.ceil(count * part / bins) - 1 for part in range(1, bins)]
    edges = np.unique(ranked[last]) if count >= bins else np.unique(ranked[:-1])
    place = np.searchsorted(edges, confidence, side="left")  # (N,) above the edge before, not above its own
    images = np.bincount(place, minlength=len(edges) + 1)
    sure = np.bincount(place, weights=confidence, minlength=len(edges) + 1)
    right = np.bincount(place, weights=correct, minlength=len(edges) + 1)
    limits = [0.0, *edges.tolist(), 1.0]
    found = tuple(
        ReliabilityBin(
            low=limits[i],
            high=limits[i + 1],
            images=int(images[i]),
            confidence_percent=100 * float(sure[i] / images[i]),
            accuracy_percent=100 * float(right[i] / images[i]),
        )
        for i in range(len(images))
        if images[i]
    )
    return 100 * float(np.abs(right - sure).sum() / count), found


def brier(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over images of the sum over classes of (probability - one-hot label) squared: 0..2."""
    total = 0.0
    for start in range(0, len(logits), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        probability = _softmax(logits[rows].astype(np.float64))  # (B, C)
        of_true = np.take_along_axis(probability, labels[rows, None], axis=1)[:, 0]
        total += float((np.square(probability).sum(axis=1) - 2 * of_true + 1).sum())
    return total / len(logits)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T at which the cross-entropy of `logits` / T is least, within 0.01 to 100.

    The cross-entropy is convex in 1 / T, so that there is one minimum. Raises TinlabError as `judge` does.
    """
    from scipy.optimize import minimize_scalar

    judge(logits, labels)
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)  # softmax stays as it is, and exp cannot overflow
    of_true = np.take_along_axis(shifted, np.asarray(labels)[:, None], axis=1)[:, 0]

    def loss(log_temperature: float) -> float:
        inverse = math.exp(-log_temperature)
        return float((np.log(np.exp(shifted * inverse).sum(axis=1)) - of_true * inverse).mean())

    limits = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    found = minimize_scalar(loss, bounds=limits, method="bounded", options={"xatol": 1e-4})
    # The search stops short of the limits, and where the loss falls to the end that is where it is least.
    ends = [(loss(math.log(limit)), limit) for limit in (LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE)]
    least, limit = min(ends)
    return limit if least <= found.fun else math.exp(float(found.x))


def temperature_scaling(
    logits: np.ndarray,
    labels: np.ndarray,
    fitted_logits: np.ndarray,
    fitted_labels: np.ndarray,
    *,
    measured_on: str,
    fitted_on: str,
    before: Calibration | None = None,
) -> TemperatureScaling:
    """Fit the temperature on one split's logits, and measure another's before and after it.

    The split that it is fitted on must be one that the network was not trained on: on training images a
    network is right too often, and the temperature comes out too low.
    """
    temperature = fit_temperature(fitted_logits, fitted_labels)
    return TemperatureScaling(
        temperature=temperature,
        at_limit=temperature in (LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE),
        fitted_on=fitted_on,
        fitted_images=len(fitted_labels),
        measured_on=measured_on,
        before=before or calibrated(logits, labels),
        after=calibrated(np.asarray(logits, np.float64) / temperature, labels),
    )


def _softmax(rows: np.ndarray) -> np.ndarray:
    """Of float64 (B, C)."""
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
