"""Tables that are read at fractional places, for all pixels of a batch at once."""

from __future__ import annotations

from functools import cache
from typing import Self

import numpy as np

HILLS = 128
"""Nodes a side after which the hills of `clouds` repeat."""


@cache
def clouds() -> np.ndarray:
    """Smooth random hills that repeat every 128 nodes, float32, flat (130 * 130,), about -1 to 1."""
    frequencies = np.fft.fftfreq(HILLS, 1 / HILLS)
    radius = np.hypot(*np.meshgrid(frequencies, frequencies))
    white = np.random.Generator(np.random.PCG64(7)).standard_normal((HILLS, HILLS))
    hills = np.fft.ifft2(np.fft.fft2(white) * np.exp(-((radius / 14) ** 2))).real
    # Two nodes more, for the neighbours of the last, and of a remainder that rounds up to 128.
    return np.pad(hills / (2 * hills.std()), (0, 2), mode="wrap").astype(np.float32).ravel()


@cache
def grain() -> np.ndarray:
    """Normal noise to cut film grain from, float32 (2**19,)."""
    return np.random.Generator(np.random.PCG64(8)).standard_normal(2**19, dtype=np.float32)


def read(table: np.ndarray, width: int, start: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Read flat tables at fractional places, linearly between nodes; all places lie in 0..width-1.

    `start` is where each image's table begins, float32 (B, 1, 1); `column` and `row` are float32 (B, 64, 64),
    and are used up.
    """
    left, top = np.floor(column), np.floor(row)
    column -= left
    row -= top
    # Whole numbers below 2**24 are exact in float32, and the tables are far smaller.
    top *= width
    top += left
    top += start
    place = top.astype(np.intp)
    upper, upper_right = table.take(place), table.take(np.add(place, 1, out=place))
    lower_right, lower = (
        table.take(np.add(place, width, out=place)),
        table.take(np.subtract(place, 1, out=place)),
    )
    for near, far in ((upper, upper_right), (lower, lower_right)):
        far -= near
        far *= column
        near += far
    lower -= upper
    lower *= row
    upper += lower
    return upper


def wide(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]  # (B, 1, 1)


class Columns:
    """For a dataclass of arrays, one value or matrix an image each: (B, …)."""

    def rows(self, rows: np.ndarray) -> Self:
        """Those of some of the images."""
        return type(self)(*(values[rows] for values in vars(self).values()))
