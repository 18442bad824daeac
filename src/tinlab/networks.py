"""What networks there are and what each costs, for the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from tinlab import models
from tinlab.errors import TinlabError
from tinlab.models.summary import summarise
from tinlab.recipe import Model, Recipe, Schedule, changed
from tinlab.training.speed import images_per_second


def describe(
    name: str,
    assignments: Iterable[str] = (),
    *,
    classes: int = 200,
    image_size: int = 64,
    timed_on: torch.device | None = None,
    batch_size: int = 128,
) -> dict[str, Any]:
    """Network `name` with its source, its options, its layers and what it costs, as JSON.

    `assignments` change it, each such as model.width=32. With `timed_on` the images/s of training steps in
    batches of `batch_size` on that device are there too. Raises TinlabError for an unknown name, for what
    the network does not have, for images that it does not take, and where it does not fit into memory to be
    timed.
    """
    knobs = _knobs(name, assignments)
    network = models.find(name, image_size)
    resolved = network.resolve(knobs)
    found: dict[str, Any] = {
        "model": name,
        "summary": network.summary,
        "source": network.source,
        "options": {option: getattr(resolved, option) for option in network.options},
        **asdict(summarise(knobs, classes, image_size)),
    }
    if timed_on is not None:
        found["train_images_per_second"] = _speed(knobs, classes, image_size, timed_on, batch_size)
    return found


def catalogue(
    assignments: Sequence[str] = (),
    *,
    classes: int = 200,
    image_size: int = 64,
    timed_on: torch.device | None = None,
    batch_size: int = 128,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """`describe` for every network of tinlab's own list, without the layers.

    `say` is told what is timed, and why a network is not. Raises TinlabError as `describe` does, but a
    network that does not fit into memory has None for its images/s.
    """
    rows = []
    for name in models.MODELS:
        row = describe(name, assignments, classes=classes, image_size=image_size)
        del row["layers"]
        if timed_on is not None:
            say(f"timing {name}")
            row["train_images_per_second"] = None
            try:
                knobs = _knobs(name, assignments)
                row["train_images_per_second"] = _speed(knobs, classes, image_size, timed_on, batch_size)
            except TinlabError as error:
                say(str(error))
        rows.append(row)
    return rows


def _knobs(name: str, assignments: Iterable[str]) -> Model:
    stand_in = Recipe(name="models", model=Model(name=name), schedule=Schedule(steps=1))
    return changed(stand_in, assignments).model


def _speed(knobs: Model, classes: int, image_size: int, device: torch.device, batch_size: int) -> float:
    return round(images_per_second(knobs, classes, image_size, device=device, batch_size=batch_size), 1)
