"""What a network computes on the way, found by letting two images through: its convolutions in the order in
which they run, its classifier, and the feature map that the classifier's decision rests on.

That map is the last output with a place for each part of the image, before the last layer that gives as many
values as there are classes, through which a change at some place reaches the scores. It is recognised by its
shape, for square images: (B, C, H, W), (B, H, W, C) as in Swin or ConvNeXt, or (B, tokens, C) as in a vision
transformer, with as many tokens as the patches before it had places, after up to MOST_EXTRA_TOKENS others.
What is inside a module called attention is left out: heads and windows have such shapes too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tinlab.errors import TinlabError
from tinlab.models.layers import named_layers

MOST_EXTRA_TOKENS = 8
Layout = Literal["channels_first", "channels_last", "tokens"]


@dataclass(frozen=True)
class FeatureMap:
    """Layer `layer`'s output: `channels` values at each of `height` x `width` places."""

    layer: str
    layout: Layout
    channels: int
    height: int
    width: int

    def channels_first(self, output: Tensor) -> Tensor:
        """The layer's output as (B, C, H, W)."""
        if self.layout == "channels_first":
            return output
        if self.layout == "channels_last":
            return output.permute(0, 3, 1, 2)
        places = output[:, -self.height * self.width :]  # (B, H W, C)
        return places.transpose(1, 2).unflatten(2, (self.height, self.width))


@dataclass(frozen=True)
class Anatomy:
    """`convolutions` are the names of all convolutions in the order in which they first run; `classifier` is
    the last layer, None where none gives one value a class; `feature_map` is None where there is none of more
    than one place."""

    convolutions: tuple[str, ...]
    classifier: str | None
    feature_map: FeatureMap | None


@contextmanager
def at_rest(model: nn.Module) -> Iterator[nn.Module]:
    """The eager module within `model` in evaluation mode, with gradients and in float32 whatever is around.

    Its parameters collect no gradients, which saves time. All is as it was afterwards.
    """
    eager: nn.Module = getattr(model, "_orig_mod", model)
    modes = [(module, module.training) for module in eager.modules()]
    learning = [parameter for parameter in eager.parameters() if parameter.requires_grad]
    device = device_of(eager)
    try:
        eager.train(False)
        for parameter in learning:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            yield eager
    finally:
        for parameter in learning:
            parameter.requires_grad_()
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def anatomy(model: nn.Module, side: int) -> Anatomy:
    """What `model` consists of for images of `side` pixels a side."""
    with at_rest(model) as eager:
        outputs, scores = _run(eager, side)
        classes = scores.shape[1]
        last = [
            place
            for place, (_, module, output) in enumerate(outputs)
            if isinstance(module, nn.Linear | nn.Conv2d)
            and output.shape[-1 if isinstance(module, nn.Linear) else 1] == classes
        ]
        return Anatomy(
            convolutions=tuple(
                dict.fromkeys(name for name, module, _ in outputs if isinstance(module, nn.Conv2d))
            ),
            classifier=outputs[last[-1]][0] if last else None,
            feature_map=_last_map(eager, outputs[: last[-1]] if last else outputs, scores),
        )


def feature_map(model: nn.Module, side: int, layer: str | None = None) -> FeatureMap:
    """The map of layer `layer`, by default the one that the classifier's decision rests on.

    Raises TinlabError where there is no such layer, or its output is no map.
    """
    if layer is None:
        found = anatomy(model, side).feature_map
        if found is None:
            raise TinlabError(
                f"{type(model).__name__} has no feature map of more than one place at {side}x{side}; "
                "take another method, or larger images"
            )
        return found
    with at_rest(model) as eager:
        named_layers(eager, layer, field="layer")
        outputs, _ = _run(eager, side)
        grid = 0
        for name, _, output in outputs:
            made = _as_map(name, output, grid)
            if made is not None and output.ndim == 4:
                grid = made.height
            if name == layer and made is not None:
                return made
    raise TinlabError(f"layer: '{layer}' gives no feature map; take a convolution or a block of them")


def _run(model: nn.Module, side: int) -> tuple[list[tuple[str, nn.Module, Tensor]], Tensor]:
    """Every call of a module that gives a tensor, in order, and the scores, for two images of noise."""
    calls: list[tuple[str, nn.Module, Tensor]] = []

    def hook(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def keep(module: nn.Module, given: object, output: object) -> None:
            if isinstance(output, Tensor):
                calls.append((name, module, output))

        return module.register_forward_hook(keep)

    device = device_of(model)
    noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    handles = [hook(name, module) for name, module in model.named_modules() if name]
    try:
        scores = model(noise.to(device).requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    return calls, scores


def _last_map(
    model: nn.Module, outputs: list[tuple[str, nn.Module, Tensor]], scores: Tensor
) -> FeatureMap | None:
    hidden = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if name and re.search("attention|attn", type(module).__name__.lower())
    )
    final = {
        name: place for place, (name, _, _) in enumerate(outputs)
    }  # of a layer called twice the last call
    grid = 0
    found: list[tuple[FeatureMap, Tensor]] = []
    for place, (name, _, output) in enumerate(outputs):
        if name.startswith(hidden) or not output.requires_grad:
            continue
        made = _as_map(name, output, grid)
        if made is None:
            continue
        if output.ndim == 4:
            grid = made.height
        if final[name] == place:
            found.append((made, output))
    if not found:
        return None
    weights = torch.randn(scores.shape[1], generator=torch.Generator().manual_seed(0)).to(scores)
    gradients = torch.autograd.grad((scores @ weights).sum(), [o for _, o in found], allow_unused=True)
    for (made, _), gradient in zip(reversed(found), reversed(gradients), strict=True):
        if gradient is not None and bool(made.channels_first(gradient).any()):
            return made
    return found[-1][0]  # of a network whose scores do not depend on anything yet


def _as_map(name: str, output: Tensor, grid: int) -> FeatureMap | None:
    """`output` of two images as a square map; `grid` is the side of the last one before it."""
    shape = tuple(output.shape)
    if len(shape) == 4 and shape[0] == 2:
        if shape[2] == shape[3] > 1:
            return FeatureMap(name, "channels_first", shape[1], shape[2], shape[3])
        if shape[1] == shape[2] > 1:
            return FeatureMap(name, "channels_last", shape[3], shape[1], shape[2])
    if len(shape) == 3 and shape[0] == 2 and grid > 1:
        smaller = math.isqrt(shape[1])  # of tokens that were merged on the way, as in LeViT
        side = smaller if 1 < smaller < grid and smaller**2 == shape[1] else grid
        if 0 <= shape[1] - side**2 <= MOST_EXTRA_TOKENS:
            return FeatureMap(name, "tokens", shape[2], side, side)
    return None
