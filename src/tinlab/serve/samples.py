"""Images of val to try."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tinlab.classifier import Classifier
from tinlab.data.pack import UNLABELLED, ClassInfo, Pack, Split
from tinlab.data.places import open_data
from tinlab.errors import TinlabError

SPLIT = "val"


class Samples:
    """Some rows of a pack's val. `split` is None where there is no pack, and then it holds no image."""

    def __init__(self, split: Split | None) -> None:
        self.split = split

    def __len__(self) -> int:
        return 0 if self.split is None else len(self.split)

    def drawn(self, count: int, seed: int) -> list[int]:
        """`count` different rows, the same for the same `seed`; fewer where there are fewer."""
        draw = np.random.default_rng(seed).permutation(len(self))[:count]
        return [int(row) for row in draw]

    def label(self, row: int) -> ClassInfo | None:
        """What row `row` shows, where that is known. Raises IndexError."""
        assert self.split is not None
        label = int(self.split.labels[row])
        return None if label == UNLABELLED else self.split.pack.info.classes[label]

    def image(self, row: int) -> np.ndarray:
        """uint8 (size, size, 3). Raises IndexError where there is no such row."""
        if self.split is None or not 0 <= row < len(self):
            raise IndexError(row)
        return np.array(self.split.images[row])


def find_samples(classifiers: Iterable[Classifier], data: str | Path | None = None) -> Samples:
    """Val of the stated `data`, or else of the first run's pack that is still there as it was packed.

    Raises TinlabError only where stated data cannot be opened, or has no val.
    """
    if data is not None:
        return _sound(open_data(data))
    for one in classifiers:
        try:
            return _sound(Pack.open(one.run.pack))
        except TinlabError:
            continue
    return Samples(None)


def _sound(pack: Pack) -> Samples:
    split = pack.split(SPLIT)
    split.verify_once()
    return Samples(split)
