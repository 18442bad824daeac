"""A network that sees images of another size than the pack's, wherever it is measured or used."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tinlab import explain, load
from tinlab.errors import TinlabError
from tinlab.evaluating import predictions_of
from tinlab.export import load_onnx
from tinlab.export.exporting import export_run
from tinlab.recipe import changed
from tinlab.runs import open_run
from tinlab.serve.service import METHODS, _explaining
from tinlab.training import loop

SIZE = 40


@pytest.fixture(scope="module")
def run(tiny_recipe, shapes_pack, tmp_path_factory):
    recipe = changed(tiny_recipe, [f"data.measured_size={SIZE}", "compute.precision=fp32"])
    return loop.train(recipe, shapes_pack, tmp_path_factory.mktemp("runs"), device="cpu")


def by_hand(run, images, size=SIZE):
    """Logits by torch's own antialiased resize."""
    shown = run.preprocessing
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (shown.mean, shown.std))
    with torch.inference_mode():
        return load(run.path, "cpu").model((x - mean) / std).numpy()


def test_the_run_knows_both_sizes(run, shapes_pack):
    shown = open_run(run.path).preprocessing
    assert (shown.image_size, shown.measured_size, shown.network_size) == (64, SIZE, SIZE)
    assert shapes_pack.info.image_size == 64


def test_val_is_measured_at_that_size(run, shapes_pack):
    images = np.array(shapes_pack.split("val").images)
    found = predictions_of(run.path).logits
    assert np.allclose(found, by_hand(run, images), atol=1e-3)
    top1 = 100 * (found.argmax(1) == shapes_pack.split("val").labels).mean()
    assert run.result["top1_percent"] == pytest.approx(top1)


class Enough(Exception):
    pass


def test_while_images_grow_the_curve_is_measured_at_the_size_in_training(tiny_recipe, shapes_pack, tmp_path):
    growing = ["data.image_sizes=[16,24]", f"data.measured_size={SIZE}", "compute.precision=fp32"]
    recipe = changed(tiny_recipe, [*growing, "evaluate_every_epochs=0.6"])  # every 4 steps

    def until_5(progress):
        if progress.step == 5:
            raise Enough

    with pytest.raises(Enough):
        loop.train(recipe, shapes_pack, tmp_path, device="cpu", checkpoint_seconds=0, watch=until_5)
    (stopped,) = tmp_path.iterdir()
    held_out = shapes_pack.split("tune")
    logits = by_hand(open_run(stopped), np.array(held_out.images), size=16)  # by the weights of step 4
    run = loop.resume(stopped, device="cpu", pack=shapes_pack)
    points = [p for p in run.metrics() if p["kind"] == "eval"]
    assert [(p["step"], p["image_size"]) for p in points] == [(4, 16), (8, SIZE), (12, SIZE)]
    losses = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(np.array(held_out.labels)).long())
    assert points[0]["loss"] == pytest.approx(losses.item(), rel=1e-4)
    assert points[-1]["top1_percent"] == run.result["top1_percent"]


def test_it_is_another_size_than_the_packs(run, shapes_pack, tiny_recipe, tmp_path):
    plain = changed(tiny_recipe, ["compute.precision=fp32"])
    other = loop.train(plain, shapes_pack, tmp_path, device="cpu")
    assert other.preprocessing.network_size == 64
    assert not np.allclose(predictions_of(other.path).logits, predictions_of(run.path).logits, atol=1e-2)


def test_images_that_people_bring_are_seen_as_val_is(run, shapes_pack):
    image = np.array(shapes_pack.split("val").images[3])
    found = load(run.path, "cpu").probabilities([image])
    expected = torch.from_numpy(by_hand(run, image[None])).softmax(1).numpy()
    assert np.allclose(found, expected, atol=1e-4)


def test_the_exported_file_resizes_too(run, shapes_pack, tmp_path):
    export_run(run.path, tmp_path / "m.onnx", int8=True, calibration_images=32)
    images = np.array(shapes_pack.split("val").images[:8])
    loaded = load_onnx(tmp_path / "m.onnx")
    assert loaded.image_size == 64
    assert np.allclose(loaded.logits(images), by_hand(run, images), atol=1e-3)
    near = load_onnx(tmp_path / "m-int8.onnx").logits(images)
    assert np.abs(near - by_hand(run, images)).max() < 0.5


def test_maps_lie_on_the_images_as_they_are_stored(run, shapes_pack):
    classifier = load(run.path, "cpu")
    chosen = explain.from_split(shapes_pack.split("val"), images=2)
    for found in explain.explain(classifier, chosen, methods=["saliency", "grad_cam"]):
        assert found.image.shape == (64, 64, 3)
        assert {picture.shape for picture in found.pictures.values()} == {(64, 64, 3)}


def test_so_do_the_servers_maps(run, shapes_pack):
    image = np.array(shapes_pack.split("val").images[0])
    (made,) = _explaining(load(run.path, "cpu"), METHODS["grad_cam"])([(image, None)])
    assert made.map.shape == (64, 64)


def test_a_size_that_the_network_cannot_take_is_refused_before_training(tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(tiny_recipe, ["model.name=vgg16", "model.width=null", "model.stem=null"])
    with pytest.raises(TinlabError, match="8x8"):
        loop.train(changed(recipe, ["data.measured_size=8"]), shapes_pack, tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, -3, 10**9, "forty", [40]])
def test_a_damaged_size_is_refused(run, size):
    path = run.path / "run.json"
    whole = path.read_text()
    about = json.loads(whole)
    about["preprocessing"]["measured_size"] = size
    path.write_text(json.dumps(about))
    try:
        with pytest.raises(TinlabError, match="damaged"):
            open_run(run.path)
    finally:
        path.write_text(whole)
