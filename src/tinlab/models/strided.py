"""A way around a fault of oneDNN, which computes convolutions on CPUs.

The gradient of the weights of a 1x1 convolution with a stride, of fewer than 16 channels, is written past the
end of its workspace: seen with torch 2.13, and told of 2.14 in issue 6035 of uxlfoundation/oneDNN. Whether
the process then dies or goes on depends on the batch and the threads: two threads and three images do.
Narrow residual networks have such a convolution on their first shortcuts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAFE_CHANNELS = 16
"""oneDNN's block of channels with AVX-512; with AVX2, which that issue names too, it is 8."""


class StridedConvolution(nn.Conv2d):
    """A 1x1 convolution with a stride: (B, inputs, H, W) -> (B, outputs, H/stride, W/stride).

    Where the fault could strike, it picks the positions that the stride keeps, and is without one there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or self.in_channels >= SAFE_CHANNELS or not torch.is_grad_enabled():
            return super().forward(x)
        rows, columns = self.stride
        order = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        kept = x[:, :, ::rows, ::columns].contiguous(memory_format=order)
        return F.conv2d(kept, self.weight, self.bias)


def avoid_fault(model: nn.Module) -> None:
    """Make the 1x1 convolutions of `model` that have a stride into StridedConvolutions, weights and all."""
    for module in model.modules():
        plain = type(module) is nn.Conv2d and module.groups == 1 and module.padding == (0, 0)
        if plain and module.kernel_size == (1, 1) and module.stride != (1, 1):
            module.__class__ = StridedConvolution
