"""The papers' training curves as pictures of a few kB: ours, with the numbers that the paper ends at."""

from __future__ import annotations

import csv
from pathlib import Path

from tinlab.drawing import ACCENT, GRID, INK, MUTED, WARM, new_figure
from tinlab.files import write_atomically
from tinlab.papers.registry import Row

DOTS_PER_INCH = 80


def error_curves(curve: Path, row: Row, place: Path) -> None:
    """Draw top-1 error in percent over epochs from `curve` into the PNG `place`: training and held-out.

    A dotted line stands at each number that the paper gives for training or for val, in that curve's colour.
    """
    with curve.open(newline="", encoding="utf-8") as file:
        points = list(csv.DictReader(file))
    figure, axes = new_figure(height=3)
    for kind, colour in (("train", MUTED), ("eval", ACCENT)):
        own = [point for point in points if point["kind"] == kind and point["top1_percent"]]
        if not own:
            continue
        label = "training, as trained" if kind == "train" else own[-1]["split"]
        epochs = [float(point["epoch"]) for point in own]
        errors = [100 - float(point["top1_percent"]) for point in own]
        style = "-" if len(own) > 1 else "o"
        axes.plot(epochs, errors, style, color=colour, linewidth=1.6, label=label)
    for measure, value in row.numbers.items():
        if measure in ("train_top1_percent", "val_top1_percent", "top1_percent"):
            colour = MUTED if measure.startswith("train") else WARM
            label = "the paper's " + ("training" if measure.startswith("train") else "val")
            axes.axhline(100 - value, color=colour, linestyle=":", linewidth=1.4, label=label)
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    axes.grid(axis="y", color=GRID)
    axes.set_xlabel("epochs", color=MUTED)
    axes.set_ylabel("top-1 error, %", color=MUTED)
    axes.set_title(f"{row.id}: {curve.stem}", loc="left", color=INK, fontsize=11)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=2)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, lambda path: figure.savefig(path, format="png", dpi=DOTS_PER_INCH))
