"""A study's page: one self-contained HTML file with the chart, the table and every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinlab import report
from tinlab.files import write_text
from tinlab.study.attempt import open_result
from tinlab.study.charts import save, study_chart, svg_text
from tinlab.study.plan import whole
from tinlab.study.run import Done, outcome
from tinlab.study.summary import Line, interval_note, shown_difference, shown_mean

HERE = Path(report.__file__).parent
"""The templates and the style of every page."""


def write_study(done: Done, lines: Sequence[Line]) -> Path:
    """Write chart.png, chart.svg and report.html into the study's folder; return the page's path."""
    figure = study_chart(lines, done.study.name)
    save(figure, done.folder, "chart")
    path = done.folder / "report.html"
    write_text(path, render(done, lines, svg_text(figure)))
    return path


def render(done: Done, lines: Sequence[Line], chart: str) -> str:
    """The page's HTML; `chart` is an <svg> element."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Only what charts.py drew and what lies beside the template goes in unescaped.
    return environment.get_template("study.html").render(
        study=done.study,
        lines=[(line, shown_mean(line), shown_difference(line)) for line in lines],
        note=interval_note(lines, len(done.study.seeds)),
        verdict=verdict(lines),
        rows=[(row, outcome(row)) for row in done.rows],
        fields=differing_fields(done),
        environment=_environment(done),
        chart=Markup(chart),
        style=Markup((HERE / "page.css").read_text("utf-8")),
    )


def verdict(lines: Sequence[Line]) -> str:
    """What came out, in one sentence."""
    measured = [line for line in lines if line.spread]
    if not measured:
        return "No run finished."
    best = max(measured, key=lambda line: line.spread.mean if line.spread else 0)
    sentence = f"{best.recipe} is highest, at {shown_mean(best)}"
    if best is lines[0] or best.difference is None:
        return sentence + "."
    if best.difference.clear:
        return f"{sentence}, {best.difference.mean:.2f} points above {lines[0].recipe}."
    return f"{sentence}; its lead over {lines[0].recipe} is within the spread."


def differing_fields(done: Done) -> list[tuple[str, list[str]]]:
    """The fields that are not the same in all recipes: (path, a value for each recipe)."""
    flat = [_flat(recipe.model_dump(mode="json")) for recipe in whole(done.study)]
    apart = ("name", "summary", "paper", "provenance")
    paths = dict.fromkeys(path for one in flat for path in one if path.split(".")[0] not in apart)
    found = []
    for path in paths:
        values = [one.get(path) for one in flat]
        if any(value != values[0] for value in values):
            found.append((path, ["–" if value is None else str(value) for value in values]))
    return found


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            found |= _flat(item, f"{prefix}{name}.")
        else:
            found[prefix + name] = item
    return found


def _environment(done: Done) -> dict[str, Any]:
    """The first finished run's."""
    row = next((row for row in done.rows if row.status == "finished"), None)
    return open_result(done.folder, row).environment if row else {}
