"""Residual networks: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, and
the orders of layers in "Identity Mappings in Deep Residual Networks", ECCV 2016.

Stated: table 1's stages of basic blocks (18, 34) or bottlenecks (50, 101, 152), each stage at half the
resolution and twice the channels of the one before; global average pooling and one fully connected layer;
convolutions without bias; weights drawn as in He et al. 2015. The five orders of figure 4 of the second
paper; for the pre-activation kinds (d) and (e), its appendix: the first unit has no activation of its own,
since the one after the stem stands before both paths, and one more activation follows the last unit.

Inferred: where a unit of kind (d) or (e) changes the shape, both paths start from the activated input, as in
the code that its authors published.

Assumed: in (b), where batch norm follows the addition, a projection has no batch norm of its own, as the
other summand has none.

Changed: a bottleneck's stride is on its 3x3 convolution and not on the first 1x1 (as torchvision has it; it
looks at every activation). He et al. draw weights by fan in; here by fan out, as torchvision and the authors'
own code do.

Added: the width of the first stage; stems for small images; a shortcut that averages before it projects (He
et al. 2019, "Bag of Tricks", ResNet-D); a last batch norm that starts at zero (Goyal et al. 2017);
stochastic depth (tinlab.models.depth); dropout before the classifier.

Names of layers are torchvision's, so that weights go both ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models.activation import activation
from tinlab.models.depth import Survival, survival_probabilities
from tinlab.models.network import Network


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the resolution at stride 1, without bias: a batch norm follows."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Unit(nn.Module):
    """A residual unit: (B, inputs, H, W) -> (B, outputs, H/stride, W/stride).

    Its convolutions are conv1, conv2, … and its batch norms bn1, bn2, …; in the pre-activation order (e) a
    batch norm stands before its convolution, in all others after it.
    """

    expansion: int
    bn1: nn.Module

    def __init__(
        self, inputs: int, width: int, stride: int, knobs: recipe.Model, survival: float, first: bool
    ) -> None:
        super().__init__()
        order = knobs.block_order
        assert order is not None
        self.order = order
        self.first = first
        outputs = width * self.expansion
        shapes = self.shapes(inputs, width, stride)
        for place, (before, after, size, step) in enumerate(shapes, start=1):
            if order == "e":
                norm = nn.Identity() if first and place == 1 else nn.BatchNorm2d(before)
                self.add_module(f"bn{place}", norm)
            self.add_module(f"conv{place}", convolution(before, after, size, step))
            if order != "e":
                self.add_module(f"bn{place}", nn.BatchNorm2d(after))
        # In (d) the activation comes first, where its input is also what an identity shortcut carries on.
        self.act = activation(knobs.activation, inplace=order != "d")
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            assert knobs.shortcut is not None
            self.downsample = projection(inputs, outputs, stride, knobs.shortcut, norm=order in "acd")
        self.survival = Survival(survival)

    @staticmethod
    def shapes(inputs: int, width: int, stride: int) -> list[tuple[int, int, int, int]]:
        """(inputs, outputs, side in pixels, stride) of each convolution."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        ready = x
        if not self.first and self.order == "d":
            ready = self.act(x)
        if not self.first and self.order == "e":
            ready = self.act(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(ready)
        if self.survival.runs():
            y = self.survival(self.branch(ready)) + shortcut
        elif self.order == "a" and self.downsample is None:
            return x  # the identity: activated already by the unit before
        else:
            y = shortcut
        if self.order == "b":
            y = self.last_bn(y)
        return self.act(y) if self.order in "ab" else y

    def branch(self, x: Tensor) -> Tensor:
        """What is added to the shortcut; `x` is activated already where the order asks for it."""
        layers = list(self.layers())
        for place, (conv, norm) in enumerate(layers):
            first, last = place == 0, place == len(layers) - 1
            if self.order == "e":
                x = conv(x if first else self.act(norm(x)))
                continue
            x = conv(x)
            if not (last and self.order == "b"):
                x = norm(x)
            if not last or self.order == "c":
                x = self.act(x)
        return x

    def layers(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """The pairs of convolution and batch norm."""
        for place in range(1, len(self.shapes(1, 1, 1)) + 1):
            yield getattr(self, f"conv{place}"), getattr(self, f"bn{place}")

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """The batch norm after the last convolution, of orders (a) to (d)."""
        *_, (_, norm) = self.layers()
        assert isinstance(norm, nn.BatchNorm2d)
        return norm


class BasicUnit(Unit):
    """Two 3x3 convolutions."""

    expansion = 1

    @staticmethod
    def shapes(inputs: int, width: int, stride: int) -> list[tuple[int, int, int, int]]:
        return [(inputs, width, 3, stride), (width, width, 3, 1)]


class Bottleneck(Unit):
    """1x1 down to `width` channels, 3x3, and 1x1 up to four times as many."""

    expansion = 4

    @staticmethod
    def shapes(inputs: int, width: int, stride: int) -> list[tuple[int, int, int, int]]:
        return [(inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]


def projection(inputs: int, outputs: int, stride: int, kind: str, *, norm: bool) -> nn.Sequential:
    """A shortcut that changes resolution and channels: `projection` or `average_pool`."""
    layers: list[nn.Module] = []
    if kind == "average_pool" and stride != 1:
        layers.append(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))
        stride = 1
    layers.append(convolution(inputs, outputs, 1, stride))
    if norm:
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers)


STEMS = {"imagenet": (7, 2, 3), "small": (3, 1, 1), "patch": (3, 2, 1), "patch2x2": (2, 2, 0)}
"""Name -> side, stride and padding of the first convolution. `imagenet` divides the resolution by 4, with its
max pool, the patches by 2, and `small` leaves it."""


class ResNet(nn.Module):
    """A stem, a stage for each number in `blocks`, a pool and a classifier: (B, 3, H, W) -> (B, classes)."""

    def __init__(self, unit: type[Unit], blocks: tuple[int, ...], knobs: recipe.Model, classes: int) -> None:
        super().__init__()
        assert knobs.width is not None
        assert knobs.stem is not None
        assert knobs.final_survival is not None
        assert knobs.dropout is not None
        width, order = knobs.width, knobs.block_order
        size, stride, padding = STEMS[knobs.stem]
        self.conv1 = nn.Conv2d(3, width, size, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act = activation(knobs.activation)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if knobs.stem == "imagenet" else nn.Identity()
        survival = iter(survival_probabilities(sum(blocks), knobs.final_survival))
        inputs, stages = width, []
        for stage, count in enumerate(blocks):
            units: list[nn.Module] = []
            for place in range(count):
                stride = 2 if stage > 0 and place == 0 else 1
                first = stage == 0 and place == 0
                units.append(unit(inputs, width * 2**stage, stride, knobs, next(survival), first))
                inputs = width * 2**stage * unit.expansion
            stages.append(nn.Sequential(*units))
            self.add_module(f"layer{stage + 1}", stages[-1])
        self.last_bn = nn.BatchNorm2d(inputs) if order == "e" else nn.Identity()
        ends = order in ("d", "e")  # in (d) with the last block's own output, which a penalty may be on
        self.last_act = activation(knobs.activation, inplace=order == "e") if ends else nn.Identity()
        self.dropout = nn.Dropout(knobs.dropout[0]) if knobs.dropout[0] else nn.Identity()
        self.fc = nn.Linear(inputs, classes)
        self.stages = len(blocks)
        self._initialise(zero_last_bn=bool(knobs.zero_last_bn))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        x = self.last_act(self.last_bn(x))  # (B, channels, H, W); H = 2 at 64 pixels, imagenet stem
        x = x.mean(dim=(2, 3))  # (B, channels)
        return self.fc(self.dropout(x))

    @torch.no_grad()
    def _initialise(self, *, zero_last_bn: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_last_bn and isinstance(module, Unit):
                nn.init.zeros_(module.last_bn.weight)


def _build(unit: type[Unit], blocks: tuple[int, ...], knobs: recipe.Model, classes: int) -> ResNet:
    if knobs.zero_last_bn and knobs.block_order in ("b", "e"):
        raise TinlabError(
            f"model.zero_last_bn: a block of order ({knobs.block_order}) ends its branch without a "
            f"batch norm; take order a, c or d"
        )
    return ResNet(unit, blocks, knobs, classes)


def network(unit: type[Unit], blocks: tuple[int, ...], summary: str, source: str, **own: object) -> Network:
    """An entry of the registry: `own` are the values that differ from He et al.'s."""
    options = {
        "width": 64,
        "stem": "imagenet",
        "block_order": "a",
        "shortcut": "projection",
        "activation": "relu",
        "final_survival": 1.0,
        "dropout": (0.0,),
        "zero_last_bn": False,
    }
    return Network(
        build=partial(_build, unit, blocks),
        summary=summary,
        source=source,
        classifier="fc",
        options={**options, **own},
    )


def _standard(depth: int, unit: type[Unit], blocks: tuple[int, ...]) -> Network:
    kind = "basic blocks" if unit is BasicUnit else "bottlenecks"
    summary = f"ResNet-{depth}: {', '.join(map(str, blocks))} {kind}"
    entry = network(unit, blocks, summary, "He et al. 2016, Deep Residual Learning, table 1")
    return replace(entry, imagenet=f"resnet{depth}")


NETWORKS = {
    "resnet18": _standard(18, BasicUnit, (2, 2, 2, 2)),
    "resnet34": _standard(34, BasicUnit, (3, 4, 6, 3)),
    "resnet50": _standard(50, Bottleneck, (3, 4, 6, 3)),
    "resnet101": _standard(101, Bottleneck, (3, 4, 23, 3)),
    "resnet152": _standard(152, Bottleneck, (3, 8, 36, 3)),
}
