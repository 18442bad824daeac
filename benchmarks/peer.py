"""A plain PyTorch training script, as tutorials write it: the peer that benchmarks/loop.py measures against.

ImageFolder, DataLoader with two workers, torchvision's transforms and ResNet-18, SGD. By default in float32;
`--best` adds what such a script can get from a few more words: bf16 autocast and channels-last memory.

    python benchmarks/peer.py TRAIN_FOLDER [--best] [--steps 30] [--batch-size 128] [--workers 2]

Prints one line of JSON with the images per second over the steps after the first `--warmup` ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time

import torch
from torch import nn

from tinlab.models.zoo import import_torchvision

torchvision = import_torchvision()
from torchvision import datasets, models, transforms  # noqa: E402  (once torchvision can be imported)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="class folders of images")
    parser.add_argument("--best", action="store_true", help="bf16 autocast and channels-last memory")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(64, scale=(0.6, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.480, 0.448, 0.398), (0.276, 0.269, 0.282)),
        ]
    )
    images = datasets.ImageFolder(args.folder, transform)
    loader = torch.utils.data.DataLoader(
        images, args.batch_size, shuffle=True, num_workers=args.workers, drop_last=True
    )
    model = models.resnet18(num_classes=len(images.classes))
    if args.best:
        model = model.to(memory_format=torch.channels_last)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    model.train()
    batches = iter(loader)
    for step in range(args.warmup + args.steps):
        if step == args.warmup:
            began = time.perf_counter()
        x, y = next(batches)
        if args.best:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16) if args.best else contextlib.nullcontext():
            loss = criterion(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    seconds = time.perf_counter() - began
    print(json.dumps({"images_per_second": args.steps * args.batch_size / seconds}))


if __name__ == "__main__":
    main()
