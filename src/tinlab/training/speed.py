"""How fast a network trains on this machine: whole steps on one fixed batch."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from tinlab import models, recipe
from tinlab.compute import autocast, place, wait_for
from tinlab.errors import TinlabError
from tinlab.training import optimizer
from tinlab.training.memory import BYTES_A_PARAMETER, free_bytes


def images_per_second(
    knobs: recipe.Model,
    classes: int,
    image_size: int,
    *,
    device: torch.device,
    compute: recipe.Compute | None = None,
    trained_by: recipe.Optimizer | None = None,
    batch_size: int = 128,
    seconds: float = 3.0,
) -> float:
    """Images a second in training steps on one batch of random values, at least two of them and for about
    `seconds`, after one that is not counted. `trained_by`: by default SGD with momentum.

    Raises TinlabError where the weights alone need more memory than there is.
    """
    compute = compute or recipe.Compute()
    parameters = sum(p.numel() for p in models.sketch(knobs, classes, image_size=image_size).parameters())
    needed, free = BYTES_A_PARAMETER * parameters / 1e9, free_bytes(device) / 1e9
    if needed > free:
        raise TinlabError(
            f"{knobs.name} needs {needed:,.0f} GB to train, before activations; {free:,.0f} GB are free"
        )
    torch.manual_seed(0)
    model = place(models.build(knobs, classes, image_size=image_size), compute, device)
    updater = optimizer.build(trained_by or recipe.Optimizer(peak_lr=1e-3), model)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    if compute.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch_size,), device=device)

    def step() -> None:
        with autocast(compute, device):
            logits = model(images)  # (B, classes)
        F.cross_entropy(logits.float(), labels).backward()
        updater.step()
        updater.zero_grad(set_to_none=True)
        wait_for(device)

    step()
    steps, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or steps < 2:
        step()
        steps += 1
    return steps * batch_size / elapsed
