"""Contact sheets: many small images on one page, with their classes' words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from tinlab.data.pack import Pack, Split
from tinlab.errors import TinlabError

if TYPE_CHECKING:
    from PIL import Image, ImageFont

PAPER = (255, 255, 255)
INK = (34, 38, 46)
QUIET = (112, 118, 130)
MOST_PIXELS = 250_000_000
"""Of a page."""
_TALLEST = 1.5
"""A page of classes higher than this many times its width is folded into columns."""


def grid(
    images: np.ndarray | Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    columns: int,
    scale: int = 2,
    title: str | None = None,
    caption_lines: int = 2,
) -> Image.Image:
    """A page of images, `columns` to a row, each with its caption beneath, and a title above.

    `images` are uint8, (N, height, width, 3) or N arrays (height, width, 3) of one shape; every pixel
    becomes a square of `scale` pixels, so nothing is smoothed. `captions` are N strings; what does not fit on
    `caption_lines` is cut with an ellipsis. Raises TinlabError for no images, counts that differ, other
    shapes or types, numbers below 1, or a page beyond 250 million pixels.
    """
    tiles = _checked(images, captions, columns, scale)
    page = Page(scale, title)
    height, width = tiles.shape[1] * scale, tiles.shape[2] * scale  # of an image on the page
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    wrapped = [page.wrap(caption, width, caption_lines) for caption in captions]
    step_x = width + page.gap
    step_y = height + page.gap // 2 + page.line * max(map(len, wrapped)) + page.gap
    page.open(columns * step_x - page.gap, rows * step_y - page.gap)
    for n, (tile, lines) in enumerate(zip(tiles, wrapped, strict=True)):
        x, y = n % columns * step_x, n // columns * step_y
        page.paste(tile, x, y)
        page.write(x, y + height + page.gap // 2, [(line, INK) for line in lines])
    return page.sheet


def pack_grid(
    pack: Pack,
    *,
    split: str = "train",
    classes: int = 8,
    images_per_class: int = 8,
    seed: int = 0,
    scale: int = 2,
) -> Image.Image:
    """What a pack looks like: a row for each of `classes` classes, its words at the left, its images beside.

    Classes and images are drawn at random with `seed` and stand in the pack's order; fewer are shown where
    the split has fewer. Many classes are folded into several columns. A split without labels is shown as
    `classes` rows of images with their names beneath. Raises TinlabError where the pack lacks the split, the
    split is empty, a number is below 1, or the page would be beyond 250 million pixels.
    """
    for name, value in (("classes", classes), ("images_per_class", images_per_class), ("scale", scale)):
        if value < 1:
            raise TinlabError(f"{name} is {value}; give 1 or more")
    rows = pack.split(split)
    if not len(rows):
        raise TinlabError(f"{pack.path} has no images in {split}; choose another split")
    dice = np.random.default_rng(seed)
    if rows.labelled:
        return _class_rows(rows, dice, classes, images_per_class, scale)
    shown = np.sort(dice.permutation(len(rows))[: classes * images_per_class])
    return grid(
        rows.images[shown],
        [PurePosixPath(rows.names[n]).stem for n in shown],
        columns=images_per_class,
        scale=scale,
        title=f"{pack.info.name} · {split} · {_count(len(rows), 'image')} without labels",
    )


def _class_rows(
    rows: Split, dice: np.random.Generator, classes: int, images_per_class: int, scale: int
) -> Image.Image:
    """The page of a labelled split: blocks of rows side by side, read downwards."""
    info, present = rows.pack.info, np.unique(rows.labels)
    chosen = np.sort(dice.permutation(present)[:classes])
    picked = [
        np.sort(dice.permutation(np.flatnonzero(rows.labels == label))[:images_per_class]) for label in chosen
    ]
    counts = f"{_count(len(rows), 'image')} · {_count(len(present), 'class', 'classes')}"
    page = Page(scale, f"{info.name} · {rows.name} · {counts}")
    side = info.image_size * scale
    words = [_words(info.classes[label].words, info.classes[label].id) for label in chosen]
    # Words get what the longest needs, up to about twenty letters; what is longer goes on.
    room = min(11 * page.size, max(page.length(text) for pair in words for text in pair))
    step = side + page.gap
    left = room + 2 * page.gap
    block = left + max(map(len, picked)) * step - page.gap
    margin = 4 * page.gap  # between blocks
    blocks = 1
    while -(-len(chosen) // blocks) * step > _TALLEST * blocks * (block + margin):
        blocks += 1
    deep = -(-len(chosen) // blocks)
    blocks = -(-len(chosen) // deep)
    page.open(blocks * (block + margin) - margin, deep * step - page.gap)
    for n, (indices, (name, others)) in enumerate(zip(picked, words, strict=True)):
        x, y = n // deep * (block + margin), n % deep * step
        lines = [(line, INK) for line in page.wrap(name, room, 2)]
        lines += [(line, QUIET) for line in page.wrap(others, room, 2)]
        lines = lines[: max(1, side // page.line)]
        page.write(x, y + (side - len(lines) * page.line) // 2, lines)
        for m, tile in enumerate(rows.images[indices]):
            page.paste(tile, x + left + m * step, y)
    return page.sheet


def _words(words: str, id: str) -> tuple[str, str]:
    """The first of a class's comma-separated words, or its id, and the rest."""
    first, _, others = words.partition(",")
    return first.strip() or id, others.strip()


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _checked(
    images: np.ndarray | Sequence[np.ndarray], captions: Sequence[str], columns: int, scale: int
) -> np.ndarray:
    """The images as one array (N, height, width, 3); raises TinlabError where an argument is wrong."""
    if not len(images):
        raise TinlabError("there are no images to show; give at least one")
    if len(captions) != len(images):
        raise TinlabError(f"there are {len(images)} images and {len(captions)} captions; give one for each")
    if columns < 1 or scale < 1:
        raise TinlabError(f"columns is {columns} and scale is {scale}; give 1 or more of each")
    shapes = {tuple(np.shape(image)) for image in images}
    tiles: np.ndarray = np.asarray(images) if len(shapes) == 1 else np.empty(0)
    if tiles.ndim != 4 or tiles.shape[3] != 3 or tiles.dtype != np.uint8 or not tiles.size:
        found = " and ".join(str(shape) for shape in sorted(shapes))
        raise TinlabError(f"images have shape {found}; give uint8 arrays of one shape (height, width, 3)")
    return tiles


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has letters for most languages."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


class Page:
    """A sheet of paper with a title, for pictures with words beside or beneath them.

    Sizes are in pixels, and places are counted from below the title.
    """

    def __init__(self, scale: int, title: str | None) -> None:
        self.scale = scale
        self.title = title
        self.size = 9 + 2 * min(scale, 5)
        self.line = round(self.size * 1.3)
        self.gap = 2 + 3 * min(scale, 5)
        self.margin = 3 * self.gap
        self.top = self.margin + (self.line + 2 * self.gap if title else 0)

    def open(self, width: int, height: int) -> None:
        """Lay out paper for contents of `width` x `height`, wider where the title is, and write the title."""
        from PIL import Image, ImageDraw

        bold = _font(self.size + 2, bold=True)
        if self.title:
            width = max(width, round(bold.getlength(self.title)))
        width, height = width + 2 * self.margin, self.top + height + self.margin
        if width * height > MOST_PIXELS:
            raise TinlabError(
                f"the picture would be {width:,} x {height:,} pixels; show fewer images or enlarge them less"
            )
        self.sheet = Image.new("RGB", (width, height), PAPER)
        self.brush = ImageDraw.Draw(self.sheet)
        if self.title:
            self.brush.text((self.margin, self.margin), self.title, fill=INK, font=bold)

    def paste(self, tile: np.ndarray, x: int, y: int, scale: int | None = None) -> None:
        """Put uint8 (height, width, 3) at x, y, every pixel a square of `scale` pixels (the page's own)."""
        from PIL import Image

        scale = self.scale if scale is None else scale
        large = np.repeat(np.repeat(tile, scale, axis=0), scale, axis=1)
        self.sheet.paste(Image.fromarray(large), (self.margin + x, self.top + y))

    def write(
        self, x: int, y: int, lines: Sequence[tuple[str, tuple[int, int, int]]], *, bold: bool = False
    ) -> None:
        """Lines of text with their colours, downwards from x, y."""
        for n, (line, colour) in enumerate(lines):
            place = (self.margin + x, self.top + y + n * self.line)
            self.brush.text(place, line, fill=colour, font=_font(self.size, bold))

    def length(self, text: str) -> int:
        return int(-(-_font(self.size).getlength(text) // 1))

    def wrap(self, text: str, width: int, most: int) -> list[str]:
        """Break `text` between words into at most `most` lines of `width`, and cut what is left over."""
        lines: list[str] = []
        for word in text.split():
            joined = f"{lines[-1]} {word}" if lines else word
            # Past the last line the words gather there, to be cut.
            if lines and len(lines) < most and self.length(joined) > width:
                lines.append(word)
            else:
                lines[-1:] = [joined]
        return [self._cut(line, width) for line in lines]

    def _cut(self, line: str, width: int) -> str:
        if self.length(line) <= width:
            return line
        while line and self.length(line.rstrip() + "…") > width:
            line = line[:-1]
        return line.rstrip() + "…"
