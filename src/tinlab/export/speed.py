"""Images a second of several ways to run one network, measured in turn, so that all meet the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def images_per_second(
    ways: Mapping[str, Callable[[np.ndarray], object]],
    images: np.ndarray,
    batch_sizes: Sequence[int] = (1, 64),
    *,
    rounds: int = 5,
    seconds: float = 0.3,
) -> dict[str, dict[int, float]]:
    """Way -> batch size -> images/s: the median of `rounds`, in each of which every way runs for `seconds`
    (at least once), after one run that is not counted. `images` uint8 (N, H, W, 3) are repeated as needed."""
    speeds: dict[str, dict[int, list[float]]] = {way: {size: [] for size in batch_sizes} for way in ways}
    for size in batch_sizes:
        batch = images[np.arange(size) % len(images)]
        for run in ways.values():
            run(batch)
        for _ in range(rounds):
            for way, run in ways.items():
                runs, began = 0, time.perf_counter()
                while (elapsed := time.perf_counter() - began) < seconds or not runs:
                    run(batch)
                    runs += 1
                speeds[way][size].append(runs * size / elapsed)
    return {way: {size: statistics.median(s) for size, s in sizes.items()} for way, sizes in speeds.items()}
