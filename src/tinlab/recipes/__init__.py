"""Recipes by name. A file is a paper or an aim; a function is a recipe, and reads like a methods section."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tinlab import models
from tinlab.errors import TinlabError
from tinlab.files import is_file
from tinlab.models.network import EVERYWHERE
from tinlab.recipe import Model, Recipe, changed, parse_recipe, read_recipe
from tinlab.recipes import best, demo, fast, ma, shcherbina, sun, yu

RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo.demo,
    "fast_cpu": fast.fast_cpu,
    "fast_cpu_56": fast.fast_cpu_56,
    "fast_cpu_65": fast.fast_cpu_65,
    "fast_cpu_pruned": fast.fast_cpu_pruned,
    "fast_gpu": fast.fast_gpu,
    "best": best.best,
    "best_resnet18": best.best_resnet18,
    "sun_vanilla": sun.sun_vanilla,
    "sun_improved": sun.sun_improved,
    "sun_final": sun.sun_final,
    "sun_finetune": sun.sun_finetune,
    "ma_finetune": ma.ma_finetune,
    "ma_overfit": ma.ma_overfit,
    "ma_overfit_failing": ma.ma_overfit_failing,
    "ma_overfit_pretrained": ma.ma_overfit_pretrained,
    "ma_scratch": ma.ma_scratch,
    "yu_baseline": yu.yu_baseline,
    "yu_alexnet": yu.yu_alexnet,
    "yu_vgg": yu.yu_vgg,
    "yu_inception": yu.yu_inception,
    "yu_resnet20": yu.yu_resnet20,
    "yu_squeezenet": yu.yu_squeezenet,
    "yu_tuned": yu.yu_tuned,
    "shcherbina_convnet9": shcherbina.shcherbina_convnet9,
    "shcherbina_convnet9_plain": shcherbina.shcherbina_convnet9_plain,
    "shcherbina_layerwise": shcherbina.shcherbina_layerwise,
    "shcherbina_vgglike": shcherbina.shcherbina_vgglike,
    "shcherbina_vgg16": shcherbina.shcherbina_vgg16,
    "shcherbina_alexnet": shcherbina.shcherbina_alexnet,
    "shcherbina_dropconnect": shcherbina.shcherbina_dropconnect,
    "shcherbina_targeted": shcherbina.shcherbina_targeted,
    "shcherbina_untargeted": shcherbina.shcherbina_untargeted,
    "shcherbina_pruned": shcherbina.shcherbina_pruned,
}

BUDGET = re.compile(r"-budget-(\d*\.?\d+)")
"""What the names of shortened recipes hold."""
LEAST_FRACTION = 1e-4
"""Of a recipe's length; smaller ones are written with an exponent."""


def find(name: str) -> Recipe:
    """The recipe called `name`, or the one in the JSON file (or run folder) of that path.

    NAME-budget-0.1 is NAME at a tenth of its length, see `shortened`. Raises TinlabError for an unknown name,
    with the nearest known ones.
    """
    if (recipe := known(name)) is not None:
        return recipe
    path = Path(name)
    if is_file(path / "recipe.json"):
        return read_recipe(path / "recipe.json")
    if path.suffix == ".json" or is_file(path):
        return read_recipe(path)
    near = difflib.get_close_matches(name, RECIPES, n=3) or list(RECIPES)
    raise TinlabError(f"there is no recipe '{name}'; try {', '.join(near)} ('tinlab recipes' lists all)")


def known(name: str) -> Recipe | None:
    """The recipe of RECIPES that is called `name`, which may be NAME-budget-0.1; None where there is none.

    Raises TinlabError for a budget that there cannot be.
    """
    if name in RECIPES:
        return RECIPES[name]()
    base, *budget = BUDGET.split(name)
    if budget and base in RECIPES and name == f"{base}-budget-{budget[0]}":
        return shortened(RECIPES[base](), float(budget[0]))
    return None


def shortened(recipe: Recipe, fraction: float) -> Recipe:
    """`recipe` at a fraction of its length, from 0.0001 to 1: steps, epochs and milestones of all stages
    are multiplied by it. It is another recipe, and is called NAME-budget-FRACTION; 1 leaves it as it is.

    The fraction is taken to six digits, as the name says it. Raises TinlabError for another fraction.
    """
    if not LEAST_FRACTION <= fraction <= 1:
        raise TinlabError(
            f"a budget is a share of the length, from {LEAST_FRACTION:g} to 1, not {fraction:g}"
        )
    fraction = float(f"{fraction:g}")
    if fraction == 1:
        return recipe
    value = recipe.model_dump(mode="json")
    _shorten(value["schedule"], fraction, "")
    for stage in value["stages"]:
        _shorten(stage["changes"], fraction, "schedule.")
    if recipe.hard_classes is not None:
        value["evaluate_every_epochs"] = recipe.evaluate_every_epochs * fraction
    for path in ("schedule.steps", "schedule.epochs", "schedule.milestone_steps"):
        if path in recipe.provenance:
            value["provenance"][path] = {"kind": "changed", "why": f"{fraction:g} of the recipe's own"}
    ending = f"-budget-{fraction:g}"
    value["name"] = recipe.name[: 64 - len(ending)] + ending
    return parse_recipe(value, value["name"])


def _shorten(fields: dict[str, Any], fraction: float, prefix: str) -> None:
    for name in ("steps", "epochs", "milestone_steps"):
        whole = fields.get(f"{prefix}{name}")
        if not whole:
            continue
        if name == "epochs":
            fields[f"{prefix}{name}"] = round(whole * fraction, 6)
        elif name == "steps":
            fields[f"{prefix}{name}"] = max(1, round(whole * fraction))
        else:
            fields[f"{prefix}{name}"] = sorted({max(1, round(step * fraction)) for step in whole})


def budget_of(recipe: Recipe, epochs: float | None = None) -> str:
    """How much of its full length a shortened recipe has, such as `6 of 70 epochs`; empty for all others.

    `epochs` are those that a run of it took, for recipes whose length is in steps; without them these are
    said in steps.
    """
    found = BUDGET.search(recipe.name)
    if found is None:
        return ""
    share = float(found[1])
    if all(phase.schedule.epochs is not None for phase in recipe.phases):
        epochs = sum(phase.schedule.epochs or 0.0 for phase in recipe.phases)
    if epochs is not None:
        return f"{epochs:.3g} of {epochs / share:.3g} epochs"
    steps = sum(phase.schedule.steps or 0 for phase in recipe.phases)
    return f"{steps:,} of {round(steps / share):,} steps"


def with_changes(recipe: Recipe, assignments: Iterable[str]) -> tuple[Recipe, tuple[str, ...]]:
    """`recipe` with each `path=value` applied, as `tinlab.recipe.changed` does, and the fields left out.

    Where the network becomes another one, the recipe's values of fields that this one does not have are left
    out, unless they are assigned here too. Raises TinlabError that names the field.
    """
    assignments = tuple(assignments)
    new = changed(recipe, assignments)
    if new.model.name == recipe.model.name:
        return new, ()
    options = models.find(new.model.name).options
    assigned = {assignment.partition("=")[0] for assignment in assignments}
    foreign = tuple(
        f"model.{name}"
        for name in Model.model_fields
        if name not in (*EVERYWHERE, *options)
        and getattr(new.model, name) is not None
        and f"model.{name}" not in assigned
    )
    return changed(new, [f"{path}=null" for path in foreign]), foreign
