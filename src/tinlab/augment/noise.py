"""Noise, from a bank of normal numbers that is drawn once.

An image's noise is a piece of the bank that begins at a random place, so that it costs a copy, and is still a
pure function of (seed, epoch, sample).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tinlab.augment import draws

BANK = 1 << 19
"""Places where a piece can begin."""


def bank(seed: int, longest: int) -> Tensor:
    """Standard normal numbers, float32 (BANK + longest,), for pieces of up to `longest`.

    A function of `seed` alone: a longer bank begins as a shorter one does, and repeats itself after BANK.
    """
    places = torch.arange(BANK)
    u = draws.uniforms(draws.streams(seed, ["noise.length", "noise.angle"]), torch.zeros_like(places), places)
    length = torch.sqrt(-2 * torch.log(1 - u[0].to(torch.float64)))  # Box and Muller 1958
    normal = (length * torch.cos(2 * math.pi * u[1].to(torch.float64))).to(torch.float32)
    return normal.repeat(1 + -(-longest // BANK))[: BANK + longest]


def pieces(bank: Tensor, start: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The noise of each image: float32 (B, *shape), from the place `start`, in 0..1, (B,)."""
    first = (start * BANK).to(torch.int64)
    return bank.unfold(0, math.prod(shape), 1).index_select(0, first).view(-1, *shape)


def salt(planes: Tensor, share: Tensor, noise: Tensor, black: Tensor, white: Tensor) -> Tensor:
    """Make pixels white where `noise`, normal (B, 1, H, W), is in its upper tail, black in its lower tail.

    The tails together hold `share`, (B,), of the pixels; `black` and `white` are (3,).
    """
    where = "cpu" if share.device.type == "mps" else share.device  # MPS has no float64
    edge = torch.special.ndtri(1 - share.to(where, torch.float64) / 2)
    edge = edge.to(share.device, torch.float32)[:, None, None, None]
    x = torch.where(noise > edge, white[:, None, None], planes)
    return torch.where(noise < -edge, black[:, None, None], x)
