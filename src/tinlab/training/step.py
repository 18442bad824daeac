"""One training step, from a batch of bytes to an update: what every recipe's steps have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinlab.augment import mix
from tinlab.compute import autocast
from tinlab.data.batches import Batch
from tinlab.recipe import Recipe
from tinlab.training import optimizer
from tinlab.training.penalties import Penalties
from tinlab.training.scaling import Scaling
from tinlab.training.stages import Setup


def take_step(setup: Setup, step: int, size: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Step `step` of a stage, counted from 0, on images of `size` pixels a side: batch, augmentation,
    gradient, update. Returns the mean loss, what penalties add to it and the number correct, scalars on the
    device, and the number of images."""
    recipe = setup.recipe
    inputs, batch = setup.policy.inputs(setup.batches.at(step), size)  # (B, 3, size, size)
    backward = partial(in_parts, setup.network, inputs, batch, recipe, setup.penalties, setup.scaling)

    def masked() -> tuple[Tensor, Tensor, Tensor]:
        found = backward()
        if setup.masks is not None:
            setup.masks.apply_to_gradients()
        return found

    loss, penalty, correct = masked() if setup.sharpness is None else setup.sharpness(masked)
    if setup.depth.drops:
        optimizer.fill_missing_gradients(setup.model)
    if recipe.optimizer.clip_norm is not None:
        setup.scaling.unscale(setup.updater)
        optimizer.clip(setup.model, recipe.optimizer.clip_norm)
    setup.scaling.step(setup.updater)
    setup.updater.zero_grad(set_to_none=True)
    return loss, penalty, correct, len(batch.labels)


def in_parts(
    network: Callable[[Tensor], Tensor],
    inputs: Tensor,
    batch: Batch,
    recipe: Recipe,
    penalties: Penalties | None,
    scaling: Scaling,
) -> tuple[Tensor, Tensor, Tensor]:
    """`forward_backward`, the scaled gradients being summed up over `schedule.accumulate` parts of the batch,
    so that without batch norm they are those of the whole."""
    parts = recipe.schedule.accumulate
    if parts == 1:
        return forward_backward(network, inputs, batch, recipe, penalties, scaling.backward)
    found = [
        forward_backward(
            network,
            some,
            _part(batch, number, parts),
            recipe,
            penalties,
            lambda loss: scaling.backward(loss / parts),
        )
        for number, some in enumerate(inputs.chunk(parts))
    ]
    losses, added, correct = (torch.stack(values) for values in zip(*found, strict=True))
    return losses.mean(), added.mean(), correct.sum()


def _part(batch: Batch, number: int, parts: int) -> Batch:
    """Part `number`, counted from 0, of `parts` equal ones; what the batch does not have, it has not."""
    values: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    for name, value in values.items():
        values[name] = None if value is None else value.chunk(parts)[number]
    return Batch(**values)


def forward_backward(
    network: Callable[[Tensor], Tensor],
    inputs: Tensor,
    batch: Batch,
    recipe: Recipe,
    penalties: Penalties | None = None,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one batch's loss and penalties, as `backward` makes them of the sum.

    Returns its mean loss, what penalties add to it, and its number correct, scalars on the device. A mixed
    image has the loss of both its labels, in their shares, and is correct where it is given the label with
    the larger one.
    """
    with autocast(recipe.compute, inputs.device):
        logits = network(inputs)  # (B, classes)
    logits = logits.float()
    smoothing = recipe.loss.label_smoothing
    labels = batch.labels
    if batch.others is None or batch.weights is None:
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    else:
        loss = mix.cross_entropy(logits, labels, batch.others, batch.weights, smoothing)
        labels = torch.where(batch.weights >= 0.5, labels, batch.others)
    added = penalties() if penalties is not None else None
    whole = loss if added is None else loss + added
    if whole.requires_grad:  # not where stochastic depth has dropped every layer that is trained
        backward(whole)
    correct = (logits.detach().argmax(dim=1) == labels).sum()
    return loss.detach(), torch.zeros_like(loss) if added is None else added.detach(), correct


def size_at(sizes: tuple[int, ...], step: int, total_steps: int) -> int:
    """The side of the training images in step `step`: each of `sizes` gets an equal share of the steps."""
    return sizes_from(sizes, step, total_steps)[0]


def sizes_from(sizes: tuple[int, ...], step: int, total_steps: int) -> tuple[int, ...]:
    """The sides of the training images in step `step` and in those after it, in their order."""
    return sizes[min(len(sizes) - 1, step * len(sizes) // total_steps) :]
