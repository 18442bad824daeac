"""Weights beside the ones that are trained: a moving average that is measured, and Lookahead's slow ones."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn


class MovingAverage:
    """An exponential moving average of `model`'s parameters, as a network of its own in evaluation mode.

    After step t the average keeps min(decay, (1 + t) / (10 + t)) of itself, so that where training began is
    soon forgotten. Buffers, such as the running statistics of batch norm, are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = deepcopy(model).requires_grad_(False).train(False)
        self._source = model
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        kept = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(self._source.parameters()), 1 - kept)
        for mine, theirs in zip(self.model.buffers(), self._source.buffers(), strict=True):
            mine.copy_(theirs)

    def tensors(self) -> Mapping[str, Tensor]:
        """Name -> parameter or buffer, to be saved or overwritten."""
        return self.model.state_dict()


class Lookahead:
    """Slow weights, which follow `model`'s from afar (Zhang, Lucas, Hinton and Ba 2019, algorithm 1).

    They begin as the model's do. The optimizer's own state goes on through a synchronisation.
    """

    def __init__(self, model: nn.Module, steps: int, alpha: float) -> None:
        self._fast: dict[str, Tensor] = dict(model.named_parameters())
        self._slow = {name: p.detach().clone() for name, p in self._fast.items()}
        self._steps = steps
        self._alpha = alpha

    @torch.no_grad()
    def update(self, step: int, total_steps: int) -> None:
        """After step `step`, counted from 1: synchronise where it is time, or where it was the last."""
        if step % self._steps and step != total_steps:
            return
        fast, slow = list(self._fast.values()), list(self._slow.values())
        torch._foreach_lerp_(slow, fast, self._alpha)
        torch._foreach_copy_(fast, slow)

    def tensors(self) -> Mapping[str, Tensor]:
        """Name of parameter -> slow weights, to be saved or overwritten."""
        return self._slow
