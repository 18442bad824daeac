import pytest

from tinlab import models, recipes
from tinlab.errors import TinlabError


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_names_a_network_that_takes_its_images(name):
    recipe = recipes.find(name)
    assert recipe.name == name
    assert recipe.summary
    models.check(recipe.model, 200, image_size=64, train_sizes=recipe.data.image_sizes)


@pytest.mark.parametrize("name", [n for n in recipes.RECIPES if recipes.find(n).paper])
def test_a_papers_recipe_says_where_its_values_come_from(name):
    recipe = recipes.find(name)
    fields = recipe.model_dump()
    length = "schedule.steps" if recipe.schedule.steps else "schedule.epochs"
    for path in ("model.name", "optimizer.peak_lr", "schedule.batch_size", length):
        group, field = path.split(".")
        assert fields[group][field] is not None
        assert recipe.provenance[path].why


def test_another_network_leaves_out_what_it_does_not_have():
    demo = recipes.find("demo")
    changed, left_out = recipes.with_changes(demo, ["model.name=vgg16"])
    assert left_out == ("model.width", "model.stem", "model.shortcut", "model.zero_last_bn")
    models.check(changed.model, 10, image_size=64)
    same, none = recipes.with_changes(demo, ["model.name=resnet34"])
    assert none == ()
    assert same.model.width == demo.model.width


def test_what_is_asked_for_is_not_left_out():
    changed, left_out = recipes.with_changes(recipes.find("demo"), ["model.name=vgg16", "model.width=8"])
    assert "model.width" not in left_out
    with pytest.raises(TinlabError, match=r"model.width: vgg16 has none"):
        models.check(changed.model, 10, image_size=64)


def test_the_two_overfitting_recipes_differ_in_three_values():
    one, other = (recipes.find(name) for name in ("ma_overfit", "ma_overfit_failing"))
    assert one.optimizer.peak_lr == 100 * other.optimizer.peak_lr
    same = {"data", "augment", "model", "loss", "compute"}
    assert all(getattr(one, name) == getattr(other, name) for name in same)
