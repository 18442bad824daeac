"""What optimizer, schedule and precision can do, through the loop; and that it goes on after a kill."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tinlab
from tinlab import runs
from tinlab.augment.draws import seed_for_step
from tinlab.data.batches import Batches, chosen_rows
from tinlab.errors import TinlabError
from tinlab.evaluation.metrics import measure
from tinlab.evaluation.predict import predict_split
from tinlab.recipe import changed
from tinlab.training import checkpoint, loop
from tinlab.training.penalties import Penalties
from tinlab.training.scaling import Scaling
from tinlab.training.step import in_parts

CPU = torch.device("cpu")
STEPS = 12
ALL = [
    "optimizer.ema_decay=0.9",
    "optimizer.lookahead_steps=4",
    "optimizer.sam_rho=0.05",
    "optimizer.clip_norm=0.5",
    "schedule.accumulate=2",
    "model.final_survival=0.5",
]
PLATEAU = [
    "schedule.shape=plateau",
    "schedule.patience=0",
    "schedule.factor=0.5",
    "evaluate_every_epochs=0.3",
]
CASES = {
    "lion": ["optimizer.name=lion", "optimizer.nesterov=false", "optimizer.peak_lr=0.001"],
    "muon": ["optimizer.name=muon", "optimizer.rest_lr=0.001"],
    "timm": ["optimizer.name=timm:lamb", "optimizer.nesterov=false", "optimizer.peak_lr=0.01"],
    "all": ALL,
    "plateau": [*PLATEAU, "schedule.least_improvement=1"],  # nothing is better: each evaluation cuts
    "cycle": ["schedule.shape=one_cycle", "schedule.warmup_fraction=0", "schedule.low_momentum=0.8"],
    "fp16": ["compute.precision=fp16", "optimizer.clip_norm=0.5"],
}


def weights(run, name="model"):
    return load_file(checkpoint.latest(run.path) / f"{name}.safetensors")


class Killed(Exception):
    pass


def killed_and_resumed(recipe, pack, out, at=6):
    """Train until step `at` is saved and the next one done, and go on from there."""

    def watch(progress):
        if progress.step == at + 1:
            raise Killed

    with pytest.raises(Killed):
        loop.train(recipe, pack, out, seed=4, device="cpu", checkpoint_seconds=0, watch=watch)
    (run,) = runs.list_runs(out)
    assert checkpoint.latest(run.path).name == f"step-{at:08d}"
    return loop.resume(run.path, device="cpu")


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_the_same_bit_for_bit(case, tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(tiny_recipe, CASES[case])
    whole = loop.train(recipe, shapes_pack, tmp_path / "whole", seed=4, device="cpu")
    parts = killed_and_resumed(recipe, shapes_pack, tmp_path / "parts")
    names = {path.name for path in checkpoint.latest(whole.path).iterdir()}
    assert ("ema.safetensors" in names, "lookahead.safetensors" in names) == (case == "all",) * 2
    for name in names:
        if name.endswith(".safetensors"):
            one, other = (weights(run, name.removesuffix(".safetensors")) for run in (whole, parts))
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one), name
    for field in ("loss", "learning_rate", "top1_percent", "skipped_steps"):
        one, other = ([point.get(field) for point in run.metrics()] for run in (whole, parts))
        assert one == other, field
    assert whole.result["loss"] == parts.result["loss"]
    rates = [point["learning_rate"] for point in whole.metrics() if point["kind"] == "train"]
    if case == "plateau":
        cuts = sum(p["kind"] == "eval" and p["split"] == "tune" for p in whole.metrics()) - 1
        assert cuts > 2
        assert rates[-1] == pytest.approx(0.05 * 0.5**cuts)
    if case == "fp16":
        assert (
            whole.result["skipped_steps"]
            == [p for p in whole.metrics() if p["kind"] == "train"][-1]["skipped_steps"]
        )


def test_plateau_counts_a_point_that_was_written_after_the_checkpoint(tiny_recipe, shapes_pack, tmp_path):
    """Killed between an evaluation and the next checkpoint, whose point is in the curve already."""
    recipe = changed(tiny_recipe, CASES["plateau"])
    whole = loop.train(recipe, shapes_pack, tmp_path / "whole", seed=4, device="cpu")
    evaluated = [p["step"] for p in whole.metrics() if p["kind"] == "eval"]
    parts = killed_and_resumed(recipe, shapes_pack, tmp_path / "parts", at=evaluated[1])
    assert [(p["kind"], p["step"], p["loss"]) for p in parts.metrics()] == [
        (p["kind"], p["step"], p["loss"]) for p in whole.metrics()
    ]
    assert all(torch.equal(weights(whole)[key], value) for key, value in weights(parts).items())


def test_the_average_is_what_is_measured_and_loaded(tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(tiny_recipe, ["optimizer.ema_decay=0.8"])
    run = loop.train(recipe, shapes_pack, tmp_path, device="cpu")
    plain = loop.train(tiny_recipe, shapes_pack, tmp_path, device="cpu")
    assert all(torch.equal(weights(plain)[key], value) for key, value in weights(run).items())
    assert run.result["weights"] == "ema"
    assert "weights" not in plain.result
    loaded = tinlab.load(run.path, device="cpu")
    average = weights(run, "ema")
    assert all(torch.equal(value, average[key]) for key, value in loaded.model.state_dict().items())
    predictions = predict_split(
        loaded.model, run.preprocessing, shapes_pack.split("val"), recipe.compute, CPU
    )
    assert measure(predictions.logits, predictions.labels).loss == run.result["loss"]
    assert run.result["loss"] != plain.result["loss"]
    curves = [[p["loss"] for p in r.metrics() if p["kind"] == "eval"] for r in (run, plain)]
    assert curves[0][0] != curves[1][0]


def gradients(model, recipe, pack):
    """(loss, penalty, correct) of the first batch, and the gradient."""
    split = pack.split("train")
    batch = Batches(split, chosen_rows(split), 16, 0, CPU).at(0)
    inputs = batch.images.permute(0, 3, 1, 2).float() / 255
    model.zero_grad()
    torch.manual_seed(seed_for_step(0, 0))
    penalties = Penalties(recipe.loss.penalties, model)
    found = in_parts(model, inputs, batch, recipe, penalties, Scaling(CPU, enabled=False))
    return [value.item() for value in found], [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("parts", [2, 4, 16])
def test_parts_of_a_batch_add_up_to_it(parts, tiny_recipe, shapes_pack):
    torch.manual_seed(0)
    recipe = changed(
        tiny_recipe,
        [
            "compute.precision=fp32",
            'loss.penalties=[{"layers": "3", "l2": 0.1}, {"layers": "2", "on": "activations", "l1": 0.1}]',
        ],
    )

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(), nn.ReLU(), nn.Linear(3844, 4))

    whole, expected = gradients(network(), recipe, shapes_pack)
    found, summed = gradients(network(), changed(recipe, [f"schedule.accumulate={parts}"]), shapes_pack)
    assert found == pytest.approx(whole, rel=1e-5)
    assert whole[1] > 0.01
    for a, b in zip(summed, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("knob", [*ALL[:4], "compute.precision=fp16", "schedule.accumulate=2"])
def test_each_of_them_does_something(knob, tiny_recipe, shapes_pack, tmp_path):
    # At the recipe's own rate a rounding error decides whether sharpness-aware steps end at 1.7 or at 6.9.
    recipe = changed(tiny_recipe, ["schedule.steps=3", "optimizer.peak_lr=0.005"])
    plain = loop.train(recipe, shapes_pack, tmp_path, device="cpu")
    run = loop.train(changed(recipe, [knob]), shapes_pack, tmp_path, device="cpu")
    assert run.result["loss"] != plain.result["loss"]
    assert run.result["loss"] == pytest.approx(plain.result["loss"], rel=0.5)


def test_what_cannot_be_trained_leaves_no_run(tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(tiny_recipe, ["optimizer.nesterov=false", "optimizer.name=timm:lamp"])
    with pytest.raises(TinlabError, match="timm has no optimizer 'lamp'"):
        loop.train(recipe, shapes_pack, tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []
