"""Operations on neighbouring pixels: blur and sharpness."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def blur(planes: Tensor, sigma: Tensor, most: float) -> Tensor:
    """Gaussian blur of float32 (B, C, H, W) with `sigma` in pixels, (B,), none above `most`.

    The kernel ends four times `most` from its middle. Outside lies the mirror image about the outermost
    pixels. A sigma of 0 changes nothing.
    """
    batch, channels, height, width = planes.shape
    radius = min(math.ceil(4 * most), height - 1, width - 1)
    gaps = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp((-0.5 * (gaps / sigma.clamp(min=0.05)[:, None]).square()).clamp_(min=-50))
    kernel /= kernel.sum(1, keepdim=True)  # (B, taps)
    x = F.pad(planes, (radius, radius, radius, radius), mode="reflect")
    x = x.view(batch, channels * (height + 2 * radius), width + 2 * radius)
    x = torch.bmm(x, _band(kernel, width).transpose(1, 2)).view(batch, channels, height + 2 * radius, width)
    return torch.matmul(_band(kernel, height)[:, None], x)


def _band(kernel: Tensor, length: int) -> Tensor:
    """The kernels, (B, taps), at each of `length` places: (B, length, length + taps - 1)."""
    taps = kernel.shape[1]
    apart = F.pad(kernel, (length - 1, length - 1))  # (B, 2 * length + taps - 2)
    return apart.unfold(1, length + taps - 1, 1).flip(1)


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
