"""Other people's networks: every classification network of torchvision as `torchvision:NAME`, every one of
timm as `timm:NAME` or `timm:NAME.TAG`, where the tag names one of the sets of weights that timm knows.

Neither package is imported before one of its networks is asked for.

A network whose weights depend on the side of its images (position embeddings, windows) is built for the side
in use. Auxiliary classifiers, which only training looks at, are left out.

torchvision's wheel on PyPI is built against torch with CUDA; beside a CPU-only torch its library of detection
operators cannot be loaded, and since importing the package looks two of them up by name, nothing of it can be
used. Classification needs none of them: it is enough that the names are known.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models.fits import outline, reason
from tinlab.models.network import Network

_LOOKED_UP = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[object] = []  # a torch.library.Library takes its operators with it when it goes

_MARKED_CLASSES = 977
"""A number of classes that no other layer's outputs have, to know the classifier by."""
_MARKED_RATE = 0.0977
"""A rate of dropout that no network has of itself."""

_WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": True}
_OWN_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": _WITHOUT_AUXILIARY,
    "inception_v3": _WITHOUT_AUXILIARY,
}


def import_torchvision() -> ModuleType:
    """The torchvision package. Raises ImportError where it is not installed."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        import sys

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # what the failed import left behind
        library = torch.library.Library("torchvision", "FRAGMENT")
        for signature in _LOOKED_UP:
            library.define(signature)
        _declared.append(library)
        import torchvision
    return torchvision


def import_timm() -> ModuleType:
    """The timm package, which imports torchvision. Raises ImportError where either is not installed."""
    import_torchvision()
    import timm

    return timm


def timm_configuration(name: str) -> Any:
    """What timm knows of the weights of its network `timm:NAME`; None where it publishes none."""
    return import_timm().models.get_pretrained_cfg(name.partition(":")[2])


def names(package: str) -> list[str]:
    """The networks of `torchvision` or `timm`, sorted, as find() takes them; timm's without their tags."""
    if package == "timm":
        return [f"timm:{name}" for name in import_timm().list_models()]
    models = import_torchvision().models
    return [f"torchvision:{name}" for name in models.list_models(module=models)]


@cache
def find(name: str, image_size: int = 64) -> Network:
    """The network called `name`, torchvision:NAME or timm:NAME, to be built for images of `image_size` pixels
    a side.

    Raises TinlabError with the nearest names where there is none, and where it has no classifier or cannot be
    built for such images.
    """
    package, _, own = name.partition(":")
    if package not in ("torchvision", "timm"):
        raise TinlabError(f"model.name: '{name}' is neither torchvision:NAME nor timm:NAME")
    if package == "timm":
        return _find_timm(name, own, image_size)
    if name not in names(package):
        raise TinlabError(f"model.name: torchvision has no classification network '{own}'; {_near(name)}")
    shape = _outline(name, partial(create_torchvision, own, _MARKED_CLASSES, image_size), image_size)
    classifier = _classifier_of_torchvision(name, shape)
    return Network(
        build=partial(_build_torchvision, own, image_size),
        summary=f"torchvision's {own}, {_size(shape, classifier)}",
        source=f"torchvision, {type(shape).__module__}",
        classifier=classifier,
        imagenet=own,
    )


def create_torchvision(name: str, classes: int, image_size: int) -> nn.Module:
    """torchvision's network `name` with drawn weights, without auxiliary classifiers."""
    models = import_torchvision().models
    arguments = dict(_OWN_ARGUMENTS.get(name, {}))
    family = models.get_model_builder(name).__module__.rpartition(".")[2]
    if family == "vision_transformer":
        arguments["image_size"] = image_size
    if family == "maxvit":
        arguments["input_size"] = (image_size, image_size)
    return models.get_model(name, weights=None, num_classes=classes, **arguments)


def create_timm(name: str, classes: int, image_size: int, **arguments: Any) -> nn.Module:
    """timm's network `name`; `arguments` go to timm.create_model, which draws the weights unless told
    otherwise."""
    timm = import_timm()
    configuration = timm.models.get_pretrained_cfg(name)
    if configuration is not None and configuration.fixed_input_size:
        arguments["img_size"] = image_size
    return timm.create_model(name, num_classes=classes, **arguments)


def _find_timm(name: str, own: str, image_size: int) -> Network:
    timm = import_timm()
    architecture, _, tag = own.partition(".")
    if not timm.is_model(architecture):
        raise TinlabError(f"model.name: timm has no network '{architecture}'; {_near(name)}")
    if tag:
        prefix = f"{architecture}."
        tags = [full.removeprefix(prefix) for full in timm.list_models(f"{prefix}*", pretrained=True)]
        if tag not in tags:
            has = f"its tags are {', '.join(tags)}" if tags else "it has no tags"
            raise TinlabError(f"model.name: timm's {architecture} has no tag '{tag}'; {has}")
    create = partial(create_timm, own, _MARKED_CLASSES, image_size)
    shape = _outline(name, create, image_size)
    classifier = _classifier_of_timm(name, shape)
    rate = _dropout_rate(name, create, image_size, shape)
    configuration = timm.models.get_pretrained_cfg(own)
    paper = getattr(configuration, "paper_name", None) or getattr(configuration, "origin_url", None)
    return Network(
        build=partial(_build_timm, own, image_size),
        summary=f"timm's {own}, {_size(shape, classifier)}",
        source=f"timm, {type(shape).__module__}" + (f": {paper}" if paper else ""),
        classifier=classifier,
        options={} if rate is None else {"dropout": (rate,)},
    )


def _build_torchvision(name: str, image_size: int, knobs: recipe.Model, classes: int) -> nn.Module:
    return create_torchvision(name, classes, image_size)


def _build_timm(name: str, image_size: int, knobs: recipe.Model, classes: int) -> nn.Module:
    dropout = {} if knobs.dropout is None else {"drop_rate": knobs.dropout[0]}
    return create_timm(name, classes, image_size, **dropout)


def _outline(name: str, create: Callable[[], nn.Module], image_size: int) -> nn.Module:
    """TypeError passes through: an argument that the network does not have."""
    try:
        return outline(create)
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise TinlabError(
            f"model.name: {name} cannot take {image_size}x{image_size} images ({reason(error)}); "
            "take another network"
        ) from error


def _dropout_rate(
    name: str, create: Callable[..., nn.Module], image_size: int, shape: nn.Module
) -> float | None:
    """The network's own rate for timm's argument for dropout; None where it does not take it, or does nothing
    with it. `shape` is what `create` makes without it."""
    try:
        marked = _outline(name, partial(create, drop_rate=_MARKED_RATE), image_size)
    except TypeError:
        return None
    own = dict(shape.named_modules())
    for path, module in marked.named_modules():
        for attribute in ("drop_rate", "p"):
            if getattr(module, attribute, None) == _MARKED_RATE:
                # Where the rate is 0 there may be no layer.
                return float(getattr(own.get(path), attribute, 0.0))
    return None


def _classifier_of_torchvision(name: str, model: nn.Module) -> str:
    found = [
        path
        for path, module in model.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == _MARKED_CLASSES)
        or (isinstance(module, nn.Conv2d) and module.out_channels == _MARKED_CLASSES)
    ]
    if not found:
        raise TinlabError(f"model.name: {name} has no classifier; take another network")
    return found[-1]


def _classifier_of_timm(name: str, model: nn.Module) -> str:
    """Of a distilled network's two classifiers the first; the second is called the same with `_dist`."""
    get: Any = getattr(model, "get_classifier", None)
    classifier: Any = None if get is None else get()
    if isinstance(classifier, tuple | list):
        classifier = classifier[0]
    for path, module in model.named_modules():
        if path and module is classifier and any(True for _ in module.parameters()):
            return path
    raise TinlabError(f"model.name: {name} has no classifier; take another network")


def _near(name: str) -> str:
    package, _, own = name.partition(":")
    known = [full.partition(":")[2] for full in names(package)]
    near = difflib.get_close_matches(own.partition(".")[0], known, n=3, cutoff=0.5)
    if not near:
        return f"'tinlab models {package}:' lists those there are"
    return "try " + ", ".join(f"{package}:{found}" for found in near)


def _size(model: nn.Module, classifier: str) -> str:
    weights = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(f"{classifier}."))
    return f"{weights / 1e6:.1f} million weights and a classifier"
