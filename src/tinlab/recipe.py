"""The recipe: everything that decides a result, as one frozen value, and the only place where a knob exists.

A named recipe is a function in `tinlab.recipes`. A run writes its recipe to recipe.json, and that file can be
given back to `tinlab train`. `changed(recipe, ["optimizer.peak_lr=0.1"])` changes fields.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tinlab.errors import TinlabError

Fraction = Annotated[float, Field(ge=0, le=1)]
ImageSize = Annotated[int, Field(ge=8, le=1024)]


class Knobs(BaseModel):
    """A frozen group of fields that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Flip(Knobs):
    """Mirror left and right."""

    kind: Literal["flip"] = "flip"
    probability: Fraction = 0.5


class RandomResizedCrop(Knobs):
    """Cut a box of random area and aspect and resize it to the training size (Szegedy et al. 2015)."""

    kind: Literal["random_resized_crop"] = "random_resized_crop"
    area: tuple[Fraction, Fraction] = (0.6, 1.0)
    """Smallest and largest share of the image's area."""
    aspect: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (3 / 4, 4 / 3)
    """Smallest and largest width over height; drawn uniformly in the logarithm."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 < self.area[0] <= self.area[1] or not self.aspect[0] <= self.aspect[1]:
            raise ValueError("a range goes from a smaller number above 0 to a larger one")
        return self


Operation = Annotated[Flip | RandomResizedCrop, Field(discriminator="kind")]


class Data(Knobs):
    """Which images, and how their values reach the network."""

    train_split: Literal["train", "train+tune"] = "train"
    """`train` leaves `tune` out, for recipes that select something; `train+tune` is every training image."""
    images_per_class: Annotated[int, Field(gt=0)] | None = None
    """Train on this many images a class (the first ones, in the pack's order); None: on all."""
    normalise: Literal["scale", "mean", "mean_std"] = "mean_std"
    """Values are scaled to 0..1; then the training images' channel means are subtracted; then divided by
    their standard deviations."""
    image_sizes: Annotated[tuple[ImageSize, ...], Field(min_length=1)] = (64,)
    """Side of the training images in pixels, each for an equal share of the steps. Measuring is always done
    at the pack's own size."""


class Model(Knobs):
    """Which network."""

    name: str = "resnet18"
    width: Annotated[int, Field(gt=0, le=1024)] = 64
    """Channels of the first stage; each stage after it has twice those of the one before."""
    stem: Literal["imagenet", "small", "patch"] = "imagenet"
    """`imagenet`: 7x7/2 convolution and 3x3/2 max pool; `small`: 3x3/1; `patch`: 3x3/2."""
    shortcut: Literal["projection", "average_pool"] = "projection"
    """How a shortcut changes resolution: 1x1/2 convolution, or 2x2 average pool and then 1x1 convolution."""
    zero_last_bn: bool = False
    """Start each block as the identity: the scale of its last batch norm is 0 (Goyal et al. 2017)."""


class Optimizer(Knobs):
    """How a gradient becomes an update."""

    name: Literal["sgd", "adamw"] = "sgd"
    peak_lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum, or AdamW's beta 1."""
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    decay_weights_only: bool = False
    """Leave biases and the scales and shifts of batch norm out of weight decay."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs sgd with a momentum above 0")
        return self


class Schedule(Knobs):
    """How long, and how the learning rate changes. Exactly one of `epochs` and `steps` is given."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(gt=0)] = 128
    shape: Literal["constant", "step", "cosine", "linear"] = "cosine"
    """After the warm-up: constant; times `factor` at each milestone; along a cosine to zero; along a line."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps in which the learning rate climbs linearly to its peak."""
    milestone_steps: tuple[Annotated[int, Field(gt=0)], ...] = ()
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps, and null for the other")
        if (self.shape == "step") != bool(self.milestone_steps):
            raise ValueError("milestone_steps goes with shape 'step', and 'step' needs it")
        return self

    def total_steps(self, train_images: int) -> int:
        """Number of updates, each on `batch_size` images drawn from `train_images`."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * train_images / self.batch_size))


class Loss(Knobs):
    """Cross-entropy."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Compute(Knobs):
    """How the arithmetic is done; it decides the last digits of a result."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """`bf16`: autocast, with float32 weights and batch-norm statistics."""
    channels_last: bool = True
    compile: bool = False
    """Train through torch.compile; pays after some minutes."""


class Paper(Knobs):
    """Where a recipe comes from, and what its source reports."""

    title: str
    authors: str
    section: str
    reported: dict[str, float] = {}
    """Measure with unit in its name -> reported value, such as val_top1_percent."""


class Provenance(Knobs):
    """Where a field's value comes from."""

    kind: Literal["stated", "inferred", "assumed", "changed"]
    why: str


class Recipe(Knobs):
    """One way to train one network."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
    summary: str = ""
    paper: Paper | None = None
    provenance: dict[str, Provenance] = {}
    """Field path -> where its value comes from, for recipes of a paper."""
    data: Data = Data()
    augment: tuple[Operation, ...] = ()
    model: Model = Model()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule
    compute: Compute = Compute()
    evaluate_every_epochs: Annotated[float, Field(gt=0)] = 1.0
    """How often the held-out curve gets a point: on `tune` where it is held out, otherwise on `val`, which
    selects nothing either way."""

    @model_validator(mode="after")
    def _provenance_names_fields(self) -> Self:
        fields = self.model_dump()
        for path in self.provenance:
            value: Any = fields
            for part in path.split("."):
                if not isinstance(value, dict) or part not in value:
                    raise ValueError(f"provenance names '{path}', which is no field")
                value = value[part]
        return self

    @property
    def digest(self) -> str:
        """SHA-256, 12 hex digits, of the fields that decide the result: names and sources are left out."""
        deciding = self.model_dump(
            mode="json", exclude={"name", "summary", "paper", "provenance", "evaluate_every_epochs"}
        )
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]


def parse_recipe(value: Any, origin: str) -> Recipe:
    """The recipe in a JSON value; `origin` names it in errors. Raises TinlabError that names the field."""
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise TinlabError(f"{origin}: {_first_fault(error, value)}") from error


def read_recipe(path: Path) -> Recipe:
    """The recipe in file `path`. Raises TinlabError where it cannot be read or is no recipe."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TinlabError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TinlabError(f"{path} is not JSON: {error}") from error
    return parse_recipe(value, str(path))


def changed(recipe: Recipe, assignments: Iterable[str]) -> Recipe:
    """`recipe` with each `path=value` applied; a value is JSON where it parses as such, otherwise a string.

    `schedule.steps` and `schedule.epochs` replace each other. Raises TinlabError that names the field.
    """
    value = recipe.model_dump(mode="json")
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise TinlabError(f"--set takes PATH=VALUE, such as optimizer.peak_lr=0.1, not '{assignment}'")
        *groups, last = path.split(".")
        group: Any = value
        for name in groups:
            group = _member(group, name, path)
        _member(group, last, path)
        group[last] = _parse(text)
        if path in ("schedule.steps", "schedule.epochs") and group[last] is not None:
            group["epochs" if last == "steps" else "steps"] = None
        if recipe.provenance:
            value["provenance"][path] = {"kind": "changed", "why": f"set to {text} by hand"}
    return parse_recipe(value, "--set")


def _member(group: Any, name: str, path: str) -> Any:
    if isinstance(group, dict) and name in group:
        return group[name]
    known = list(group) if isinstance(group, dict) else []
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}" if known else ""
    raise TinlabError(f"--set {path}: there is no field '{name}'{'; ' if hint else ''}{hint}")


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _first_fault(error: ValidationError, value: Any) -> str:
    """One sentence for the first thing that pydantic found wrong."""
    fault = error.errors()[0]
    path = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path.split(".")[-1], _field_names(Recipe), n=1)
        return f"there is no field '{path}'" + (f"; did you mean '{near[0]}'?" if near else "")
    given = fault.get("input")
    shown = "" if isinstance(given, dict | list | tuple) or given is value else f", not {given!r}"
    return f"{path or 'the recipe'}: {message[0].lower()}{message[1:]}{shown}"


def _field_names(knobs: type[BaseModel]) -> list[str]:
    names: list[str] = []
    for name, field in knobs.model_fields.items():
        names.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names.extend(_field_names(field.annotation))
    return names
