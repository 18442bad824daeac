"""Networks by name. Each file is a family, and says which paper it follows, what is stated there, what is
inferred, what is assumed, and what was changed."""

from __future__ import annotations

import difflib

from torch import Tensor, nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import resnet, shcherbina, standard, yu
from tinlab.models.dropconnect import add_dropconnect
from tinlab.models.initialise import initialise
from tinlab.models.network import Network

MODELS: dict[str, Network] = {
    **resnet.NETWORKS,
    **yu.NETWORKS,
    **shcherbina.NETWORKS,
    **standard.NETWORKS,
}


def find(name: str) -> Network:
    """The network called `name`. Raises TinlabError with the nearest known names where there is none."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3) or list(MODELS)
        raise TinlabError(f"model.name: there is no network '{name}'; try {', '.join(near)}")
    return MODELS[name]


def check(knobs: recipe.Model) -> None:
    """Raise TinlabError where `knobs` name no network, or ask of it what it does not have."""
    find(knobs.name).resolve(knobs)


def build(knobs: recipe.Model, classes: int, *, image_size: int = 64) -> nn.Module:
    """The network that `knobs` describe, with weights drawn from torch's generator: (B, 3, H, W) -> (B,
    classes).

    Raises TinlabError where `knobs` name no network, or ask of it what it does not have.
    """
    network = find(knobs.name)
    model = network.build(network.resolve(knobs), classes)
    add_dropconnect(model, knobs.dropconnect)
    return model


def begin(model: nn.Module, knobs: recipe.Model, images: Tensor) -> None:
    """Give `model`, just built from `knobs`, the values that training starts from where `knobs` name any.

    `images` are training images as the network gets them, (B, 3, H, W), for initialisers that look at some.
    Raises TinlabError where they cannot be had.
    """
    if knobs.init is not None:
        activation = find(knobs.name).resolve(knobs).activation
        initialise(model, knobs.init, activation, images)


def too_small(knobs: recipe.Model, image_size: int, error: Exception) -> TinlabError:
    """The error for a network that failed with `error` on images of `image_size` pixels a side."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return TinlabError(f"model.name: {knobs.name} cannot take {image_size}x{image_size} images ({reason})")
