"""docs/what-helps.md: each remedy against overfitting alone, on all images and on few, from results.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tinlab.papers.found import Found, Line, found_of, gain, longest, words
from tinlab.papers.length import row_minutes, shown_minutes
from tinlab.papers.measures import measures_file, read_measures
from tinlab.papers.page import machine, shown_value
from tinlab.papers.pictures import pictures
from tinlab.papers.registry import REMEDY_ROWS, Row
from tinlab.papers.remarks import paragraph, read_remarks, remarks_file, shown
from tinlab.recipe import Recipe
from tinlab.results import read_results

INTRODUCTION = """# What helps against overfitting

`tinlab results` writes this page from results/results.csv.

Sun's vanilla network (ResNet-34, no augmentation, 15 epochs) learns its training images by heart. Each row
changes one thing about it and leaves the length as it is, so that a remedy that needs more time to pay is
shown at a disadvantage. **Val** is top-1 in percent; the **gain**, in percentage points, is over the first
row at the same length, with a 95% interval: over the seeds, paired, where there are two or more, otherwise
over the images, as if the two networks had been measured on different ones, which makes it too wide rather
than too narrow. The **gap** is by how much the training accuracy, as it was trained, is above val.
"""

ABOUT = {
    "what_helps": "\n## On all 100,000 images\n",
    "what_helps_small": """
## On 50 images a class

The same network, remedies and number of passes, over a tenth of the images and so in a tenth of the steps,
which two cores can do. (A tenth of the steps over all images would be a pass and a half, which overfits
nothing: that is what `--budget 0.1` gives.) The moving average's memory is a tenth as long too.
""",
}
"""Row -> what stands above its table."""


def what_helps_page(results: Path) -> str:
    """The page, as Markdown, from `results` and the remarks beside it."""
    lines, measures = read_results(results), read_measures(measures_file(results))
    remarks, drawn = read_remarks(remarks_file(results)), pictures(results)
    parts = [INTRODUCTION]
    for row in REMEDY_ROWS:
        parts.append(ABOUT[row.id] + _table(row, lines))
        if row.id in drawn:
            parts.append(f"\n![{drawn[row.id].words}](../{drawn[row.id].place})\n")
        found = [shown(remark, lines, measures) for remark in remarks if remark.row == row.id]
        parts += [f"\n{paragraph([one])}\n" for one in found if one is not None]
    return "".join(parts)


def _table(row: Row, lines: Sequence[Line]) -> str:
    base, *others = row.recipes
    plain = longest(base, lines)
    missing = 0
    rows = []
    where: dict[str, list[str]] = {}
    for recipe in (base, *others):
        remedy = "none" if recipe is base else words(recipe)
        found = _beside(recipe, plain, lines)
        if found is None:
            missing += 1
            rows.append(f"| {remedy} | not yet run | | | | |\n")
            continue
        for line in found.lines:
            told = where.setdefault(f"commit `{line['commit']}` on {machine(line)}", [])
            told.extend([remedy] if remedy not in told else [])
        over = ""
        if recipe is not base and plain is not None and plain.share == found.share:
            own = gain(found, plain)
            over = f"{own.mean:+.2f} ({own.low:+.2f} to {own.high:+.2f})"
        train = found.mean("train_top1_percent")
        cells = (f"{train:.1f}", f"{train - found.mean():.1f}", f"{found.mean('train_minutes'):.1f}")
        rows.append(f"| {remedy} | {shown_value(found)} | {over} | {' | '.join(cells)} |\n")
    head = "\n| remedy | val | gain | train | gap | minutes |\n" + 6 * "| --- " + "|\n"
    seeds = len(row.seeds)
    how = (
        f"\n`tinlab reproduce {row.id} --add-results` runs what is missing, and adds each row as its run "
        f"ends: about {shown_minutes(row_minutes(row))} in all on two cores for {seeds} seeds, of which "
        f"`--seeds 1` takes the first.\n"
    )
    return head + "".join(rows) + _minutes(where) + (how if missing else "")


def _minutes(where: Mapping[str, Sequence[str]]) -> str:
    """Which minutes of a table may be compared, from the remedies that were measured in each place."""
    if not where:
        return ""
    if len(where) == 1:
        return f"\nMinutes are of {next(iter(where))}.\n"
    groups = "".join(f"- {place}: {'; '.join(remedies)}\n" for place, remedies in where.items())
    return f"\nMinutes compare within one commit and machine alone:\n\n{groups}"


def _beside(recipe: Recipe, plain: Found | None, lines: Sequence[Line]) -> Found | None:
    """What there is of `recipe` at the length of the first row, or else at its own longest."""
    every = found_of(recipe, lines)
    same = [found for found in every if plain is not None and found.share == plain.share]
    return next(iter(same or every), None)
