"""Predict once: the logits of a split, saved, and read by every measure after that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from tinlab.augment.policy import Policy
from tinlab.compute import autocast
from tinlab.data.pack import Split
from tinlab.errors import TinlabError
from tinlab.files import write_atomically
from tinlab.ranks import ALONE, Ranks
from tinlab.recipe import Compute
from tinlab.runs import Preprocessing

BATCH_SIZE = 250
"""Images a forward pass; it divides Tiny ImageNet's 10,000, so that no shape is met only once."""


@dataclass(frozen=True)
class Predictions:
    """`logits` float32 (N, C), `labels` int64 (N,) with -1 where unknown, `indices` int64 (N,).

    `indices` are rows of the split. `about` says, in strings, what was predicted: split, pack_digest, step.
    """

    logits: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    about: dict[str, str]

    def save(self, path: Path) -> None:
        """Write safetensors file `path`, atomically."""
        tensors = {"logits": self.logits, "labels": self.labels, "indices": self.indices}
        write_atomically(path, lambda place: save_file(tensors, place, metadata=self.about))

    @staticmethod
    def load(path: Path) -> Predictions:
        """Read what `save` wrote. Raises TinlabError where the file is missing or damaged."""
        try:
            with safe_open(path, framework="np") as file:
                logits, labels, indices = (file.get_tensor(n) for n in ("logits", "labels", "indices"))
                about = dict(file.metadata() or {})
        except (OSError, SafetensorError, KeyError) as error:
            raise TinlabError(
                f"{path} cannot be read ({error}); remove it and run 'tinlab evaluate'"
            ) from error
        if logits.ndim != 2 or not len(logits) == len(labels) == len(indices):
            raise TinlabError(
                f"{path} is damaged (its arrays differ in length); remove it and evaluate again"
            )
        return Predictions(logits, labels, indices, about)


def predict_split(
    model: nn.Module,
    preprocessing: Preprocessing,
    split: Split,
    compute: Compute,
    device: torch.device,
    about: dict[str, str] | None = None,
    ranks: Ranks = ALONE,
) -> Predictions:
    """The logits of every image of `split`, in its order, with `model` in evaluation mode (it stays so).

    Ranks share the batches, none is padded, and all get all logits.
    """
    logits = np.empty((0, 0), np.float32)
    with torch.inference_mode():
        model.eval()
        for start in range(0, len(split), BATCH_SIZE):
            if start // BATCH_SIZE % ranks.count != ranks.rank:
                continue
            images = torch.from_numpy(np.array(split.images[start : start + BATCH_SIZE]))
            found = forward(model, preprocessing, images.to(device), compute).cpu().numpy()
            if not logits.size:
                logits = np.zeros((len(split), found.shape[1]), np.float32)
            logits[start : start + len(found)] = found
    if ranks.count > 1:
        # A rank without a batch does not know how many classes there are. Each row is 0 on all ranks but one.
        width = int(ranks.maximum(torch.tensor([logits.shape[1]], device=device)))
        whole = torch.from_numpy(logits if logits.size else np.zeros((len(split), width), np.float32))
        logits = ranks.sum(whole.to(device)).cpu().numpy()
    return Predictions(
        logits=logits,
        labels=np.array(split.labels),
        indices=np.arange(len(split)),
        about={"split": split.name, "pack_digest": split.pack.digest, **(about or {})},
    )


def forward(model: nn.Module, preprocessing: Preprocessing, images: Tensor, compute: Compute) -> Tensor:
    """uint8 (B, H, W, 3) of the stored size -> logits float32 (B, C), without augmentation."""
    with autocast(compute, images.device):
        return model(normalised(preprocessing, images)).float()


def normalised(preprocessing: Preprocessing, images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) of the stored size -> the network's input, float32 (B, 3, H, W)."""
    mean, std = (torch.tensor(v, device=images.device) for v in (preprocessing.mean, preprocessing.std))
    return Policy((), mean, std, seed=0).normalise(images)
