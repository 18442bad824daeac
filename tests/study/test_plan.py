"""Studies as they are written down."""

from __future__ import annotations

import json

import pytest

from tinlab import recipes
from tinlab.errors import TinlabError
from tinlab.recipe import changed
from tinlab.study.plan import (
    Study,
    file_name,
    find,
    parse_grid,
    parse_seeds,
    read_study,
    resolved,
    split_values,
    trials,
    whole,
)
from tinlab.study.studies import STUDIES


def test_a_grid_is_every_combination_named_after_its_values(tiny_recipe):
    grid = parse_grid(["optimizer.peak_lr=0.05,0.1", "model.block_order=c,e"])
    assert grid == {"optimizer.peak_lr": (0.05, 0.1), "model.block_order": ("c", "e")}
    found = whole(resolved(Study(name="x", recipes=(tiny_recipe,), grid=grid)))
    assert [(r.optimizer.peak_lr, r.model.block_order) for r in found] == [
        (0.05, "c"), (0.05, "e"), (0.1, "c"), (0.1, "e"),
    ]  # fmt: skip
    assert found[0].name == "tiny-peak_lr-0.05-block_order-c"
    assert found[0].digest == changed(tiny_recipe, ["model.block_order=c"]).digest


def test_the_first_seed_of_every_recipe_comes_first(tiny_recipe):
    study = resolved(Study(name="x", recipes=(tiny_recipe,), grid={"model.width": (2, 4)}, seeds=(5, 7)))
    assert [trial.key for trial in trials(study)] == [
        "tiny-width-2-s5", "tiny-width-4-s5", "tiny-width-2-s7", "tiny-width-4-s7",
    ]  # fmt: skip


def test_a_resolved_study_goes_through_a_file_unchanged(tiny_recipe, tmp_path):
    study = resolved(Study(name="x", recipes=("demo", tiny_recipe), seeds=(0,)))
    path = tmp_path / "study.json"
    path.write_text(study.model_dump_json())
    assert read_study(path) == study
    assert find([str(path)], STUDIES) == study
    assert resolved(study) == study


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("0.1,0.2", ["0.1", "0.2"]),
        ("[32,64],[64]", ["[32,64]", "[64]"]),
        ('{"kind": "he", "fan": "out"}, xavier', ['{"kind": "he", "fan": "out"}', "xavier"]),
        ('"a,b",c', ['"a,b"', "c"]),
    ],
)
def test_values_are_cut_at_outer_commas(text, pieces):
    assert split_values(text) == pieces


def test_seeds_are_a_number_or_a_list():
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("4,7") == (4, 7)
    assert parse_seeds("4,") == (4,)
    for bad in ("0", "x", "-1,2", ""):
        with pytest.raises(TinlabError, match="--seeds"):
            parse_seeds(bad)


def test_names_are_made_of_what_a_recipe_may_be_called():
    assert file_name("tiny-peak_lr-1e+30") == "tiny-peak_lr-1e30"
    long = file_name("x" * 70)
    assert len(long) == 64
    assert long != file_name("x" * 71)


@pytest.mark.parametrize("name", STUDIES)
def test_built_in_studies_are_made_of_knobs_that_exist(name):
    study = resolved(find([name], STUDIES))
    assert study.name == name
    assert len(whole(study)) > 1


def test_suns_blocks_are_six_recipes_that_differ_in_depth_and_block():
    found = whole(resolved(STUDIES["sun_blocks"]()))
    assert {(r.model.name, r.model.block_order) for r in found} == {
        (f"resnet{depth}", order) for depth in (18, 34, 50) for order in "ce"
    }
    assert {r.model.final_survival for r in found} == {0.5}
    assert {r.provenance["model.block_order"].kind for r in found} == {"stated"}


def test_a_recipe_is_named_as_it_is_elsewhere(tiny_recipe, tmp_path):
    (tmp_path / "recipe.json").write_text(tiny_recipe.model_dump_json())  # as a run's folder has it
    found = find([str(tmp_path), "fast_cpu-budget-0.1"], STUDIES)
    assert found.recipes == (tiny_recipe, recipes.find("fast_cpu-budget-0.1"))
    with pytest.raises(TinlabError, match="no study or recipe 'fast_cpuu'; try fast_cpu"):
        find(["fast_cpuu"], STUDIES)


BAD = {
    "two of a name": ({"recipes": ["demo", {**recipes.find("demo").model_dump(), "summary": "x"}]}, "demo"),
    "unknown recipe": ({"recipes": ["dmo"]}, "dmo"),
    "unknown field": ({"recipes": ["demo"], "grid": {"model.widht": [2]}}, "width"),
    "bad value": ({"recipes": ["demo"], "grid": {"model.width": ["wide"]}}, "model.width"),
    "seed twice": ({"recipes": ["demo"], "seeds": [1, 1]}, "seed 1"),
    "no recipes": ({"recipes": []}, "recipes"),
    "other key": ({"recipes": ["demo"], "sedes": 3}, "sedes"),
    "bad name": ({"recipes": ["demo"], "name": "../up"}, "name"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_study_is_refused_with_its_fault(case, tmp_path):
    value, expected = BAD[case]
    path = tmp_path / "study.json"
    path.write_text(json.dumps({"name": "x", **value}))
    with pytest.raises(TinlabError, match=expected):
        resolved(read_study(path))
