"""Common corruptions of small images, in five strengths: is a network still right when a picture is noisy,
blurred, snowed on or badly compressed?

The fifteen kinds and their four groups are those of Hendrycks and Dietterich 2019 ("Benchmarking Neural
Network Robustness to Common Corruptions and Perturbations"). The code and the strengths are ours, chosen by
eye for images of 64 pixels: strength 1 is mild, and at 5 most objects can still be made out. Frost and snow
are drawn, where theirs come from photographs and other libraries. So the numbers are not those of ImageNet-C
or Tiny-ImageNet-C, and do not compare with them.

A corrupted image is a function of (seed, corruption, strength, row), whatever batch it is in. Noise comes
from a bank of normal numbers (`tinlab.augment.noise`), of which each image gets its own piece.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tinlab.augment import draws, noise
from tinlab.augment.colour import GREY
from tinlab.augment.filters import blur
from tinlab.errors import TinlabError

STRENGTHS = (1, 2, 3, 4, 5)
GROUPS = ("noise", "blur", "weather", "digital")
VERSION = 1
"""Counts the changes of what a corruption draws, so that saved accuracies of an older one are not read."""

Level = tuple[float, ...]


@dataclass(frozen=True)
class Chance:
    """The draws of one corruption at one strength for some images. Every draw has a `use` of its own."""

    seed: int
    about: str
    samples: Tensor
    """Rows of the split, int64 (B,)."""

    def uniform(self, use: str) -> Tensor:
        """One number in 0..1 an image: float32 (B,)."""
        epochs = torch.zeros_like(self.samples)
        return draws.uniform(self.seed, f"corrupt.{self.about}.{use}", epochs, self.samples)

    def normal(self, use: str, *shape: int) -> Tensor:
        """Standard normal numbers, float32 (B, *shape)."""
        bank = _bank(self.seed, math.prod(shape), self.samples.device)
        return noise.pieces(bank, self.uniform(use), shape)


@dataclass(frozen=True)
class Corruption:
    """`apply(images, level, chance)` maps float32 (B, 3, H, W) in 0..1 to the same shape, before clamping.

    `levels` are its arguments at strengths 1 to 5, whose meaning `levels_are` says. Lengths are in pixels of
    an image of 64, and grow with the image.
    """

    group: str
    levels_are: str
    levels: tuple[Level, Level, Level, Level, Level]
    apply: Callable[[Tensor, Level, Chance], Tensor]


def corrupt(images: Tensor, name: str, strength: int, samples: Tensor, *, seed: int = 0) -> Tensor:
    """uint8 (B, H, W, 3) -> the same shape, corrupted, on the same device.

    `samples` int64 (B,) are the images' rows in their split, which decide what is drawn. Raises TinlabError
    for a corruption or strength that there is not.
    """
    if name not in CORRUPTIONS:
        raise TinlabError(f"there is no corruption '{name}'; there are: {', '.join(CORRUPTIONS)}")
    if strength not in STRENGTHS:
        raise TinlabError(f"there is no strength {strength}; strengths are 1 to {len(STRENGTHS)}")
    found = CORRUPTIONS[name]
    chance = Chance(seed, f"{name}.{strength}", samples.to(images.device))
    x = images.permute(0, 3, 1, 2).to(torch.float32) / 255  # (B, 3, H, W)
    x = found.apply(x.contiguous(), found.levels[strength - 1], chance)
    return (255 * x).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def table_digest() -> str:
    """SHA-256, 12 hex digits, of the strengths and of `VERSION`: what saved accuracies belong to."""
    table = {name: [c.group, c.levels] for name, c in CORRUPTIONS.items()}
    return hashlib.sha256(json.dumps([VERSION, table], sort_keys=True).encode()).hexdigest()[:12]


# Noise


def _gaussian_noise(x: Tensor, level: Level, chance: Chance) -> Tensor:
    return x + level[0] * chance.normal("noise", *x.shape[1:])


def _shot_noise(x: Tensor, level: Level, chance: Chance) -> Tensor:
    """Photons counted: Poisson by Cornish and Fisher's expansion of its quantile, which needs only a normal
    number. Its mean is 3% too high at one photon, and within 1% from four."""
    photons, z = x * level[0], chance.normal("noise", *x.shape[1:])
    counted = photons + photons.sqrt() * z + (z.square() - 1) / 6
    # Where no light falls no photon is counted.
    return torch.where(photons > 0, counted.round().clamp_(min=0), 0) / level[0]


def _impulse_noise(x: Tensor, level: Level, chance: Chance) -> Tensor:
    """Black and white in single colours of single pixels, as a broken sensor gives them."""
    share = torch.full((len(x),), level[0], device=x.device)
    black, white = x.new_zeros(3), x.new_ones(3)
    return noise.salt(x, share, chance.normal("noise", *x.shape[1:]), black, white)


# Blur


def _defocus_blur(x: Tensor, level: Level, chance: Chance) -> Tensor:
    return _filtered(x, _disc(level[0] * _scale(x), x.device).expand(len(x), -1, -1))


def _glass_blur(x: Tensor, level: Level, chance: Chance) -> Tensor:
    """Every pixel comes from a place nearby, as through frosted glass; then a slight blur."""
    spread, sigma = (value * _scale(x) for value in level)
    height, width = x.shape[2:]
    down, right = (spread * chance.normal("places", 2, height, width)).round().to(torch.int64).unbind(1)
    rows = (down + torch.arange(height, device=x.device)[:, None]).clamp(0, height - 1)
    columns = (right + torch.arange(width, device=x.device)).clamp(0, width - 1)
    index = (rows * width + columns).flatten(1)[:, None].expand(-1, x.shape[1], -1)  # (B, 3, H * W)
    moved = x.flatten(2).gather(2, index).view(x.shape)
    return blur(moved, torch.full((len(x),), sigma, device=x.device), sigma)


def _motion_blur(x: Tensor, level: Level, chance: Chance) -> Tensor:
    angle = math.pi * chance.uniform("angle")
    return _filtered(x, _lines(level[0] * _scale(x), angle))


def _zoom_blur(x: Tensor, level: Level, chance: Chance) -> Tensor:
    """The mean of the image and copies of it enlarged by up to `level`, as when the lens zooms."""
    steps = 8
    total = x
    for step in range(1, steps + 1):
        zoom = 1 + (level[0] - 1) * step / steps
        rows, columns = (_enlarging(length, zoom, x.device) for length in x.shape[2:])
        total = total + rows @ x @ columns.T
    return total / (steps + 1)


# Weather


def _snow(x: Tensor, level: Level, chance: Chance) -> Tensor:
    """Paler everywhere, and streaks of flakes that all fall at one angle."""
    pale, share, length = level
    height, width = x.shape[2:]
    grey = torch.einsum("bchw,c->bhw", x, x.new_tensor(GREY))[:, None]
    x = torch.lerp(x, torch.maximum(x, (1.5 * grey + 0.5).clamp(max=1)), pale)
    edge = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * share)))
    fine = (chance.normal("fine", 1, height, width) - edge).clamp(0, 1)
    coarse = (chance.normal("coarse", 1, height // 2, width // 2) - edge).clamp(0, 1)
    coarse = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    # Between 50 and 130 degrees: snow falls, at a slant.
    angle = math.pi * (50 + 80 * chance.uniform("angle")) / 180
    streaks = _filtered(fine + 1.5 * coarse, _lines(length * _scale(x), angle))
    return x + (2.2 * streaks).clamp(max=1)


def _frost(x: Tensor, level: Level, chance: Chance) -> Tensor:
    """Ice that creeps in from the edges in fern-like ridges, over the whole image when strong."""
    height, width = x.shape[2:]
    field = _fractal(chance, "ice", x, persistence=0.75, coarsest=4)
    field = (field - field.mean((2, 3), keepdim=True)) / field.std((2, 3), keepdim=True)
    ridges = (1 - 1.2 * field.abs()).clamp(min=0)  # (B, 1, H, W) highest where the field passes through zero
    down, right = (torch.linspace(-1, 1, length, device=x.device).abs() for length in (height, width))
    edge = torch.maximum(down[:, None], right)  # (H, W) 0 in the middle, 1 at the edge
    cover = (level[0] * (0.25 + 0.75 * edge) * (0.35 + 0.65 * ridges) * 1.6).clamp(max=0.9)
    ice = x.new_tensor((0.78, 0.87, 0.96))[:, None, None] * (0.8 + 0.2 * ridges)
    return torch.lerp(x, ice, cover)


def _fog(x: Tensor, level: Level, chance: Chance) -> Tensor:
    """Light scattered by a cloud that is thicker in some places; the brightest value stays."""
    cloud = _fractal(chance, "cloud", x, persistence=0.6, coarsest=2)
    most = x.amax((1, 2, 3), keepdim=True)
    return (x + level[0] * (0.4 + 0.6 * cloud)) * (most / (most + level[0]))


def _brightness(x: Tensor, level: Level, chance: Chance) -> Tensor:
    """The same light added to every colour: what was bright is washed out by the clamping."""
    return x + level[0]


# Digital


def _contrast(x: Tensor, level: Level, chance: Chance) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return torch.lerp(mean, x, level[0])


def _elastic(x: Tensor, level: Level, chance: Chance) -> Tensor:
    """Every place moved by a smooth field (Simard et al. 2003) of `level` pixels on average, in each axis."""
    amplitude, smooth = level[0] * _scale(x), 4.0 * _scale(x)
    height, width = x.shape[2:]
    sigma = torch.full((len(x),), smooth, device=x.device)
    field = blur(chance.normal("field", 2, height, width), sigma, smooth)
    field *= amplitude * 2 * smooth * math.sqrt(math.pi)  # white noise so blurred has deviation 1 / (2 s √π)
    down, right = field.unbind(1)
    rows = torch.arange(height, device=x.device)[:, None] + down
    columns = torch.arange(width, device=x.device) + right
    places = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], 3)  # (B, H, W, 2)
    return F.grid_sample(x, places, mode="bilinear", padding_mode="reflection", align_corners=False)


def _pixelate(x: Tensor, level: Level, chance: Chance) -> Tensor:
    rows, columns = (_shares(length, max(1, round(level[0] * length)), x.device) for length in x.shape[2:])
    small = rows @ x @ columns.T
    return F.interpolate(small, size=x.shape[2:], mode="nearest-exact")


def _jpeg(x: Tensor, level: Level, chance: Chance) -> Tensor:
    """Written as a JPEG with halved colours, and read back: on the CPU, whatever the images are on."""
    import simplejpeg

    pixels = (255 * x).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    read = [
        simplejpeg.decode_jpeg(
            simplejpeg.encode_jpeg(image, quality=int(level[0]), colorspace="RGB", colorsubsampling="420")
        )
        for image in pixels
    ]
    return torch.from_numpy(np.stack(read)).to(x.device).permute(0, 3, 1, 2).to(torch.float32) / 255


# What they are made of


@lru_cache(maxsize=16)
def _bank(seed: int, longest: int, device: torch.device) -> Tensor:
    return noise.bank(seed, longest).to(device)


def _scale(x: Tensor) -> float:
    """How many pixels stand for one of an image of 64."""
    return x.shape[2] / 64


def _fractal(chance: Chance, use: str, x: Tensor, *, persistence: float, coarsest: int) -> Tensor:
    """Smooth noise of many sizes, float32 (B, 1, H, W), stretched to 0..1 in each image: each octave has
    twice the detail and `persistence` times the height of the one before."""
    total, height, cells = x.new_zeros(len(x), 1, *x.shape[2:]), 1.0, coarsest
    while cells <= max(x.shape[2:]) // 2:
        octave = chance.normal(f"{use}.{cells}", 1, cells + 1, cells + 1)
        total += height * F.interpolate(octave, size=x.shape[2:], mode="bicubic", align_corners=True)
        height, cells = height * persistence, 2 * cells
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return (total - low) / (high - low).clamp(min=1e-6)


def _filtered(x: Tensor, kernels: Tensor) -> Tensor:
    """Each image with its own kernel: (B, C, H, W) and (B, k, k), k odd. Outside lies the mirror image."""
    batch, channels, height, width = x.shape
    side = kernels.shape[1]
    reach = min(side // 2, height - 1, width - 1)
    cut = side // 2 - reach
    kernels = kernels[:, cut : side - cut, cut : side - cut]
    padded = F.pad(x, (reach,) * 4, mode="reflect").reshape(1, batch * channels, height + 2 * reach, -1)
    weights = kernels.repeat_interleave(channels, 0)[:, None]  # (B * C, 1, k, k)
    return F.conv2d(padded, weights, groups=batch * channels).view(x.shape)


def _disc(radius: float, device: torch.device) -> Tensor:
    """A disc of `radius` pixels that sums to 1, its edge smooth: float32 (1, k, k)."""
    reach, parts = math.ceil(radius), 8
    places = (torch.arange((2 * reach + 1) * parts, device=device) + 0.5) / parts - reach - 0.5
    inside = (places[:, None].square() + places.square() <= (radius + 0.5) ** 2).to(torch.float32)
    kernel = F.avg_pool2d(inside[None], parts)
    return kernel / kernel.sum()


def _lines(length: float, angle: Tensor) -> Tensor:
    """Lines of `length` pixels through the middle, at `angle` in radians, (B,): float32 (B, k, k), sums 1."""
    reach = max(1, math.ceil(length / 2))
    points = torch.linspace(-length / 2, length / 2, 4 * reach + 1, device=angle.device)
    pixels = torch.arange(-reach, reach + 1, device=angle.device, dtype=torch.float32)
    across, down = (angle.cos()[:, None] * points, angle.sin()[:, None] * points)  # (B, P)
    by_column = (1 - (across[:, :, None] - pixels).abs()).clamp(min=0)  # (B, P, k)
    by_row = (1 - (down[:, :, None] - pixels).abs()).clamp(min=0)
    kernel = torch.einsum("bpi,bpj->bij", by_row, by_column)
    return kernel / kernel.sum((1, 2), keepdim=True)


def _shares(length: int, cells: int, device: torch.device) -> Tensor:
    """What each pixel of an axis gives to each of fewer, wider cells: (cells, length); rows sum to 1."""
    edges = torch.arange(cells + 1, device=device, dtype=torch.float32) * (length / cells)
    pixels = torch.arange(length, device=device, dtype=torch.float32)
    end, start = torch.minimum(edges[1:, None], pixels + 1), torch.maximum(edges[:-1, None], pixels)
    return (end - start).clamp(min=0) * (cells / length)


def _enlarging(length: int, zoom: float, device: torch.device) -> Tensor:
    """What each input pixel gives to each pixel of an axis enlarged about its middle: (length, length)."""
    pixels = torch.arange(length, device=device, dtype=torch.float32)
    middle = (length - 1) / 2
    from_places = (pixels - middle) / zoom + middle
    return (1 - (from_places[:, None] - pixels).abs()).clamp(min=0)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(
        "noise", "standard deviation, of 0..1", ((0.04,), (0.07,), (0.11,), (0.16,), (0.22,)), _gaussian_noise
    ),
    "shot_noise": Corruption(
        "noise", "photons at full brightness", ((250,), (100,), (50,), (28,), (15,)), _shot_noise
    ),
    "impulse_noise": Corruption(
        "noise", "share of values", ((0.01,), (0.03,), (0.06,), (0.1,), (0.16,)), _impulse_noise
    ),
    "defocus_blur": Corruption(
        "blur", "radius in pixels", ((0.2,), (0.4,), (0.7,), (1.1,), (1.6,)), _defocus_blur
    ),
    "glass_blur": Corruption(
        "blur",
        "standard deviations in pixels: of the places, of the blur",
        ((0.4, 0.3), (0.6, 0.4), (0.8, 0.5), (1.1, 0.6), (1.5, 0.6)),
        _glass_blur,
    ),
    "motion_blur": Corruption(
        "blur", "length in pixels", ((1.2,), (2.2,), (3.5,), (5.0,), (7.0,)), _motion_blur
    ),
    "zoom_blur": Corruption(
        "blur", "largest enlargement", ((1.06,), (1.11,), (1.16,), (1.22,), (1.3,)), _zoom_blur
    ),
    "snow": Corruption(
        "weather",
        "paleness, share of flakes, length of streaks in pixels",
        ((0.1, 0.006, 2.5), (0.2, 0.012, 3.0), (0.28, 0.018, 3.5), (0.36, 0.026, 4.0), (0.45, 0.035, 4.5)),
        _snow,
    ),
    "frost": Corruption(
        "weather", "how much is covered", ((0.14,), (0.26,), (0.4,), (0.54,), (0.7,)), _frost
    ),
    "fog": Corruption(
        "weather", "light of the thickest fog, of 0..1", ((0.2,), (0.4,), (0.7,), (1.1,), (1.7,)), _fog
    ),
    "brightness": Corruption(
        "weather", "light added, of 0..1", ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)), _brightness
    ),
    "contrast": Corruption(
        "digital", "contrast that is left", ((0.75,), (0.55,), (0.4,), (0.28,), (0.18,)), _contrast
    ),
    "elastic": Corruption(
        "digital", "deviation of the places in pixels", ((0.7,), (1.1,), (1.5,), (2.0,), (2.6,)), _elastic
    ),
    "pixelate": Corruption(
        "digital", "side that is left", ((0.9,), (0.75,), (0.6,), (0.45,), (0.32,)), _pixelate
    ),
    "jpeg": Corruption("digital", "quality, of 100", ((50,), (30,), (20,), (14,), (10,)), _jpeg),
}
"""Name -> corruption, group by group."""
