"""The report's sentences: every one is a pure function of what was read and measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tinlab.evaluation.metrics import Metrics
from tinlab.report.record import Point, RunRecord, number

SPLIT_WORDS = {
    "val": "validation images",
    "tune": "images held out of the training set",
    "test": "test images",
}


@dataclass(frozen=True)
class Verdict:
    """What the page says first: `figure` ("58.12%", or "" where nothing was measured), the `sentence` that
    continues it, the `support` beneath, and `notices` that a reader must not miss."""

    figure: str
    sentence: str
    support: str
    notices: tuple[str, ...]


def verdict(record: RunRecord, metrics: Metrics | None) -> Verdict:
    """The number, its interval, how it stands to the paper's, and what it was trained on."""
    notices = _notices(record, metrics)
    result = record.result
    if result is None:
        last = _last_measured(record)
        planned = number(_at(record.recipe, "schedule", "epochs"))
        done = max((point.epoch for point in (*record.train, *record.held_out)), default=0.0)
        of = f" of {planned:g}" if planned is not None else ""
        state = (
            f"This run is not finished: {count(done, 'epoch')}{of} {'is' if done == 1 else 'are'} recorded."
        )
        if last is None or last.top1_percent is None:
            return Verdict(
                "", "Not finished, and nothing was measured yet.", f"{state} {_basis(record)}", notices
            )
        sentence = (
            f"of {split_words(last.split)} right at epoch {decimal(last.epoch)}, in a run that is not "
            "finished."
        )
        return Verdict(percent(last.top1_percent), sentence, f"{state} {_basis(record)}", notices)
    split = str(result.get("split", "val"))
    top1 = metrics.top1_percent if metrics else number(result.get("top1_percent"))
    if top1 is None:
        sentence = f"Finished, but the {split_words(split)} have no published labels to measure against."
        return Verdict("", sentence, _basis(record), notices)
    images = metrics.images if metrics else number(result.get("images"))
    several = f"{images:,.0f} {split_words(split)}" if images else f"the {split_words(split)}"
    sentence = f"of {several} right{_against_paper(record, split, top1, metrics)}."
    interval = ""
    if metrics:
        low, high = metrics.top1_interval_percent
        interval = (
            f"95% interval {low:.2f} to {high:.2f}%, over the choice of images; "
            "another training seed moves the number too. "
        )
    return Verdict(percent(top1), sentence, interval + _basis(record), notices)


def rendered(record: RunRecord) -> bool:
    """The images are tinlab's rendered stand-in set, not photographs."""
    return record.pack.get("source_kind") == "rendered"


def reported_percent(record: RunRecord, split: str) -> float | None:
    """The paper's top-1 on `split`, where the recipe has a paper that reports it."""
    return number(_at(record.recipe, "paper", "reported", f"{split}_top1_percent"))


def gap_sentence(record: RunRecord) -> str:
    """How far training accuracy runs ahead of held-out accuracy, and whether held-out loss has turned."""
    last = _last_measured(record)
    if last is None or last.top1_percent is None:
        return "Nothing was measured on held-out images, so overfitting cannot be judged."
    epoch = [point.top1_percent for point in record.train if last.epoch - 1 < point.epoch <= last.epoch]
    seen = [value for value in epoch if value is not None]
    words = split_words(last.split)
    if not seen:
        return f"At epoch {decimal(last.epoch)} it has {last.top1_percent:.1f}% of the {words} right."
    train = sum(seen) / len(seen)
    gap = train - last.top1_percent
    side = "ahead of" if gap >= 0 else "behind"
    text = (
        f"In the epoch up to {decimal(last.epoch)} the network had {train:.1f}% of the training images "
        f"right, as it saw them (augmented), and after it {last.top1_percent:.1f}% of the {words}: "
        f"training runs {abs(gap):.1f} points {side} held-out accuracy."
    )
    measured = [p for p in record.held_out if p.split == last.split and math.isfinite(p.loss)]
    if len(measured) < 3:
        return text
    best = min(measured, key=lambda point: point.loss)
    if measured[-1].loss > 1.02 * best.loss:
        return (
            f"{text} Held-out loss was lowest at epoch {decimal(best.epoch)} ({best.loss:.3f}) and has "
            f"risen to {measured[-1].loss:.3f} since: the network overfits."
        )
    return f"{text} Held-out loss has not risen from its lowest."


def calibration_sentence(metrics: Metrics) -> str:
    """Whether the network claims more or less than it holds."""
    off = metrics.mean_confidence_percent - metrics.top1_percent
    lead = (
        f"On average the network is {metrics.mean_confidence_percent:.1f}% sure and "
        f"{metrics.top1_percent:.1f}% right"
    )
    if abs(off) < 1:
        verdict = "its confidence can be taken at its word"
    else:
        verdict = f"it is {'over' if off > 0 else 'under'}confident by {abs(off):.1f} points"
    return f"{lead}: {verdict}. Expected calibration error {metrics.calibration_error_percent:.2f}%."


def split_words(split: str) -> str:
    return SPLIT_WORDS.get(split, f"images of {split}")


def percent(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}%"


def count(value: float, noun: str) -> str:
    """`3 epochs`, `1 epoch`, `2.5 epochs`."""
    return f"{decimal(value)} {noun}{'' if value == 1 else 's'}"


def decimal(value: float) -> str:
    """A number with up to two decimals: `3`, `2.5`, `4.99`."""
    return f"{round(value, 2):,g}"


def duration(seconds: float) -> str:
    """A length of time as a person would say it."""
    if seconds < 90:
        return count(round(seconds, 1 if seconds < 10 else 0), "second")
    if seconds < 90 * 60:
        return count(round(seconds / 60, 1 if seconds < 600 else 0), "minute")
    return count(round(seconds / 3600, 1), "hour")


def _against_paper(record: RunRecord, split: str, top1: float, metrics: Metrics | None) -> str:
    reported = reported_percent(record, split)
    if reported is None or rendered(record):
        return ""
    low, high = metrics.top1_interval_percent if metrics else (top1, top1)
    if low <= reported <= high:
        return f", no measurable distance from the paper’s {reported:g}%"
    side = "above" if top1 > reported else "below"
    return f", {abs(top1 - reported):.1f} points {side} the paper’s {reported:g}%"


def _basis(record: RunRecord) -> str:
    """What it was trained on, for how long, on what."""
    pack = record.pack
    result = record.result or {}
    last = max((*record.train, *record.held_out), key=lambda point: point.step, default=None)
    name = "rendered stand-in images" if rendered(record) else str(pack.get("name") or "an unnamed pack")
    images, classes = training_images(record), number(pack.get("classes"))
    what = [count(images, "image")] if images else []
    what += [f"{classes:.0f} classes"] if classes else []
    parts = [f"Trained on {name}" + (f" ({', '.join(what)})" if what else "")]
    epochs = number(result.get("epochs")) or (last.epoch if last else None)
    if epochs:
        parts.append(f"for {count(epochs, 'epoch')}")
    seconds = number(result.get("train_seconds")) or (last.train_seconds if last else None)
    if seconds:
        parts.append(f"in {duration(seconds)}")
    device = record.environment.get("gpu") or record.environment.get("cpu")
    return " ".join(parts) + (f" on {device}." if device else ".")


def training_images(record: RunRecord) -> int | None:
    """How many images were trained on, from the pack's counts and the recipe's share of them."""
    pack = record.pack
    parts = str(_at(record.recipe, "data", "train_split") or "train").split("+")
    counts = [number(_at(pack, "counts", part)) for part in parts]
    total = sum(value for value in counts if value is not None)
    limit, classes = number(_at(record.recipe, "data", "images_per_class")), number(pack.get("classes"))
    if limit and classes:
        total = min(total, limit * classes) if total else limit * classes
    if limit := number(_at(record.recipe, "data", "images")):
        total = min(total, limit) if total else limit
    return int(total) or None


def _notices(record: RunRecord, metrics: Metrics | None) -> tuple[str, ...]:
    found = []
    if rendered(record):
        text = (
            "These images are tinlab’s rendered stand-in set, drawn for work without a network. They are not "
            "Tiny ImageNet, and the number says nothing about it"
        )
        reported = _at(record.recipe, "paper", "reported")
        found.append(f"{text}; it cannot be held against the paper’s." if reported else f"{text}.")
    if any(not math.isfinite(point.loss) for point in (*record.train, *record.held_out)):
        first = next(p for p in (*record.train, *record.held_out) if not math.isfinite(p.loss))
        found.append(
            f"Training diverged: the loss is not finite at epoch {decimal(first.epoch)} (step {first.step})."
        )
    said = number((record.result or {}).get("top1_percent"))
    if metrics and said is not None and abs(said - metrics.top1_percent) > 0.005:
        found.append(
            f"result.json says {said:.2f}%, but the saved predictions measure {metrics.top1_percent:.2f}%, "
            "which this page shows. The files may come from different runs."
        )
    return tuple(found)


def _last_measured(record: RunRecord) -> Point | None:
    """The newest held-out point; of several splits at one step, the one that the result is about."""
    split = (record.result or {}).get("split", "val")
    return max(record.held_out, key=lambda point: (point.step, point.split == split), default=None)


def _at(value: object, *path: str) -> object:
    """`value[path[0]][path[1]]...`, or None where a part is missing."""
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value
