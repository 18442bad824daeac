"""A study's page: one self-contained HTML file with the chart, the table and every run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinlab.drawing import ACCENT, GRID, INK, MUTED
from tinlab.errors import TinlabError
from tinlab.files import read_given_json, write_text
from tinlab.recipe import Recipe
from tinlab.report.knobs import differing
from tinlab.report.page import StudyPart, render_template
from tinlab.study.attempt import open_result, read_row
from tinlab.study.charts import save, study_chart, svg_text
from tinlab.study.plan import Study, trials, whole
from tinlab.study.run import Done, outcome
from tinlab.study.summary import Line, interval_note, shown_difference, shown_mean, summarise

RUNS_SHOWN = 8
"""Runs that stand beside each other under a study, unless others are named."""


def write_study(done: Done, lines: Sequence[Line]) -> Path:
    """Write chart.png, chart.svg and report.html into the study's folder; return the page's path."""
    figure = study_chart(lines, done.study.name)
    save(figure, done.folder, "chart")
    path = done.folder / "report.html"
    write_text(path, render(done, lines, svg_text(figure)))
    return path


def render(done: Done, lines: Sequence[Line], chart: str) -> str:
    """The page's HTML; `chart` is an <svg> element."""
    return render_template("study.html", study=part(done, lines, chart), environment=_environment(done))


def part(done: Done, lines: Sequence[Line], chart: str) -> StudyPart:
    """What the study shows of itself on its own page, and above its runs on theirs."""
    return StudyPart(
        name=done.study.name,
        summary=done.study.summary,
        verdict=verdict(lines),
        seeds=done.study.seeds,
        lines=[(line, shown_mean(line), shown_difference(line)) for line in lines],
        note=interval_note(lines),
        fields=differing_fields(done),
        rows=[(row, outcome(row)) for row in done.rows],
        chart=themed(chart),
    )


def read_part(folder: Path) -> tuple[StudyPart, list[Path]]:
    """The part of a study that lies in `folder`, and the run folders to show beneath it: of the first seed of
    each recipe, at most RUNS_SHOWN, those that finished.

    Raises TinlabError where there is no study in it.
    """
    done = read_study(folder)
    lines = summarise(done)
    first: dict[str, Path] = {}
    for row in done.rows:
        if row.status == "finished" and row.run is not None:
            first.setdefault(row.recipe, done.folder / row.run)
    chart = svg_text(study_chart(lines, done.study.name))
    return part(done, lines, chart), list(first.values())[:RUNS_SHOWN]


def read_study(folder: Path) -> Done:
    """The study in `folder` as it stands; nothing is run. Raises TinlabError where there is none."""
    from pydantic import ValidationError

    place = folder / "study.json"
    if not place.is_file():
        raise TinlabError(f"{folder} is not a study's folder (no study.json); 'tinlab study' makes one")
    try:
        study = Study.model_validate(read_given_json(place))
        if study.grid or not all(isinstance(one, Recipe) for one in study.recipes):
            raise ValueError("it is not resolved")
        everything = trials(study)
    except (ValidationError, ValueError) as error:
        raise TinlabError(f"{place} is damaged; give the study's command again to restore it") from error
    digest = next(
        (
            str(read_given_json(path).get("pack_digest"))
            for path in sorted((folder / "trials").glob("*.json"))
            if isinstance(read_given_json(path), dict)
        ),
        None,
    )
    if digest is None:
        raise TinlabError(f"{folder} has no runs yet; give the study's command again to make them")
    folder = folder.resolve()
    return Done(folder, study, tuple(read_row(folder, trial, digest) for trial in everything))


def themed(chart: str) -> str:
    """The chart with the page's colours in place of its own, and no ground: legible in light and in dark."""
    colours = {INK: "ink", MUTED: "muted", GRID: "line", ACCENT: "accent"}
    for colour, name in colours.items():
        chart = chart.replace(colour, f"var(--{name})")
    return re.sub(r"fill: (?:#ffffff|white)", "fill: none", chart)


def verdict(lines: Sequence[Line]) -> str:
    """What came out, in one sentence."""
    measured = [line for line in lines if line.spread]
    if not measured:
        return "No run finished."
    best = max(measured, key=lambda line: line.spread.mean if line.spread else 0)
    sentence = f"{best.recipe} is highest, at {shown_mean(best)}"
    if best is lines[0] or best.difference is None:
        return sentence + "."
    if best.difference.mean <= 0:  # of the recipes with more seeds some were worse
        return f"{sentence}; on the seeds of both it is not above {lines[0].recipe}."
    if best.difference.clear:
        return f"{sentence}, {best.difference.mean:.2f} points above {lines[0].recipe}."
    return f"{sentence}; its lead over {lines[0].recipe} is within the spread."


def differing_fields(done: Done) -> list[tuple[str, list[str]]]:
    """The fields that are not the same in all recipes: (path, a value for each recipe)."""
    flat = differing([recipe.model_dump(mode="json") for recipe in whole(done.study)])
    return [(path, ["–" if value is None else str(value) for value in values]) for path, values in flat]


def _environment(done: Done) -> dict[str, Any]:
    """The first finished run's."""
    row = next((row for row in done.rows if row.status == "finished"), None)
    return open_result(done.folder, row).environment if row else {}
