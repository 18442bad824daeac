"""A run's accuracy on corrupted images, measured once and kept beside its predictions.

Which images are right at each strength is saved after every corruption, so that an interrupted measuring goes
on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tinlab.classifier import Classifier, load
from tinlab.data.batches import chosen_rows
from tinlab.data.pack import Pack, Split
from tinlab.errors import TinlabError
from tinlab.evaluating.saved import Measured, at_one_step, measured, predictions_of, same_step
from tinlab.evaluation.corruptions import CORRUPTIONS, GROUPS, STRENGTHS, corrupt, table_digest
from tinlab.evaluation.intervals import mean_interval
from tinlab.evaluation.metrics import judge
from tinlab.evaluation.predict import forward, logits_of
from tinlab.files import read_json, write_json

Progress = Callable[[int, int], None]
"""Told (images done, images in all), over all corruptions and strengths."""


@dataclass(frozen=True)
class CorruptionAccuracy:
    """Top-1 in percent at strengths 1 to 5 of one corruption, and their mean. `levels_are` says what the
    `levels` mean."""

    name: str
    group: str
    levels_are: str
    levels: tuple[tuple[float, ...], ...]
    top1_percent: tuple[float, ...]
    mean_top1_percent: float


@dataclass(frozen=True)
class Robustness:
    """Top-1 under common corruptions, on `images` of the `of_images` images of a split.

    `mean_top1_percent` is the mean over all corruptions and strengths; `drop_points` is how many percentage
    points it lies below `clean_top1_percent`, which is of the same images without corruption. The intervals
    are 95% bootstrap intervals over images. `group_top1_percent` has the mean of each group.

    The strengths are tinlab's own: the numbers do not compare with those of ImageNet-C or Tiny-ImageNet-C.
    """

    split: str
    images: int
    of_images: int
    clean_top1_percent: float
    mean_top1_percent: float
    mean_top1_interval_percent: tuple[float, float]
    drop_points: float
    drop_interval_points: tuple[float, float]
    group_top1_percent: dict[str, float]
    corruptions: tuple[CorruptionAccuracy, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def robustness(
    path: str | Path,
    *,
    split: str = "val",
    images: int | None = None,
    pack: Pack | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Robustness:
    """Measure the run in folder `path` on corrupted images of `split`, or read what was measured before.

    `images` limits it to so many of the split: the first of every class, then the second, and so on. All
    strengths of all corruptions are 75 passes over them. Raises TinlabError as `predictions_of` does.
    """
    return robustness_of(
        measured(path, split=split, pack=pack), images=images, device=device, progress=progress
    )


def robustness_of(
    wanted: Measured, *, images: int | None = None, device: str = "auto", progress: Progress | None = None
) -> Robustness:
    """`robustness` of a checkpoint. Raises TinlabError too where the run has gone on since."""
    if images is not None and images < 1:
        raise TinlabError(f"images is {images}; give 1 or more")
    run, split = wanted.run, wanted.split
    clean = predictions_of(run.path, split=split, pack=wanted.pack, device=device)
    same_step(run, wanted.step, at_one_step(run, clean))
    if (clean.labels < 0).any():
        raise TinlabError(f"the labels of '{split}' were never published, so nothing can be measured on it")
    limit = None if images is None or images >= len(clean.labels) else images
    place = _place(wanted, limit)
    kept = _read(place, wanted) or {}
    if not set(CORRUPTIONS) <= set(kept):
        found = wanted.opened()
        rows = _rows(found, limit)
        classifier = load(run.path, device)
        same_step(run, wanted.step, classifier.step)
        passes = len(CORRUPTIONS) * len(STRENGTHS)
        for number, name in enumerate(CORRUPTIONS):
            if name not in kept:
                kept[name] = [
                    _right(
                        classifier,
                        found,
                        rows,
                        name,
                        strength,
                        _part(progress, number * len(STRENGTHS) + strength - 1, passes),
                    )
                    for strength in STRENGTHS
                ]
                _write(place, wanted, rows, kept)
    result = _read_result(place, wanted, clean.logits, clean.labels)
    assert result is not None
    return result


def saved_robustness(path: str | Path, *, split: str = "val", pack: Pack | None = None) -> Robustness | None:
    """What `robustness` measured of the run's last checkpoint: on all images where that was done, otherwise
    on the largest number of them. None where nothing was measured to the end."""
    return saved_robustness_of(measured(path, split=split, pack=pack))


def saved_robustness_of(wanted: Measured) -> Robustness | None:
    """`saved_robustness` of a checkpoint. Raises TinlabError where the run has gone on since."""
    own = wanted.place("corruptions", ".json")
    found = []
    for place in sorted(own.parent.glob(f"{own.stem}*.json")):
        kept = _read(place, wanted)
        if kept is not None and set(CORRUPTIONS) <= set(kept):
            found.append((len(next(iter(kept.values()))[0]), place))
    if not found:
        return None
    clean = predictions_of(wanted.run.path, split=wanted.split, pack=wanted.pack)
    same_step(wanted.run, wanted.step, at_one_step(wanted.run, clean))
    return _read_result(max(found)[1], wanted, clean.logits, clean.labels)


def summarise(
    right: dict[str, np.ndarray], clean: np.ndarray, *, split: str = "", of_images: int | None = None
) -> Robustness:
    """The table of `right`, corruption -> bool (5, N), beside `clean`, bool (N,), the same images."""
    rows = [
        CorruptionAccuracy(
            name=name,
            group=known.group,
            levels_are=known.levels_are,
            levels=known.levels,
            top1_percent=tuple((100 * right[name].mean(axis=1)).tolist()),
            mean_top1_percent=100 * float(right[name].mean()),
        )
        for name, known in CORRUPTIONS.items()
    ]
    of_image = np.mean([right[row.name].mean(axis=0) for row in rows], axis=0)  # (N,) share of its versions
    low, high = mean_interval(100 * of_image)
    drop = 100 * (clean - of_image)
    return Robustness(
        split=split,
        images=len(clean),
        of_images=len(clean) if of_images is None else of_images,
        clean_top1_percent=100 * float(clean.mean()),
        mean_top1_percent=100 * float(of_image.mean()),
        mean_top1_interval_percent=(low, high),
        drop_points=float(drop.mean()),
        drop_interval_points=mean_interval(drop),
        group_top1_percent={
            group: float(np.mean([row.mean_top1_percent for row in rows if row.group == group]))
            for group in GROUPS
        },
        corruptions=tuple(rows),
    )


def _right(
    classifier: Classifier,
    split: Split,
    rows: np.ndarray,
    name: str,
    strength: int,
    progress: Progress | None,
) -> np.ndarray:
    """bool (N,): which images are still right."""
    run = classifier.run

    def classify(images: Tensor, samples: Tensor) -> Tensor:
        changed = corrupt(images, name, strength, samples)
        return forward(classifier.model, run.preprocessing, changed, run.recipe.compute)

    logits = logits_of(classify, split, classifier.device, rows=rows, progress=progress)
    return judge(logits, split.labels[rows]).correct


def _part(progress: Progress | None, done: int, passes: int) -> Progress | None:
    """Progress of one of `passes` equal passes, `done` of which are over."""
    if progress is None:
        return None
    return lambda images, total: progress(done * total + images, passes * total)


def _rows(split: Split, limit: int | None) -> np.ndarray:
    return np.arange(len(split)) if limit is None else chosen_rows(split, images=limit)


def _place(wanted: Measured, limit: int | None) -> Path:
    own = wanted.place("corruptions", ".json")
    return own if limit is None else own.with_name(f"{own.stem}-of-{limit}.json")


def _head(wanted: Measured) -> dict[str, Any]:
    return {**wanted.about, "strengths": table_digest()}


def _write(place: Path, wanted: Measured, rows: np.ndarray, right: dict[str, list[np.ndarray]]) -> None:
    """`right` has, for each corruption and strength, a 1 for every image that is right and a 0 for the rest,
    in the order of `indices`."""
    text = {
        name: ["".join("01"[int(value)] for value in strength) for strength in strengths]
        for name, strengths in right.items()
    }
    write_json(place, {"about": _head(wanted), "indices": rows.tolist(), "right": text})


def _read(place: Path, wanted: Measured) -> dict[str, list[np.ndarray]] | None:
    """Corruption -> five times bool (N,), or None where there is nothing of this checkpoint and pack."""
    kept = _read_file(place, wanted)
    return None if kept is None else kept[1]


def _read_file(place: Path, wanted: Measured) -> tuple[np.ndarray, dict[str, list[np.ndarray]]] | None:
    if not place.is_file():
        return None
    try:
        value = read_json(place)
        if value["about"] != _head(wanted):
            return None
        indices = np.array(value["indices"], np.int64)
        right = {
            str(name): [np.frombuffer(text.encode("ascii"), np.uint8) == ord("1") for text in strengths]
            for name, strengths in value["right"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TinlabError(f"{place} cannot be read ({error}); remove it and measure again") from error
    lengths = {len(row) for rows in right.values() for row in rows} | {len(indices)}
    if len(lengths) != 1 or any(len(rows) != len(STRENGTHS) for rows in right.values()):
        raise TinlabError(f"{place} is damaged (its rows differ in length); remove it and measure again")
    return indices, right


def _read_result(place: Path, wanted: Measured, logits: np.ndarray, labels: np.ndarray) -> Robustness | None:
    kept = _read_file(place, wanted)
    if kept is None:
        return None
    indices, right = kept
    if len(indices) and (indices.min() < 0 or indices.max() >= len(labels)):
        raise TinlabError(f"{place} is damaged (it names images that are not there); remove it")
    clean = judge(logits, labels).correct[indices]
    stacked = {name: np.stack(rows) for name, rows in right.items()}
    return summarise(stacked, clean, split=wanted.split, of_images=len(labels))
