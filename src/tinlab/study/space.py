"""What a search may change: fields of a recipe, each with a range or a list of choices."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tinlab.errors import TinlabError
from tinlab.files import parse_json
from tinlab.recipe import Provenance, Recipe, changed, parse_recipe

HOW = "--space takes PATH=LOW:HIGH, PATH=LOW:HIGH:log, or PATH=VALUE|VALUE|…"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where both ends are int."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[str, ...]:
        """Values to check a recipe with: the ends, and one between that is not whole where some are not."""
        between = () if self.whole else (json.dumps(self.low + (self.high - self.low) / 3.000001),)
        return (json.dumps(self.low), json.dumps(self.high), *between)


@dataclass(frozen=True)
class Choice:
    """One of some values, each as `--set` takes it."""

    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        return self.values


Space = dict[str, Range | Choice]


def parse_space(assignments: Iterable[str]) -> Space:
    """`--space` options -> field path -> what it may be. Raises TinlabError where one is no such thing."""
    space: Space = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path or not text:
            raise TinlabError(f"{HOW}, not '{assignment}'")
        if path in space:
            raise TinlabError(f"--space names {path} twice; give it one range or one list of choices")
        space[path] = _parse(text, assignment)
    if not space:
        raise TinlabError(
            f"a search needs something to change: {HOW}; such as optimizer.peak_lr=0.01:0.5:log"
        )
    return space


def check_space(space: Space, recipe: Recipe) -> None:
    """Raise TinlabError where a field does not exist or would not take a value of its range, and where val
    would decide."""
    if recipe.data.train_split != "train" or "data.train_split" in space:
        raise TinlabError(
            "a search selects by top-1 on tune, so the recipe must train without those images: "
            "data.train_split must be 'train'"
        )
    for path, found in space.items():
        for end in found.ends:
            changed(recipe, [f"{path}={end}"])


def fitted(space: Space, recipe: Recipe) -> Space:
    """`space`, in which ranges of whole numbers are of all numbers where their field takes fractions."""
    return {path: _fitted(path, found, recipe) for path, found in space.items()}


def _fitted(path: str, found: Range | Choice, recipe: Recipe) -> Range | Choice:
    if isinstance(found, Choice) or not found.whole:
        return found
    wide = replace(found, low=float(found.low), high=float(found.high))
    try:
        for end in wide.ends:
            changed(recipe, [f"{path}={end}"])
    except TinlabError:
        return found
    return wide


def with_values(recipe: Recipe, values: Mapping[str, Any], name: str, summary: str, why: str) -> Recipe:
    """`recipe` with the values of a trial, and a note of where they come from."""
    new = changed(recipe, assignments(values))
    sources = {path: Provenance(kind="changed", why=why) for path in values}
    named = new.model_copy(
        update={"name": name, "summary": summary, "provenance": {**new.provenance, **sources}}
    )
    return parse_recipe(named.model_dump(mode="json"), name)


def assignments(values: Mapping[str, Any]) -> list[str]:
    """The values of a trial as `--set` takes them."""
    return [
        f"{path}={value if isinstance(value, str) else json.dumps(value)}" for path, value in values.items()
    ]


def to_json(space: Space) -> dict[str, Any]:
    """The space as JSON."""
    return {
        path: list(found.values) if isinstance(found, Choice) else [found.low, found.high, found.log]
        for path, found in space.items()
    }


def _parse(text: str, assignment: str) -> Range | Choice:
    if "|" in text:
        values = tuple(value.strip() for value in text.split("|"))
        if not all(values) or len(set(values)) < len(values):
            raise TinlabError(f"--space {assignment}: a choice is empty or stands there twice")
        return Choice(values)
    found = re.fullmatch(r"([^:]+):([^:]+)(:log)?", text)
    if not found:
        raise TinlabError(f"{HOW}, not '{assignment}'")
    low, high = _number(found[1], assignment), _number(found[2], assignment)
    if not low < high:
        raise TinlabError(f"--space {assignment}: {found[1]} is not below {found[2]}")
    if found[3] and low <= 0:
        raise TinlabError(f"--space {assignment}: a logarithm needs a range above 0")
    return Range(low, high, bool(found[3]))


def _number(text: str, assignment: str) -> float:
    try:
        value = parse_json(text)
    except ValueError:
        try:
            value = float(text)  # 1. and .5, which JSON has not
        except ValueError:
            value = None
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
    except OverflowError:  # a whole number beyond all floats
        pass
    raise TinlabError(f"--space {assignment}: '{text}' is no number")
