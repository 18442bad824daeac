"""What a network costs: parameters, multiply-adds, memory, and the table of its layers.

The network is built and run on torch's meta device, where tensors have shapes and no values, so that the
largest one takes a moment and no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tinlab import models, recipe
from tinlab.errors import TinlabError
from tinlab.models.depth import KINDS, expected_blocks, residual_blocks
from tinlab.models.fits import REFUSALS, outline_of, reason

BATCH = 2
"""Images in the batch that is passed through; every count is then divided by it."""


@dataclass(frozen=True)
class Layer:
    """A layer without layers of its own. `output` is the shape for one image: (C, H, W), or (C,)."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Summary:
    """Costs of one image of `image_size` pixels a side.

    `multiply_adds` are those of the forward pass, in convolutions, matrix products and attention, as
    torch.utils.flop_counter counts them. `activation_bytes` is what a training step keeps for its backward
    pass, two bytes a value, weights left out. `blocks` are residual blocks, of which `expected_blocks` run in
    a training step on average.
    """

    image_size: int
    parameters: int
    multiply_adds: int
    activation_bytes: int
    blocks: int
    expected_blocks: float
    layers: tuple[Layer, ...]


def summarise(knobs: recipe.Model, classes: int, image_size: int) -> Summary:
    """Count what the network that `knobs` describe costs.

    Raises TinlabError as `models.build` does, and where the network cannot take images of that size.
    """
    models.check(knobs, classes, image_size=image_size)
    return summarise_network(models.sketch(knobs, classes, image_size=image_size), image_size, knobs.name)


def summarise_network(model: nn.Module, image_size: int, name: str) -> Summary:
    """Count what `model` costs, which is called `name` in errors: (B, 3, image_size, image_size) -> (B,
    classes). It is left as it is, whatever device it is on.

    Raises TinlabError where it cannot be counted from shapes.
    """
    model = outline_of(model).to(torch.bfloat16)
    images = torch.empty(BATCH, 3, image_size, image_size, dtype=torch.bfloat16, device="meta")
    blocks = residual_blocks(model)
    expected = expected_blocks(model)
    model.eval()  # every block runs, and a network that ends in 1x1 needs no second image to normalise by
    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()._cdata
        if place not in own:
            kept[place] = tensor
        return tensor

    counter = FlopCounterMode(display=False)
    with _shapes(model) as shapes, counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        try:
            model(images)
        except REFUSALS as error:
            raise TinlabError(f"{name} cannot be counted from shapes alone ({reason(error)})") from error
    return Summary(
        image_size=image_size,
        parameters=sum(p.numel() for p in model.parameters()),
        multiply_adds=counter.get_total_flops() // (2 * BATCH),
        activation_bytes=sum(t.untyped_storage().nbytes() for t in kept.values()) // BATCH,
        blocks=blocks,
        expected_blocks=expected,
        layers=tuple(_layers(model, shapes, counter.get_flop_counts())),
    )


@contextmanager
def _shapes(model: nn.Module) -> Iterator[dict[str, tuple[int, ...]]]:
    """While entered, the shape of what each layer gives is noted under its name, in the order of calls."""
    found: dict[str, tuple[int, ...]] = {}
    hooks = []
    for name, layer in model.named_modules():
        if any(True for _ in layer.children()):
            continue

        def note(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor):
                found.setdefault(name, tuple(output.shape))

        hooks.append(layer.register_forward_hook(note))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _layers(
    model: nn.Module, shapes: dict[str, tuple[int, ...]], flops: dict[str, dict[Any, int]]
) -> Iterator[Layer]:
    layers = dict(model.named_modules())
    root = type(model).__name__
    for name, shape in shapes.items():
        layer = layers[name]
        if isinstance(layer, (nn.Identity, *KINDS)):
            continue
        yield Layer(
            name=name,
            kind=_kind(layer),
            output=shape[1:],
            parameters=sum(p.numel() for p in layer.parameters()),
            multiply_adds=sum(flops.get(f"{root}.{name}", {}).values()) // (2 * BATCH),
        )


def _kind(layer: nn.Module) -> str:
    """What kind of layer it is, with what one wants to see at a glance: side, stride, rate."""
    name = type(layer).__name__.removesuffix("2d")
    if isinstance(layer, nn.Conv2d):
        side, stride, groups = layer.kernel_size, layer.stride, layer.groups
        text = f"{name} {side[0]}x{side[1]}" + (f"/{stride[0]}" if stride[0] > 1 else "")
        return text + (f", {groups} groups" if groups > 1 else "")
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        return f"{name} {_side(layer.kernel_size)}/{_side(layer.stride)}"
    if isinstance(layer, nn.Dropout):
        return f"{name} {layer.p:g}"
    return name


def _side(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value
