"""Every recipe of a paper trains: two steps of each of its stages, as narrow as its network goes."""

import pytest
import torch
from safetensors.torch import save_file

from tinlab import models, recipes
from tinlab.data.packing import pack
from tinlab.data.shapes import render
from tinlab.recipe import Recipe, parse_recipe
from tinlab.training import loop

TOO_LARGE = {"shcherbina_alexnet"}
PAPERS = [name for name in recipes.RECIPES if recipes.find(name).paper]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Two classes with ten training images each, and four to measure on."""
    folder = tmp_path_factory.mktemp("few")
    return pack(
        render(folder / "shapes", classes=2, train_per_class=10, val_per_class=2, test_images=2),
        folder / "pack",
    )


def quick(recipe: Recipe, weights=None) -> Recipe:
    """`recipe` in batches of four, for two steps a stage, at width 4 where its network has one."""
    value = recipe.model_dump(mode="json")
    value["schedule"] |= {"steps": 2, "epochs": None, "batch_size": 4, "warmup_fraction": 0.0}
    if value["schedule"]["shape"] == "step":
        value["schedule"]["milestone_steps"] = [1]
    for stage in value["stages"]:
        stage["changes"] = {
            name: item for name, item in stage["changes"].items() if name != "schedule.epochs"
        }
    if "width" in models.find(recipe.model.name).options and weights is None:
        value["model"]["width"] = 4
    if value["model"]["weights"] == "imagenet":
        value["model"]["weights"] = str(weights)
    return parse_recipe(value, "quick")


@pytest.mark.parametrize(
    "name", [n for n in PAPERS if not recipes.find(n).model.weights and n not in TOO_LARGE]
)
def test_a_recipe_trains(name, few, tmp_path):
    recipe = quick(recipes.find(name))
    run = loop.train(recipe, few, tmp_path, device="cpu")
    assert run.result["steps"] == 2 * max(1, len(recipe.stages))
    assert 0 <= run.result["top1_percent"] <= 100


@pytest.mark.parametrize("name", [n for n in PAPERS if recipes.find(n).model.weights])
def test_a_recipe_that_begins_from_imagenets_weights_trains_from_a_file_like_theirs(name, few, tmp_path):
    recipe = recipes.find(name)
    fresh = recipe.model.fresh_layers
    # As torchvision's file: a classifier of 1000 classes, and other shapes where the recipe starts anew.
    knobs = recipe.model.model_copy(update={"weights": None, "fresh_layers": ()})
    torch.manual_seed(1)
    file = {
        tensor: value if not tensor.startswith(fresh) else value[:2].clone()
        for tensor, value in models.build(knobs, 1000).state_dict().items()
    }
    save_file(file, tmp_path / "weights.safetensors")
    short = quick(recipe, tmp_path / "weights.safetensors")
    first = models.find(recipe.model.name)
    model = first.build(first.resolve(short.phases[0].model), 2)
    loaded = models.begin(model, short.phases[0].model, torch.zeros(2, 3, 64, 64))
    assert loaded is not None
    assert loaded.classifier_kept_new
    kept = {tensor for tensor in file if not tensor.startswith((*fresh, first.classifier))}
    assert all(torch.equal(model.state_dict()[tensor], file[tensor]) for tensor in kept)
    run = loop.train(short, few, tmp_path / "runs", device="cpu")
    assert run.result["steps"] == 2 * max(1, len(recipe.stages))


@pytest.mark.parametrize("kernel", [11, 9, 7])
def test_what_is_too_large_to_train_here_has_the_right_shapes(kernel):
    recipe = recipes.find("shcherbina_alexnet")
    knobs = recipe.model.model_copy(update={"first_kernel": kernel})
    sketch = models.sketch(knobs, 200)
    assert sum(p.numel() for p in sketch.parameters()) > 1.3e9
    assert sketch.conv1.weight.shape == (64, 3, kernel, kernel)


def test_a_shortened_recipe_keeps_its_proportions():
    full = recipes.find("sun_final")
    short = recipes.find("sun_final-budget-0.1")
    assert (short.schedule.steps, short.schedule.milestone_steps) == (7000, (4000, 6000))
    assert short.digest != full.digest
    assert recipes.budget_of(short) == "7,000 of 70,000 steps"
    assert recipes.budget_of(short, epochs=7.0) == "7 of 70 epochs"
    assert recipes.budget_of(full) == ""
    assert short.provenance["schedule.steps"].kind == "changed"
    same = {"data", "augment", "model", "loss", "optimizer", "compute"}
    assert all(getattr(short, name) == getattr(full, name) for name in same)
    assert recipes.shortened(full, 1) == full


def test_a_shortened_recipe_has_shorter_stages():
    full, short = recipes.find("shcherbina_pruned"), recipes.find("shcherbina_pruned-budget-0.5")
    assert [p.schedule.epochs for p in full.phases] == [17, 2, 2, 2]
    assert [p.schedule.epochs for p in short.phases] == [8.5, 1, 1, 1]
    assert recipes.budget_of(short) == "11.5 of 23 epochs"


def test_hard_classes_are_looked_for_as_often_in_a_shortened_recipe():
    short = recipes.find("shcherbina_targeted-budget-0.1")
    assert short.evaluate_every_epochs == pytest.approx(0.1)


def test_the_name_of_a_shortened_recipe_leads_to_it():
    short = recipes.shortened(recipes.find("yu_resnet20"), 1 / 3)
    assert short.name == "yu_resnet20-budget-0.333333"
    assert recipes.find(short.name) == short
    least = recipes.shortened(recipes.find("yu_resnet20"), recipes.LEAST_FRACTION)
    assert recipes.find(least.name) == least


@pytest.mark.parametrize("fraction", [0, -1, 1.5, 0.00001])
def test_a_budget_is_a_share(fraction):
    with pytest.raises(recipes.TinlabError, match="budget"):
        recipes.shortened(recipes.find("demo"), fraction)
