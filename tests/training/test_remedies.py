"""Initialisers, weights to start from, and remedies against overfitting, through the loop."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import tinlab
from tinlab import models
from tinlab.errors import TinlabError
from tinlab.recipe import changed
from tinlab.training import checkpoint, loop
from tinlab.training.fitting import recipe_fits

EVERYTHING = [
    "model.final_survival=0.5",
    "model.dropout=0.3",
    'model.dropconnect=[{"layers": "fc", "rate": 0.3}]',
    "model.init=orthogonal",
    'loss.penalties=[{"layers": "conv1", "l1": 1e-4, "l2": 1e-4}, '
    '{"layers": "layer4.1", "on": "activations", "l1": 1e-3}]',
]
STILL = ["optimizer.peak_lr=1e-60", "schedule.steps=1", "compute.precision=fp32"]


class KilledError(Exception):
    pass


def weights(run):
    return load_file(checkpoint.latest(run.path) / "model.safetensors")


def test_with_every_remedy_a_resumed_run_ends_where_an_uninterrupted_one_does(
    tiny_recipe, shapes_pack, tmp_path
):
    recipe = changed(tiny_recipe, EVERYTHING)
    whole = loop.train(recipe, shapes_pack, tmp_path / "whole", seed=1, device="cpu")

    def kill(progress):
        if progress.step == 5:
            raise KilledError

    with pytest.raises(KilledError):
        loop.train(
            recipe, shapes_pack, tmp_path / "cut", seed=1, device="cpu", checkpoint_seconds=0, watch=kill
        )
    (cut,) = (tmp_path / "cut").iterdir()
    resumed = loop.resume(cut, device="cpu")
    one, other = weights(whole), weights(resumed)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    for name in ("top1_percent", "loss", "measured_blocks", "expected_blocks", "blocks"):
        assert whole.result[name] == resumed.result[name], name


def test_the_depth_is_reported(tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(tiny_recipe, ["model.final_survival=0.5"])
    result = loop.train(recipe, shapes_pack, tmp_path, device="cpu").result
    assert (result["blocks"], result["expected_blocks"]) == (8, 5.75)
    assert result["measured_blocks"] * 12 == pytest.approx(round(result["measured_blocks"] * 12), abs=1e-2)
    assert 2 < result["measured_blocks"] < 8


def test_dropped_blocks_go_on_with_momentum_and_decay(tiny_recipe, shapes_pack, tmp_path):
    """At a rate of nearly nothing every parameter has a momentum buffer, dropped or not."""
    recipe = changed(tiny_recipe, ["model.final_survival=0.01", "schedule.steps=2"])
    run = loop.train(recipe, shapes_pack, tmp_path, device="cpu")
    buffers = load_file(checkpoint.latest(run.path) / "optimizer.safetensors")
    model = models.build(recipe.model, 4)
    assert {name.partition("/")[2] for name in buffers} == {name for name, _ in model.named_parameters()}


def test_penalties_are_added_and_shown_apart(tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(tiny_recipe, [*STILL, 'loss.penalties=[{"layers": "layer*.conv?", "l2": 0.01}]'])
    run = loop.train(recipe, shapes_pack, tmp_path, device="cpu")
    state = weights(run)
    squares = sum(
        value.square().sum().item()
        for name, value in state.items()
        if name.startswith("layer") and name.endswith(("conv1.weight", "conv2.weight"))
    )
    (point,) = [p for p in run.metrics() if p["kind"] == "train"]
    assert point["penalty"] == pytest.approx(0.01 * squares, rel=1e-4)
    plain = loop.train(changed(tiny_recipe, STILL), shapes_pack, tmp_path, device="cpu")
    (without,) = [p for p in plain.metrics() if p["kind"] == "train"]
    assert point["loss"] == pytest.approx(without["loss"], rel=1e-5)
    assert "penalty" not in without


@pytest.mark.parametrize(
    ("init", "std"),
    [
        ('{"kind": "gaussian", "mean": 0.5, "variance": 0.1}', math.sqrt(0.1)),
        ("he", math.sqrt(2 / (16 * 9))),
        ("xavier", math.sqrt(2 / ((16 + 16) * 9))),
    ],
)
def test_a_run_starts_from_the_initialiser(tiny_recipe, shapes_pack, tmp_path, init, std):
    recipe = changed(tiny_recipe, [*STILL, "model.width=16", f"model.init={init}"])
    first = weights(loop.train(recipe, shapes_pack, tmp_path, device="cpu"))
    conv = first["layer1.0.conv2.weight"]  # 2304 values: the standard error of their deviation is 1.5%
    assert conv.std().item() == pytest.approx(std, rel=0.08)
    assert conv.mean().item() == pytest.approx(0.5 if "0.5" in init else 0.0, abs=0.03)


def test_lsuv_measures_the_training_images(tiny_recipe, shapes_pack, tmp_path):
    run = loop.train(changed(tiny_recipe, [*STILL, "model.init=lsuv"]), shapes_pack, tmp_path, device="cpu")
    classifier = tinlab.load(run.path, device="cpu")
    images = torch.from_numpy(shapes_pack.split("train").images[:64].copy())
    seen = {}
    model = classifier.model.train()
    for name in ("conv1", "layer2.0.conv1", "fc"):
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda _, __, y, name=name: seen.update({name: y.var().item()}))
    classifier.logits(images)
    assert all(0.6 < variance < 1.6 for variance in seen.values()), seen


def test_a_run_starts_from_a_file_and_says_so(tiny_recipe, shapes_pack, tmp_path):
    torch.manual_seed(9)
    state = models.build(tiny_recipe.model, 10).state_dict()  # of another number of classes
    save_file(state, tmp_path / "given.safetensors")
    recipe = changed(tiny_recipe, [*STILL, f"model.weights={tmp_path / 'given.safetensors'}"])
    run = loop.train(recipe, shapes_pack, tmp_path / "runs", device="cpu")
    trained = weights(run)
    for name, value in state.items():
        if "running" not in name and "num_batches" not in name and not name.startswith("fc."):
            assert torch.equal(trained[name], value), name
    assert trained["fc.weight"].shape[0] == 4
    about = run.environment["weights"]
    assert about["classifier_kept_new"]
    assert about["tensors"] == len(state) - 2
    assert len(about["sha256"]) == 64

    # The file is not needed again: neither to use the run nor to go on with it.
    (tmp_path / "given.safetensors").unlink()
    tinlab.load(run.path, device="cpu")
    (run.path / "result.json").unlink()
    assert loop.resume(run.path, device="cpu").result is not None


def test_a_run_starts_from_a_run(tiny_recipe, shapes_pack, tmp_path):
    first = loop.train(tiny_recipe, shapes_pack, tmp_path, device="cpu")
    recipe = changed(tiny_recipe, [*STILL, f"model.weights={first.path}", 'model.fresh_layers=["fc"]'])
    second = loop.train(recipe, shapes_pack, tmp_path, device="cpu")
    one, other = weights(first), weights(second)
    assert torch.equal(one["layer3.1.conv2.weight"], other["layer3.1.conv2.weight"])
    assert not torch.equal(one["fc.weight"], other["fc.weight"])


def test_a_run_starts_from_a_runs_average(tiny_recipe, shapes_pack, tmp_path):
    first = loop.train(changed(tiny_recipe, ["optimizer.ema_decay=0.9"]), shapes_pack, tmp_path, device="cpu")
    recipe = changed(tiny_recipe, [*STILL, f"model.weights={first.path}"])
    second = loop.train(recipe, shapes_pack, tmp_path, device="cpu")
    average = load_file(checkpoint.latest(first.path) / "ema.safetensors")
    name = "layer3.1.conv2.weight"
    assert torch.equal(weights(second)[name], average[name])
    assert not torch.equal(weights(first)[name], average[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.weights=nowhere.safetensors", "there is no nowhere.safetensors"),
        ('loss.penalties=[{"layers": "convolution9", "l1": 1}]', "no layer of the network is called"),
        ('loss.penalties=[{"layers": "fc"}]', "give l1 or l2 a value above 0"),
        ('model.dropconnect=[{"layers": "conv1"}]', "'conv1' is a Convolution"),
        ("model.name=torchvision:inception_v3", "model.width"),
        ("model.init=hee", "there is no 'hee'; there are: he, xavier"),
        ("model.final_survival=0", "greater than 0"),
        ('model.fresh_layers=["fc"]', "fresh_layers goes with weights"),
        ("schedule.factor=0.5", "factor goes with shape step or plateau"),
        (
            'stages=[{"name": "a", "changes": {"data.precise_bn_images": 9}}, {"name": "b"}]',
            r"stages\.0: data\.precise_bn_images is for the end of a training",
        ),
        ('hard_classes={"augment": "shcherbina_fixed"}', "fixed_copies are drawn before"),
        (
            'stages=[{"name": "a"}, {"name": "b", "prune": {"kind": "channels", "share": 0.95}}]',
            "equal to 0.9",
        ),
        (
            'stages=[{"name": "a", "prune": {"kind": "magnitude", "share": 0.5, "keep": ["*"]}}]',
            "no convolution or fully connected layer is left to prune",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_leaves_no_run(
    tiny_recipe, shapes_pack, tmp_path, change, message
):
    with pytest.raises(TinlabError, match=message) as error:
        loop.train(changed(tiny_recipe, [change]), shapes_pack, tmp_path / "runs", device="cpu")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_done_later_is_told_before_anything_is_trained(tiny_recipe, shapes_pack, tmp_path):
    cut = '[{"name": "a"}, {"name": "b", "prune": {"kind": "channels", "share": 0.5}}]'
    cycle = (
        *("schedule.shape=one_cycle", "schedule.low_momentum=0.85"),
        *("schedule.warmup_fraction=0", "optimizer.nesterov=false"),
    )
    for changes, message in (
        (
            ("model.name=trinext_small", "model.stem=null", "model.width=null", f"stages={cut}"),
            "cannot be pruned",
        ),
        ((*cycle, "optimizer.name=timm:adafactor"), "adafactor has neither a momentum nor a beta 1"),
    ):
        with pytest.raises(TinlabError, match=message):
            loop.train(changed(tiny_recipe, list(changes)), shapes_pack, tmp_path / "runs", device="cpu")
    assert not (tmp_path / "runs").exists()
    for name in ("sgd", "adamw", "muon", "timm:adan"):
        recipe_fits(changed(tiny_recipe, [*cycle, f"optimizer.name={name}"]), shapes_pack)


def test_other_peoples_networks_train(tiny_recipe, shapes_pack, tmp_path):
    changes = [
        "model.width=null", "model.stem=null", "schedule.steps=2", "data.image_sizes=[64]",
        "model.name=timm:convnextv2_atto", "model.dropout=0.1",
    ]  # fmt: skip
    run = loop.train(changed(tiny_recipe, changes), shapes_pack, tmp_path, device="cpu")
    assert json.loads((run.path / "result.json").read_text())["parameters"] > 3e6
    assert len(tinlab.load(run.path, device="cpu").predict(shapes_pack.split("val").images[0])[0]) == 4


@pytest.mark.parametrize("sam_rho", ["null", 0.05])
def test_a_step_that_drops_all_that_is_trained_changes_nothing(tiny_recipe, shapes_pack, tmp_path, sam_rho):
    rates = '[{"layers": "layer4.1*", "factor": 1}, {"layers": "*", "factor": 0}]'
    dropping = ["model.final_survival=1e-9", f"optimizer.layer_rates={rates}", "schedule.steps=2"]
    recipe = changed(tiny_recipe, [*dropping, "optimizer.weight_decay=0", f"optimizer.sam_rho={sam_rho}"])
    run = loop.train(recipe, shapes_pack, tmp_path, device="cpu")
    assert math.isfinite(run.result["loss"])
    torch.manual_seed(0)
    before = dict(models.build(recipe.model, 4).named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items() if name in before)


def test_a_penalty_on_the_last_blocks_activations_in_order_d(tiny_recipe, shapes_pack, tmp_path):
    """Its last activation does not overwrite what the penalty needs."""
    penalty = 'loss.penalties=[{"layers": "layer4.?", "on": "activations", "l2": 1e-4}]'
    order = ["model.block_order=d", "model.activation=elu", "model.final_survival=0.5", penalty]
    run = loop.train(changed(tiny_recipe, [*order, "schedule.steps=2"]), shapes_pack, tmp_path, device="cpu")
    assert math.isfinite(run.result["loss"])
