"""Mixing images with their partners: mixup and CutMix.

An image's partner is its neighbour in the batch: the first and the second are partners, the third and the
fourth, and so on; the last of an odd number is its own. Batches are shuffled, so neighbours are strangers. A
batch that is cut into pieces of even length, as for two ranks, keeps its pairs.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tinlab.augment import erase

_POINTS = 2049


def partners(batch: int, device: torch.device) -> Tensor:
    """The place of each image's partner: int64 (B,)."""
    places = torch.arange(batch, device=device)
    return (places ^ 1).clamp_(max=batch - 1)


def beta_table(alpha: float) -> Tensor:
    """For `beta`: the lower half of the quantiles of Beta(alpha, alpha), float32 (points,).

    What is kept is s = x^p with p = alpha, or 1 where alpha is above 1. Below 1/2 the distribution function
    is proportional to the integral of (1 - x)^(alpha - 1) over s for p = alpha, which has no peak at 0
    however small alpha is, and of (x (1 - x))^(alpha - 1) for p = 1.
    """
    power = min(alpha, 1.0)
    s = np.linspace(0, 0.5**power, 1 << 16)
    x = s ** (1 / power)
    height = (1 - x if alpha <= 1 else 4 * x * (1 - x)) ** (alpha - 1)
    area = np.concatenate([[0], np.cumsum(height[1:] + height[:-1])])
    return torch.from_numpy(np.interp(np.linspace(0, area[-1], _POINTS), area, s).astype(np.float32))


def beta(u: Tensor, table: Tensor, alpha: float) -> Tensor:
    """Uniform draws `u` in 0..1, (B,), to draws from Beta(alpha, alpha), (B,)."""
    place = 2 * torch.minimum(u, 1 - u) * (len(table) - 1)
    before = place.floor().clamp_(max=len(table) - 2)
    index = before.to(torch.int64)
    s = torch.lerp(table[index], table[index + 1], place - before)
    low = s ** (1 / min(alpha, 1.0))
    return torch.where(u < 0.5, low, 1 - low)


def mixup(images: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """`weights`, (B,), times (B, C, H, W) plus the rest of their partners `others`."""
    return torch.lerp(others, images, weights[:, None, None, None])


def cutmix(images: Tensor, others: Tensor, weights: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a box of `others` into (B, C, H, W); `weights`, (B,), is what is to be left of the image.

    The box has the image's shape and is centred at `x` and `y`, in 0..1, (B,); what reaches over the edge is
    cut off. Returns the images, and the shares that are really left.
    """
    half = torch.sqrt(1 - weights) / 2
    pasted = erase.inside((y - half, x - half, y + half, x + half), images.shape[2])  # (B, 1, H, W)
    return torch.where(pasted, others, images), 1 - pasted.to(torch.float32).mean((1, 2, 3))


def cross_entropy(
    logits: Tensor, labels: Tensor, others: Tensor, weights: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """The mean loss of (B, classes) against two labels, (B,) each, in shares of `weights` and the rest.

    It equals the cross-entropy against soft labels that hold both shares.
    """
    first = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    second = F.cross_entropy(logits, others, reduction="none", label_smoothing=label_smoothing)
    return torch.lerp(second, first, weights).mean()
