"""The shapes, as signed distances to an outline: negative inside, in units of half a shape's extent or so."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from tinlab.data.shapes.catalogue import SHAPES

TABLE = 128
REACH = 1.5


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
def distances() -> np.ndarray:
    """All the shapes' signed distances on a grid over -1.5..1.5, float32, flat (20 * 128 * 128,)."""
    ticks = np.linspace(-REACH, REACH, TABLE)
    x, y = np.meshgrid(ticks, ticks)
    return np.stack([_outline(name, x, y) for name, _ in SHAPES]).astype(np.float32).ravel()
