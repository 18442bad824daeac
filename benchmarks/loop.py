"""How fast the whole training loop is, on a CPU, as ratios in one run.

Four child processes are taken in turn, `--rounds` times, each on the same images and the same ResNet-18
(7x7/2 stem, 64x64 pixels, batches of 128):

    bare          forward, backward and update on one fixed batch, bf16, nothing else: the ceiling
    loop          tinlab's training loop: read, crop, flip, normalise, step, measure, write the curves
    peer          benchmarks/peer.py as it stands
    peer --best   benchmarks/peer.py with bf16 and channels-last

    python benchmarks/loop.py [--data DATA] [--steps 30] [--rounds 3] [--json]

DATA is a data set; by default as `tinlab train` finds it, and otherwise a rendered one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinlab.recipe import Recipe

WARMUP = 5
BATCH = 128
HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="a data set: official zip or folder, or class folders")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=("bare", "loop"), help=argparse.SUPPRESS)
    parser.add_argument("--pack", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure = bare if args.child == "bare" else loop
        print(json.dumps({"images_per_second": measure(args.steps, args.pack)}))
        return

    from tinlab.data.packing import pack

    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="tinlab-bench-", dir=memory if os.access(memory, os.W_OK) else None
    ) as name:
        folder = Path(name)
        source, images = data(args.data, folder)
        pack(source, folder / "pack")
        steps = ["--steps", str(args.steps)]
        own = [sys.executable, str(HERE / "loop.py"), *steps, "--pack", str(folder / "pack"), "--child"]
        peer = [sys.executable, str(HERE / "peer.py"), str(images), *steps, "--warmup", str(WARMUP)]
        commands = {
            "bare": [*own, "bare"],
            "loop": [*own, "loop"],
            "peer": peer,
            "peer --best": [*peer, "--best"],
        }
        speeds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, command in commands.items():
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
                speeds[name].append(json.loads(done.stdout.splitlines()[-1])["images_per_second"])
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = {f"loop / {name}": medians["loop"] / medians[name] for name in medians if name != "loop"}
    report = {"data": str(source), "cpus": os.cpu_count(), "images_per_second": speeds, "ratios": ratios}
    if args.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{source}, {os.cpu_count()} CPUs, {args.steps} steps of {BATCH}; images/s")
    for name, values in speeds.items():
        print(f"{name:12}" + "".join(f"{value:7.0f}" for value in values) + f"   median {medians[name]:.0f}")
    print("; ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))


def data(stated: str | None, folder: Path) -> tuple[Path, Path]:
    """The data set, and its training images as class folders for the peer."""
    from tinlab.data.places import find_source

    source = find_source(stated)
    if source is None or (source / "pack.json").is_file():
        from tinlab.data.shapes import render

        source = render(folder / "rendered")
    if source.is_dir():
        return source, source / "train" if (source / "train").is_dir() else source
    with zipfile.ZipFile(source) as archive:
        names = [n for n in archive.namelist() if "/train/" in n and n.endswith(".JPEG")]
        archive.extractall(folder / "images", names)
    return source, next((folder / "images").glob("*/train"))


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
    from tinlab.training.loop import forward_backward

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

    times: dict[int, float] = {}

    def watch(progress: training.Progress) -> None:
        times[progress.step] = time.perf_counter()

    with tempfile.TemporaryDirectory() as out:
        training.train(recipe(steps), Pack.open(pack), Path(out), device="cpu", watch=watch)
    return steps * BATCH / (times[WARMUP + steps] - times[WARMUP])


if __name__ == "__main__":
    main()
