"""A picture: poses, light, sprites, the background, and what a camera does to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tinlab.data.shapes.catalogue import PALETTES, SHAPES, TEXTURES, catalogue
from tinlab.data.shapes.dice import Dice, mix
from tinlab.data.shapes.outlines import REACH, TABLE, distances
from tinlab.data.shapes.surfaces import Weave, oklch, texture_at, throw_paint, throw_weave
from tinlab.data.shapes.tables import Columns, grain, read, wide

SIZE = 64
"""Of every picture, in pixels a side."""
SPLITS = {"train": 1, "val": 2, "test": 3}
"""What a split adds to the keys of its pictures."""


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
    keys = mix(np.full(len(numbers), seed, np.uint64))
    for part in (np.full(len(numbers), SPLITS[split]), numbers, np.asarray(indices)):
        keys = mix(keys ^ mix(part.astype(np.uint64)))
    found = catalogue(int(numbers.max()) + 1)
    labels = np.array([[found[n].shape, found[n].texture, found[n].palette] for n in numbers])  # (B, 3)
    return _draw(keys, labels[:, 0], labels[:, 1], labels[:, 2])


@dataclass(frozen=True)
class _Pose(Columns):
    """Where sprites lie: pixel = centre + radius * (rotation, shear, mirror, perspective of the shape).

    All (B,) float32; `cx`, `cy`, `radius` in pixels, `tilt_x`, `tilt_y` the change of depth a pixel.
    """

    cx: np.ndarray
    cy: np.ndarray
    radius: np.ndarray
    matrix: np.ndarray
    tilt_x: np.ndarray
    tilt_y: np.ndarray

    def unproject(self, shift_x: np.ndarray, shift_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shape's coordinates of every pixel, with the sprite moved by a shift in pixels."""
        axis = np.arange(SIZE, dtype=np.float32)
        dx = axis[None, None, :] - wide(self.cx + shift_x)  # (B, 1, 64)
        dy = axis[None, :, None] - wide(self.cy + shift_y)  # (B, 64, 1)
        depth = (wide(self.tilt_x) * dx + 1) + wide(self.tilt_y) * dy  # (B, 64, 64)
        # A plane seen so obliquely that it passes the eye has no place here; tilts are mild.
        np.reciprocal(np.maximum(depth, 0.3, out=depth), out=depth)
        m = self.matrix / wide(self.radius)  # (B, 2, 2)
        u = wide(m[:, 0, 0]) * dx + wide(m[:, 0, 1]) * dy
        v = wide(m[:, 1, 0]) * dx + wide(m[:, 1, 1]) * dy
        u *= depth
        v *= depth
        return u, v  # (B, 64, 64) each

    def distance(self, shapes: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Signed distance in pixels at the shape's coordinates."""
        scale = np.float32((TABLE - 1) / (2 * REACH))
        column, row = (np.clip((c + REACH) * scale, 0, TABLE - 1.01) for c in (u, v))
        start = wide((shapes * TABLE * TABLE).astype(np.float32))
        found = read(distances(), TABLE, start, column, row)
        found *= wide(self.radius)
        return found


def _throw_pose(dice: Dice, radius: tuple[float, float], spread: float) -> _Pose:
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
class _Light(Columns):
    """One light a picture, all (B,): a direction towards it, and how far and how dark shadows fall."""

    x: np.ndarray
    y: np.ndarray
    reach: np.ndarray
    softness: np.ndarray
    darkness: np.ndarray


@dataclass(frozen=True)
class _Sprite:
    """A thing to paint: what it is and where, how it is coloured ((B, 3) each) and finished ((B,) each)."""

    shape: np.ndarray
    pose: _Pose
    weave: Weave
    first: np.ndarray
    second: np.ndarray
    rim: np.ndarray
    """Width of the rounded rim, in pixels."""
    relief: np.ndarray
    """How strongly the rim catches light."""
    outline: np.ndarray
    """How dark a line runs along the edge, 0 for none."""


def _throw_sprite(
    dice: Dice, shape: np.ndarray, texture: np.ndarray, palette: np.ndarray, pose: _Pose
) -> tuple[_Sprite, np.ndarray]:
    """A sprite for every image, and the lightness (B,) of its main colour."""
    first, second, lightness = throw_paint(dice, palette)
    weave = throw_weave(dice, texture, (5.5, 10.0), pose.radius)
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
    shadow = np.clip(0.5 - pose.distance(shape, u, v) * wide(0.5 / light.softness), 0, 1)
    under *= (1 - wide(light.darkness) * shadow * shadow * (3 - 2 * shadow))[:, None]

    still = np.zeros_like(pose.cx)
    u, v = pose.unproject(still, still)
    distance = pose.distance(shape, u, v)
    cover = np.clip(0.5 - distance, 0, 1)
    # The slope of the distance points outwards: against the light's direction it tells lit rim from dark.
    facing = np.zeros_like(distance)
    facing[:, :, 1:-1] = (distance[:, :, 2:] - distance[:, :, :-2]) * wide(light.x / 2)
    facing[:, 1:-1] += (distance[:, 2:] - distance[:, :-2]) * wide(light.y / 2)
    facing *= np.clip(1 + distance / wide(sprite.rim[rows]), 0, 1)
    shade = 1 + wide(sprite.relief[rows]) * facing
    shade -= wide(sprite.outline[rows]) * np.clip(distance + 2.2, 0, 1)
    amount = texture_at(sprite.weave.rows(rows), u, v)[:, None]  # (n, 1, 64, 64)
    first, second = sprite.first[rows][:, :, None, None], sprite.second[rows][:, :, None, None]
    paint = first + amount * (second - first)  # (n, 3, 64, 64)
    paint *= shade[:, None]
    paint -= under
    paint *= cover[:, None]
    under += paint
    canvas[rows] = under
    return cover


def _background(dice: Dice, lightness: np.ndarray) -> np.ndarray:
    """Table tops and walls, (B, 3, 64, 64): two near colours in one of the textures."""
    light, hue = dice.uniform(0.32, 0.94), dice.uniform(0, 360)
    near = np.abs(light - lightness) < 0.14
    light = np.where(near, np.where(lightness > 0.62, lightness - 0.24, lightness + 0.24), light)
    chroma = dice.uniform(0.0, 0.09)
    first = oklch(light, chroma, hue)
    second = oklch(light + dice.bell(0.09), chroma * dice.uniform(0.6, 1.5), hue + dice.bell(25))
    unit = np.full(len(light), SIZE / 2, np.float32)
    weave = throw_weave(dice, dice.below(len(TEXTURES)), (6.0, 22.0), unit)
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    u = axis[None, None, :] + wide(dice.uniform(-0.6, 0.6)) + np.zeros((1, SIZE, 1), np.float32)
    v = axis[None, :, None] + wide(dice.uniform(-0.6, 0.6)) + np.zeros((1, 1, SIZE), np.float32)
    amount = texture_at(weave, u, v)[:, None]
    low, high = first[:, :, None, None], second[:, :, None, None]
    return low + amount * (high - low)  # (B, 3, 64, 64)


def _draw(keys: np.ndarray, shape: np.ndarray, texture: np.ndarray, palette: np.ndarray) -> Drawn:
    """Draw a picture for each key: keys uint64 (B,), the rest int64 (B,)."""
    dice, count = Dice(keys), len(keys)
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
    return Drawn(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), boxes_of(cover > 0.5), grey)


def _throw_clutter(dice: Dice, toy: _Pose, distance: float) -> _Sprite:
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


def _photograph(dice: Dice, canvas: np.ndarray) -> np.ndarray:
    """Light the scene unevenly, tint, blur and grain it: (B, 3, 64, 64) to (B, 3, 64, 64)."""
    count = len(canvas)
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    bearing, fall = dice.uniform(0, 2 * math.pi), dice.uniform(0, 0.28)
    across = wide(fall * np.cos(bearing)) * axis[None, None, :]
    down = wide(fall * np.sin(bearing)) * axis[None, :, None]
    vignette = wide(dice.uniform(0, 0.14)) * axis**2
    field = (wide(dice.uniform(0.9, 1.2)) + across - vignette) + (down - vignette.transpose(0, 2, 1))
    cast = np.stack([1 + dice.bell(0.06) for _ in range(3)], 1)  # (B, 3)
    canvas = canvas * (cast[:, :, None, None] * field[:, None])

    sigma = np.where(dice.chance(0.25), dice.uniform(0.6, 1.3), dice.uniform(0.3, 0.5))  # in pixels
    steps = np.arange(SIZE, dtype=np.float32)
    kernel = np.exp(-((steps[:, None] - steps) ** 2) / wide(2 * sigma**2))  # (B, 64, 64)
    kernel /= kernel.sum(2, keepdims=True)
    canvas = kernel[:, None] @ canvas @ kernel.transpose(0, 2, 1)[:, None]

    strength, start = dice.uniform(0, 0.035), dice.below(len(grain()) - canvas[0].size)
    for n in range(count):
        canvas[n] += strength[n] * grain()[start[n] : start[n] + canvas[n].size].reshape(canvas[n].shape)
    return canvas


def boxes_of(covered: np.ndarray) -> np.ndarray:
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
