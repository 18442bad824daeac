"""The classes of the rendered set: which shape, texture and palette each has."""

from __future__ import annotations

from dataclasses import dataclass

from tinlab.errors import TinlabError

SHAPES = (
    ("disc", "circle"),
    ("star", "sea star"),
    ("heart", "valentine"),
    ("gear", "cogwheel"),
    ("crescent", "half moon"),
    ("cross", "plus sign"),
    ("arrow", "signpost"),
    ("ring", "hoop"),
    ("triangle", "wedge"),
    ("square", "tile"),
    ("hexagon", "honeycomb cell"),
    ("drop", "teardrop"),
    ("flower", "blossom"),
    ("bolt", "lightning"),
    ("leaf", "blade"),
    ("house", "cottage"),
    ("fish", "goldfish"),
    ("cloud", "cumulus"),
    ("mushroom", "toadstool"),
    ("key", "latchkey"),
)
TEXTURES = (
    "striped",
    "dotted",
    "plain",
    "checked",
    "ringed",
    "zigzag",
    "marbled",
    "wavy",
    "faded",
    "rayed",
    "latticed",
    "spotted",
)
# Name, then hue (degrees), lightness and chroma of the main colour in OKLCH.
PALETTES = (
    ("red", 25.0, 0.60, 0.19),
    ("orange", 52.0, 0.70, 0.16),
    ("golden", 85.0, 0.80, 0.15),
    ("lime", 125.0, 0.77, 0.17),
    ("green", 152.0, 0.62, 0.14),
    ("teal", 192.0, 0.64, 0.10),
    ("blue", 250.0, 0.60, 0.15),
    ("violet", 300.0, 0.57, 0.17),
    ("pink", 355.0, 0.70, 0.16),
    ("brown", 60.0, 0.45, 0.08),
)
MOST_CLASSES = len(SHAPES) * len(TEXTURES)


@dataclass(frozen=True)
class ShapeClass:
    """One class: indices into SHAPES, TEXTURES and PALETTES."""

    shape: int
    texture: int
    palette: int

    @property
    def wnid(self) -> str:
        """An id of the official form, in a range that WordNet does not use."""
        return f"n99{self.shape:02d}{self.texture:02d}{self.palette:02d}"

    @property
    def words(self) -> str:
        texture, colour = TEXTURES[self.texture], PALETTES[self.palette][0]
        name, synonym = SHAPES[self.shape]
        return f"{texture} {colour} {name}, {texture} {synonym}"


def catalogue(classes: int) -> list[ShapeClass]:
    """The first `classes` classes; a longer catalogue begins with the shorter one.

    They come in families of four: two shapes, each with the same two textures, and one palette, so that every
    class has neighbours that share half of what it is. Twenty classes are five families. Raises TinlabError
    outside 1..MOST_CLASSES.
    """
    if not 1 <= classes <= MOST_CLASSES:
        raise TinlabError(f"classes is {classes}; rendered sets have 1 to {MOST_CLASSES}")
    found = []
    for number in range(classes):
        block, place = divmod(number, 10)
        half, turn = block // 2 % 2, block // 4 * 2 + block % 2
        # Five and twelve have no common factor, so each shape meets each texture once; the sevens keep the
        # classes' ids out of order, as in the official wnids.txt.
        texture = (place // 2 + 5 * turn) % len(TEXTURES)
        shape = 10 * half + (7 * place + 3) % 10
        found.append(ShapeClass(shape, texture, (place // 2 * 2 + half + turn // 2 * 3) % len(PALETTES)))
    return found
