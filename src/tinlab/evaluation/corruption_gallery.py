"""What the corruptions do, to look at: a row a corruption, its five strengths beside each image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tinlab.data.grid import grid
from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.evaluation.corruptions import CORRUPTIONS, STRENGTHS, corrupt

if TYPE_CHECKING:
    from PIL import Image


def corruption_gallery(
    pack: Pack, *, split: str = "val", images: int = 2, seed: int = 0, scale: int = 2
) -> Image.Image:
    """A page of `images` images side by side, drawn with `seed`: each as stored, then at strengths 1 to 5, in
    a row for each corruption.

    Raises TinlabError where the pack lacks the split, it is empty, or `images` is below 1.
    """
    if images < 1:
        raise TinlabError(f"images is {images}; give 1 or more")
    rows = pack.split(split)
    if not len(rows):
        raise TinlabError(f"{pack.path} has no images in {split}; choose another split")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:images])
    stored, samples = torch.from_numpy(np.array(rows.images[chosen])), torch.from_numpy(chosen)
    tiles, captions = [], []
    for name in CORRUPTIONS:
        made = [stored, *(corrupt(stored, name, strength, samples) for strength in STRENGTHS)]
        tiles.append(torch.stack(made, 1).flatten(0, 1))  # (B * 6, H, W, 3)
        captions += [name.replace("_", " "), *map(str, STRENGTHS)] * len(chosen)
    return grid(
        torch.cat(tiles).numpy(),
        captions,
        columns=len(chosen) * (1 + len(STRENGTHS)),
        scale=scale,
        title=f"common corruptions, strengths 1 to 5 · {split}",
    )
