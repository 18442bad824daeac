"""Pictures of maps and filters, and sheets that show many with their words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinlab.data.grid import INK, QUIET, Page
from tinlab.errors import TinlabError
from tinlab.explain.attribution import Kind

if TYPE_CHECKING:
    from PIL import Image

SIDE = 128
"""Pixels a side of a picture on a sheet."""
BRIGHTEST_PERCENTILE = 99.5
"""From this percentile of its values on a map is at its brightest: single pixels would darken the rest."""
_WIDEST_WORDS = 180
_NARROWEST = 640


@dataclass(frozen=True)
class Picture:
    """A sheet and what it shows, in words, for those who do not see it."""

    image: Image.Image
    alt: str


@dataclass(frozen=True)
class Row:
    """Pictures beside each other, uint8 (height, width, 3) as they appear, with a caption beneath each, and
    `lines` of text at the left, the first in black. A picture may be None: its caption then stands in its
    place."""

    lines: Sequence[str]
    pictures: Sequence[np.ndarray | None]
    captions: Sequence[str] = ()


@dataclass(frozen=True)
class Part:
    """Rows under a heading, with `notes` on how to read them, a line each."""

    heading: str
    rows: Sequence[Row] = ()
    notes: Sequence[str] = ()


def shade(kind: Kind, values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A map as uint8 (H, W, 3): `values` float (H, W), or (3, H, W) for colours, of `image` uint8 (H, W, 3).

    Sizes are grey, from black for zero to white. Signed values are red above zero and blue below, white for
    zero. Signed colours are mid-grey for zero. A place is drawn over the grey image, dark for zero. Each map
    has a scale of its own.
    """
    import matplotlib

    values = np.nan_to_num(np.asarray(values, np.float64))
    most = np.percentile(np.abs(values), BRIGHTEST_PERCENTILE) or np.abs(values).max() or 1.0
    level = np.clip(values / most, -1, 1)  # (H, W) or (3, H, W)
    if kind == "signed":
        shown = matplotlib.colormaps["RdBu_r"]((level + 1) / 2)[..., :3]  # (H, W, 3)
    elif kind == "place":
        grey = image.astype(np.float64).mean(2, keepdims=True) / 255  # (H, W, 1)
        shown = 0.35 * grey + 0.65 * matplotlib.colormaps["inferno"](level)[..., :3]
    elif kind == "size":
        shown = np.repeat(level[..., None], 3, axis=2)
    else:
        shown = np.moveaxis(level if kind == "colour" else (level + 1) / 2, 0, 2)
    return (255 * shown).round().astype(np.uint8)


def enlarge(picture: np.ndarray, side: int = SIDE, *, smooth: bool = False) -> np.ndarray:
    """uint8 (H, W, 3) -> (side, side, 3), by repeating pixels, or smoothly."""
    from PIL import Image

    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((side, side), how))


def mosaic(tiles: np.ndarray, *, columns: int, scale: int, gap: int = 2) -> np.ndarray:
    """uint8 (N, h, w, 3) -> one picture, `columns` to a row on white, every pixel a square of `scale`."""
    if not len(tiles):
        raise TinlabError("there are no filters to show")
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = tiles.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    page = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for n, tile in enumerate(tiles):
        y, x = n // columns * (height + gap), n % columns * (width + gap)
        page[y : y + height, x : x + width] = tile
    return page


def gallery(pictures: Sequence[np.ndarray], captions: Sequence[str], *, columns: int = 8) -> list[Row]:
    """Rows of `columns` pictures with their captions."""
    return [
        Row((), pictures[start : start + columns], captions[start : start + columns])
        for start in range(0, len(pictures), columns)
    ]


def sheet(title: str, parts: Sequence[Part]) -> Image.Image:
    """The parts beneath each other. Pictures of one column stand beneath each other; nothing is cut off but
    a single word too long for its place. Raises TinlabError beyond 250 million pixels."""
    page = Page(2, title)
    page.gap = 10
    rows = [row for part in parts for row in part.rows]
    words = [word for row in rows for line in row.lines for word in line.split()]
    longest = max((page.length(word) for word in words), default=0)
    whole = max((page.length(line) for row in rows for line in row.lines), default=0)
    room = max(longest, min(whole, _WIDEST_WORDS))
    left = room + 2 * page.gap if words else 0
    shown = [picture for row in rows for picture in row.pictures if picture is not None]
    # A picture that stands alone in its row has no columns to keep.
    shared = [p for row in rows if len(row.pictures) > 1 for p in row.pictures if p is not None]
    side = max((picture.shape[1] for picture in shared), default=SIDE)
    wide = max((len(row.pictures) * (side + page.gap) - page.gap for row in rows), default=0)
    alone = max((picture.shape[1] for picture in shown), default=0)
    width = max(_NARROWEST, left + max(wide, alone))

    placed: list[tuple[int, int, Part | Row, list[list[str]]]] = []
    y = 0
    for part in parts:
        note = [line for text in part.notes for line in page.wrap(text, width, 9)]
        placed.append((0, y, part, [note]))
        y += page.line * (1 + len(note)) + page.gap if part.heading or note else 0
        start = left if any(row.lines for row in part.rows) else 0
        for row in part.rows:
            beneath = [page.wrap(caption, side, 9) for caption in row.captions]
            text = [line for whole in row.lines for line in page.wrap(whole, room, 4)]
            placed.append((start, y, row, [text, *beneath]))
            tall = max((p.shape[0] for p in row.pictures if p is not None), default=0)
            ends = [len(text) * page.line, tall]
            for n, lines in enumerate(beneath):
                above = 0 if _missing(row, n) or not tall else tall + page.gap // 2
                ends.append(above + len(lines) * page.line if lines else 0)
            y += max(ends) + page.gap
        y += 2 * page.gap
    page.open(width, max(1, y - 3 * page.gap))
    for start, y, what, texts in placed:
        if isinstance(what, Part):
            page.write(0, y, [(what.heading, INK)], bold=True)
            page.write(0, y + page.line, [(line, QUIET) for line in texts[0]])
            continue
        first = len(page.wrap(what.lines[0], room, 4)) if what.lines else 0
        page.write(0, y, [(line, INK if n < first else QUIET) for n, line in enumerate(texts[0])])
        tall = max((p.shape[0] for p in what.pictures if p is not None), default=0)
        for n, picture in enumerate(what.pictures):
            if picture is not None:
                page.paste(picture, start + n * (side + page.gap), y, scale=1)
        for n, lines in enumerate(texts[1:]):
            below = 0 if _missing(what, n) or not tall else tall + page.gap // 2
            page.write(start + n * (side + page.gap), y + below, [(line, INK) for line in lines])
    return page.sheet


def _missing(row: Row, n: int) -> bool:
    return n < len(row.pictures) and row.pictures[n] is None
