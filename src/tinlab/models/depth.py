"""Stochastic depth: Huang, Sun, Liu, Sedra and Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016.

In training, block l of L runs with probability p_l = 1 - l/L (1 - p_L), one draw a block for the whole
mini-batch; a block that does not run is its shortcut alone, and nothing of its branch is computed. In
evaluation every block runs, and its branch is multiplied by p_l.

`Survival` is that. `SampleSurvival` gives every sample of the batch its own lot, with the same
probabilities. Its samples are a random subset of fixed size, round(p_l B), gathered, sent through the branch,
and added back where they came from, as in DINOv2 (Oquab et al. 2024, section 5, "Efficient stochastic
depth"): what is dropped costs nothing, and shapes stay the same. DINOv2 weighs the branch by 1/p_l in
training; here, as for `Survival`, it is weighed by p_l in evaluation, so that in batches of a few samples,
where round(p_l B) / B is not p_l, the two differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


class SampleSurvival(nn.Module):
    """Adds a residual branch, in training for a subset of the samples; counts its size, in batches."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.asked = 0
        self.ran = 0.0

    def survivors(self, batch: int) -> int:
        """How many of `batch` samples go through the branch in training: at least one, so that every
        parameter gets a gradient."""
        return max(1, round(self.probability * batch))

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor], rows: Tensor | None) -> Tensor:
        """`x` (B, …) with the output of `branch` added: in training to `rows`, (K,) places of the batch from
        `draw_rows`, or to all where it is None; in evaluation to all, weighed by the probability."""
        if not self.training:
            return x + branch(x) if self.probability == 1 else x + branch(x) * self.probability
        if rows is None:
            return x + branch(x)
        added = branch(x.index_select(0, rows))  # (K, …)
        return x.index_add(0, rows, added.to(x.dtype))

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}"


@torch.compiler.disable
def draw_rows(survivals: Sequence[SampleSurvival], batch: int, device: torch.device) -> list[Tensor | None]:
    """For each of `survivals` which rows of a batch go through its branch: (K,), or None where all do.

    Drawn from torch's generator on the host for all of them at once, and sent to `device` in one transfer
    that is not waited for. Counts, as `Survival` does when it is asked.
    """
    drawn: list[Tensor] = []
    for survival in survivals:
        kept = survival.survivors(batch)
        if survival.probability < 1:
            survival.asked += 1
            survival.ran += kept / batch
        drawn.append(torch.randperm(batch, device="cpu")[:kept] if kept < batch else torch.empty(0).long())
    together = torch.cat(drawn)
    if device.type == "cuda":
        together = together.pin_memory()
    sent = together.to(device, non_blocking=True).split([len(rows) for rows in drawn])
    return [rows if len(rows) else None for rows in sent]


KINDS = (Survival, SampleSurvival)


def residual_blocks(model: nn.Module) -> int:
    """How many residual blocks with stochastic depth, or the chance of it, `model` has."""
    return sum(isinstance(module, KINDS) for module in model.modules())


def layers_left_out(model: nn.Module) -> list[nn.Module]:
    """The layers of blocks that a training step may leave out whole: those with a `Survival` below 1."""
    return [
        layer
        for block in model.modules()
        if any(isinstance(child, Survival) and not child.certain for child in block.children())
        for layer in block.modules()
    ]


def expected_blocks(model: nn.Module) -> float:
    """How many of `model`'s residual blocks run in a training step, on average.

    A block that runs for a share of the samples counts as that share.
    """
    return sum(module.probability for module in model.modules() if isinstance(module, KINDS))


def count_blocks(model: nn.Module) -> tuple[float, int]:
    """(how many residual blocks ran, in how many training steps) since the last call.

    A block that ran for a share of the samples counts as that share; one that always runs is not counted.
    """
    ran, steps = 0.0, 0
    for module in model.modules():
        if isinstance(module, KINDS):
            ran, steps = ran + module.ran, max(steps, module.asked)
            module.ran = module.asked = 0
    return ran, steps
