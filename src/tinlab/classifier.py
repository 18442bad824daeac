"""A trained network with its preprocessing and its classes: images in, words out."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tinlab import models, runs
from tinlab.compute import place, resolve_device
from tinlab.data.given import Guess, Image, guesses, several, squares
from tinlab.errors import TinlabError
from tinlab.evaluation.predict import BATCH_SIZE, forward, normalised
from tinlab.models.structure import smaller
from tinlab.runs import Run
from tinlab.training import checkpoint

__all__ = ["Classifier", "Guess", "Image", "load"]


class Classifier:
    """`predict(images)` gives the likeliest classes of each image. Made by `tinlab.load(run)`.

    `step` is that of the checkpoint.
    """

    def __init__(self, run: Run, model: nn.Module, device: torch.device, step: int) -> None:
        self.run = run
        self.step = step
        self.model = model
        self.device = device
        self.classes = run.classes

    def predict(self, images: Image | Iterable[Image], top: int = 5) -> list[list[Guess]]:
        """The `top` likeliest classes of each image, likeliest first.

        Images may have any size and mode; they are resized as the training images were. Raises TinlabError
        for something that is no image.
        """
        return guesses(self.probabilities(several(images)), self.classes, top)

    def probabilities(self, images: Iterable[Image]) -> np.ndarray:
        """Softmax over the classes, float32 (N, C)."""
        pixels = torch.from_numpy(squares(images, self.run.preprocessing.image_size))
        rows = [
            self.logits(pixels[start : start + BATCH_SIZE]).softmax(dim=1)
            for start in range(0, len(pixels), BATCH_SIZE)
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
    chosen = resolve_device(device)
    while True:
        last = checkpoint.latest(opened.path)
        if last is None:
            raise TinlabError(
                f"{opened.path} has no checkpoint yet; go on with: tinlab train --resume "
                f"{shlex.quote(str(opened.path))}"
            )
        try:
            return _at(opened, last, chosen)
        except TinlabError:
            if checkpoint.latest(opened.path) == last:
                raise
            # A training that goes on has saved a newer one meanwhile, and removed this one.


def _at(opened: Run, last: Path, chosen: torch.device) -> Classifier:
    """The classifier of run `opened` at its checkpoint `last`."""
    compute = opened.recipe.compute
    size = opened.preprocessing.network_size
    state = checkpoint.read_state(last)
    recipe = opened.recipe.phase(state.stage)
    model = models.build(recipe.model, len(opened.classes), image_size=size)
    if state.structure is not None:
        smaller(model, state.structure, image_size=size)
    model = place(model, compute, chosen)
    averaged = recipe.optimizer.ema_decay is not None
    checkpoint.load_measured(last, model, chosen, averaged)
    return Classifier(opened, model.eval(), chosen, checkpoint.step_of(last))
