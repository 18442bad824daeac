"""Why a network did not learn a few images by heart: what was measured, and what it says."""

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tinlab import models
from tinlab.compute import place, resolve_device
from tinlab.data.batches import Batch, Batches
from tinlab.data.pack import Pack
from tinlab.evaluation.predict import forward, normalised
from tinlab.recipe import Recipe
from tinlab.runs import Run
from tinlab.training import checkpoint
from tinlab.training.step import forward_backward

RECTIFIERS = (nn.ReLU, nn.ReLU6)
"""Activations that are zero over half of their range: a channel may be zero for every image."""
DEAD_SHARE = 0.9
"""A layer with more of its channels dead than this passes nearly nothing on."""
UNMOVED = 0.02
"""Weights that moved by less of their length than this are as good as those that were drawn."""
MOVED = 0.1
"""Weights that learn a few images move by some such share of their length."""
NO_FALL = 0.05
"""A loss that fell by less of itself than this has not fallen."""
ALIKE = 0.05
"""Logits that differ between images by less of their spread over the classes than this are all alike."""
NO_GRADIENT = 1e-9
"""Length of a gradient, against the longest of a layer, that changes nothing."""
MOST_IN_PASSES = 256
"""Images whose gradients and activations are looked at."""

Norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Finding:
    """A likely cause, what was measured that says so, and what to try."""

    cause: str
    evidence: str
    advice: str


@dataclass(frozen=True)
class Evidence:
    """What the training of `recipe` said: `losses` of its `steps`, or of every few of them, in order; how
    many were `right` in evaluation mode in the end; `diverged`, how the loop put it, or "". `peak_lr` is
    that of the recipe as it was given, which advice is about: a smaller batch has a lower one."""

    recipe: Recipe
    peak_lr: float
    labels: tuple[int, ...]
    steps: int
    losses: tuple[float, ...]
    right: int
    diverged: str

    @property
    def images(self) -> int:
        return len(self.labels)

    @property
    def chance_loss(self) -> float:
        """The lowest loss of a network that does not look at the image: the labels' entropy, in nats."""
        shares = np.array(list(Counter(self.labels).values())) / self.images
        return float(-(shares * np.log(shares)).sum())


@dataclass(frozen=True)
class Layer:
    """A layer with weights: length of its weights' gradient on the images."""

    name: str
    gradient: float


@dataclass(frozen=True)
class Activation:
    """An activation: the share of its channels that are zero for every image and at every place."""

    name: str
    dead_share: float


@dataclass(frozen=True)
class Look:
    """What the network itself shows, as it was at the end; or at the beginning, where it diverged.

    `moved`: length of the weights' way over the length they began with, or None at the beginning.
    `right_in_batches`: images right with batch norm's statistics those of the batch, as in training;
    `right_renewed`: in evaluation mode, with its statistics computed anew from these images; both None
    without batch norm. `momentum` is the share that a batch has of the running statistics. `spread`: standard
    deviation of the logits over the images against that over the classes. `attainable`: how many can be right
    at most, as identical images have different labels; `contradictions`: how many such images there are.
    """

    parameters: int
    layers: tuple[Layer, ...]
    activations: tuple[Activation, ...]
    moved: float | None
    right_in_batches: int | None
    right_renewed: int | None
    momentum: float | None
    spread: float
    attainable: int
    contradictions: int


def look_at(run: Run, pack: Pack, device_name: str) -> Look:
    """Look at the network of `run` on the training images of `pack`, all of them."""
    device = resolve_device(device_name)
    recipe, shown = run.recipe, run.preprocessing
    split = pack.split(recipe.data.train_split)
    images = torch.from_numpy(np.array(split.images)).to(device)
    labels = torch.from_numpy(np.array(split.labels)).to(device)
    first = Batches(split, np.arange(len(split)), recipe.schedule.batch_size, run.seed, device).at(0)
    # As the loop does it, so that these are the weights that it began with.
    torch.manual_seed(run.seed)
    model = models.build(recipe.model, len(run.classes), image_size=shown.network_size)
    models.begin(model, recipe.model, normalised(shown, first.images))
    model = place(model, recipe.compute, device)
    began = [p.detach().clone() for p in model.parameters()]
    last = checkpoint.latest(run.path)
    if last is not None:
        checkpoint.load_weights(last, model, device)

    def right(network: nn.Module) -> int:
        size = recipe.schedule.batch_size
        starts = range(0, len(images) - len(images) % size or len(images), size)
        # In whole batches, as training has them, and the rest with the last of them.
        ends = [*starts[1:], len(images)]
        found = 0
        with torch.no_grad():
            for start, end in zip(starts, ends, strict=True):
                guessed = forward(network, shown, images[start:end], recipe.compute).argmax(dim=1)
                found += int((guessed == labels[start:end]).sum())
        return found

    norms = [layer for layer in model.modules() if isinstance(layer, Norms)]
    in_batches = right(copy.deepcopy(model).train()) if norms else None
    renewed = None
    if norms:
        again = copy.deepcopy(model)
        for layer in again.modules():
            if isinstance(layer, Norms):
                layer.reset_running_stats()
                layer.momentum = None  # a plain mean over the batches
        again.train()
        right(again)
        renewed = right(again.train(False))
    few = slice(0, MOST_IN_PASSES)
    with torch.no_grad():
        logits = forward(model.eval(), shown, images[few], recipe.compute)  # (N, classes)
    layers, activations = _one_pass(
        copy.deepcopy(model).train(),
        normalised(shown, images[few]),
        labels[few],
        recipe,
    )
    attainable, contradictions = best_possible(np.array(split.images), np.array(split.labels))
    return Look(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=layers,
        activations=activations,
        moved=None if last is None else _distance(began, model),
        right_in_batches=in_batches,
        right_renewed=renewed,
        momentum=next((layer.momentum for layer in norms if layer.momentum is not None), None),
        spread=_spread(logits),
        attainable=attainable,
        contradictions=contradictions,
    )


def best_possible(images: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """How many of `images`, uint8 (N, H, W, 3), can be right at most, and how many have an identical one with
    another label."""
    found: dict[bytes, Counter[int]] = defaultdict(Counter)
    for image, label in zip(images, labels, strict=True):
        found[image.tobytes()][int(label)] += 1
    split = [counts for counts in found.values() if len(counts) > 1]
    lost = sum(counts.total() - max(counts.values()) for counts in split)
    return len(images) - lost, sum(counts.total() for counts in split)


def diagnose(evidence: Evidence, look: Look) -> tuple[Finding, ...]:
    """What `evidence` and `look` point to, the likeliest first; never empty."""
    found = [*_contradicting(look, evidence)]
    if evidence.diverged or _rose(evidence.losses):
        return (*found, *_too_fast(evidence, look))
    found += _statistics(evidence, look)
    begin, end = _ends(evidence.losses)
    fell = (begin - end) / begin if begin else 0.0
    at_chance = end > (1 - NO_FALL) * evidence.chance_loss
    blocked = [*_dead(look), *_without_gradient(look)]
    if fell < NO_FALL or at_chance:
        found += blocked
        found += _unmoved(evidence, look, begin, end)
        found += _all_alike(evidence, look, end)
        found += _shaking(evidence)
    elif look.right_in_batches is None or look.right_in_batches < evidence.images:
        found += blocked
        found += _still_falling(evidence)
        found += _shaking(evidence)
    if not found:
        found.append(_stuck(evidence, look, begin, end))
    return tuple(found)


def _contradicting(look: Look, evidence: Evidence) -> Iterator[Finding]:
    if look.contradictions:
        yield Finding(
            "identical images have different labels",
            f"{look.contradictions} of the {evidence.images} images have an identical one with another "
            f"label, so at most {look.attainable} can be right",
            "'tinlab data audit' lists them; mend the labels, or check other images",
        )


def _too_fast(evidence: Evidence, look: Look) -> Iterator[Finding]:
    rate = evidence.peak_lr
    broken = [layer.name for layer in look.layers if not math.isfinite(layer.gradient)]
    if broken and look.moved is None:
        yield Finding(
            "the network's first values are not usable",
            f"before any step the gradient of {broken[0]} is not finite, and that of {len(broken) - 1} more "
            "layers",
            "look at model.init and at compute.precision",
        )
        return
    losses = evidence.losses
    way = f"it began at {losses[0]:.3g} and had been {max(losses):.3g} at most" if losses else "at once"
    size = ""
    if look.layers and look.moved is None:
        longest = max(look.layers, key=lambda layer: layer.gradient)
        size = f"; on the first weights the longest gradient is {longest.gradient:.3g}, of {longest.name}"
    yield Finding(
        "the learning rate is too high",
        f"{evidence.diverged or f'the loss rose to {losses[-1]:.3g}'}: {way}{size}",
        f"--set optimizer.peak_lr={rate / 10:.2g}, or let 'tinlab lr-find' find one; a longer "
        "schedule.warmup_fraction or optimizer.clip_norm helps at the same rate",
    )


def _statistics(evidence: Evidence, look: Look) -> Iterator[Finding]:
    in_batches, renewed = look.right_in_batches, look.right_renewed
    if in_batches is None or renewed is None or in_batches <= evidence.right:
        return
    if in_batches - evidence.right < 0.05 * evidence.images and in_batches < evidence.images:
        return
    told = (
        f"with each batch's own statistics {in_batches} of {evidence.images} images are right, with the "
        f"running ones {evidence.right}; with statistics computed anew from these images {renewed}"
    )
    if renewed - evidence.right >= 0.5 * (in_batches - evidence.right):
        memory = 1 / look.momentum if look.momentum else math.inf
        yield Finding(
            "batch norm's running statistics lag behind the weights",
            f"{told}; they remember about {memory:.0f} steps, of {evidence.steps} in all",
            "more --steps, or a lower rate, so that the weights rest at the end; statistics of many small "
            "batches stray too, so try a larger schedule.batch_size",
        )
    else:
        size = evidence.recipe.schedule.batch_size // evidence.recipe.schedule.accumulate
        yield Finding(
            "the network reads a batch's statistics, not the image",
            f"{told}; a batch norm sees {size} images at a time",
            "larger batches (schedule.batch_size, or a lower schedule.accumulate), or a network without "
            "batch norm",
        )


def _dead(look: Look) -> Iterator[Finding]:
    dead = [found for found in look.activations if found.dead_share > DEAD_SHARE]
    if dead:
        worst = max(dead, key=lambda found: found.dead_share)
        yield Finding(
            "dead activations",
            f"in {worst.name} {worst.dead_share:.0%} of the channels are zero for every image, and more than "
            f"{DEAD_SHARE:.0%} in {len(dead)} of {len(look.activations)} activations",
            "another model.init or model.activation (leaky_relu, silu), or a lower rate: a step too far can "
            "kill them",
        )


def _without_gradient(look: Look) -> Iterator[Finding]:
    longest = max((layer.gradient for layer in look.layers), default=0.0)
    starved = [layer for layer in look.layers if layer.gradient <= NO_GRADIENT * max(longest, NO_GRADIENT)]
    if starved:
        yield Finding(
            "no gradient reaches some layers",
            f"the gradient of {starved[0].name} has length {starved[0].gradient:.1g}, where the longest is "
            f"{longest:.3g}; so it is in {len(starved)} of {len(look.layers)} layers",
            "look for dead activations or a bad model.init before these layers; a layer that is frozen or "
            "unused has none either",
        )


def _unmoved(evidence: Evidence, look: Look, begin: float, end: float) -> Iterator[Finding]:
    if look.moved is None or look.moved >= UNMOVED:
        return
    rate, factor = evidence.peak_lr, min(1e6, MOVED / max(look.moved, 1e-12))
    yield Finding(
        "the learning rate is too low",
        f"the weights moved by {100 * look.moved:.2g}% of their length in {evidence.steps} steps, and the "
        f"loss went from {begin:.3f} to {end:.3f}, where guessing gives {evidence.chance_loss:.3f}",
        f"--set optimizer.peak_lr={rate * factor:.1g}, at which they would move by about {MOVED:.0%}, or let "
        "'tinlab lr-find' find one; or more --steps",
    )


def _all_alike(evidence: Evidence, look: Look, end: float) -> Iterator[Finding]:
    if look.spread < ALIKE and (look.moved is None or look.moved >= UNMOVED):
        rate = evidence.peak_lr
        yield Finding(
            "the network gives every image the same answer",
            f"its logits differ between images by {look.spread:.1%} of what they differ between classes; the "
            f"loss is {end:.3f}, and guessing by the labels' shares gives {evidence.chance_loss:.3f}",
            f"another rate, such as --set optimizer.peak_lr={rate / 10:.2g}; another model.init; "
            "for a deep network without batch norm or shortcuts, a shallower one",
        )


def _still_falling(evidence: Evidence) -> Iterator[Finding]:
    losses = evidence.losses
    quarter = len(losses) // 4
    if quarter < 1:
        return
    before, after = np.mean(losses[-2 * quarter : -quarter]), np.mean(losses[-quarter:])
    if after < 0.9 * before:
        yield Finding(
            "it was not finished",
            f"the loss was still falling: {before:.3f} on average in the third quarter of the steps, "
            f"{after:.3f} in the last; {evidence.right} of {evidence.images} were right",
            f"--steps {2 * evidence.steps}, or a rate some times as high (optimizer.peak_lr is "
            f"{evidence.peak_lr:g})",
        )


def _shaking(evidence: Evidence) -> Iterator[Finding]:
    losses = np.asarray(evidence.losses)
    middle = losses[len(losses) // 4 : len(losses) // 2]  # where the rate is high
    if len(middle) < 8:
        return
    jumps = float(np.std(np.diff(middle)) / math.sqrt(2) / np.mean(middle))
    if jumps > 0.3:
        rate = evidence.peak_lr
        yield Finding(
            "the learning rate is rather high",
            f"in the second quarter of the steps the loss jumps from step to step by {jumps:.0%} of its mean",
            f"--set optimizer.peak_lr={rate / 3:.2g}, or a larger schedule.batch_size",
        )


def _stuck(evidence: Evidence, look: Look, begin: float, end: float) -> Finding:
    rate = evidence.peak_lr
    moved = "" if look.moved is None else f", the weights moved by {look.moved:.0%} of their length"
    return Finding(
        "the network is too small, or its rate does not suit it",
        f"the loss went from {begin:.3f} to {end:.3f} and stays there{moved}; {evidence.right} of "
        f"{evidence.images} are right, with {look.parameters:,} weights",
        f"a wider network (model.width); 'tinlab lr-find' for the rate, which is {rate:g}; more --steps",
    )


def _rose(losses: tuple[float, ...]) -> bool:
    begin, end = _ends(losses) if losses else (0.0, 0.0)
    return end > 1.5 * begin


def _ends(losses: tuple[float, ...]) -> tuple[float, float]:
    """The mean loss of the first step or two, and of the last tenth."""
    if not losses:
        return math.nan, math.nan
    tenth = max(1, len(losses) // 10)
    return float(np.mean(losses[: min(2, tenth)])), float(np.mean(losses[-tenth:]))


def _spread(logits: Tensor) -> float:
    """How much `logits` (N, C) differ between images, against how much between classes."""
    between_classes = float(logits.mean(dim=0).std())
    between_images = float(logits.std(dim=0).mean())
    return between_images / max(between_classes, between_images, 1e-12)


@torch.no_grad()
def _distance(began: list[Tensor], model: nn.Module) -> float:
    way = math.sqrt(
        sum(float((a - b).square().sum()) for a, b in zip(model.parameters(), began, strict=True))
    )
    return way / max(1e-12, math.sqrt(sum(float(value.square().sum()) for value in began)))


def _one_pass(
    model: nn.Module, inputs: Tensor, labels: Tensor, recipe: Recipe
) -> tuple[tuple[Layer, ...], tuple[Activation, ...]]:
    """Gradients and activations of `model`, in training mode, on `inputs` (B, 3, H, W)."""
    batch = Batch(inputs, labels, labels, labels)
    with _watched(model) as dead:
        forward_backward(model, inputs, batch, recipe)
    layers = tuple(
        Layer(name.removesuffix(".weight"), 0.0 if p.grad is None else float(p.grad.norm()))
        for name, p in model.named_parameters()
        if p.ndim > 1
    )
    return layers, tuple(Activation(name, share) for name, share in dead.items())


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, float]]:
    """While entered, the share of dead channels of each rectifier; of one used often, the largest."""
    found: dict[str, float] = {}
    hooks = []

    def watch(name: str) -> Any:
        def note(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            used = (output.detach() > 0).transpose(0, 1).flatten(1).any(dim=1)  # (C,)
            found[name] = max(found.get(name, 0.0), 1 - float(used.float().mean()))

        return note

    for name, layer in model.named_modules():
        if isinstance(layer, RECTIFIERS):
            hooks.append(layer.register_forward_hook(watch(name)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
