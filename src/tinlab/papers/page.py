"""RESULTS.md: our numbers beside the papers', a table a paper, made from the files in results/ alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tinlab import recipes
from tinlab.papers.found import Found, Line, found_of, of_the_rest, words
from tinlab.papers.glance import at_a_glance
from tinlab.papers.length import row_minutes, shown_minutes
from tinlab.papers.measures import PICTURE, measures_file, read_measures
from tinlab.papers.pictures import TRANSFER, Picture, pictures
from tinlab.papers.registry import PAPERS, REMEDY_ROWS, Row, row
from tinlab.papers.remarks import Remark, Shown, missing, paragraph, read_remarks, remarks_file, shown
from tinlab.papers.transfer import (
    STARTS,
    of_one_network,
    read_transfer,
    spreads_of,
    transfer_file,
    transfer_minutes,
)
from tinlab.recipes import RECIPES
from tinlab.results import read_results

LEAK = (
    "Tiny ImageNet's images, those of val among them, are images of ImageNet, made smaller. A network that "
    "begins from ImageNet's weights may have been trained on the very images that it is measured on: these "
    "numbers say little about new images, and stand beside no network from scratch."
)

INTRODUCTION = """# Results

`tinlab results` writes this page from the files in results/. No result is typed: those in the remarks too are
computed from the rows.

**Ours** is top-1 in percent on the official validation set, of the weights after the last step, without
test-time augmentation; no run and no checkpoint was selected on it, but the values of fast_cpu and
fast_cpu_56, from which those of fast_cpu_65 are, were found on it (LOG.md). With one seed the bounds are a
95% bootstrap interval over the images, with more it is the mean, the standard deviation and the number of
seeds. **Train** is the accuracy over the last pass, as it was trained. Minutes are those of the training
steps. The labels of the challenge's test set were never published, so what a paper reports on test has
nothing of ours beside it but val. `budget` says how much of the recipe's length was run where that was not
all of it; the longest run has the row. What was never run says how to run it, and how long two cores of an
AMD EPYC take for it by the measured speed of its network. Pictures that show images of the data set
(errors, saliency, filters with what excites them, classes) are not kept here: their command makes them.

Where each number stands in its paper, and what of each recipe is stated, inferred, assumed or ours:
[docs/papers.md](docs/papers.md). Which remedies help, one at a time:
[docs/what-helps.md](docs/what-helps.md).
"""

_BELOW = "[below](#networks-that-saw-imagenets-weights)"
_BEGAN = {"imagenet": "began from ImageNet's weights"}
"""What is said of networks of no paper that began from weights, where more is known than their digest."""
_HEAD = "| row | experiment | reported | ours | train | minutes | how |\n" + 7 * "| --- " + "|\n"


def results_page(results: Path) -> str:
    """The page, as Markdown, from `results` and the files beside it."""
    lines, measures = read_results(results), read_measures(measures_file(results))
    drawn = pictures(results)
    every = read_remarks(remarks_file(results))
    remarks = [(remark, text) for remark in every if (text := shown(remark, lines, measures)) is not None]
    parts = [INTRODUCTION, at_a_glance(lines, measures)]
    told: set[str] = set()
    leaking: list[str] = []
    leaking_rows: list[Row] = []
    for paper in PAPERS:
        rows: list[str] = []
        own: list[Row] = []
        for one in paper.rows:
            found = _rows(one, lines, measures.get(one.id, []), told)
            if one.saw_imagenet:
                leaking += found
                leaking_rows.append(one)
                rows.append(f"| {one.id} | {one.what} | {said(one)} | {_BELOW} | | | |")
            else:
                rows += found
                own.append(one)
        parts.append(f"\n## {paper.title}\n\n{paper.about}\n\n{_table(rows)}")
        parts += _remarks(own, remarks)
        if paper.key == "shcherbina":
            parts += [_table_2(lines, measures), _table_3(measures)]
        parts += _figures(own, drawn)
    parts.append(_open_questions(every, remarks, lines, measures))
    parts.append(_transfer(results, drawn))
    for one in REMEDY_ROWS:
        _rows(one, lines, [], told)
    others: list[str] = []
    for rest in of_the_rest(lines, told):
        began = {line["weights"] for line in rest.lines} - {""}
        begun = " and ".join(
            _BEGAN.get(one, f"began from weights of SHA-256 {one}…") for one in sorted(began)
        )
        (leaking if began else others).append(_line(_name(rest.lines[0]), begun, "", rest))
    parts.append(f"\n## Networks that saw ImageNet's weights\n\n{LEAK}\n\n{_table(leaking)}")
    parts += _remarks(leaking_rows, remarks)
    parts += _figures(leaking_rows, drawn)
    if others:
        parts.append(f"\n## Others\n\nNetworks of no paper.\n\n{_table(others)}")
    return "".join(parts)


def _name(line: Line) -> str:
    """The recipe of a row that is no paper's; one that was changed by hand keeps its name."""
    name = line["recipe"]
    known = RECIPES.get(name)
    return name if known is None or known().digest == line["recipe_digest"] else f"{name}, changed"


def _table(rows: Iterable[str]) -> str:
    return _HEAD + "".join(f"{one}\n" for one in rows)


def _figures(rows: Sequence[Row], drawn: Mapping[str, Picture]) -> list[str]:
    return [f"\n![{drawn[one.id].words}]({drawn[one.id].place})\n" for one in rows if one.id in drawn]


def _remarks(rows: Sequence[Row], remarks: Sequence[tuple[Remark, Shown]]) -> list[str]:
    """The remarks on `rows` that answer no open question, in the rows' order."""
    return [
        f"\n**{one.id}.** {paragraph(found)}\n"
        for one in rows
        if (found := [text for remark, text in remarks if remark.row == one.id and not remark.question])
    ]


def _open_questions(
    every: Sequence[Remark],
    remarks: Sequence[tuple[Remark, Shown]],
    lines: Sequence[Line],
    measures: Mapping[str, Sequence[Line]],
) -> str:
    """What the papers left open, and what the numbers say about it."""
    questions = list(dict.fromkeys(remark.question for remark in every if remark.question))
    if not questions:
        return ""
    parts = ["\n## What the papers left open\n"]
    for question in questions:
        texts = [text for remark, text in remarks if remark.question == question]
        if not texts:
            first = next(remark for remark in every if remark.question == question)
            todo = "; ".join(how_to_run(row(name)) for name in missing(first, lines, measures))
            texts = [Shown(f"Not answered yet; to run: {todo or 'the same share of each length'}.")]
        parts.append(f"\n**{question}** {paragraph(texts)}\n")
    return "".join(parts)


def _rows(row_: Row, lines: Sequence[Line], measured: Sequence[Line], told: set[str]) -> list[str]:
    """A line for the recipe or the command of `row_`, or one for each measured recipe of its study; what was
    found is added to `told`, by the recipes' digests."""
    if row_.command:
        return [_command_row(row_, measured)]
    several = row_.study is not None
    shown_: list[str] = []
    for recipe in row_.recipes:
        groups = found_of(recipe, lines)
        told |= {line["recipe_digest"] for found in groups for line in found.lines}
        for found in groups[:1]:
            name = f"{row_.id}: {words(recipe)}" if several else row_.id
            shown_.append(_line(name, "" if several else row_.what, said(row_), found))
    missing = len(row_.recipes) - len(shown_)
    if shown_ and missing:
        shown_.append(f"| {row_.id} | {row_.what} | | {missing} more {not_yet(row_)} | | | |")
    return shown_ or [f"| {row_.id} | {row_.what} | {said(row_)} | {not_yet(row_)} | | | |"]


def _line(name: str, what: str, reported: str, found: Found) -> str:
    first = found.lines[0]
    digests = sorted({line["recipe_digest"] for line in found.lines})
    commits = sorted({line["commit"] for line in found.lines})
    hardware = sorted({machine(line) for line in found.lines})
    how = (
        f"{'; '.join(hardware)}; torch {first['torch']}, tinlab {first['tinlab']}; recipe "
        f"`{' '.join(digests)}`, commit `{' '.join(commits)}`"
    )
    train, minutes = found.mean("train_top1_percent"), found.mean("train_minutes")
    return f"| {name} | {what} | {reported} | {shown_value(found)} | {train:.1f} | {minutes:.1f} | {how} |"


def machine(line: Line) -> str:
    """The hardware; for a CPU also how many threads worked, where those are not as many as its cores."""
    hardware, threads = line["hardware"], line["threads"]
    if not threads or not hardware.endswith(" cores") or hardware.endswith(f", {threads} cores"):
        return hardware
    return f"{hardware}, {threads} thread{'' if threads == '1' else 's'}"


def shown_value(found: Found) -> str:
    """`35.91 (34.98 to 36.86)`, or `35.91 ± 0.20 (n = 3)`; and its length, where that is not the whole."""
    values = found.spread
    if values.deviation is None:
        low, high = found.interval
        text = f"{values.mean:.2f} ({low:.2f} to {high:.2f})"
    else:
        text = f"{values.mean:.2f} ± {values.deviation:.2f} (n = {values.n})"
    return f"{text}; budget: {found.budget}" if found.budget else text


def _command_row(row_: Row, measured: Sequence[Line]) -> str:
    if not measured:
        return f"| {row_.id} | {row_.what} | {said(row_)} | {not_yet(row_)} | | | |"
    first = measured[0]
    share = float(first["share"])
    if first["measure"] == PICTURE:
        ours = f"made; `tinlab reproduce {row_.id}{f' --budget {share:g}' if share < 1 else ''}`"
    else:
        ours = ", ".join(f"{measure_words(line['measure'])} {float(line['value']):g}" for line in measured)
    ours += _of_share(first)
    how = f"{machine(first)}; torch {first['torch']}, tinlab {first['tinlab']}; commit `{first['commit']}`"
    if first["of"]:
        how += f"; of recipe `{first['of']}`"
    return f"| {row_.id} | {row_.what} | {said(row_)} | {ours} | | | {how} |"


def _of_share(line: Line) -> str:
    """What is said of a line of measures.csv whose runs were shortened."""
    share = float(line["share"])
    return f"; of runs of {share:g} of their length" if share < 1 else ""


def said(row_: Row) -> str:
    """What the paper reports, in its order: numbers, and words."""
    numbers = [f"{measure_words(name)} {value:g}" for name, value in row_.numbers.items()]
    return "; ".join(part for part in (", ".join(numbers), row_.says) if part) or "no number"


def measure_words(measure: str) -> str:
    """A measure's name for people: val_top1_percent -> val, poster_test_top1_percent -> poster test."""
    text = measure.replace("_top1_percent", "").replace("top1_percent", "").replace("_", " ").strip()
    return text or "top-1"


def not_yet(row_: Row) -> str:
    """What stands where a number would, for what was never run."""
    return f"not yet run: {how_to_run(row_)}"


def how_to_run(row_: Row) -> str:
    """How to run a row, and how long it takes."""
    if row_.command:
        after = f", after {', '.join(row_.needs)}" if row_.needs else ""
        return f"`tinlab reproduce {row_.id}`{after}"
    seeds = len(row_.seeds)
    about = shown_minutes(row_minutes(row_)) + (f" for {seeds} seeds" if seeds > 1 else "")
    return f"`tinlab reproduce {row_.id}`, about {about}"


def unexplained(results: Path) -> list[str]:
    """The rows measured at full length whose top-1 on val is below what its paper's stands beside it, and
    which no remark is shown under."""
    lines, measures = read_results(results), read_measures(measures_file(results))
    remarks = read_remarks(remarks_file(results))
    found = []
    for one in (one for paper in PAPERS for one in paper.rows if one.recipe is not None):
        full = [group for group in found_of(one.recipes[0], lines) if group.share == 1]
        if not full or one.beside_val is None or full[0].mean() >= one.beside_val:
            continue
        if not any(remark.row == one.id and shown(remark, lines, measures) for remark in remarks):
            found.append(one.id)
    return found


def _table_2(lines: Sequence[Line], measures: Mapping[str, Sequence[Line]]) -> str:
    """Shcherbina's table 2 with ours beside it, of the networks that were measured; the ensemble's too."""
    names = ("shcherbina_convnet9", "shcherbina_vgglike", "shcherbina_vgg16")
    found = {name: next(iter(found_of(row(name).recipes[0], lines)), None) for name in names}
    if not any(found.values()):
        return ""
    rows = []
    for name, own in found.items():
        numbers = [row(name).numbers[f"{which}_top1_percent"] for which in ("train", "val", "test")]
        train, val, test = (f"{number:.1f}" for number in numbers)
        afterwards = trained = ""
        if own:
            trained = f"{own.mean('train_top1_percent'):.1f}"
            for line in measures.get(name.replace("shcherbina", "shcherbina_train"), ()):
                if line["of"] in {one["recipe_digest"] for one in own.lines}:
                    afterwards = f"{float(line['value']):.1f}"
        shown_ = shown_value(own) if own else "not yet run"
        rows.append(f"| {name} | {train} | {afterwards} | {trained} | {val} | {shown_} | {test} |")
    ensemble = next(
        (line for line in measures.get("shcherbina_ensemble", ()) if line["measure"] == "val_top1_percent"),
        None,
    )
    val = f"{float(ensemble['value']):.2f}{_of_share(ensemble)}" if ensemble else "not yet run"
    test = f"{row('shcherbina_ensemble').numbers['test_top1_percent']:.1f}"
    rows.append(f"| shcherbina_ensemble | | | | | {val} | {test} |")
    columns = (
        "network",
        *("train, hers", "train, ours", "train, ours, in the last pass"),
        *("val, hers", "val, ours", "test, hers"),
    )
    head = f"| {' | '.join(columns)} |\n" + len(columns) * "| --- " + "|\n"
    about = (
        "Her accuracies on the training images were measured after the training, on the enlarged set and "
        "without\ndropout: her log of the VGG-like network has 29.9% in the last pass, as trained, and 48.9% "
        "afterwards. Ours\nare measured afterwards too, on the images as they are, and beside that in the "
        "last pass, as everywhere here.\nThe dotted lines in the pictures are hers.\n\n"
    )
    return "\n### Her table 2, ours beside hers\n\n" + about + head + "\n".join(rows) + "\n"


def _table_3(measures: Mapping[str, Sequence[Line]]) -> str:
    """Shcherbina's table 3 with ours beside it, where ours were counted."""
    ours = {
        name: {line["measure"]: float(line["value"]) for line in measures[name]}
        for name in ("shcherbina_classes", "shcherbina_classes_scratch")
        if name in measures
    }
    if not ours:
        return ""
    networks = {"shcherbina_classes": "ours, VGG-16", "shcherbina_classes_scratch": "ours, convnet9"}
    shares = {name: float(measures[name][0]["share"]) for name in ours}
    columns = [
        networks[name] + (f", {share:g} of its length" if share < 1 else "") for name, share in shares.items()
    ]
    head = f"| class | hers, VGG-16 | {' | '.join(columns)} |\n"
    head += (2 + len(ours)) * "| --- " + "|\n"
    rows = [
        f"| {measure_words(measure).removesuffix(' errors')} | {value:g} | "
        + " | ".join(f"{values[measure]:g}" if measure in values else "" for values in ours.values())
        + " |\n"
        for measure, value in row("shcherbina_classes").numbers.items()
    ]
    about = "Images that were got wrong, of 50 of val: her five best classes and her five worst ones.\n\n"
    return "\n### Her table 3, ours beside hers\n\n" + about + head + "".join(rows)


_TRANSFER = """
## Transfer: half of the classes to the other half

A network learns half of the classes (A), and is then fine-tuned on the other half (B): its new classifier
alone for a fifth of the steps, then all of it at a tenth of the rate. Beside it the same network learns B
from scratch, from the same images, in as many steps. Top-1 in percent on B's validation images, with bounds
as above. Here no network has seen what it is measured on, which cannot be said of ImageNet's weights.
"""


def _transfer(results: Path, drawn: Mapping[str, Picture]) -> str:
    """The table and the curve of `tinlab transfer`."""
    rows = of_one_network(read_transfer(transfer_file(results)))
    if not rows:
        minutes = transfer_minutes(recipes.find("fast_cpu"))
        about = "" if minutes is None else f", about {shown_minutes(minutes)} for a seed"
        return f"{_TRANSFER}\nNot yet run: `tinlab transfer --add-results`{about}.\n"
    found = spreads_of(rows)
    (first, *_) = rows
    head = "| images a class | from A | from scratch | gain | minutes | seeds |\n" + 6 * "| --- " + "|\n"
    parts = [_TRANSFER, "\n", head]
    for count, starts in found.items():
        if count == 0:
            continue
        cells = []
        for start in STARTS:
            if start not in starts:
                cells.append("not yet run")
                continue
            over, low, high = starts[start]
            bounds = f"({low:.2f} to {high:.2f})" if over.deviation is None else f"± {over.deviation:.2f}"
            cells.append(f"{over.mean:.2f} {bounds}")
        both = all(start in starts for start in STARTS)
        gain = f"{starts[STARTS[0]][0].mean - starts[STARTS[1]][0].mean:+.2f}" if both else ""
        own = [one for one in rows if int(one["images_per_class"]) == count]
        minutes = sum(float(one["train_minutes"]) for one in own) / len(own)
        seeds = len({one["seed"] for one in own})
        parts.append(f"| {count} | {cells[0]} | {cells[1]} | {gain} | {minutes:.1f} | {seeds} |\n")
    hardware = "; ".join(sorted({machine(one) for one in rows}))
    commits = " ".join(sorted({one["commit"] for one in rows}))
    share = "" if first["share"] == "1" else f" at {first['share']} of each length"
    on_a = found.get(0, {}).get("A itself")
    reached = f" On A's own validation images it reaches {on_a[0].mean:.2f}%." if on_a else ""
    parts.append(
        f"\nThe network is `{first['network']}`{share} (recipe `{first['recipe_digest']}`).{reached} Minutes "
        f"are those of one training on B; {hardware}; torch {first['torch']}, tinlab {first['tinlab']}; "
        f"commit `{commits}`.\n"
    )
    if TRANSFER in drawn:
        parts.append(f"\n![{drawn[TRANSFER].words}]({drawn[TRANSFER].place})\n")
    return "".join(parts)
