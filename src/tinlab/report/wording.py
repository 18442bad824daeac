"""The report's sentences: every one is a pure function of what was read and measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tinlab.environment import sittings
from tinlab.evaluating import Comparison, Evaluation, Robustness
from tinlab.evaluation.calibration import Calibration, TemperatureScaling
from tinlab.evaluation.metrics import Metrics
from tinlab.evaluation.scores import Scores
from tinlab.report.against import against_paper, images_notices, rendered
from tinlab.report.examples import ClassRow, ConfusionCard
from tinlab.report.knobs import shown
from tinlab.report.network import Pruning
from tinlab.report.phrases import capital, count, decimal, duration, listed, percent, spaced, split_words
from tinlab.report.record import Point, RunRecord, at, number


@dataclass(frozen=True)
class Verdict:
    """What the page says first: `figure` ("58.12%", or "" where nothing was measured), the `sentence` that
    continues it, the `support` beneath, and `notices` that a reader must not miss."""

    figure: str
    sentence: str
    support: str
    notices: tuple[str, ...]


def verdict(record: RunRecord, metrics: Metrics | None) -> Verdict:
    """The number, its interval, how it stands to the paper's and to chance, and what it was trained on."""
    notices = _notices(record, metrics)
    result = record.result
    if result is None:
        last = _last_measured(record)
        planned = number(at(record.recipe, "schedule", "epochs"))
        done = max((point.epoch for point in (*record.train, *record.held_out)), default=0.0)
        of = f" of {planned:g}" if planned is not None else ""
        state = (
            f"This run is not finished: {count(done, 'epoch')}{of} {'is' if done == 1 else 'are'} recorded."
        )
        if last is None or last.top1_percent is None:
            return Verdict(
                "", "Not finished, and nothing was measured yet.", f"{state} {basis(record)}", notices
            )
        sentence = (
            f"of {split_words(last.split)} right at epoch {decimal(last.epoch)}, in a run that is not "
            "finished."
        )
        return Verdict(percent(last.top1_percent), sentence, f"{state} {basis(record)}", notices)
    split = str(result.get("split", "val"))
    top1 = metrics.top1_percent if metrics else number(result.get("top1_percent"))
    if top1 is None:
        sentence = f"Finished, but the {split_words(split)} have no published labels to measure against."
        return Verdict("", sentence, basis(record), notices)
    images = metrics.images if metrics else number(result.get("images"))
    several = f"{images:,.0f} {split_words(split)}" if images else f"the {split_words(split)}"
    between = interval = ""
    if metrics:
        low, high = metrics.top1_interval_percent
        between = f" ({low:.2f} to {high:.2f}%)"
        interval = (
            "In brackets stands the 95% interval over the choice of images; another training seed moves the "
            "number too. "
        )
    against = against_paper(record, split, top1, metrics)
    sentence = f"of {several} right{between}{against}{_against_chance(top1, metrics)}."
    return Verdict(percent(top1), sentence, interval + basis(record), notices)


def augments(record: RunRecord) -> bool:
    """Whether the recipe, or a stage of it, changes the images that it trains on."""
    stages = record.recipe.get("stages")
    changes = [at(stage, "changes") for stage in stages] if isinstance(stages, list) else []
    return any(
        bool(value)
        for fields in (record.recipe, *changes)
        if isinstance(fields, dict)
        for path, value in fields.items()
        if path.split(".")[0] in ("augment", "hard_classes")
    )


def gap_sentence(record: RunRecord) -> str:
    """How far training accuracy runs ahead of held-out accuracy, and whether held-out loss has turned."""
    last = _last_measured(record)
    if last is None or last.top1_percent is None:
        return "Nothing was measured on held-out images, so overfitting cannot be judged."
    steps = [0, *(point.step for point in record.train)]
    seen = [  # (accuracy, steps that it is the mean of)
        (point.top1_percent, max(1, point.step - before))
        for point, before in zip(record.train, steps, strict=False)
        if last.epoch - 1 < point.epoch <= last.epoch and point.top1_percent is not None
    ]
    words = split_words(last.split)
    if not seen:
        return f"At epoch {decimal(last.epoch)} it has {last.top1_percent:.1f}% of the {words} right."
    train = sum(value * count for value, count in seen) / sum(count for _, count in seen)
    gap = train - last.top1_percent
    side = "ahead of" if gap >= 0 else "behind"
    saw = "saw them (augmented)" if augments(record) else "saw them"
    text = (
        f"In the epoch up to {decimal(last.epoch)} the network had {train:.1f}% of the training images "
        f"right, as it {saw}, and after it {last.top1_percent:.1f}% of the {words}: "
        f"training runs {abs(gap):.1f} points {side} held-out accuracy."
    )
    # The last one may be of val, measured once, after tune was measured all along.
    watched = record.most_measured
    measured = [p for p in record.held_out if p.split == watched and math.isfinite(p.loss)]
    if measured:  # losses at other sizes and of other stages do not compare
        now = (measured[-1].image_size, measured[-1].stage)
        measured = [p for p in measured if (p.image_size, p.stage) == now]
    if len(measured) < 3:
        return text
    best = min(measured, key=lambda point: point.loss)
    if measured[-1].loss > 1.02 * best.loss:
        return (
            f"{text} Held-out loss was lowest at epoch {decimal(best.epoch)} ({best.loss:.3f}) and has "
            f"risen to {measured[-1].loss:.3f} since: the network overfits."
        )
    return f"{text} Held-out loss has not risen from its lowest."


def accuracy_sentence(split: str, plain: Scores, augmented: dict[str, Scores]) -> str:
    """What the numbers count, and what averaging over views adds."""
    text = (
        f"Of {plain.images:,} {split_words(split)}, the first guess is right for {plain.top1_percent:.2f}%, "
        f"and the true class is among the first five for {plain.top5_percent:.2f}%."
    )
    if not augmented:
        return text
    best = max(augmented.values(), key=lambda found: found.top1_percent)
    gain = best.top1_percent - plain.top1_percent
    if gain > 0:
        return f"{text} The mean over several views of each image is right {gain:.2f} points more often."
    return f"{text} The mean over several views of each image is right no more often."


def classes_sentence(rows: Sequence[ClassRow]) -> str:
    """How far apart the classes lie."""
    if len(rows) == 1:
        return "There are images of one class only."
    best, worst = rows[0], rows[-1]
    text = (
        f"From {best.name}, {best.top1_percent:.0f}% right, down to {worst.name}, {worst.top1_percent:.0f}%."
    )
    if len(rows) < 8:
        return text
    low, high = rows[-(len(rows) // 4)].top1_percent, rows[len(rows) // 4 - 1].top1_percent
    never = sum(row.top1_percent == 0 for row in rows)
    text += f" The middle half of the {len(rows)} classes lies between {low:.0f} and {high:.0f}%."
    if never:
        text += f" {count(never, 'class', 'classes')} {'is' if never == 1 else 'are'} never recognised."
    return text


def confusions_sentence(cards: Sequence[ConfusionCard], metrics: Metrics) -> str:
    """The most frequent confusion, and whether it is one of look."""
    if not cards:
        return "Nothing was confused: every image is right."
    first = cards[0]
    wrong = round(metrics.images * (1 - metrics.top1_percent / 100))
    shown = sum(card.images for card in cards)
    return (
        f"Most often {first.true} is taken for {first.predicted}: {first.images} of {first.of} images. The "
        f"{len(cards)} most frequent pairs make up {shown:,} of {wrong:,} errors. Look whether the two look "
        "alike, or only stand before the same background."
        if len(cards) > 1
        else f"{first.true} is taken for {first.predicted} in {first.images} of {first.of} images; there is "
        "no other confusion."
    )


def calibration_sentence(found: Calibration, scaling: TemperatureScaling | None = None) -> str:
    """Whether the network claims more or less than it holds."""
    off = found.mean_confidence_percent - found.top1_percent
    lead = (
        f"On average the network is {found.mean_confidence_percent:.1f}% sure and "
        f"{found.top1_percent:.1f}% right"
    )
    if abs(off) < 1:
        verdict = "on the whole it claims what it holds"
    else:
        verdict = f"it is {'over' if off > 0 else 'under'}confident by {abs(off):.1f} points"
    text = f"{lead}: {verdict}. Expected calibration error (ECE) {found.error_percent:.2f}%"
    if scaling is None:
        return f"{text}."
    return (
        f"{text}; with logits divided by {scaling.temperature:.3f}, the temperature fitted on "
        f"{scaling.fitted_images:,} images of {scaling.fitted_on}, it is {scaling.after.error_percent:.2f}%."
    )


def robustness_sentence(found: Robustness) -> str:
    """How much corrupted images cost, and which kind costs most."""
    worst = min(found.corruptions, key=lambda row: row.mean_top1_percent)
    best = max(found.corruptions, key=lambda row: row.mean_top1_percent)
    low, high = found.drop_interval_points
    return (
        f"On corrupted images it is {found.mean_top1_percent:.1f}% right on average, "
        f"{found.drop_points:.1f} points ({low:.1f} to {high:.1f}) less than on the same {found.images:,} "
        f"images as they are. {capital(spaced(worst.name))} costs most, {spaced(best.name)} least."
    )


def errors_sentence(metrics: Metrics, shown: int, sure: int) -> str:
    """How many errors there are, and how many of them the network was sure of."""
    wrong = round(metrics.images * (1 - metrics.top1_percent / 100))
    if not wrong:
        return "There are none: every image is right."
    of = f"{wrong:,} of {metrics.images:,} images are taken for another class"
    lead = (
        f"{of}, {sure:,} of them with a confidence above 90%."
        if sure
        else f"{of}, none of them with a confidence above 90%."
    )
    return f"{lead} These {shown} it was surest of. Look for hard images, and for labels that one may doubt."


def labels_sentence(images: int, suspects: int, above: int, shown: int, split: str, seen: bool | None) -> str:
    """How many labels are suspect, `above` of them among the `shown` errors, and what that supposes. `seen`:
    whether the network was trained on them, None where that is not known."""
    if not suspects:
        return f"No label of the {images:,} images is suspect by these predictions."
    text = (
        f"Of {images:,} labels, {suspects:,} are suspect: the network takes the image for another class at "
        "least as surely as it takes, on average, images that are labelled so. The label may well be right, "
        "and the network wrong; judge by eye."
    )
    if suspects > images / 10:
        text += " So many say more of the network than of the labels."
    if above:
        stand = (
            f"The {above} errors above are" if above == shown else f"{above} of the errors above, marked, are"
        )
        text += f" {stand} among them; these are the next."
    if seen is None:
        text += f" It may have been trained on images of {split}, and have learned the labels of those."
    elif seen:
        text += (
            f" It was trained on images of {split} and has learned their labels, so it misses most errors."
        )
    return text


def explained_sentence(right: int, images: int) -> str:
    """What the maps show, and how they are to be read."""
    return (
        f"{images} images, {right} of them right. The maps show what the score of the class that the network "
        "named rests on: look whether it is the object, or its background."
    )


def filters_sentence(shown: int, of: int, height: int, width: int, layer: str) -> str:
    """What the first convolution's filters are, and what to look for."""
    which = f"All {of}" if shown == of else f"The first {shown} of {of}"
    return (
        f"{which} filters of {layer}, {height}x{width} pixels each. Stripes and patches of colour are signs "
        "of learning; filters that look like noise have learned little, or see too few pixels to show more."
    )


def sizes_sentence(record: RunRecord) -> str:
    """At which sizes the held-out curve was measured; empty where it was one."""
    sizes = dict.fromkeys(point.image_size for point in record.held_out if point.image_size is not None)
    if len(sizes) < 2:
        return ""
    return (
        "The images grew, and the held-out ones with them: measured at "
        f"{listed([f'{size:g}' for size in sizes], len(sizes))} pixels."
    )


def pruning_sentence(found: Pruning) -> str:
    """How much was taken out."""
    less = 100 * (found.parameters_before - found.parameters) / found.parameters_before
    what = "set to zero" if found.of == "weights" else "taken out"
    where = "convolutions and fully connected layers" if found.of == "weights" else "convolutions"
    return (
        f"{found.gone_percent:.1f}% of the {found.of} of {where} were {what}: "
        f"{found.parameters:,} of {found.parameters_before:,} parameters are left ({less:.1f}% less)."
    )


def comparison_verdict(found: Comparison) -> tuple[str, str]:
    """(figure, sentence): which run is right most often, and whether that is more than chance."""
    order = sorted(range(len(found.members)), key=lambda n: -found.members[n].scores.top1_percent)
    best, second = order[0], order[1]
    member = found.members[best]
    _, b, pair = next(row for row in found.pairs if {row[0], row[1]} == {best, second})
    sign = 1 if b == best else -1
    ends = sorted(sign * end for end in pair.difference_interval_points)
    lead = sign * pair.difference_points
    figure = percent(member.scores.top1_percent)
    of = f"of {found.images:,} {split_words(found.split)} right with {member.letter}, {member.recipe}"
    other = found.members[second]
    if ends[0] > 0:
        return figure, (
            f"{of}: {lead:.2f} points ({ends[0]:.2f} to {ends[1]:.2f}) above {other.letter}, {other.recipe}."
        )
    if lead == 0:
        return figure, f"{of}, and as many with {other.letter}, {other.recipe}."
    return figure, (
        f"{of}; its lead of {lead:.2f} points over {other.letter}, {other.recipe}, may be the choice of "
        f"images ({ends[0]:+.2f} to {ends[1]:+.2f})."
    )


def comparison_sentence(found: Comparison) -> str:
    """Whether the runs err alike."""
    pairs = [row for row in found.pairs if row[2].error_correlation_images is not None]
    if not pairs:
        return "The runs’ errors cannot be compared: one of them is right, or wrong, everywhere."
    a, b, alike = max(pairs, key=lambda row: row[2].error_correlation_images or 0.0)
    either = 100 - alike.both_wrong_percent
    both = f"{found.members[a].letter} and {found.members[b].letter}"
    lead = f"{both} err most alike: they are" if len(found.members) > 2 else f"{both} are"
    return (
        f"{lead} wrong together on "
        f"{alike.both_wrong_percent:.1f}% of the images and at least one of them is right on {either:.1f}% "
        f"(correlation of errors {alike.error_correlation_images:.2f}). Where errors correlate little, an "
        "ensemble of the two has something to gain."
    )


def notes_of(found: Evaluation | None) -> tuple[str, ...]:
    """What a reader of the numbers must know, as sentences."""
    return tuple(f"{capital(note)}." for note in found.notes) if found else ()


def _against_chance(top1: float, metrics: Metrics | None) -> str:
    """Beside naming one class for all images, the most frequent one."""
    if metrics is None or metrics.classes < 2:
        return ""
    chance = 100 * max(metrics.per_class_images) / metrics.images
    shown = f"{chance:.3g}%"
    if metrics.top1_interval_percent[0] <= chance:
        side = "worse" if metrics.top1_interval_percent[1] < chance else "no better"
        return f"; that is {side} than guessing ({shown})"
    return f"; guessing would get {shown}"


def basis(record: RunRecord) -> str:
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
    devices = [one.get("gpu") or one.get("cpu") for one in sittings(record.environment)]
    on = ", then ".join(dict.fromkeys(str(device) for device in devices if device))
    return " ".join(parts) + (f" on {on}." if on else ".")


def resumptions(record: RunRecord) -> tuple[str, ...]:
    """When the run was resumed, and what was then another than before."""
    found = []
    for before, now in pairwise(sittings(record.environment)):
        passing = {"recorded_at", "command", "pack", "resumed"}
        other = [
            f"{name.replace('_', ' ')} {shown(value)}"
            for name, value in now.items()
            if name not in passing and value != before.get(name)
        ]
        found.append(f"{shown(now.get('recorded_at'))}; {', '.join(other) or 'all else as before'}")
    return tuple(found)


def training_images(record: RunRecord) -> int | None:
    """How many images were trained on, as the result counted them, or else from the pack's counts and the
    recipe's share of them; None where that does not say."""
    operations = at(record.recipe, "augment")
    kinds = [at(one, "kind") for one in operations] if isinstance(operations, list) else []
    counted = number((record.result or {}).get("train_images"))
    if counted and "fixed_copies" not in kinds:  # which it has among them
        return int(counted)
    pack = record.pack
    parts = str(at(record.recipe, "data", "train_split") or "train").split("+")
    counts = [number(at(pack, "counts", part)) for part in parts]
    total = sum(value for value in counts if value is not None)
    if at(record.recipe, "data", "images_per_class"):
        return None  # some classes may have fewer
    if limit := number(at(record.recipe, "data", "images")):
        total = min(total, limit) if total else limit
    return int(total) or None


def _notices(record: RunRecord, metrics: Metrics | None) -> tuple[str, ...]:
    found = images_notices(record)
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
