"""What the tests of the augment room share."""

from __future__ import annotations

import numpy as np
import torch

from tinlab.augment.policy import Policy
from tinlab.recipe import operations as ops

NOTHING, ONE = torch.zeros(3), torch.ones(3)

EVERY = (
    ops.Flip(probability=1), ops.Flip(probability=1, axis="up_down"), ops.RandomResizedCrop(), ops.PadCrop(),
    ops.Rotate(), ops.Translate(), ops.Scale(), ops.Shear(slope_y=(-0.1, 0.1)), ops.Perspective(),
    ops.Brightness(), ops.Contrast(), ops.Contrast(pivot="black"), ops.Saturation(), ops.Hue(), ops.Tint(),
    ops.Greyscale(probability=1), ops.Invert(probability=1), ops.Gamma(), ops.Posterise(), ops.Solarise(),
    ops.Equalise(), ops.Autocontrast(), ops.Blur(), ops.Sharpness(), ops.GaussianNoise(),
    ops.GaussianNoise(grey=True), ops.SaltNoise(), ops.Cutout(), ops.Cutout(fill="noise"),
    ops.RandomErasing(probability=1), ops.RandomErasing(probability=1, fill=(9, 8, 7)),
)  # fmt: skip
"""Every operation on every image."""

NEUTRAL = (
    ops.RandomResizedCrop(area=(1, 1), aspect=(1, 1)), ops.PadCrop(padding_pixels=0),
    ops.Rotate(degrees=(0, 0)), ops.Translate(right_fraction=(0, 0), down_fraction=(0, 0)),
    ops.Scale(factor=(1, 1)), ops.Shear(slope_x=(0, 0)), ops.Perspective(corner_fraction=(0, 0)),
    ops.Brightness(factor=(1, 1)), ops.Contrast(factor=(1, 1)), ops.Saturation(factor=(1, 1)),
    ops.Hue(degrees=(0, 0)), ops.Tint(levels=(0, 0)),
    ops.Gamma(power=(1, 1)), ops.Posterise(bits=(8, 8)), ops.Solarise(threshold_levels=(256, 256)),
    ops.Blur(sigma_pixels=(0, 0)), ops.Sharpness(factor=(1, 1)), ops.GaussianNoise(deviation_levels=(0, 0)),
    ops.SaltNoise(share=(0, 0)), ops.Cutout(side_fraction=(0, 0)),
    ops.RandomErasing(area=(0, 0), probability=1),
)  # fmt: skip
"""Every operation that has a strength, at the strength that changes nothing."""


def images(count: int, height: int = 64, width: int = 64, seed: int = 0, smooth: bool = False):
    """uint8 (count, height, width, 3): noise, or gentle hills."""
    dice = np.random.default_rng(seed)
    if not smooth:
        return torch.from_numpy(dice.integers(0, 256, (count, height, width, 3), dtype=np.uint8))
    coarse = torch.from_numpy(dice.uniform(0, 255, (count, 3, 6, 6)).astype(np.float32))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    return fine.permute(0, 2, 3, 1).clamp(0, 255).round().to(torch.uint8).contiguous()


def apply(operations, x, size=None, epoch=0, seed=0, std=None, samples=None):
    """The policy of `operations` on images; values are 0..255 where `std` is left out."""
    policy = Policy(operations, NOTHING, ONE / 255 if std is None else std, seed)
    samples = torch.arange(len(x)) if samples is None else samples
    return policy.apply(x, torch.full_like(samples, epoch), samples, size or x.shape[1])


def planes(x):
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W)."""
    return x.permute(0, 3, 1, 2).float()
