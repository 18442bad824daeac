"""The bootstrap intervals beside scipy's: what an interval of a network's accuracy takes.

The mean of `--images` values and `--draws` resamples of it, in turn, `--rounds` times; shown are medians in
seconds. Both sides resample all images for every draw.

    python benchmarks/intervals.py [--images 10000] [--draws 2000] [--rounds 5] [--json]
"""

from __future__ import annotations

import time
from collections.abc import Callable

import measuring
import numpy as np

AT_ONCE = 200
"""Resamples that scipy holds at once; all 2,000 of 10,000 images would be 160 MB."""


def main() -> None:
    parser = measuring.options(__doc__, rounds=5)
    parser.add_argument("--images", type=measuring.at_least(2), default=10_000)
    parser.add_argument("--draws", type=measuring.at_least(1), default=2000)
    args = parser.parse_args()

    import scipy.stats

    from tinlab.evaluation.intervals import mean_interval

    values = np.random.default_rng(0).normal(size=args.images)
    sides: dict[str, Callable[[], object]] = {
        "tinlab": lambda: mean_interval(values, draws=args.draws),
        "scipy": lambda: scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=args.draws, method="percentile", batch=AT_ONCE, rng=0
        ),
    }
    taken = measuring.in_turn(sides, lambda name: seconds(sides[name]), args.rounds)
    what = f"{args.draws:,} resamples of {args.images:,} images"
    row = measuring.compare(what, taken["tinlab"], taken["scipy"], "s", "scipy.stats.bootstrap")
    measuring.report([row], "intervals of a mean, one core and less is better", as_json=args.json)


def seconds(work: Callable[[], object]) -> float:
    """What `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
