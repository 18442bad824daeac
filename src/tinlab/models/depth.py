"""Stochastic depth: Huang, Sun, Liu, Sedra and Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016.

In training, block l of L runs with probability p_l = 1 - l/L (1 - p_L), one draw a block for the whole
mini-batch; a block that does not run is its shortcut alone, and nothing of its branch is computed. In
evaluation every block runs, and its branch is multiplied by p_l.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def survival_probabilities(blocks: int, final: float) -> list[float]:
    """p_l for l = 1..blocks: a line from just below 1 down to `final` (Huang et al., equation 4)."""
    return [1 - block / blocks * (1 - final) for block in range(1, blocks + 1)]


class Survival(nn.Module):
    """Decides whether a residual branch runs; counts how often it was asked and how often it did."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        # A flag of its own: code compiled for one block then serves all that differ in probability alone.
        self.certain = probability == 1
        self.asked = 0
        self.ran = 0

    def runs(self) -> bool:
        """In training, a draw from torch's generator on the host, so that a GPU is not waited for."""
        return not self.training or self.certain or self._draw()

    @torch.compiler.disable
    def _draw(self) -> bool:
        survives = torch.rand((), device="cpu").item() < self.probability
        self.asked += 1
        self.ran += survives
        return survives

    def forward(self, branch: Tensor) -> Tensor:
        """The branch's output, weighed in evaluation by how often it was there in training."""
        return branch if self.training or self.certain else branch * self.probability

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}"


def residual_blocks(model: nn.Module) -> int:
    """How many residual blocks with stochastic depth, or the chance of it, `model` has."""
    return sum(isinstance(module, Survival) for module in model.modules())


def expected_blocks(model: nn.Module) -> float:
    """How many of `model`'s residual blocks run in a training step, on average."""
    return sum(module.probability for module in model.modules() if isinstance(module, Survival))


def count_blocks(model: nn.Module) -> tuple[int, int]:
    """(how many residual blocks ran, in how many training steps) since the last call."""
    ran, steps = 0, 0
    for module in model.modules():
        if isinstance(module, Survival):
            ran, steps = ran + module.ran, max(steps, module.asked)
            module.ran = module.asked = 0
    return ran, steps
