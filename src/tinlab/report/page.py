"""The report of one run: a single HTML file that opens from a disk and asks nothing of a network."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.evaluation.metrics import Judged, Metrics, judge, measure
from tinlab.files import write_text
from tinlab.report import wording
from tinlab.report.examples import Examples, matching_split
from tinlab.report.figures import Series, line_chart, reliability_chart, sorted_bars, thinned
from tinlab.report.knobs import knob_groups, provenance_counts, shown, with_own_values
from tinlab.report.record import Point, RunRecord, number, read_run

HERE = Path(__file__).parent
ENDS_SHOWN = 5
"""How many of the best and of the worst classes are shown with images."""


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


def write_report(run: Path, *, out: Path | None = None, pack: Pack | None = None) -> Path:
    """Write the report of the run in folder `run` to `out` (RUN/report.html) and return its path.

    `pack` gives the example images; without it the page names images by their row. Raises TinlabError where
    a file of the run is missing or damaged, where `pack` is not the one that was predicted, or where `out`
    cannot be written.
    """
    record = read_run(Path(run))
    target = Path(run) / "report.html" if out is None else Path(out)
    html = render(record, pack)
    try:
        write_text(target, html)
    except OSError as error:
        raise TinlabError(f"{target} cannot be written ({error.strerror}); choose another place") from error
    return target


def render(record: RunRecord, pack: Pack | None = None) -> str:
    """The page's HTML. Raises TinlabError as `write_report` does."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    script = (HERE / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Only what figures.py drew (`safe` in the template) and what lies beside this file goes in unescaped.
    environment.filters.update(percent=wording.percent, shown=shown)
    return environment.get_template("page.html").render(
        **_content(record, pack),
        style=Markup((HERE / "page.css").read_text("utf-8")),
        script=Markup(script),
        script_digest=digest,
    )


def _content(record: RunRecord, pack: Pack | None) -> dict[str, Any]:
    """Everything that the template shows, by name."""
    predictions = record.predictions if record.predictions and record.predictions.labelled else None
    metrics = judged = None
    if predictions is not None:
        try:
            judged = judge(predictions.logits, predictions.labels)
            metrics = measure(predictions.logits, predictions.labels)
        except TinlabError as error:
            file = record.path / "predictions" / f"{predictions.split}.safetensors"
            raise TinlabError(f"{file}: {error}") from error
    return {
        "title": str(record.recipe.get("name") or record.path.name),
        "recipe": record.recipe,
        "paper": _dict(record.recipe.get("paper")),
        "result": record.result or {},
        "environment": record.environment,
        "pack_facts": record.pack,
        "damaged_lines": record.damaged_lines,
        "verdict": wording.verdict(record, metrics),
        "tiles": _tiles(record, metrics),
        "charts": _charts(record),
        "points": record.held_out,
        "gap": wording.gap_sentence(record),
        "comparison": _comparison(record, metrics),
        "groups": knob_groups(with_own_values(record.recipe)),
        "provenance": provenance_counts(record.recipe),
        "predictions": record.predictions,
        "metrics": metrics,
        **_measured(record, metrics, judged, pack),
    }


def _measured(
    record: RunRecord, metrics: Metrics | None, judged: Judged | None, pack: Pack | None
) -> dict[str, Any]:
    """What can be said of single classes and images; all None without labelled predictions."""
    if metrics is None or judged is None or record.predictions is None:
        names = (
            "class_rows",
            "best",
            "worst",
            "class_bars",
            "confusions",
            "errors",
            "reliability",
            "calibration",
        )
        return {**dict.fromkeys(names), "pictured": False}
    split = matching_split(pack, record, record.predictions) if pack else None
    examples = Examples(record.predictions, judged, record.classes, split)
    rows = examples.class_rows(metrics, pictured=ENDS_SHOWN)
    ends = min(ENDS_SHOWN, len(rows) // 2)  # with few classes, none is both among the best and the worst
    calibration = wording.calibration_sentence(metrics)
    return {
        "class_rows": rows,
        "best": rows[:ends],
        "worst": rows[::-1][:ends],
        "class_bars": sorted_bars(
            [row.top1_percent for row in rows], label="Accuracy of every class, best to worst"
        ),
        "confusions": examples.confusions(metrics),
        "errors": examples.errors(),
        "reliability": reliability_chart(metrics.reliability, label=f"Reliability chart. {calibration}"),
        "calibration": calibration,
        "pictured": split is not None,
    }


def _tiles(record: RunRecord, metrics: Metrics | None) -> list[tuple[str, str, str]]:
    """(label, value, small print) of the key numbers that are known."""
    result = record.result or {}
    tiles: list[tuple[str, str, str]] = []

    def add(label: str, value: float | None, text: str, small: str = "") -> None:
        if value is not None:
            tiles.append((label, text.format(value), small))

    if metrics:
        low, high = metrics.top1_interval_percent
        add("Top-1", metrics.top1_percent, "{:.2f}%", f"{low:.2f} to {high:.2f}%")
        if metrics.classes > 5:  # below that it says nothing
            add("Top-5", metrics.top5_percent, "{:.2f}%", "any of the first five")
        add("Cross-entropy", metrics.loss, "{:.3f}", f"chance is {math.log(metrics.classes):.2f}")
        add("Calibration error", metrics.calibration_error_percent, "{:.2f}%", "expected, 15 bins")
    else:
        add("Top-1", number(result.get("top1_percent")), "{:.2f}%")
        add("Top-5", number(result.get("top5_percent")), "{:.2f}%")
        add("Cross-entropy", number(result.get("loss")), "{:.3f}")
    seconds, elapsed = number(result.get("train_seconds")), number(result.get("elapsed_seconds"))
    if seconds is not None:
        tiles.append(
            (
                "Training time",
                wording.duration(seconds),
                f"{wording.duration(elapsed)} in all" if elapsed else "",
            )
        )
    steps = number(result.get("steps"))
    add("Epochs", number(result.get("epochs")), "{:.4g}", f"{steps:,.0f} steps" if steps is not None else "")
    add("Images a second", number(result.get("images_per_second")), "{:,.0f}", "while training")
    parameters = number(result.get("parameters"))
    if parameters is not None:
        short = f"{parameters / 1e6:.2f} M" if parameters >= 1e6 else f"{parameters / 1e3:.1f} k"
        tiles.append(("Parameters", short, f"{parameters:,.0f}"))
    blocks, ran = number(result.get("blocks")), number(result.get("measured_blocks"))
    expected = number(result.get("expected_blocks"))
    if blocks is not None and ran is not None and expected is not None:
        tiles.append(("Depth", f"{ran:.2f} of {blocks:.0f}", f"blocks a step; {expected:.2f} expected"))
    return tiles


def _charts(record: RunRecord) -> list[Chart]:
    """Those of the four charts that have something to draw."""
    splits = sorted({point.split for point in record.held_out}, key=lambda name: (name != "val", name))
    curves = [("train", "train", record.train)]
    for place, split in enumerate(splits):
        points = tuple(point for point in record.held_out if point.split == split)
        curves.append((split, "held" if place == 0 else "second", points))
    clock, alone = _clock(record), [("", "train", record.train)]
    x_high = max((point.epoch for point in (*record.train, *record.held_out)), default=0.0)
    drawn = [
        _chart("Loss", "loss", curves, x_high, digits=4, clock=clock),
        _chart(
            "Accuracy (top-1)",
            "top1_percent",
            curves,
            x_high,
            digits=2,
            unit="%",
            from_zero=True,
            clock=clock,
        ),
        _chart("Learning rate", "learning_rate", alone, x_high, digits=None, from_zero=True, height=190),
        _chart("Images a second", "images_per_second", alone, x_high, digits=0, from_zero=True, height=190),
    ]
    return [chart for chart in drawn if chart is not None]


def _chart(
    title: str,
    field: str,
    curves: Sequence[tuple[str, str, Sequence[Point]]],
    x_high: float,
    *,
    digits: int | None,
    unit: str = "",
    from_zero: bool = False,
    height: int = 300,
    clock: tuple[list[float], list[float]] | None = None,
) -> Chart | None:
    """The chart of one field of (name, style, points); None where no point has it. Values are told with
    `digits` decimals, or with three significant digits where it is None."""
    series = []
    for name, style, points in curves:
        told = [(point.epoch, number(getattr(point, field))) for point in points]
        kept = [(epoch, value) for epoch, value in told if value is not None]
        if kept:
            series.append(Series(name, *thinned([x for x, _ in kept], [y for _, y in kept]), style))
    if not series:
        return None
    lasts = [f"{s.y[-1]:.3g}" if digits is None else f"{s.y[-1]:,.{digits}f}{unit}" for s in series]
    ends = "; ".join(f"{s.name} ends at {last}".strip() for s, last in zip(series, lasts, strict=True))
    drawn = line_chart(
        series,
        x_high=x_high,
        label=f"{title} over epochs: {ends}.",
        unit=unit,
        from_zero=from_zero,
        height=height,
        clock=clock,
    )
    data = {
        "pixels": drawn.pixels,
        "values": drawn.values,
        "digits": digits,
        "unit": unit,
        "clock": clock,
        "series": [{"x": [round(x, 4) for x in s.x], "y": [float(f"{y:.6g}") for y in s.y]} for s in series],
    }
    keys = tuple(Key(s.name, s.style, last) for s, last in zip(series, lasts, strict=True))
    return Chart(title, drawn.svg, keys, json.dumps(data, separators=(",", ":")))


def _clock(record: RunRecord) -> tuple[list[float], list[float]] | None:
    """Epochs and the seconds of training until then; None where they are not told or do not rise."""
    points = sorted((*record.train, *record.held_out), key=lambda point: point.step)
    told = [(p.epoch, p.train_seconds) for p in points if p.train_seconds is not None]
    every = max(1, len(told) // 60)
    told = told[::-1][::every][::-1]
    epochs, seconds = [e for e, _ in told], [s for _, s in told]
    rising = all(a <= b for values in (epochs, seconds) for a, b in itertools.pairwise(values))
    return (epochs, [round(s, 1) for s in seconds]) if told and rising and seconds[-1] > 0 else None


def _comparison(record: RunRecord, metrics: Metrics | None) -> list[tuple[str, str, str]]:
    """(measure, the paper's value, this run's) for everything that the recipe's paper reports."""
    here: dict[str, float] = {}
    for field in ("top1_percent", "top5_percent", "loss"):
        split = (
            record.predictions.split if metrics and record.predictions else (record.result or {}).get("split")
        )
        value = getattr(metrics, field) if metrics else number((record.result or {}).get(field))
        if value is not None:
            here[f"{split}_{field}"] = value
    reported = _dict(_dict(record.recipe.get("paper")).get("reported"))
    return [
        (name.replace("_", " "), shown(value), f"{here[name]:.2f}" if name in here else "")
        for name, value in reported.items()
    ]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
