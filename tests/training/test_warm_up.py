"""Nothing that a warm-up does is left afterwards, and a training that runs out of time goes on as it was."""

import time

import pytest
import torch
from safetensors.torch import load_file

from tinlab import runs
from tinlab.recipe import changed
from tinlab.training import checkpoint, endings, loop, warm_up
from tinlab.training.curves import Meter


def weights(run):
    files = sorted(checkpoint.latest(run.path).glob("*.safetensors"))
    return {(file.name, name): value for file in files for name, value in load_file(file).items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


KINDS = {
    "sgd": (),
    "adamw and averages": (
        "optimizer.name=adamw", "optimizer.nesterov=false", "optimizer.ema_decay=0.9",
        "optimizer.lookahead_steps=2",
    ),
    "stochastic depth and dropout": ("model.final_survival=0.5", "model.dropout=0.3"),
    "clipped, mixed, in parts": (
        "optimizer.clip_norm=0.1", 'augment=[{"kind": "cutmix"}]', "schedule.accumulate=2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_up_leaves_everything_as_it_was(kind, tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(tiny_recipe, ["schedule.steps=3", *KINDS[kind]])
    cold, warm = (
        loop.train(recipe, shapes_pack, tmp_path / str(on), seed=4, device="cpu", warm_up=on)
        for on in (False, True)
    )
    assert same(weights(cold), weights(warm))
    assert warm.result["warm_up_seconds"] > 0
    assert "warm_up_seconds" not in cold.result
    for name in ("blocks", "measured_blocks", "top1_percent", "loss"):
        assert cold.result.get(name) == warm.result.get(name)


def test_a_warm_up_changes_something_before_it_puts_it_back(tiny_recipe, shapes_pack, tmp_path, monkeypatch):
    """Without its last line the test above would fail."""
    recipe = changed(tiny_recipe, ["schedule.steps=2"])
    cold = loop.train(recipe, shapes_pack, tmp_path / "cold", seed=4, device="cpu")
    monkeypatch.setattr(warm_up._Kept, "put_back", lambda self: None)
    warm = loop.train(recipe, shapes_pack, tmp_path / "warm", seed=4, device="cpu", warm_up=True)
    assert not same(weights(cold), weights(warm))


def test_it_is_taken_with_every_size_and_is_not_on_the_clock(tiny_recipe, shapes_pack, tmp_path, monkeypatch):
    seen = []
    step = loop.take_step

    def slow(setup, number, size):
        seen.append(size)
        if len(seen) == 1:
            time.sleep(0.5)  # as a compiler would
        return step(setup, number, size)

    monkeypatch.setattr(loop, "take_step", slow)
    recipe = changed(tiny_recipe, ["schedule.steps=2"])
    run = loop.train(recipe, shapes_pack, tmp_path, device="cpu", warm_up=True)
    assert seen == [16, 16, 32, 32, 16, 32]
    assert run.result["warm_up_seconds"] >= 0.5
    assert run.result["train_seconds"] < run.result["warm_up_seconds"]
    assert run.result["elapsed_seconds"] < run.result["train_seconds"] + 30


def test_it_is_taken_with_the_sizes_to_come_and_the_first_of_them_where_time_is_up(
    tiny_recipe, shapes_pack, tmp_path, monkeypatch
):
    seen, step = [], loop.take_step

    def watched(setup, number, size):
        seen.append(size)
        return step(setup, number, size)

    monkeypatch.setattr(loop, "take_step", watched)
    recipe = changed(tiny_recipe, ["schedule.steps=4", "data.image_sizes=[16,24,32,32]"])
    options = {"device": "cpu", "stop_after_seconds": 1e-9, "warm_up": True}
    with pytest.raises(endings.TimeIsUp) as stopped:
        loop.train(recipe, shapes_pack, tmp_path, **options)
    assert seen == [16, 16, 16]
    seen.clear()
    with pytest.raises(endings.TimeIsUp):
        loop.resume(stopped.value.run, **options)
    assert seen == [24, 24, 24]
    seen.clear()
    loop.resume(stopped.value.run, device="cpu", warm_up=True)
    assert seen == [32, 32, 32, 32]  # two that are undone, and two that are left


def test_a_resumed_run_warms_up_too_and_ends_as_if_it_had_not(tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(tiny_recipe, ["schedule.steps=5", "optimizer.ema_decay=0.9"])
    whole = loop.train(recipe, shapes_pack, tmp_path / "whole", seed=1, device="cpu")
    with pytest.raises(endings.TimeIsUp, match=r"after step 1 of 5.*--resume") as stopped:
        loop.train(
            recipe,
            shapes_pack,
            tmp_path / "parts",
            seed=1,
            device="cpu",
            stop_after_seconds=1e-9,
            warm_up=True,
        )
    assert (stopped.value.exit_code, stopped.value.share) == (75, 0.2)
    (run,) = runs.list_runs(tmp_path / "parts")
    with pytest.raises(endings.TimeIsUp, match="step 2 of 5"):
        loop.resume(run.path, device="cpu", stop_after_seconds=1e-9, warm_up=True)
    done = loop.resume(run.path, device="cpu", stop_after_seconds=1000, warm_up=True)
    assert same(weights(whole), weights(done))
    steps = [point["step"] for point in done.metrics() if point["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5]


def test_a_training_that_ends_in_time_is_finished(tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(tiny_recipe, ["schedule.steps=1"])
    run = loop.train(recipe, shapes_pack, tmp_path, device="cpu", stop_after_seconds=1e-9)
    assert run.result["steps"] == 1


def test_a_meter_that_lags_writes_the_same_curve(tiny_recipe, shapes_pack, tmp_path, monkeypatch):
    recipe = changed(tiny_recipe, ["schedule.steps=9", "evaluate_every_epochs=0.5"])
    plain = loop.train(recipe, shapes_pack, tmp_path / "a", seed=2, device="cpu", log_every=2)
    made = Meter.__init__

    def lagging(self, device, ranks):
        made(self, device, ranks)
        self.lags = True

    monkeypatch.setattr(Meter, "__init__", lagging)
    watched = []
    late = loop.train(
        recipe, shapes_pack, tmp_path / "b", seed=2, device="cpu", log_every=2, watch=watched.append
    )
    timed = {"images_per_second", "train_seconds", "elapsed_seconds"}

    def points(run):
        kept = [p for p in run.metrics() if p["kind"] == "train"]
        return [{name: value for name, value in p.items() if name not in timed} for p in kept]

    assert [p["step"] for p in points(late)] == [2, 4, 6, 8, 9]
    for one, other in zip(points(plain), points(late), strict=True):
        assert one == pytest.approx(other)
    assert same(weights(plain), weights(late))
    seconds = [p["train_seconds"] for p in late.metrics() if p["kind"] == "train"]
    assert seconds == sorted(seconds)
    assert watched[-1].step == 9
