"""Random numbers that are a pure function of (seed, epoch, sample, use).

Nothing is carried from one batch to the next, so a resumed run has nothing to wind forward, and a sample
gets the same draws whatever batch, device or rank it lands on. The arithmetic is 32-bit integers held in
int64, which every device does alike; the mixing is the finaliser of MurmurHash3 (Appleby, public domain),
applied after each word.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF

Words = TypeVar("Words", Tensor, int)


def uniform(seed: int, use: str, epochs: Tensor, samples: Tensor) -> Tensor:
    """Uniform draws in [0, 1) with 24 bits, one a sample.

    `use` names what the draw is for, so that two operations never share one; `epochs` and `samples` are
    int64 (B,). Returns float32 (B,) on their device.
    """
    return uniforms(streams(seed, [use]).to(samples.device), epochs, samples)[0]


def streams(seed: int, uses: Sequence[str]) -> Tensor:
    """Where the draws for each of `uses` begin, for `uniforms`: int64 (U, 1)."""
    state = torch.tensor([zlib.crc32(use.encode()) for use in uses], dtype=torch.int64)[:, None]
    state = _mix(state ^ (seed & _MASK))
    return _mix(state ^ (seed >> 32 & _MASK))


def uniforms(begin: Tensor, epochs: Tensor, samples: Tensor) -> Tensor:
    """What `uniform` draws, for many uses at once: float32 (U, B).

    `begin` is what `streams` gives, `epochs` int64 (B,) or (U, B), `samples` int64 (B,).
    """
    state = _mix(begin ^ (epochs & _MASK))
    state = _mix(state ^ (samples & _MASK))  # (U, B)
    return (state >> 8).to(torch.float32) * 2.0**-24


def _mix(h: Words) -> Words:
    """Spread each bit of the 32-bit words in `h` (int64, or one Python integer) over all the others."""
    h = (h + 0x9E3779B9) & _MASK  # so that zero is not a fixed point
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _MASK
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _MASK
    return h ^ (h >> 16)


def seed_for_step(seed: int, step: int) -> int:
    """The seed of torch's own generator in one step, for dropout and the like: 63 bits, from (seed, step)."""
    # Python's integers: as tensors, these few words would take longer than all else that a GPU waits for.
    high, low = 0x2545F491, 0x4F6CDD1D
    for word in (seed & _MASK, seed >> 32 & _MASK, step & _MASK, step >> 32 & _MASK):
        high, low = _mix(high ^ word), _mix(low ^ word)
    return (high << 31) ^ low
