"""What `tinlab.tuning` is worth, on a quiet machine and beside a busy process, as ratios in one run.

Child processes train the same steps of ResNet-18 with and without the tuning, in turn; for the second half, a
process that never rests runs beside them at the lowest priority.

    python benchmarks/tuning.py [--steps 20] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

WARMUP, BATCH = 3, 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=("tuned", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(child(args.child == "tuned", args.steps))
        return
    report: dict[str, dict[str, Any]] = {}
    for place in ("quiet", "beside a busy process"):
        hog = None
        if place != "quiet":
            hog = subprocess.Popen(["nice", "-n", "19", sys.executable, "-c", "while True: pass"])
        try:
            speeds: dict[str, list[float]] = {"plain": [], "tuned": []}
            for _ in range(args.rounds):
                for kind, found in speeds.items():
                    command = [sys.executable, __file__, "--child", kind, "--steps", str(args.steps)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    found.append(float(done.stdout))
        finally:
            if hog is not None:
                hog.kill()
                hog.wait()
        ratio = statistics.median(speeds["tuned"]) / statistics.median(speeds["plain"])
        report[place] = {"images_per_second": speeds, "tuned / plain": ratio}
    if args.json:
        print(json.dumps({"cpus": os.cpu_count(), **report}, indent=2))
        return
    for place, row in report.items():
        speeds = row["images_per_second"]
        listed = "; ".join(f"{k} {' '.join(f'{v:.0f}' for v in values)}" for k, values in speeds.items())
        print(f"{place}: images/s {listed}; tuned / plain {row['tuned / plain']:.2f}")


def child(tuned: bool, steps: int) -> float:
    """Images per second of forward, backward and update."""
    if tuned:
        from tinlab.tuning import tune_process

        tune_process()
    import torch
    import torch.nn.functional as F

    from tinlab import models, recipe
    from tinlab.compute import autocast, place

    compute, cpu = recipe.Compute(), torch.device("cpu")
    model = place(models.build(recipe.Model(width=48, stem="patch"), 200), compute, cpu)
    updater = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    inputs = torch.randn(BATCH, 3, 48, 48).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(BATCH, dtype=torch.int64)
    for step in range(WARMUP + steps):
        if step == WARMUP:
            began = time.perf_counter()
        with autocast(compute, cpu):
            loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        updater.step()
        updater.zero_grad()
    return steps * BATCH / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
