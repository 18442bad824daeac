"""Child processes and the rows that they leave."""

from __future__ import annotations

import os
import signal

import pytest

from tinlab import runs
from tinlab.errors import TinlabError
from tinlab.recipe import changed
from tinlab.study.attempt import Attempt, Settings, gpus_of_slot, judged, read_row, share_of_cores
from tinlab.study.plan import Trial


@pytest.fixture
def settings(shapes_pack) -> Settings:
    return Settings(pack=shapes_pack.path, pack_digest=shapes_pack.digest, device="cpu")


def wait_for(condition, seconds=120):
    """What `condition` returns as soon as it is something."""
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it never came to that")


def begun(folder):
    """The run once it has measured something."""
    found = runs.list_runs(folder / "runs")
    return found[0] if found and found[0].metrics() else None


def test_a_stopped_trial_goes_on_from_its_checkpoint_and_a_killed_one_is_a_row(
    tiny_recipe, settings, tmp_path
):
    trial = Trial(changed(tiny_recipe, ["schedule.steps=400"]), seed=1)
    attempt = Attempt(tmp_path, trial, settings)
    run = wait_for(lambda: begun(tmp_path))
    attempt.stop()
    row = attempt.wait()
    assert (row.status, row.exit_code, row.attempts) == ("stopped", 143, 1)
    assert run.result is None
    reached = run.metrics()[-1]["step"]

    attempt = Attempt(tmp_path, trial, settings)
    wait_for(lambda: len(run.environment.get("resumed", [])) == 1)
    os.kill(attempt.pid, signal.SIGKILL)
    row = attempt.wait()
    assert (row.status, row.signal, row.attempts) == ("failed", "SIGKILL", 2)
    assert "SIGKILL" in row.error
    assert row.peak_memory_gib > 0.05
    assert read_row(tmp_path, trial, settings.pack_digest) == row

    # The parent's end of the pipe is gone when the parent is, however it ended.
    attempt = Attempt(tmp_path, trial, settings)
    wait_for(lambda: len(run.environment.get("resumed", [])) == 2)
    attempt._process.stdin.close()
    row = attempt.wait()
    assert (row.status, row.exit_code) == ("stopped", 143)
    assert attempt.poll() == attempt.wait() == row  # which a process tells but once
    assert len(runs.list_runs(tmp_path / "runs")) == 1
    assert reached > 0


def test_another_recipe_or_pack_of_the_same_name_is_refused(tiny_recipe, settings, tmp_path):
    trial = Trial(changed(tiny_recipe, ["optimizer.peak_lr=1e30"]), seed=0)
    row = Attempt(tmp_path, trial, settings).wait()
    assert (row.status, row.exit_code, row.out_of_memory) == ("failed", 2, False)
    assert row.error.startswith("the loss is not finite at step")
    with pytest.raises(TinlabError, match="another recipe"):
        read_row(tmp_path, Trial(tiny_recipe, 0), settings.pack_digest)
    with pytest.raises(TinlabError, match="another pack; name another place with --name"):
        read_row(tmp_path, trial, "0" * 12)
    with pytest.raises(TinlabError, match="another pack; name another place with --out"):
        read_row(tmp_path, trial, "0" * 12, "--out")


@pytest.mark.parametrize(
    ("code", "said", "asked", "memory_kill", "expected"),
    [
        (143, "", True, False, {"status": "stopped"}),
        (-15, "", True, False, {"status": "stopped", "signal": "SIGTERM"}),
        (2, "tinlab: the loss is not finite\n", False, False, {"error": "the loss is not finite"}),
        (-11, "", False, False, {"status": "failed", "signal": "SIGSEGV", "error": "killed by SIGSEGV"}),
        (-9, "", False, True, {"status": "failed", "out_of_memory": True}),
        (-9, "", False, False, {"status": "failed", "error": "killed by SIGKILL"}),
        (1, "Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried\n", False, False,
         {"status": "failed", "out_of_memory": True}),
        (1, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you", False, False,
         {"status": "failed", "out_of_memory": True}),
        (1, "ValueError: no\n\n", False, False, {"error": "ValueError: no", "out_of_memory": False}),
    ],
)  # fmt: skip
def test_how_a_child_ended(code, said, asked, memory_kill, expected):
    found = judged(code, said, asked=asked, memory_kill=memory_kill)
    assert expected.items() <= found.items()


def test_gpus_are_shared_out():
    four = ["0", "1", "2", "3"]
    assert [gpus_of_slot(slot, four, None) for slot in range(5)] == ["0", "1", "2", "3", "0"]
    assert [gpus_of_slot(slot, four, 0.5) for slot in range(4)] == ["0", "0", "1", "1"]
    assert [gpus_of_slot(slot, four, 2) for slot in range(2)] == ["0,1", "2,3"]
    assert gpus_of_slot(0, four, 0) == ""
    assert gpus_of_slot(0, [], None) is None


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr("tinlab.study.attempt.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [share_of_cores(jobs) for jobs in (1, 3, 20)] == [8, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert share_of_cores(1) == 1
