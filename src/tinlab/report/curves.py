"""The charts of how runs went: of one run, or of several on one chart."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from tinlab.report.figures import Band, Series, line_chart, thinned
from tinlab.report.record import Point, RunRecord, number

COLOURS, DASHES = 8, 4
"""Colours and ways to dash a line that the style has, so that curves differ without colours too."""


@dataclass(frozen=True)
class Key:
    """A curve's entry in its chart's legend: `last` is its last value as shown."""

    name: str
    style: str
    last: str


@dataclass(frozen=True)
class Chart:
    """A chart of the page; `data` is what the script reads to tell values under the pointer."""

    title: str
    svg: str
    keys: tuple[Key, ...]
    data: str


@dataclass(frozen=True)
class Curve:
    """Points under a name; `style` as in `Series`. Without `named` it has no entry in the legend."""

    name: str
    style: str
    points: Sequence[Point]
    named: bool = True


def run_charts(record: RunRecord) -> list[Chart]:
    """Loss, accuracy, learning rate and speed of one run: those that have something to draw."""
    splits = sorted({point.split for point in record.held_out}, key=lambda name: (name != "val", name))
    curves = [Curve("train", "train", record.train)]
    for place, split in enumerate(splits):
        points = tuple(point for point in record.held_out if point.split == split)
        curves.append(Curve(split, "held" if place == 0 else "second", points))
    clock, alone, bands = _clock(record), [Curve("", "train", record.train)], stage_bands(record)
    drawn = [
        _chart("Loss", "loss", curves, digits=4, clock=clock, bands=bands),
        _chart(
            "Accuracy (top-1)",
            "top1_percent",
            curves,
            digits=2,
            unit="%",
            from_zero=True,
            clock=clock,
            bands=bands,
        ),
        _chart("Learning rate", "learning_rate", alone, digits=None, from_zero=True, height=190, bands=bands),
        _chart("Images a second", "images_per_second", alone, digits=0, from_zero=True, height=190),
    ]
    return [chart for chart in drawn if chart is not None]


def charts_together(records: Sequence[tuple[str, RunRecord]], *, minutes: bool) -> list[Chart]:
    """Accuracy and loss of several (name, run) over epochs, or over `minutes` of training: a colour and a
    way to dash a run, its held-out curve bold, its training curve faint."""
    curves = []
    for place, (name, record) in enumerate(records):
        colour = f"several c{place % COLOURS} d{(place + place // COLOURS) % DASHES}"
        held = tuple(point for point in record.held_out if point.split == record.most_measured)
        if held:
            curves.append(Curve(name, f"{colour} train", record.train, named=False))
        curves.append(Curve(name, colour if held else f"{colour} train", held or record.train))
    found = [
        _chart(
            "Accuracy (top-1)", "top1_percent", curves, digits=2, unit="%", from_zero=True, minutes=minutes
        ),
        _chart("Loss", "loss", curves, digits=4, minutes=minutes),
    ]
    return [chart for chart in found if chart is not None]


def stage_bands(record: RunRecord) -> list[Band]:
    """Where the recipe's stages lie, in epochs; none where it has no stages, or one."""
    points = sorted((*record.train, *record.held_out), key=lambda point: point.step)
    bands: list[Band] = []
    for point in points:
        if point.stage is None:
            continue
        if bands and bands[-1].name == point.stage:
            bands[-1] = Band(point.stage, bands[-1].start, max(bands[-1].end, point.epoch))
        else:
            start = bands[-1].end if bands else 0.0
            bands.append(Band(point.stage, start, max(start, point.epoch)))
    return bands if len(bands) > 1 else []


def _chart(
    title: str,
    field: str,
    curves: Sequence[Curve],
    *,
    digits: int | None,
    unit: str = "",
    from_zero: bool = False,
    height: int = 300,
    clock: tuple[list[float], list[float]] | None = None,
    bands: Sequence[Band] = (),
    minutes: bool = False,
) -> Chart | None:
    """The chart of one field; None where no point has it. Values are told with `digits` decimals, or with
    three significant digits where it is None."""
    drawn: list[tuple[Curve, Series]] = []
    x_high = 0.0
    for curve in curves:
        told = [(_across(point, minutes), number(getattr(point, field))) for point in curve.points]
        x_high = max([x_high, *(x for x, _ in told if x is not None)])
        kept = [(x, value) for x, value in told if x is not None and value is not None]
        if kept:
            x, y = thinned([x for x, _ in kept], [y for _, y in kept])
            drawn.append((curve, Series(curve.name, x, y, curve.style)))
    named = [series for curve, series in drawn if curve.named]
    if not named:
        return None
    lasts = [f"{s.y[-1]:.3g}" if digits is None else f"{s.y[-1]:,.{digits}f}{unit}" for s in named]
    ends = "; ".join(f"{s.name} ends at {last}".strip() for s, last in zip(named, lasts, strict=True))
    over = "minutes" if minutes else "epochs"
    chart = line_chart(
        [series for _, series in drawn],
        x_high=x_high,
        label=f"{title} over {over}: {ends}."
        + (f" Stages: {', '.join(band.name for band in bands)}." if bands else ""),
        unit=unit,
        from_zero=from_zero,
        height=height,
        clock=clock,
        bands=bands,
        x_unit="minutes of training" if minutes else "epochs",
    )
    data = {
        "pixels": chart.pixels,
        "values": chart.values,
        "digits": digits,
        "unit": unit,
        "axis": "minute" if minutes else "epoch",
        "clock": clock,
        "series": [{"x": [round(x, 4) for x in s.x], "y": [float(f"{y:.6g}") for y in s.y]} for s in named],
    }
    keys = tuple(Key(s.name, s.style, last) for s, last in zip(named, lasts, strict=True))
    return Chart(title, chart.svg, keys, json.dumps(data, separators=(",", ":")))


def _across(point: Point, minutes: bool) -> float | None:
    if not minutes:
        return point.epoch
    return None if point.train_seconds is None else point.train_seconds / 60


def _clock(record: RunRecord) -> tuple[list[float], list[float]] | None:
    """Epochs and the seconds of training until then; None where they are not told or do not rise."""
    points = sorted((*record.train, *record.held_out), key=lambda point: point.step)
    told = [(p.epoch, p.train_seconds) for p in points if p.train_seconds is not None]
    every = max(1, len(told) // 60)
    told = told[::-1][::every][::-1]
    epochs, seconds = [e for e, _ in told], [s for _, s in told]
    rising = all(a <= b for values in (epochs, seconds) for a, b in itertools.pairwise(values))
    return (epochs, [round(s, 1) for s in seconds]) if told and rising and seconds[-1] > 0 else None
