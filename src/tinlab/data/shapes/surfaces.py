"""Textures and colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tinlab.data.shapes.catalogue import PALETTES, TEXTURES
from tinlab.data.shapes.dice import Dice
from tinlab.data.shapes.tables import HILLS, Columns, clouds, read, wide


@dataclass(frozen=True)
class Weave(Columns):
    """How a texture lies on its surface, all (B,): `period` in pixels, `scale` in periods a unit length."""

    kind: np.ndarray
    period: np.ndarray
    scale: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    phase_p: np.ndarray
    phase_q: np.ndarray
    spokes: np.ndarray


def throw_weave(
    dice: Dice, kind: np.ndarray, period: tuple[float, float], pixels_per_unit: np.ndarray
) -> Weave:
    angle = dice.uniform(0, 2 * math.pi)
    lengths = dice.uniform(*period)
    return Weave(
        kind=kind,
        period=lengths,
        scale=pixels_per_unit / lengths,
        cos=np.cos(angle),
        sin=np.sin(angle),
        phase_p=dice.uniform(0, 1),
        phase_q=dice.uniform(0, 1),
        spokes=(5 + dice.below(4)).astype(np.float32),
    )


def texture_at(weave: Weave, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How much of the second colour lies at each place, 0..1, (B, 64, 64)."""
    amount = np.empty_like(u)
    for kind in np.unique(weave.kind):
        rows = np.flatnonzero(weave.kind == kind)
        amount[rows] = one_texture(TEXTURES[kind], weave.rows(rows), u[rows], v[rows])
    return amount


def one_texture(name: str, weave: Weave, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    turn = np.float32(2 * math.pi)
    scale, cos, sin = wide(weave.scale), wide(weave.cos), wide(weave.sin)

    def sharp(wave: np.ndarray) -> np.ndarray:
        # A wave of the texture's period crosses zero within about a pixel.
        return np.clip(0.5 + wave * wide(weave.period / turn), 0, 1)

    if name == "plain":
        return np.zeros_like(u)
    if name == "ringed":
        return sharp(np.sin(turn * (np.sqrt(u * u + v * v) * scale + wide(weave.phase_p))))
    if name == "rayed":
        return sharp(1.2 * np.sin(wide(weave.spokes) * np.arctan2(v, u) + turn * wide(weave.phase_p)))
    p = (u * cos + v * sin) * scale + wide(weave.phase_p)  # in periods, as q below
    if name == "striped":
        return sharp(np.sin(turn * p))
    q = (v * cos - u * sin) * scale + wide(weave.phase_q)
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
    column, row = (np.mod(c * nodes, np.float32(HILLS)) for c in (p, q))
    hills = read(clouds(), HILLS + 2, np.zeros((len(u), 1, 1), np.float32), column, row)
    if name == "marbled":
        return 0.5 + 0.5 * np.sin(turn * (0.35 * p + 1.1 * hills))
    return sharp(3 * (hills - 0.12))  # spotted


def oklch(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
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


def throw_paint(dice: Dice, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two colours for sprites, (B, 3) each, and the lightness of the first, (B,)."""
    hue, light, chroma = (np.array([p[n] for p in PALETTES])[palette] for n in (1, 2, 3))
    hue, light, chroma = hue + dice.bell(9), light + dice.bell(0.05), chroma * dice.uniform(0.7, 1.1)
    style = dice.below(3)  # the second colour: a pale one, a deep one, or one from across the wheel
    other_hue = hue + np.choose(style, [dice.bell(30), dice.bell(20), 180 + dice.bell(50)])
    other_light = np.choose(style, [dice.uniform(0.88, 0.97), light - dice.uniform(0.2, 0.34), light + 0.14])
    other_chroma = np.choose(style, [dice.uniform(0.01, 0.06), chroma * 0.8, dice.uniform(0.08, 0.14)])
    return oklch(light, chroma, hue), oklch(other_light, other_chroma, other_hue), light
