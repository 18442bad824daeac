"""Networks by name. Each file is a family, and says which paper it follows, what is stated there, what is
inferred, what is assumed, and what was changed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import resnet, shcherbina, standard, trinext, weights, yu, zoo
from tinlab.models.convolutions import choose_ways
from tinlab.models.dropconnect import add_dropconnect
from tinlab.models.dropout import quicken
from tinlab.models.fits import fits, outline, takes_single_images
from tinlab.models.initialise import initialise, scaled_after
from tinlab.models.network import Network

MODELS: dict[str, Network] = {
    **resnet.NETWORKS,
    **yu.NETWORKS,
    **shcherbina.NETWORKS,
    **standard.NETWORKS,
    **trinext.NETWORKS,
}


def find(name: str, image_size: int = 64) -> Network:
    """The network called `name`, for images of `image_size` pixels a side.

    Raises TinlabError with the nearest known names where there is none.
    """
    if ":" in name:
        return zoo.find(name, image_size)
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3) or list(MODELS)
        raise TinlabError(
            f"model.name: there is no network '{name}'; try {', '.join(near)}, torchvision:NAME or timm:NAME"
        )
    return MODELS[name]


def check(
    knobs: recipe.Model,
    classes: int,
    *,
    image_size: int,
    train_sizes: Iterable[int] = (),
    train_batch: int = 2,
) -> None:
    """Raise TinlabError where `knobs` name no network, ask of it what it does not have, or where it does not
    take images of `image_size` and `train_sizes` pixels a side, or cannot be trained on `train_batch` of
    them at a time."""
    made = partial(build, knobs, classes, image_size=image_size)
    fits(knobs.name, made, {image_size, *train_sizes}, classes)
    if train_batch == 1:
        takes_single_images(knobs.name, made, min(train_sizes, default=image_size))


def check_weights(knobs: recipe.Model, classes: int, *, image_size: int) -> None:
    """Raise TinlabError where the weights that `knobs` name, if any, cannot be had or do not fit.

    Fetches published ones, which is why it is apart from `check`.
    """
    if knobs.weights is not None:
        model = sketch(knobs, classes, image_size=image_size)
        weights.load_into(model, find(knobs.name, image_size), knobs, image_size=image_size)


def sketch(knobs: recipe.Model, classes: int, *, image_size: int = 64) -> nn.Module:
    """The network that `knobs` describe, on the meta device: layers and shapes without values."""
    return outline(partial(build, knobs, classes, image_size=image_size))


def build(knobs: recipe.Model, classes: int, *, image_size: int = 64) -> nn.Module:
    """The network that `knobs` describe, with weights drawn from torch's generator: (B, 3, H, W) -> (B,
    classes).

    `image_size` is what networks are built for whose weights depend on it. Raises TinlabError where `knobs`
    name no network, or ask of it what it does not have.
    """
    network = find(knobs.name, image_size)
    model = network.build(network.resolve(knobs), classes)
    choose_ways(model)
    quicken(model)
    add_dropconnect(model, knobs.dropconnect)
    return model


def begin(model: nn.Module, knobs: recipe.Model, images: Tensor) -> weights.Loaded | None:
    """Give `model`, just built from `knobs`, the values that training starts from where `knobs` name any.

    `images` are training images as the network gets them, (B, 3, H, W), for initialisers that look at some.
    Returns what was taken from a file, or None. Raises TinlabError where the values cannot be had.
    """
    size = images.shape[-1]
    network = find(knobs.name, size)
    if knobs.init is not None:
        initialise(model, knobs.init, network.resolve(knobs).activation, images)
    if knobs.weights is None:
        return None
    with scaled_after(model, knobs.init, images):
        return weights.load_into(model, network, knobs, image_size=size)
