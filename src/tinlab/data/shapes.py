"""A rendered stand-in for Tiny ImageNet: toys on table tops, for work without a network.

The folder has the official layout (train/, val/, test/, wnids.txt, words.txt), so whatever reads the real set
reads this one. A class is a shape with a texture ("striped teal hexagon"); its palette is a hint, shared with
other classes and sometimes left, so that neither shape, texture nor colour is enough. Pose, light, clutter,
occlusion, blur and noise differ from image to image.

Every image is a pure function of (seed, split, class, index): its pixels do not depend on how many classes or
images are asked for, nor on the number of workers. All drawing is numpy on batches, in float32.

How a sprite is drawn: each shape is a table of signed distances to its outline. A pose maps pixels to the
shape's own coordinates, the table gives the distance there, and the distance gives the anti-aliased edge, the
rounded rim that catches light, and (read at a shifted place) the soft shadow.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from tinlab.data.scratch import remove_leftovers, scratch_folder
from tinlab.errors import TinlabError
from tinlab.files import flush_folder

SIZE = 64
MARKER = "shapes.json"
"""The file by which a rendered folder is known; it holds the arguments that made it."""
VERSION = 1
"""Changes whenever the same seed would give other pixels."""

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

_SPLITS = {"train": 1, "val": 2, "test": 3}
_BATCH = 64
_TABLE = 128
_REACH = 1.5
_TILE = 128


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


def render(
    folder: Path,
    *,
    classes: int = 20,
    train_per_class: int = 500,
    val_per_class: int = 50,
    test_images: int = 200,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a rendered data set of the official layout into `folder`, and return `folder`.

    It is built beside its place and renamed into it, so a kill leaves no half set. A folder that an earlier
    call made (it holds shapes.json) is replaced; an empty one is filled. `workers` is a number of threads, by
    default one a core, 8 at most. `progress` is called on the calling thread with the images done and their
    total.

    Raises TinlabError for a bad argument, for a folder that holds anything else, and where the disk refuses.
    """
    folder = Path(folder)
    counts = {"train": train_per_class, "val": val_per_class, "test": test_images}
    chosen = catalogue(classes)
    for name, count in (("train_per_class", train_per_class), ("val_per_class", val_per_class)):
        if count < 1:
            raise TinlabError(f"{name} is {count}; at least 1 image is needed")
    if test_images < 0:
        raise TinlabError(f"test_images is {test_images}; give 0 or more")
    if not 0 <= seed < 2**63:
        raise TinlabError(f"seed is {seed}; give a whole number from 0 to 2**63 - 1")
    if workers is not None and workers < 1:
        raise TinlabError(f"workers is {workers}; give 1 or more, or leave it out")
    try:
        _check_replaceable(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        with scratch_folder(folder) as temporary:
            _write_images(temporary, chosen, counts, seed, workers or _cores(), progress)
            _write_lists(temporary, chosen, {**counts, "classes": classes, "seed": seed, "version": VERSION})
            _move_into_place(temporary, folder)
    except OSError as error:
        raise TinlabError(
            f"{folder} cannot be written ({error.strerror or error}); give another place"
        ) from error
    return folder


@dataclass(frozen=True)
class Drawn:
    """A batch of pictures.

    `images` uint8 (B, 64, 64, 3), red, green, blue. `boxes` int64 (B, 4): x0, y0, x1, y1, the first and last
    column and row of the object, whatever covers it. `grey` bool (B,): the picture has no colour.
    """

    images: np.ndarray
    boxes: np.ndarray
    grey: np.ndarray


def draw(split: str, classes: np.ndarray, indices: np.ndarray, *, seed: int = 0) -> Drawn:
    """Draw one picture for each pair of a class number and an index within (split, class).

    `classes` and `indices` are whole numbers, both (B,). `split` is train, val or test.
    """
    numbers = np.asarray(classes, np.int64)
    keys = _mix(np.full(len(numbers), seed, np.uint64))
    for part in (np.full(len(numbers), _SPLITS[split]), numbers, np.asarray(indices)):
        keys = _mix(keys ^ _mix(part.astype(np.uint64)))
    found = catalogue(int(numbers.max()) + 1)
    labels = np.array([[found[n].shape, found[n].texture, found[n].palette] for n in numbers])  # (B, 3)
    return _draw(keys, labels[:, 0], labels[:, 1], labels[:, 2])


# Random numbers: a counter hashed with the image's key, so that they depend on nothing but the image.


def _mix(values: np.ndarray) -> np.ndarray:
    """Scramble uint64 values (the finaliser of the SplitMix64 generator)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class _Dice:
    """Random numbers for a batch, (B,) a throw; the n-th depends on an image's key and n alone."""

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys
        self.throws = 0

    def bits(self) -> np.ndarray:
        self.throws += 1
        return _mix(self.keys + np.uint64(self.throws * 0xD1342543DE82EF95 % 2**64))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        return (low + (high - low) * ((self.bits() >> np.uint64(40)) / 2.0**24)).astype(np.float32)

    def bell(self, spread: float) -> np.ndarray:
        """Roughly normal, mean 0, standard deviation `spread`, never beyond 2.5 times it."""
        return spread * (self.uniform(-1, 1) + self.uniform(-1, 1) + self.uniform(-1, 1))

    def chance(self, probability: float) -> np.ndarray:
        return self.uniform() < probability

    def below(self, count: int) -> np.ndarray:
        """Whole numbers from 0 to `count` - 1."""
        return (self.bits() >> np.uint64(33)).astype(np.int64) % count


# Shapes, as signed distances to an outline: negative inside, in units of about half the shape's extent.


def _circle(x: np.ndarray, y: np.ndarray, cx: float, cy: float, radius: float) -> np.ndarray:
    return np.hypot(x - cx, y - cy) - radius


def _polygon(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed distance to a closed polygon, corners (n, 2)."""
    nearest = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - along * ex, y - ay - along * ey))
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / ey)
    return np.where(inside, -nearest, nearest)


def _regular(count: int, *radii: float, turn: float = 0.0) -> np.ndarray:
    """Corners (count * len(radii), 2) on a circle, the first at the top, with radii taken in turn."""
    total = count * len(radii)
    angles = 2 * math.pi * np.arange(total) / total - math.pi / 2 + turn
    return np.tile(radii, count)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def _outline(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the shape called `name`, y downwards."""
    turns = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    if name == "disc":
        return _circle(x, y, 0, 0, 0.92)
    if name == "ring":
        return np.abs(_circle(x, y, 0, 0, 0.72)) - 0.25
    if name == "triangle":
        return _polygon(x, y, _regular(3, 1.05) + np.array([0, 0.18])) - 0.08
    if name == "square":
        return _polygon(x, y, _regular(4, 1.05, turn=math.pi / 4)) - 0.1
    if name == "hexagon":
        return _polygon(x, y, _regular(6, 0.92)) - 0.06
    if name == "star":
        return _polygon(x, y, _regular(5, 1.04, 0.46)) - 0.05
    if name == "cross":
        a, b = 0.24, 0.86
        corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        return _polygon(x, y, np.array(corners + [(-u, -v) for u, v in corners])) - 0.07
    if name == "crescent":
        # A circle of radius 1 without one of radius 0.82 beside it; they meet at these angles.
        there, back = (np.linspace(math.acos(c), 2 * math.pi - math.acos(c), 40) for c in (0.5776, 0.0946))
        outer = np.stack([0.12 + np.cos(there), np.sin(there)], 1)
        inner = np.stack([0.62 + 0.82 * np.cos(back), 0.82 * np.sin(back)], 1)[-2:0:-1]
        return _polygon(x, y, np.concatenate([outer, inner])) - 0.01
    if name == "heart":
        across, down = 16 * np.sin(turns) ** 3, 13 * np.cos(turns) - 5 * np.cos(2 * turns)
        down = down - 2 * np.cos(3 * turns) - np.cos(4 * turns)
        return _polygon(x, y, np.stack([across / 16.5, -(down + 2.2) / 15.5], 1)) - 0.02
    if name == "gear":
        teeth = [(0.68, -0.2), (1.0, -0.13), (1.0, 0.13), (0.68, 0.2)]
        corners = [
            (r * math.cos(t + 2 * math.pi * n / 8), r * math.sin(t + 2 * math.pi * n / 8))
            for n in range(8)
            for r, t in teeth
        ]
        return np.maximum(_polygon(x, y, np.array(corners)) - 0.03, -_circle(x, y, 0, 0, 0.3))
    if name == "arrow":
        corners = [
            (0, -1),
            (0.8, -0.12),
            (0.3, -0.12),
            (0.3, 0.92),
            (-0.3, 0.92),
            (-0.3, -0.12),
            (-0.8, -0.12),
        ]
        return _polygon(x, y, np.array(corners)) - 0.05
    if name == "drop":
        spread = np.sin(turns) * np.sin(turns / 2) ** 1.6
        return _polygon(x, y, np.stack([spread * 0.92, 0.08 - 0.98 * np.cos(turns)], 1)) - 0.03
    if name == "flower":
        petals = [_circle(x, y, 0.6 * px, 0.6 * py, 0.4) for px, py in _regular(6, 1.0)]
        return np.minimum.reduce([*petals, _circle(x, y, 0, 0, 0.5)])
    if name == "bolt":
        corners = [(0.3, -1.05), (-0.58, 0.14), (-0.08, 0.14), (-0.3, 1.05), (0.6, -0.24), (0.1, -0.24)]
        return _polygon(x, y, np.array(corners)) - 0.05
    if name == "leaf":
        return np.maximum(_circle(x, y, -0.62, 0, 1.18), _circle(x, y, 0.62, 0, 1.18)) - 0.03
    if name == "house":
        corners = [(0, -0.95), (0.98, -0.12), (0.7, -0.12), (0.7, 0.85), (0.24, 0.85), (0.24, 0.28)]
        return _polygon(x, y, np.array(corners + [(-u, v) for u, v in corners[:0:-1]])) - 0.03
    if name == "fish":
        lens = np.maximum(_circle(x, y, -0.22, -0.6, 1.06), _circle(x, y, -0.22, 0.6, 1.06))
        tail = np.array([(0.4, 0), (1.0, -0.55), (0.86, 0), (1.0, 0.55)])
        return np.minimum(lens, _polygon(x, y, tail) - 0.05)
    if name == "cloud":
        puffs = [(-0.58, 0.22, 0.4), (-0.22, -0.16, 0.46), (0.3, -0.08, 0.4), (0.64, 0.26, 0.36)]
        base = _polygon(x, y, np.array([(-0.58, 0.2), (0.64, 0.2), (0.64, 0.52), (-0.58, 0.52)])) - 0.1
        return np.minimum.reduce([base, *(_circle(x, y, *puff) for puff in puffs)])
    if name == "mushroom":
        cap = np.maximum(_circle(x, y, 0, 0.06, 0.98), y - 0.1) - 0.04
        stem = _polygon(x, y, np.array([(-0.24, 0), (0.24, 0), (0.34, 0.86), (-0.34, 0.86)])) - 0.07
        return np.minimum(cap, stem)
    if name == "key":
        bow = np.abs(_circle(x, y, 0, -0.58, 0.34)) - 0.14
        corners = [(-0.1, -0.2), (0.1, -0.2), (0.1, 0.42), (0.4, 0.42), (0.4, 0.58), (0.1, 0.58)]
        corners += [(0.1, 0.74), (0.46, 0.74), (0.46, 0.92), (-0.1, 0.92)]
        return np.minimum(bow, _polygon(x, y, np.array(corners)) - 0.04)
    raise KeyError(name)


@cache
def _distances() -> np.ndarray:
    """All the shapes' signed distances on a grid over -1.5..1.5, float32, flat (20 * 128 * 128,)."""
    ticks = np.linspace(-_REACH, _REACH, _TABLE)
    x, y = np.meshgrid(ticks, ticks)
    return np.stack([_outline(name, x, y) for name, _ in SHAPES]).astype(np.float32).ravel()


@cache
def _clouds() -> np.ndarray:
    """Smooth random hills that repeat every 128 nodes, float32, flat (130 * 130,), about -1 to 1."""
    frequencies = np.fft.fftfreq(_TILE, 1 / _TILE)
    radius = np.hypot(*np.meshgrid(frequencies, frequencies))
    white = np.random.Generator(np.random.PCG64(7)).standard_normal((_TILE, _TILE))
    hills = np.fft.ifft2(np.fft.fft2(white) * np.exp(-((radius / 14) ** 2))).real
    # Two nodes more, for the neighbours of the last, and of a remainder that rounds up to 128.
    return np.pad(hills / (2 * hills.std()), (0, 2), mode="wrap").astype(np.float32).ravel()


@cache
def _grain() -> np.ndarray:
    """Normal noise to cut film grain from, float32 (2**19,)."""
    return np.random.Generator(np.random.PCG64(8)).standard_normal(2**19, dtype=np.float32)


def _read(
    table: np.ndarray, width: int, start: np.ndarray, column: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """Read flat tables at fractional places, linearly between nodes; all places lie in 0..width-1.

    `start` is where each image's table begins, float32 (B, 1, 1); `column` and `row` are float32 (B, 64, 64),
    and are used up.
    """
    left, top = np.floor(column), np.floor(row)
    column -= left
    row -= top
    # Whole numbers below 2**24 are exact in float32, and the tables are far smaller.
    top *= width
    top += left
    top += start
    place = top.astype(np.intp)
    upper, upper_right = table.take(place), table.take(np.add(place, 1, out=place))
    lower_right, lower = (
        table.take(np.add(place, width, out=place)),
        table.take(np.subtract(place, 1, out=place)),
    )
    for near, far in ((upper, upper_right), (lower, lower_right)):
        far -= near
        far *= column
        near += far
    lower -= upper
    lower *= row
    upper += lower
    return upper


def _wide(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]  # (B, 1, 1)


@dataclass(frozen=True)
class _Pose:
    """Where sprites lie: pixel = centre + radius * (rotation, shear, mirror, perspective of the shape).

    All (B,) float32; `cx`, `cy`, `radius` in pixels, `tilt_x`, `tilt_y` the change of depth a pixel.
    """

    cx: np.ndarray
    cy: np.ndarray
    radius: np.ndarray
    matrix: np.ndarray
    tilt_x: np.ndarray
    tilt_y: np.ndarray

    def rows(self, rows: np.ndarray) -> _Pose:
        return _Pose(*(values[rows] for values in vars(self).values()))

    def unproject(self, shift_x: np.ndarray, shift_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shape's coordinates of every pixel, with the sprite moved by a shift in pixels."""
        axis = np.arange(SIZE, dtype=np.float32)
        dx = axis[None, None, :] - _wide(self.cx + shift_x)  # (B, 1, 64)
        dy = axis[None, :, None] - _wide(self.cy + shift_y)  # (B, 64, 1)
        depth = (_wide(self.tilt_x) * dx + 1) + _wide(self.tilt_y) * dy  # (B, 64, 64)
        # A plane seen so obliquely that it passes the eye has no place here; tilts are mild.
        np.reciprocal(np.maximum(depth, 0.3, out=depth), out=depth)
        m = self.matrix / _wide(self.radius)  # (B, 2, 2)
        u = _wide(m[:, 0, 0]) * dx + _wide(m[:, 0, 1]) * dy
        v = _wide(m[:, 1, 0]) * dx + _wide(m[:, 1, 1]) * dy
        u *= depth
        v *= depth
        return u, v  # (B, 64, 64) each

    def distance(self, shapes: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Signed distance in pixels at the shape's coordinates."""
        scale = np.float32((_TABLE - 1) / (2 * _REACH))
        column, row = (np.clip((c + _REACH) * scale, 0, _TABLE - 1.01) for c in (u, v))
        start = _wide((shapes * _TABLE * _TABLE).astype(np.float32))
        found = _read(_distances(), _TABLE, start, column, row)
        found *= _wide(self.radius)
        return found


def _throw_pose(dice: _Dice, radius: tuple[float, float], spread: float) -> _Pose:
    """Poses with centres within about `spread` pixels of the middle, and radii in a range, in pixels."""
    angle = dice.bell(0.6)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, sin], 1), np.stack([-sin, cos], 1)], 1)  # (B, 2, 2)
    bend = np.zeros_like(turn)
    stretch = np.exp(dice.uniform(-0.18, 0.18))
    bend[:, 0, 0] = stretch * np.where(dice.chance(0.5), 1, -1)
    bend[:, 1, 1] = 1 / stretch
    bend[:, 0, 1] = dice.uniform(-0.25, 0.25)
    middle = (SIZE - 1) / 2
    return _Pose(
        cx=middle + dice.uniform(-spread, spread),
        cy=middle + dice.uniform(-spread, spread),
        radius=np.exp(dice.uniform(math.log(radius[0]), math.log(radius[1]))),
        matrix=(bend @ turn).astype(np.float32),
        tilt_x=dice.uniform(-0.008, 0.008),
        tilt_y=dice.uniform(-0.008, 0.008),
    )


@dataclass(frozen=True)
class _Weave:
    """How a texture lies on its surface, all (B,): `period` in pixels, `scale` in periods a unit length."""

    kind: np.ndarray
    period: np.ndarray
    scale: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    phase_p: np.ndarray
    phase_q: np.ndarray
    spokes: np.ndarray

    def rows(self, rows: np.ndarray) -> _Weave:
        return _Weave(*(values[rows] for values in vars(self).values()))


def _throw_weave(
    dice: _Dice, kind: np.ndarray, period: tuple[float, float], pixels_per_unit: np.ndarray
) -> _Weave:
    angle = dice.uniform(0, 2 * math.pi)
    lengths = dice.uniform(*period)
    return _Weave(
        kind=kind,
        period=lengths,
        scale=pixels_per_unit / lengths,
        cos=np.cos(angle),
        sin=np.sin(angle),
        phase_p=dice.uniform(0, 1),
        phase_q=dice.uniform(0, 1),
        spokes=(5 + dice.below(4)).astype(np.float32),
    )


def _texture(weave: _Weave, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How much of the second colour lies at each place, 0..1, (B, 64, 64)."""
    amount = np.empty_like(u)
    for kind in np.unique(weave.kind):
        rows = np.flatnonzero(weave.kind == kind)
        amount[rows] = _one_texture(TEXTURES[kind], weave.rows(rows), u[rows], v[rows])
    return amount


def _one_texture(name: str, weave: _Weave, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    turn = np.float32(2 * math.pi)
    scale, cos, sin = _wide(weave.scale), _wide(weave.cos), _wide(weave.sin)

    def sharp(wave: np.ndarray) -> np.ndarray:
        # A wave of the texture's period crosses zero within about a pixel.
        return np.clip(0.5 + wave * _wide(weave.period / turn), 0, 1)

    if name == "plain":
        return np.zeros_like(u)
    if name == "ringed":
        return sharp(np.sin(turn * (np.sqrt(u * u + v * v) * scale + _wide(weave.phase_p))))
    if name == "rayed":
        return sharp(1.2 * np.sin(_wide(weave.spokes) * np.arctan2(v, u) + turn * _wide(weave.phase_p)))
    p = (u * cos + v * sin) * scale + _wide(weave.phase_p)  # in periods, as q below
    if name == "striped":
        return sharp(np.sin(turn * p))
    q = (v * cos - u * sin) * scale + _wide(weave.phase_q)
    if name == "checked":
        return sharp(1.6 * np.sin(turn / 1.5 * p) * np.sin(turn / 1.5 * q))
    if name == "dotted":
        return sharp(np.cos(turn * p) + np.cos(turn * q) - 0.8)
    if name == "latticed":
        return sharp(np.maximum(np.cos(turn / 1.2 * p), np.cos(turn / 1.2 * q)) - 0.75)
    if name == "zigzag":
        return sharp(np.sin(turn * (p + np.abs(q - np.floor(q) - 0.5) * 1.6)))
    if name == "wavy":
        return sharp(np.sin(turn * (p + 0.28 * np.sin(turn * 0.6 * q))))
    if name == "faded":
        slope = (u * cos + v * sin) * 0.55 + 0.5
        return np.clip(slope, 0, 1)
    nodes = np.float32(5)  # table nodes a period: a hill is about as wide as a stripe
    column, row = (np.mod(c * nodes, np.float32(_TILE)) for c in (p, q))
    hills = _read(_clouds(), _TILE + 2, np.zeros((len(u), 1, 1), np.float32), column, row)
    if name == "marbled":
        return 0.5 + 0.5 * np.sin(turn * (0.35 * p + 1.1 * hills))
    return sharp(3 * (hills - 0.12))  # spotted


# Colour.


def _oklch(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """sRGB in 0..1, (B, 3) float32, of OKLCH colours (hue in degrees); what a screen lacks is clipped."""
    angle = np.deg2rad(hue)
    a, b = chroma * np.cos(angle), chroma * np.sin(angle)
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        1,
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    # A sum written out: a matrix product may round differently in a batch of another size.
    linear = np.clip((cones[:, None, :] ** 3 * to_linear).sum(2), 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).astype(
        np.float32
    )


def _throw_paint(dice: _Dice, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two colours for sprites, (B, 3) each, and the lightness of the first, (B,)."""
    hue, light, chroma = (np.array([p[n] for p in PALETTES])[palette] for n in (1, 2, 3))
    hue, light, chroma = hue + dice.bell(9), light + dice.bell(0.05), chroma * dice.uniform(0.7, 1.1)
    style = dice.below(3)  # the second colour: a pale one, a deep one, or one from across the wheel
    other_hue = hue + np.choose(style, [dice.bell(30), dice.bell(20), 180 + dice.bell(50)])
    other_light = np.choose(style, [dice.uniform(0.88, 0.97), light - dice.uniform(0.2, 0.34), light + 0.14])
    other_chroma = np.choose(style, [dice.uniform(0.01, 0.06), chroma * 0.8, dice.uniform(0.08, 0.14)])
    return _oklch(light, chroma, hue), _oklch(other_light, other_chroma, other_hue), light


# The picture.


@dataclass(frozen=True)
class _Light:
    """One light a picture, all (B,): a direction towards it, and how far and how dark shadows fall."""

    x: np.ndarray
    y: np.ndarray
    reach: np.ndarray
    softness: np.ndarray
    darkness: np.ndarray

    def rows(self, rows: np.ndarray) -> _Light:
        return _Light(*(values[rows] for values in vars(self).values()))


@dataclass(frozen=True)
class _Sprite:
    """A thing to paint: what it is and where, how it is coloured ((B, 3) each) and finished ((B,) each)."""

    shape: np.ndarray
    pose: _Pose
    weave: _Weave
    first: np.ndarray
    second: np.ndarray
    rim: np.ndarray
    """Width of the rounded rim, in pixels."""
    relief: np.ndarray
    """How strongly the rim catches light."""
    outline: np.ndarray
    """How dark a line runs along the edge, 0 for none."""


def _throw_sprite(
    dice: _Dice, shape: np.ndarray, texture: np.ndarray, palette: np.ndarray, pose: _Pose
) -> tuple[_Sprite, np.ndarray]:
    """A sprite for every image, and the lightness (B,) of its main colour."""
    first, second, lightness = _throw_paint(dice, palette)
    weave = _throw_weave(dice, texture, (5.5, 10.0), pose.radius)
    rim, relief = dice.uniform(1.5, 6), dice.uniform(0.1, 0.4)
    outline = np.where(dice.chance(0.2), dice.uniform(0.3, 0.6), np.float32(0))
    return _Sprite(shape, pose, weave, first, second, rim, relief, outline), lightness


def _paint(canvas: np.ndarray, sprite: _Sprite, light: _Light, rows: np.ndarray) -> np.ndarray:
    """Paint the sprites of the images `rows` (n,) on `canvas` (B, 3, 64, 64), with their shadows.

    Returns how much of each pixel they cover, 0..1, (n, 64, 64).
    """
    pose, light, shape = sprite.pose.rows(rows), light.rows(rows), sprite.shape[rows]
    under = canvas[rows]  # (n, 3, 64, 64)
    u, v = pose.unproject(-light.x * light.reach, -light.y * light.reach)
    shadow = np.clip(0.5 - pose.distance(shape, u, v) * _wide(0.5 / light.softness), 0, 1)
    under *= (1 - _wide(light.darkness) * shadow * shadow * (3 - 2 * shadow))[:, None]

    still = np.zeros_like(pose.cx)
    u, v = pose.unproject(still, still)
    distance = pose.distance(shape, u, v)
    cover = np.clip(0.5 - distance, 0, 1)
    # The slope of the distance points outwards: against the light's direction it tells lit rim from dark.
    facing = np.zeros_like(distance)
    facing[:, :, 1:-1] = (distance[:, :, 2:] - distance[:, :, :-2]) * _wide(light.x / 2)
    facing[:, 1:-1] += (distance[:, 2:] - distance[:, :-2]) * _wide(light.y / 2)
    facing *= np.clip(1 + distance / _wide(sprite.rim[rows]), 0, 1)
    shade = 1 + _wide(sprite.relief[rows]) * facing
    shade -= _wide(sprite.outline[rows]) * np.clip(distance + 2.2, 0, 1)
    amount = _texture(sprite.weave.rows(rows), u, v)[:, None]  # (n, 1, 64, 64)
    first, second = sprite.first[rows][:, :, None, None], sprite.second[rows][:, :, None, None]
    paint = first + amount * (second - first)  # (n, 3, 64, 64)
    paint *= shade[:, None]
    paint -= under
    paint *= cover[:, None]
    under += paint
    canvas[rows] = under
    return cover


def _background(dice: _Dice, lightness: np.ndarray) -> np.ndarray:
    """Table tops and walls, (B, 3, 64, 64): two near colours in one of the textures."""
    light, hue = dice.uniform(0.32, 0.94), dice.uniform(0, 360)
    near = np.abs(light - lightness) < 0.14
    light = np.where(near, np.where(lightness > 0.62, lightness - 0.24, lightness + 0.24), light)
    chroma = dice.uniform(0.0, 0.09)
    first = _oklch(light, chroma, hue)
    second = _oklch(light + dice.bell(0.09), chroma * dice.uniform(0.6, 1.5), hue + dice.bell(25))
    unit = np.full(len(light), SIZE / 2, np.float32)
    weave = _throw_weave(dice, dice.below(len(TEXTURES)), (6.0, 22.0), unit)
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    u = axis[None, None, :] + _wide(dice.uniform(-0.6, 0.6)) + np.zeros((1, SIZE, 1), np.float32)
    v = axis[None, :, None] + _wide(dice.uniform(-0.6, 0.6)) + np.zeros((1, 1, SIZE), np.float32)
    amount = _texture(weave, u, v)[:, None]
    low, high = first[:, :, None, None], second[:, :, None, None]
    return low + amount * (high - low)  # (B, 3, 64, 64)


def _draw(keys: np.ndarray, shape: np.ndarray, texture: np.ndarray, palette: np.ndarray) -> Drawn:
    """Draw a picture for each key: keys uint64 (B,), the rest int64 (B,)."""
    dice, count = _Dice(keys), len(keys)
    every = np.arange(count)
    # One picture in four wears another class's colours.
    palette = np.where(dice.chance(0.25), dice.below(len(PALETTES)), palette)
    pose = _throw_pose(dice, (13.0, 25.0), 9.0)
    toy, lightness = _throw_sprite(dice, shape, texture, palette, pose)
    bearing = dice.uniform(0, 2 * math.pi)
    light = _Light(
        np.cos(bearing), np.sin(bearing), dice.uniform(1, 5), dice.uniform(1.5, 5), dice.uniform(0.15, 0.5)
    )
    canvas = _background(dice, lightness)
    for probability in (0.6, 0.35):
        _paint(canvas, _throw_clutter(dice, pose, 1.25), light, np.flatnonzero(dice.chance(probability)))
    cover = _paint(canvas, toy, light, every)
    _paint(canvas, _throw_clutter(dice, pose, 0.95), light, np.flatnonzero(dice.chance(0.35)))
    canvas = _photograph(dice, canvas)
    grey = dice.chance(0.02)
    luma = (canvas * np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]).sum(1, keepdims=True)
    canvas = np.where(grey[:, None, None, None], luma, canvas)
    pixels = (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Drawn(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), _boxes(cover > 0.5), grey)


def _throw_clutter(dice: _Dice, toy: _Pose, distance: float) -> _Sprite:
    """Small sprites of any kind around the toy, their centres about `distance` times its radius away."""
    pose = _throw_pose(dice, (5.0, 11.0), 0.0)
    bearing, away = dice.uniform(0, 2 * math.pi), (distance + dice.uniform(0, 0.5)) * toy.radius
    pose = _Pose(
        toy.cx + away * np.cos(bearing),
        toy.cy + away * np.sin(bearing),
        pose.radius,
        pose.matrix,
        pose.tilt_x,
        pose.tilt_y,
    )
    kinds = dice.below(len(SHAPES)), dice.below(len(TEXTURES)), dice.below(len(PALETTES))
    return _throw_sprite(dice, *kinds, pose)[0]


def _photograph(dice: _Dice, canvas: np.ndarray) -> np.ndarray:
    """Light the scene unevenly, tint, blur and grain it: (B, 3, 64, 64) to (B, 3, 64, 64)."""
    count = len(canvas)
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    bearing, fall = dice.uniform(0, 2 * math.pi), dice.uniform(0, 0.28)
    across = _wide(fall * np.cos(bearing)) * axis[None, None, :]
    down = _wide(fall * np.sin(bearing)) * axis[None, :, None]
    vignette = _wide(dice.uniform(0, 0.14)) * axis**2
    field = (_wide(dice.uniform(0.9, 1.2)) + across - vignette) + (down - vignette.transpose(0, 2, 1))
    cast = np.stack([1 + dice.bell(0.06) for _ in range(3)], 1)  # (B, 3)
    canvas = canvas * (cast[:, :, None, None] * field[:, None])

    sigma = np.where(dice.chance(0.25), dice.uniform(0.6, 1.3), dice.uniform(0.3, 0.5))  # in pixels
    steps = np.arange(SIZE, dtype=np.float32)
    kernel = np.exp(-((steps[:, None] - steps) ** 2) / _wide(2 * sigma**2))  # (B, 64, 64)
    kernel /= kernel.sum(2, keepdims=True)
    canvas = kernel[:, None] @ canvas @ kernel.transpose(0, 2, 1)[:, None]

    strength, start = dice.uniform(0, 0.035), dice.below(len(_grain()) - canvas[0].size)
    for n in range(count):
        canvas[n] += strength[n] * _grain()[start[n] : start[n] + canvas[n].size].reshape(canvas[n].shape)
    return canvas


def _boxes(covered: np.ndarray) -> np.ndarray:
    """The first and last column and row that hold a True: bool (B, 64, 64) to x0, y0, x1, y1 int64 (B, 4)."""
    columns, rows = np.any(covered, axis=1), np.any(covered, axis=2)  # (B, 64) each
    last = SIZE - 1
    return np.stack(
        [
            columns.argmax(1),
            rows.argmax(1),
            last - columns[:, ::-1].argmax(1),
            last - rows[:, ::-1].argmax(1),
        ],
        1,
    )


# The folder.


def _cores() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 8)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise TinlabError(f"{folder} exists and is not a folder; give another place")
    if any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise TinlabError(f"{folder} holds files that were not rendered; give an empty or new folder")


def _move_into_place(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`, first taking away what an earlier call left there."""
    _check_replaceable(folder)
    if folder.exists():
        with scratch_folder(folder) as old:
            folder.rename(old / folder.name)
            try:
                temporary.rename(folder)
            except OSError:
                (old / folder.name).rename(folder)
                raise
    else:
        temporary.rename(folder)
    flush_folder(folder.parent)


def _jobs(split: str, classes: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each image of a split its class, its index within the class, and the number in its file's name."""
    if split == "train":
        labels, indices = np.divmod(np.arange(classes * count), count)
        return labels, indices, indices
    total = classes * count if split == "val" else count
    indices, labels = np.divmod(np.arange(total), classes)
    # As in the official set, neighbouring files of val and test are of unrelated classes.
    shuffled = _mix(np.arange(total, dtype=np.uint64) ^ _mix(np.array([seed + _SPLITS[split]], np.uint64)))
    return labels, indices, np.argsort(np.argsort(shuffled))


def _write_images(
    folder: Path,
    chosen: list[ShapeClass],
    counts: dict[str, int],
    seed: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Draw all the images and write them, then the files that give their boxes."""
    for split in ("val", "test"):
        (folder / split / "images").mkdir(parents=True)
    for c in chosen:
        (folder / "train" / c.wnid / "images").mkdir(parents=True)
    plan = {split: _jobs(split, len(chosen), count, seed) for split, count in counts.items()}
    boxes = {split: np.zeros((len(labels), 4), np.int64) for split, (labels, _, _) in plan.items()}

    def path(split: str, job: np.integer | int) -> Path:
        labels, _, numbers = plan[split]
        if split == "train":
            wnid = chosen[labels[job]].wnid
            return folder / split / wnid / "images" / f"{wnid}_{numbers[job]}.JPEG"
        return folder / split / "images" / f"{split}_{numbers[job]}.JPEG"

    def work(split: str, start: int) -> int:
        labels, indices, _ = plan[split]
        drawn = draw(split, labels[start : start + _BATCH], indices[start : start + _BATCH], seed=seed)
        for n, image in enumerate(drawn.images):
            path(split, start + n).write_bytes(_jpeg(image, bool(drawn.grey[n])))
        boxes[split][start : start + _BATCH] = drawn.boxes
        return len(drawn.images)

    total, done = sum(map(len, boxes.values())), 0
    for prepare in (_distances, _clouds, _grain):
        prepare()  # here, so that threads do not each build the tables
    # glibc hands freed blocks back to the system unless a block as large was freed before (up to 32 MiB).
    # Without this, a third of the time goes into fresh pages. Elsewhere it does nothing.
    np.empty(2**25 - 2**16, np.uint8)
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, s, n) for s in plan for n in range(0, len(boxes[s]), _BATCH)]
        try:
            for future in as_completed(futures):
                done += future.result()
                if progress:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise

    for number, c in enumerate(chosen):
        jobs = np.flatnonzero(plan["train"][0] == number)
        lines = [_line(path("train", job).name, *boxes["train"][job]) for job in jobs]
        (folder / "train" / c.wnid / f"{c.wnid}_boxes.txt").write_text("".join(lines), "utf-8")
    labels, _, numbers = plan["val"]
    order = np.argsort(numbers)
    lines = [_line(path("val", n).name, chosen[labels[n]].wnid, *boxes["val"][n]) for n in order]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines), "utf-8")


def _line(*fields: object) -> str:
    return "\t".join(map(str, fields)) + "\n"


def _jpeg(image: np.ndarray, grey: bool) -> bytes:
    """Encode uint8 (64, 64, 3); a grey picture gets one channel, as 2% of the official files have."""
    import simplejpeg

    if grey:
        image = np.ascontiguousarray(image[:, :, :1])
        return bytes(simplejpeg.encode_jpeg(image, quality=90, colorspace="GRAY", colorsubsampling="Gray"))
    return bytes(simplejpeg.encode_jpeg(image, quality=90, colorspace="RGB", colorsubsampling="420"))


def _write_lists(folder: Path, chosen: list[ShapeClass], arguments: dict[str, int]) -> None:
    (folder / "wnids.txt").write_text("".join(f"{c.wnid}\n" for c in chosen), "utf-8")
    words = [f"{c.wnid}\t{c.words}\n" for c in sorted(chosen, key=lambda c: c.wnid)]
    (folder / "words.txt").write_text("".join(words), "utf-8")
    (folder / MARKER).write_text(json.dumps(arguments, indent=2) + "\n", "utf-8")
