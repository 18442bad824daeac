"""RESULTS.md: our numbers beside the papers', a table a paper, made from results.csv and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinlab.papers.length import row_minutes, shown_minutes
from tinlab.papers.measures import PICTURE, measures_file, read_measures
from tinlab.papers.registry import PAPERS, WHAT_HELPS, Row, study_recipes
from tinlab.recipe import Recipe
from tinlab.recipes import BUDGET, shortened
from tinlab.results import read_results
from tinlab.study.comparison import spread
from tinlab.study.studies import WITH

Line = Mapping[str, str]
"""A row of results.csv."""

LEAK = (
    "Tiny ImageNet's images, those of val among them, are images of ImageNet, made smaller. A network that "
    "begins from ImageNet's weights may have been trained on the very images that it is measured on: these "
    "numbers say little about new images, and stand beside no network from scratch."
)

INTRODUCTION = """# Results

`tinlab results` writes this page from results/results.csv and results/measures.csv; nothing here is typed by
hand.

**Ours** is top-1 in percent on the official validation set, of the weights after the last step, without
test-time augmentation; nothing was selected on it. With one seed the bounds are a 95% bootstrap interval over
the images, with more it is the mean, the standard deviation and the number of seeds. **Train** is the
accuracy over the last pass, as it was trained. Minutes are those of the training steps. The labels of the
challenge's test set were never published, so what a paper reports on test has nothing of ours beside it but
val. A row says how much of the recipe's length was run where that was not all of it. What was never run says
how to run it, and how long two cores of an AMD EPYC take for it by the measured speed of its network.
"""


@dataclass(frozen=True)
class Found:
    """What results.csv has of a recipe: its lines, all of one length; `budget` says of which, or is empty."""

    budget: str
    lines: tuple[Line, ...]


def results_page(results: Path) -> str:
    """The page, as Markdown, from `results` and the measures.csv beside it."""
    lines, measures = read_results(results), read_measures(measures_file(results))
    parts = [INTRODUCTION]
    told: set[str] = set()
    leaking: list[str] = []
    for paper in PAPERS:
        rows: list[str] = []
        for row in paper.rows:
            shown = _rows(row, lines, measures.get(row.id, []), told)
            if row.saw_imagenet:
                leaking += shown
                rows.append(f"| {row.id} | {row.what} | {said(row)} | {_BELOW} | | | |")
            else:
                rows += shown
        parts.append(f"\n## {paper.title}\n\n{paper.about}\n\n{_table(rows)}")
        figures = [
            f"\n![{row.what}: top-1 error over epochs]({place})\n"
            for row in paper.rows
            if (place := figure_of(row, results, lines)) is not None
        ]
        parts += figures
    parts.append(f"\n## Networks that saw ImageNet's weights\n\n{LEAK}\n\n{_table(leaking)}")
    known = told | {recipe.digest for recipe in study_recipes("what_helps")}
    others = [
        _line(line["recipe"], "", "", found)
        for found in of_the_rest(lines, known)
        for line in found.lines[:1]
    ]
    if others:
        parts.append(f"\n## Others\n\nNetworks of no paper.\n\n{_table(others)}")
    parts.append("\nWhich remedies help, one at a time: [docs/what-helps.md](docs/what-helps.md).\n")
    return "".join(parts)


_BELOW = "[below](#networks-that-saw-imagenets-weights)"
_HEAD = "| row | experiment | reported | ours | train | minutes | how |\n" + 7 * "| --- " + "|\n"


def _table(rows: Iterable[str]) -> str:
    return _HEAD + "".join(f"{row}\n" for row in rows)


def _rows(row: Row, lines: Sequence[Line], measured: Sequence[Line], told: set[str]) -> list[str]:
    """A line for the recipe or the command of `row`, or one for each measured recipe of its study; what was
    found is added to `told`, by the recipes' digests."""
    if row.command:
        return [_command_row(row, measured)]
    shown: list[str] = []
    recipes = row.recipes
    for recipe in recipes:
        name = row.id if len(recipes) == 1 else f"{row.id}: {recipe.summary}"
        for found in found_of(recipe, lines):
            told |= {line["recipe_digest"] for line in found.lines}
            shown.append(_line(name, row.what if len(recipes) == 1 else "", said(row), found))
    return shown or [f"| {row.id} | {row.what} | {said(row)} | {not_yet(row)} | | | |"]


def found_of(recipe: Recipe, lines: Sequence[Line]) -> list[Found]:
    """What there is of `recipe`: at its full length, and at each fraction of it, the longest first."""
    found = []
    full = tuple(line for line in lines if line["recipe_digest"] == recipe.digest and line["split"] == "val")
    if full:
        found.append(Found("", full))
    shorter: dict[str, list[Line]] = {}
    for line in lines:
        named = BUDGET.search(line["recipe"])
        if named is None or line["split"] != "val" or line["recipe_digest"] == recipe.digest:
            continue
        if shortened(recipe, float(named[1])).digest == line["recipe_digest"]:
            shorter.setdefault(named[1], []).append(line)
    for share in sorted(shorter, key=float, reverse=True):
        group = shorter[share]
        found.append(Found(group[0]["budget"], tuple(group)))
    return found


def of_the_rest(lines: Sequence[Line], known: set[str]) -> list[Found]:
    """The recipes in results.csv that no row stands for, in the file's order."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        if line["recipe_digest"] not in known and line["split"] == "val":
            groups.setdefault(line["recipe_digest"], []).append(line)
    return [Found(group[0]["budget"], tuple(group)) for group in groups.values()]


def _line(name: str, what: str, reported: str, found: Found) -> str:
    first = found.lines[0]
    ours = shown_value(found)
    train = _mean([float(line["train_top1_percent"]) for line in found.lines])
    minutes = _mean([float(line["train_minutes"]) for line in found.lines])
    digests = sorted({line["recipe_digest"] for line in found.lines})
    commits = sorted({line["commit"] for line in found.lines})
    hardware = sorted({line["hardware"] for line in found.lines})
    how = (
        f"{'; '.join(hardware)}; torch {first['torch']}, tinlab {first['tinlab']}; recipe "
        f"`{' '.join(digests)}`, commit `{' '.join(commits)}`"
    )
    return f"| {name} | {what} | {reported} | {ours} | {train} | {minutes} | {how} |"


def shown_value(found: Found) -> str:
    """`35.91 (34.98 to 36.86)`, or `35.91 ± 0.20 (n = 3)`; and its length, where that is not the whole."""
    values = spread([float(line["top1_percent"]) for line in found.lines])
    first = found.lines[0]
    if values.deviation is None:
        text = (
            f"{values.mean:.2f} ({float(first['top1_low_percent']):.2f} to "
            f"{float(first['top1_high_percent']):.2f})"
        )
    else:
        text = f"{values.mean:.2f} ± {values.deviation:.2f} (n = {values.n})"
    return f"{text}, after {found.budget}" if found.budget else text


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f}"


def _command_row(row: Row, measured: Sequence[Line]) -> str:
    if not measured:
        return f"| {row.id} | {row.what} | {said(row)} | {not_yet(row)} | | | |"
    first = measured[0]
    if first["measure"] == PICTURE:
        ours = f"made; `tinlab reproduce {row.id}`"
    else:
        ours = ", ".join(f"{measure_words(line['measure'])} {float(line['value']):g}" for line in measured)
    how = f"{first['hardware']}; torch {first['torch']}, tinlab {first['tinlab']}; commit `{first['commit']}`"
    if first["of"]:
        how += f"; of recipe `{first['of']}`"
    return f"| {row.id} | {row.what} | {said(row)} | {ours} | | | {how} |"


def said(row: Row) -> str:
    """What the paper reports, in its order: numbers, and words."""
    numbers = [f"{measure_words(name)} {value:g}" for name, value in row.numbers.items()]
    return "; ".join(part for part in (", ".join(numbers), row.says) if part) or "no number"


def measure_words(measure: str) -> str:
    """A measure's name for people: val_top1_percent -> val, poster_test_top1_percent -> poster test."""
    words = measure.replace("_top1_percent", "").replace("top1_percent", "").replace("_", " ").strip()
    return words or "top-1"


def not_yet(row: Row) -> str:
    """How to run what was never run, and how long it takes."""
    if row.command:
        after = f", after {', '.join(row.needs)}" if row.needs else ""
        return f"not yet run: `tinlab reproduce {row.id}`{after}"
    seeds = len(row.seeds)
    about = shown_minutes(row_minutes(row)) + (f" for {seeds} seeds" if seeds > 1 else "")
    return f"not yet run: `tinlab reproduce {row.id}`, about {about}"


def figure_of(row: Row, results: Path, lines: Sequence[Line]) -> str | None:
    """Where the curve of a measured recipe's row is drawn, from the page; None where nothing was measured."""
    if curve_of(row, results, lines) is None:
        return None
    return f"results/figures/{row.id}.png"


def curve_of(row: Row, results: Path, lines: Sequence[Line]) -> Path | None:
    """The curve of the longest run of the row's recipe, that of its first seed."""
    for recipe in row.recipes if row.recipe is not None else ():
        for found in found_of(recipe, lines):
            line = min(found.lines, key=lambda one: int(one["seed"]))
            path = results.parent / "curves" / f"{line['recipe']}-s{line['seed']}.csv"
            if path.is_file():
                return path
    return None


def what_helps_page(results: Path) -> str:
    """docs/what-helps.md: each remedy alone against Sun's vanilla network, from `results`."""
    lines = read_results(results)
    recipes = study_recipes("what_helps")
    baseline = _longest(recipes[0], lines)
    rows = []
    for recipe in recipes:
        found = _longest(recipe, lines)
        remedy = recipe.summary.partition(WITH)[2] if recipe is not recipes[0] else "none"
        if found is None:
            rows.append(f"| {remedy} | not yet run | | | | |")
            continue
        value, train = _of(found, "top1_percent"), _of(found, "train_top1_percent")
        gain = ""
        if recipe is not recipes[0] and baseline is not None and baseline.budget == found.budget:
            gain = f"{value - _of(baseline, 'top1_percent'):+.2f}"
        cells = (f"{train:.1f}", f"{train - value:.1f}", f"{_of(found, 'train_minutes'):.1f}")
        rows.append(f"| {remedy} | {shown_value(found)} | {gain} | {' | '.join(cells)} |")
    minutes, seeds = shown_minutes(row_minutes(WHAT_HELPS)), len(WHAT_HELPS.seeds)
    return _WHAT_HELPS.format(rows="\n".join(rows), minutes=minutes, seeds=seeds)


_WHAT_HELPS = """# What helps against overfitting

`tinlab results` writes this page from results/results.csv.

Sun's vanilla network (ResNet-34, no augmentation, 15 epochs) learns its training images by heart. Each row
changes one thing about it and leaves the length as it is, so that a remedy that needs more time to pay is
shown at a disadvantage. **Val** is top-1 in percent; the **gain**, in percentage points, is over the first
row at the same length; the **gap** is by how much the training accuracy, as it was trained, is above val.

| remedy | val | gain | train | gap | minutes |
| --- | --- | --- | --- | --- | --- |
{rows}

`tinlab reproduce what_helps --add-results` runs what is missing: about {minutes} in all on two cores, for
{seeds} seeds; with `--budget 0.1` a tenth of it.
"""


def _longest(recipe: Recipe, lines: Sequence[Line]) -> Found | None:
    return next(iter(found_of(recipe, lines)), None)


def _of(found: Found, column: str) -> float:
    return sum(float(line[column]) for line in found.lines) / len(found.lines)
