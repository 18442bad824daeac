"""Two tiny runs, and servers of them."""

from __future__ import annotations

import numpy as np
import pytest
from made_files import encoded
from PIL import Image

import tinlab
from tinlab.recipe import changed
from tinlab.serve.samples import find_samples
from tinlab.serve.service import Service
from tinlab.training import loop


@pytest.fixture(scope="session")
def runs(tiny_recipe, shapes_pack, tmp_path_factory):
    """Folders of two runs, of one recipe, for images of 64 pixels; one is in bf16."""
    out = tmp_path_factory.mktemp("runs")
    made = []
    for name, precision in (("first", "fp32"), ("second", "bf16")):
        recipe = changed(tiny_recipe.model_copy(update={"name": name}), [f"compute.precision={precision}"])
        made.append(loop.train(recipe, shapes_pack, out, seed=len(made), device="cpu").path)
    return made


@pytest.fixture(scope="session")
def classifiers(runs):
    return {run.name.split("-")[0]: tinlab.load(run, device="cpu") for run in runs}


@pytest.fixture(scope="session")
def samples(classifiers):
    return find_samples(classifiers.values())


@pytest.fixture
def make_service(classifiers):
    """Services with limits and methods of the test's own, closed after it."""
    made = []

    def make(limits=None, **options):
        made.append(Service(options.pop("models", classifiers), limits, **options))
        return made[-1]

    yield make
    for service in made:
        if service.batcher.alive and service.batcher._thread.ident:
            service.close()


@pytest.fixture(scope="session")
def pictures(shapes_pack) -> list[bytes]:
    """Ten validation images as PNG files."""
    return [
        encoded(Image.fromarray(np.array(pixels)), "PNG") for pixels in shapes_pack.split("val").images[:10]
    ]
