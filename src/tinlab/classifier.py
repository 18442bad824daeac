"""A trained network with its preprocessing and its classes: images in, words out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tinlab import models, runs
from tinlab.compute import place, resolve_device
from tinlab.data.decode import ImageError, decode_into, square
from tinlab.errors import TinlabError
from tinlab.evaluation.predict import BATCH_SIZE, forward, normalised
from tinlab.models.structure import smaller
from tinlab.runs import Run
from tinlab.training import checkpoint

Image = Any
"""A PIL image, a uint8 array (H, W, 3) or (H, W), or a path to an image file."""


@dataclass(frozen=True)
class Guess:
    """One class that an image may show. `probability` is 0..1."""

    id: str
    words: str
    probability: float


class Classifier:
    """`predict(images)` gives the likeliest classes of each image. Made by `tinlab.load(run)`."""

    def __init__(self, run: Run, model: nn.Module, device: torch.device) -> None:
        self.run = run
        self.model = model
        self.device = device
        self.classes = run.classes

    def predict(self, images: Image | Iterable[Image], top: int = 5) -> list[list[Guess]]:
        """The `top` likeliest classes of each image, likeliest first.

        Images may have any size and mode; they are resized as the training images were. Raises TinlabError
        for something that is no image.
        """
        if isinstance(images, str | Path) or hasattr(images, "convert") or _is_one_array(images):
            images = [images]
        return [self.guesses(row, top) for row in self.probabilities(images)]

    def guesses(self, probabilities: np.ndarray, top: int = 5) -> list[Guess]:
        """The `top` likeliest classes by their `probabilities`, (C,), likeliest first."""
        best = np.argsort(-probabilities, kind="stable")[:top]
        return [Guess(self.classes[i].id, self.classes[i].words, float(probabilities[i])) for i in best]

    def probabilities(self, images: Iterable[Image]) -> np.ndarray:
        """Softmax over the classes, float32 (N, C)."""
        size = self.run.preprocessing.image_size
        arrays = [pixels(image, size) for image in images]
        rows = [
            self.logits(torch.from_numpy(np.stack(arrays[start : start + BATCH_SIZE]))).softmax(dim=1)
            for start in range(0, len(arrays), BATCH_SIZE)
        ]
        return torch.cat(rows).cpu().numpy() if rows else np.empty((0, len(self.classes)), np.float32)

    def inputs(self, images: Tensor) -> Tensor:
        """uint8 (B, size, size, 3) -> the network's input, float32 (B, 3, size, size), on its device."""
        return normalised(self.run.preprocessing, images.to(self.device))

    def logits(self, images: Tensor) -> Tensor:
        """uint8 (B, size, size, 3) -> float32 (B, C)."""
        with torch.inference_mode():
            return forward(
                self.model, self.run.preprocessing, images.to(self.device), self.run.recipe.compute
            )


def load(run: str | Path, device: str = "auto") -> Classifier:
    """The classifier of run folder `run`, from its last checkpoint, in evaluation mode.

    Where the recipe keeps a moving average of the weights, it is that.

    Raises TinlabError where there is no run, or no checkpoint yet.
    """
    opened = runs.open_run(run)
    last = checkpoint.latest(opened.path)
    if last is None:
        raise TinlabError(
            f"{opened.path} has no checkpoint yet; go on with: tinlab train --resume {opened.path}"
        )
    chosen = resolve_device(device)
    compute = opened.recipe.compute
    size = opened.preprocessing.image_size
    state = checkpoint.read_state(last)
    recipe = opened.recipe.phase(state.stage)
    model = models.build(recipe.model, len(opened.classes), image_size=size)
    if state.structure is not None:
        smaller(model, state.structure, image_size=size)
    model = place(model, compute, chosen)
    averaged = recipe.optimizer.ema_decay is not None
    checkpoint.load_measured(last, model, chosen, averaged)
    return Classifier(opened, model.eval(), chosen)


def _is_one_array(images: Image) -> bool:
    return isinstance(images, np.ndarray) and (
        images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (3, 4))
    )


def pixels(image: Image, size: int) -> np.ndarray:
    """uint8 (size, size, 3), made as a pack's images are. Raises TinlabError that names what is wrong."""
    import PIL.Image

    try:
        if isinstance(image, str | Path):
            made = np.empty((size, size, 3), np.uint8)
            decode_into(Path(image).read_bytes(), made)
            return made
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8:
                raise ImageError(f"it is an array of {image.dtype}, and uint8 values of 0 to 255 are read")
            image = PIL.Image.fromarray(image)
        if not isinstance(image, PIL.Image.Image):
            raise ImageError("it is neither a path, a PIL image nor an array")
        return square(image, size)
    except OSError as error:
        raise TinlabError(f"{image} cannot be read: {error.strerror or error}") from error
    except (ImageError, TypeError, ValueError) as error:
        name = image if isinstance(image, str | Path) else f"this {type(image).__name__}"
        raise TinlabError(f"{name} cannot be used as an image: {error}") from error
