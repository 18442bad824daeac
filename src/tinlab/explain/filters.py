"""What a network's filters are: their weights, the images that excite them most, and images made to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tinlab.augment.filters import blur
from tinlab.classifier import Classifier
from tinlab.data.pack import UNLABELLED, Split
from tinlab.data.words import short_names
from tinlab.errors import TinlabError
from tinlab.explain.compare import inputs_of, run_labels
from tinlab.explain.drawing import Part, Picture, Row, enlarge, gallery, mosaic, sheet
from tinlab.explain.layers import FeatureMap, anatomy, at_rest, device_of, feature_map

MOST_FILTERS = 96
"""Filters shown of a layer."""
ROWS_AT_ONCE = 100
"""Images a pass through the split."""
STEPS = 128
"""Of gradient ascent."""


@dataclass(frozen=True)
class Filters:
    """`tiles` uint8 (N, h, w, 3), grey where a weight is zero, of the first N of `of` filters of convolution
    `layer`."""

    layer: str
    tiles: np.ndarray
    of: int


def first_filters(model: nn.Module, side: int, *, most: int = MOST_FILTERS) -> Filters:
    """The first convolution's filters in colour, each with a scale of its own.

    `side` is that of the images. Raises TinlabError where the first convolution does not look at red, green
    and blue.
    """
    layer, weights = _convolution(model, anatomy(model, side).convolutions, lambda c: True)
    if weights.shape[1] != 3:
        raise TinlabError(
            f"{layer}, the first convolution, looks at {weights.shape[1]} channels, not at colours"
        )
    return Filters(layer, _levels(weights[:most]).transpose(0, 2, 3, 1), len(weights))


def last_filters(model: nn.Module, side: int, *, most: int = MOST_FILTERS) -> Filters:
    """A slice of each filter of the last convolution that is larger than a pixel: of the input channel for
    which its weights are largest, by the sum of their squares. Each has a scale of its own.

    Raises TinlabError where there is no such convolution.
    """
    layer, weights = _convolution(
        model, anatomy(model, side).convolutions[::-1], lambda c: max(c.kernel_size) > 1
    )
    strongest = np.square(weights).sum((2, 3)).argmax(1)  # (N,)
    slices = weights[np.arange(len(weights)), strongest][:most]  # (N, h, w)
    return Filters(layer, np.repeat(_levels(slices)[..., None], 3, axis=3), len(weights))


@dataclass(frozen=True)
class Excited:
    """The images that excite a filter most: `rows` of the split and their `values`, most excited first."""

    filter: int
    rows: tuple[int, ...]
    values: tuple[float, ...]


def exciting_images(
    classifier: Classifier,
    split: Split,
    filters: Sequence[int],
    *,
    layer: str | None = None,
    by: Literal["max", "mean"] = "max",
    top: int = 8,
    images: int | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> list[Excited]:
    """For each of `filters`, channels of a layer's feature map, the `top` images of the split that excite it
    most, at its strongest place or on average.

    `layer` is by default the last feature map. One pass over all images, or over `images` of them that lie
    evenly in the split, which may be sorted by class; nothing but the best is kept. Raises TinlabError for a
    channel that the layer does not have.
    """
    if top < 1 or (images is not None and images < 1):
        raise TinlabError(f"top is {top} and images {images}; give 1 or more of each")
    if by not in ("max", "mean"):
        raise TinlabError(f"by is '{by}'; give max or mean")
    side = classifier.run.preprocessing.network_size
    place = feature_map(classifier.model, side, layer)
    _check_channels(filters, place)
    wanted = torch.tensor(list(filters))
    best = torch.full((0, len(wanted)), -torch.inf)
    rows = torch.empty(0, len(wanted), dtype=torch.int64)
    count = min(len(split), images or len(split))
    looked_at = np.linspace(0, len(split) - 1, count).round().astype(np.int64)
    with at_rest(classifier.model) as eager, torch.no_grad(), _watching(eager, place.layer) as kept:
        for start in range(0, count, ROWS_AT_ONCE):
            chosen = looked_at[start : start + ROWS_AT_ONCE]
            _, x = inputs_of(classifier, list(np.array(split.images[chosen])))
            eager(x.to(device_of(eager)))
            maps = place.channels_first(kept.pop()).float().cpu()[:, wanted]  # (B, F, h, w)
            values = maps.amax((2, 3)) if by == "max" else maps.mean((2, 3))  # (B, F)
            here = torch.from_numpy(chosen)[:, None].expand(-1, len(wanted))
            best, rows = torch.cat([best, values]), torch.cat([rows, here])
            order = best.argsort(dim=0, descending=True, stable=True)[:top]
            best, rows = best.gather(0, order), rows.gather(0, order)
            progress(start + len(chosen), count)
    return [
        Excited(int(filter), tuple(rows[:, n].tolist()), tuple(best[:, n].tolist()))
        for n, filter in enumerate(filters)
    ]


def exciting_input(
    model: nn.Module,
    units: Sequence[int],
    *,
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
    layer: str | None = None,
    steps: int | None = None,
    step_size: float = 0.12,
    jitter: int = 4,
    decay: float = 0.004,
    blur_sigma: float = 0.5,
    blur_every: int = 4,
    seed: int = 0,
) -> np.ndarray:
    """An image made to excite each of `units`, uint8 (U, side, side, 3): classes, by their score before
    softmax, or with `layer` channels of its feature map, by their mean.

    `steps` steps (STEPS) up the gradient from noise around the mean image. Each moves the image by up to
    `jitter` pixels first, and steps by `step_size` times the gradient over its standard deviation; then it
    pulls the image towards the mean by `decay`, blurs it every `blur_every` steps with `blur_sigma` pixels,
    and keeps it within the values that images have. Inputs are scaled to `mean` and `std`, so these sizes are
    in standard deviations. All units start from the same noise, of `seed`: no image depends on the others.
    Erhan et al., "Visualizing Higher-Layer Features of a Deep Network", 2009; decay and blur as in Yosinski
    et al., "Understanding Neural Networks Through Deep Visualization", 2015.

    Raises TinlabError for numbers out of range.
    """
    steps = STEPS if steps is None else steps
    if steps < 1 or blur_every < 1 or jitter < 0:
        raise TinlabError(
            f"steps is {steps}, blur_every {blur_every} and jitter {jitter}; give 1, 1 and 0 or more"
        )
    dice = torch.Generator().manual_seed(seed)
    noise = 0.2 * torch.randn(1, 3, side, side, generator=dice)
    moves = torch.randint(-jitter, jitter + 1, (steps, 2), generator=dice).tolist()
    with at_rest(model) as eager:
        device = device_of(eager)
        middle, spread = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))
        lowest, highest = -middle / spread, (1 - middle) / spread
        excite = _excitement(eager, units, side, layer)
        x = noise.to(device).repeat(len(units), 1, 1, 1)  # (U, 3, side, side)
        for step, (down, right) in enumerate(moves, start=1):
            moved = x.roll((down, right), (2, 3)).requires_grad_()
            (slope,) = torch.autograd.grad(excite(moved).sum(), moved)
            slope = slope.roll((-down, -right), (2, 3))
            x = x + step_size * slope / (slope.std((1, 2, 3), keepdim=True) + 1e-12)
            x = x * (1 - decay)
            if blur_sigma and step % blur_every == 0:
                x = blur(x, torch.full((len(x),), blur_sigma, device=device), blur_sigma)
            x = x.clamp(lowest, highest)
        levels = 255 * (x * spread + middle)
    return levels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def filters_sheet(
    classifier: Classifier,
    split: Split | None,
    *,
    channels: int = 6,
    classes: int = 8,
    top: int = 8,
    images: int | None = None,
    by: Literal["max", "mean"] = "max",
    layer: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Picture:
    """A sheet with the first and the last convolution's filters, images made to excite `classes` classes,
    and, with a `split`, the images that excite `channels` channels of the last feature map (or `layer`) most.

    Channels and classes are drawn with `seed`. What a network does not have is said in its place.
    """
    for name, value in (("channels", channels), ("classes", classes)):
        if value < 1:
            raise TinlabError(f"{name} is {value}; give 1 or more")
    model, shown = classifier.model, classifier.run.preprocessing
    dice = np.random.default_rng(seed)
    units = sorted(dice.permutation(len(classifier.classes))[:classes].tolist())
    slices = "of each the slice for the input channel on which it weighs most"
    parts = [
        _filters_part("First convolution", first_filters, model, shown.network_size),
        _filters_part("Last convolution", last_filters, model, shown.network_size, slices),
        _made_part(classifier, units, seed),
    ]
    if split is not None:
        split.verify_once()
        place = feature_map(model, shown.network_size, layer)
        drawn = sorted(dice.permutation(place.channels)[:channels].tolist())
        found = exciting_images(
            classifier, split, drawn, layer=layer, by=by, top=top, images=images, progress=progress
        )
        rows = [
            Row(
                [f"channel {excited.filter}"],
                [enlarge(np.array(split.images[row])) for row in excited.rows],
                [_class_of(split, row) for row in excited.rows],
            )
            for excited in found
        ]
        count = min(len(split), images or len(split))
        among = f"{count:,} images" if count == len(split) else f"{count:,} of {len(split):,} images"
        what = "highest value" if by == "max" else "mean"
        note = (
            f"Of {among} of {split.name}, those in which the channel's {what} is largest, largest first. "
            f"The channels are drawn at random from {place.channels}."
        )
        parts.append(Part(f"Images that excite channels of {place.layer} most", rows, [note]))
    (label,) = run_labels([classifier])
    alt = "; ".join(part.heading for part in parts)
    return Picture(sheet(f"Filters of {label}", parts), f"Filters of {label}: {alt}.")


def _made_part(classifier: Classifier, units: Sequence[int], seed: int) -> Part:
    shown, names = classifier.run.preprocessing, short_names(classifier.classes)
    made = exciting_input(
        classifier.model, units, side=shown.network_size, mean=shown.mean, std=shown.std, seed=seed
    )
    rows = gallery([enlarge(picture, smooth=True) for picture in made], [names[unit] for unit in units])
    note = f"{STEPS} steps up the gradient from noise, with jitter, decay and blur: no photographs."
    return Part("Images made to raise a class's score", rows, [note])


def _filters_part(
    heading: str, look: Callable[..., Filters], model: nn.Module, side: int, more: str = ""
) -> Part:
    try:
        found = look(model, side)
    except TinlabError as error:
        return Part(heading, notes=[f"{str(error)[:1].upper()}{str(error)[1:]}."])
    tall, wide = found.tiles.shape[1:3]
    columns = 16 if len(found.tiles) > 32 else 8
    scale = max(1, min(12, 40 // max(tall, wide)))
    shown = len(found.tiles)
    which = f"all {shown} filters" if shown == found.of else f"the first {shown} of {found.of} filters"
    what = f"{which} of {tall}x{wide}" + (f", {more}" if more else "")
    note = f"{found.layer}: {what}. Each has a scale of its own; grey is zero."
    return Part(heading, [Row((), [mosaic(found.tiles, columns=columns, scale=scale)])], [note])


def _class_of(split: Split, row: int) -> str:
    label = int(split.labels[row])
    if label == UNLABELLED:
        return ""
    info = split.pack.info.classes[label]
    return info.words.split(",")[0].strip() or info.id


def _convolution(
    model: nn.Module, names: Sequence[str], fits: Callable[[nn.Conv2d], bool]
) -> tuple[str, np.ndarray]:
    """The first of the convolutions that fits, and its weights (outputs, inputs, h, w)."""
    eager: nn.Module = getattr(model, "_orig_mod", model)
    for name in names:
        module = eager.get_submodule(name)
        if isinstance(module, nn.Conv2d) and fits(module):
            return name, module.weight.detach().float().cpu().numpy()
    raise TinlabError(f"{type(eager).__name__} has no convolution with filters larger than a pixel")


def _levels(weights: np.ndarray) -> np.ndarray:
    """Weights (N, …) as uint8, 128 for zero, and the largest of each filter at an end."""
    most = np.abs(weights).max(tuple(range(1, weights.ndim)), keepdims=True)
    return (127.5 + 127.5 * weights / np.where(most == 0, 1, most)).round().astype(np.uint8)


def _check_channels(channels: Sequence[int], place: FeatureMap) -> None:
    wrong = [channel for channel in channels if not 0 <= channel < place.channels]
    if wrong:
        raise TinlabError(f"{place.layer} has channels 0 to {place.channels - 1}, and no channel {wrong[0]}")


def _excitement(
    model: nn.Module, units: Sequence[int], side: int, layer: str | None
) -> Callable[[Tensor], Tensor]:
    """A function (U, 3, H, W) -> (U,): how excited unit u is by image u."""
    rows = torch.arange(len(units))
    if layer is None:
        with torch.no_grad():
            classes = model(torch.zeros(1, 3, side, side, device=device_of(model))).shape[1]
        wrong = [unit for unit in units if not 0 <= unit < classes]
        if wrong:
            raise TinlabError(f"there are classes 0 to {classes - 1}, and no class {wrong[0]}")
        return lambda x: model(x)[rows, list(units)]
    place = feature_map(model, side, layer)
    _check_channels(units, place)

    def of_channels(x: Tensor) -> Tensor:
        with _watching(model, place.layer) as kept:
            model(x)
        return place.channels_first(kept[-1])[rows, list(units)].mean((1, 2))

    return of_channels


@contextmanager
def _watching(model: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Within it, what layer `layer` last gave is in the list."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: object, output: Tensor) -> None:
        kept[:] = [output]  # of a layer that runs twice, the last

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
