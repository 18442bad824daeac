"""The least time that a training could take: its operations over the rate of the machine's matrix units.

Counted are the multiply-adds of convolutions, matrix products and attention (tinlab.models.summary), two
operations each, three times over: forward, the gradient of what a layer gets, and that of its weights. All
else, such as batch norm, moves bytes and is bought with time above this limit.
"""

from __future__ import annotations

import time

import torch

from tinlab.compute import wait_for
from tinlab.data.pack import Pack
from tinlab.models.summary import summarise
from tinlab.recipe import Recipe
from tinlab.training.stages import spans

PASSES = 3
SIDE = {"cuda": 8192}
"""Rows of the square matrices whose product is timed; SMALL elsewhere."""
SMALL = 1024


def training_operations(recipe: Recipe, pack: Pack) -> float:
    """Floating-point operations of the steps of `recipe` on `pack`, in all its stages."""
    classes, total = len(pack.info.classes), 0.0
    for span in spans(recipe, pack, 0):
        phase, sizes = span.recipe, span.recipe.data.image_sizes
        counted = {size: summarise(phase.model, classes, size).multiply_adds for size in set(sizes)}
        each = sum(counted[size] for size in sizes) / len(sizes)  # every size has an equal share of the steps
        passes = PASSES * (2 if phase.optimizer.sam_rho is not None else 1)
        total += 2.0 * passes * each * span.steps * phase.schedule.batch_size
    return total


def matrix_rate(device: torch.device, precision: str = "bf16", seconds: float = 1.0) -> float:
    """Floating-point operations a second of one large matrix product of random numbers, the fastest of ten
    equal parts of about `seconds`: what the device's matrix units were seen to do."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    side = SIDE.get(device.type, SMALL)
    generator = torch.Generator(device=device).manual_seed(0)
    # Not zeros, which a GPU multiplies faster than other numbers.
    one, other = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)

    def timed(products: int) -> float:
        wait_for(device)
        began = time.perf_counter()
        for _ in range(products):
            torch.mm(one, other, out=out)
        wait_for(device)
        return (time.perf_counter() - began) / products

    timed(2)
    products = max(1, round(seconds / 10 / timed(1)))
    return 2.0 * side**3 / min(timed(products) for _ in range(10))
