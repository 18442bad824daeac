"""Recipes by name. A file is a paper or an aim; a function is a recipe, and reads like a methods section."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from tinlab.errors import TinlabError
from tinlab.recipe import Recipe, read_recipe
from tinlab.recipes import demo, fast, ma, sun

RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo.demo,
    "fast_cpu": fast.fast_cpu,
    "sun_vanilla": sun.sun_vanilla,
    "ma_overfit": ma.ma_overfit,
    "ma_overfit_failing": ma.ma_overfit_failing,
}


def find(name: str) -> Recipe:
    """The recipe called `name`, or the one in the JSON file (or run folder) of that path.

    Raises TinlabError for an unknown name, with the nearest known ones.
    """
    if name in RECIPES:
        return RECIPES[name]()
    path = Path(name)
    if path.is_dir() and (path / "recipe.json").is_file():
        return read_recipe(path / "recipe.json")
    if path.suffix == ".json" or path.is_file():
        return read_recipe(path)
    near = difflib.get_close_matches(name, RECIPES, n=3) or list(RECIPES)
    raise TinlabError(f"there is no recipe '{name}'; try {', '.join(near)} ('tinlab recipes' lists all)")
