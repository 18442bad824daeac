"""How two networks differ on the same images: pure functions of what each made of every image."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinlab.errors import TinlabError
from tinlab.evaluation.intervals import percentile_interval
from tinlab.evaluation.metrics import BOOTSTRAP_DRAWS, Judged


@dataclass(frozen=True)
class Pair:
    """Two networks on the same images, the first and the second.

    `difference_points` is the second's top-1 minus the first's in percentage points, with its paired 95%
    bootstrap interval over images. `mcnemar_p` is the two-sided p of McNemar's exact test: how likely a
    split of the images that only one gets right would be that is at least as uneven, were both equally good.

    Shares are of all images: `same_answer_percent` counts the same predicted class, right or wrong.
    `error_correlation_images` is Pearson's correlation of being wrong, image by image (phi);
    `error_correlation_classes` that of the classes' error rates. Each is None where one side never varies.
    Shcherbina's "Pearson correlation" of "validation error rates across the models", 0.732, is taken to be
    the latter: over images it cannot be more than 0.714 for her three, with 45.5, 28.8 and 53.5% of val.

    `only_first` and `only_second` are rows of the split that only this one gets right, in their order.
    """

    images: int
    difference_points: float
    difference_interval_points: tuple[float, float]
    mcnemar_p: float
    same_answer_percent: float
    both_right_percent: float
    both_wrong_percent: float
    both_wrong_same_percent: float
    error_correlation_images: float | None
    error_correlation_classes: float | None
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, and how many images only one gets right."""
        return {
            **asdict(self),
            "only_first_images": len(self.only_first),
            "only_second_images": len(self.only_second),
        }


def pair(first: Judged, second: Judged, indices: np.ndarray, *, seed: int = 0) -> Pair:
    """Compare two networks' judged images. `indices` int64 (N,) are the images' rows in the split.

    Raises TinlabError where the two were not judged by the same labels.
    """
    if first.classes != second.classes or not np.array_equal(first.labels, second.labels):
        raise TinlabError("the two were measured on different images or classes; predict both on one split")
    a, b = first.correct, second.correct
    wrong_alike = ~a & ~b & (first.predicted == second.predicted)
    return Pair(
        images=len(a),
        difference_points=100 * (float(b.mean()) - float(a.mean())),
        difference_interval_points=paired_interval_points(b, a, seed=seed),
        mcnemar_p=mcnemar_p(int((a & ~b).sum()), int((~a & b).sum())),
        same_answer_percent=100 * float((first.predicted == second.predicted).mean()),
        both_right_percent=100 * float((a & b).mean()),
        both_wrong_percent=100 * float((~a & ~b).mean()),
        both_wrong_same_percent=100 * float(wrong_alike.mean()),
        error_correlation_images=correlation(~a, ~b),
        error_correlation_classes=correlation(_class_errors(first), _class_errors(second)),
        only_first=tuple(indices[a & ~b].tolist()),
        only_second=tuple(indices[~a & b].tolist()),
    )


def paired_interval_points(
    correct: np.ndarray, reference: np.ndarray, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> tuple[float, float]:
    """95% percentile bootstrap interval of the difference in top-1 of two networks, in percentage points;
    bool (N,) each, on the same images, which are drawn in pairs.

    An image counts +1, 0 or -1, so a resample is one multinomial draw of how many there are of each, and
    needs no loop.
    """
    difference = correct.astype(int) - reference.astype(int)  # (N,)
    n = len(difference)
    counts = np.array([(difference == value).sum() for value in (1, 0, -1)])
    resampled = np.random.default_rng(seed).multinomial(n, counts / n, size=draws)  # (draws, 3)
    return percentile_interval(100 * (resampled[:, 0] - resampled[:, 2]) / n)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test: the images that only one of two gets right, as throws of a fair
    coin. 1 where there are none."""
    from scipy.stats import binomtest

    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's correlation of (N,) and (N,); None where one of them never varies."""
    values = [np.asarray(of, np.float64) for of in (first, second)]
    if any(
        len(of) == 0 or of.min() == of.max() for of in values
    ):  # their mean may be a rounding away from them
        return None
    x, y = (of - of.mean() for of in values)
    return float((x * y).sum()) / float(np.sqrt((x**2).sum() * (y**2).sum()))


def _class_errors(judged: Judged) -> np.ndarray:
    """Share of each class's images that are wrong, for the classes that have images."""
    images = np.bincount(judged.labels, minlength=judged.classes)
    wrong = np.bincount(judged.labels[~judged.correct], minlength=judged.classes)
    return wrong[images > 0] / images[images > 0]
