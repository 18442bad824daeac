"""Which classes a network knows, which it confuses, and which images show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinlab.data.pack import ClassInfo
from tinlab.evaluation.metrics import Judged, confusion_pairs

EXAMPLES = 12


@dataclass(frozen=True)
class ClassAccuracy:
    """One class of a split. `right` of its `images` were recognised.

    `taken_for` is the class that its other images are most often taken for, `taken_images` of them; None and
    0 where all are right. `right_examples` and `wrong_examples` are rows of the split, surest first.
    """

    label: int
    id: str
    words: str
    images: int
    right: int
    top1_percent: float
    taken_for: int | None
    taken_for_words: str | None
    taken_images: int
    right_examples: tuple[int, ...]
    wrong_examples: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class ConfusedPair:
    """`images` of the `of_images` images of class `true` were taken for `predicted`, and `images_back` of the
    `of_images_back` images of class `predicted` for `true`.

    `examples` are rows of the split, surest first.
    """

    true: int
    true_id: str
    true_words: str
    predicted: int
    predicted_id: str
    predicted_words: str
    images: int
    of_images: int
    images_back: int
    of_images_back: int
    examples: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def class_accuracies(
    judged: Judged, indices: np.ndarray, classes: Sequence[ClassInfo], *, examples: int = EXAMPLES
) -> tuple[ClassAccuracy, ...]:
    """Every class that has images, best first, equals in the order of their words.

    `indices` int64 (N,) are the images' rows in the split; at most `examples` are named of each kind.
    """
    taken: dict[int, tuple[int, int]] = {}
    for pair in confusion_pairs(judged):  # most frequent first
        taken.setdefault(pair.true, (pair.predicted, pair.images))
    surest = np.argsort(-judged.confidence, kind="stable")
    # Rows of one class lie together, surest first.
    order = surest[np.argsort(judged.labels[surest], kind="stable")]
    ends = np.searchsorted(judged.labels[order], np.arange(judged.classes + 1))
    found = []
    for label in range(judged.classes):
        rows = order[ends[label] : ends[label + 1]]
        if not len(rows):
            continue
        correct = judged.correct[rows]
        right = int(correct.sum())
        other, images = taken.get(label, (None, 0))
        found.append(
            ClassAccuracy(
                label=label,
                id=classes[label].id,
                words=classes[label].words,
                images=len(rows),
                right=right,
                top1_percent=100 * right / len(rows),
                taken_for=other,
                taken_for_words=None if other is None else classes[other].words,
                taken_images=images,
                right_examples=tuple(indices[rows[correct][:examples]].tolist()),
                wrong_examples=tuple(indices[rows[~correct][:examples]].tolist()),
            )
        )
    return tuple(sorted(found, key=lambda row: (-row.top1_percent, row.words)))


def confused_pairs(
    judged: Judged,
    indices: np.ndarray,
    classes: Sequence[ClassInfo],
    *,
    limit: int | None = 50,
    examples: int = EXAMPLES,
) -> tuple[ConfusedPair, ...]:
    """The `limit` most frequent confusions, with how often they happen the other way round."""
    pairs = confusion_pairs(judged)
    images = {(pair.true, pair.predicted): pair.images for pair in pairs}
    of = np.bincount(judged.labels, minlength=judged.classes)
    found = []
    for pair in pairs[:limit]:
        rows = np.flatnonzero((judged.labels == pair.true) & (judged.predicted == pair.predicted))
        rows = rows[np.argsort(-judged.confidence[rows], kind="stable")][:examples]
        true, predicted = classes[pair.true], classes[pair.predicted]
        found.append(
            ConfusedPair(
                true=pair.true,
                true_id=true.id,
                true_words=true.words,
                predicted=pair.predicted,
                predicted_id=predicted.id,
                predicted_words=predicted.words,
                images=pair.images,
                of_images=int(of[pair.true]),
                images_back=images.get((pair.predicted, pair.true), 0),
                of_images_back=int(of[pair.predicted]),
                examples=tuple(indices[rows].tolist()),
            )
        )
    return tuple(found)
