"""Networks by name. Each file is a family, and says which paper it follows and what was changed."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from torch import nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import resnet

MODELS: dict[str, Callable[[recipe.Model, int], nn.Module]] = {
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
}


def check(knobs: recipe.Model) -> None:
    """Raise TinlabError where there is no network of that name; the nearest known ones are in the message."""
    if knobs.name not in MODELS:
        near = difflib.get_close_matches(knobs.name, MODELS, n=3) or list(MODELS)
        raise TinlabError(f"model.name: there is no network '{knobs.name}'; try {', '.join(near)}")


def build(knobs: recipe.Model, classes: int) -> nn.Module:
    """The network that `knobs` describe, initialised from torch's generator: (B, 3, H, W) -> (B, classes).

    Raises TinlabError for an unknown name.
    """
    check(knobs)
    return MODELS[knobs.name](knobs, classes)
