"""Exact sums over pixels, at the speed of matrix multiplication."""

from __future__ import annotations

import numpy as np

_LINES = 256
"""Lines summed in one product: 256 x 255**2 is below 2**24, so that float32 holds every sum exactly."""

_SCRATCH_BYTES = 768 << 10


class PixelSums:
    """Adds up pixels and their squares. One instance serves one thread; `size` is the images' side."""

    def __init__(self, size: int) -> None:
        width = 3 * size
        groups = max(1, _SCRATCH_BYTES // (4 * width * _LINES))
        self._floats = np.zeros((groups, _LINES, width), dtype=np.float32)
        self._ones = np.ones(_LINES, dtype=np.float32)

    def of(self, images: np.ndarray) -> np.ndarray:
        """float64 (2, 3): the sums over uint8 `images` (N, size, size, 3), a channel, and of the squares."""
        floats, ones = self._floats, self._ones
        at_a_time = floats.shape[0] * _LINES
        lines = images.reshape(-1, floats.shape[2])  # (N * size, 3 * size)
        sums = np.zeros((2, floats.shape[2]))
        for start in range(0, len(lines), at_a_time):
            block = lines[start : start + at_a_time]
            groups = -(-len(block) // _LINES)
            flat = floats.reshape(-1, floats.shape[2])
            np.copyto(flat[: len(block)], block)
            flat[len(block) : groups * _LINES] = 0
            part = floats[:groups]
            sums[0] += (ones @ part).sum(axis=0, dtype=np.float64)
            np.multiply(part, part, out=part)
            sums[1] += (ones @ part).sum(axis=0, dtype=np.float64)
        return sums.reshape(2, -1, 3).sum(axis=1)  # (2, 3)
