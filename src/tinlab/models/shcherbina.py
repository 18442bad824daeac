"""Shcherbina, "Tiny ImageNet Challenge", CS231n report, Stanford.

Her VGG-16 is tinlab.models.standard's `vgg16`. "Her code" below is annashcherbina/cs231n_project on GitHub,
which the report names as its source; where the two differ, the report is followed.

convnet9, section 2.2.1. Stated: the network of the course's assignment 3, its parameters unchanged; batch
norm with epsilon 1e-6 and Keras' momentum 0.9, which is torch's 0.1; dropout of 0.25 after the third and the
sixth convolution and of 0.5 "after each of the fully-connected layers". From the assignment: nine
convolutions of 64, 64, 128, 128, 256, 256, 512, 512 and 1024 channels, 5x5 and then 3x3, of which the first,
third, … ninth halve the grid; a fully connected layer of 512; each followed by batch norm and ReLU; biases
everywhere. From her code: dropout stands after the ReLU, and of the fully connected layers after the hidden
one alone. Her code's last version has one more dropout, of 0.25 after the ninth convolution, which the report
does not mention and which is left out.

keras_vgg, section 2.2.2. Stated: the "VGG-like" example of Keras' documentation with dropout of 0.25 after
the second and the fourth convolution, and of 0.5 after the first fully connected layer. From that example:
3x3 convolutions of 32, 32, 64 and 64 channels without padding, each with ReLU; a 2x2 max pool after each
pair, before the dropout; a fully connected layer of 256. Her code's last version has 0.5 at the second place.

keras_alexnet, section 2.2.4. Stated: AlexNet in Keras with four convolutions, the first of 64 11x11 filters,
also tried with 9x9 and 7x7; far wider than the others; it did not fit into memory, with any of the three.
From her code: the other convolutions, 128 of 7x7, 192 of 3x3, and 256 of 3x3 (which its last version leaves
out); none padded, all at stride 1, each with batch norm (epsilon 1e-6) and ReLU; fully connected layers of
4096 and 4096, likewise with batch norm and ReLU; no dropout. Inferred: 3x3 max pools at stride 1, as in its
last version. At stride 3, as in its first, nothing of a 64x64 image would be left after the third pool; at
stride 1 a grid of 36x36 is, the first fully connected layer alone has 1.36 billion weights (5.4 GB in
float32, and as much again for their gradients), and smaller first filters only add to them: that is the
failure she describes. Changed: no batch norm of the class scores, which her code has, so that the classifier
is the last layer.

Weights are drawn as Keras drew them: uniformly between +-sqrt(6 / (fan in + fan out)) (Glorot and Bengio
2010), with biases of zero. Inferred: Keras 0.3, since her code makes the calls of that version (the report
says 1.3). There the fan out of a convolution is its number of filters, not yet times the filter's area (pull
request 2252 of keras-team/keras, 2016); its weights were larger for it, nearly He et al.'s.

Added: the width; the activation; an average pool to the grid of 64x64 images before the first fully connected
layer, for images of other sizes.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from tinlab import recipe
from tinlab.models.network import Network
from tinlab.models.plain import Layers

SOURCE = "Shcherbina, Tiny ImageNet Challenge, CS231n report"
EPSILON = 1e-6
"""Of Keras' batch norm at the time. Its momentum of 0.9 is what torch calls 0.1, its default."""


def _convnet9(knobs: recipe.Model, classes: int) -> nn.Module:
    net = Layers(knobs, first=64)
    for place, channels in enumerate((64, 64, 128, 128, 256, 256, 512, 512, 1024), start=1):
        net.conv(channels, 5 if place == 1 else 3, stride=2 if place % 2 == 1 else 1)
        net.norm(EPSILON)
        net.act()
        if place in (3, 6):
            net.dropout()
    net.flatten()  # (B, 2 * 2 * 1024)
    net.fc(512)
    net.norm(EPSILON)
    net.act()
    net.dropout()
    return _drawn_by_keras(net.network(classes))


def _vgg(knobs: recipe.Model, classes: int) -> nn.Module:
    net = Layers(knobs, first=32)
    for channels in (32, 64):
        for _ in range(2):
            net.conv(channels, 3, padding=0)
            net.act()
        net.pool(2, 2)
        net.dropout()
    net.flatten()  # (B, 13 * 13 * 64)
    net.fc(256)
    net.act()
    net.dropout()
    return _drawn_by_keras(net.network(classes))


def _alexnet(knobs: recipe.Model, classes: int) -> nn.Module:
    assert knobs.first_kernel is not None
    net = Layers(knobs, first=64)
    for channels, size in ((64, knobs.first_kernel), (128, 7), (192, 3), (256, 3)):
        net.conv(channels, size, padding=0)
        net.norm(EPSILON)
        net.act()
        net.pool(3, 1)
    net.flatten()  # (B, 36 * 36 * 256) with 11x11 filters
    for _ in range(2):
        net.fc(4096)
        net.norm(EPSILON)
        net.act()
    return _drawn_by_keras(net.network(classes))


@torch.no_grad()
def _drawn_by_keras(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            outputs, fan_in = module.weight.flatten(1).shape
            bound = math.sqrt(6 / (fan_in + outputs))
            nn.init.uniform_(module.weight, -bound, bound)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return model


NETWORKS = {
    "convnet9": Network(
        build=_convnet9,
        summary="Nine-layer ConvNet: nine convolutions with batch norm, a fully connected layer of 512",
        source=f"{SOURCE}, section 2.2.1; CS231n, assignment 3",
        classifier="classifier",
        options={"width": 64, "activation": "relu", "dropout": (0.25, 0.25, 0.5)},
    ),
    "keras_vgg": Network(
        build=_vgg,
        summary="Keras' VGG-like example: two pairs of 3x3 convolutions, a fully connected layer of 256",
        source=f"{SOURCE}, section 2.2.2; Keras' documentation of 2016",
        classifier="classifier",
        options={"width": 32, "activation": "relu", "dropout": (0.25, 0.25, 0.5)},
    ),
    "keras_alexnet": Network(
        build=_alexnet,
        summary="AlexNet in Keras: four wide convolutions at stride 1, two fully connected layers of 4096",
        source=f"{SOURCE}, section 2.2.4, and its code",
        classifier="classifier",
        options={"width": 64, "first_kernel": 11, "activation": "relu"},
    ),
}
