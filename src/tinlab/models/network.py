"""What is known of a network besides its layers: where it comes from, and which knobs it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tinlab import recipe
from tinlab.errors import TinlabError

EVERYWHERE = ("name", "dropconnect", "init", "weights", "fresh_layers")
"""The fields of recipe.Model that every network has."""


@dataclass(frozen=True)
class Network:
    """An entry of the registry.

    `build` gets resolved knobs and the number of classes, and returns the network with weights drawn from
    torch's generator: (B, 3, H, W) -> (B, classes). `options` holds the fields of recipe.Model that the
    network has, each with the value that None stands for. `classifier` is the name of its last layer.
    `imagenet` names the torchvision network whose weights fit, where there is one.
    """

    build: Callable[[recipe.Model, int], nn.Module]
    summary: str
    source: str
    classifier: str
    options: Mapping[str, Any] = field(default_factory=dict)
    imagenet: str | None = None

    def resolve(self, knobs: recipe.Model) -> recipe.Model:
        """`knobs` with the network's own values in place of None.

        Raises TinlabError for a field that the network does not have, and for too few or too many rates of
        dropout.
        """
        for name in recipe.Model.model_fields:
            if name in EVERYWHERE or name in self.options or getattr(knobs, name) is None:
                continue
            has = f"it has {', '.join(self.options)}" if self.options else "it has no options of its own"
            raise TinlabError(f"model.{name}: {knobs.name} has none; {has}")
        own = {name: value for name, value in self.options.items() if getattr(knobs, name) is None}
        if knobs.dropout is not None and len(knobs.dropout) != (places := len(self.options["dropout"])):
            raise TinlabError(
                f"model.dropout: {knobs.name} has {places} {'place' if places == 1 else 'places'} for "
                f"dropout, not {len(knobs.dropout)}"
            )
        return knobs.model_copy(update=own)
