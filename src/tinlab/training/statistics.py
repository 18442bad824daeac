"""The statistics that batch norms measure by, taken anew once a training is over."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tinlab.data.pack import Split
from tinlab.errors import TinlabError
from tinlab.evaluation.predict import BATCH_SIZE, forward
from tinlab.recipe import Compute, Data
from tinlab.runs import Preprocessing


def check(data: Data, sketch: nn.Module) -> None:
    """Raise TinlabError where `data` asks for statistics that a network like `sketch` has none of."""
    if data.precise_bn_images is not None and not any(isinstance(m, _BatchNorm) for m in sketch.modules()):
        raise TinlabError("data.precise_bn_images: this network has no batch norm; leave it out")


def norms_of(model: nn.Module) -> list[str]:
    """The names of the batch norms of `model` that are in training mode, which frozen ones are not."""
    return [
        name for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.training
    ]


def spread(rows: np.ndarray, images: int) -> np.ndarray:
    """`images` of `rows`, evenly spread over them; all where there are fewer."""
    places = np.linspace(0, len(rows), min(images, len(rows)), endpoint=False).astype(np.int64)
    return rows[places]


@torch.no_grad()
def take_anew(
    model: nn.Module,
    names: list[str],
    seen: Preprocessing,
    split: Split,
    rows: np.ndarray,
    compute: Compute,
    device: torch.device,
) -> None:
    """Give the batch norms of `model` called `names` the mean and variance of their inputs over the images
    `rows` of `split`, shown as `seen` says; all else is in evaluation mode, and stays so.

    They are means over batches of some BATCH_SIZE images, each from all over `rows` and so, where rows of a
    class lie together, from many classes.
    """
    norms = [model.get_submodule(name) for name in names]
    before = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        assert isinstance(norm, _BatchNorm)
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    parts = max(1, round(len(rows) / BATCH_SIZE))
    for part in range(parts):
        images = torch.from_numpy(np.array(split.images[rows[part::parts]]))
        forward(model, seen, images.to(device), compute)
    for norm, momentum in zip(norms, before, strict=True):
        norm.train(False)
        norm.momentum = momentum
