"""The charts of a study and of a search, as PNG and SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinlab.drawing import ACCENT, GRID, INK, MUTED, new_figure
from tinlab.files import write_atomically, write_text
from tinlab.study.summary import Line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def study_chart(lines: Sequence[Line], title: str) -> Figure:
    """A row for each recipe: a dot a seed, the mean, and the 95% t interval of the mean."""
    figure, axes = new_figure(height=1.5 + 0.42 * len(lines))
    for place, line in enumerate(lines):
        if line.spread is None:
            axes.text(
                0.01, place, "no run finished", color=MUTED, va="center", transform=axes.get_yaxis_transform()
            )
            continue
        found = line.spread
        low, high = found.low, found.high
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=ACCENT, linewidth=5, alpha=0.22, zorder=2)
        values = list(line.values.values())
        axes.plot(values, _apart(place, len(values)), "o", color=MUTED, markersize=4, alpha=0.8, zorder=3)
        axes.plot([found.mean], [place], "|", color=ACCENT, markersize=17, markeredgewidth=2.4, zorder=4)
        axes.annotate(
            f"{found.mean:.2f}",
            (found.mean, place),
            xytext=(0, 11),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=8,
        )
    axes.set_yticks(range(len(lines)), [_cut(line.recipe) for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.7)
    axes.grid(axis="x", color=GRID)
    # A t interval of two seeds can be wider than all there is: the dots decide what is shown.
    values = [value for line in lines for value in line.values.values()]
    ends = [
        end for line in lines if line.spread for end in (line.spread.low, line.spread.high) if end is not None
    ]
    if values:
        span = max(max(values) - min(values), 1.0)
        left = max(min([*values, *ends]), min(values) - span)
        right = min(max([*values, *ends]), max(values) + span)
        axes.set_xlim(max(0.0, left - 0.08 * span), min(100.0, right + 0.08 * span))
    axes.set_xlabel("top-1 on val, %: a dot a seed; the mean, and its 95% t interval", color=MUTED)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    return figure


def search_chart(
    points: Sequence[tuple[int, float, bool]], importances: dict[str, float], title: str
) -> Figure:
    """Left: the trials (number, top-1 in percent on tune, pruned), and the best so far. Right: how much each
    field matters."""
    figure, axes = new_figure(height=max(3.4, 1.6 + 0.4 * len(importances)), columns=2 if importances else 1)
    history = axes[0] if importances else axes
    for pruned, label, style in ((False, "finished", "o"), (True, "pruned", "x")):
        shown = [(number, value) for number, value, was in points if was is pruned]
        if shown:
            history.plot(
                [n for n, _ in shown],
                [v for _, v in shown],
                style,
                color=MUTED if pruned else ACCENT,
                markersize=5,
                label=label,
            )
    numbers, best, so_far = [], [], -math.inf
    for number, value, pruned in sorted(points):
        if not pruned:
            so_far = max(so_far, value)
        if so_far > -math.inf:
            numbers.append(number)
            best.append(so_far)
    history.step(numbers, best, where="post", color=ACCENT, linewidth=1.2, label="best so far")
    history.grid(axis="y", color=GRID)
    history.xaxis.get_major_locator().set_params(integer=True)
    history.set_xlabel("trial", color=MUTED)
    history.set_ylabel("top-1 on tune, %", color=MUTED)
    history.legend(frameon=False, fontsize=8, labelcolor=MUTED)
    history.set_title(title, loc="left", color=INK, fontsize=11)
    if importances:
        names = list(importances)
        bars = axes[1]
        bars.barh(range(len(names)), [importances[name] for name in names], color=ACCENT, height=0.55)
        bars.set_yticks(range(len(names)), [_cut(name) for name in names])
        bars.set_ylim(len(names) - 0.4, -0.6)
        bars.set_xlim(0, 1)
        bars.grid(axis="x", color=GRID)
        bars.set_xlabel("share of importance (PED-ANOVA)", color=MUTED)
    return figure


def save(figure: Figure, folder: Path, stem: str) -> tuple[Path, Path]:
    """Write `figure` as PNG and SVG into `folder`."""
    png, svg = folder / f"{stem}.png", folder / f"{stem}.svg"
    write_atomically(png, lambda path: figure.savefig(path, format="png", dpi=160))
    write_text(svg, svg_text(figure))
    return png, svg


def svg_text(figure: Figure) -> str:
    """`figure` as an <svg> element, the same for the same figure."""
    import matplotlib

    made = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "tinlab", "svg.fonttype": "path"}):
        figure.savefig(made, format="svg", metadata={"Date": None})
    text = made.getvalue()
    return text[text.index("<svg") :]


def _apart(place: int, count: int) -> list[float]:
    """Heights around `place`, so that equal values are seen as several."""
    return [place + 0.12 * (2 * i / (count - 1) - 1) if count > 1 else place for i in range(count)]


def _cut(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
