"""Operations on single values that no matrix holds: one table of 256 values an image and channel.

Tables follow one another, and what an operation needs to know of the image (its histogram) is carried along
exactly; the pixels are looked up once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tinlab.augment.strengths import Drawn
from tinlab.recipe import operations as ops

TABLES = (ops.Gamma, ops.Posterise, ops.Solarise, ops.Equalise, ops.Autocontrast)
_KNOWING = (ops.Equalise, ops.Autocontrast)
"""Those that need the histogram."""


def tables(drawn: Sequence[Drawn], images: Tensor, rows: Tensor | None = None) -> Tensor:
    """The table of each image and channel: int64 (B, 3, 256) with values 0..255.

    `images` is uint8 (B, H, W, 3). `rows` int64 (B,) says which of the drawn images these are; None: all.
    """
    values = torch.arange(256, device=images.device)
    total = values.expand(len(images), 3, 256)
    changes = [change for change in drawn if isinstance(change.operation, TABLES)]
    counts = None
    if any(isinstance(change.operation, _KNOWING) for change in changes):
        counts = histogram(images)  # (B, 3, 256)
    for change in changes:
        table = _table(change, values, counts, rows)  # (B or 1, 3 or 1, 256)
        if change.active is not None:
            active = change.active if rows is None else change.active[rows]
            table = torch.where(active[:, None, None], table, values)
        table = table.expand(total.shape)
        total = table.gather(2, total)
        if counts is not None:
            counts = torch.zeros_like(counts).scatter_add_(2, table, counts)
    return total


def look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replace each value by its table's: uint8 (B, H, W, 3) and int64 (B, 3, 256) -> uint8 (B, H, W, 3)."""
    batch = len(images)
    starts = torch.arange(0, batch * 768, 256, device=images.device, dtype=torch.int32)
    index = images.to(torch.int32) + starts.view(batch, 1, 1, 3)
    return table.to(torch.uint8).view(-1).index_select(0, index.view(-1)).view(images.shape)


def histogram(images: Tensor) -> Tensor:
    """How often each value occurs: uint8 (B, H, W, 3) -> int64 (B, 3, 256)."""
    batch = len(images)
    values = images.reshape(batch, -1, 3).transpose(1, 2).to(torch.int64)  # (B, 3, H * W)
    counts = torch.zeros(batch, 3, 256, dtype=torch.int64, device=images.device)
    return counts.scatter_add_(2, values, values.new_ones(()).expand(values.shape))


def _table(change: Drawn, values: Tensor, counts: Tensor | None, rows: Tensor | None) -> Tensor:
    """One operation's table, int64, (B, 1, 256) or (B, 3, 256)."""

    def drawn(name: str) -> Tensor:
        value = change[name]
        return (value if rows is None else value[rows])[:, None, None]

    match change.operation:
        case ops.Gamma():
            return (255 * (values / 255) ** drawn("power")).round().to(torch.int64)
        case ops.Posterise():
            unit = 2 ** (8 - drawn("bits").to(torch.int64))
            return values.div(unit, rounding_mode="floor") * unit
        case ops.Solarise():
            return torch.where(values >= drawn("threshold"), 255 - values, values)
        case ops.Autocontrast():
            assert counts is not None
            there = counts > 0
            low = torch.where(there, values, 255).amin(2, keepdim=True)
            high = torch.where(there, values, 0).amax(2, keepdim=True)
            stretched = (values - low) * (255 / (high - low).clamp(min=1))
            return torch.where(high > low, stretched.clamp(0, 255).round().to(torch.int64), values)
        case ops.Equalise():
            assert counts is not None
            last = torch.where(counts > 0, values, 0).amax(2, keepdim=True)
            step = (counts.sum(2, keepdim=True) - counts.gather(2, last)).div(255, rounding_mode="floor")
            below = counts.cumsum(2) - counts  # how many pixels are darker
            spread = (below + step // 2).div(step.clamp(min=1), rounding_mode="floor").clamp(max=255)
            return torch.where(step > 0, spread, values)
    raise TypeError(f"{change.operation.kind} is no table")
