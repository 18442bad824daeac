"""The sizes of a network's layers as plain JSON, and a network cut down to given sizes.

A pruned network has the layers of the one that its recipe describes, with fewer channels. Its weights alone
do not say how to build it; its sizes do:

    {"conv1": {"in_channels": 3, "out_channels": 41, "groups": 1}, "bn1": {"num_features": 41}, …}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tinlab.errors import TinlabError
from tinlab.models.fits import REFUSALS, outline_of, reason

Structure = dict[str, dict[str, int]]
"""Name of a layer -> name of its attribute -> its size."""

SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    _BatchNorm: ("num_features",),
}
"""The kinds of layers whose sizes can change, with the attributes that hold them."""


def structure_of(model: nn.Module) -> Structure:
    """The sizes of all of `model`'s convolutions, fully connected layers and batch norms."""
    return {
        name: {size: getattr(layer, size) for size in sizes}
        for name, layer in model.named_modules()
        if (sizes := sizes_of(layer))
    }


def sizes_of(layer: nn.Module) -> tuple[str, ...]:
    """The attributes that hold the sizes of `layer`, or none where it is of another kind."""
    return next((sizes for kind, sizes in SIZES.items() if isinstance(layer, kind)), ())


def smaller(model: nn.Module, structure: object, *, image_size: int = 64) -> nn.Module:
    """`model`, as `tinlab.models.build` made it, with its layers cut down to the sizes in `structure`.

    `structure` is what `structure_of` gave for a network that was pruned, perhaps read from a file. The
    layers are changed in place, and what changes its shape is filled with zeros (variances with ones): load
    the weights then. What holds the old parameters, such as an optimizer or an average, is to be made
    afterwards. `model` may be on any device, the meta device among them.

    Raises TinlabError, and leaves `model` as it is, where `structure` does not fit.
    """
    if not _is_structure(structure):
        raise _misfit("it is not a table of layers with their sizes")
    own = structure_of(model)
    if own.keys() != structure.keys():
        stray = min(own.keys() ^ structure.keys())
        raise _misfit(f"'{stray}' is in {'the network' if stray in own else 'the structure'} alone")
    for name, sizes in structure.items():
        _check_sizes(name, sizes, own[name])
    try:
        shape = outline_of(model)
        logits = _logits(shape, image_size)
        _resize(shape, structure)
        found = _logits(shape, image_size)
    except REFUSALS as error:
        raise _misfit(f"images do not pass through it ({reason(error)})") from error
    if found != logits:
        raise _misfit(f"it gives {found[-1]} scores and not {logits[-1]}")
    _resize(model, structure)
    return model


def _is_structure(value: object) -> TypeGuard[Structure]:
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and isinstance(sizes, dict)
        and all(type(size) is int and size > 0 for size in sizes.values())
        for name, sizes in value.items()
    )


def _check_sizes(name: str, sizes: Mapping[str, int], own: Mapping[str, int]) -> None:
    if sizes.keys() != own.keys():
        raise _misfit(f"'{name}' has the sizes {', '.join(own)} and not {', '.join(sizes) or 'none'}")
    for key, size in sizes.items():
        if size > own[key]:
            raise _misfit(f"{key} of '{name}' is {size}, and in the network {own[key]}")
    groups = sizes.get("groups", 1)
    if any(size % groups for size in sizes.values()):
        raise _misfit(f"the {groups} groups of '{name}' do not divide its channels")


def _misfit(why: str) -> TinlabError:
    return TinlabError(
        f"the pruned structure does not fit the network: {why}; it is damaged or belongs to another recipe"
    )


@torch.no_grad()
def _logits(model: nn.Module, image_size: int) -> torch.Size:
    logits = model.eval()(torch.zeros(2, 3, image_size, image_size, device="meta"))
    return logits.shape


def _resize(model: nn.Module, structure: Structure) -> None:
    for name, sizes in structure.items():
        layer = model.get_submodule(name)
        for key, size in sizes.items():
            setattr(layer, key, size)
        for key, shape in _shapes(layer).items():
            old = getattr(layer, key)
            if old is None or old.shape == shape:
                continue
            fill: Callable[..., Tensor] = torch.ones if key == "running_var" else torch.zeros
            new: Any = fill(shape, dtype=old.dtype, device=old.device)
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
            setattr(layer, key, new)


def _shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of parameters and buffers that go with the layer's sizes."""
    if isinstance(layer, nn.Conv2d):
        inputs = layer.in_channels // layer.groups
        return {"weight": (layer.out_channels, inputs, *layer.kernel_size), "bias": (layer.out_channels,)}
    if isinstance(layer, nn.Linear):
        return {"weight": (layer.out_features, layer.in_features), "bias": (layer.out_features,)}
    assert isinstance(layer, _BatchNorm)
    return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (layer.num_features,))
