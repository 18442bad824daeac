"""Bytes from a stranger -> pixels, and maps -> PNG."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable

import numpy as np

from tinlab.data.decode import check_scans, decode_into

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
"""Pillow's names of the formats that are served: what cameras, screens and browsers make, but for TIFF and
AVIF, whose data may unpack to far more pixels than their header says."""

_RAMP = np.array([(0, 122, 18, 62), (0.35, 214, 40, 40), (0.7, 252, 140, 18), (1, 255, 240, 120)], np.float32)
"""The colours of a map: (value, red, green, blue)."""


def pixels(data: bytes, sizes: Iterable[int], max_pixels: int) -> dict[int, np.ndarray]:
    """Image file `data` as a classifier's input of each of the `sizes`: uint8 (size, size, 3).

    Turned as its EXIF orientation says, as a training image is. Raises ImageError, or TooManyPixelsError
    from the header alone.
    """
    if data.startswith(b"\xff\xd8"):
        check_scans(data)
    decoded = {}
    for size in set(sizes):
        decoded[size] = np.empty((size, size, 3), np.uint8)
        decode_into(data, decoded[size], max_pixels=max_pixels, formats=FORMATS)
    return decoded


def header_pixels(files: Iterable[bytes]) -> int:
    """The pixels of image files together, by their headers; one that cannot be read counts as none."""
    from PIL import Image

    total = 0
    for data in files:
        with contextlib.suppress(Exception), warnings.catch_warnings():  # `pixels` says what is wrong
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                total += image.width * image.height
    return total


def png(array: np.ndarray) -> bytes:
    """uint8 (H, W, 3) or (H, W, 4) -> a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()


def heat(values: np.ndarray) -> np.ndarray:
    """A map, float (H, W), as uint8 (H, W, 4) to be laid over its image: clear where it is low.

    What counts is the magnitude. The highest hundredth of the values is drawn alike, since single pixels of
    a gradient would otherwise leave all others in the dark.
    """
    strength = np.abs(np.nan_to_num(values.astype(np.float32)))
    top = float(np.quantile(strength, 0.99)) or float(strength.max()) or 1.0
    strength = np.clip(strength / top, 0, 1)
    at = _RAMP[:, 0]
    colours = [np.interp(strength, at, _RAMP[:, channel]) for channel in (1, 2, 3)]
    return np.stack([*colours, 255 * strength**0.75], axis=-1).round().astype(np.uint8)  # (H, W, 4)
