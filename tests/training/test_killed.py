"""A run that is killed or stopped, at any moment, loses nothing that matters."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tinlab import runs
from tinlab.files import write_json
from tinlab.recipe import changed, read_recipe
from tinlab.training import checkpoint, loop

KILLS = 6


@pytest.fixture(scope="module")
def recipe_file(tiny_recipe, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.json"
    recipe = changed(tiny_recipe, ["schedule.steps=160", "evaluate_every_epochs=0.5"])
    write_json(path, recipe.model_dump(mode="json"))
    return path


def start(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tinlab", "train", *map(str, words), "--device", "cpu"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def wait_for(condition, seconds=120.0):
    """What `condition` returns as soon as it is something, asked often."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it never came to that")


def the_run(out: Path):
    found = runs.list_runs(out)
    return found[0] if found else None


def test_kill_9_at_random_moments_changes_no_bit(recipe_file, shapes_pack, tmp_path):
    recipe = read_recipe(recipe_file)
    whole = loop.train(recipe, shapes_pack, tmp_path / "whole", seed=2, device="cpu")
    expected = load_file(checkpoint.latest(whole.path) / "model.safetensors")

    dice = random.Random(time.time_ns())
    out = tmp_path / "killed"
    process = start(
        recipe_file, "--data", shapes_pack.path, "--out", out, "--seed", 2, "--checkpoint-seconds", 0
    )
    wait_for(lambda: the_run(out) is not None and checkpoint.latest(the_run(out).path))
    run = the_run(out)
    seen = []
    for _ in range(KILLS):
        time.sleep(dice.uniform(0, 0.25))
        process.kill()
        process.communicate()
        seen.append(checkpoint.latest(run.path).name)
        process = start("--resume", run.path, "--checkpoint-seconds", 0)
        last = seen[-1]
        # Some kills come while the program starts, most while it trains.
        if dice.random() < 0.7:
            wait_for(
                lambda last=last, process=process: (
                    checkpoint.latest(run.path).name != last or process.poll() is not None
                )
            )
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "top-1" in output

    found = load_file(checkpoint.latest(run.path) / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected), seen
    steps = [(p["kind"], p["step"]) for p in run.metrics()]
    assert steps == [(p["kind"], p["step"]) for p in whole.metrics()]
    losses = [p["loss"] for p in run.metrics()]
    assert losses == pytest.approx([p["loss"] for p in whole.metrics()])
    for name in ("top1_percent", "loss", "steps", "recipe_digest"):
        assert run.result[name] == whole.result[name]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    number, code, recipe_file, shapes_pack, tmp_path
):
    process = start(recipe_file, "--data", shapes_pack.path, "--out", tmp_path, "--seed", 2)
    run = wait_for(lambda: the_run(tmp_path))
    wait_for(lambda: run.metrics())
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    line = errors.strip().splitlines()[-1]
    found = re.search(r"after step (\d+) of 160; go on with: tinlab train --resume (\S+)", line)
    assert found, errors
    assert found[2] == str(run.path)
    assert checkpoint.latest(run.path).name == f"step-{int(found[1]):08d}"
    assert run.result is None
    process = start("--resume", found[2])
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert run.result["steps"] == 160
    assert "top-1" in output
