"""Training steps with tinlab's convolutions beside torch's own, in one run.

On a CPU tinlab takes small maps as products of matrices (src/tinlab/models/convolutions.py). Whole steps of
the same network, in bf16 and channels last, alternate between both kinds of convolutions.

    python benchmarks/convolutions.py [--steps 6] [--rounds 5] [--json]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import measuring

CASES = (
    ("resnet18", 128, 64),
    ("resnet34", 128, 64),
    ("resnet50", 64, 64),
    ("yu_resnet20", 128, 64),
    ("fast_cpu", 256, 32),
    ("fast_cpu", 256, 56),
)
"""A network, or the recipe that it is of; the batch size; the images' side in pixels."""


KINDS = ("torch", "tinlab")


def main() -> None:
    parser = measuring.options(__doc__, rounds=5)
    parser.add_argument("--steps", type=measuring.at_least(1), default=6)
    args = parser.parse_args()

    from tinlab.tuning import tune_process

    tune_process()
    rows = []
    for name, batch, side in CASES:
        found = measuring.in_turn(KINDS, steps_of(name, batch, side, args.steps), args.rounds)
        what = f"step of {name}, {side} pixels: convolutions"
        rows.append(measuring.compare(what, found["tinlab"], found["torch"], "images/s", "torch's"))
    measuring.report(rows, f"{args.steps} steps a round", as_json=args.json)


def steps_of(name: str, batch: int, side: int, steps: int) -> Callable[[str], float]:
    """What takes some steps with one of the KINDS of convolutions, and returns their images/s."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from tinlab import models, recipe, recipes
    from tinlab.compute import autocast, place
    from tinlab.models.convolutions import Convolution
    from tinlab.training import optimizer

    torch.manual_seed(0)
    compute, device = recipe.Compute(), torch.device("cpu")
    knobs = recipes.find(name).model if name in recipes.RECIPES else recipe.Model(name=name)
    model = place(models.build(knobs, 200), compute, device).train()
    updater = optimizer.build(recipe.Optimizer(peak_lr=1e-3), model)
    images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(200, (batch,))
    own = [layer for layer in model.modules() if type(layer) is Convolution]

    def step() -> None:
        with autocast(compute, device):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        updater.step()
        updater.zero_grad(set_to_none=True)

    classes: dict[str, Any] = {"torch": nn.Conv2d, "tinlab": Convolution}

    def images_per_second(kind: str) -> float:
        for layer in own:
            layer.__class__ = classes[kind]
        step()  # its memory is there then
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return batch * steps / (time.perf_counter() - began)

    return images_per_second


if __name__ == "__main__":
    measuring.run(main)
