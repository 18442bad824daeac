"""Charts as inline SVG, drawn by hand.

Colours come from the page's CSS variables by class name, so that one drawing is legible in light, in dark
and on paper. Every function returns SVG source; words that go into it are escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from tinlab import files
from tinlab.evaluation.metrics import ReliabilityBin

WIDTH = 560
LEFT, RIGHT = 52, 14
POINTS_DRAWN = 240
"""Longer curves are averaged down to this many points: a stroke cannot show more."""


@dataclass(frozen=True)
class Series:
    """One curve. `x` in epochs or minutes, `y` in the chart's unit, equally long and finite; `style` are CSS
    classes, "train" among them for a thin curve without dots."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str


@dataclass(frozen=True)
class Band:
    """A stretch of the horizontal axis with a name."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class LineChart:
    """A drawn chart, and what a script needs to read values off it: pixel (in viewBox units) and value of
    the two ends of the horizontal axis."""

    svg: str
    pixels: tuple[float, float]
    values: tuple[float, float]


def line_chart(
    series: Sequence[Series],
    *,
    x_high: float,
    label: str,
    height: int = 300,
    unit: str = "",
    from_zero: bool = False,
    clock: tuple[Sequence[float], Sequence[float]] | None = None,
    bands: Sequence[Band] = (),
    x_unit: str = "epochs",
) -> LineChart:
    """Curves over 0 to `x_high` of `x_unit`. `label` describes the chart to a screen reader; `unit` follows
    the numbers of the vertical axis; `clock` is (epochs, train seconds), and adds an axis of time on top.
    `bands` are shaded by turns, with their names on top."""
    x_high = x_high or 1.0
    every = [value for s in series for value in s.y]
    lowest, highest = (min(every), max(every)) if every else (0.0, 1.0)
    y_ticks = ticks(0.0 if from_zero else lowest, highest, about=5)
    y_low, y_high = min(y_ticks[0], lowest), max(y_ticks[-1], highest)
    top, bottom = (34 if clock else 12), height - 44

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / x_high

    def up(y: float) -> float:
        return bottom - (bottom - top) * (y - y_low) / (y_high - y_low or 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{_escaped(label)}">']
    for place, band in enumerate(bands):
        parts.extend(_band(band, across(band.start), across(band.end), top, bottom, shaded=place % 2 == 1))
    for y in y_ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
        )
        parts.append(_text(LEFT - 8, up(y) + 4, plain(y) + unit, "end"))
    for x in ticks(0.0, x_high, about=5, inside=True):
        parts.append(_text(across(x), bottom + 20, plain(x), "middle"))
    parts.append(_text(WIDTH - RIGHT, height - 3, x_unit, "end", "unit"))
    if clock:
        parts.extend(_minutes_axis(clock, x_high, across, top))
    for s in series:
        x_drawn, y_drawn = thinned(s.x, s.y)
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in zip(x_drawn, y_drawn, strict=True))
        if len(x_drawn) > 1:
            parts.append(f'<polyline class="curve {s.style}" points="{path}"/>')
        if len(x_drawn) <= 40:
            parts.extend(
                f'<circle class="dot {s.style}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.6"/>'
                for x, y in zip(x_drawn, y_drawn, strict=True)
                if len(x_drawn) == 1 or "train" not in s.style.split()
            )
    parts.append(f'<line class="cursor" x1="0" x2="0" y1="{top}" y2="{bottom}" visibility="hidden"/></svg>')
    return LineChart("".join(parts), (LEFT, WIDTH - RIGHT), (0.0, x_high))


def reliability_chart(bins: Sequence[ReliabilityBin], *, label: str) -> str:
    """Accuracy of each bin of confidence as a bar against the diagonal, over a histogram of confidence."""
    side, left, top, gap, below = 330, 52, 10, 16, 66
    width, height = left + side + 14, top + side + gap + below + 38
    bottom, floor = top + side, top + side + gap + below
    most = max((found.images for found in bins), default=0) or 1
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_escaped(label)}">']
    for value in (0, 25, 50, 75, 100):
        y = bottom - side * value / 100
        parts.append(f'<line class="grid" x1="{left}" x2="{left + side}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, y + 4, f"{value}%", "end"))
        parts.append(_text(left + side * value / 100, floor + 18, f"{value}%", "middle"))
    for found in bins:
        x, wide = left + side * found.low, side * (found.high - found.low)
        if found.accuracy_percent is not None and found.confidence_percent is not None:
            tall = side * found.accuracy_percent / 100
            told = (
                f"confidence {100 * found.low:.0f} to {100 * found.high:.0f}%: {found.images:,} images, "
                f"{found.accuracy_percent:.1f}% right, {found.confidence_percent:.1f}% sure"
            )
            parts.append(
                f'<rect class="bar" x="{x + 1:.1f}" y="{bottom - tall:.1f}" width="{wide - 2:.1f}" '
                f'height="{tall:.1f}"><title>{told}</title></rect>'
            )
        share = below * found.images / most
        parts.append(
            f'<rect class="bar quiet" x="{x + 1:.1f}" y="{floor - share:.1f}" width="{wide - 2:.1f}" '
            f'height="{share:.1f}"><title>{found.images:,} images</title></rect>'
        )
    parts.append(f'<line class="ideal" x1="{left}" y1="{bottom}" x2="{left + side}" y2="{top}"/>')
    parts.append(_text(left + side, height - 3, "confidence", "end", "unit"))
    parts.append(_text(left + 6, top + 12, "accuracy", "start", "unit"))
    parts.append(_text(left + 6, top + side + gap + 8, "images", "start", "unit"))
    return "".join(parts) + "</svg>"


def sorted_bars(percents: Sequence[float], *, label: str) -> str:
    """One bar a class, best first; the drawing is stretched to the page's width, so it holds no text."""
    ordered = sorted(percents, reverse=True)
    parts = [
        f'<svg class="stretched" viewBox="0 0 {10 * len(ordered)} 100" preserveAspectRatio="none" '
        f'role="img" aria-label="{_escaped(label)}">'
    ]
    for place, value in enumerate(ordered):
        parts.append(
            f'<rect class="bar" x="{10 * place + 1}" y="{100 - value:.1f}" width="8" height="{value:.1f}"/>'
        )
    return "".join(parts) + "</svg>"


def ticks(low: float, high: float, *, about: int, inside: bool = False) -> list[float]:
    """Round numbers a round step apart that cover low to high, or that lie `inside` of it (epochs and times,
    which are not cut into quarters)."""
    low, high = min(low, high), max(low, high)
    if not high - low > 1e-9 * max(abs(low), abs(high), 1e-3):  # flat, but for rounding
        margin = max(0.5, 1e-3 * abs(high))
        low, high = (low - margin, high + margin) if not inside else (0.0, max(high, 1.0))
    rough = (high - low) / about
    scale = 10 ** math.floor(math.log10(rough))
    step = next(
        (scale * m for m in ((1, 2, 5) if inside else (1, 2, 2.5, 5)) if rough <= scale * m), scale * 10
    )
    first, last = low / step, high / step
    start, stop = (
        (math.ceil(first - 1e-9), math.floor(last + 1e-9))
        if inside
        else (math.floor(first + 1e-9), math.ceil(last - 1e-9))
    )
    return [round(i * step, 12) for i in range(start, stop + 1)]


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """The curve, averaged in equal runs of points down to POINTS_DRAWN where it has more."""
    if len(x) <= POINTS_DRAWN:
        return list(x), list(y)
    starts = np.linspace(0, len(x), POINTS_DRAWN, endpoint=False).astype(int)
    lengths = np.diff([*starts, len(x)])
    return (np.add.reduceat(x, starts) / lengths).tolist(), (np.add.reduceat(y, starts) / lengths).tolist()


def plain(value: float) -> str:
    """A tick's number in few characters: 0.001, 2.5, 40, 12,000."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _minutes_axis(
    clock: tuple[Sequence[float], Sequence[float]],
    x_high: float,
    across: Callable[[float], float],
    top: float,
) -> list[str]:
    """Round times of training at the epochs where they passed; uneven where the speed changed."""
    epochs, seconds = [0.0, *clock[0]], [0.0, *clock[1]]
    end = float(np.interp(x_high, epochs, seconds))
    per_unit, unit = next(
        ((size, name) for size, name in ((3600, "h"), (60, "min")) if end >= 2 * size), (1, "s")
    )
    parts = [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{top - 6}" y2="{top - 6}"/>']
    for value in ticks(0.0, end / per_unit, about=4, inside=True)[1:]:  # not 0, which stands below
        x = across(float(np.interp(value * per_unit, seconds, epochs)))
        parts.append(f'<line class="notch" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 10}" y2="{top - 6}"/>')
        parts.append(_text(x, top - 15, f"{plain(value)} {unit}", "middle"))
    return parts


def _band(band: Band, left: float, right: float, top: float, bottom: float, *, shaded: bool) -> list[str]:
    """A stage: shaded or not, its name at the top as far as there is room for it."""
    parts = [
        f'<rect class="band{" shaded" if shaded else ""}" x="{left:.1f}" y="{top:.1f}" '
        f'width="{max(0.0, right - left):.1f}" height="{bottom - top:.1f}">'
        f"<title>stage {_escaped(band.name)}</title></rect>"
    ]
    room = int((right - left) / 9)  # characters: the text grows on a narrow page
    if room >= 3:
        name = band.name if len(band.name) <= room else f"{band.name[: room - 1]}…"
        parts.append(_text((left + right) / 2, top + 14, name, "middle", "stage"))
    return parts


def _text(x: float, y: float, words: str, anchor: str, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_escaped(words)}</text>'


def _escaped(words: str) -> str:
    return escape(files.plain(words))
