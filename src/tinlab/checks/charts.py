"""The charts of the checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinlab.checks.lr_find import RangeTest
from tinlab.checks.overfit import Overfit
from tinlab.drawing import ACCENT, GRID, INK, MUTED, WARM, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def range_chart(found: RangeTest) -> Figure:
    """The loss over the rate, raw and smoothed, with the rates that the curve marks."""
    figure, axes = new_figure(height=4.2)
    axes.plot(found.rates, found.losses, color=MUTED, alpha=0.35, linewidth=0.8, label="loss of a step")
    axes.plot(found.rates, found.smoothed, color=ACCENT, linewidth=2, label="smoothed")
    axes.set_xscale("log")
    # What is cut off above is where it broke down.
    low, high = min(found.smoothed), max(found.smoothed[: max(2, len(found.smoothed) // 4)])
    span = max(high - low, 1e-3)
    axes.set_ylim(low - 0.35 * span, high + 0.5 * span)
    if found.recommended is not None:
        marks = [
            (found.marks.lowest, "lowest", MUTED, "--", "left"),
            (found.marks.lowest / 10, "a tenth of it", MUTED, ":", "right"),
            (found.recommended, "recommended: steepest", WARM, "-", "right"),
        ]
        for place, (rate, words, colour, line, side) in enumerate(marks):
            axes.axvline(rate, color=colour, linestyle=line, linewidth=1.2, zorder=1)
            axes.annotate(
                f"{words}, {rate:.2g}",
                (rate, 0.03 + 0.065 * place),
                xycoords=axes.get_xaxis_transform(),
                xytext=(5 if side == "left" else -5, 0),
                textcoords="offset points",
                ha=side,
                color=colour,
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )
    axes.grid(axis="y", color=GRID)
    axes.set_xlabel("learning rate", color=MUTED)
    axes.set_ylabel("training loss", color=MUTED)
    axes.legend(frameon=False, fontsize=8, labelcolor=MUTED, loc="upper left")
    ending = {"range": "", "rose": ", until the loss rose", "diverged": ", until the loss was not finite"}
    recipe = found.recipe
    axes.set_title(
        f"Range test of {recipe.name}: {recipe.optimizer.name}, batch {recipe.schedule.batch_size}, "
        f"{len(found.rates)} points{ending[found.ended]}",
        loc="left",
        color=INK,
        fontsize=11,
    )
    return figure


def overfit_chart(found: Overfit) -> Figure:
    """Above the loss, below the share of images that are right, both in training and in evaluation mode."""
    figure, (above, below) = new_figure(height=5.2, rows=2, heights=(3, 2))
    curves = [(found.training, "training", MUTED, "-"), (found.evaluation, "evaluation mode", ACCENT, "o-")]
    for curve, label, colour, style in curves:
        above.plot(curve.steps, curve.losses, style, color=colour, markersize=3, linewidth=1.5, label=label)
        below.plot(curve.steps, curve.top1_percents, style, color=colour, markersize=3, linewidth=1.5)
    above.axhline(found.chance_loss, color=WARM, linestyle="--", linewidth=1.2, label="guessing")
    losses = (*found.training.losses, *found.evaluation.losses)
    if losses and max(losses) > 10 * min(losses) > 0:
        above.set_yscale("log")
        above.yaxis.set_major_formatter("{x:g}")
    else:
        above.set_ylim(bottom=0)
    above.set_ylabel("loss", color=MUTED)
    above.legend(frameon=False, fontsize=8, labelcolor=MUTED)
    above.set_title(found.summary(), loc="left", color=INK, fontsize=11)
    below.set_ylim(-3, 103)
    below.set_ylabel("top-1, %", color=MUTED)
    below.set_xlabel("step", color=MUTED)
    for axes in (above, below):
        axes.grid(axis="y", color=GRID)
        axes.set_xlim(left=0)
    return figure
