"""Images as people hand them over, and the classes that a network guesses in them. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinlab.data.decode import ImageError, decode_into, square
from tinlab.data.members import MAX_MEMBER_BYTES
from tinlab.data.pack import ClassInfo
from tinlab.errors import TinlabError
from tinlab.files import check_regular

Image = Any
"""A PIL image, a uint8 array (H, W, 3) or (H, W), or a path to an image file."""


@dataclass(frozen=True)
class Guess:
    """One class that an image may show. `probability` is 0..1."""

    id: str
    words: str
    probability: float


def guesses(probabilities: np.ndarray, classes: Sequence[ClassInfo], top: int) -> list[list[Guess]]:
    """The `top` likeliest classes of each row of (N, C), likeliest first, the first of equals foremost."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]  # (N, top)
    return [
        [Guess(classes[i].id, classes[i].words, float(row[i])) for i in places]
        for row, places in zip(probabilities, best, strict=True)
    ]


def several(images: Image | Iterable[Image]) -> Iterable[Image]:
    """One image becomes a list of one."""
    one = isinstance(images, str | Path) or hasattr(images, "convert") or _is_one_array(images)
    return [images] if one else images


def squares(images: Iterable[Image], size: int) -> np.ndarray:
    """uint8 (N, size, size, 3), made as a pack's images are. Raises TinlabError that names what is wrong."""
    made = [_square(image, size) for image in images]
    return np.stack(made) if made else np.empty((0, size, size, 3), np.uint8)


def _is_one_array(images: Image) -> bool:
    return isinstance(images, np.ndarray) and (
        images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (3, 4))
    )


def _square(image: Image, size: int) -> np.ndarray:
    import PIL.Image

    try:
        if isinstance(image, str | Path):
            pixels = np.empty((size, size, 3), np.uint8)
            check_regular(Path(image))
            if (stated := Path(image).stat().st_size) > MAX_MEMBER_BYTES:
                raise ImageError(f"it has {stated / 2**20:,.0f} MiB, and at most 64 MiB are read as one file")
            decode_into(Path(image).read_bytes(), pixels)
            return pixels
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8:
                raise ImageError(f"it is an array of {image.dtype}, and uint8 values of 0 to 255 are read")
            image = PIL.Image.fromarray(image)
        if not isinstance(image, PIL.Image.Image):
            raise ImageError("it is neither a path, a PIL image nor an array")
        return square(image, size)
    except OSError as error:
        raise TinlabError(f"{image} cannot be read: {error.strerror or error}") from error
    except (ImageError, TypeError, ValueError) as error:
        name = image if isinstance(image, str | Path) else f"this {type(image).__name__}"
        raise TinlabError(f"{name} cannot be used as an image: {error}") from error
