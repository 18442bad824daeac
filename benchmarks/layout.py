"""What Sun's three performance features are worth: "ResNet on Tiny ImageNet", table 1, as ratios in one run.

He names preprocessing on the CPU, NCHW images for cuDNN, and fused batch norm: together 2.74 -> 2.45 seconds
an iteration of 100 images on a K80. Here ResNet-34 (7x7/2 stem, 64x64 pixels, float32) takes whole training
steps on one device, in turn, from bytes to update:

    before       batch norm as single operations, images in the slower order, prepared in the training step
    fused        batch norm as one operation
    order        images and weights in the other memory order (channels last)
    placement    batches prepared by a thread of their own, beside the training steps
    all three

    python benchmarks/layout.py [--steps 10] [--rounds 3] [--device cpu] [--model resnet34] [--json]
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import measuring

BATCH = 100
SETTINGS = {
    "before": (),
    "fused": ("fused",),
    "order": ("order",),
    "placement": ("placement",),
    "all three": ("fused", "order", "placement"),
}
REPORTED = (2.74, 2.45)


def main() -> None:
    parser = measuring.options(__doc__, rounds=3)
    parser.add_argument("--steps", type=measuring.at_least(1), default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="resnet34")
    args = parser.parse_args()

    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    from tinlab import models, recipe
    from tinlab.training import optimizer
    from tinlab.tuning import tune_process

    class Unfused(nn.BatchNorm2d):
        """Batch norm by its formula, an operation at a time, in training."""

        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean(dim=(0, 2, 3), keepdim=True)
            centred = x - mean
            variance = centred.square().mean(dim=(0, 2, 3), keepdim=True)
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            with torch.no_grad():
                self.running_mean.lerp_(mean.flatten(), self.momentum)
                self.running_var.lerp_(variance.flatten(), self.momentum)
            scaled = centred * (variance + self.eps).rsqrt()
            return scaled * self.weight[:, None, None] + self.bias[:, None, None]

    tune_process()
    device = torch.device(args.device)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, 64, 64, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(200, (BATCH,), generator=generator).to(device)

    def build(features: tuple[str, ...]) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = models.build(recipe.Model(name=args.model), 200)
        if "fused" not in features:
            for module in model.modules():
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = Unfused
        order = torch.channels_last if "order" in features else torch.contiguous_format
        model = model.to(device=device, memory_format=order)  # type: ignore[call-overload]
        return model, optimizer.build(recipe.Optimizer(peak_lr=1e-3), model)

    def prepared(features: tuple[str, ...], number: int) -> Tensor:
        """The mean subtracted and half of the images flipped, (B, 3, 64, 64): what Sun's model was given."""
        images = pixels.roll(number, 0).permute(0, 3, 1, 2).float() / 255
        images = images - images.mean(dim=(0, 2, 3), keepdim=True)
        images[::2] = images[::2].flip(3)
        order = torch.channels_last if "order" in features else torch.contiguous_format
        return images.contiguous(memory_format=order)

    def steps(features: tuple[str, ...], made: tuple[nn.Module, torch.optim.Optimizer], count: int) -> float:
        """Seconds an iteration."""
        model, updater = made
        began = time.perf_counter()
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(prepared, features, 0) if "placement" in features else None
            for number in range(count):
                if coming is None:
                    images = prepared(features, number)
                else:
                    images = coming.result()
                    coming = thread.submit(prepared, features, number + 1)
                F.cross_entropy(model(images.to(device, non_blocking=True)), labels).backward()
                updater.step()
                updater.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    networks = {name: build(features) for name, features in SETTINGS.items()}
    for name, features in SETTINGS.items():
        steps(features, networks[name], 2)
    found = measuring.in_turn(
        SETTINGS, lambda name: steps(SETTINGS[name], networks[name], args.steps), args.rounds
    )
    before = found.pop("before")
    rows = [
        measuring.compare(f"{args.model} step, {name}", values, before, "s", "none of the three")
        for name, values in found.items()
    ]
    measuring.report(rows, f"batches of {BATCH}, {args.steps} steps a round", as_json=args.json)
    if not args.json:
        print(f"Sun's table 1, all three: {REPORTED[0]} -> {REPORTED[1]} s ({REPORTED[1] / REPORTED[0]:.2f})")


if __name__ == "__main__":
    measuring.run(main)
