"""Sharpness-aware minimisation: Foret, Kleiner, Mobahi and Neyshabur, ICLR 2021."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Found = TypeVar("Found")


class SharpnessAware:
    """Leaves in `model` the gradient at w + rho g / |g|, where g is the gradient at its weights w.

    Batch norm's running statistics, and every other buffer, are those of the first pass. Both passes draw the
    same random numbers, so that dropout and stochastic depth leave out the same.
    """

    def __init__(self, model: nn.Module, rho: float) -> None:
        self._model = model
        self._rho = rho

    def __call__(self, backward: Callable[[], Found]) -> Found:
        """Call `backward`, which adds to the gradients, at w and again uphill. Returns what it did at w."""
        device = next(self._model.parameters()).device
        drawn = _random_states(device)
        found = backward()
        trained: list[Tensor] = [p for p in self._model.parameters() if p.grad is not None]
        if not trained:  # stochastic depth has dropped them all
            return found
        before = [p.detach().clone() for p in trained]
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        climb(trained, self._rho)
        self._model.zero_grad(set_to_none=True)
        _restore_random_states(device, drawn)
        backward()
        with torch.no_grad():
            torch._foreach_copy_(trained, before)
            for buffer, value in buffers:
                buffer.copy_(value)
        return found


@torch.no_grad()
def climb(parameters: Sequence[Tensor], rho: float) -> None:
    """Move `parameters` by `rho` along their gradient, whose length is taken over all of them."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    step = rho / (length + 1e-12)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.addcmul_(gradient, step.to(parameter.dtype))


def _random_states(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The host's generator, which stochastic depth draws from, and the device's."""
    own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
    return torch.get_rng_state(), own


def _restore_random_states(device: torch.device, states: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.get_device_module(device).set_rng_state(states[1])
