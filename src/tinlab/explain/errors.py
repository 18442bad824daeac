"""Where a network is wrong, and where perhaps the label is.

Likely label errors are found by confident learning (Northcutt, Jiang and Chuang, "Confident Learning:
Estimating Uncertainty in Dataset Labels", JAIR 2021): class j has a threshold, the mean probability of j over
the images labelled j; an image labelled i is taken for a j whose probability reaches j's threshold, the
likeliest where several do; where j is not i, the label is suspect (the confident joint's off-diagonals). The
suspects are ordered by their normalised margin, the label's probability less the highest of another class, or
by self-confidence, the label's probability: lowest first, in both.

That supposes predictions of images that the network was not trained on. An image that it was trained on has
taught it its label, wrong or not: a network that has learned its training images by heart suspects none of
them, and whatever it still suspects there it could not learn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tinlab.data.audit import Audit
from tinlab.data.pack import BOTH, UNLABELLED, Pack, Split
from tinlab.data.words import short_names
from tinlab.errors import TinlabError
from tinlab.evaluating import predictions_of
from tinlab.evaluation.logits import Predictions
from tinlab.evaluation.metrics import ROWS_AT_ONCE, Confusion, Judged, confusion_pairs, judge
from tinlab.explain.compare import percent
from tinlab.explain.drawing import Part, Picture, Row, enlarge, gallery, sheet
from tinlab.runs import Run, open_run, pack_of, seen, whether_seen

COLUMNS = 8
RankBy = Literal["margin", "self_confidence"]


@dataclass(frozen=True)
class Suspect:
    """An image whose label is perhaps wrong: row `index` of the split, its label and the class it is taken
    for, the probabilities of both, 0..1, and the normalised margin, -1..1."""

    index: int
    label: int
    likely: int
    self_confidence: float
    likely_probability: float
    margin: float


def confident_errors(judged: Judged, most: int | None = None) -> np.ndarray:
    """Rows of the wrong predictions, int64, the surest first."""
    wrong = np.flatnonzero(~judged.correct)
    return wrong[np.argsort(-judged.confidence[wrong], kind="stable")][:most]


def class_thresholds(own: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The mean probability of each class over the images labelled so, float64 (C,); infinite where there are
    none. `own` (N,) are the probabilities of the images' labels, 0..1, `labels` int64 (N,)."""
    images = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=own, minlength=classes)
    return np.where(images > 0, sums / np.maximum(images, 1), np.inf)


def _probabilities(logits: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The softmax of `logits` (N, C) in float64, block by block, with the rows of each."""
    for start in range(0, len(logits), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        shifted = logits[rows].astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        np.exp(shifted, out=shifted)
        yield rows, shifted / shifted.sum(axis=1, keepdims=True)


def label_errors(
    logits: np.ndarray, labels: np.ndarray, *, by: RankBy = "margin", most: int | None = None
) -> list[Suspect]:
    """The likely label errors among images with `logits` (N, C) and `labels` (N,), likeliest first.

    Raises TinlabError where logits and labels do not fit each other, are empty, or labels are unknown.
    """
    if by not in ("margin", "self_confidence"):
        raise TinlabError(f"by is '{by}'; give margin or self_confidence")
    judged = judge(logits, labels)
    logits, labels = np.asarray(logits), judged.labels
    count, classes = logits.shape
    own, likely_probability, margin = np.empty(count), np.empty(count), np.empty(count)
    likely = np.empty(count, np.int64)
    for rows, block in _probabilities(logits):
        own[rows] = block[np.arange(len(block)), labels[rows]]
    thresholds = class_thresholds(own, labels, classes)
    for rows, block in _probabilities(logits):
        places = np.arange(len(block))
        reached = np.where(block >= thresholds, block, -1.0)
        likely[rows] = reached.argmax(1)
        likely_probability[rows] = reached.max(1)  # -1 where none is reached
        block[places, labels[rows]] = -1
        margin[rows] = own[rows] - block.max(1)
    suspects = np.flatnonzero((likely_probability >= 0) & (likely != labels))
    key = margin if by == "margin" else own
    order = suspects[np.argsort(key[suspects], kind="stable")][:most]
    return [
        Suspect(
            index=int(row),
            label=int(labels[row]),
            likely=int(likely[row]),
            self_confidence=float(own[row]),
            likely_probability=float(likely_probability[row]),
            margin=float(margin[row]),
        )
        for row in order
    ]


def conflicts(audit: Audit, split: str, before_tune: int = 0) -> dict[int, list[str]]:
    """For each row of `split` that the audit found elsewhere with another label: where, and as what.

    In `train+tune` the rows of tune come after the `before_tune` rows of train.
    """
    found: dict[int, list[str]] = {}
    for group in (*audit.identical, *(audit.near or ())):
        if not group.conflicting:
            continue
        for member in group.members:
            if member.split not in split.split("+") or member.label == UNLABELLED:
                continue
            row = member.row + (before_tune if member.split == "tune" else 0)
            for other in group.members:
                if other.label not in (member.label, UNLABELLED):
                    text = f"{other.split} {other.row} is the same image: {_word(audit.classes, other.label)}"
                    found.setdefault(row, []).append(text)
    return {row: list(dict.fromkeys(texts)) for row, texts in found.items()}


def errors_sheet(
    run: str | Path,
    *,
    split: str = "val",
    most: int = 24,
    pairs: int = 6,
    pack: Pack | None = None,
    device: str = "auto",
) -> tuple[Picture, list[dict[str, Any]]]:
    """A sheet with the wrong predictions that the run was surest of and the classes that it confuses most,
    and the former as JSON values. Raises TinlabError where the run cannot be measured on the split."""
    opened, rows, predictions, judged = _predicted(run, split, most, pack, device)
    names = short_names(opened.classes)
    worst = confident_errors(judged, most)
    listed = [
        {
            "index": int(predictions.indices[row]),
            "name": rows.names[predictions.indices[row]],
            "true": names[judged.labels[row]],
            "predicted": names[judged.predicted[row]],
            "confidence_percent": 100 * float(judged.confidence[row]),
        }
        for row in worst
    ]
    wrong = int((~judged.correct).sum())
    captions = [
        f"{e['true']}, taken for {e['predicted']}, {percent(e['confidence_percent'] / 100)}" for e in listed
    ]
    parts = [
        Part(
            "The errors that it is surest of",
            gallery(_pictures(rows, listed), captions),
            [f"{wrong:,} of {len(judged.labels):,} images of {split} are taken for another class."],
        )
    ]
    often = confusion_pairs(judged, limit=pairs)
    if often:
        note = (
            "At the left the surest mistakes; at the right, for comparison, images that are of the other "
            "class and were taken for it, the surest first."
        )
        shown = [_confusion_row(pair, judged, predictions, rows, names) for pair in often]
        parts.append(Part("The classes that it confuses most", shown, [note]))
    label = f"{opened.recipe.name}, seed {opened.seed}"
    alt = f"The {len(worst)} wrong predictions on {split} that {label} is surest of, with their classes"
    if often:
        alt += f"; and its {len(often)} most frequent confusions"
    return Picture(sheet(f"Errors of {label} on {split}", parts), alt + "."), listed


def label_errors_sheet(
    run: str | Path,
    *,
    split: str = "val",
    most: int = 24,
    by: RankBy = "margin",
    pack: Pack | None = None,
    audit: Audit | None = None,
    device: str = "auto",
) -> tuple[Picture, list[dict[str, Any]]]:
    """A sheet with the `most` likely label errors of a split, by the run's predictions, and the same as JSON
    values.

    With `audit`, the pack's, images that it found elsewhere with another label are marked. Raises TinlabError
    where the run cannot be measured on the split.
    """
    opened, rows, predictions, _ = _predicted(run, split, most, pack, device)
    names = short_names(opened.classes)
    suspects = label_errors(predictions.logits, predictions.labels, by=by)
    known: Mapping[int, list[str]] = {}
    if audit:
        before = len(rows.pack.split("train")) if rows.name == BOTH else 0
        known = conflicts(audit, rows.name, before)
    listed = [
        {
            "index": int(predictions.indices[s.index]),
            "name": rows.names[predictions.indices[s.index]],
            "label": names[s.label],
            "likely": names[s.likely],
            "self_confidence_percent": 100 * s.self_confidence,
            "likely_percent": 100 * s.likely_probability,
            "margin": s.margin,
            "conflicts": known.get(int(predictions.indices[s.index]), []),
        }
        for s in suspects
    ]
    notes = [
        f"Of {len(predictions.labels):,} images of {split}, {len(suspects):,} are suspect: the network takes "
        "them for another class at least as surely as it takes, on average, images that are labelled so. A "
        "suspect label may well be right, and the network wrong.",
        _trained_on(whether_seen(seen(opened, split, pack)), split),
    ]
    if audit:
        marked = sum(bool(entry["conflicts"]) for entry in listed)
        notes.append(
            f"The audit found {len(known):,} images of {split} elsewhere with another label; {marked:,} of "
            "them are among the suspects, marked where shown."
        )
    captions = [
        f"labelled {e['label']} ({percent(e['self_confidence_percent'] / 100)}), likely {e['likely']} "
        f"({percent(e['likely_percent'] / 100)})" + "".join(f"; {text}" for text in e["conflicts"])
        for e in listed[:most]
    ]
    label = f"{opened.recipe.name}, seed {opened.seed}"
    part = Part(
        "Suspect labels, likeliest errors first", gallery(_pictures(rows, listed[:most]), captions), notes
    )
    alt = (
        f"{len(captions)} images of {split} whose labels {label} finds suspect, each with its label and the "
        "class that it is taken for."
    )
    picture = Picture(sheet(f"Likely label errors in {split}, found by {label}", [part]), alt)
    return picture, listed[:most]


def _trained_on(shown: bool | None, split: str) -> str:
    if shown is False:
        return f"The run was not trained on images of {split}."
    if shown is None:
        return (
            f"It is not known whether the run was trained on images of {split}; of those that it was, it has "
            "learned the labels, the wrong ones too."
        )
    return (
        f"The run was trained on images of {split}: it has learned their labels, the wrong ones too, so that "
        "it misses most errors; it could not learn what it still suspects."
    )


def _predicted(
    run: str | Path, split: str, most: int, pack: Pack | None, device: str
) -> tuple[Run, Split, Predictions, Judged]:
    if most < 1:
        raise TinlabError(f"{most} images cannot be shown; give 1 or more")
    opened = open_run(run)
    rows = (pack or pack_of(opened)).split(split)
    if not rows.labelled:
        raise TinlabError(f"the labels of '{split}' were never published, so errors on it are not known")
    rows.verify_once()
    predictions = predictions_of(run, split=split, pack=pack, device=device)
    return opened, rows, predictions, judge(predictions.logits, predictions.labels)


def _confusion_row(
    pair: Confusion, judged: Judged, predictions: Predictions, rows: Split, names: Sequence[str]
) -> Row:
    def surest(chosen: np.ndarray, count: int) -> list[np.ndarray | None]:
        found = np.flatnonzero(chosen)
        found = found[np.argsort(-judged.confidence[found], kind="stable")][:count]
        pictures: list[np.ndarray | None] = [
            enlarge(np.array(rows.images[predictions.indices[row]])) for row in found
        ]
        return pictures + [None] * (count - len(found))

    taken = judged.predicted == pair.predicted
    mistaken = surest(taken & (judged.labels == pair.true), COLUMNS // 2)
    right = surest(taken & (judged.labels == pair.predicted), COLUMNS // 2)
    of = int((judged.labels == pair.true).sum())
    captions = [
        *(names[pair.true] if picture is not None else "" for picture in mistaken),
        *(names[pair.predicted] if picture is not None else "" for picture in right),
    ]
    words = [f"{names[pair.true]}, taken for {names[pair.predicted]}", f"{pair.images} of {of} images"]
    return Row(words, [*mistaken, *right], captions)


def _pictures(rows: Split, listed: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    return [enlarge(np.array(rows.images[entry["index"]])) for entry in listed]


def _word(classes: Sequence[tuple[str, str]], label: int) -> str:
    identifier, words = classes[label]
    return words.split(",")[0].strip() or identifier
