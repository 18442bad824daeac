"""What a study found: a line a recipe, compared with the first one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinlab.errors import TinlabError
from tinlab.evaluating import predictions_of
from tinlab.evaluation.metrics import judge
from tinlab.recipe import Recipe
from tinlab.study.attempt import Row
from tinlab.study.comparison import Difference, Spread, over_images, over_seeds, spread
from tinlab.study.plan import whole
from tinlab.study.run import Done


@dataclass(frozen=True)
class Line:
    """One recipe: its top-1 in percent on `val` over the seeds that finished, seed -> value."""

    recipe: str
    summary: str
    values: dict[int, float]
    spread: Spread | None
    minutes: float | None
    """Mean minutes of training."""
    peak_memory_gib: float | None
    failed: int
    difference: Difference | None
    """From the first recipe, in percentage points."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def summarise(done: Done) -> list[Line]:
    """A line for each recipe, in the study's order."""
    recipes = whole(done.study)
    of = {recipe.name: [row for row in done.rows if row.recipe == recipe.name] for recipe in recipes}
    first = of[recipes[0].name]
    return [
        _line(recipe, of[recipe.name], None if recipe is recipes[0] else first, done.folder)
        for recipe in recipes
    ]


def _line(recipe: Recipe, rows: Sequence[Row], first: Sequence[Row] | None, folder: Path) -> Line:
    values = _values(rows)
    finished = [row for row in rows if row.status == "finished"]
    minutes = [row.train_minutes for row in finished if row.train_minutes is not None]
    peaks = [row.peak_memory_gib for row in rows if row.peak_memory_gib is not None]
    return Line(
        recipe=recipe.name,
        summary=recipe.summary,
        values=values,
        spread=spread(list(values.values())) if values else None,
        minutes=sum(minutes) / len(minutes) if minutes else None,
        peak_memory_gib=max(peaks, default=None),
        failed=sum(row.status == "failed" for row in rows),
        difference=_difference(rows, first, folder) if first is not None else None,
    )


def _difference(rows: Sequence[Row], first: Sequence[Row], folder: Path) -> Difference | None:
    values, reference = _values(rows), _values(first)
    common = sorted(values.keys() & reference.keys())
    if len(common) != 1:
        return over_seeds(values, reference)
    pair = [next(row for row in side if row.seed == common[0]) for side in (rows, first)]
    try:
        correct, other = (_correct(folder, row) for row in pair)
    except TinlabError:
        return None  # predictions were removed: the values still stand
    return over_images(correct, other) if len(correct) == len(other) else None


def _correct(folder: Path, row: Row) -> np.ndarray:
    """bool (N,): which images the run gets right."""
    assert row.run is not None
    assert row.split is not None
    predictions = predictions_of(folder / row.run, split=row.split)
    return judge(predictions.logits, predictions.labels).correct


def _values(rows: Sequence[Row]) -> dict[int, float]:
    return {row.seed: row.top1_percent for row in rows if row.top1_percent is not None}


def interval_note(lines: Sequence[Line]) -> str:
    """What the differences and their intervals are, in one sentence."""
    if len(lines) < 2:
        seeds = sum(len(line.values) for line in lines)
        return f"mean ± standard deviation over {seeds} seed{'s' if seeds != 1 else ''}"
    over = {line.difference.over for line in lines if line.difference}
    notes = ["mean ± standard deviation over seeds"]
    if "seeds" in over:
        notes.append(
            f"difference: from {lines[0].recipe}, seed by seed, in percentage points, with the 95% interval "
            "of a paired t test over seeds"
        )
    if "images" in over:
        notes.append(
            f"difference: from {lines[0].recipe} on one seed, in percentage points, with the 95% bootstrap "
            "interval over images, which says nothing about other seeds"
        )
    return "; ".join(notes)


def shown_mean(line: Line) -> str:
    """`52.30 ± 0.41%`, or what there is of it."""
    if line.spread is None:
        return "–"
    deviation = line.spread.deviation
    return f"{line.spread.mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}") + "%"


def shown_difference(line: Line) -> str:
    """`+1.20 (0.35 to 2.05)`, or nothing."""
    found = line.difference
    return "" if found is None else f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
