"""Yu, "Convolutional Neural Networks for Tiny ImageNet Classification", CS231n, Stanford (a poster, undated).

Its two other networks are tinlab.models.standard's `googlenet` (its "Inception") and `squeezenet`.

yu_resnet20. Stated, in a figure: 7x7 convolution of 64 channels at stride 2 with batch norm and ReLU; 3x3/2
max pool; bottlenecks of 64-64-256, 128-128-512 and 256-256-1024 channels; average pool; fully connected
layer. Inferred: two bottlenecks of each kind, since 1 + 2 x 3 x 3 + 1 is the 20 layers of its name. Assumed:
the second and third kind halve the resolution as He et al.'s do; block order (a), although the figure writes
a ReLU after each of the three convolutions. For what tinlab's bottleneck changes, see tinlab.models.resnet.

yu_alexnet, "Reduced Capacity AlexNet". Stated, in table 2, with the grid after each layer: two convolutions
of 64 channels, pool, batch norm; one of 128, pool, batch norm; two of 256, pool; fully connected layers of
1024 and 1024. Inferred: convolutions keep the grid and pools halve it, as the table's grids do. Assumed: 3x3
convolutions with bias (the table gives no filter sizes), 2x2 max pools, a ReLU after every convolution and
fully connected layer.

yu_vgg, "Reduced VGGNet". Stated: nothing but the name. Assumed: the first three of VGG's five stages, a pair
of 3x3 convolutions each (64, 128 and 256 channels) and a 2x2 max pool, with ReLUs and without batch norm, as
VGG is; fully connected layers of 1024 and 1024, as in the table of yu_alexnet.

yu_baseline, "Baseline Model". Stated: nothing but the name. Assumed: the five layers of the network that the
course gave out, trained on 100 of Tiny ImageNet's classes: 3x3 convolutions of 32, 32 and 64 channels, each
with ReLU and 2x2 max pool, and a fully connected layer of 512.

Assumed for all but yu_resnet20: weights drawn as in He et al. 2015 by fan in, with biases of zero. The poster
calls its initialisations of the two reduced networks "incorrect" and does not say what they were.

Added: dropout after each fully connected layer, at a rate of 0 unless asked for (table 2 lists every layer,
and none is a dropout); the width; the activation; an average pool to the grid of 64x64 images before the
first fully connected layer, for images of other sizes.
"""

from __future__ import annotations

from torch import nn

from tinlab import recipe
from tinlab.models.network import Network
from tinlab.models.plain import Layers
from tinlab.models.resnet import Bottleneck
from tinlab.models.resnet import network as residual

SOURCE = "Yu, Convolutional Neural Networks for Tiny ImageNet Classification, CS231n poster"


def _alexnet(knobs: recipe.Model, classes: int) -> nn.Module:
    net = Layers(knobs, first=64)
    for stage, (channels, convolutions) in enumerate([(64, 2), (128, 1), (256, 2)]):
        if stage > 0:
            net.norm()
        for _ in range(convolutions):
            net.conv(channels, 3)
            net.act()
        net.pool(2, 2)
    net.flatten()  # (B, 8 * 8 * 256)
    return _classify(net, (1024, 1024), classes)


def _vgg(knobs: recipe.Model, classes: int) -> nn.Module:
    net = Layers(knobs, first=64)
    for channels in (64, 128, 256):
        for _ in range(2):
            net.conv(channels, 3)
            net.act()
        net.pool(2, 2)
    net.flatten()  # (B, 8 * 8 * 256)
    return _classify(net, (1024, 1024), classes)


def _baseline(knobs: recipe.Model, classes: int) -> nn.Module:
    net = Layers(knobs, first=32)
    for channels in (32, 32, 64):
        net.conv(channels, 3)
        net.act()
        net.pool(2, 2)
    net.flatten()  # (B, 8 * 8 * 64)
    return _classify(net, (512,), classes)


def _classify(net: Layers, hidden: tuple[int, ...], classes: int) -> nn.Module:
    for features in hidden:
        net.fc(features)
        net.act()
        net.dropout()
    model = net.network(classes)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is not None
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


NETWORKS = {
    "yu_resnet20": residual(
        Bottleneck, (2, 2, 2), "ResNet-20: three stages of 2 bottlenecks", f"{SOURCE}, figure"
    ),
    "yu_alexnet": Network(
        build=_alexnet,
        summary="Reduced AlexNet: five 3x3 convolutions, two fully connected layers of 1024",
        source=f"{SOURCE}, table 2",
        classifier="classifier",
        options={"width": 64, "activation": "relu", "dropout": (0.0, 0.0)},
    ),
    "yu_vgg": Network(
        build=_vgg,
        summary="Reduced VGGNet: three pairs of 3x3 convolutions, two fully connected layers of 1024",
        source=f"{SOURCE}; its layers are assumed",
        classifier="classifier",
        options={"width": 64, "activation": "relu", "dropout": (0.0, 0.0)},
    ),
    "yu_baseline": Network(
        build=_baseline,
        summary="Baseline ConvNet: three 3x3 convolutions, a fully connected layer of 512",
        source=f"{SOURCE}; its layers are assumed, from the course's own network",
        classifier="classifier",
        options={"width": 32, "activation": "relu", "dropout": (0.0,)},
    ),
}
