"""Predict once: the logits of a split, saved, and read by every measure after that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinlab.augment.policy import Policy
from tinlab.compute import autocast
from tinlab.data.pack import Split
from tinlab.evaluation import tta as test_time
from tinlab.evaluation.logits import Predictions
from tinlab.ranks import ALONE, Ranks
from tinlab.recipe import Compute
from tinlab.runs import Preprocessing

BATCH_SIZE = 250
"""Images a forward pass; it divides Tiny ImageNet's 10,000, so that no shape is met only once."""

Progress = Callable[[int, int], None]
"""Told (images done, images in all)."""


def predict_split(
    model: nn.Module,
    preprocessing: Preprocessing,
    split: Split,
    compute: Compute,
    device: torch.device,
    about: dict[str, str] | None = None,
    *,
    tta: str | None = None,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Predictions:
    """The logits of every image of `split`, in its order, with `model` in evaluation mode (it stays so).

    `tta` averages the probabilities over the views that `tinlab.evaluation.tta` has under this name. Ranks
    share the work, and all get all logits.
    """
    model.eval()

    def classify(images: Tensor) -> Tensor:
        return forward(model, preprocessing, images, compute)

    def of_batch(images: Tensor, _: Tensor) -> Tensor:
        return classify(images) if tta is None else test_time.averaged(classify, images, tta)

    about = {"split": split.name, "pack_digest": split.pack.digest, **(about or {})}
    return Predictions(
        logits=logits_of(of_batch, split, device, progress=progress, ranks=ranks),
        labels=np.array(split.labels),
        indices=np.arange(len(split)),
        about=about if tta is None else {**about, "tta": tta},
    )


def logits_of(
    classify: Callable[[Tensor, Tensor], Tensor],
    split: Split,
    device: torch.device,
    *,
    rows: np.ndarray | None = None,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> np.ndarray:
    """What `classify` makes of the images of `split`: float32 (N, C).

    It is given images, uint8 (B, H, W, 3) on `device`, and their rows, int64 (B,). `rows`, rising, chooses
    some of them; None: all. Ranks share the batches, none is padded, and all get all logits.
    """
    rows = np.arange(len(split)) if rows is None else rows
    logits = np.empty((0, 0), np.float32)
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH_SIZE):
            if start // BATCH_SIZE % ranks.count != ranks.rank:
                continue
            some = rows[start : start + BATCH_SIZE]
            images = torch.from_numpy(np.array(split.images[some])).to(device)
            found = classify(images, torch.from_numpy(some).to(device)).cpu().numpy()
            if not logits.size:
                logits = np.zeros((len(rows), found.shape[1]), np.float32)
            logits[start : start + len(found)] = found
            if progress is not None:
                progress(start + len(some), len(rows))
    if ranks.count == 1:
        return logits
    # A rank without a batch does not know how many classes there are. Each row is 0 on all ranks but one.
    width = int(ranks.maximum(torch.tensor([logits.shape[1]], device=device)))
    whole = torch.from_numpy(logits if logits.size else np.zeros((len(rows), width), np.float32))
    return ranks.sum(whole.to(device)).cpu().numpy()


def forward(model: nn.Module, preprocessing: Preprocessing, images: Tensor, compute: Compute) -> Tensor:
    """uint8 (B, H, W, 3) of the stored size -> logits float32 (B, C), without augmentation."""
    with autocast(compute, images.device):
        return model(normalised(preprocessing, images)).float()


def normalised(preprocessing: Preprocessing, images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) of the stored size -> the network's input, float32 (B, 3, size, size)."""
    mean, std = (torch.tensor(v, device=images.device) for v in (preprocessing.mean, preprocessing.std))
    return at_network_size(preprocessing, Policy((), mean, std, seed=0).normalise(images))


def at_network_size(preprocessing: Preprocessing, x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, size, size), as the network sees it: antialiased, as training's crops are."""
    size = preprocessing.network_size
    if x.shape[2] == size:
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
