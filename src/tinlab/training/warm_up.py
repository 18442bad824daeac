"""Steps that are taken before the clock starts, so that what is only slow once is not measured, and undone.

The first step with images of a size compiles its kernels, tries cuDNN's, and takes memory. After a warm-up
the network, the optimizer, the loss scale and the random generators are as they were, bit for bit, so that a
training gives the same weights with it and without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tinlab.compute import wait_for
from tinlab.models.depth import count_blocks
from tinlab.training.stages import Setup

STEPS = 2
GRAPH_STEPS = 4
"""Steps of each size: the first compiles, the second finds its memory. CUDA graphs are recorded in the second
or third, and first replayed in the one after it."""


def warm_up(
    setup: Setup,
    sizes: Sequence[int],
    step: Callable[[Setup, int, int], object],
    is_to_stop: Callable[[], bool],
) -> float:
    """Take steps with images of each of `sizes` pixels a side by `step(setup, number, size)`, undo them, and
    return the seconds that it took.

    Where `is_to_stop` says so the sizes after the first one are left out: the training takes one step more
    before it saves and stops, and each of the others may take a minute to compile.
    """
    began = time.perf_counter()
    before = _Kept(setup)
    steps = GRAPH_STEPS if setup.recipe.compute.cuda_graphs else STEPS
    try:
        for size in dict.fromkeys(sizes):
            for number in range(steps):
                step(setup, number, size)
            if is_to_stop():
                break
        wait_for(setup.device)
    finally:
        before.put_back()
    return time.perf_counter() - began


class _Kept:
    """What a step changes, as it was."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        model, updater = setup.model, setup.updater
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in _tensors(model)]
        self._groups = [_without_parameters(group) for group in updater.param_groups]
        self._state = {p: {name: _copy(v) for name, v in own.items()} for p, own in updater.state.items()}
        self._scaling = setup.scaling.state()
        self._random = torch.get_rng_state()
        cuda = setup.device.type == "cuda"
        self._random_there = torch.cuda.get_rng_state(setup.device) if cuda else None

    @torch.no_grad()
    def put_back(self) -> None:
        setup, updater = self._setup, self._setup.updater
        for tensor, value in self._tensors:
            tensor.copy_(value)  # in place: a recorded graph knows where a weight lies
        updater.zero_grad(set_to_none=True)
        for group, values in zip(updater.param_groups, self._groups, strict=True):
            for name in set(group) - set(values) - {"params"}:
                del group[name]
            group.update(values)
        updater.state.clear()
        updater.state.update(self._state)
        setup.scaling.restore(self._scaling)
        setup.scaling.take_skipped()
        count_blocks(setup.model)  # forgets those of the steps that are undone
        torch.set_rng_state(self._random)
        if self._random_there is not None:
            torch.cuda.set_rng_state(self._random_there, setup.device)


def _tensors(model: torch.nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _without_parameters(group: dict[str, Any]) -> dict[str, Any]:
    return {name: _copy(value) for name, value in group.items() if name != "params"}


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
