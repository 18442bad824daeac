"""What only a GPU shows: the same numbers as on a CPU, nothing that waits, graphs, and a run in pieces."""

import numpy as np
import pytest
import torch

from tinlab import runs
from tinlab.recipe import changed
from tinlab.training import endings, loop

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


AUGMENT = '[{"kind": "flip", "alternate": true}, {"kind": "random_resized_crop"}, {"kind": "cutout"}]'


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    changes = ["data.train_split=train+tune", "model.zero_last_bn=true", "model.width=8"]
    return changed(tiny_recipe, [*changes, "optimizer.peak_lr=0.02", f"augment={AUGMENT}"])


def losses(run):
    return [point["loss"] for point in run.metrics() if point["kind"] == "train"]


def test_the_first_losses_are_those_of_a_cpu(recipe, shapes_pack, tmp_path):
    exact = changed(recipe, ["compute.precision=fp32", "data.image_sizes=[32]"])
    here, there = (
        loop.train(exact, shapes_pack, tmp_path / device, seed=1, device=device, log_every=1)
        for device in ("cpu", "cuda")
    )
    # Convolutions on a GPU round their inputs to ten bits; then the steps drift apart.
    assert losses(there)[0] == pytest.approx(losses(here)[0], rel=2e-3)
    assert losses(there) == pytest.approx(losses(here), rel=3e-2)
    assert [p["step"] for p in there.metrics() if p["kind"] == "train"] == list(range(1, 13))
    assert there.environment["gpu"]


def test_no_step_waits_for_the_gpu(recipe, shapes_pack, tmp_path, monkeypatch):
    step, taken = loop.take_step, []

    def watched(setup, number, size):
        if number < 2:  # what is sent to the GPU once
            return step(setup, number, size)
        taken.append(number)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(setup, number, size)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "take_step", watched)
    for policy in ("sun_heavy", "rand_augment", "pad_crop_flip"):
        heavy = changed(recipe, [f"augment={policy}", "data.image_sizes=[32]"])
        loop.train(heavy, shapes_pack, tmp_path / policy, device="cuda", log_every=4)
    assert len(taken) == 3 * 10


@pytest.mark.parametrize("graphs", [False, True])
def test_compiled_it_learns_as_it_does_eager(graphs, recipe, shapes_pack, tmp_path):
    longer = changed(recipe, ["schedule.steps=40"])
    compute = ["compute.compile=true", f"compute.cuda_graphs={str(graphs).lower()}"]
    eager = loop.train(longer, shapes_pack, tmp_path / "eager", seed=1, device="cuda", log_every=5)
    run = loop.train(
        changed(longer, compute), shapes_pack, tmp_path / "compiled", seed=1, device="cuda", log_every=5
    )
    assert np.isfinite(losses(run)).all()
    assert losses(run)[0] == pytest.approx(losses(eager)[0], rel=0.02)
    assert losses(run)[-1] < losses(run)[0]
    assert run.result["warm_up_seconds"] > run.result["train_seconds"]


def test_a_run_in_pieces_ends(recipe, shapes_pack, tmp_path):
    with pytest.raises(endings.TimeIsUp):
        loop.train(recipe, shapes_pack, tmp_path, device="cuda", stop_after_seconds=1e-9, warm_up=True)
    (run,) = runs.list_runs(tmp_path)
    done = loop.resume(run.path, device="cuda", warm_up=True)
    assert done.result["steps"] == 12
    steps = [point["step"] for point in done.metrics() if point["kind"] == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 12
