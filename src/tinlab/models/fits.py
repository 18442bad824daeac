"""Whether a network takes images of the sizes in use, found out from shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from tinlab.errors import TinlabError

# What networks raise at images that are too small, or that their patches and windows do not divide.
REFUSALS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError)


def outline(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes, on the meta device: shapes without values. torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build()
        except RuntimeError:
            # Some constructors compute their widths with tensors, which need values.
            with torch.device("cpu"):
                return build().to("meta")


def outline_of(model: nn.Module) -> nn.Module:
    """A copy of `model` on the meta device: shapes without values, at no cost in memory."""
    memo: dict[int, Any] = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    return deepcopy(model, memo)


def fits(name: str, build: Callable[[], nn.Module], sizes: Iterable[int], classes: int) -> None:
    """Raise TinlabError where the network that `build` makes does not turn training images of each of `sizes`
    (side in pixels) into logits: (2, 3, size, size) -> (2, classes).

    Layers run on the meta device, in training mode. What fails there is tried with values on the CPU, since a
    few operations need some. torch's generator is left as it was.
    """
    shape: nn.Module | None = None
    for size in sorted(set(sizes)):
        try:
            shape = outline(build) if shape is None else shape
            logits = _forward(shape, size, "meta")
        except REFUSALS:
            try:
                with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                    logits = _forward(build(), size, "cpu")
            except REFUSALS as error:
                raise TinlabError(
                    f"model.name: {name} cannot take {size}x{size} images ({reason(error)}); "
                    "take another network, other data.image_sizes or another data.measured_size"
                ) from error
        if not isinstance(logits, Tensor):
            raise TinlabError(
                f"model.name: {name} gives a {type(logits).__name__} in training, and logits are needed; "
                "take another network"
            )
        if logits.shape != (2, classes):
            raise TinlabError(
                f"model.name: {name} gives {tuple(logits.shape)} for 2 images of {size}x{size} and {classes} "
                f"classes, and (2, {classes}) is needed; take another network"
            )


def takes_single_images(name: str, build: Callable[[], nn.Module], size: int) -> None:
    """Raise TinlabError where the network that `build` makes cannot be trained on one image of `size` pixels
    a side at a time: where a batch norm is left with one value a channel."""
    try:
        _forward(outline(build), size, "meta", images=1)
    except ValueError as error:
        raise TinlabError(
            f"schedule.batch_size: {name} cannot be trained on one {size}x{size} image at a time "
            f"({reason(error)}); take a larger schedule.batch_size, or a smaller schedule.accumulate"
        ) from error


def reason(error: Exception) -> str:
    """The first sentence of what `error` says, on one line."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said.split(". ")[0].rstrip(".")


@torch.no_grad()
def _forward(model: nn.Module, size: int, device: str, images: int = 2) -> object:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return model.train()(torch.zeros(images, 3, size, size))
