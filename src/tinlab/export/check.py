"""An exported file beside the network that it came from, on real images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BATCH_SIZES = (1, 7, 64)
"""One image, a number that divides nothing, and a usual batch."""
TOLERANCE = 1e-4
"""How far two logits may be apart, as a share of the largest logit (or of 1, if that is more): float32 has 7
digits, and sums of thousands of products, taken in another order, lose some."""

Logits = Callable[[np.ndarray], np.ndarray]
"""uint8 (B, H, W, 3) -> float32 (B, C)."""


@dataclass(frozen=True)
class Agreement:
    """`difference` is the largest between two logits, `tolerance` the largest allowed; `same_percent` the
    share of images whose first class is the same."""

    images: int
    batch_sizes: tuple[int, ...]
    difference: float
    tolerance: float
    same_percent: float

    @property
    def close(self) -> bool:
        """Whether the two agree."""
        return self.difference <= self.tolerance  # not so where it is NaN


def compare(
    one: Logits, other: Logits, images: np.ndarray, batch_sizes: Sequence[int] = BATCH_SIZES
) -> Agreement:
    """Compare two networks on `images` (N, H, W, 3), taken in batches of each size, again from the first one
    where there are too few."""
    found, expected, start = [], [], 0
    for size in batch_sizes:
        batch = images[np.arange(start, start + size) % len(images)]
        found.append(one(batch))
        expected.append(other(batch))
        start += size
    a, b = np.concatenate(found), np.concatenate(expected)
    return Agreement(
        images=len(a),
        batch_sizes=tuple(batch_sizes),
        difference=float(np.abs(a - b).max()),
        tolerance=TOLERANCE * max(1.0, float(np.abs(b).max())),
        same_percent=100 * float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
    )
