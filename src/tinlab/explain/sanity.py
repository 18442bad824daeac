"""Whether a map depends on what the network has learned: Adebayo et al., "Sanity Checks for Saliency Maps",
NeurIPS 2018, section 4.1, cascading randomisation.

From the classifier back to the first layer, one layer after the other loses what it learned, and the maps are
compared with those of the whole network. A method whose maps stay the same shows edges of the image, and not
what the network looks at.

Changed: a layer's weights are shuffled within each of its tensors, and not drawn anew, so that the check
needs to know no layer's initialisation and their sizes stay as they were.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tinlab.classifier import Classifier
from tinlab.errors import TinlabError
from tinlab.explain.attribution import METHODS, find_methods
from tinlab.explain.compare import Chosen, Target, inputs_of, targets_of
from tinlab.explain.layers import device_of


@dataclass(frozen=True)
class Similarity:
    """How alike maps are to the whole network's, -1..1, the mean over the images, once `layer` and all after
    it are randomised."""

    layer: str
    randomised_layers: int
    rank_correlation: float


def rank_correlation(first: Tensor, second: Tensor) -> np.ndarray:
    """Spearman's correlation of the absolute values of two sets of maps (B, …), image by image: float64 (B,).

    A map that is the same everywhere has a correlation of 0 with any other.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(maps.abs().flatten(1).numpy(), axis=1) for maps in (first, second)]
    a, b = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return (a * b).sum(1) / np.where(scale == 0, 1, scale)


def randomised(model: nn.Module, layers: Sequence[str], *, seed: int = 0) -> nn.Module:
    """A copy of `model` with the parameters of `layers` shuffled, each within itself."""
    made: nn.Module = copy.deepcopy(getattr(model, "_orig_mod", model))
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers:
            for parameter in made.get_submodule(layer).parameters(recurse=False):
                order = torch.randperm(parameter.numel(), generator=dice).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return made


def layers_in_order(model: nn.Module, inputs: Tensor) -> list[str]:
    """The modules of `model` with parameters of their own, in the order in which they are done with an image
    of `inputs` (B, 3, H, W). Before them stand those that are not called as modules, and the network itself,
    "", where it has such as a class token."""
    eager: nn.Module = getattr(model, "_orig_mod", model)
    names = [name for name, one in eager.named_modules() if any(True for _ in one.parameters(recurse=False))]
    place = dict.fromkeys(names, -1)
    calls = itertools.count()

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        return eager.get_submodule(name).register_forward_hook(lambda *_: place.update({name: next(calls)}))

    handles = [watch(name) for name in names if name]  # the network itself is done last, whatever it has
    try:
        with torch.no_grad():
            eager(inputs[:1].to(device_of(eager)))
    finally:
        for handle in handles:
            handle.remove()
    return sorted(names, key=place.__getitem__)


def cascade(
    attribute: Callable[[nn.Module, Tensor, Tensor], Tensor],
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    points: int = 5,
    seed: int = 0,
) -> list[Similarity]:
    """How the maps of `attribute` change as layers are randomised, in up to `points` equal strides from the
    last layer alone to all of them."""
    whole = attribute(model, inputs, targets)
    layers = layers_in_order(model, inputs)[::-1]
    found = []
    for count in sorted({round(n) for n in np.linspace(1, len(layers), points)}):
        changed = attribute(randomised(model, layers[:count], seed=seed), inputs, targets)
        layer = layers[count - 1] or "(network)"
        found.append(Similarity(layer, count, float(rank_correlation(whole, changed).mean())))
    return found


def check(
    classifier: Classifier,
    chosen: Sequence[Chosen],
    *,
    methods: Iterable[str] = tuple(METHODS),
    target: Target | None = None,
    class_name: str | None = None,
    points: int = 5,
    seed: int = 0,
) -> dict[str, list[Similarity]]:
    """`cascade` of each method on these images; a method that does not apply to the network is left out.

    Raises TinlabError where none applies, and as `tinlab.explain.explain` does.
    """
    arrays, inputs = inputs_of(classifier, [one.image for one in chosen])
    numbers, _ = targets_of(classifier, chosen, classifier.probabilities(arrays), target, class_name)
    found, refused = {}, []
    for name, method in find_methods(methods).items():
        try:
            found[name] = cascade(
                method.attribute, classifier.model, inputs, torch.tensor(numbers), points=points, seed=seed
            )
        except TinlabError as error:
            refused.append(str(error))
    if not found:
        raise TinlabError("; ".join(refused))
    return found
