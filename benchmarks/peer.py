"""A plain PyTorch training script, as tutorials write it: the peer of loop.py, job.py and race.py.

ImageFolder, DataLoader with two workers, torchvision's transforms and ResNet-18, SGD with momentum. By
default in float32; `--best` adds what such a script can get from a few more words: bf16 autocast and
channels-last memory. `--cosine` lets the rate of 0.1 fall to zero over the steps.

    python benchmarks/peer.py TRAIN_FOLDER [--val VAL_FOLDER] [--best] [--steps 30] [--cosine]
        [--checkpoint FILE] [--seconds S]

After the last step, or after `--seconds` of steps in this process, it writes the checkpoint, from which the
next process goes on, measures top-1 on val, and prints one line of JSON: images/s after the first `--warmup`
steps, and the seconds of all steps of all processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tinlab.models.zoo import import_torchvision

torchvision = import_torchvision()
from torchvision import datasets, models, transforms  # noqa: E402  (once torchvision can be imported)

MEAN, STD = (0.480, 0.448, 0.398), (0.276, 0.269, 0.282)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="class folders of images")
    parser.add_argument("--val", help="class folders to measure on in the end")
    parser.add_argument("--best", action="store_true", help="bf16 autocast and channels-last memory")
    parser.add_argument("--cosine", action="store_true", help="let the rate fall along a cosine to zero")
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--steps", type=int, default=30, help="after the warm-up")
    parser.add_argument("--warmup", type=int, default=5, help="steps that images/s leave out")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of steps, in this process")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    augment = [transforms.RandomResizedCrop(64, scale=(0.6, 1.0)), transforms.RandomHorizontalFlip()]
    images = datasets.ImageFolder(args.folder, transforms.Compose([*augment, *as_input()]))
    if len(images) < args.batch_size:
        sys.exit(f"{args.folder} has {len(images)} images; a batch is {args.batch_size}")
    model = models.resnet18(num_classes=len(images.classes))
    if args.best:
        model = model.to(memory_format=torch.channels_last)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=args.weight_decay)
    total = args.warmup + args.steps
    fall = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total)) if args.cosine else 1.0
    )
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "fall": fall}
    step, seconds_before = 0, 0.0
    if args.checkpoint is not None and args.checkpoint.is_file():
        kept = torch.load(args.checkpoint, weights_only=True)
        step, seconds_before = kept["step"], kept["seconds"]
        for name, part in parts.items():
            part.load_state_dict(kept[name])

    torch.manual_seed(step)
    model.train()
    first, seconds, before_counted = step, 0.0, 0.0
    batches = shuffled(images, args.batch_size, args.workers, step)
    while step < total and seconds < args.seconds:
        began = time.perf_counter()
        x, y = next(batches)
        if args.best:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16) if args.best else contextlib.nullcontext():
            loss = criterion(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fall.step()
        loss.item()
        seconds += time.perf_counter() - began
        step += 1
        if step - first == args.warmup:
            before_counted = seconds
    batches.close()

    counted = max(0, step - first - args.warmup) * args.batch_size
    found: dict[str, float | int | None] = {
        "images_per_second": counted / (seconds - before_counted) if counted else None,
        "seconds": seconds_before + seconds,
        "step": step,
        "epochs": step * args.batch_size / len(images),
    }
    if args.checkpoint is not None:
        state = {name: part.state_dict() for name, part in parts.items()}
        partial = args.checkpoint.with_suffix(".partial")
        torch.save({**state, "step": step, "seconds": found["seconds"]}, partial)
        partial.replace(args.checkpoint)
    if args.val is not None:
        held_out = datasets.ImageFolder(
            args.val, transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), *as_input()])
        )
        if held_out.classes != images.classes:
            sys.exit(f"{args.val} has other classes than {args.folder}")
        found["top1_percent"] = top1_percent(model, held_out, args)
    print(json.dumps(found))


def as_input() -> list[Any]:
    return [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]


def shuffled(images: Any, batch_size: int, workers: int, step: int = 0) -> Generator[tuple[Tensor, Tensor]]:
    """The batches from step `step` on: pass after pass over the images, each in an order of its own."""
    a_pass = len(images) // batch_size
    while True:
        epoch, done = divmod(step, a_pass)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        left = torch.utils.data.Subset(images, order[done * batch_size :].tolist())
        loader = torch.utils.data.DataLoader(left, batch_size, num_workers=workers, drop_last=True)
        for batch in loader:
            yield batch
            step += 1


def top1_percent(model: nn.Module, images: Any, args: argparse.Namespace) -> float:
    model.eval()
    right = 0
    with torch.inference_mode():
        for x, y in torch.utils.data.DataLoader(images, 250, num_workers=args.workers):
            if args.best:
                x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16) if args.best else contextlib.nullcontext():
                right += int((model(x).argmax(1) == y).sum())
    return 100 * right / len(images)


if __name__ == "__main__":
    main()
