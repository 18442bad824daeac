"""Test-time augmentation: the mean of a network's probabilities over several views of an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tinlab.errors import TinlabError

SHIFT_PIXELS = 2


@dataclass(frozen=True)
class View:
    """The image, moved `down` and `right` by pixels, then mirrored where `mirror`."""

    mirror: bool = False
    down: int = 0
    right: int = 0


_PLACES = ((0, 0), (-SHIFT_PIXELS, 0), (SHIFT_PIXELS, 0), (0, -SHIFT_PIXELS), (0, SHIFT_PIXELS))

TTA: dict[str, tuple[View, ...]] = {
    "flip": tuple(View(mirror) for mirror in (False, True)),
    "shift": tuple(View(mirror, down, right) for down, right in _PLACES for mirror in (False, True)),
}
"""`flip`: the image and its mirror image. `shift`: both, in place and moved by two pixels up, down, left and
right: ten views."""


def views(name: str) -> tuple[View, ...]:
    """The views of the test-time augmentation called `name`. Raises TinlabError where there is none."""
    try:
        return TTA[name]
    except KeyError:
        raise TinlabError(
            f"there is no test-time augmentation '{name}'; there are: {', '.join(TTA)}"
        ) from None


def view(images: Tensor, seen: View) -> Tensor:
    """One view of each image: (B, H, W, 3) -> the same shape and type.

    What a shift uncovers is the mirror image about the outermost pixels, which are not repeated.
    """
    for axis, by in ((1, seen.down), (2, seen.right)):
        if by:
            length = images.shape[axis]
            places = (torch.arange(length, device=images.device) - by).abs()
            places = (length - 1) - ((length - 1) - places).abs()
            images = images.index_select(axis, places)
    return images.flip(2) if seen.mirror else images


def averaged(classify: Callable[[Tensor], Tensor], images: Tensor, name: str) -> Tensor:
    """The log of the mean over the views of the softmax probabilities: float32 (B, C).

    `classify` turns (B, H, W, 3) into logits (B, C). The result can be used wherever logits can: its softmax
    is the mean probability.
    """
    seen = views(name)
    total: Tensor | None = None
    for one in seen:
        logs = classify(view(images, one)).float().log_softmax(1)  # (B, C)
        total = logs if total is None else torch.logaddexp(total, logs)
    assert total is not None
    return total - math.log(len(seen))
