"""What the report shows of a network itself: what it looks at, its first filters, and what was pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from tinlab import models
from tinlab.classifier import Classifier, load
from tinlab.data.pack import Split
from tinlab.evaluation.metrics import Judged
from tinlab.explain import METHODS, Chosen, Explanation, explain, from_split
from tinlab.explain.compare import short_name
from tinlab.explain.drawing import mosaic
from tinlab.explain.filters import first_filters
from tinlab.models.fits import outline
from tinlab.models.structure import structure_of
from tinlab.report.examples import data_uri, thumbnail
from tinlab.report.record import RunRecord, number
from tinlab.training import checkpoint

EXPLAINED = ("saliency", "smoothgrad", "grad_cam")
"""The maps of the report: a rough one, a smoother one, and one of places."""
IMAGES = 6


@dataclass(frozen=True)
class Map:
    """A picture of a method's map, with its name and what it shows in words."""

    title: str
    source: str
    alt: str


@dataclass(frozen=True)
class Explained:
    """One image with maps of the class that the network took it for. `true` is "" where it is not known."""

    name: str
    why: str
    image: str
    true: str
    said: str
    right: bool
    confidence_percent: float
    maps: tuple[Map, ...]


@dataclass(frozen=True)
class FilterSheet:
    """The filters of convolution `layer`: the first `shown` of `of`, each `height` x `width`."""

    layer: str
    source: str
    width: int
    height: int
    shown: int
    of: int
    filter_height: int
    filter_width: int


@dataclass(frozen=True)
class PrunedLayer:
    """One layer: how much of `before` (weights or channels) is left, and what share is gone."""

    name: str
    before: int
    after: int
    gone_percent: float


@dataclass(frozen=True)
class Pruning:
    """What pruning left. `of` says what is counted: weights or channels. `layers` are those that lost any, in
    the network's order, of `all_layers`."""

    of: str
    before: int
    after: int
    gone_percent: float
    parameters_before: int
    parameters: int
    layers: tuple[PrunedLayer, ...]
    all_layers: int


def opened(record: RunRecord, device: str) -> Classifier:
    """The run's network. Raises TinlabError where there is no checkpoint to take it from."""
    return load(record.path, device)


def picked(split: Split, indices: np.ndarray | None, judged: Judged | None) -> list[tuple[Chosen, str]]:
    """IMAGES images to explain, with why each was picked: the surest right, the surest wrong and the least
    sure, each of another class; images drawn at random where no predictions are saved."""
    if judged is None or indices is None:
        return [(one, "drawn at random") for one in from_split(split, images=min(IMAGES, len(split)))]
    surest = np.argsort(-judged.confidence, kind="stable")
    kinds = (
        ("from its surest right answers", surest[judged.correct[surest]]),
        ("from its surest errors", surest[~judged.correct[surest]]),
        ("from where it is least sure", surest[::-1]),
    )
    rows: list[tuple[int, str]] = []
    seen: set[int] = set()
    for why, order in kinds:
        found = 0
        for row in order:
            if found == IMAGES // len(kinds):
                break
            if int(judged.labels[row]) not in seen and int(judged.predicted[row]) not in seen:
                seen |= {int(judged.labels[row]), int(judged.predicted[row])}
                rows.append((int(indices[row]), why))
                found += 1
    chosen = from_split(split, indices=[index for index, _ in rows]) if rows else []
    return [(one, why) for one, (_, why) in zip(chosen, rows, strict=True)]


def explained(classifier: Classifier, chosen: Sequence[tuple[Chosen, str]]) -> tuple[Explained, ...]:
    """What the network looks at in each image, for the class that it took it for."""
    if not chosen:
        return ()
    found = explain(classifier, [one for one, _ in chosen], methods=EXPLAINED, target="predicted")
    return tuple(_shown(made, one, why) for made, (one, why) in zip(found, chosen, strict=True))


def word(one: Chosen) -> str:
    """The first word of the image's class, "" where it is not known."""
    return short_name(one.true) if one.true else ""


def filter_sheet(classifier: Classifier) -> FilterSheet:
    """The first convolution's filters as one picture, clear between them, so that it fits a light page and a
    dark one. Raises TinlabError where that convolution does not look at colours."""
    found = first_filters(classifier.model, classifier.run.preprocessing.network_size)
    tall, wide = found.tiles.shape[1:3]
    scale = max(1, 42 // max(tall, wide))
    columns = 16 if len(found.tiles) > 32 else 8
    shown = mosaic(found.tiles, columns=columns, scale=scale, gap=4)
    there = mosaic(np.zeros_like(found.tiles), columns=columns, scale=scale, gap=4)[..., :1] == 0
    picture = np.concatenate([shown, 255 * there.astype(np.uint8)], axis=2)  # (h, w, 4)
    return FilterSheet(
        layer=found.layer,
        source=data_uri(picture),
        width=picture.shape[1],
        height=picture.shape[0],
        shown=len(found.tiles),
        of=found.of,
        filter_height=tall,
        filter_width=wide,
    )


def pruning(record: RunRecord, classifier: Classifier) -> Pruning | None:
    """What was taken out of the network, layer by layer; None where nothing was pruned."""
    last = checkpoint.latest(record.path)
    state = checkpoint.read_state(last) if last else None
    if state is not None and state.structure is not None:
        return _fewer_channels(classifier, state.stage)
    if number((record.result or {}).get("sparsity")):
        return _zero_weights(classifier.model)
    return None


def _fewer_channels(classifier: Classifier, stage: int) -> Pruning:
    run = classifier.run
    knobs = run.recipe.phase(stage).model
    whole = outline(lambda: models.build(knobs, len(run.classes), image_size=run.preprocessing.network_size))
    sizes, now = structure_of(whole), structure_of(classifier.model)
    counted = [
        (name, size["out_channels"], now[name]["out_channels"])
        for name, size in sizes.items()
        if "out_channels" in size and name in now
    ]
    return _pruning("channels", counted, _parameters(whole), _parameters(classifier.model))


def _zero_weights(model: nn.Module) -> Pruning:
    counted = [
        (name, layer.weight.numel(), int((layer.weight != 0).sum()))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    gone = sum(before - after for _, before, after in counted)
    return _pruning("weights", counted, _parameters(model), _parameters(model) - gone)


def _pruning(
    of: str, counted: Sequence[tuple[str, int, int]], parameters_before: int, parameters: int
) -> Pruning:
    layers = [
        PrunedLayer(name, before, after, 100 * (before - after) / before)
        for name, before, after in counted
        if after < before
    ]
    before, after = sum(row[1] for row in counted), sum(row[2] for row in counted)
    return Pruning(
        of=of,
        before=before,
        after=after,
        gone_percent=100 * (before - after) / before if before else 0.0,
        parameters_before=parameters_before,
        parameters=parameters,
        layers=tuple(layers),
        all_layers=len(counted),
    )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _shown(made: Explanation, one: Chosen, why: str) -> Explained:
    return Explained(
        name=one.name,
        why=why,
        image=thumbnail(made.image),
        true=word(one),
        said=made.guess.words,
        right=one.true is not None and one.true.id == made.guess.id,
        confidence_percent=100 * made.guess.probability,
        maps=tuple(
            Map(METHODS[name].title, data_uri(made.pictures[name]), made.alts[name])
            for name in EXPLAINED
            if name in made.pictures
        ),
    )
