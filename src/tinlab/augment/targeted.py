"""Another augmentation for the classes that a network finds hardest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tinlab.augment.policy import Policy
from tinlab.data.batches import Batch


class Targeted:
    """`policy`, but for images of some classes, which get what `hard` does instead.

    `classes` are those classes, by index; none to begin with. Mixing is `policy`'s, for all.
    """

    def __init__(self, policy: Policy, hard: Policy, classes: Sequence[int] = ()) -> None:
        self._policy = policy
        self._hard = hard
        self.classes = classes

    @property
    def classes(self) -> Sequence[int]:
        return self._classes

    @classes.setter
    def classes(self, classes: Sequence[int]) -> None:
        self._classes = classes
        self._wanted: Tensor | None = None  # the same, on the device of the batches

    def inputs(self, batch: Batch, size: int) -> tuple[Tensor, Batch]:
        """As Policy.inputs."""
        x = self._policy.apply(batch.images, batch.epochs, batch.samples, size, batch.variants)
        if not self._classes:
            return self._policy.mix(x, batch)
        if self._wanted is None:
            self._wanted = torch.tensor(self._classes, device=batch.labels.device)
        hard = torch.isin(batch.labels, self._wanted)  # (B,)
        if hard.device.type == "cpu":
            rows = hard.nonzero().squeeze(1)  # (K,)
            if len(rows):
                x[rows] = self._hard.apply(batch.images[rows], batch.epochs[rows], batch.samples[rows], size)
        else:
            # Of all, so that the host need not wait to know how many.
            every = self._hard.apply(batch.images, batch.epochs, batch.samples, size)
            x = torch.where(hard[:, None, None, None], every, x)
        return self._policy.mix(x, batch)


def hardest_classes(correct: np.ndarray, labels: np.ndarray, classes: int, share: float) -> list[int]:
    """The `share` of `classes` with the lowest accuracy, rising; at least one.

    `correct` bool (N,) and `labels` int64 (N,). Of equally accurate ones, those with the lower index; a class
    without images is never among them.
    """
    images = np.bincount(labels, minlength=classes)
    right = np.bincount(labels, weights=correct, minlength=classes)
    accuracy = np.where(images > 0, right / np.maximum(images, 1), np.inf)
    count = min(max(1, round(share * classes)), int((images > 0).sum()))
    return sorted(int(c) for c in np.argsort(accuracy, kind="stable")[:count])
