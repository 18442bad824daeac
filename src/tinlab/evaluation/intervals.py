"""95% intervals over images: what another draw of the same number of images might have given.

They say nothing about another training seed.
"""

from __future__ import annotations

import numpy as np

DRAWS = 10_000
CONFIDENCE_PERCENT = 95
_COUNTS_AT_ONCE = 2_000_000
"""Resampled places held at once: 16 MB."""


def resampled_means(values: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Means of `values` (N, K) over images drawn with replacement: float64 (draws, K).

    A resample is N draws of a row; only how often each row was drawn matters, so that a block of resamples is
    one count and one matrix product. All K columns share their resamples. Raises ValueError for no images.
    """
    values = np.asarray(values, np.float64)
    images = len(values)
    if images == 0:
        raise ValueError("there are no images to resample")
    rng = np.random.default_rng(seed)
    means = np.empty((draws, values.shape[1]))
    at_once = max(1, _COUNTS_AT_ONCE // images)
    for start in range(0, draws, at_once):
        some = min(at_once, draws - start)
        places = rng.integers(0, images, (some, images), dtype=np.int32).astype(np.int64)
        places += images * np.arange(some)[:, None]  # each resample counts in a row of its own
        counts = np.bincount(places.ravel(), minlength=some * images).reshape(some, images)
        means[start : start + some] = counts.astype(np.float64) @ values / images  # (some, K)
    return means


def percentile_interval(resampled: np.ndarray) -> tuple[float, float]:
    """The middle 95% of resampled values, (draws,)."""
    tail = (100 - CONFIDENCE_PERCENT) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def mean_interval(values: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean of `values`, (N,), in their unit."""
    return percentile_interval(resampled_means(values[:, None], draws=draws, seed=seed)[:, 0])
