"""What tinlab's charts have in common: colours, and axes without clutter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinlab.errors import TinlabError
from tinlab.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, ACCENT, WARM = "#1c1d1f", "#62656b", "#dedfd9", "#0a6a62", "#b3541e"


def new_figure(
    height: float, rows: int = 1, columns: int = 1, heights: Sequence[float] | None = None
) -> tuple[Figure, Any]:
    """A white figure 8 inches wide and `height` high, and its axes: one, or an array of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, height_ratios=heights)
    for one in figure.axes:
        plain_axes(one)
    return figure, axes


def plain_axes(axes: Axes) -> None:
    """Leave of `axes` the line below, and numbers without ticks."""
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=MUTED, length=0, labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def save_png(figure: Figure, path: Path, description: str) -> None:
    """Write `figure` to `path`, with `description`, one line for who does not see it, in the file.

    Raises TinlabError where it cannot be written.
    """
    about = {"Description": description}
    try:
        write_atomically(path, lambda place: figure.savefig(place, format="png", dpi=160, metadata=about))
    except OSError as error:
        raise TinlabError(f"{path} cannot be written: {error.strerror or error}") from error
