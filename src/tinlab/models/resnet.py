"""Residual networks: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.

As in the paper's table 1: four stages of basic blocks, each stage at half the resolution and twice the
channels of the one before, global average pooling and one linear layer; convolutions without bias, batch norm
after each, ReLU after the addition; weights drawn as in He et al. 2015 (fan out).

What the paper does not have: the width of the first stage is free; stems for small images; a shortcut that
averages before it projects, so that no activation is passed over (He et al. 2019, "Bag of Tricks", ResNet-D);
the last batch norm of a block may start at zero (Goyal et al. 2017).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tinlab import recipe


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the resolution at stride 1, without bias: a batch norm follows."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = projection(inputs, outputs, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


def projection(inputs: int, outputs: int, stride: int, kind: str) -> nn.Sequential:
    """A shortcut that changes resolution and channels: `projection` or `average_pool`."""
    if kind == "average_pool" and stride != 1:
        pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
        return nn.Sequential(pool, convolution(inputs, outputs, 1), nn.BatchNorm2d(outputs))
    return nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def stem(kind: str, width: int) -> nn.Sequential:
    """The first layers: `imagenet` divides the resolution by 4, `patch` by 2, `small` leaves it."""
    size, stride = {"imagenet": (7, 2), "small": (3, 1), "patch": (3, 2)}[kind]
    layers: list[nn.Module] = [
        convolution(3, width, size, stride),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    if kind == "imagenet":
        layers.append(nn.MaxPool2d(3, 2, padding=1))
    return nn.Sequential(*layers)


class ResNet(nn.Module):
    """A stem, four stages of `blocks` basic blocks, a pool and a classifier: (B, 3, H, W) -> (B, classes)."""

    def __init__(self, blocks: tuple[int, int, int, int], knobs: recipe.Model, classes: int) -> None:
        super().__init__()
        self.stem = stem(knobs.stem, knobs.width)
        stages: list[nn.Module] = []
        channels = knobs.width
        for stage, count in enumerate(blocks):
            outputs = knobs.width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(channels, outputs, stride, knobs.shortcut))
                channels = outputs
        self.blocks = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, classes)
        self._initialise(knobs.zero_last_bn)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.blocks(x)  # (B, 8 width, H/8 of the stem's, W/8 of the stem's)
        x = x.mean(dim=(2, 3))  # (B, 8 width)
        return self.classifier(x)

    @torch.no_grad()
    def _initialise(self, zero_last_bn: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_last_bn and isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)


def resnet18(knobs: recipe.Model, classes: int) -> ResNet:
    """ResNet-18: 2, 2, 2, 2 basic blocks."""
    return ResNet((2, 2, 2, 2), knobs, classes)


def resnet34(knobs: recipe.Model, classes: int) -> ResNet:
    """ResNet-34: 3, 4, 6, 3 basic blocks."""
    return ResNet((3, 4, 6, 3), knobs, classes)
