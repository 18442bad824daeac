"""95% intervals over images: what another draw of the same number of images might have given.

They say nothing about another training seed.
"""

from __future__ import annotations

import numpy as np

DRAWS = 10_000
CONFIDENCE_PERCENT = 95
_PLACES_AT_ONCE = 250_000
"""Resampled places held at once: 1 MB, and 2 MB of their values; few, for the caches' sake."""


def resampled_means(values: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Means of `values`, (N,), over N of them drawn with replacement: float64 (draws,).

    Raises ValueError for no values.
    """
    values = np.asarray(values, np.float64)
    images = len(values)
    if images == 0:
        raise ValueError("there are no images to resample")
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    at_once = max(1, _PLACES_AT_ONCE // images)
    for start in range(0, draws, at_once):
        some = min(at_once, draws - start)
        places = rng.integers(0, images, (some, images), dtype=np.int32)
        means[start : start + some] = values.take(places).mean(axis=1)
    return means


def percentile_interval(resampled: np.ndarray) -> tuple[float, float]:
    """The middle 95% of resampled values, (draws,)."""
    tail = (100 - CONFIDENCE_PERCENT) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def mean_interval(values: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean of `values`, (N,), in their unit."""
    return percentile_interval(resampled_means(values, draws=draws, seed=seed))
