"""What a policy does, to look at: a row an image, its transforms named under each picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tinlab.augment.policy import Policy
from tinlab.augment.strengths import Drawn
from tinlab.data.batches import Batch
from tinlab.data.grid import MOST_PIXELS, grid
from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.recipe import Operation
from tinlab.recipe import operations as ops

if TYPE_CHECKING:
    from PIL import Image


_SIDE = 192
"""About how many pixels of the page a picture is wide, so that the longest names fit beneath it."""


def gallery(
    operations: Sequence[Operation],
    pack: Pack,
    *,
    split: str = "train",
    images: int = 8,
    columns: int = 8,
    size: int | None = None,
    seed: int = 0,
    title: str = "augmentation",
) -> Image.Image:
    """A page of `images` rows: the stored image with its class, then `columns` - 1 passes over it.

    Pictures are `size` pixels a side, by default as stored. Images and strengths are drawn with `seed`. Where
    the policy makes fixed copies, the columns are the copies. Raises TinlabError where the pack lacks the
    split, or a number is too small.
    """
    rows = pack.split(split)
    for name, value, least in (("images", images, 1), ("columns", columns, 2), ("size", size or 8, 8)):
        if value < least:
            raise TinlabError(f"{name} is {value}; give {least} or more")
    if not len(rows):
        raise TinlabError(f"{pack.path} has no images in {split}; choose another split")
    if min(images, len(rows)) * columns * (size or pack.info.image_size) ** 2 > MOST_PIXELS:
        raise TinlabError(
            f"{columns} columns of pictures are beyond {MOST_PIXELS // 10**6} million pixels; give fewer "
            "images or columns"
        )
    chosen = np.random.default_rng(seed).permutation(len(rows))[:images]
    stored = torch.from_numpy(np.array(rows.images[chosen]))
    words = [_class_words(pack, int(label)) for label in rows.labels[chosen]]
    made, named = pictures(
        operations, stored, torch.from_numpy(chosen), columns - 1, size or stored.shape[1], pack, seed
    )
    # The stored images are shown at the size of the others.
    plain, _ = pictures((), stored, torch.from_numpy(chosen), 1, size or stored.shape[1], pack, seed)
    shown = np.concatenate([plain[:, :1], made], 1).reshape(-1, *made.shape[2:])
    captions = [text for word, row in zip(words, named, strict=True) for text in (word, *row)]
    scale = max(1, round(_SIDE / shown.shape[1]))
    return grid(
        shown, captions, columns=1 + made.shape[1], scale=scale, title=f"{title} · {split}", caption_lines=6
    )


def pictures(
    operations: Sequence[Operation],
    images: Tensor,
    samples: Tensor,
    passes: int,
    size: int,
    pack: Pack,
    seed: int,
) -> tuple[np.ndarray, list[list[str]]]:
    """The images in `passes` passes, uint8 (B, passes, size, size, 3), and what was done to each."""
    mean = torch.tensor(pack.moments()[0], dtype=torch.float32)
    policy = Policy(operations, mean, torch.ones(3), seed)
    copies = sum(len(o.operations) for o in operations if isinstance(o, ops.FixedCopies))
    made, named = [], []
    for number in range(min(passes, copies) if copies else passes):
        variants = torch.full_like(samples, number + 1) if copies else None
        epochs = torch.full_like(samples, number)
        batch = Batch(images, torch.zeros_like(samples), samples, epochs, variants)
        x, mixed = policy.inputs(batch, size)
        levels = 255 * (x.permute(0, 2, 3, 1) + mean)  # (B, size, size, 3)
        made.append(levels.round().clamp(0, 255).to(torch.uint8).numpy())
        drawn = policy.draw(epochs, samples, variants)
        column = [", ".join(words(drawn, n)) or "unchanged" for n in range(len(images))]
        if mixed.weights is not None:
            shares = mixed.weights.tolist()
            column = [f"{text}, {100 * share:.0f}% of it" for text, share in zip(column, shares, strict=True)]
        named.append(column)
    return np.stack(made, 1), [list(row) for row in zip(*named, strict=True)]


def words(drawn: Sequence[Drawn], n: int) -> list[str]:
    """What was done to image `n`, in few words each; what changes nothing is left out."""
    said = []
    for change in drawn:
        if change.active is None or bool(change.active[n]):
            said.append(_words(change, {name: float(value[n]) for name, value in change.values.items()}))
    return said


def _words(change: Drawn, of: dict[str, float]) -> str:
    match change.operation:
        case ops.Flip(axis=axis):
            return "flip" if axis == "left_right" else "flip up-down"
        case ops.RandomResizedCrop():
            aspect = math.exp(of["aspect"])
            return f"crop {100 * of['area']:.0f}%" + (f" {aspect:.2f}:1" if abs(aspect - 1) > 5e-3 else "")
        case ops.PadCrop():
            return f"shift {of['right']:+.0f} {of['down']:+.0f} px"
        case ops.Translate():
            return f"shift {100 * of['right']:+.0f}% {100 * of['down']:+.0f}%"
        case ops.Rotate() | ops.Hue():
            return f"{change.operation.kind} {of['degrees']:+.0f}°"
        case ops.Shear():
            slopes = [f"{name[-1]} {of[name]:+.2f}" for name in ("slope_x", "slope_y") if of[name]]
            return " ".join(["shear", *slopes])
        case ops.Perspective():
            return f"perspective {100 * max(of.values()):.0f}%"
        case ops.Tint():
            return "tint " + " ".join(f"{of[name]:+.0f}" for name in ("red", "green", "blue"))
        case ops.Blur():
            return f"blur {of['sigma']:.1f} px"
        case ops.GaussianNoise():
            return f"noise {of['deviation']:.0f}"
        case ops.SaltNoise():
            return f"salt {100 * of['share']:.1f}%"
        case ops.Cutout():
            return f"cutout {100 * of['side']:.0f}%"
        case ops.RandomErasing():
            return f"erasing {100 * of['area']:.0f}%"
    kind = change.operation.kind.replace("_", " ")
    return " ".join([kind, *(f"{value:.3g}" for value in of.values())])


def _class_words(pack: Pack, label: int) -> str:
    if label < 0:
        return "unlabelled"
    info = pack.info.classes[label]
    return info.words.partition(",")[0].strip() or info.id
