"""What `tinlab.tuning` is worth, as a ratio in one run.

Child processes train the same steps of ResNet-18 with and without the tuning, in turn.

    python benchmarks/tuning.py [--steps 20] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import time

import measuring

WARMUP, BATCH = 3, 128


def main() -> None:
    parser = measuring.options(__doc__, rounds=3)
    parser.add_argument("--steps", type=measuring.at_least(1), default=20)
    parser.add_argument("--child", choices=("tuned", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps({"images_per_second": child(args.child == "tuned", args.steps)}))
        return
    own = [__file__, "--steps", args.steps, "--child"]

    def images_per_second(name: str) -> float:
        return float(measuring.child(*own, name)["images_per_second"])

    speeds = measuring.in_turn(("plain", "tuned"), images_per_second, args.rounds)
    row = measuring.compare(
        "step with tinlab.tuning", speeds["tuned"], speeds["plain"], "images/s", "the same step without"
    )
    heading = f"ResNet-18 of width 48, {os.cpu_count()} CPUs, {args.steps} steps of {BATCH} at 48x48"
    measuring.report([row], heading, as_json=args.json)


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
    measuring.run(main)
