"""How fast a bare training step of ResNet-18 is, as ratios in one run.

Forward, backward and update on one fixed batch of 128 images of 64x64, in child processes that are taken in
turn: tinlab's (bf16, channels-last memory, memory kept by the process, one fused update), and torchvision's
network with torch.optim.SGD, in float32 as a script gets it by default, and in bf16 with channels-last.

    python benchmarks/step.py [--steps 20] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from pathlib import Path

import measuring

HERE = Path(__file__).resolve().parent
WARMUP, BATCH, CLASSES = 5, 128, 200


def main() -> None:
    parser = measuring.options(__doc__, rounds=3)
    parser.add_argument("--steps", type=measuring.at_least(1), default=20)
    parser.add_argument("--child", choices=("tinlab", "plain", "best"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure = tinlab(args.steps) if args.child == "tinlab" else plain(args.steps, args.child == "best")
        print(json.dumps({"seconds": measure}))
        return
    own = [HERE / "step.py", "--steps", args.steps, "--child"]

    def measured(name: str) -> float:
        return float(measuring.child(*own, name)["seconds"])

    seconds = measuring.in_turn(("tinlab", "plain", "best"), measured, args.rounds)
    rows = [
        measuring.compare("ResNet-18 step", seconds["tinlab"], seconds[side], "s", name)
        for side, name in (
            ("plain", "torchvision's, float32"),
            ("best", "torchvision's, bf16, channels-last"),
        )
    ]
    measuring.report(rows, f"{os.cpu_count()} CPUs, {args.steps} steps of {BATCH}", as_json=args.json)


def tinlab(steps: int) -> float:
    """Seconds a step."""
    from tinlab.tuning import tune_process

    tune_process()
    import torch
    import torch.nn.functional as F

    from tinlab import models, recipe
    from tinlab.compute import autocast, place
    from tinlab.training import optimizer

    compute, cpu = recipe.Compute(), torch.device("cpu")
    model = place(models.build(recipe.Model(name="resnet18", stem="imagenet"), CLASSES), compute, cpu)
    updater = optimizer.build(recipe.Optimizer(peak_lr=0.1, momentum=0.9, weight_decay=1e-4), model)
    images = torch.randn(BATCH, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(BATCH, dtype=torch.int64)
    for number in range(WARMUP + steps):
        if number == WARMUP:
            began = time.perf_counter()
        with autocast(compute, cpu):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        updater.step()
        updater.zero_grad(set_to_none=True)
    return (time.perf_counter() - began) / steps


def plain(steps: int, best: bool) -> float:
    """Seconds a step."""
    import torch
    from torch import nn

    from tinlab.models.zoo import import_torchvision

    model = import_torchvision().models.resnet18(num_classes=CLASSES)
    images, labels = torch.randn(BATCH, 3, 64, 64), torch.zeros(BATCH, dtype=torch.int64)
    if best:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    criterion = nn.CrossEntropyLoss()
    updater = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for number in range(WARMUP + steps):
        if number == WARMUP:
            began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16) if best else contextlib.nullcontext():
            loss = criterion(model(images), labels)
        updater.zero_grad()
        loss.backward()
        updater.step()
    return (time.perf_counter() - began) / steps


if __name__ == "__main__":
    measuring.run(main)
