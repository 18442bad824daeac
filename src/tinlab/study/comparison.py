"""How two recipes differ: pure functions of numbers, with what each interval covers.

Two kinds of chance are kept apart. Over seeds: another seed gives another network; the interval is Student's
t, which asks that the values (or their differences) be roughly normal. Over images: another validation set
would hold other images; the interval is a bootstrap, and says nothing about another seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from tinlab.evaluation.pairs import paired_interval_points

CONFIDENCE = 0.95
DRAWS = 10_000


@dataclass(frozen=True)
class Spread:
    """Some runs' values: their number, mean, and standard deviation (n - 1; None for one value). `low` to
    `high` is the 95% t interval of the mean, None for one value."""

    n: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, and its 95% interval, in the values' unit.

    `over` says what was paired: `seeds` (n of them; Student's t) or `images` (n of them; bootstrap).
    """

    mean: float
    low: float
    high: float
    n: int
    over: Literal["seeds", "images"]

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def spread(values: Sequence[float]) -> Spread:
    """Mean and spread of one or more values."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Spread(n, mean, None, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    reach = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(n)
    return Spread(n, mean, deviation, mean - reach, mean + reach)


def over_seeds(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """`values` minus `reference`, seed -> value, over the seeds that both have; None for fewer than two."""
    common = sorted(values.keys() & reference.keys())
    if len(common) < 2:
        return None
    found = spread([values[seed] - reference[seed] for seed in common])
    assert found.low is not None
    assert found.high is not None
    return Difference(found.mean, found.low, found.high, found.n, "seeds")


def over_images(
    correct: np.ndarray, reference: np.ndarray, *, seed: int = 0, draws: int = DRAWS
) -> Difference:
    """Difference in top-1, in percentage points, of two runs on the same images; bool (N,) each.

    The percentile bootstrap over images, which are drawn in pairs (`tinlab.evaluation.pairs`).
    """
    mean = 100 * float((correct.astype(int) - reference.astype(int)).mean())
    low, high = paired_interval_points(correct, reference, seed=seed, draws=draws)
    return Difference(mean, low, high, len(correct), "images")
