"""Networks as torchvision has them, made to fit small images. Names of layers are torchvision's, so that its
ImageNet weights fit, and so is the way in which weights are drawn.

alexnet: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, as torchvision
follows it. Changed: the first convolution moves by 1 pixel and not by 4. At 64x64 the grids that follow are
then those of a 224x224 image from the second pool on, 13x13 and 6x6, where stride 4 leaves 3x3 and 1x1.
Added: first filters of 9x9 and 7x7, with 1 and 0 pixels of padding in place of 2, so that all three give the
same grid of 58x58.

vgg16: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015, table 1, D. Changed: at 64x64 its five pools leave a grid of 2x2, and the first fully connected layer
takes that, 2 x 2 x 512 values, where torchvision's stretches it to 7x7, to 12 times as many values that say
no more. So ImageNet's weights of `classifier.0` do not fit: name it in fresh_layers.

googlenet: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, as torchvision has it: with batch
norms, 3x3 filters where the paper has 5x5, and dropout of 0.2 where it has 0.4. Changed: the two auxiliary
classifiers are left out, so that one vector of scores comes out as everywhere here. It moves its input from
ImageNet's mean and standard deviation to 0.5 and 0.5, which is how torchvision's weights were trained; from
scratch too, so that the weights of any run go on in the network that they were trained in.

squeezenet: Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model
size", 2016, version 1.0. Nothing is changed. Its classifier is a 1x1 convolution and a ReLU, whose outputs
are averaged over the grid: scores are never below zero.

Added: rates of dropout; the activation, in the networks whose torchvision code has activations as layers (in
squeezenet all but the one after the classifier). They overwrite nothing, where torchvision's do, so that a
hook may keep what a layer gave. In alexnet and vgg16, an average pool to the grid of 64x64 images before the
first fully connected layer, for images of other sizes.
"""

from __future__ import annotations

import torch
from torch import nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models.activation import activation
from tinlab.models.network import Network
from tinlab.models.plain import Grid
from tinlab.models.zoo import import_torchvision


def _alexnet(knobs: recipe.Model, classes: int) -> nn.Module:
    assert knobs.first_kernel is not None
    if knobs.weights == "imagenet" and knobs.first_kernel != 11:
        raise TinlabError(
            f"model.first_kernel: ImageNet's weights for alexnet have filters of 11x11, not "
            f"{knobs.first_kernel}x{knobs.first_kernel}; take 11, or no weights"
        )
    model = import_torchvision().models.alexnet(num_classes=classes)
    padding = (knobs.first_kernel - 7) // 2
    model.features[0] = nn.Conv2d(3, 64, knobs.first_kernel, padding=padding)  # (B, 64, 58, 58)
    model.avgpool = Grid(6)  # (B, 256, 6, 6)
    _activate(model, knobs.activation)
    _drop(model, knobs.dropout)
    return model


def _vgg16(knobs: recipe.Model, classes: int) -> nn.Module:
    device = torch.get_default_device()
    with torch.device("meta"):  # torchvision's first fully connected layer, thrown away here, has 411 MB
        model = import_torchvision().models.vgg16(num_classes=classes, init_weights=False)
        model.classifier[0] = nn.Linear(512 * 2 * 2, 4096)
    model.to_empty(device=device)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    model.avgpool = Grid(2)  # (B, 512, 2, 2)
    _activate(model, knobs.activation)
    _drop(model, knobs.dropout)
    return model


def _googlenet(knobs: recipe.Model, classes: int) -> nn.Module:
    model = import_torchvision().models.googlenet(
        num_classes=classes,
        aux_logits=False,
        init_weights=True,
        transform_input=True,
    )
    _drop(model, knobs.dropout)
    return model


def _squeezenet(knobs: recipe.Model, classes: int) -> nn.Module:
    model = import_torchvision().models.squeezenet1_0(num_classes=classes)
    _activate(model.features, knobs.activation)
    _activate(model.classifier, "relu")
    _drop(model, knobs.dropout)
    return model


def _activate(parent: nn.Module, name: str | None) -> None:
    for key, child in parent.named_children():
        if isinstance(child, nn.ReLU):
            setattr(parent, key, activation(name, inplace=False))
        else:
            _activate(child, name)


def _drop(model: nn.Module, rates: tuple[float, ...] | None) -> None:
    assert rates is not None
    places = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    for place, rate in zip(places, rates, strict=True):
        place.p = rate


NETWORKS = {
    "alexnet": Network(
        build=_alexnet,
        summary="AlexNet: five convolutions, two fully connected layers of 4096",
        source="Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks",
        classifier="classifier.6",
        options={"first_kernel": 11, "activation": "relu", "dropout": (0.5, 0.5)},
        imagenet="alexnet",
    ),
    "vgg16": Network(
        build=_vgg16,
        summary="VGG-16: thirteen 3x3 convolutions, two fully connected layers of 4096",
        source="Simonyan and Zisserman 2015, Very Deep Convolutional Networks, table 1, D",
        classifier="classifier.6",
        options={"activation": "relu", "dropout": (0.5, 0.5)},
        imagenet="vgg16",
    ),
    "googlenet": Network(
        build=_googlenet,
        summary="GoogLeNet: nine Inception modules with batch norm",
        source="Szegedy et al. 2015, Going Deeper with Convolutions, table 1",
        classifier="fc",
        options={"dropout": (0.2,)},
        imagenet="googlenet",
    ),
    "squeezenet": Network(
        build=_squeezenet,
        summary="SqueezeNet 1.0: eight fire modules",
        source="Iandola et al. 2016, SqueezeNet, table 1",
        classifier="classifier.1",
        options={"activation": "relu", "dropout": (0.5,)},
        imagenet="squeezenet1_0",
    ),
}
