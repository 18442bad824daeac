"""Random numbers: a counter hashed with an image's key, so that they depend on nothing but the image."""

from __future__ import annotations

import numpy as np


def mix(values: np.ndarray) -> np.ndarray:
    """Scramble uint64 values (the finaliser of the SplitMix64 generator)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Dice:
    """Random numbers for a batch, (B,) a throw; the n-th depends on an image's key and n alone."""

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys
        self.throws = 0

    def bits(self) -> np.ndarray:
        self.throws += 1
        return mix(self.keys + np.uint64(self.throws * 0xD1342543DE82EF95 % 2**64))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        return (low + (high - low) * ((self.bits() >> np.uint64(40)) / 2.0**24)).astype(np.float32)

    def bell(self, spread: float) -> np.ndarray:
        """Roughly normal, mean 0, standard deviation `spread`, never beyond 2.5 times it."""
        return spread * (self.uniform(-1, 1) + self.uniform(-1, 1) + self.uniform(-1, 1))

    def chance(self, probability: float) -> np.ndarray:
        return self.uniform() < probability

    def below(self, count: int) -> np.ndarray:
        """Whole numbers from 0 to `count` - 1."""
        return (self.bits() >> np.uint64(33)).astype(np.int64) % count
