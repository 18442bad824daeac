"""Which of the papers' figures can be drawn from results.csv and results/curves, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tinlab.papers import charts
from tinlab.papers.found import Line, found_of, gain, longest, words
from tinlab.papers.length import train_images
from tinlab.papers.registry import PAPERS, REMEDY_ROWS, Row, row
from tinlab.papers.transfer import drawn_points, read_transfer, transfer_file
from tinlab.recipe import Recipe
from tinlab.recipes import shortened
from tinlab.results import curve_file, read_results

TOGETHER = {"shcherbina_curves": ("shcherbina_convnet9", "shcherbina_vgg16", "shcherbina_vgglike")}
"""Row -> the rows whose curves its paper draws in one figure."""
TRANSFER = "transfer"


@dataclass(frozen=True)
class Picture:
    """A figure: the row that it stands by, its words for who does not see it, and what draws it into a file.
    It goes to results/figures/ROW.png."""

    row: str
    words: str
    draw: Callable[[Path], None]

    @property
    def place(self) -> str:
        """Its path from the folder that holds RESULTS.md."""
        return f"results/figures/{self.row}.png"


def pictures(results: Path) -> dict[str, Picture]:
    """Row -> its figure, for the rows that have what it takes, from `results` and the files beside it."""
    lines = read_results(results)
    found: list[Picture] = []
    for one in (one for paper in PAPERS for one in paper.rows):
        if one.id in TOGETHER:
            trainings = [t for name in TOGETHER[one.id] if (t := _training(row(name), results, lines))]
            if len(trainings) > 1:
                draw = partial(charts.training_curves, trainings)
                found.append(Picture(one.id, f"{one.what}: top-1 error and loss over epochs", draw))
        elif one.recipe is not None and (training := _training(one, results, lines)) is not None:
            draw = partial(charts.training_curves, [training])
            found.append(Picture(one.id, f"{one.what}: top-1 error and loss over epochs", draw))
        elif one.study is not None:
            entries = [(words(recipe), longest(recipe, lines)) for recipe in one.recipes]
            if any(entry is not None for _, entry in entries):
                draw = partial(charts.accuracies, entries, f"{one.id}: {one.what}")
                found.append(Picture(one.id, f"{one.what}: top-1 on val of each", draw))
    found += [picture for one in REMEDY_ROWS if (picture := _remedies(one, lines)) is not None]
    points = drawn_points(read_transfer(transfer_file(results)))
    if points:
        title = "transfer: half of the classes, after the other half and from scratch"
        draw = partial(charts.transfer_curve, points, title)
        found.append(Picture(TRANSFER, f"{title}: top-1 over images a class", draw))
    return {picture.row: picture for picture in found}


def _training(row_: Row, results: Path, lines: Sequence[Line]) -> charts.Training | None:
    """The longest run of the row's recipe, that of its first seed; None where its curve is not there."""
    (recipe,) = row_.recipes
    for found in found_of(recipe, lines):
        line = found.lines[0]
        curve = curve_file(results, line)
        if curve.is_file():
            title = f"{row_.id}, budget: {found.budget}" if found.budget else row_.id
            return charts.Training(title, curve, row_.numbers, _cuts(shortened(recipe, found.share)))
    return None


def _cuts(recipe: Recipe) -> tuple[float, ...]:
    """The epochs after which the rate was cut."""
    schedule = recipe.schedule
    images = train_images(recipe)
    return tuple(step * schedule.batch_size / images for step in schedule.milestone_steps)


def _remedies(row_: Row, lines: Sequence[Line]) -> Picture | None:
    base, *others = row_.recipes
    plain = longest(base, lines)
    if plain is None:
        return None
    entries = []
    for recipe in others:
        own = [found for found in found_of(recipe, lines) if found.share == plain.share]
        entries.append((words(recipe), gain(own[0], plain) if own else None))
    if all(entry is None for _, entry in entries):
        return None
    title = f"{base.name} with one remedy at a time"
    title += f", budget: {plain.budget}" if plain.budget else ""
    return Picture(row_.id, f"{title}: gain on val of each", partial(charts.gains, entries, title))
