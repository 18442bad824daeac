"""From a pack's rows to shuffled batches, read by index: no worker processes, nothing to wind forward.

Training images come as one endless stream: permutation after permutation of the training rows, cut into
batches of one size. Which images step s holds is a pure function of (seed, s).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinlab.data.pack import Split
from tinlab.errors import TinlabError


@dataclass(frozen=True)
class Batch:
    """`images` uint8 (B, H, W, 3), `labels`, `samples` (row in the split) and `epochs` int64 (B,).

    `variants` int64 (B,) says which fixed copy of its row an image is, from 1, or 0 for the row itself; None:
    there are no copies. Mixed images have a second label each, `others` int64 (B,), and the share of the
    first one, `weights` float32 (B,).
    """

    images: Tensor
    labels: Tensor
    samples: Tensor
    epochs: Tensor
    variants: Tensor | None = None
    others: Tensor | None = None
    weights: Tensor | None = None


class Batches:
    """The endless stream of training batches over some rows of a split.

    The images stay memory-mapped, or lie on the device where `resident` says so (None: where that is CUDA);
    a batch is then put together there, and the host neither waits for the device nor copies anything but a
    permutation a pass. A row may be there several times, as fixed copies that `variants`, int64 and as long
    as `rows`, tells apart. Of several ranks each gets the images at the places `shard` of every batch. The
    passes are counted from `first_epoch`, which is where a stage of a training goes on counting.
    """

    def __init__(
        self,
        split: Split,
        rows: np.ndarray,
        batch_size: int,
        seed: int,
        device: torch.device,
        variants: np.ndarray | None = None,
        *,
        shard: np.ndarray | None = None,
        first_epoch: int = 0,
        resident: bool | None = None,
    ) -> None:
        if len(rows) == 0:
            raise TinlabError(f"{split.pack.path} has no images in {split.name} to train on")
        self.rows = rows
        self.variants = variants
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        self.first_epoch = first_epoch
        self._shard = np.arange(batch_size) if shard is None else shard
        self._images = split.images
        self._labels = split.labels
        self._orders: dict[int, np.ndarray] = {}
        self._resident = None
        if device.type == "cuda" if resident is None else resident:
            self._resident = _Resident(self, split)

    def at(self, step: int) -> Batch:
        """The batch of step `step`, counted from 0."""
        if self._resident is not None:
            return self._resident.at(step)
        places = step * self.batch_size + self._shard
        epochs, places = np.divmod(places, len(self.rows))
        epochs += self.first_epoch
        chosen = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = self.order(int(epoch))[places[here]]
        samples = self.rows[chosen]
        return Batch(
            images=torch.from_numpy(self._images[samples]).to(self.device),  # (B, H, W, 3)
            labels=torch.from_numpy(self._labels[samples]).to(self.device),
            samples=torch.from_numpy(samples).to(self.device),
            epochs=torch.from_numpy(epochs).to(self.device),
            variants=None
            if self.variants is None
            else torch.from_numpy(self.variants[chosen]).to(self.device),
        )

    @property
    def shard(self) -> np.ndarray:
        """Which places of every batch are this rank's."""
        return self._shard

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of pass `epoch`; the last two are kept, since a batch can span both."""
        if epoch not in self._orders:
            key = np.array([self.seed, epoch], np.uint64)
            generator = np.random.Generator(np.random.Philox(key=key))
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = generator.permutation(len(self.rows))
        return self._orders[epoch]


class _Resident:
    """The same stream, put together on the device that the images lie on."""

    def __init__(self, batches: Batches, split: Split) -> None:
        self._batches = batches
        self._images = torch.from_numpy(np.array(split.images)).to(batches.device)  # (N, H, W, 3)
        self._labels = self._moved(np.array(split.labels))
        self._rows = self._moved(batches.rows)
        self._variants = None if batches.variants is None else self._moved(batches.variants)
        self._shard = self._moved(batches.shard)
        self._orders: dict[int, Tensor] = {}

    def at(self, step: int) -> Batch:
        batches, count = self._batches, len(self._batches.rows)
        begin = step * batches.batch_size
        first, last = ((begin + place) // count for place in (0, batches.batch_size - 1))
        orders = [self._order(epoch + batches.first_epoch) for epoch in range(first, last + 1)]
        places = self._shard + begin  # (B,)
        chosen = (orders[0] if first == last else torch.cat(orders))[places - first * count]
        samples = self._rows[chosen]
        return Batch(
            images=self._images[samples],  # (B, H, W, 3)
            labels=self._labels[samples],
            samples=samples,
            epochs=places.div(count, rounding_mode="floor") + batches.first_epoch,
            variants=None if self._variants is None else self._variants[chosen],
        )

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = self._moved(self._batches.order(epoch))
        return self._orders[epoch]

    def _moved(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        if self._batches.device.type == "cuda":
            tensor = tensor.pin_memory()  # a copy from other memory would be waited for
        return tensor.to(self._batches.device, non_blocking=True)


def chosen_rows(split: Split, images_per_class: int | None = None, images: int | None = None) -> np.ndarray:
    """The rows of `split` to train on, int64 (N,), rising.

    All of them; or the first `images_per_class` of each class; or `images` in all: the first of every class,
    then the second of every class, and so on, in the order of the labels. Raises TinlabError where the split
    has no labels.
    """
    if not split.labelled:
        raise TinlabError(f"{split.pack.path} has no labels in {split.name}, so it cannot be trained on")
    order = np.argsort(split.labels, kind="stable")
    labels = split.labels[order]
    rank = np.arange(len(labels)) - np.searchsorted(labels, labels)  # (N,) place inside the class
    if images_per_class is not None:
        order = order[rank < images_per_class]
    elif images is not None:
        order = order[np.lexsort((labels, rank))][:images]
    return np.sort(order)
