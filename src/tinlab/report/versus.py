"""What a report says of several runs beside each other."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinlab.classifier import Classifier
from tinlab.data.pack import Split
from tinlab.errors import TinlabError
from tinlab.evaluating import Comparison, compare, saved_predictions
from tinlab.evaluating.comparing import letter
from tinlab.explain import from_split
from tinlab.report import network, wording
from tinlab.report.curves import charts_together
from tinlab.report.knobs import differing, in_words, shown, with_own_values
from tinlab.report.record import number
from tinlab.report.sections import Source

IMAGES = 6
"""Images that are explained for every run."""
MOST_EXPLAINED = 6
"""Runs whose maps stand beside each other."""
FIELDS_SHOWN = 40


@dataclass(frozen=True)
class Line:
    """A run's row: `letter` stands for it on the whole page."""

    letter: str
    name: str
    seed: str
    top1: float | None
    interval: tuple[float, float] | None
    top5: float | None
    loss: float | None
    epochs: float | None
    minutes: float | None
    parameters: float | None


@dataclass(frozen=True)
class Shared:
    """One image, its class, and what each run (by its letter) sees in it."""

    name: str
    true: str
    image: str
    seen: list[tuple[str, network.Explained]]


def versus(sources: Sequence[Source], *, explain: bool = True) -> dict[str, Any]:
    """The comparison's values, by name."""
    letters = [letter(place) for place in range(len(sources))]
    lines = [_line(letters[n], source) for n, source in enumerate(sources)]
    named = [(_head(line, lines), source.record) for line, source in zip(lines, sources, strict=True)]
    by_epochs = charts_together(named, minutes=False)
    by_minutes = charts_together(named, minutes=True)
    found, why_not = _compared(sources)
    measured = [line for line in lines if line.top1 is not None]
    if found is not None:
        figure, sentence = wording.comparison_verdict(found)
    elif measured:
        best = max(measured, key=lambda line: line.top1 or 0.0)
        figure, sentence = f"{best.top1:.2f}%", f"is the highest top-1, by {best.letter}, {best.name}."
    else:
        figure, sentence = "", "Nothing was measured yet in these runs."
    together, telling = _side_by_side(sources, letters, found) if explain else ([], False)
    beyond = [name for name, *_ in _able(sources, letters)][MOST_EXPLAINED:]
    return {
        "figure": figure,
        "sentence": sentence,
        "lines": lines,
        "heads": [name for name, _ in named],
        "by_epochs": by_epochs,
        "by_minutes": by_minutes,
        "compared": found,
        "compared_lead": wording.comparison_sentence(found) if found else "",
        "not_compared": why_not,
        "side_by_side": together,
        "telling": telling,
        "not_explained": [
            f"{line.letter} is not among them: {source.no_classifier or source.no_pack}."
            for line, source in zip(lines, sources, strict=True)
            if source.classifier is None or source.split is None
        ]
        + [f"{name} is not among them: {MOST_EXPLAINED} runs are shown at most." for name in beyond],
        "fields": fields_apart([source.record.recipe for source in sources]),
    }


def fields_apart(recipes: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The fields that differ, as shown: what a recipe leaves to its network with the network's own value."""
    whole = [in_words(with_own_values(recipe)) for recipe in recipes]
    found = [
        (path, ["–" if value is None else shown(value) for value in values])
        for path, values in differing(whole)
    ]
    return [(path, values) for path, values in found if len(set(values)) > 1][:FIELDS_SHOWN]


def _head(line: Line, lines: Sequence[Line]) -> str:
    """A run's name among others: with its seed where another run has the same recipe."""
    alike = sum(other.name == line.name for other in lines) > 1 and line.seed != "–"
    return f"{line.letter} {line.name}" + (f", seed {line.seed}" if alike else "")


def _line(letter: str, source: Source) -> Line:
    record, metrics = source.record, source.metrics
    result = record.result or {}
    seconds = number(result.get("train_seconds"))
    last = max((*record.train, *record.held_out), key=lambda point: point.step, default=None)
    if seconds is None and last is not None:
        seconds = last.train_seconds
    return Line(
        letter=letter,
        name=str(record.recipe.get("name") or record.path.name),
        seed=shown(result["seed"]) if "seed" in result else "–",
        top1=metrics.top1_percent if metrics else number(result.get("top1_percent")),
        interval=metrics.top1_interval_percent if metrics else None,
        top5=metrics.top5_percent if metrics else number(result.get("top5_percent")),
        loss=metrics.loss if metrics else number(result.get("loss")),
        epochs=number(result.get("epochs")) or (last.epoch if last else None),
        minutes=None if seconds is None else seconds / 60,
        parameters=number(result.get("parameters")),
    )


def _compared(sources: Sequence[Source]) -> tuple[Comparison | None, str]:
    """The runs image by image, or why they cannot be. Nothing is predicted anew: that may take long."""
    splits = {s.record.predictions.split for s in sources if s.record.predictions}
    if len(splits) != 1:
        return None, "there are no saved predictions of one split of all of them"
    (split,) = splits
    try:
        for source in sources:
            if saved_predictions(source.record.path, split=split) is None:
                return None, (
                    f"{source.record.path.name} has no saved predictions of {split}; make them with: "
                    + shlex.join(["tinlab", "evaluate", str(source.record.path)])
                )
        return compare([source.record.path for source in sources], split=split), ""
    except TinlabError as error:
        return None, str(error)


def _able(sources: Sequence[Source], letters: Sequence[str]) -> list[tuple[str, Classifier, Split]]:
    """The runs whose network and images are at hand."""
    return [
        (name, source.classifier, source.split)
        for name, source in zip(letters, sources, strict=True)
        if source.classifier is not None and source.split is not None
    ]


def _side_by_side(
    sources: Sequence[Source], letters: Sequence[str], found: Comparison | None
) -> tuple[list[Shared], bool]:
    """The same images explained for every run, and whether they are such that only one of two gets right: so
    that, where there are any, the maps have something to tell apart."""
    able = _able(sources, letters)[:MOST_EXPLAINED]
    if len(able) < 2:
        return [], False
    split = able[0][2]
    if any(of.name != split.name or of.pack.digest != split.pack.digest for _, _, of in able):
        return [], False
    rows = _telling(found, {name for name, _, _ in able}, IMAGES) if found is not None else []
    chosen = from_split(split, indices=rows) if rows else from_split(split, images=min(IMAGES, len(split)))
    columns = []
    for name, classifier, _ in able:
        try:
            columns.append((name, network.explained(classifier, [(one, "") for one in chosen])))
        except TinlabError:
            continue  # a network that takes other images; the rest still stands
    if len(columns) < 2:
        return [], False
    shared = [
        Shared(
            one.name, network.word(one), columns[0][1][n].image, [(name, seen[n]) for name, seen in columns]
        )
        for n, one in enumerate(chosen)
    ]
    return shared, bool(rows)


def _telling(found: Comparison, able: set[str], most: int) -> list[int]:
    """Rows of images that only one of two of the runs `able` gets right: of each side in turn, spread over
    the split."""
    sides = [
        rows
        for a, b, pair in found.pairs
        if {found.members[a].letter, found.members[b].letter} <= able
        for rows in (pair.only_first, pair.only_second)
        if rows
    ]
    each = 1 + -(-most // max(1, len(sides)))  # one more, for those that several sides name
    spread = [[rows[(2 * i + 1) * len(rows) // (2 * each)] for rows in sides] for i in range(each)]
    return list(dict.fromkeys(row for turn in spread for row in turn))[:most]
