from itertools import pairwise

import pytest

from tinlab import models, recipes
from tinlab.errors import TinlabError
from tinlab.papers.registry import every_row, row
from tinlab.recipe import changed
from tinlab.training.optimizer import rate_factors


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_names_a_network_that_takes_its_images(name):
    recipe = recipes.find(name)
    assert recipe.name == name
    assert recipe.summary
    for phase in recipe.phases:
        models.check(phase.model, 200, image_size=64, train_sizes=phase.data.image_sizes)
        factors = rate_factors(phase.optimizer, models.sketch(phase.model, 200))
        assert any(factor > 0 for factor in factors.values())
    assert changed(recipe, []) == recipe


def test_each_stage_of_layerwise_training_lets_one_more_layer_learn():
    recipe = recipes.find("shcherbina_layerwise")
    sketch = models.sketch(recipe.model, 200)
    names = {p: name for name, p in sketch.named_parameters()}
    learning = [
        {names[p].rpartition(".")[0] for p, factor in rate_factors(phase.optimizer, sketch).items() if factor}
        for phase in recipe.phases
    ]
    assert learning[0] == {"conv1", "bn1"}
    assert learning[-1] == {name.rpartition(".")[0] for name in names.values()}
    steps = [later - earlier for earlier, later in pairwise(learning)]
    assert steps == [{f"conv{n}", f"bn{n}"} for n in range(2, 10)] + [{"fc1", "bn10"}, {"classifier"}]


@pytest.mark.parametrize("name", [n for n in recipes.RECIPES if recipes.find(n).paper])
def test_a_papers_recipe_says_where_its_values_come_from(name):
    recipe = recipes.find(name)
    fields = recipe.model_dump()
    length = "schedule.steps" if recipe.schedule.steps else "schedule.epochs"
    for path in ("model.name", "optimizer.peak_lr", "schedule.batch_size", length):
        group, field = path.split(".")
        assert fields[group][field] is not None
        assert recipe.provenance[path].why


@pytest.mark.parametrize("name", [row.id for row in every_row() if any(one.paper for one in row.recipes)])
def test_a_papers_recipe_says_where_each_value_that_is_no_default_comes_from(name):
    for recipe in row(name).recipes:
        assert unsourced(recipe) == set()


def unsourced(recipe):
    fields = recipe.model_dump(exclude_defaults=True)
    paths = {
        f"{group}.{field}" if isinstance(value, dict) else group
        for group, value in fields.items()
        if group not in ("name", "summary", "paper", "provenance", "evaluate_every_epochs")
        for field in (value if isinstance(value, dict) else [group])
    }
    return {path for path in paths if not {path, path.split(".")[0]} & set(recipe.provenance)}


def test_another_network_leaves_out_what_it_does_not_have():
    demo = recipes.find("demo")
    other, left_out = recipes.with_changes(demo, ["model.name=vgg16"])
    assert left_out == ("model.width", "model.stem", "model.shortcut", "model.zero_last_bn")
    models.check(other.model, 10, image_size=64)
    same, none = recipes.with_changes(demo, ["model.name=resnet34"])
    assert none == ()
    assert same.model.width == demo.model.width


def test_what_is_asked_for_is_not_left_out():
    other, left_out = recipes.with_changes(recipes.find("demo"), ["model.name=vgg16", "model.width=8"])
    assert "model.width" not in left_out
    with pytest.raises(TinlabError, match=r"model.width: vgg16 has none"):
        models.check(other.model, 10, image_size=64)


def test_the_two_overfitting_recipes_differ_in_three_values():
    one, other = (recipes.find(name) for name in ("ma_overfit", "ma_overfit_failing"))
    assert one.optimizer.peak_lr == 100 * other.optimizer.peak_lr
    same = {"data", "augment", "model", "loss", "compute"}
    assert all(getattr(one, name) == getattr(other, name) for name in same)
