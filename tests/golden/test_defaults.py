"""A recipe's digest leaves out the fields that have their default, so a default must never change."""

import json
from pathlib import Path

from tinlab.papers.registry import recipe_called
from tinlab.recipe import Recipe, Schedule
from tinlab.results import read_results, results_file

FILE = Path(__file__).with_name("defaults.json")


def test_no_default_has_changed():
    now = Recipe(name="x", schedule=Schedule(steps=1)).model_dump(mode="json")
    for group, fields in json.loads(FILE.read_text()).items():
        assert {name: now[group][name] for name in fields} == fields, group


def test_published_rows_name_recipes_that_are_still_the_same():
    for row in read_results(results_file()):
        assert recipe_called(row["recipe"]).digest == row["recipe_digest"]
