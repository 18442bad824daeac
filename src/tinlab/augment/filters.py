"""Operations on neighbouring pixels: blur and sharpness."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def blur(planes: Tensor, sigma: Tensor, most: float) -> Tensor:
    """Gaussian blur of float32 (B, C, H, W) with `sigma` in pixels, (B,), none above `most`.

    The kernel ends four times `most` from its middle. Outside lies the mirror image about the outermost
    pixels. A sigma of 0 changes nothing.
    """
    height, width = planes.shape[2:]
    radius = min(math.ceil(4 * most), height - 1, width - 1)
    gaps = torch.arange(radius + 1, device=sigma.device)
    kernel = torch.exp((-0.5 * (gaps / sigma.clamp(min=0.05)[:, None]).square()).clamp_(min=-50))
    kernel /= 2 * kernel.sum(1, keepdim=True) - kernel[:, :1]  # (B, radius + 1), by distance
    weights = kernel[:, :, None, None, None].unbind(1)
    x = _weigh(F.pad(planes, (0, 0, radius, radius), mode="reflect"), weights, 2, height)
    return _weigh(F.pad(x, (radius, radius, 0, 0), mode="reflect"), weights, 3, width)


def _weigh(padded: Tensor, weights: Sequence[Tensor], axis: int, length: int) -> Tensor:
    """A symmetric kernel along one axis, shift by shift: a CPU is faster at that than at a convolution whose
    kernel differs from image to image."""
    radius = len(weights) - 1
    out = padded.narrow(axis, radius, length) * weights[0]
    for gap in range(1, radius + 1):
        both = padded.narrow(axis, radius - gap, length) + padded.narrow(axis, radius + gap, length)
        out.addcmul_(both, weights[gap])
    return out


def sharpen(planes: Tensor, factor: Tensor) -> Tensor:
    """Move float32 (B, C, H, W) away from its smoothed self by `factor`, (B,); 1 changes nothing.

    The kernel is Pillow's SMOOTH, (1 1 1, 1 5 1, 1 1 1) / 13; the outermost pixels stay as they are.
    """
    inner = planes[:, :, 1:-1, 1:-1]
    rows = planes[:, :, :-2] + planes[:, :, 1:-1] + planes[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = torch.add(box, inner, alpha=4).mul_(1 / 13)
    out = planes.clone()
    out[:, :, 1:-1, 1:-1] = torch.lerp(smooth, inner, factor[:, None, None, None])
    return out
