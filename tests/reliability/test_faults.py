"""The trial of kills, signals and full disks, with a case or two of each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "trials"))
import faults

SEED = 2


@pytest.fixture(scope="module")
def warm():
    with faults.Warm() as one:
        yield one


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return faults.Ground(tmp_path_factory.mktemp("faults") / "ground")


@pytest.mark.parametrize("part", ["packing", "training", "evaluation", "report", "results"])
def test_killed_at_random_moments(part, ground, warm, tmp_path):
    """Studies, whose trainings take seconds to start, are left to the trial."""
    tally = faults.kill_at_random_moments(faults.PARTS[part](ground, tmp_path / part), warm, 1, SEED)
    assert (tally.failures, tally.tried, tally.finished) == ([], 1, 1)


def test_every_command_ends_on_a_signal(ground, warm, tmp_path):
    tally = faults.stop_every_command(ground, tmp_path / "here", warm, 1, SEED, within_seconds=0.1)
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
    assert set(faults.commands(ground, tmp_path, 1)) == registered
    assert len(registered) == faults.COMMANDS


def test_a_disk_that_fills_up(ground, warm, tmp_path):
    try:
        with faults.small_disk(tmp_path / "disk", 24) as disk:
            parts = [faults.PARTS[name](ground, disk / name) for name in ("packing", "training")]
            tally = faults.fill_the_disk(parts, warm, disk, 2, SEED)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not permitted here")
    assert (tally.failures, tally.tried, tally.finished) == ([], 2, 2)
