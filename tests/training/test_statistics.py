"""Batch norms' statistics, taken anew over plain training images once the training is over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tinlab import load
from tinlab.errors import TinlabError
from tinlab.evaluating import predictions_of
from tinlab.recipe import changed
from tinlab.training import endings, loop

ANEW = ["data.precise_bn_images=100", "compute.precision=fp32"]


def train(recipe, pack, out, **how):
    return loop.train(recipe, pack, out, device="cpu", **how)


def buffers(run):
    return {name: b for name, b in load(run.path, "cpu").model.named_buffers() if "running" in name}


@pytest.mark.parametrize("more", [[], ["data.measured_size=40"]])
def test_they_are_those_of_plain_training_images(tiny_recipe, shapes_pack, tmp_path, more):
    run = train(changed(tiny_recipe, [*ANEW, *more]), shapes_pack, tmp_path)
    shown, split = run.preprocessing, shapes_pack.split("train")
    rows = np.linspace(0, len(split), 100, endpoint=False).astype(int)
    x = torch.from_numpy(np.array(split.images[rows])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (shown.mean, shown.std))
    x = torch.nn.functional.interpolate(
        (x - mean) / std, size=2 * (shown.network_size,), mode="bilinear", antialias=True
    )
    model = load(run.path, "cpu").model
    with torch.inference_mode():
        y = model.conv1(x)
        assert torch.allclose(model.bn1.running_mean, y.mean((0, 2, 3)), atol=1e-4)
        assert torch.allclose(model.bn1.running_var, y.var((0, 2, 3)), rtol=1e-3)
    assert {norm.momentum for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm2d)} == {0.1}


def test_they_change_what_is_measured_and_not_what_is_learnt(tiny_recipe, shapes_pack, tmp_path):
    plain = train(changed(tiny_recipe, ANEW[1:]), shapes_pack, tmp_path)
    anew = train(changed(tiny_recipe, ANEW), shapes_pack, tmp_path)
    before, after = (dict(load(run.path, "cpu").model.named_parameters()) for run in (plain, anew))
    assert all(torch.equal(before[name], after[name]) for name in before)
    before, after = buffers(plain), buffers(anew)
    assert not any(torch.equal(before[name], after[name]) for name in before)
    found = [predictions_of(run.path).logits for run in (plain, anew)]
    assert not np.allclose(*found)
    assert anew.result["top1_percent"] == pytest.approx(
        100 * (found[1].argmax(1) == shapes_pack.split("val").labels).mean()
    )


@pytest.mark.parametrize("more", [[], ["optimizer.ema_decay=0.9"]])
def test_a_resumed_run_has_the_same(tiny_recipe, shapes_pack, tmp_path, more):
    recipe = changed(tiny_recipe, [*ANEW, *more])
    whole = train(recipe, shapes_pack, tmp_path / "whole")
    with pytest.raises(endings.TimeIsUp):
        train(recipe, shapes_pack, tmp_path / "parts", stop_after_seconds=0)
    (part,) = (tmp_path / "parts").iterdir()
    resumed = loop.resume(part, device="cpu")
    for name, buffer in buffers(whole).items():
        assert torch.equal(buffer, buffers(resumed)[name]), name


def test_the_average_is_measured_with_statistics_of_its_own(tiny_recipe, shapes_pack, tmp_path):
    run = train(changed(tiny_recipe, [*ANEW, "optimizer.ema_decay=0.9"]), shapes_pack, tmp_path)
    raw = train(changed(tiny_recipe, ANEW), shapes_pack, tmp_path)
    assert run.result["weights"] == "ema"
    assert not torch.equal(buffers(run)["bn1.running_mean"], buffers(raw)["bn1.running_mean"])
    model = load(run.path, "cpu").model
    assert not model.training
    assert model.bn1.num_batches_tracked == 1


def test_frozen_batch_norms_keep_theirs(tiny_recipe, shapes_pack, tmp_path):
    frozen = 'optimizer.layer_rates=[{"layers": "bn1", "factor": 0}]'
    run = train(changed(tiny_recipe, [*ANEW, frozen]), shapes_pack, tmp_path)
    kept = load(run.path, "cpu").model
    assert torch.equal(kept.bn1.running_mean, torch.zeros(4))
    assert kept.layer1[0].bn1.running_mean.abs().sum() > 0


def test_a_network_without_batch_norm_is_refused(tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(
        tiny_recipe,
        [*ANEW, "model.name=squeezenet", "data.image_sizes=[64]", "model.width=null", "model.stem=null"],
    )
    with pytest.raises(TinlabError, match="precise_bn_images: this network has no batch norm"):
        train(recipe, shapes_pack, tmp_path)
    assert not list(tmp_path.iterdir())
