"""Weights to start from: what a file holds, put into a network.

Its tensors go into the network by their names, and every name and shape must fit; only a classifier of
another size keeps its drawn values. What a file may have besides: the auxiliary classifiers of torchvision's
files.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import zoo
from tinlab.models.fits import reason
from tinlab.models.network import Network
from tinlab.models.weight_files import find_file, read_tensors, sha256_of, short, some

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Layers of torchvision's files for GoogLeNet and Inception v3 that networks are built without."""
_OLD_DENSENET = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.")
"""Names in torchvision's files for DenseNets: norm.1 for what has long been called norm1."""


@dataclass(frozen=True)
class Loaded:
    """What was taken from a file of weights."""

    path: str
    sha256: str
    """Of the whole file, in hex."""
    tensors: int
    """How many parameters and buffers have values from the file."""
    classifier_kept_new: bool
    """Whether the classifier has the values that were drawn for it."""
    fresh_layers: tuple[str, ...]
    """Layers that have the values that were drawn for them, because the recipe says so."""
    fitted: tuple[str, ...]
    """Those tensors whose values are not the file's own: renamed, or resized to the images' side."""
    converted_from: tuple[str, ...]
    """Number formats in the file that are not the network's, such as float16; the rest is exactly equal."""
    left_out: tuple[str, ...]
    """Tensors of the file that the network has no place for: auxiliary classifiers."""


def load_into(model: nn.Module, network: Network, knobs: recipe.Model, *, image_size: int = 64) -> Loaded:
    """Put the weights that `knobs.weights` names into `model`, which `network` built for `knobs` and for
    images of `image_size` pixels a side.

    Raises TinlabError where the file cannot be had or read, where it does not fit, and where a pattern of
    `knobs.fresh_layers` matches no layer; `model` is then as it was.
    """
    path = find_file(network, knobs)
    tensors = read_tensors(path)
    own = model.state_dict()
    tensors, left_out = _without_auxiliary(tensors, own)
    fresh = fresh_names(own, knobs.fresh_layers)
    classifier = _classifier_names(own, network.classifier)
    fitted = _fitted(tensors, own, fresh | classifier, network.classifier, knobs.name, image_size, path)
    given = {name: value for name, value in fitted.items() if not _beneath(name, knobs.fresh_layers)}
    kept_new = _keeps_classifier(given, own, classifier - fresh, knobs.name)
    if kept_new:
        given = {name: value for name, value in given.items() if name not in classifier}
    _all_fit(given, own, fresh | (classifier if kept_new else set()), path, knobs.name)
    with torch.no_grad():
        for name, value in given.items():
            own[name].copy_(value)
    return Loaded(
        path=str(path),
        sha256=sha256_of(path),
        tensors=len(given),
        classifier_kept_new=kept_new or (bool(classifier) and classifier <= fresh),
        fresh_layers=tuple(sorted({name.rpartition(".")[0] or name for name in fresh})),
        fitted=tuple(sorted(name for name, value in given.items() if value is not tensors.get(name))),
        converted_from=tuple(
            sorted({str(v.dtype)[6:] for name, v in given.items() if v.dtype != own[name].dtype})
        ),
        left_out=left_out,
    )


def fresh_names(
    own: Iterable[str], patterns: Iterable[str], *, field: str = "model.fresh_layers"
) -> set[str]:
    """The names in `own` that are, or lie beneath, a layer that one of `patterns` matches.

    Raises TinlabError, which begins with `field`, for a pattern that matches none.
    """
    own = list(own)
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in own if _beneath(name, (pattern,))}
        if not matched:
            layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in own))
            raise TinlabError(
                f"{field}: '{pattern}' matches no layer with weights; they are called {some(layers)}"
            )
        found |= matched
    return found


def _without_auxiliary(
    tensors: dict[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    left_out = tuple(name for name in tensors if name.startswith(_AUXILIARY) and name not in own)
    return {name: value for name, value in tensors.items() if name not in left_out}, left_out


def _classifier_names(own: Iterable[str], classifier: str) -> set[str]:
    """The classifier's tensors; a distilled network of timm's has a second classifier, NAME_dist."""
    return {name for name in own if name.startswith((f"{classifier}.", f"{classifier}_dist."))}


def _beneath(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of `patterns` matches the tensor `name`, or a layer that holds it."""
    parts = name.split(".")
    places = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatch.fnmatchcase(place, pattern) for pattern in patterns for place in places)


def _keeps_classifier(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], classifier: set[str], name: str
) -> bool:
    if any(place in given and given[place].shape != own[place].shape for place in classifier):
        return True
    return bool(classifier) and not (classifier & given.keys()) and _without_classifier(name)


def _without_classifier(name: str) -> bool:
    """Whether the weights that timm has for `name` are those of a network without a classifier."""
    return name.startswith("timm:") and zoo.timm_configuration(name).num_classes == 0


def _fitted(
    tensors: dict[str, Tensor],
    own: Mapping[str, Tensor],
    free: set[str],
    classifier: str,
    name: str,
    image_size: int,
    path: Path,
) -> dict[str, Tensor]:
    """`tensors` under the names and with the sizes that the network `name` has today, as far as its library
    knows how. The sizes of `free` may differ."""
    strange = [place for place in tensors if place not in own]
    resized = [
        place
        for place, value in tensors.items()
        if place in own and place not in free and value.shape != own[place].shape
    ]
    if not strange and not resized:
        return tensors
    if name.startswith("timm:"):
        last = tensors.get(f"{classifier}.weight")
        classes = len(last) if last is not None else zoo.timm_configuration(name).num_classes
        return _fitted_by_timm(name, tensors, classes, image_size, path)
    if name.startswith("torchvision:densenet"):
        return {_OLD_DENSENET.sub(r"\1\2.", place): value for place, value in tensors.items()}
    if name.startswith("torchvision:vit_") and resized == ["encoder.pos_embedding"]:
        return _resized_by_torchvision(tensors, own, image_size, path)
    return tensors


def _fitted_by_timm(
    name: str, tensors: dict[str, Tensor], classes: int, image_size: int, path: Path
) -> dict[str, Tensor]:
    """timm knows the names that its networks' weights had elsewhere, and resizes position embeddings.
    `classes` is how many the file's classifier has."""
    try:
        with torch.random.fork_rng(devices=[]):
            model = zoo.create_timm(
                name.partition(":")[2],
                classes,
                image_size,
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": tensors, "num_classes": classes},
            )
    # Each network has code of its own for this, which may trip over a strange file anywhere.
    except Exception as error:
        raise TinlabError(
            f"model.weights: timm cannot fit {path} to {name} ({short(error)}); give a file of this network"
        ) from error
    return {
        place: tensors[place] if place in tensors and _same(tensors[place], value) else value
        for place, value in model.state_dict().items()
    }


def _resized_by_torchvision(
    tensors: dict[str, Tensor], own: Mapping[str, Tensor], image_size: int, path: Path
) -> dict[str, Tensor]:
    """torchvision's vision transformers: the position embeddings, interpolated to the number of patches."""
    zoo.import_torchvision()
    from torchvision.models.vision_transformer import interpolate_embeddings

    patch = own["conv_proj.weight"].shape[-1]
    try:
        return dict(interpolate_embeddings(image_size, patch, dict(tensors)))
    except (RuntimeError, ValueError) as error:
        raise TinlabError(
            f"model.weights: the position embeddings in {path} cannot be resized to "
            f"{image_size}x{image_size} images ({reason(error)}); give a file of this network"
        ) from error


def _all_fit(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], free: set[str], path: Path, name: str
) -> None:
    """Raise TinlabError where names, shapes or kinds of numbers differ."""
    wrong = []
    missing = [
        place
        for place in own
        # Files from before PyTorch 0.4.1 do not count their batches, and nothing here uses the count.
        if place not in given and place not in free and not place.endswith(".num_batches_tracked")
    ]
    if missing:
        wrong.append(f"it lacks {some(missing)}")
    if unknown := [place for place in given if place not in own]:
        wrong.append(f"the network lacks {some(unknown)}")
    both = [place for place in given if place in own]
    if shapes := [
        f"{place} is {tuple(given[place].shape)} in the file and {tuple(own[place].shape)} in the network"
        for place in both
        if given[place].shape != own[place].shape
    ]:
        wrong.append(some(shapes))
    if kinds := [
        f"{place} is {str(given[place].dtype)[6:]}, not {str(own[place].dtype)[6:]}"
        for place in both
        if given[place].is_floating_point() != own[place].is_floating_point()
    ]:
        wrong.append(some(kinds))
    if wrong:
        raise TinlabError(
            f"model.weights: {path} does not fit {name}: {'; '.join(wrong)}; give a file of this network, or "
            "name layers to leave as they were drawn in model.fresh_layers"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.to(b.dtype), b)
