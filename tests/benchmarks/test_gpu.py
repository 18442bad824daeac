"""The script that spends a GPU's minutes: which job is next, what is kept, and the whole of it in small."""

import argparse
import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import device  # noqa: E402
import fast  # noqa: E402
import gpu  # noqa: E402
from planned import driver, plan, summary, work  # noqa: E402
from planned import jobs as job_list  # noqa: E402
from planned.plan import Job, Start, State, next_start  # noqa: E402

from tinlab import recipes  # noqa: E402
from tinlab.recipe import changed  # noqa: E402
from tinlab.results import TINY_IMAGENET  # noqa: E402
from tinlab.training import checkpoint, loop  # noqa: E402

RECIPE = recipes.find("sun_vanilla")


def command(name, seconds=60):
    return Job(name, seconds, command=lambda state: [], alone=True)


def training(name, seconds=100, **more):
    return Job(name, seconds, RECIPE, **more)


def chosen(jobs, state=None, running=(), left=500.0, every=570.0, lanes=3):
    state = State() if state is None else state
    return next_start(jobs, state, running, left_seconds=left, all_seconds=every, lanes=lanes)


def test_jobs_are_started_in_order_and_what_is_done_is_not_done_again():
    jobs = [command("smoke"), training("a"), training("b")]
    assert chosen(jobs).job.id == "smoke"
    state = State({"smoke": {"status": "finished"}, "a": {"status": "published"}})
    assert chosen(jobs, state) == Start(jobs[2])
    state.jobs["b"] = {"status": "finished"}
    assert chosen(jobs, state) is None


def test_a_job_that_measures_time_has_the_machine_for_itself():
    jobs = [training("a"), command("fast"), training("b")]
    assert chosen(jobs, running=[jobs[0]]) is None  # fast is next, and waits for a
    assert chosen(jobs, State({"a": {"status": "finished"}}), running=[jobs[1]]) is None


def test_trainings_run_side_by_side_up_to_the_lanes():
    jobs = [training(name) for name in "abcd"]
    assert chosen(jobs, running=jobs[:2]).job.id == "c"
    assert chosen(jobs, running=jobs[:3]) is None


def test_what_does_not_fit_is_passed_over_for_what_does():
    jobs = [command("long", 400), training("longer", 500), training("short", 100)]
    assert chosen(jobs, left=200).job.id == "short"
    assert chosen(jobs, left=50) is None


def test_trainings_that_took_longer_than_expected_make_the_others_longer():
    state = State({"seen": {"status": "finished", "pace": 2.0}})
    assert chosen([training("a", 115)], left=200).job.id == "a"
    assert chosen([training("a", 115)], state, left=200) is None
    assert State({"a": {"pace": 0.1}}).pace == 0.5


def test_a_training_longer_than_a_call_is_begun_and_gone_on_with_in_pieces():
    jobs = [training("huge", 2000)]
    assert chosen(jobs, left=500) == Start(jobs[0])
    assert chosen(jobs, left=plan.START_SECONDS + plan.PIECE_SECONDS - 1) is None
    state = State({"huge": {"status": "paused", "share": 0.9}})
    assert chosen(jobs, state, left=100) == Start(jobs[0])


def test_one_that_would_fit_into_a_whole_call_is_not_begun_in_the_rest_of_one():
    assert chosen([training("a", 400)], left=200) is None


def test_best_is_shortened_to_what_is_left_and_stays_so():
    best = training("best", plan.START_SECONDS + 1000, shortens=True, alone=True)
    assert chosen([best], left=plan.START_SECONDS + 255) == Start(best, 0.25)
    assert chosen([best], left=5000, every=6000) == Start(best, 1.0)
    state = State({"best": {"status": "paused", "fraction": 0.25, "share": 0.5}})
    assert chosen([best], state, left=5000) == Start(best, 0.25)


def test_best_is_not_spent_on_a_fraction_of_what_a_call_has_room_for():
    best = training("best", plan.START_SECONDS + 1000, shortens=True, alone=True)
    assert chosen([best], left=plan.START_SECONDS + 99) is None
    assert chosen([best], left=plan.START_SECONDS + 100) == Start(best, 0.1)
    every = plan.START_SECONDS + 120  # a short call: half of its 0.12 will do
    assert chosen([best], left=plan.START_SECONDS + 80, every=every) == Start(best, 0.08)
    assert chosen([best], left=plan.START_SECONDS + 59, every=every) is None


def test_a_piece_is_left_for_the_steps_after_the_compiling():
    compiled = Job("best", 2000, recipes.find("best_resnet18"))
    state = State({"best": {"status": "paused", "share": 0.1}})
    least = plan.START_SECONDS + plan.COMPILE_SECONDS + plan.PIECE_SECONDS
    assert chosen([compiled], state, left=least) == Start(compiled)
    assert chosen([compiled], state, left=least - 1) is None


def test_what_takes_another_jobs_answer_waits_for_it():
    length, timed = command("length", 240), dataclasses.replace(command("timed"), after=("length",))
    assert chosen([length, timed], left=200) is None
    assert chosen([length, timed], State({"length": {"status": "finished"}}), left=200) == Start(timed)
    assert chosen([length, timed], State({"length": {"failures": 2}}), left=200) == Start(timed)
    assert chosen([timed], left=200) == Start(timed)  # --jobs left the other out


def test_what_failed_compiled_is_tried_again_without():
    compiled = Job("best", 100, recipes.find("best_resnet18"))
    assert chosen([compiled]) == Start(compiled)
    state = State({"best": {"status": "failed", "failures": 1}})
    assert chosen([compiled], state) == Start(compiled, eager=True)
    state.jobs["best"] |= {"share": 0.5}  # it had compiled, and its checkpoint is of that recipe
    assert chosen([compiled], state) == Start(compiled)
    state.jobs["best"] |= {"eager": True}
    assert chosen([compiled], state) == Start(compiled, eager=True)
    assert chosen([training("a")], State({"a": {"failures": 1}})) == Start(training("a"))


def test_a_job_that_failed_is_tried_once_more():
    jobs = [training("a"), training("b")]
    assert chosen(jobs, State({"a": {"status": "failed", "failures": 1}})).job.id == "a"
    assert chosen(jobs, State({"a": {"status": "failed", "failures": 2}})).job.id == "b"


@pytest.mark.parametrize(
    ("fraction", "down"), [(0.256, 0.25), (0.0567, 0.056), (0.0004, 0), (-1, 0), (1.7, 1.0), (0.999, 0.99)]
)
def test_lengths_are_rounded_down(fraction, down):
    assert plan.rounded_down(fraction) == down
    if down:
        assert recipes.shortened(RECIPE, down).name.startswith("sun_vanilla")


@pytest.fixture(scope="module")
def all_jobs():
    return job_list.trainings([])


def test_the_list_holds_every_row_that_can_be_trained_here_once(all_jobs):
    ids = [job.id for job in all_jobs]
    assert ids[:3] == ["sun_vanilla-s0", "sun_improved-s0", "sun_final-s0"]
    assert len(set(ids)) == len(ids)
    assert not any(phase.model.weights for job in all_jobs for phase in job.recipe.phases)
    assert ids.index("best_resnet18-s0") < ids.index("best-s0") < ids.index("yu_baseline-s0")
    assert {job.id for job in all_jobs if job.shortens} == {"best-s0", "best_resnet18-s0"}
    assert all(job.seconds is None for job in all_jobs)  # counted when its turn comes
    keys = [(job.recipe.digest, job.recipe.name, job.seed) for job in all_jobs]
    assert len(set(keys)) == len(keys)


def test_published_rows_are_left_out(all_jobs, monkeypatch):
    first = all_jobs[0]
    line = {"recipe_digest": first.recipe.digest, "seed": "0", "split": "val", **TINY_IMAGENET}
    monkeypatch.setattr(job_list, "FIRST_ROWS", ("sun_vanilla", "sun_improved"))
    assert job_list.trainings([line])[0].id == "sun_improved-s0"
    assert job_list.trainings([{**line, "split": "tune"}])[0].id == "sun_vanilla-s0"
    assert job_list.trainings([{**line, "seed": "1"}])[0].id == "sun_vanilla-s0"
    assert job_list.trainings([{**line, "image_size": "32"}])[0].id == "sun_vanilla-s0"


def test_a_longer_training_is_expected_to_take_longer():
    short, long = RECIPE, changed(RECIPE, ["schedule.steps=30000"])
    seconds = [plan.expected_seconds(recipe) - plan.START_SECONDS for recipe in (short, long)]
    assert seconds[1] == pytest.approx(2 * seconds[0])
    assert 60 < seconds[0] < 600
    job = Job("a", None, RECIPE)
    assert summary.expected(job) == ""
    assert job.expected_seconds == seconds[0] + plan.START_SECONDS
    assert summary.expected(job) == f"({job.expected_seconds:.0f})"


def test_the_way_to_train_is_the_simplest_unless_another_is_clearly_faster():
    assert device.fastest({"eager": 10.0, "compiled": 9.9, "cuda graphs": 9.85}) == "eager"
    assert device.fastest({"eager": 10.0, "compiled": 7.0, "cuda graphs": 6.95}) == "compiled"
    assert device.fastest({"eager": 10.0, "cuda graphs": 6.0}) == "cuda graphs"


def test_seconds_to_an_accuracy():
    points = [
        {"kind": "eval", "top1_percent": value, "train_seconds": seconds}
        for value, seconds in ((50, 10.0), (64, 20.0), (66, 30.0), (65, 40.0))
    ]
    train = {"kind": "train", "top1_percent": 99, "train_seconds": 1.0}
    assert fast.first_at([train, *points], 65.32) == 30.0
    assert fast.first_at(points, 50) == 10.0
    assert fast.first_at(points, 70) is None
    found = fast.spread([30.0, None, 34.0])
    assert found == {"mean": 32.0, "sd": pytest.approx(np.std([30, 34], ddof=1)), "n": 2, "of": 3}
    assert fast.shown(found) == "32.0 ± 2.8 (2 of 3)"
    assert fast.shown(fast.spread([None])) == "not reached (0 of 1)"
    assert fast.shown(fast.spread([5.0])) == "5.0 (1 of 1)"


def test_weights_are_cut_into_pieces_that_join_again(tiny_recipe, shapes_pack, tmp_path, monkeypatch):
    recipe = changed(tiny_recipe, ["schedule.steps=2", "optimizer.ema_decay=0.9"])
    run = loop.train(recipe, shapes_pack, tmp_path / "runs", device="cpu")
    monkeypatch.setattr(work, "PIECE_BYTES", 50_000)
    pieces = work.write_halves(run.path, tmp_path / "weights")
    assert len(pieces) > 1
    assert max(piece.stat().st_size for piece in pieces) == 50_000
    joined = load(b"".join(piece.read_bytes() for piece in sorted((tmp_path / "weights").iterdir())))
    averaged = load_file(checkpoint.latest(run.path) / "ema.safetensors")
    assert joined.keys() == averaged.keys()
    for name, value in averaged.items():
        assert torch.equal(joined[name], value.half() if value.is_floating_point() else value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["PACK", "OUT", "--jobs", "nonsense"], "no job is called nonsense"),
        (["/nowhere", "OUT"], "/nowhere"),
        (["PACK", "OUT", "--device", "cuda:77"], "cuda:77"),
        (["PACK", "OUT", "--lanes", "0"], "2"),
    ],
)
def test_bad_input_is_one_sentence(words, said, shapes_pack, tmp_path, monkeypatch):
    own = {"PACK": str(shapes_pack.path), "OUT": str(tmp_path / "out")}
    words = [own.get(word, word) for word in words]
    if "--device" not in words:
        words += ["--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    monkeypatch.setattr(gpu, "trainings", lambda published: [])
    with pytest.raises(SystemExit, match=said):
        gpu.main()


def test_all_of_it_in_small(shapes_pack, tmp_path, monkeypatch, capsys):
    """A training and a shortened one by the shell script; a second call finds everything done."""
    out = tmp_path / "out"
    words = [str(shapes_pack.path), str(out), "2", "--device", "cpu", "--tiny", "--lanes", "1"]
    words += ["--jobs", "sun_vanilla-s0,best_resnet18", "--weights"]
    done = subprocess.run(
        [str(ROOT / "benchmarks" / "gpu.sh"), *words],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = (out / "table.txt").read_text()
    assert table.strip() == done.stdout.strip()
    state = json.loads((out / "state.json").read_text())["jobs"]
    assert {name: one["status"] for name, one in state.items()} == {
        "sun_vanilla-s0": "finished", "best_resnet18-s0": "finished",
    }  # fmt: skip
    assert "rendered" in state["sun_vanilla-s0"]["note"]  # its row would not be of real images
    assert [path.name for path in (out / "weights").iterdir()] == ["best_resnet18-tiny-s0.safetensors.00"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words[:-1]])
    monkeypatch.setattr(driver.Lane, "start", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(gpu, "trainings", lambda published: small_list())
    assert gpu.main() == 0
    assert "sun_vanilla-s0" in capsys.readouterr().out


@pytest.fixture
def options(tmp_path):
    (tmp_path / "out" / "logs").mkdir(parents=True)
    return argparse.Namespace(
        out=tmp_path / "out", pack=tmp_path / "pack", device="cpu", lanes=1, minutes=1.0
    )


def test_a_process_that_takes_a_while_to_die_gets_no_more_work(options, tmp_path, monkeypatch):
    """Nobody would hear of that work again, and the minutes would have no end."""
    (tmp_path / "gpu.py").write_text(
        "import os, sys, time\nsys.stdin.readline()\nos.close(1)\ntime.sleep(0.5)\nos._exit(1)\n"
    )
    monkeypatch.setattr(driver, "HERE", tmp_path)
    monkeypatch.setattr(driver.signal, "signal", lambda *_: None)
    one = driver.Driver(options, [training("a", 20)], State())
    done = threading.Thread(target=one.run, daemon=True)
    done.start()
    done.join(30)
    assert not done.is_alive()
    assert one.state.jobs["a"]["failures"] == plan.ATTEMPTS


def test_what_was_told_to_stop_has_not_failed(options):
    one, job = driver.Driver(options, [], State()), training("a")
    (lane,) = one.lanes
    for told, status in ((True, "paused"), (False, "failed")):
        lane.job = job
        one._told[:] = [job] if told else []
        one._ended(lane, None)
        assert one.state.jobs["a"]["status"] == status


def test_a_share_of_which_nothing_was_trained_is_chosen_anew(options):
    job = training("best", shortens=True)
    one = driver.Driver(options, [], State({"best": {"fraction": 0.2}, "a": {}}))
    (lane,) = one.lanes
    for known, kept in (({"fraction": 0.2}, False), ({"fraction": 0.2, "share": 0.5}, True)):
        one.state.jobs["best"], lane.job = known, job
        one._ended(lane, {"status": "failed", "error": "out of memory"})
        assert ("fraction" in one.state.jobs["best"]) == kept


def small_list():
    return [
        dataclasses.replace(training("sun_vanilla-s0"), row="sun_vanilla"),
        dataclasses.replace(training("best_resnet18-s0"), row="best_resnet18"),
    ]
