"""The trial of kills, signals and full disks, with a case or two of each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

import faults
import pytest
from harmed import blows, work
from warm import Warm

from tinlab import runs
from tinlab.training import checkpoint

SEED = 2


@pytest.fixture(scope="module")
def warm():
    with Warm() as one:
        yield one


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return work.Ground(tmp_path_factory.mktemp("faults") / "ground")


@pytest.mark.parametrize("part", ["packing", "training", "clock", "evaluation", "report", "results"])
def test_killed_at_random_moments(part, ground, warm, tmp_path):
    """Studies, whose trainings take seconds to start, are left to the trial."""
    tally = blows.kill_at_random_moments(work.PARTS[part](ground, tmp_path / part), warm, 1, SEED)
    assert (tally.failures, tally.tried) == ([], 1)
    assert tally.finished >= 1


def test_a_pack_that_is_harmed_under_a_training(ground, warm, tmp_path):
    tally = blows.harm_packs(ground, tmp_path / "here", warm, 2, SEED)
    assert (tally.failures, tally.tried, tally.finished) == ([], 2, 2)


def test_two_commands_at_once(ground, warm, tmp_path):
    tally = blows.two_at_once(ground, tmp_path / "here", warm, 2, SEED)
    assert (tally.failures, tally.tried, tally.finished) == ([], 2, 2)


def test_every_command_ends_on_a_signal(ground, warm, tmp_path):
    tally = blows.stop_every_command(ground, tmp_path / "here", warm, 1, SEED, within_seconds=0.1)
    assert tally.failures == []
    assert tally.tried > faults.COMMANDS / 2  # some are done at once


def test_the_trial_knows_every_command(ground, tmp_path):
    from tinlab.cli import app

    names = {
        (group.name or "", command.name or command.callback.__name__)
        for group in (type("Top", (), {"name": "", "typer_instance": app}), *app.registered_groups)
        for command in group.typer_instance.registered_commands
    }
    registered = {" ".join(filter(None, pair)) for pair in names} | {"results"}
    assert set(blows.commands(ground, tmp_path, 1)) == registered
    assert len(registered) == faults.COMMANDS


def test_a_pack_that_is_cut_short_under_a_training_costs_no_checkpoint(ground, warm, tmp_path):
    pack = shutil.copytree(ground.pack.path, tmp_path / "pack")
    words = [
        "train",
        ground.recipes[0],
        "--data",
        pack,
        "--out",
        tmp_path / "runs",
        "--checkpoint-seconds",
        0,
    ]
    training = warm.start([*words, "--set", "schedule.steps=5000"], tmp_path)
    while not (found := runs.list_runs(tmp_path / "runs")) or checkpoint.latest(found[0].path) is None:
        assert training.wait(0.02) is None, training.said
    os.truncate(pack / "train.npy", 1000)
    # Where the file has no pages any more, the system ends the process that reads them.
    assert training.wait(60) in (2, -signal.SIGBUS)
    resume = ["train", "--resume", found[0].path]
    again = warm.start(resume, tmp_path)
    assert again.wait(60) == 2
    assert "train.npy is damaged" in again.said
    shutil.copy(ground.pack.path / "train.npy", pack / "train.npy")
    before = checkpoint.latest(found[0].path).name
    again = warm.start(resume, tmp_path)
    while again.wait(0.02) is None and not again.said:
        again.send(signal.SIGTERM)
    assert again.wait(60) == 143
    assert checkpoint.latest(found[0].path).name >= before


def test_a_disk_that_fills_up_or_is_read_only(ground, warm, tmp_path):
    try:
        with blows.small_disk(tmp_path / "disk", 24) as disk:
            parts = [work.PARTS[name](ground, disk / name) for name in ("packing", "training")]
            tally = blows.refuse_to_write(parts, warm, disk, 4, SEED)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not permitted here")
    assert (tally.failures, tally.tried, tally.finished) == ([], 4, 4)
