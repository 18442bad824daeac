"""What `tinlab.tuning` is worth, as a ratio in one run.

Child processes train the same steps of ResNet-18 with and without the tuning, in turn.

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
    speeds: dict[str, list[float]] = {"plain": [], "tuned": []}
    for _ in range(args.rounds):
        for kind, found in speeds.items():
            command = [sys.executable, __file__, "--child", kind, "--steps", str(args.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(float(done.stdout))
    ratio = statistics.median(speeds["tuned"]) / statistics.median(speeds["plain"])
    if args.json:
        report = {"cpus": os.cpu_count(), "images_per_second": speeds, "tuned / plain": ratio}
        print(json.dumps(report, indent=2))
        return
    for kind, values in speeds.items():
        print(f"{kind}: images/s " + " ".join(f"{value:.0f}" for value in values))
    print(f"tuned / plain {ratio:.2f}")


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
