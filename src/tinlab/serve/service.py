"""Networks by name, behind one queue."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tinlab import classifier
from tinlab.classifier import Classifier
from tinlab.errors import TinlabError
from tinlab.explain import attribution
from tinlab.serve.batcher import Batcher, Lane
from tinlab.serve.limits import Limits

Method = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, float32 (B, 3, H, W), int64 (B,)) -> float32 (B, H, W)."""

METHODS: dict[str, Method] = {
    name: attribution.METHODS[name].attribute
    for name in ("saliency", "smoothgrad", "integrated_gradients", "grad_cam", "occlusion")
}
"""How /explain can explain: the first is meant where none is named."""

MAX_EXPLAINED = 8
"""Images of one explaining pass: it keeps its activations, and some methods multiply their inputs."""

Piece = tuple[np.ndarray, int | None]
"""An image to explain, uint8 (size, size, 3), and a class's number, or None for the likeliest."""


@dataclass(frozen=True)
class Explanation:
    """`map` is float32 (size, size), for class number `target` of probability 0..1."""

    map: np.ndarray
    target: int
    probability: float


class Service:
    """What the API asks: `classify_lane` and `explain_lane` name the lanes of `batcher`.

    `models` are classifiers by the name that they are served under, `methods` attribution functions by name.
    """

    def __init__(
        self,
        models: Mapping[str, Classifier],
        limits: Limits | None = None,
        methods: Mapping[str, Method] | None = None,
    ) -> None:
        self.models = dict(models)
        self.limits = limits or Limits()
        self.methods = dict(METHODS if methods is None else methods)
        lanes: dict[Hashable, Lane] = {}
        for name, one in self.models.items():
            lanes[self.classify_lane(name)] = Lane(_classifying(one), self.limits.max_batch)
            for method in self.methods:
                work = _explaining(one, self.methods[method])
                lanes[self.explain_lane(name, method)] = Lane(work, min(self.limits.max_batch, MAX_EXPLAINED))
        self.batcher = Batcher(
            lanes,
            # The largest request that is allowed fits into an empty queue, however many networks there are.
            capacity=max(self.limits.max_queue, self.limits.max_files * len(self.models)),
            max_wait_seconds=self.limits.max_wait_ms / 1000,
        )

    @staticmethod
    def classify_lane(model: str) -> Hashable:
        """Takes uint8 (size, size, 3), answers float32 (C,): probabilities."""
        return ("classify", model)

    @staticmethod
    def explain_lane(model: str, method: str) -> Hashable:
        """Takes uint8 (size, size, 3) and a class's number or None, for the likeliest; an Explanation."""
        return ("explain", model, method)

    def start(self) -> None:
        """Run every network once, so that no visitor waits for that, and begin to take work."""
        # It brings matplotlib, which reads and writes files of its own: here, and not for a request.
        importlib.import_module("captum.attr")
        for one in self.models.values():
            size = one.run.preprocessing.image_size
            one.logits(torch.zeros(1, size, size, 3, dtype=torch.uint8))
        self.batcher.start()

    def close(self) -> None:
        self.batcher.close(self.limits.grace_seconds)


def load(runs: Sequence[str | Path], device: str = "auto") -> dict[str, Classifier]:
    """The classifiers of run folders `runs`, by name: the recipe's, or the folder's where recipes repeat.

    Raises TinlabError for a run that cannot be loaded, or that is given twice.
    """
    places = [Path(run).resolve() for run in runs]
    if not places:
        raise TinlabError("no run to serve; name a run folder, 'tinlab runs' lists those there are")
    if twice := [place for place, times in Counter(places).items() if times > 1]:
        raise TinlabError(f"{twice[0]} is given twice; name each run once")
    loaded = [classifier.load(run, device=device) for run in runs]
    recipes = [one.run.recipe.name for one in loaded]
    names = recipes
    if len(set(names)) < len(names):
        folders = [place.name for place in places]
        names = [f if recipes.count(r) > 1 else r for r, f in zip(recipes, folders, strict=True)]
    if len(set(names)) < len(names):  # folders of one name in several places
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return dict(zip(names, loaded, strict=True))


def _classifying(one: Classifier) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    def work(images: list[np.ndarray]) -> list[np.ndarray]:
        return list(one.logits(torch.from_numpy(np.stack(images))).softmax(dim=1).cpu().numpy())

    return work


def _explaining(one: Classifier, method: Method) -> Callable[[list[Piece]], list[Explanation]]:
    def work(pieces: list[Piece]) -> list[Explanation]:
        images = torch.from_numpy(np.stack([image for image, _ in pieces]))  # (B, size, size, 3)
        probabilities = one.logits(images).softmax(dim=1).cpu()
        likeliest = probabilities.argmax(dim=1).tolist()
        targets = [likeliest[i] if target is None else target for i, (_, target) in enumerate(pieces)]
        inputs = one.inputs(images)
        maps = method(one.model, inputs, torch.tensor(targets, device=inputs.device))
        maps = attribution.at_size(maps, images.shape[1])  # (B, size, size)
        return [
            Explanation(map.numpy(), target, float(row[target]))
            for map, target, row in zip(maps.detach().float().cpu(), targets, probabilities, strict=True)
        ]

    return work
