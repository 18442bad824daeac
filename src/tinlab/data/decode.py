"""One image file -> a square of RGB pixels.

JPEGs of the pack's own size, which is nearly everything in Tiny ImageNet, are decoded by simplejpeg straight
into their place; all else goes through Pillow. Both give the same pixels (a test compares them), and both are
strict: an image that is cut off or whose data contradict themselves is an error, not a grey area.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
import warnings
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg

if TYPE_CHECKING:
    from PIL import Image  # which takes as long to import as a thousand JPEGs to decode

MAX_PIXELS = 50_000_000
"""The largest image that is decoded, by its header; with its copies it needs some 400 MB of memory."""

LARGE_PIXELS = 4_000_000
"""Images beyond this are decoded one at a time, so that many threads need no more memory than one."""

_OTHER_SUFFIXES = "apng avif bmp dib gif ico j2k jp2 pbm pcx pgm png pnm ppm sgi tga tif tiff webp"
SUFFIXES = (".jpeg", ".jpg", ".jpe", ".jfif", *(f".{suffix}" for suffix in _OTHER_SUFFIXES.split()))
"""What an image file may be called, in lower case. Formats that start another program (EPS) are left out."""

MOST_SCANS = 100
"""Of a JPEG. Progressive ones have about ten; each costs a pass over the image, and only a few bytes."""

MOST_SEGMENTS = 10_000
"""Of a JPEG, its scans among them. A photograph has some dozens."""

SOON_LARGE_BYTES = 1 << 20
"""JPEGs of more bytes are looked at before they are decoded, even if they may be of the pack's own size."""

_COMMON_SUFFIXES = (".JPEG", ".jpg", ".png")  # found sooner than all of them

FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "DIB",
    "GIF",
    "ICO",
    "JPEG2000",
    "PCX",
    "PPM",
    "SGI",
    "TGA",
    "TIFF",
    "WEBP",
    "AVIF",
)
"""Pillow's names of the formats that are read, whatever the file is called."""

_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
_PASSED_OVER = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))
"""Segments of a JPEG: those that state its size, and those that may stand before them."""

_JPEG, _JFIF, _TABLES = b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x10", b"\xff\xdb"
_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""What begins a segment; not what stands among the data of a scan."""

_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}  # what each EXIF orientation asks for: the names of Pillow's transpositions

_TILE_WIDTH, _TILE_HEIGHT = 322, 323
"""Tags of a TIFF."""

_large = threading.Lock()


class ImageError(ValueError):
    """An image that cannot be read; the message says why, without the image's name."""


class TooManyPixelsError(ImageError):
    """An image that is not decoded because its header claims more pixels than are read."""


def is_image_name(name: str) -> bool:
    """Whether `name` ends as the name of an image does."""
    return name.endswith(_COMMON_SUFFIXES) or name.lower().endswith(SUFFIXES)


def decode_into(
    data: bytes | bytearray,
    row: np.ndarray,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> None:
    """Decode image file `data` into `row`, uint8 (size, size, 3), contiguous.

    An image of another size or shape is turned as its EXIF orientation says, scaled so that its shorter side
    becomes `size`, and cut to the square in its middle. Transparent parts become white, 16 bits become 8, and
    of an animation the first frame counts. An image of more than `max_pixels` by its header is not decoded,
    nor is one in none of the `formats` (Pillow's names). Raises ImageError.
    """
    # Pillow knows how to turn an image, and what inks (CMYK, which Adobe's marker goes with) look like. Where
    # the tables follow the JFIF header at once, there is neither marker, and no need to search.
    if (
        len(data) <= SOON_LARGE_BYTES
        and (
            (data.startswith(_JFIF) and data.startswith(_TABLES, 20))
            or (data.startswith(_JPEG) and b"Exif\0" not in data and b"Adobe" not in data)
        )
        and _jpeg_size(data) == row.shape[:2]  # simplejpeg 1.9 leaks 4 KB where the buffer is too small
    ):
        try:
            if simplejpeg.decode_jpeg(data, buffer=row).shape == row.shape:
                return
        except ValueError:
            pass  # another colour space, or damaged: the longer way knows which
    row[:] = _decode_any(data, len(row), max_pixels, formats)


def _jpeg_size(data: bytes | bytearray) -> tuple[int, int] | None:
    """Height and width of a JPEG that lies as nearly all do; None for others, and for the damaged."""
    at = 2
    try:
        while data[at] == 0xFF:
            kind = data[at + 1]
            if kind in _FRAMES:
                return data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            if kind not in _PASSED_OVER:
                return None
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    except IndexError:
        pass
    return None


def _decode_any(data: bytes | bytearray, size: int, max_pixels: int, formats: tuple[str, ...]) -> np.ndarray:
    """uint8 (size, size, 3). Raises ImageError."""
    from PIL import Image

    if not data:
        raise ImageError("it is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns of is either refused below or harmless
            # But for an image inside another, such as an icon's, that is larger than the outer one says.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=formats) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise TooManyPixelsError(
                        f"it has {width} x {height} pixels, and at most {max_pixels / 1e6:g} million are read"
                    )
                if image.format == "JPEG":
                    _check_jpeg(data)
                    # Shrinking inside the JPEG decoder keeps large photographs quick and small; the factor
                    # of two leaves the filter below enough to work with.
                    image.draft(None, (2 * size, 2 * size))
                with _large if _pixels_within(image, max_pixels) > LARGE_PIXELS else contextlib.nullcontext():
                    try:
                        return square(image, size)
                    finally:
                        image.close()  # frees the pixels before the next large image may begin
    except Image.UnidentifiedImageError:
        raise ImageError("it is no image in a format that is read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooManyPixelsError(f"it has more than {max_pixels / 1e6:g} million pixels") from None
    except ImageError:
        raise
    except Exception as error:  # a decoder meets any bytes at all here, and Pillow's raise what they like
        raise ImageError(f"it is damaged: {str(error).rstrip('.') or type(error).__name__}") from error


def _pixels_within(image: Image.Image, max_pixels: int) -> int:
    """How many pixels are unpacked at a time. Raises TooManyPixelsError where a TIFF has tiles of more."""
    width, height = image.size
    if image.format == "AVIF":
        return MAX_PIXELS  # the picture inside may be larger than its header says
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_HEIGHT, 0)
    if tile > max_pixels:
        raise TooManyPixelsError(
            f"it has tiles of {tile:,} pixels, and at most {max_pixels / 1e6:g} million are read"
        )
    return max(width * height, tile)


def _check_jpeg(data: bytes | bytearray) -> None:
    """Refuse a JPEG that libjpeg would only warn of, such as one that is cut off."""
    check_scans(data)
    try:
        _, _, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        target = "CMYK" if colorspace in ("CMYK", "YCCK") else "RGB"
        # All of the data are read, whatever the scale; an eighth is the quickest.
        simplejpeg.decode_jpeg(data, target, min_height=1, min_width=1)
    except ValueError as error:
        raise ImageError(f"it is damaged: {str(error).rstrip('.')}") from None


def check_scans(data: bytes | bytearray) -> None:
    """Refuse a JPEG of more than MOST_SCANS, counted up to its end: behind that may be anything, such as a
    telephone's film of the moment. Raises ImageError."""
    at = scans = 0
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or found[0] == _END:
            return
        scans += found[0] == _SCAN
        if scans > MOST_SCANS:
            raise ImageError(f"it has more than {MOST_SCANS} scans")
        at = found.end()
        if found[0] != _JPEG:  # the start of the image is the one marker with nothing behind it
            at += int.from_bytes(data[at : at + 2], "big")
    raise ImageError(f"it has more than {MOST_SEGMENTS:,} segments")


def square(image: Image.Image, size: int) -> np.ndarray:
    """The middle square of `image` at `size` pixels a side, uint8 (size, size, 3). Raises ImageError."""
    from PIL import ExifTags, Image

    image.load()  # here a TIFF turns by itself
    mode = image.mode
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    if mode == "F":
        raise ImageError("its pixels are floating-point numbers of an unknown range; save it with 8 bits")
    if mode.startswith("I"):
        image = _eight_bits(image)
    elif mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    elif mode not in ("RGB", "RGBA", "L", "LA"):
        image = image.convert("RGB")
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    if (width, height) != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    if orientation in _TURNS:  # a square from the middle may as well be turned when it is small
        image = image.transpose(Image.Transpose[_TURNS[orientation]])
    if image.mode in ("RGBA", "LA"):
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit greyscale image (Pillow's `I;16`, or `I`) as an 8-bit one."""
    from PIL import Image

    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise ImageError("its pixels have more than 16 bits; save it with 8 bits")
    grey = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    grey.info.update(image.info)
    return grey
