"""How fast training batches are read, without augmentation, as a ratio in one run.

Both sides give shuffled, normalised float32 batches of 128 at 64x64, in child processes that are taken in
turn: tinlab from its memory-mapped pack; torchvision's ImageFolder behind a DataLoader with two workers,
where each JPEG is decoded anew.

    python benchmarks/input.py [--data DATA] [--steps 60] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import measuring
from augment import MEAN, STD, batches_of, timed
from loop import BATCH

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = measuring.options(__doc__, rounds=5)
    parser.add_argument("--data", help="a data set: official zip or folder, or class folders")
    parser.add_argument("--steps", type=measuring.at_least(1), default=60)
    parser.add_argument("--child", choices=("tinlab", "torchvision"), help=argparse.SUPPRESS)
    parser.add_argument("--pack", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(device="cpu")
    args = parser.parse_args()
    if args.child:
        measure = tinlab if args.child == "tinlab" else torchvision
        print(json.dumps({"images_per_second": measure(args)}))
        return

    with measuring.scratch() as folder:
        forms = measuring.forms_of(args.data, folder)
        own = [HERE / "input.py", "--steps", args.steps, "--pack", forms.pack, "--images", forms.train]

        def images_per_second(name: str) -> float:
            return float(measuring.child(*own, "--child", name)["images_per_second"])

        speeds = measuring.in_turn(("tinlab", "torchvision"), images_per_second, args.rounds)
    row = measuring.compare(
        "read training batches", speeds["tinlab"], speeds["torchvision"], "images/s",
        "torchvision's ImageFolder, DataLoader with two workers",
    )  # fmt: skip
    heading = f"{forms.described}, {os.cpu_count()} CPUs, {args.steps} batches of {BATCH}"
    measuring.report([row], heading, as_json=args.json)


def tinlab(args: argparse.Namespace) -> float:
    from tinlab.tuning import tune_process

    tune_process()
    import torch

    from tinlab.augment.policy import Policy

    batches, policy = batches_of(args), Policy((), torch.tensor(MEAN), torch.tensor(STD), 0)
    return timed(args.steps, lambda number: policy.inputs(batches.at(number), 64), "cpu")


def torchvision(args: argparse.Namespace) -> float:
    from peer import shuffled
    from torchvision import datasets, transforms

    as_input = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    images = datasets.ImageFolder(str(args.images), as_input)
    batches = shuffled(images, BATCH, workers=2)
    return timed(args.steps, lambda _: next(batches), "cpu")


if __name__ == "__main__":
    measuring.run(main)
