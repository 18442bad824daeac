"""How fast augmentation is, as ratios in one run.

Child processes are taken in turn, `--rounds` times, all on the same images, in batches of 128 at 64x64:

    tinlab             batches read from the pack and augmented by the policy
    torchvision        ImageFolder, the same transforms of torchvision v2, DataLoader with two workers
    kornia             batches read from the pack and augmented by kornia's classes, on whole batches
    step               a training step of ResNet-18 (7x7/2 stem, bf16, channels-last) on one fixed batch
    step + tinlab      the same step, each on a batch that the policy has just augmented; by turns in one
                       process, the medians of their times, so that a machine that swings treats both alike

    python benchmarks/augment.py [--data DATA] [--policy sun_heavy] [--device cpu] [--steps 30] [--json]

Policies: sun_heavy, and flip_crop (mirror and random-resized-crop alone). torchvision stays on the CPU, where
it is run. kornia is given one affine warp for the four transforms that are affine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
from loop import BATCH, recipe

HERE = Path(__file__).resolve().parent
WARMUP = 5
MEAN, STD = (0.480, 0.448, 0.398), (0.276, 0.269, 0.282)


def main() -> None:
    parser = measuring.options(__doc__, rounds=5)
    parser.add_argument("--data", help="a data set: official zip or folder, or class folders")
    parser.add_argument("--policy", choices=("sun_heavy", "flip_crop"), default="sun_heavy")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=measuring.at_least(1), default=30)
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--pack", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child](args)))
        return

    with measuring.scratch() as folder:
        forms = measuring.forms_of(args.data, folder)
        own = [HERE / "augment.py", "--policy", args.policy, "--device", args.device, "--steps", args.steps]
        own += ["--pack", forms.pack, "--images", forms.train, "--child"]
        found = measuring.in_turn(CHILDREN, lambda child: measuring.child(*own, child), args.rounds)
    speeds: dict[str, list[float]] = {
        name: [one[name] for one in rounds] for rounds in found.values() for name in rounds[0]
    }
    what = f"augment, {args.policy}"
    rows = [
        measuring.compare(
            what, speeds["tinlab"], speeds["torchvision"], "images/s",
            "torchvision v2, DataLoader with two workers",
        ),
        measuring.compare(what, speeds["tinlab"], speeds["kornia"], "images/s", "kornia on whole batches"),
        measuring.compare(
            f"ResNet-18 step with {args.policy}", speeds["step + tinlab"], speeds["step"], "images/s",
            "the step alone",
        ),
    ]  # fmt: skip
    heading = f"{forms.described}, {args.device}, {os.cpu_count()} CPUs, {args.steps} batches of {BATCH}"
    measuring.report(rows, heading, as_json=args.json)


def timed(steps: int, step: Callable[[int], object], device: str) -> float:
    """Images per second of `step`, after the warm-up."""
    for number in range(WARMUP + steps):
        if number == WARMUP:
            wait(device)
            began = time.perf_counter()
        step(number)
    wait(device)
    return steps * BATCH / (time.perf_counter() - began)


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def batches_of(args: argparse.Namespace) -> Any:
    """tinlab's batches of the pack, on the device."""
    import numpy as np
    import torch

    from tinlab.data.batches import Batches
    from tinlab.data.pack import Pack

    split = Pack.open(args.pack).split("train+tune")
    return Batches(split, np.arange(len(split)), BATCH, 0, torch.device(args.device))


def policy_of(args: argparse.Namespace) -> Any:
    import torch

    from tinlab.augment.policy import Policy
    from tinlab.recipe import POLICIES, Flip, RandomResizedCrop

    alone = (Flip(), RandomResizedCrop(area=(0.6, 1.0)))
    operations = alone if args.policy == "flip_crop" else POLICIES[args.policy]()
    mean, std = (torch.tensor(values, device=args.device) for values in (MEAN, STD))
    return Policy(operations, mean, std, 0)


def tinlab(args: argparse.Namespace) -> float:
    from tinlab.tuning import tune_process

    tune_process()
    batches, policy = batches_of(args), policy_of(args)
    return timed(args.steps, lambda number: policy.inputs(batches.at(number), 64), args.device)


def training(args: argparse.Namespace) -> dict[str, float]:
    """Steps on a fixed batch and on augmented ones by turns: images per second of each."""
    from tinlab.tuning import tune_process

    tune_process()
    import torch

    from tinlab import models
    from tinlab.compute import place
    from tinlab.training import optimizer
    from tinlab.training.step import forward_backward

    knobs = recipe(args.steps)
    device = torch.device(args.device)
    batches, policy = batches_of(args), policy_of(args)
    model = place(models.build(knobs.model, 200), knobs.compute, device)
    updater = optimizer.build(knobs.optimizer, model)
    model.train()
    fixed = batches.at(0)
    inputs = policy.inputs(fixed, 64)[0].clone(memory_format=torch.preserve_format)

    def seconds(number: int, augmented: bool) -> float:
        wait(args.device)
        began = time.perf_counter()
        x, batch = policy.inputs(batches.at(number), 64) if augmented else (inputs, fixed)
        forward_backward(model, x, batch, knobs)
        updater.step()
        updater.zero_grad(set_to_none=True)
        wait(args.device)
        return time.perf_counter() - began

    pairs = [(seconds(n, False), seconds(n, True)) for n in range(WARMUP + args.steps)][WARMUP:]
    plain, augmented = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {"step": BATCH / plain, "step + tinlab": BATCH / augmented}


def kornia(args: argparse.Namespace) -> float:
    import kornia.augmentation as K
    import torch
    from torch import nn

    share = 3.5 / 12  # how often sun_heavy picks a transform
    several = (
        K.RandomHorizontalFlip(p=share),
        K.RandomResizedCrop((64, 64), scale=(0.7, 1.0), ratio=(1.0, 1.0), p=share),
        # One warp stands for scale, shift, rotation and shear, on the images that would get any of them.
        K.RandomAffine(
            20.0, (0.15, 0.15), (0.8, 1.2), 11.3, padding_mode="reflection", p=1 - (1 - share) ** 4
        ),
        K.RandomInvert(p=0.3 * share),
        K.RandomBrightness((0.7, 1.3), p=share),
        K.RandomContrast((0.6, 1.4), p=share),
        K.RandomSaturation((0.4, 1.6), p=share),
        K.RandomGaussianBlur((9, 9), (0.3, 0.9), p=share),
        K.RandomGaussianNoise(std=8 / 255, p=share),
    )
    alone = (
        K.RandomHorizontalFlip(p=0.5),
        K.RandomResizedCrop((64, 64), scale=(0.6, 1.0), ratio=(3 / 4, 4 / 3), p=1.0),
    )
    normalise = K.Normalize(torch.tensor(MEAN), torch.tensor(STD))
    transform = nn.Sequential(*(alone if args.policy == "flip_crop" else several), normalise).to(args.device)
    batches = batches_of(args)

    def step(number: int) -> None:
        images = batches.at(number).images.permute(0, 3, 1, 2).float().div(255)
        transform(images).contiguous(memory_format=torch.channels_last)

    with torch.inference_mode():
        return timed(args.steps, step, args.device)


class Several:
    """2 to 5 of sun_heavy's 12 transforms on a PIL image, and the tensor that the network takes."""

    def __init__(self, v2: Any, torch: Any) -> None:
        bilinear = v2.InterpolationMode.BILINEAR
        self.on_pictures = [
            v2.RandomHorizontalFlip(1.0),
            v2.RandomResizedCrop(64, scale=(0.7, 1.0), ratio=(1.0, 1.0)),
            v2.RandomAffine(0, scale=(0.8, 1.2), interpolation=bilinear),
            v2.RandomAffine(0, translate=(0.15, 0.15), interpolation=bilinear),
            v2.RandomRotation(20, interpolation=bilinear),
            v2.RandomAffine(0, shear=11.3, interpolation=bilinear),
            v2.RandomInvert(0.3),
            v2.ColorJitter(brightness=0.3),
            v2.ColorJitter(contrast=0.4),
            v2.ColorJitter(saturation=0.6),
            v2.GaussianBlur(9, (0.3, 0.9)),
        ]
        self.to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
        self.noise = v2.GaussianNoise(sigma=8 / 255)
        self.normalise = v2.Normalize(MEAN, STD)

    def __call__(self, image: Any) -> Any:
        chosen = random.sample(range(12), random.randint(2, 5))
        for number in sorted(chosen):
            if number < 11:
                image = self.on_pictures[number](image)
        image = self.to_tensor(image)
        return self.normalise(self.noise(image) if 11 in chosen else image)


def torchvision(args: argparse.Namespace) -> float:
    import torch
    from peer import shuffled
    from torchvision import datasets
    from torchvision.transforms import v2

    transform: Any = Several(v2, torch)
    if args.policy == "flip_crop":
        transform = v2.Compose(
            [
                v2.RandomResizedCrop(64, scale=(0.6, 1.0)),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )
    images = datasets.ImageFolder(str(args.images), transform)
    batches = shuffled(images, BATCH, workers=2)
    return timed(args.steps, lambda _: next(batches), "cpu")


CHILDREN: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "tinlab": lambda args: {"tinlab": tinlab(args)},
    "torchvision": lambda args: {"torchvision": torchvision(args)},
    "kornia": lambda args: {"kornia": kornia(args)},
    "training": training,
}


if __name__ == "__main__":
    measuring.run(main)
