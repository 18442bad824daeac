"""Covering a box of each image: cutout and random erasing."""

from __future__ import annotations

import torch
from torch import Tensor

from tinlab.recipe import operations as ops

Box = tuple[Tensor, Tensor, Tensor, Tensor]
"""Top, left, bottom and right as shares of the side, (B,) each."""


def box_of(operation: ops.Cutout | ops.RandomErasing, values: dict[str, Tensor]) -> Box:
    """The box that is covered; nothing where its area is 0."""
    if isinstance(operation, ops.Cutout):
        half = values["side"] / 2
        x, y = values["x"], values["y"]
        return y - half, x - half, y + half, x + half
    ratio = torch.exp(values["aspect"])
    height = torch.sqrt(values["area"] * ratio).clamp(max=1)
    width = torch.sqrt(values["area"] / ratio).clamp(max=1)
    top, left = (1 - height) * values["top"], (1 - width) * values["left"]
    return top, left, top + height, left + width


def inside(box: Box, size: int) -> Tensor:
    """The pixels whose centres lie in the box: bool (B, 1, size, size)."""
    places = (torch.arange(size, device=box[0].device) + 0.5) / size
    top, left, bottom, right = (edge[:, None] for edge in box)
    rows = (places >= top) & (places < bottom)  # (B, size)
    columns = (places >= left) & (places < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
