"""Activations by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

ACTIVATIONS: dict[str, Callable[[bool], nn.Module]] = {
    "relu": lambda inplace: nn.ReLU(inplace=inplace),
    "elu": lambda inplace: nn.ELU(inplace=inplace),
    "leaky_relu": lambda inplace: nn.LeakyReLU(0.01, inplace=inplace),
    "gelu": lambda inplace: nn.GELU(),
    "silu": lambda inplace: nn.SiLU(inplace=inplace),
    "selu": lambda inplace: nn.SELU(inplace=inplace),
}
"""Name -> a function that makes the layer, given whether it may overwrite its input."""


def activation(name: str | None, *, inplace: bool = True) -> nn.Module:
    """The activation called `name`, one of recipe.Model.activation's.

    With `inplace` it may overwrite its input, which then must not be needed elsewhere.
    """
    assert name is not None, "resolved knobs name it"
    return ACTIVATIONS[name](inplace)
