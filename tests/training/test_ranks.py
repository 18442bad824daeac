"""Several processes under torchrun, on gloo, give what one gives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tinlab import ranks, runs
from tinlab.errors import TinlabError
from tinlab.evaluation.logits import Predictions
from tinlab.files import write_json
from tinlab.ranks import Ranks, SyncedBatchNorm, synchronise_batch_norm
from tinlab.recipe import changed
from tinlab.training import checkpoint, loop
from tinlab.training.fitting import ranks_fit


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    """Every batch norm over the whole batch, mixing, dropped blocks, a moving average, two parts a batch.

    Blocks begin as the identity and the rate is low: otherwise rounding errors grow tenfold a step.
    """
    return changed(
        tiny_recipe,
        [
            "compute.sync_batch_norm=true",
            "compute.precision=fp32",
            "model.zero_last_bn=true",
            "model.width=8",
            "optimizer.peak_lr=0.01",
            "schedule.accumulate=2",
            "model.final_survival=0.7",
            "optimizer.ema_decay=0.9",
            'augment=[{"kind": "flip"}, {"kind": "mixup"}]',
        ],
    )


MASKS = """
import os, sys
from pathlib import Path
from tinlab.cli import main
from tinlab.models import dropout

drawn, noise = [], dropout._noise

def noted(x, rate):
    drawn.append(noise(x, rate))
    return drawn[-1]

dropout._noise = noted
try:
    main()
finally:
    import torch
    torch.save(drawn, Path(sys.argv[0]).parent / f"masks{os.environ['RANK']}.pt")
"""
"""`tinlab` that keeps the masks of its dropout, each rank in a file of its own."""


def launch(recipe, pack, out, *words, ranks=2, restarts=0, program=("-m", "tinlab")):
    """torchrun with `tinlab train`, in a session of its own."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "recipe.json"
    write_json(file, recipe.model_dump(mode="json"))
    how = ["--standalone", "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", *how, *program, "train",
            *(words or (str(file), "--out", str(out / "runs"), "--data", str(pack.path), "--seed", "4")),
            "--device", "cpu", "--checkpoint-seconds", "0", "--json",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ, start_new_session=True,
    )  # fmt: skip


def finish(started, seconds=150):
    """What it printed, once it has ended; nothing of it stays."""
    try:
        return started.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        raise


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it never came to that")


def step_reached(out, step):
    """The run in `out`, once it has a checkpoint of `step` or later."""

    def reached():
        found = runs.list_runs(out / "runs")
        last = checkpoint.latest(found[0].path) if found else None
        return found[0] if last is not None and int(last.name[5:]) >= step else None

    return wait_for(reached)


def workers(torchrun):
    """The ranks' processes, rank 0 first."""
    found = [p for p in psutil.Process(torchrun.pid).children() if "tinlab" in p.cmdline()]
    return sorted(found, key=lambda p: int(p.environ()["RANK"]))


def weights(run, file="model"):
    return load_file(checkpoint.latest(run.path) / f"{file}.safetensors")


def far_apart(one, other):
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def test_two_ranks_give_the_weights_curves_and_logits_of_one(recipe, shapes_pack, tmp_path):
    one = loop.train(recipe, shapes_pack, tmp_path, seed=4, device="cpu")
    started = launch(recipe, shapes_pack, tmp_path / "two")
    printed = finish(started)
    assert started.returncode == 0, printed
    (two,) = runs.list_runs(tmp_path / "two" / "runs")
    for file in ("model", "ema"):
        assert far_apart(weights(one, file), weights(two, file)) < 1e-4
    assert two.result["ranks"] == 2
    for mine, theirs in zip(one.metrics(), two.metrics(), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-5)
        assert (theirs["step"], theirs["kind"]) == (mine["step"], mine["kind"])
    first, second = (Predictions.load(run.path / "predictions" / "val.safetensors") for run in (one, two))
    assert second.logits == pytest.approx(first.logits, abs=1e-4)
    assert (second.labels == first.labels).all()
    assert printed.count('"top1_percent"') == 1  # rank 0 alone says what came out


def test_a_rank_that_dies_ends_the_run_which_goes_on_with_one(recipe, shapes_pack, tmp_path):
    longer = changed(recipe, ["schedule.steps=60"])
    started = launch(longer, shapes_pack, tmp_path)
    run = step_reached(tmp_path, 3)
    workers(started)[random.Random(0).randrange(2)].kill()
    printed = finish(started)
    assert started.returncode != 0
    assert "--resume" in printed
    assert run.result is None
    assert loop.resume(run.path, device="cpu").result["steps"] == 60


def test_torchrun_starts_the_ranks_again_and_they_go_on_by_themselves(recipe, shapes_pack, tmp_path):
    longer = changed(recipe, ["schedule.steps=40", "optimizer.peak_lr=0.001"])
    started = launch(longer, shapes_pack, tmp_path, restarts=2)
    step_reached(tmp_path, 3)
    workers(started)[1].kill()
    printed = finish(started)
    assert started.returncode == 0, printed
    (run,) = runs.list_runs(tmp_path / "runs")
    assert run.result["steps"] == 40
    assert len(run.environment["resumed"]) == 1
    whole = loop.train(longer, shapes_pack, tmp_path / "whole", seed=4, device="cpu")
    assert far_apart(weights(run), weights(whole)) < 1e-3


def test_a_signal_stops_all_ranks_after_the_same_step(recipe, shapes_pack, tmp_path):
    longer = changed(recipe, ["schedule.steps=2000"])
    started = launch(longer, shapes_pack, tmp_path)
    run = step_reached(tmp_path, 3)
    workers(started)[1].send_signal(signal.SIGTERM)  # to one of them alone
    printed = finish(started)
    assert printed.count("stopped by SIGTERM after step") == 1, printed
    state = json.loads((checkpoint.latest(run.path) / "state.json").read_text())
    assert f"after step {state['step']} of 2000" in printed


@pytest.mark.parametrize("blocks_are_dropped", [False, True])
def test_ranks_on_cpus_have_masks_of_their_own_unless_blocks_are_dropped(
    tiny_recipe, shapes_pack, tmp_path, blocks_are_dropped
):
    dropping = ["model.dropout=0.5", f"model.final_survival={0.5 if blocks_are_dropped else 1}"]
    program = tmp_path / "noting.py"
    program.write_text(MASKS)
    started = launch(
        changed(tiny_recipe, [*dropping, "schedule.steps=3"]), shapes_pack, tmp_path, program=[str(program)]
    )
    printed = finish(started)
    assert started.returncode == 0, printed
    first, second = (torch.load(tmp_path / f"masks{rank}.pt") for rank in range(2))
    assert len(first) == len(second) == 3
    assert not any(torch.equal(*pair) for pair in pairwise(first))
    assert [torch.equal(*pair) for pair in zip(first, second, strict=True)] == 3 * [blocks_are_dropped]


def test_images_that_an_initialiser_looks_at_are_those_of_one_process(recipe, shapes_pack, tmp_path):
    measured = changed(recipe, ["model.init=lsuv", "optimizer.peak_lr=1e-9", "schedule.steps=1"])
    one = loop.train(measured, shapes_pack, tmp_path, seed=4, device="cpu")
    started = launch(measured, shapes_pack, tmp_path / "two")
    printed = finish(started)
    assert started.returncode == 0, printed
    (two,) = runs.list_runs(tmp_path / "two" / "runs")
    assert far_apart(weights(one), weights(two)) < 1e-5


def test_one_image_a_rank_is_too_few_for_a_batch_norm(tiny_recipe, shapes_pack):
    parts = ["schedule.batch_size=16", "schedule.accumulate=8"]
    few = changed(tiny_recipe, ["data.image_sizes=[16]", "model.stem=imagenet", *parts])
    ranks_fit(few, shapes_pack, Ranks(0, 1))
    with pytest.raises(TinlabError, match="cannot be trained on one 16x16"):
        ranks_fit(few, shapes_pack, Ranks(0, 2))
    ranks_fit(changed(few, ["compute.sync_batch_norm=true"]), shapes_pack, Ranks(0, 2))


def test_batches_that_do_not_come_out_even_are_refused():
    assert Ranks(1, 2).shard(8).tolist() == [4, 5, 6, 7]
    # The second part of the batch is images 8 to 15 on one rank as on two.
    assert Ranks(1, 2).shard(16, 2).tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    with pytest.raises(TinlabError, match=r"schedule\.batch_size: 100 images cannot be shared .* 3 ranks"):
        Ranks(0, 3).shard(100)


def test_a_penalty_on_what_a_step_may_leave_out_is_refused_on_several_ranks(tiny_recipe, shapes_pack):
    dropping = "model.final_survival=0.5"
    on_blocks = 'loss.penalties=[{"layers": "layer4*", "l2": 1e-4}]'
    on_classifier = 'loss.penalties=[{"layers": "fc", "l2": 1e-4}]'
    both = changed(tiny_recipe, [dropping, on_blocks])
    with pytest.raises(TinlabError, match="weights of blocks that stochastic depth drops"):
        ranks_fit(both, shapes_pack, Ranks(0, 2))
    ranks_fit(both, shapes_pack, Ranks(0, 1))
    for changes in ([on_blocks], [dropping, on_classifier]):
        ranks_fit(changed(tiny_recipe, changes), shapes_pack, Ranks(0, 2))


def test_a_process_by_itself_is_the_only_rank(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks.joined(torch.device("cpu")) as (alone, device):
        assert (alone.first, alone.count, str(device)) == (True, 1, "cpu")
        assert alone.agree(15, True, device) == (15, True)
        assert alone.text("über", device) == "über"


def test_synchronised_batch_norms_keep_names_values_and_what_they_do_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    x = torch.randn(5, 3, 8, 8)
    model(x)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    expected = model.eval()(x)
    synced = synchronise_batch_norm(model)
    assert sum(isinstance(m, SyncedBatchNorm) for m in synced.modules()) == 2
    assert all(torch.equal(t, before[name]) for name, t in synced.state_dict().items())
    assert torch.equal(synced(x), expected)


def test_batch_norms_that_do_more_are_not_synchronised(tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(tiny_recipe, ["model.name=trinext", "model.width=null", "compute.sync_batch_norm=true"])
    with pytest.raises(TinlabError, match=r"compute.sync_batch_norm: .* is more than a batch norm"):
        loop.train(recipe, shapes_pack, tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []
