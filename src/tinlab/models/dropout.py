"""Dropout at a small price on a CPU: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout:
A Simple Way to Prevent Neural Networks from Overfitting", JMLR 2014.

torch draws a Bernoulli variable for each value, which takes longer than all else in the layer: a tenth of a
training step of Shcherbina's networks (LOG.md). Here a generator fills a block of memory with random words,
one of the values' own size for each, and a comparison and a product of whole numbers turn them into what the
values are multiplied with: zero, or the bits of 1 / (1 - rate).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Dropout(nn.Dropout):
    """torch's layer of any shape, with masks that are drawn as `dropout` draws them."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, inplace=self.inplace) if self.training else x


def dropout(x: Tensor, rate: float, *, inplace: bool = False) -> Tensor:
    """`x` with each value set to zero by the chance `rate`, and else divided by 1 - rate: as F.dropout.

    On a CPU a 16-bit type takes `rate` to the nearest multiple of 2^-16. What is drawn follows from torch's
    generator, of which one number is taken.
    """
    if x.device.type != "cpu" or x.dtype not in _TYPES or not 0 < rate < 1 or torch.compiler.is_compiling():
        return F.dropout(x, rate, inplace=inplace)
    noise = _noise(x, rate)
    return x.mul_(noise) if inplace else x * noise


def quicken(model: nn.Module) -> None:
    """Make the dropout layers of `model` into Dropouts."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout


def _noise(x: Tensor, rate: float) -> Tensor:
    """What dropout multiplies `x` with, in its type and memory order."""
    bits = 8 * x.element_size()
    seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    drawn = np.random.SFC64(seed).random_raw(-(-x.numel() * bits // 64))  # 64 bits each
    words = torch.from_numpy(drawn.view(f"int{bits}")[: x.numel()])
    kept = torch.tensor(1 / (1 - rate), dtype=x.dtype, device="cpu").view(words.dtype)
    fewest = min(round(rate * 2**bits), 2**bits - 1)  # of 2^bits words, so many are dropped
    words.ge_(fewest - 2 ** (bits - 1)).mul_(kept)  # 1 or 0, and then the value's bits or 0
    strides = torch.empty_like(x, device="meta").stride()
    return words.view(x.dtype).as_strided(x.shape, strides)
