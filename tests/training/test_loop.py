import json
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tinlab import runs
from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.evaluation.logits import Predictions
from tinlab.evaluation.metrics import measure
from tinlab.files import read_json
from tinlab.recipe import changed
from tinlab.training import checkpoint, endings, fitting, loop
from tinlab.training.step import size_at


def weights(run):
    return load_file(checkpoint.latest(run.path) / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def finished(tiny_recipe, shapes_pack, tmp_path_factory):
    return loop.train(tiny_recipe, shapes_pack, tmp_path_factory.mktemp("runs"), seed=4, device="cpu")


def test_a_run_folder_holds_what_was_trained_how_and_what_came_out(tiny_recipe, finished, shapes_pack):
    names = {path.name for path in finished.path.iterdir()}
    assert names >= {
        "recipe.json", "run.json", "classes.json", "environment.json", "metrics.jsonl", "tensorboard",
        "checkpoints", "predictions", "result.json",
    }  # fmt: skip
    assert runs.open_run(finished.path).recipe == tiny_recipe
    environment = finished.environment
    assert environment["pack"]["digest"] == shapes_pack.digest
    assert environment["pack"]["source_kind"] == "rendered"
    assert environment["torch"] == torch.__version__
    assert next(iter((finished.path / "tensorboard").iterdir())).stat().st_size > 100


def test_the_result_is_what_the_saved_logits_say(finished, shapes_pack):
    saved = Predictions.load(finished.path / "predictions" / "val.safetensors")
    measured = measure(saved.logits, saved.labels)
    result = finished.result
    assert result["top1_percent"] == measured.top1_percent
    assert result["loss"] == measured.loss
    assert np.array_equal(saved.labels, shapes_pack.split("val").labels)
    assert (result["steps"], result["seed"], result["images"]) == (12, 4, 40)
    assert result["epochs"] == pytest.approx(12 * 16 / 108, abs=1e-3)


def test_the_curves_have_a_point_a_step_here_and_held_out_ones(finished):
    points = finished.metrics()
    train = [p for p in points if p["kind"] == "train"]
    assert [p["step"] for p in train] == list(range(1, 13))  # an epoch has fewer steps than points
    assert [p["image_size"] for p in train] == [16] * 6 + [32] * 6
    assert train[0]["learning_rate"] < max(p["learning_rate"] for p in train)
    held_out = [(p["split"], p["step"]) for p in points if p["kind"] == "eval"]
    assert held_out == [("tune", 7), ("val", 12)]
    assert all(p["train_seconds"] <= p["elapsed_seconds"] for p in points)


def test_the_same_recipe_and_seed_give_the_same_weights(tiny_recipe, finished, shapes_pack, tmp_path):
    again = loop.train(tiny_recipe, shapes_pack, tmp_path, seed=4, device="cpu")
    assert same(weights(finished), weights(again))
    other = loop.train(tiny_recipe, shapes_pack, tmp_path, seed=5, device="cpu")
    assert not same(weights(finished), weights(other))


def test_a_curve_does_not_change_the_weights(tiny_recipe, finished, shapes_pack, tmp_path):
    recipe = changed(tiny_recipe, ["evaluate_every_epochs=0.2"])
    again = loop.train(recipe, shapes_pack, tmp_path, seed=4, device="cpu", checkpoint_seconds=0)
    assert same(weights(finished), weights(again))


def test_normalisation_uses_the_images_that_are_trained_on(tiny_recipe, shapes_pack):
    for split in ("train", "train+tune"):
        recipe = changed(tiny_recipe, [f"data.train_split={split}"])
        values = shapes_pack.split(split).images.astype(np.float64) / 255
        shown = fitting.preprocessing(recipe, shapes_pack)
        assert shown.mean == pytest.approx(values.mean((0, 1, 2)), abs=1e-4)
        assert shown.std == pytest.approx(values.std((0, 1, 2)), abs=1e-4)
    scale = fitting.preprocessing(changed(tiny_recipe, ["data.normalise=scale"]), shapes_pack)
    assert (scale.mean, scale.std) == ((0, 0, 0), (1, 1, 1))
    mean = fitting.preprocessing(changed(tiny_recipe, ["data.normalise=mean"]), shapes_pack)
    assert min(mean.mean) > 0.1
    assert mean.std == (1, 1, 1)


def test_it_learns_and_overfits(tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(
        tiny_recipe,
        ["schedule.steps=150", "model.width=8", "augment=[]", "data.image_sizes=[32]"],
    )
    run = loop.train(recipe, shapes_pack, tmp_path, device="cpu")
    last = [p for p in run.metrics() if p["kind"] == "train"][-1]
    assert last["top1_percent"] > 95
    # 27 images a class teach next to nothing that holds for others (chance is 25%).
    assert run.result["top1_percent"] < 60


def test_few_images_a_class(tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(tiny_recipe, ["data.images_per_class=3"])
    assert loop.train(recipe, shapes_pack, tmp_path, device="cpu").result["train_images"] == 12


@pytest.mark.parametrize("checkpoint_seconds", [0, 300])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_saved(
    tiny_recipe, shapes_pack, tmp_path, checkpoint_seconds
):
    recipe = changed(
        tiny_recipe, ["optimizer.peak_lr=1e9", "schedule.warmup_fraction=0.5", "compute.precision=fp32"]
    )
    with pytest.raises(endings.Diverged, match=r"not finite at step \d+ \(learning rate .*peak_lr"):
        loop.train(recipe, shapes_pack, tmp_path, device="cpu", checkpoint_seconds=checkpoint_seconds)
    (run,) = runs.list_runs(tmp_path)
    assert run.result is None
    last = checkpoint.latest(run.path)
    if last is not None:
        assert all(torch.isfinite(t).all() for t in load_file(last / "model.safetensors").values())
    for point in run.metrics():
        assert np.isfinite(point["loss"])


def test_a_finished_run_is_left_alone(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.path.rglob("*") if p.is_file() and p.name != "lock"}
    assert loop.resume(finished.path, device="cpu").result == finished.result
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_another_pack_is_refused(finished, tmp_path, shapes_folder):
    from tinlab.data.packing import pack

    other = pack(shapes_folder, tmp_path / "other", seed=1)
    with pytest.raises(TinlabError, match="not the pack"):
        loop.resume(finished.path, pack=other)


def test_two_trainings_of_one_run_are_refused(finished):
    with runs.locked(finished.path), pytest.raises(TinlabError, match="another process"):
        loop.resume(finished.path, device="cpu")


def test_a_thread_can_train(tiny_recipe, shapes_pack, tmp_path):
    made = []
    work = threading.Thread(
        target=lambda: made.append(loop.train(tiny_recipe, shapes_pack, tmp_path, device="cpu"))
    )
    work.start()
    work.join()
    assert made[0].result["steps"] == 12


def test_a_recipe_that_does_not_fit_leaves_no_run(tiny_recipe, shapes_pack, tmp_path):
    with pytest.raises(TinlabError, match="no network"):
        loop.train(changed(tiny_recipe, ["model.name=lenet"]), shapes_pack, tmp_path)
    with pytest.raises(TinlabError, match="cannot be used here"):
        loop.train(tiny_recipe, shapes_pack, tmp_path, device="cuda:77")
    with pytest.raises(TinlabError, match="--device nonsense"):
        loop.train(tiny_recipe, shapes_pack, tmp_path, device="nonsense")
    assert list(tmp_path.iterdir()) == []


def test_a_pack_without_a_held_out_split_is_refused(tiny_recipe, shapes_pack, tmp_path):
    description = read_json(shapes_pack.path / "pack.json")
    del description["splits"]["val"]
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in shapes_pack.path.iterdir():
        (bare / path.name).symlink_to(path)
    (bare / "pack.json").unlink()
    (bare / "pack.json").write_text(json.dumps(description))
    with pytest.raises(TinlabError, match="no split 'val'"):
        loop.train(tiny_recipe, Pack.open(bare), tmp_path / "runs")


@pytest.mark.parametrize(("steps", "sizes"), [(8, (16, 32)), (7, (16, 24, 32)), (2, (8, 16, 24)), (5, (64,))])
def test_sizes_get_equal_shares(steps, sizes):
    seen = [size_at(sizes, step, steps) for step in range(steps)]
    assert seen == sorted(seen)
    if steps >= len(sizes):
        counts = [seen.count(size) for size in sizes]
        assert max(counts) - min(counts) <= 1


def test_what_selects_measures_on_tune_and_never_looks_at_val(tiny_recipe, shapes_pack, tmp_path):
    run = loop.train(tiny_recipe, shapes_pack, tmp_path, device="cpu", final_split="tune")
    assert run.result["split"] == "tune"
    assert run.result["images"] == len(shapes_pack.split("tune"))
    assert [path.name for path in (run.path / "predictions").iterdir()] == ["tune.safetensors"]
    assert {point["split"] for point in run.metrics() if point["kind"] == "eval"} == {"tune"}


def test_a_run_that_goes_on_measures_what_it_was_begun_for(tiny_recipe, shapes_pack, tmp_path):
    with pytest.raises(endings.TimeIsUp) as stopped:
        loop.train(
            tiny_recipe, shapes_pack, tmp_path, device="cpu", final_split="tune", log_every=1,
            stop_after_seconds=0,
        )  # fmt: skip
    run = loop.resume(stopped.value.run, device="cpu")
    assert run.result["split"] == "tune"
    points = [point for point in run.metrics() if point["kind"] == "train"]
    assert len(points) == run.result["steps"]
