"""Operations on neighbouring pixels: blur and sharpness."""

from __future__ import annotations

import torch
from torch import Tensor


def blur(planes: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of float32 (B, C, H, W) with `sigma` in pixels, (B,); 0 changes nothing.

    An image's rows and columns are each multiplied with a small matrix that holds the kernel, so that every
    sigma costs the same. Outside lies the mirror image.
    """
    batch, channels, height, width = planes.shape
    across = _gaussian(sigma, width)  # (B, W, W)
    x = torch.bmm(planes.reshape(batch, channels * height, width), across.transpose(1, 2))
    x = x.view(batch, channels, height, width)
    down = across if height == width else _gaussian(sigma, height)  # (B, H, H)
    return torch.matmul(down[:, None], x)


def _gaussian(sigma: Tensor, length: int) -> Tensor:
    """What each pixel gives to each along one axis, with mirrored edges: (B, length, length)."""
    places = torch.arange(length, device=sigma.device, dtype=torch.float32)
    gap = places[:, None] - places
    gaps = torch.stack([gap, places[:, None] + places + 1, 2 * length - 1 - places[:, None] - places])
    rate = -0.5 / sigma.clamp(min=0.05).square()
    weights = torch.exp(rate[:, None, None, None] * gaps.square()).sum(1)  # (B, length, length)
    return weights / weights.sum(2, keepdim=True)


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
