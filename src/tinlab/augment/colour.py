"""Colour: all of a policy's linear operations as one 4x4 matrix an image, multiplied once.

A matrix maps (red, green, blue, 1) in 0..255 to the new values. Values may leave 0..255 on the way and are
clamped once, at the end, so that two operations that undo each other lose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from tinlab.augment.geometry import constant
from tinlab.augment.strengths import Drawn
from tinlab.recipe import operations as ops

COLOUR = (ops.Brightness, ops.Contrast, ops.Saturation, ops.Hue, ops.Tint, ops.Greyscale, ops.Invert)

GREY = (0.299, 0.587, 0.114)
"""How much red, green and blue give to grey (ITU-R BT.601)."""


def needs_mean(operations: Sequence[object]) -> bool:
    """An operation depends on the image's mean colour."""
    return any(isinstance(operation, ops.Contrast) and operation.pivot == "mean" for operation in operations)


def mean_colour(images: Tensor) -> Tensor:
    """The mean over the pixels: uint8 (B, H, W, 3) -> float32 (B, 3)."""
    batch, height, width, channels = images.shape
    rows = images.view(batch, height, width * channels).to(torch.float32).mean(1)  # (B, W * 3)
    return rows.view(batch, width, channels).mean(1)


def matrices(drawn: Sequence[Drawn], mean: Tensor | None, samples: Tensor) -> Tensor | None:
    """The matrix of each of `samples`: float32 (B, 4, 4), or None where there is no colour operation.

    `mean` is the images' mean colour, (B, 3), where `needs_mean`.
    """
    total = None
    for change in drawn:
        if isinstance(change.operation, COLOUR):
            if total is None:
                total = torch.eye(4, device=samples.device).expand(len(samples), 4, 4)
            total = _after(change, total, mean)
    return total


def _after(change: Drawn, total: Tensor, mean: Tensor | None) -> Tensor:
    """`total` and after it this operation: (B, 4, 4).

    Each operation is the identity plus its strength times a constant matrix.
    """

    def plus(*terms: tuple[str, Tensor]) -> Tensor:
        return total + sum(
            strength[:, None, None] * (_constant(name, total.device) @ total) for name, strength in terms
        )

    match change.operation:
        case ops.Brightness():
            return plus(("each", change["factor"] - 1))
        case ops.Contrast(pivot="black"):
            return plus(("each", change["factor"] - 1))
        case ops.Contrast():
            assert mean is not None
            grey = (total[:, :3, :3] @ mean[:, :, None])[:, :, 0] + total[:, :3, 3]  # (B, 3) the mean by now
            grey = grey @ constant(GREY, grey.device)
            more = change["factor"] - 1
            return plus(("each", more), ("all", -more * grey))
        case ops.Saturation():
            return plus(("from_grey", change["factor"] - 1))
        case ops.Greyscale():
            return plus(("from_grey", -change.mask(total).to(torch.float32)))
        case ops.Invert():
            return plus(("invert", change.mask(total).to(torch.float32)))
        case ops.Hue():
            angle = change["degrees"] * (math.pi / 180)
            return plus(("from_grey", angle.cos() - 1), ("turn", angle.sin()))
        case ops.Tint():
            return plus(*((name, change[name]) for name in ("red", "green", "blue")))
    raise TypeError(f"{change.operation.kind} is no colour operation")


@cache
def _constant(name: str, device: torch.device) -> Tensor:
    """The matrices that strengths multiply: float32 (4, 4) on `device`."""
    matrix = torch.zeros(4, 4, dtype=torch.float64)
    grey = torch.tensor(GREY, dtype=torch.float64).expand(3, 3)
    if name == "each":
        matrix[:3, :3] = torch.eye(3)
    elif name == "all":
        matrix[:3, 3] = 1
    elif name == "from_grey":
        matrix[:3, :3] = torch.eye(3) - grey
    elif name == "invert":
        matrix[:3, :3] = -2 * torch.eye(3)
        matrix[:3, 3] = 255
    elif name == "turn":
        matrix[:3, :3] = _quarter_turn()
    else:
        matrix[("red", "green", "blue").index(name), 3] = 1
    return matrix.to(device=device, dtype=torch.float32)


def _quarter_turn() -> Tensor:
    """The colour difference turned by 90 degrees in the plane of I and Q, which are the differences B - Y and
    R - Y scaled and turned by 33 degrees (NTSC): float64 (3, 3)."""
    y = torch.tensor(GREY, dtype=torch.float64)
    u = 0.492111 * (torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) - y)
    v = 0.877283 * (torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64) - y)
    forward = torch.stack([y, u, v])
    turn = torch.tensor([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
    return torch.linalg.inv(forward) @ turn @ forward


def multiply(planes: Tensor, matrix: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """The matrices and the normalisation in one multiplication.

    float32 (B, 3, H, W) in 0..255 -> the same shape, normalised: `scale` * value + `shift`, each (3,).
    `matrix` is (B, 4, 4), or None where only normalisation is left.
    """
    if matrix is None:
        return torch.addcmul(shift[:, None, None], planes, scale[:, None, None])
    batch, channels, height, width = planes.shape
    linear = scale[:, None] * matrix[:, :3, :3]  # (B, 3, 3)
    constant = scale * matrix[:, :3, 3] + shift  # (B, 3)
    out = torch.baddbmm(constant[:, :, None], linear, planes.reshape(batch, channels, height * width))
    return out.view(batch, channels, height, width)


def clamp(planes: Tensor, limits: Sequence[Sequence[float]], out: Tensor) -> Tensor:
    """Clamp each channel of (B, 3, H, W) to its (low, high) into `out`, which may be `planes` itself."""
    for channel, (low, high) in enumerate(limits):
        # Limits that are tensors take ten times as long on a CPU.
        torch.clamp(planes[:, channel], low, high, out=out[:, channel])
    return out
