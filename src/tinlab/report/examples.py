"""The report's examples: which images stand for a class, a confusion or an error, and their thumbnails."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tinlab.data.pack import ClassInfo, Pack, Split
from tinlab.data.words import short_names
from tinlab.errors import TinlabError
from tinlab.evaluation.metrics import Judged, Metrics
from tinlab.explain import label_errors
from tinlab.report.record import Predictions, RunRecord

PER_CLASS = 5
PER_CONFUSION = 3
CONFUSIONS = 9
ERRORS = 24
SUSPECTS = 12
LARGEST_SIDE = 128


@dataclass(frozen=True)
class Example:
    """One image: its `source` (a data URI, "" without a pack), where it lies, what it is and was taken for,
    and how sure the network was."""

    source: str
    index: int
    true: str
    predicted: str
    right: bool
    confidence_percent: float


@dataclass(frozen=True)
class ClassRow:
    """One class of the split: its words, top-1 in percent, and the class it is most often taken for."""

    id: str
    words: str
    name: str
    images: int
    top1_percent: float
    taken_for: str
    taken_images: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class ConfusionCard:
    """`images` of the `of` images of class `true` were taken for `predicted`; some of them, and for
    comparison some images that truly are of class `predicted`."""

    true: str
    predicted: str
    images: int
    of: int
    mistaken: tuple[Example, ...]
    compared: tuple[Example, ...]


@dataclass(frozen=True)
class SuspectCard:
    """An image whose label is perhaps wrong: its label, and what it is more likely, with what the network
    gives to each."""

    source: str
    index: int
    label: str
    label_percent: float
    likely: str
    likely_percent: float


class Examples:
    """Chooses examples from one split's predictions."""

    def __init__(
        self, predictions: Predictions, judged: Judged, classes: Sequence[ClassInfo], split: Split | None
    ) -> None:
        self._predictions, self._judged, self._classes, self._split = predictions, judged, classes, split
        self.names = short_names(classes)

    def errors(self) -> list[Example]:
        """The wrong predictions that the network was surest of, surest first."""
        wrong = np.flatnonzero(~self._judged.correct)
        surest = wrong[np.argsort(-self._judged.confidence[wrong], kind="stable")]
        return [self._example(row) for row in surest[:ERRORS]]

    def confusions(self, metrics: Metrics) -> list[ConfusionCard]:
        """The most frequent pairs, with the surest mistakes of each."""
        cards = []
        for pair in metrics.confusions[:CONFUSIONS]:
            mistaken = self._rows(
                (self._judged.labels == pair.true) & (self._judged.predicted == pair.predicted)
            )
            compared = self._rows((self._judged.labels == pair.predicted) & self._judged.correct)
            cards.append(
                ConfusionCard(
                    true=self.names[pair.true],
                    predicted=self.names[pair.predicted],
                    images=pair.images,
                    of=metrics.per_class_images[pair.true],
                    mistaken=tuple(self._example(row) for row in mistaken[:PER_CONFUSION]),
                    compared=tuple(self._example(row) for row in compared[:PER_CONFUSION]),
                )
            )
        return cards

    def suspects(self) -> list[SuspectCard]:
        """All images whose labels are suspect, likeliest first, without pictures."""
        return [
            SuspectCard(
                source="",
                index=int(self._predictions.indices[suspect.index]),
                label=self.names[suspect.label],
                label_percent=100 * suspect.self_confidence,
                likely=self.names[suspect.likely],
                likely_percent=100 * suspect.likely_probability,
            )
            for suspect in label_errors(self._predictions.logits, self._predictions.labels)
        ]

    def with_pictures(self, cards: Sequence[SuspectCard]) -> list[SuspectCard]:
        """The first SUSPECTS of the cards, with their pictures where there is a pack."""
        return [replace(card, source=self._picture(card.index)) for card in cards[:SUSPECTS]]

    def class_rows(self, metrics: Metrics, *, pictured: int) -> list[ClassRow]:
        """Every class that the split has images of, best first; the `pictured` first and last with examples:
        the first images of the class, so that nobody picked them."""
        taken: dict[int, tuple[int, int]] = {}
        wrong = ~self._judged.correct
        pairs = Counter(
            zip(self._judged.labels[wrong].tolist(), self._judged.predicted[wrong].tolist(), strict=True)
        )
        for (true, predicted), images in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
            taken.setdefault(true, (predicted, images))
        present = [(value, i) for i, value in enumerate(metrics.per_class_percent) if value is not None]
        present.sort(key=lambda entry: (-entry[0], self.names[entry[1]]))
        rows = []
        for place, (value, i) in enumerate(present):
            near_an_end = place < pictured or place >= len(present) - pictured
            chosen = np.flatnonzero(self._judged.labels == i)[:PER_CLASS] if near_an_end else ()
            predicted, images = taken.get(i, (-1, 0))
            rows.append(
                ClassRow(
                    id=self._classes[i].id,
                    words=self._classes[i].words,
                    name=self.names[i],
                    images=metrics.per_class_images[i],
                    top1_percent=value,
                    taken_for=self.names[predicted] if images else "",
                    taken_images=images,
                    examples=tuple(self._example(row) for row in chosen),
                )
            )
        return rows

    def _rows(self, chosen: np.ndarray) -> np.ndarray:
        """The rows where `chosen`, surest first."""
        rows = np.flatnonzero(chosen)
        return rows[np.argsort(-self._judged.confidence[rows], kind="stable")]

    def _example(self, row: int) -> Example:
        index = int(self._predictions.indices[row])
        return Example(
            source=self._picture(index),
            index=index,
            true=self.names[self._judged.labels[row]],
            predicted=self.names[self._judged.predicted[row]],
            right=bool(self._judged.correct[row]),
            confidence_percent=100 * float(self._judged.confidence[row]),
        )

    def _picture(self, index: int) -> str:
        return thumbnail(self._split.images[index]) if self._split else ""


def matching_split(pack: Pack, record: RunRecord, predictions: Predictions) -> Split:
    """The split that was predicted. Raises TinlabError where `pack` is not the one the run was measured on:
    its images would then stand beside predictions for others."""
    digest = record.pack.get("digest")
    if digest and digest != pack.digest:
        raise TinlabError(
            f"{pack.path} is not the pack that {record.path} was trained on (its digest is {pack.digest}, "
            f"not {digest}); give that pack, or none"
        )
    split = pack.split(predictions.split)
    indices = predictions.indices
    fits = len(indices) == 0 or (indices.min() >= 0 and indices.max() < len(split))
    if not fits or (split.labels[indices] != predictions.labels).any():
        raise TinlabError(
            f"the predictions of {record.path} do not fit split {predictions.split} of {pack.path} "
            "(other images or labels); give the pack that they were made from, or none"
        )
    return split


def thumbnail(image: np.ndarray) -> str:
    """uint8 (H, W, 3) as a JPEG data URI of about 3 KB, at most LARGEST_SIDE pixels a side."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def data_uri(picture: np.ndarray) -> str:
    """uint8 (H, W, 3) or (H, W, 4) as a PNG data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
