"""How long a recipe takes on two cores: the images that it sees, over the speed of its network."""

from __future__ import annotations

from functools import cache

from tinlab import recipe
from tinlab.models.summary import summarise
from tinlab.papers.registry import Row
from tinlab.recipe import Recipe
from tinlab.recipe.operations import FixedCopies

TRAIN, HELD_OUT, CLASSES, SIDE = 100_000, 10_000, 200, 64
"""Tiny ImageNet: images to train on, of which some are `tune`, classes, and pixels a side."""

IMAGES_PER_SECOND = {
    "resnet18": 582, "resnet34": 321, "resnet50": 230, "resnet101": 133, "resnet152": 92,
    "yu_resnet20": 532, "yu_alexnet": 213, "yu_vgg": 170, "yu_baseline": 2527,
    "convnet9": 350, "keras_vgg": 782, "keras_alexnet": 15, "alexnet": 130, "vgg16": 83,
    "googlenet": 508, "squeezenet": 798,
    "trinext_small": 180, "trinext": 83, "trinext_large": 36, "trinext_conv": 82,
}  # fmt: skip
"""Training steps of each network as it is, batches of 128 at 64 pixels in bf16, on two cores of an AMD EPYC:
LOG.md, "Every network, timed again"."""


def images_seen(recipe: Recipe) -> float:
    """Images that pass through the network in training on Tiny ImageNet, in all stages together."""
    return sum(_steps(phase) * phase.schedule.batch_size for phase in recipe.phases)


def train_images(recipe: Recipe) -> int:
    """Images in a pass over Tiny ImageNet's training data, with fixed copies."""
    data = recipe.data
    images = TRAIN if data.train_split == "train+tune" else TRAIN - HELD_OUT
    if data.images is not None:
        images = min(images, data.images)
    if data.images_per_class is not None:
        images = min(images, data.images_per_class * CLASSES)
    for operation in recipe.augment:
        if isinstance(operation, FixedCopies):
            images += len(operation.operations) * round(operation.share * images)
    return images


def _steps(phase: Recipe) -> int:
    return phase.schedule.total_steps(train_images(phase))


def expected_minutes(recipe: Recipe) -> float | None:
    """Minutes of training on two cores; None for a network whose speed was not measured.

    The speed is the network's measured one; for other options than its own it goes by the multiply-adds, and
    for smaller images by the pixels. Layers that stand still are counted as if they learned.
    """
    minutes = 0.0
    for phase in recipe.phases:
        speed = images_per_second(phase.model)
        if speed is None:
            return None
        sizes = phase.data.image_sizes
        pixels = sum(size**2 for size in sizes) / len(sizes) / SIDE**2
        passes = 2 if phase.optimizer.sam_rho is not None else 1
        minutes += passes * _steps(phase) * phase.schedule.batch_size * pixels / speed / 60
    return minutes


@cache
def _multiply_adds(knobs: recipe.Model) -> int:
    return summarise(knobs, CLASSES, SIDE).multiply_adds


@cache
def images_per_second(knobs: recipe.Model) -> float | None:
    """Images a second that training passes through the network; None where no speed was measured."""
    measured = IMAGES_PER_SECOND.get(knobs.name)
    if measured is None:
        return None
    shape = ("width", "stem", "first_kernel", "shortcut")
    if all(getattr(knobs, name) in (None, _own(knobs.name, name)) for name in shape):
        return measured
    asked = recipe.Model(name=knobs.name, **{name: getattr(knobs, name) for name in shape})
    return measured * _multiply_adds(recipe.Model(name=knobs.name)) / _multiply_adds(asked)


def _own(name: str, option: str) -> object:
    from tinlab import models

    return models.find(name).options.get(option)


def row_minutes(row_: Row, seeds: int | None = None) -> float:
    """Minutes of training that a row takes on two cores, over its seeds; of a command, a minute."""
    if row_.command:
        return 1.0
    minutes = [expected_minutes(recipe) for recipe in row_.recipes]
    return (seeds or len(row_.seeds)) * sum(value or 0.0 for value in minutes)


def shown_minutes(minutes: float) -> str:
    """`3 minutes`, or `12.5 hours`."""
    if minutes >= 120:
        return f"{minutes / 60:,.1f} hours"
    return f"{max(1, round(minutes))} minute{'s' if round(minutes) > 1 else ''}"
