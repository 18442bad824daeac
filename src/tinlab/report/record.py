"""What a run's folder says, read once and checked, for the report."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinlab.data.pack import UNLABELLED, ClassInfo
from tinlab.errors import TinlabError
from tinlab.evaluation import logits
from tinlab.files import check_regular, read_json
from tinlab.training import checkpoint


@dataclass(frozen=True)
class Point:
    """One line of metrics.jsonl: an average over training batches, or one measuring of a split.

    `split` is "train" for the first kind; `stage` is the recipe's stage, where it has stages. `loss` may be
    NaN or infinite where training diverged; the other numbers are None where the line lacks them or they are
    not finite.
    """

    split: str
    step: int
    epoch: float
    loss: float
    top1_percent: float | None
    top5_percent: float | None
    learning_rate: float | None
    images_per_second: float | None
    train_seconds: float | None
    stage: str | None = None
    image_size: float | None = None
    """Pixels a side of the images."""


@dataclass(frozen=True)
class Predictions(logits.Predictions):
    """The saved logits of `split`."""

    split: str

    @property
    def labelled(self) -> bool:
        return bool((self.labels != UNLABELLED).all())


@dataclass(frozen=True)
class RunRecord:
    """A run's folder. `train` and `held_out` are in the order of steps; `result` is None in an unfinished
    run; `damaged_lines` counts the lines of metrics.jsonl that a kill cut short."""

    path: Path
    recipe: dict[str, Any]
    environment: dict[str, Any]
    train: tuple[Point, ...]
    held_out: tuple[Point, ...]
    result: dict[str, Any] | None
    classes: tuple[ClassInfo, ...]
    predictions: Predictions | None
    damaged_lines: int

    @property
    def pack(self) -> dict[str, Any]:
        """What environment.json says of the pack; empty where it says nothing."""
        found = self.environment.get("pack")
        return found if isinstance(found, dict) else {}

    @property
    def most_measured(self) -> str:
        """The held-out split that was measured most often, `val` where several were: a network that is not
        trained on `tune` is measured on that along the way, and on `val` once."""
        counts = Counter(point.split for point in self.held_out)
        return max(counts, key=lambda split: (counts[split], split == "val"), default="val")


def read_run(run: Path) -> RunRecord:
    """Read the folder `run`. Only recipe.json must be there; a run killed early lacks the rest.

    Raises TinlabError that names a file which is damaged.
    """
    if not (run / "recipe.json").is_file():
        raise TinlabError(f"{run} is not a run's folder (no recipe.json); give a folder that train has made")
    recipe = _read_object(run / "recipe.json")
    assert recipe is not None
    result = _read_object(run / "result.json")
    train, held_out, damaged = _read_points(run / "metrics.jsonl")
    predictions = _read_predictions(run, result)
    return RunRecord(
        path=run,
        recipe=recipe,
        environment=_read_object(run / "environment.json") or {},
        train=train,
        held_out=held_out,
        result=result,
        classes=_read_classes(run / "classes.json", predictions),
        predictions=predictions,
        damaged_lines=damaged,
    )


def number(value: Any) -> float | None:
    """`value` as a float where it is a finite number, otherwise None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**63:
        return None
    return float(value)


def at(value: object, *path: str) -> object:
    """`value[path[0]][path[1]]...`, or None where a part is missing."""
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None where there is no such file."""
    try:
        value = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TinlabError(
            f"{path} cannot be read ({error}); restore it, or train the recipe again"
        ) from error
    if not isinstance(value, dict):
        raise TinlabError(f"{path} does not hold a JSON object; restore it, or train the recipe again")
    return value


def _read_points(path: Path) -> tuple[tuple[Point, ...], tuple[Point, ...], int]:
    """Training points, held-out points, and how many lines could not be read."""
    try:
        check_regular(path)
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return (), (), 0
    except OSError as error:
        raise TinlabError(f"{path} cannot be read: {error.strerror}; make it readable") from error
    # A resumed run repeats the steps after its checkpoint; the last word on a step is the one that counts.
    points: dict[tuple[bool, str, int], Point] = {}
    damaged = 0
    for line in filter(str.strip, text.splitlines()):
        try:
            training, point = _point(json.loads(line))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            damaged += 1
        else:
            points[training, point.split, point.step] = point
    if damaged > 1 and not points:
        raise TinlabError(f"{path} has no line that can be read; restore it, or move it out of the run")
    ordered = sorted(points.items(), key=lambda item: item[1].step)
    train = tuple(point for (training, _, _), point in ordered if training)
    return train, tuple(point for (training, _, _), point in ordered if not training), damaged


def _point(line: dict[str, Any]) -> tuple[bool, Point]:
    training = {"train": True, "eval": False}[line["kind"]]
    epoch = float(line["epoch"])
    if not math.isfinite(epoch):
        raise ValueError("an epoch is not finite")
    point = Point(
        split="train" if training else str(line["split"]),
        step=int(line["step"]),
        epoch=epoch,
        loss=math.nan if line["loss"] is None else float(line["loss"]),
        top1_percent=number(line.get("top1_percent")),
        top5_percent=number(line.get("top5_percent")),
        learning_rate=number(line.get("learning_rate")),
        images_per_second=number(line.get("images_per_second")),
        train_seconds=number(line.get("train_seconds")),
        stage=str(line["stage"]) if line.get("stage") else None,
        image_size=number(line.get("image_size")),
    )
    return training, point


def _read_predictions(run: Path, result: dict[str, Any] | None) -> Predictions | None:
    """The predictions that the result is about; in an unfinished run those of its last checkpoint on val,
    else on any split of its own pack."""
    found = {path.stem: path for path in sorted((run / "predictions").glob("*.safetensors"))}
    if result:
        split = str(result.get("split"))
        if split not in found:
            return None
        return Predictions(split=split, **vars(logits.Predictions.load(found[split])))
    last = checkpoint.latest(run)
    step = None if last is None else str(checkpoint.step_of(last))
    for split in dict.fromkeys(("val", "tune", *found)):
        if split in found:
            saved = logits.Predictions.load(found[split])
            # Those of another pack have its digest in their file's name as well.
            if (saved.about.get("step"), saved.about.get("split")) == (step, split):
                return Predictions(split=split, **vars(saved))
    return None


def _read_classes(path: Path, predictions: Predictions | None) -> tuple[ClassInfo, ...]:
    """The classes in the order of the network's outputs; numbered ones where the run does not name them."""
    outputs = predictions.logits.shape[1] if predictions else None
    try:
        value = read_json(path)
        classes = tuple(ClassInfo(str(c["id"]), str(c["words"])) for c in value)
    except FileNotFoundError:
        return tuple(ClassInfo(str(i), f"class {i}") for i in range(outputs or 0))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TinlabError(
            f"{path} cannot be read ({error!r}); restore it, or train the recipe again"
        ) from error
    if outputs is not None and len(classes) != outputs:
        raise TinlabError(
            f"{path} names {len(classes)} classes, but the predictions have {outputs}; "
            "put back the files of one run"
        )
    return classes
