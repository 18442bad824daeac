"""The recipe: everything that decides a result, as one frozen value, and the only place where a knob exists.

A named recipe is a function in `tinlab.recipes`. A run writes its recipe to recipe.json, and that file can be
given back to `tinlab train`. `changed(recipe, ["optimizer.peak_lr=0.1"])` changes fields.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator

from tinlab.errors import TinlabError
from tinlab.files import parse_json, read_given_json
from tinlab.recipe.knobs import Epochs, Knobs
from tinlab.recipe.model import (
    DropConnect,
    Gaussian,
    He,
    Init,
    Lsuv,
    Model,
    Orthogonal,
    Penalty,
    RandomWalk,
    Xavier,
)
from tinlab.recipe.operations import (
    Cutmix,
    Cutout,
    FixedCopies,
    Flip,
    Mixup,
    Operation,
    RandomErasing,
    RandomResizedCrop,
    fit_together,
)
from tinlab.recipe.policies import POLICIES, named
from tinlab.recipe.training import (
    ChannelPruning,
    Compute,
    LayerRate,
    MagnitudePruning,
    Optimizer,
    Prune,
    Schedule,
)

__all__ = [
    "POLICIES", "ChannelPruning", "Compute", "Cutmix", "Cutout", "Data", "DropConnect", "Flip", "Gaussian",
    "HardClasses", "He", "Init", "LayerRate", "Loss", "Lsuv", "MagnitudePruning", "Mixup", "Model",
    "Operation", "Optimizer", "Orthogonal", "Paper", "Penalty", "Provenance", "Prune", "RandomErasing",
    "RandomResizedCrop", "RandomWalk", "Recipe", "Schedule", "Stage", "Xavier", "changed", "parse_recipe",
    "read_recipe",
]  # fmt: skip

ImageSize = Annotated[int, Field(ge=8, le=1024)]


class Data(Knobs):
    """Which images, and how their values reach the network."""

    train_split: Literal["train", "train+tune"] = "train"
    """`train` leaves `tune` out, for recipes that select something; `train+tune` is every training image."""
    images_per_class: Annotated[int, Field(gt=0)] | None = None
    """Train on this many images a class (the first ones, in the pack's order); None: on all."""
    images: Annotated[int, Field(gt=0)] | None = None
    """Train on this many images in all: the first of every class, then the second, …; None: on all."""
    normalise: Literal["scale", "mean", "mean_std"] = "mean_std"
    """Values are scaled to 0..1; then the training images' channel means are subtracted; then divided by
    their standard deviations."""
    image_sizes: Annotated[tuple[ImageSize, ...], Field(min_length=1)] = (64,)
    """Side of the training images in pixels, each for an equal share of the steps. Until the last one the
    held-out curve is measured at the size in training."""
    measured_size: ImageSize | None = None
    """Side in pixels of what the finished network sees, wherever it is measured, explained, exported or
    served: images are resized to it; None: the pack's own. A network is best at a size near those that it was
    trained on last (Touvron et al. 2019, "Fixing the train-test resolution discrepancy")."""
    precise_bn_images: Annotated[int, Field(ge=2)] | None = None
    """After the last step the statistics that batch norms measure by are taken anew, over this many of the
    training images, shown as held-out ones are: whole and without augmentation (Wu and Johnson 2021,
    "Rethinking 'Batch' in BatchNorm"). None: they stay the moving averages over augmented batches."""

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.images is not None and self.images_per_class is not None:
            raise ValueError("give images or images_per_class, not both")
        return self


class Loss(Knobs):
    """Cross-entropy, and what is added to it."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    penalties: tuple[Penalty, ...] = ()


Augment = Annotated[tuple[Operation, ...], BeforeValidator(named), AfterValidator(fit_together)]


class HardClasses(Knobs):
    """Another augmentation for the classes that the network gets wrong most on `tune`, found anew at every
    evaluation; until the first one there are none (Shcherbina, future work)."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of the classes: those with the lowest top-1 accuracy."""
    augment: Augment
    """What their images get in place of the recipe's operations; mixing stays the recipe's."""

    @model_validator(mode="after")
    def _mixes_nothing(self) -> Self:
        if any(isinstance(operation, Mixup) for operation in self.augment):
            raise ValueError("augment: mixing is done to whole batches; leave it to the recipe's own augment")
        if any(isinstance(operation, FixedCopies) for operation in self.augment):
            raise ValueError("augment: fixed_copies are drawn before any class is known to be hard")
        return self


class Stage(Knobs):
    """One phase of a training. It goes on with the weights that the phase before it left, by their moving
    average where it had one, under an optimizer that starts anew."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,31}$")]
    changes: dict[str, Any] = Field(default_factory=dict)
    """Field path -> value: how it differs from the recipe's own fields, such as {"optimizer.peak_lr": 0.01}.
    Where it changes `model`, weights of the same name and shape are taken over."""
    fresh: tuple[str, ...] = ()
    """Patterns of layers that start anew, as `model.init` draws them: in the first stage those that
    `model.weights` would fill."""
    prune: Prune | None = None
    """How the network is pruned before it is trained on."""


class Paper(Knobs):
    """Where a recipe comes from, and what its source reports."""

    title: str
    authors: str
    section: str
    reported: dict[str, float] = Field(default_factory=dict)
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
    provenance: dict[str, Provenance] = Field(default_factory=dict)
    """Field path -> where its value comes from, for recipes of a paper."""
    data: Data = Data()
    augment: Augment = ()
    """Operations, or the name of a policy, which stands for its operations; 'tinlab augment' lists them."""
    model: Model = Model()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule
    compute: Compute = Compute()
    hard_classes: HardClasses | None = None
    stages: tuple[Stage, ...] = ()
    """Phases, one after the other; none: a single one, which is the recipe's own fields."""
    evaluate_every_epochs: Epochs = 1.0
    """How often the held-out curve gets a point: on `tune` where it is held out, otherwise on `val`, which
    selects nothing either way."""

    @model_validator(mode="after")
    def _provenance_names_fields(self) -> Self:
        fields = self.model_dump(mode="json")
        for path in self.provenance:
            value: Any = fields
            for part in path.split("."):
                try:
                    value = _member(value, part, "")
                except TinlabError:
                    raise ValueError(f"provenance names '{path}', which is no field") from None
        return self

    @model_validator(mode="after")
    def _momentum_can_fall(self) -> Self:
        low = self.schedule.low_momentum
        if low is not None and low > self.optimizer.momentum:
            raise ValueError(
                f"schedule.low_momentum {low:g} is above optimizer.momentum {self.optimizer.momentum:g}"
            )
        return self

    @model_validator(mode="after")
    def _val_selects_nothing(self) -> Self:
        if self.data.train_split == "train":
            return self
        for field, uses in (
            ("schedule.shape 'plateau' watches the loss", self.schedule.shape == "plateau"),
            ("hard_classes looks at the errors", self.hard_classes is not None),
        ):
            if uses:
                raise ValueError(
                    f"{field} on tune, which is trained on here; set data.train_split to 'train'"
                )
        return self

    @model_validator(mode="after")
    def _stages_are_recipes(self) -> Self:
        for number, stage in enumerate(self.stages):
            try:
                model = self.phase(number).model
            except TinlabError as error:
                raise ValueError(f"stages.{number} ({stage.name}): {error}") from error
            for field in ("weights", "fresh_layers"):
                if number > 0 and getattr(model, field) != getattr(self.model, field):
                    raise ValueError(
                        f"stages.{number} ({stage.name}): model.{field} says what the first stage starts "
                        "from, and this one goes on with the weights before it; name layers in its 'fresh'"
                    )
        kinds = [stage.prune.kind for stage in self.stages if stage.prune is not None]
        if "channels" in kinds and "magnitude" in kinds[: kinds.index("channels")]:
            raise ValueError("stages: prune channels before single weights, whose places would change")
        sparse = [s.prune for s in self.stages if isinstance(s.prune, MagnitudePruning)]
        for before, after in itertools.pairwise(sparse):
            if set(after.keep) != set(before.keep):
                raise ValueError("stages: single weights are pruned with the same 'keep' in all stages")
            if after.share < before.share:
                raise ValueError(
                    f"stages: a share of {after.share:g} of the weights is pruned after {before.share:g}, "
                    "and what is pruned stays so; let the shares rise"
                )
        return self

    @property
    def phases(self) -> tuple[Recipe, ...]:
        """What each stage trains by, as recipes without stages; the recipe alone where it has none."""
        return tuple(self.phase(number) for number in range(max(1, len(self.stages))))

    def phase(self, number: int) -> Recipe:
        """What stage `number`, counted from 0, trains by. Raises TinlabError for a change that cannot be."""
        if not 0 <= number < max(1, len(self.stages)):
            raise TinlabError(
                f"{self.name} has {max(1, len(self.stages))} stages, and none of number {number}"
            )
        if not self.stages:
            return self
        value = self.model_dump(mode="json", exclude={"stages", "paper", "provenance"})
        for path, item in self.stages[number].changes.items():
            fixed = ("name", "summary", "paper", "provenance", "stages", "compute")
            of_data = ("data.train_split", "data.normalise", "data.measured_size")  # a run has one of each
            if path.split(".")[0] in fixed or path in of_data:
                raise TinlabError(f"{path} is the same in all stages; change it in the recipe")
            _assign(value, path, item, "changes")
        return parse_recipe(value, "changes")

    def beginning(self, number: int) -> Model:
        """How stage `number`, counted from 0, gives its network values before it takes over those of the
        stage before: its `model`, the stage's fresh layers being among those that no file fills. Only the
        first stage has a file."""
        model = self.phase(number).model
        if number > 0:
            return model.model_copy(update={"weights": None, "fresh_layers": ()})
        if model.weights is None or not self.stages:
            return model
        return model.model_copy(update={"fresh_layers": (*model.fresh_layers, *self.stages[0].fresh)})

    @property
    def digest(self) -> str:
        """SHA-256, 12 hex digits, of the fields that decide the result: names and sources are left out.

        So are fields at their defaults, so that a field that is added later leaves the digests of what was
        measured before as they are. In return a default must never change.
        """
        apart = {"name", "summary", "paper", "provenance"}
        if not any(phase.schedule.shape == "plateau" or phase.hard_classes for phase in self.phases):
            apart.add("evaluate_every_epochs")  # which alone count evaluations
        whole = Recipe.model_validate(self.model_dump(mode="json"))  # a copy may have 30 epochs for 30.0
        deciding = {name: value for name, value in _changed_fields(whole).items() if name not in apart}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]


def _changed_fields(value: Any) -> Any:
    """`value` as JSON, without the fields of Knobs that have their default; a `kind` always stays."""
    if isinstance(value, tuple):
        return [_changed_fields(item) for item in value]
    if not isinstance(value, Knobs):
        return value
    fields = type(value).model_fields
    own = {name: getattr(value, name) for name in fields}
    return {
        name: _changed_fields(item)
        for name, item in own.items()
        if name == "kind" or item != fields[name].default
    }


def parse_recipe(value: Any, origin: str) -> Recipe:
    """The recipe in a JSON value; `origin` names it in errors. Raises TinlabError that names the field."""
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise TinlabError(f"{origin}: {_first_fault(error, value)}") from error
    except UnicodeEncodeError as error:
        raise TinlabError(f"{origin}: half of a character stands alone in it") from error


def read_recipe(path: Path) -> Recipe:
    """The recipe in file `path`. Raises TinlabError where it cannot be read or is no recipe."""
    return parse_recipe(read_given_json(path), str(path))


def changed(recipe: Recipe, assignments: Iterable[str]) -> Recipe:
    """`recipe` with each `path=value` applied; a value is JSON where it parses as such, otherwise a string.

    `schedule.steps` and `schedule.epochs` replace each other. Raises TinlabError that names the field.
    """
    value = recipe.model_dump(mode="json")
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise TinlabError(f"--set takes PATH=VALUE, such as optimizer.peak_lr=0.1, not '{assignment}'")
        _assign(value, path, _parse(text), "--set")
        if recipe.provenance and isinstance(sources := value["provenance"], dict):
            # What lay in it may be gone.
            value["provenance"] = {p: why for p, why in sources.items() if not p.startswith(f"{path}.")}
            value["provenance"][path] = {"kind": "changed", "why": f"set to {text} by hand"}
    return parse_recipe(value, "--set")


def _assign(value: Any, path: str, item: Any, where: str) -> None:
    """Set the field at `path` of a recipe's JSON value; `where` begins the error where there is none."""
    *groups, last = path.split(".")
    group = value
    for name in groups:
        group = _member(group, name, f"{where} {path}")
    _member(group, last, f"{where} {path}")
    group[int(last) if isinstance(group, list) else last] = item
    if path in ("schedule.steps", "schedule.epochs") and item is not None:
        group["epochs" if last == "steps" else "steps"] = None


def _member(group: Any, name: str, where: str) -> Any:
    if isinstance(group, dict) and name in group:
        return group[name]
    if isinstance(group, list) and re.fullmatch("[0-9]{1,6}", name) and int(name) < len(group):
        return group[int(name)]
    known = list(group) if isinstance(group, dict) else []
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}" if known else ""
    raise TinlabError(f"{where}: there is no field '{name}'{'; ' if hint else ''}{hint}")


def _parse(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


def _first_fault(error: ValidationError, value: Any) -> str:
    """One sentence for the first thing that pydantic found wrong."""
    fault = error.errors()[0]
    path = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path.split(".")[-1], _field_names(Recipe), n=1)
        return f"there is no field '{path}'" + (f"; did you mean '{near[0]}'?" if near else "")
    if fault["type"] == "union_tag_invalid":
        there = fault["ctx"]["expected_tags"].replace("'", "")
        return f"{path}: there is no '{fault['ctx']['tag']}'; there are: {there}"
    given = fault.get("input")
    plain = isinstance(given, dict | list | tuple) or given is value or message.endswith("?")
    shown = "" if plain else f", not {given!r}"
    return f"{path or 'the recipe'}: {message[0].lower()}{message[1:]}{shown}"


def _field_names(knobs: type[BaseModel]) -> list[str]:
    names: list[str] = []
    for name, field in knobs.model_fields.items():
        names.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names.extend(_field_names(field.annotation))
    return names
