"""The papers' figures as pictures of some kB: ours, with the numbers that the paper gives as marks.

What the papers drew is at hand as pictures only, so that their curves themselves are not copied.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinlab.drawing import ACCENT, GRID, INK, MUTED, WARM, new_figure
from tinlab.files import write_atomically
from tinlab.papers.found import Found, Gain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 80


@dataclass(frozen=True)
class Training:
    """One training to draw: its curve, a file of results/curves, the numbers that its paper gives, and the
    epochs after which the rate was cut."""

    title: str
    curve: Path
    reported: Mapping[str, float]
    cuts: tuple[float, ...] = ()


def training_curves(trainings: Sequence[Training], place: Path) -> None:
    """Draw a row for each of `trainings` into the PNG `place`: left top-1 error in percent over the epochs,
    on training and held-out images, right the loss.

    A dotted line stands at each number that the paper gives, in the colour of its curve, and a thin upright
    one where the rate was cut.
    """
    figure, axes = new_figure(height=0.4 + 2.5 * len(trainings), rows=len(trainings), columns=2)
    for number, training in enumerate(trainings):
        left, right = axes[number] if len(trainings) > 1 else axes
        _panel(left, training, "top1_percent")
        _panel(right, training, "loss")
        left.set_title(training.title, loc="left", color=INK, fontsize=10)
        left.set_ylim(0, 100)
        left.set_ylabel("top-1 error, %", color=MUTED)
        right.set_ylim(bottom=0)
        right.set_ylabel("loss", color=MUTED)
        left.legend(frameon=False, fontsize=7, labelcolor=INK, ncols=2)
    for one in axes[-1] if len(trainings) > 1 else axes:
        one.set_xlabel("epochs", color=MUTED)
    save(figure, place)


def _panel(axes: Axes, training: Training, column: str) -> None:
    with training.curve.open(newline="", encoding="utf-8") as file:
        points = list(csv.DictReader(file))
    error = column == "top1_percent"
    # A network that is not trained on tune is measured on that along the way, and on val once.
    for kind, split, colour in (
        ("train", None, MUTED),
        ("eval", "tune", ACCENT),
        ("eval", "val", ACCENT if all(point["split"] != "tune" for point in points) else INK),
    ):
        own = [
            point
            for point in points
            if point["kind"] == kind and split in (None, point["split"]) and point[column]
        ]
        if not own:
            continue
        epochs = [float(point["epoch"]) for point in own]
        values = [100 - float(point[column]) if error else float(point[column]) for point in own]
        label = split or "training, as trained"
        style = "-" if len(own) > 1 else "o"
        axes.plot(epochs, values, style, color=colour, linewidth=1.6, markersize=4, label=label)
    for measure, value in training.reported.items():
        which = {
            ("train_top1_percent", True): (MUTED, 100 - value, "the paper's training"),
            ("val_top1_percent", True): (WARM, 100 - value, "the paper's val"),
            ("top1_percent", True): (WARM, 100 - value, "the paper's, no split named"),
            ("train_loss", False): (MUTED, value, "the paper's training"),
        }.get((measure, error))
        if which is not None:
            colour, height, label = which
            axes.axhline(height, color=colour, linestyle=":", linewidth=1.4, label=label)
    for epoch in training.cuts:
        axes.axvline(epoch, color=GRID, linewidth=1, zorder=0)
    axes.set_xlim(left=0)
    axes.grid(axis="y", color=GRID)


def accuracies(entries: Sequence[tuple[str, Found | None]], title: str, place: Path) -> None:
    """Draw a row for each of `entries` into the PNG `place`: a dot a seed, the mean, and its 95% interval."""
    shown = [found for _, found in entries if found is not None]
    figure, axes = _rows([label for label, _ in entries], title)
    for height, (_, found) in enumerate(entries):
        if found is None:
            _not_yet_run(axes, height)
            continue
        low, high = found.interval
        axes.plot([low, high], [height, height], color=ACCENT, linewidth=5, alpha=0.22)
        axes.plot(list(found.values().values()), [height] * len(found.lines), "o", color=MUTED, markersize=4)
        axes.plot([found.mean()], [height], "|", color=ACCENT, markersize=15, markeredgewidth=2.2)
        _number(axes, f"{found.mean():.2f}", found.mean(), height)
    kinds = sorted({"seeds" if len(found.lines) > 1 else "images" for found in shown})
    over = " or the ".join(kinds)
    axes.set_xlabel(f"top-1 on val, %, and its 95% interval over the {over}", color=MUTED)
    save(figure, place)


def gains(entries: Sequence[tuple[str, Gain | None]], title: str, place: Path) -> None:
    """Draw a row for each of `entries` into the PNG `place`: how far it is above the first of its table, with
    the 95% interval; those whose interval leaves out 0 in colour."""
    figure, axes = _rows([label for label, _ in entries], title)
    axes.axvline(0, color=MUTED, linewidth=1)
    for height, (_, found) in enumerate(entries):
        if found is None:
            _not_yet_run(axes, height, 0.0)
            continue
        colour = (ACCENT if found.mean > 0 else WARM) if found.clear else MUTED
        axes.plot([found.low, found.high], [height, height], color=colour, linewidth=5, alpha=0.25)
        axes.plot([found.mean], [height], "|", color=colour, markersize=15, markeredgewidth=2.2)
        _number(axes, f"{found.mean:+.2f}", found.mean, height)
    shown = [found for _, found in entries if found is not None]
    # A t interval of two seeds can be wider than all there is: the gains decide what is shown.
    most = 2.5 * max(abs(found.mean) for found in shown) + 1
    ends = [0.0, *(end for found in shown for end in (found.low, found.high))]
    axes.set_xlim(max(min(ends) - 0.5, -most), min(max(ends) + 0.5, most))
    kinds = sorted({found.over for found in shown})
    over = f", and its 95% interval over the {' or the '.join(kinds)}"
    axes.set_xlabel(f"gain on val in percentage points{over}", color=MUTED)
    save(figure, place)


def transfer_curve(
    points: Mapping[str, Sequence[tuple[int, float, float, float]]], title: str, place: Path
) -> None:
    """Draw top-1 in percent over images a class into the PNG `place`: label -> (images, mean, low, high)."""
    figure, axes = new_figure(height=3.4)
    for (label, own), colour in zip(points.items(), (ACCENT, MUTED), strict=False):
        images, means, lows, highs = (list(values) for values in zip(*own, strict=True))
        axes.fill_between(images, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.plot(images, means, "o-", color=colour, linewidth=1.6, markersize=4, label=label)
    axes.set_xscale("log")
    every = sorted({images for own in points.values() for images, *_ in own})
    axes.set_xticks(every, [f"{images}" for images in every])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=GRID)
    axes.set_xlabel("images a class to train on", color=MUTED)
    axes.set_ylabel("top-1 on the new classes, %", color=MUTED)
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    save(figure, place)


def _rows(labels: Sequence[str], title: str) -> tuple[Figure, Any]:
    """A figure with a line of text at the left for each row, the first at the top."""
    figure, axes = new_figure(height=1.0 + 0.36 * len(labels))
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.7)
    axes.grid(axis="x", color=GRID)
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    return figure, axes


def _not_yet_run(axes: Axes, height: float, beside: float | None = None) -> None:
    """Say so at the right of the value `beside`, or at the left edge."""
    place = axes.get_yaxis_transform() if beside is None else axes.transData
    axes.annotate(
        "not yet run", (beside or 0.0, height), xycoords=place, xytext=(5, 0), textcoords="offset points",
        va="center", color=MUTED, fontsize=8,
    )  # fmt: skip


def _number(axes: Axes, text: str, value: float, height: float) -> None:
    """`text` a little above a mark."""
    axes.annotate(
        text, (value, height), xytext=(0, 8), textcoords="offset points", ha="center", color=INK, fontsize=7
    )


def save(figure: Figure, place: Path) -> None:
    """Write `figure` as a PNG of few colours, which is small, making its folder."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH)
    few = Image.open(drawn).convert("RGB").quantize(colors=48, dither=Image.Dither.NONE)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, lambda path: few.save(path, format="PNG", optimize=True))
