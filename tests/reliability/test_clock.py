"""A clock that jumps a day back and forth changes nothing but the dates that are written down."""

from __future__ import annotations

import itertools
import os
import time
from datetime import UTC, datetime, timedelta

import pytest
import torch
from safetensors.torch import load_file

from tinlab import ranks, runs
from tinlab.recipe import changed
from tinlab.study.trial import find_run
from tinlab.training import checkpoint, fitting, loop

DAY = 86_400


@pytest.fixture
def jumping(monkeypatch):
    """Every look at the clock sees another day, now later, now earlier."""
    days = itertools.cycle((0, 3, -3, 1, -1))
    now, gmtime = time.time, time.gmtime

    class Clock(datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime.fromtimestamp(now(), UTC) + timedelta(days=next(days))

    monkeypatch.setattr(time, "time", lambda: now() + DAY * next(days))
    monkeypatch.setattr(time, "gmtime", lambda *given: gmtime(*(given or (now() + DAY * next(days),))))
    monkeypatch.setattr(runs, "datetime", Clock)


def test_a_training_is_timed_stopped_and_gone_on_with(
    jumping, tiny_recipe, shapes_pack, tmp_path, monkeypatch
):
    recipe = changed(tiny_recipe, ["schedule.steps=6"])
    began = time.perf_counter()
    saved = []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *given: saved.append(given[3].step) or save(*given))
    whole = loop.train(recipe, shapes_pack, tmp_path / "whole", device="cpu", checkpoint_seconds=1000)
    assert saved == [6]  # the time between checkpoints is not the clock's

    def stop(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, shapes_pack, tmp_path / "runs", device="cpu", checkpoint_seconds=0, watch=stop)
    (run,) = runs.list_runs(tmp_path / "runs")
    assert find_run(tmp_path / "runs", recipe, 0, shapes_pack.digest).path == run.path
    run = loop.resume(run.path, device="cpu")
    spent = time.perf_counter() - began
    for one in (whole, run):
        assert 0 < one.result["train_seconds"] <= one.result["elapsed_seconds"] < spent
        assert all(0 < p["elapsed_seconds"] < spent for p in one.metrics())
        assert [p["step"] for p in one.metrics() if p["kind"] == "train"] == list(range(1, 7))
    found, expected = (load_file(checkpoint.latest(one.path) / "model.safetensors") for one in (run, whole))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_runs_that_begin_in_one_second_or_before_each_other_have_folders_of_their_own(
    jumping, tiny_recipe, shapes_pack, tmp_path
):
    shown = fitting.preprocessing(tiny_recipe, shapes_pack)
    made = [runs.create(tmp_path, tiny_recipe, 0, shapes_pack, shown).path for _ in range(12)]
    assert len(set(made)) == 12
    assert {run.path for run in runs.list_runs(tmp_path)} == set(made)


def test_ranks_know_their_launch_whatever_the_clock_says(jumping, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert ranks.launch() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    own = ranks.launch()
    monkeypatch.setattr("psutil.boot_time", lambda: 0.0)  # what a jump of the clock moves
    assert ranks.launch() == own
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert ranks.launch() != own
