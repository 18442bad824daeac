"""The file of a split's logits: what predicting leaves, and every measure reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tinlab.errors import TinlabError
from tinlab.files import check_regular, write_atomically


@dataclass(frozen=True)
class Predictions:
    """`logits` float32 (N, C), `labels` int64 (N,) with -1 where unknown, `indices` int64 (N,).

    `indices` are rows of the split. `about` says, in strings, what was predicted: split, pack_digest, step,
    and tta, where views of each image were averaged; `logits` are then the logs of the mean probabilities.
    """

    logits: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    about: dict[str, str]

    def save(self, path: Path) -> None:
        """Write safetensors file `path`, atomically."""
        tensors = {"logits": self.logits, "labels": self.labels, "indices": self.indices}

        def write(place: Path) -> None:
            # Not save_file, which makes a temporary file of its own, and a kill would leave it behind.
            place.write_bytes(save(tensors, metadata=self.about))

        write_atomically(path, write)

    @staticmethod
    def load(path: Path) -> Predictions:
        """Read what `save` wrote. Raises TinlabError where the file is missing or damaged."""
        try:
            check_regular(path)
            with safe_open(path, framework="np") as file:
                logits, labels, indices = (file.get_tensor(n) for n in ("logits", "labels", "indices"))
                about = dict(file.metadata() or {})
        # Number formats that safetensors knows and numpy does not are errors of any kind.
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise TinlabError(
                f"{path} cannot be read ({error}); remove it and run 'tinlab evaluate'"
            ) from error
        kinds = (logits.dtype, labels.dtype, indices.dtype) == (np.float32, np.int64, np.int64)
        if not kinds or logits.ndim != 2 or not labels.shape == indices.shape == logits.shape[:1]:
            raise TinlabError(
                f"{path} is damaged (its arrays differ in length or are of a wrong kind); remove it and "
                "evaluate again"
            )
        if len(labels) and not (labels.min() >= -1 and labels.max() < logits.shape[1] and indices.min() >= 0):
            raise TinlabError(
                f"{path} is damaged (it has labels or rows that cannot be); remove it and evaluate again"
            )
        return Predictions(logits, labels, indices, about)
