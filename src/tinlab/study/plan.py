"""What a study is: recipes and seeds, as one frozen value, and the ways to write one down."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from tinlab import recipes
from tinlab.errors import TinlabError
from tinlab.files import is_file, parse_json, read_given_json, read_json
from tinlab.recipe import Recipe, changed
from tinlab.recipe.knobs import Knobs

Seed = Annotated[int, Field(ge=0, lt=2**63)]
MOST_RUNS = 10_000
"""A study of more is a slip of the pen."""
NAME = r"^[a-z0-9][a-z0-9_.-]{0,63}$"


class Study(Knobs):
    """Recipes times seeds. As JSON it is a file that `tinlab study` takes."""

    name: Annotated[str, Field(pattern=NAME)]
    summary: str = ""
    recipes: Annotated[tuple[Recipe | str, ...], Field(min_length=1)]
    """Each a name, a file, or a whole recipe; the others are compared with the first."""
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Field path -> values: every recipe is run with every combination of them."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)


@dataclass(frozen=True)
class Trial:
    """One run of a study: a recipe and a seed."""

    recipe: Recipe
    seed: int

    @property
    def key(self) -> str:
        """The trial's name inside its study, and what its files are called."""
        return f"{self.recipe.name}-s{self.seed}"


def trials(study: Study) -> list[Trial]:
    """Every recipe of a resolved study with every seed; the first seed of all recipes comes first, so that a
    study that is stopped early can compare them."""
    return [Trial(recipe, seed) for seed in study.seeds for recipe in whole(study)]


def whole(study: Study) -> tuple[Recipe, ...]:
    """The recipes of a resolved study."""
    assert not study.grid
    return tuple(recipe for recipe in study.recipes if isinstance(recipe, Recipe))


def resolved(study: Study, find: Any = recipes.find) -> Study:
    """`study` with every recipe looked up and the grid spread out, so that it depends on nothing else.

    Raises TinlabError for an unknown recipe, an unknown field or a bad value, and where two recipes have the
    same name.
    """
    combinations = math.prod(len(values) for values in study.grid.values())
    if (count := combinations * len(study.recipes) * len(study.seeds)) > MOST_RUNS:
        raise TinlabError(f"study {study.name} asks for {count:,} runs; a study has at most {MOST_RUNS:,}")
    found: list[Recipe] = []
    # What is the same for all of them says nothing in a name.
    naming = {path for path, values in study.grid.items() if len(values) > 1} or set(study.grid)
    for given in study.recipes:
        base = find(given) if isinstance(given, str) else given
        for combination in itertools.product(*study.grid.values()):
            found.append(varied(base, dict(zip(study.grid, combination, strict=True)), naming))
    seen: dict[str, Recipe] = {}
    for recipe in found:
        if seen.setdefault(recipe.name, recipe) != recipe:
            raise TinlabError(f"study {study.name} has two different recipes called '{recipe.name}'")
    if repeated := sorted({s for s in study.seeds if study.seeds.count(s) > 1}):
        raise TinlabError(f"study {study.name} names seed {repeated[0]} twice")
    return study.model_copy(update={"recipes": tuple(seen.values()), "grid": {}})


def varied(base: Recipe, values: Mapping[str, Any], naming: Collection[str]) -> Recipe:
    """`base` with fields set to `values`, named after those in `naming`: tiny, {"optimizer.peak_lr": 0.1} ->
    tiny-peak_lr-0.1."""
    if not values:
        return base
    texts = {path: _text(value) for path, value in values.items()}
    recipe = changed(base, [f"{path}={text}" for path, text in texts.items()])
    words = [f"{path.rpartition('.')[2]}-{text}" for path, text in texts.items() if path in naming]
    summary = ", ".join(f"{path}={text}" for path, text in texts.items())
    name = file_name("-".join([base.name, *words]))
    return recipe.model_copy(update={"name": name, "summary": f"{base.name} with {summary}"})


def file_name(words: str) -> str:
    """`words` as a recipe's name, never that of a folder above; what is too long ends in a digest, so that
    it stays its own."""
    digest = hashlib.sha256(words.encode(errors="surrogatepass")).hexdigest()[:8]
    name = re.sub(r"[^a-z0-9_.]+", "-", words.lower().replace("+", "")).rstrip("-").lstrip("-._")
    return f"{name[:55]}-{digest}" if len(name) > 64 else name or digest


def parse_grid(assignments: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """`PATH=VALUE,VALUE,…`, one a field -> the grid. Raises TinlabError where one is no such thing."""
    grid: dict[str, tuple[Any, ...]] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        values = split_values(text)
        if not equals or not path or not all(values):
            raise TinlabError(
                f"--set takes PATH=VALUE,VALUE,…, such as optimizer.peak_lr=0.05,0.1, not '{assignment}'"
            )
        if path in grid:
            raise TinlabError(f"--set names {path} twice; list its values once, with commas between them")
        grid[path] = tuple(map(_value, values))
    return grid


def split_values(text: str) -> list[str]:
    """`text` cut at the commas that stand outside brackets, braces and quotes."""
    cuts, depth, quoted = [-1], 0, False
    for place, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif not quoted:
            depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quoted:
            cuts.append(place)
    return [text[a + 1 : b].strip() for a, b in itertools.pairwise([*cuts, len(text)])]


def parse_seeds(text: str) -> tuple[int, ...]:
    """`3` -> 0, 1, 2; `4,7` -> 4, 7 (`4,` is seed 4 alone). Raises TinlabError for anything else."""
    pieces = [piece for piece in text.split(",") if piece.strip()]
    try:
        numbers = tuple(int(piece) for piece in pieces)
    except ValueError:
        numbers = ()
    if len(numbers) > MOST_RUNS or ("," not in text and numbers and numbers[0] > MOST_RUNS):
        raise TinlabError(f"--seeds: a study has at most {MOST_RUNS:,} seeds")
    found = numbers if "," in text or not numbers else tuple(range(numbers[0]))
    if not found or min(found) < 0 or max(found) >= 2**63:
        raise TinlabError(f"--seeds takes how many, such as 3, or a list, such as 0,1,2, not '{text}'")
    return found


def read_study(path: Path) -> Study:
    """The study in file `path`. Raises TinlabError where it cannot be read or is no study."""
    value = read_given_json(path)
    try:
        return Study.model_validate(value)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"] if part != "str")
        message = fault["msg"].removeprefix("Value error, ")
        raise TinlabError(f"{path}: {place or 'the study'}: {message[0].lower()}{message[1:]}") from error


def find(names: Sequence[str], builtin: Mapping[str, Any]) -> Study:
    """The study that `names` stand for: one name of `builtin`, one study file, or a list of recipes.

    Raises TinlabError where a name is neither.
    """
    if len(names) == 1 and names[0] in builtin:
        study: Study = builtin[names[0]]()
        return study
    if len(names) == 1 and _is_study_file(Path(names[0])):
        return read_study(Path(names[0]))
    for name in names:
        if name in recipes.RECIPES or name.endswith(".json") or recipes.BUDGET.search(name):
            continue
        if is_file(Path(name)) or is_file(Path(name) / "recipe.json"):
            continue
        near = difflib.get_close_matches(name, [*builtin, *recipes.RECIPES], n=3) or list(builtin)
        raise TinlabError(f"there is no study or recipe '{name}'; try {', '.join(near)}")
    found = [recipes.find(name) for name in names]
    return Study(name=file_name("-".join(recipe.name for recipe in found)), recipes=tuple(found))


def _is_study_file(path: Path) -> bool:
    """Whether `path` holds JSON with a list of recipes, which no recipe has."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and "recipes" in value


def _value(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


def _text(value: Any) -> str:
    """A value as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value)
