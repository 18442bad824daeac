"""Attribution methods by name: (model, inputs, targets) -> maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Method = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, float32 (B, 3, H, W), int64 (B,)) -> float32 (B, H, W)."""


def gradient(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """How much each pixel moves the target's logit: absolute gradient, its largest channel, (B, H, W).

    Simonyan et al. 2014, "Deep Inside Convolutional Networks", section 3.1.
    """
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        chosen = model(inputs).gather(1, targets[:, None]).sum()
        (slope,) = torch.autograd.grad(chosen, inputs)  # (B, 3, H, W)
    return slope.abs().amax(dim=1)  # (B, H, W)


METHODS: dict[str, Method] = {"gradient": gradient}
