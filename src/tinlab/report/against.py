"""How a run stands to the numbers of the paper that its recipe is from."""

from __future__ import annotations

from tinlab.evaluation.metrics import Metrics
from tinlab.report.knobs import with_edits
from tinlab.report.phrases import count, listed
from tinlab.report.record import RunRecord, at, number
from tinlab.results import images_of, measured_on_tiny_imagenet, of_tiny_imagenet


def rendered(record: RunRecord) -> bool:
    """The images are tinlab's rendered stand-in set, not photographs."""
    return record.pack.get("source_kind") == "rendered"


def on_papers_images(record: RunRecord) -> bool:
    """The images are those that the papers report on: all of Tiny ImageNet, at its own size."""
    images = _images(record)
    return images is not None and measured_on_tiny_imagenet(images) and not rendered(record)


def reported_percent(record: RunRecord, split: str) -> float | None:
    """The paper's top-1 on `split`, where the recipe has a paper that reports it."""
    return number(at(record.recipe, "paper", "reported", f"{split}_top1_percent"))


def against_paper(record: RunRecord, split: str, top1: float, metrics: Metrics | None) -> str:
    """How far `top1`, in percent on `split`, is from the paper's, as the end of a clause; empty where the two
    cannot be held against each other."""
    reported = reported_percent(record, split)
    if reported is None or not on_papers_images(record):
        return ""
    low, high = metrics.top1_interval_percent if metrics else (top1, top1)
    if low <= reported <= high:
        return f", no measurable distance from the paper’s {reported:g}%"
    side = "above" if top1 > reported else "below"
    return f", {abs(top1 - reported):.1f} points {side} the paper’s {reported:g}%"


def paper_sentence(record: RunRecord, metrics: Metrics | None) -> str:
    """How this run stands to the paper's number, and whether it is the paper's experiment."""
    result = record.result or {}
    split = record.predictions.split if record.predictions else str(result.get("split", "val"))
    reported = reported_percent(record, split)
    if rendered(record):
        return (
            "The paper’s numbers are for Tiny ImageNet, and this run is on rendered stand-in images: the "
            "columns say nothing about each other."
        )
    if not on_papers_images(record):
        other = "is on other images" if record.pack else "does not say what its images are"
        return (
            "The paper’s numbers are for all of Tiny ImageNet at 64 pixels, and this run "
            f"{other}: the columns say nothing about each other."
        )
    ours = metrics.top1_percent if metrics else number(result.get("top1_percent"))
    if reported is None or ours is None:
        return "The paper reports what this run has not measured; each column stands for itself."
    side = "above" if ours > reported else "below"
    away = f"{abs(ours - reported):.1f} points {side} the paper’s {reported:g}%"
    if metrics and metrics.top1_interval_percent[0] <= reported <= metrics.top1_interval_percent[1]:
        text = f"The paper’s {reported:g}% lies within this run’s interval: the two cannot be told apart."
    elif metrics:
        text = (
            f"This run is {away}, which lies outside its interval: the choice of images does not explain it."
        )
    else:
        text = f"This run is {away}."
    images = _images(record)
    if images is not None and not of_tiny_imagenet(images):
        seed = f", seed {images['pack_seed']}" if images["pack_seed"] else ""
        text += (
            " Its pack holds other training images back than a pack does by default "
            f"(tune_fraction {images['tune_fraction']}{seed})."
        )
    changed = changed_fields(record)
    if changed:
        text += (
            f" {count(len(changed), 'field')} {'is' if len(changed) == 1 else 'are'} not as in the paper’s "
            f"recipe ({listed(changed, 4)}), so this is not quite the paper’s experiment."
        )
    return text


def changed_fields(record: RunRecord) -> list[str]:
    """The fields of the recipe that its provenance calls changed, or that were edited: see `with_edits`."""
    sources = with_edits(record.recipe).get("provenance")
    found = sources.items() if isinstance(sources, dict) else ()
    return [
        str(path) for path, source in found if isinstance(source, dict) and source.get("kind") == "changed"
    ]


def images_notices(record: RunRecord) -> list[str]:
    """What a reader must know of the images: that they are not photographs, or not the paper's."""
    reported = at(record.recipe, "paper", "reported")
    if rendered(record):
        text = (
            "These images are tinlab’s rendered stand-in set, drawn for work without a network. They are not "
            "Tiny ImageNet, and the number says nothing about it"
        )
        return [f"{text}; it cannot be held against the paper’s." if reported else f"{text}."]
    if record.pack and reported and not on_papers_images(record):
        return [
            "These images are not those of the paper, all of Tiny ImageNet at 64 pixels, so the number "
            "cannot be held against the paper’s."
        ]
    return []


def _images(record: RunRecord) -> dict[str, str] | None:
    """What images the run's pack has; None where the run does not say."""
    try:
        return images_of(record.pack)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
