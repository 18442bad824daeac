import pytest

import tinlab
from tinlab.recipe import changed
from tinlab.training import loop


@pytest.fixture(scope="package")
def run(tiny_recipe, shapes_pack, tmp_path_factory):
    """A tiny network trained on rendered images, in a run folder."""
    recipe = changed(tiny_recipe, ["schedule.steps=60", "compute.precision=fp32", "data.image_sizes=[64]"])
    return loop.train(recipe, shapes_pack, tmp_path_factory.mktemp("explained"), device="cpu")


@pytest.fixture(scope="package")
def network(run):
    return tinlab.load(run.path, device="cpu")
