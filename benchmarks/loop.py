"""How fast the whole training loop is, on a CPU, as ratios in one run.

Four child processes are taken in turn, `--rounds` times, each on the same images and the same ResNet-18
(7x7/2 stem, 64x64 pixels, batches of 128):

    loop          tinlab's training loop: read, crop, flip, normalise, step, measure, write the curves
    bare          forward, backward and update on one fixed batch, bf16, nothing else: the ceiling
    peer          benchmarks/peer.py as it stands
    peer --best   benchmarks/peer.py with bf16 and channels-last

    python benchmarks/loop.py [--data DATA] [--steps 30] [--rounds 3] [--json]

DATA is a data set; by default as `tinlab train` finds it, and otherwise a rendered one.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import measuring

if TYPE_CHECKING:
    from tinlab.recipe import Recipe

WARMUP = 5
BATCH = 128
HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = measuring.options(__doc__, rounds=3)
    parser.add_argument("--data", help="a data set: official zip or folder, or class folders")
    parser.add_argument("--steps", type=measuring.at_least(1), default=30)
    parser.add_argument("--child", choices=("bare", "loop"), help=measuring.argparse.SUPPRESS)
    parser.add_argument("--pack", type=Path, help=measuring.argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure = bare if args.child == "bare" else loop
        print(json.dumps({"images_per_second": measure(args.steps, args.pack)}))
        return

    with measuring.scratch() as folder:
        forms = measuring.forms_of(args.data, folder)
        own = [HERE / "loop.py", "--steps", args.steps, "--pack", forms.pack, "--child"]
        peer = [HERE / "peer.py", forms.train, "--steps", args.steps, "--warmup", WARMUP]
        commands: dict[str, list[object]] = {
            "loop": [*own, "loop"],
            "its bare step on one fixed batch": [*own, "bare"],
            "a plain PyTorch script": peer,
            "a plain PyTorch script in bf16, channels-last": [*peer, "--best"],
        }

        def images_per_second(name: str) -> float:
            return float(measuring.child(*commands[name])["images_per_second"])

        speeds = measuring.in_turn(commands, images_per_second, args.rounds)
    ours = speeds.pop("loop")
    rows = [
        measuring.compare("train ResNet-18", ours, found, "images/s", name) for name, found in speeds.items()
    ]
    heading = f"{forms.described}, {os.cpu_count()} CPUs, {args.steps} steps of {BATCH}"
    measuring.report(rows, heading, as_json=args.json)


def recipe(steps: int) -> Recipe:
    """ResNet-18 as the peer trains it, for the warm-up and `steps` steps."""
    from tinlab.recipe import Data, Flip, Model, Optimizer, RandomResizedCrop, Recipe, Schedule

    return Recipe(
        name="benchmark",
        data=Data(train_split="train+tune", image_sizes=(64,)),
        augment=(Flip(), RandomResizedCrop(area=(0.6, 1.0))),
        model=Model(name="resnet18", stem="imagenet"),
        optimizer=Optimizer(name="sgd", peak_lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=Schedule(steps=WARMUP + steps, batch_size=BATCH, shape="constant"),
        evaluate_every_epochs=1000,
    )


def bare(steps: int, pack: Path) -> float:
    """Images per second of forward, backward and update on one fixed batch."""
    from tinlab.tuning import tune_process

    tune_process()
    import torch

    from tinlab import models
    from tinlab.compute import place
    from tinlab.data.batches import Batch
    from tinlab.data.pack import Pack
    from tinlab.training import optimizer
    from tinlab.training.step import forward_backward

    knobs = recipe(steps)
    model = place(
        models.build(knobs.model, len(Pack.open(pack).info.classes)), knobs.compute, torch.device("cpu")
    )
    updater = optimizer.build(knobs.optimizer, model)
    inputs = torch.randn(BATCH, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    zeros = torch.zeros(BATCH, dtype=torch.int64)
    batch = Batch(images=zeros, labels=zeros, samples=zeros, epochs=zeros)
    model.train()
    for step in range(WARMUP + steps):
        if step == WARMUP:
            began = time.perf_counter()
        forward_backward(model, inputs, batch, knobs)
        updater.step()
        updater.zero_grad(set_to_none=True)
    return steps * BATCH / (time.perf_counter() - began)


def loop(steps: int, pack: Path) -> float:
    """Images per second of the training loop, from the end of the warm-up to the end of the last step."""
    from tinlab.tuning import tune_process

    tune_process()
    from tinlab.data.pack import Pack
    from tinlab.training import loop as training
    from tinlab.training.progress import Progress

    times: dict[int, float] = {}

    def watch(progress: Progress) -> None:
        times[progress.step] = time.perf_counter()

    with tempfile.TemporaryDirectory() as out:
        training.train(recipe(steps), Pack.open(pack), Path(out), device="cpu", watch=watch)
    return steps * BATCH / (times[WARMUP + steps] - times[WARMUP])


if __name__ == "__main__":
    measuring.run(main)
