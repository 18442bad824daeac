"""Studies from the command line to the page."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import fails

from tinlab import cli, results, runs
from tinlab.drawing import INK
from tinlab.errors import TinlabError
from tinlab.files import write_json
from tinlab.recipe import changed
from tinlab.report.page import write_report
from tinlab.study.attempt import Settings
from tinlab.study.comparison import over_seeds
from tinlab.study.page import differing_fields, read_part, render, verdict, write_study
from tinlab.study.plan import Study
from tinlab.study.run import run_study
from tinlab.study.summary import interval_note, shown_difference, shown_mean, summarise


@pytest.fixture(scope="module")
def settings(shapes_pack) -> Settings:
    return Settings(pack=shapes_pack.path, pack_digest=shapes_pack.digest, device="cpu")


@pytest.fixture(scope="module")
def recipe_file(tiny_recipe, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.json"
    write_json(path, tiny_recipe.model_dump(mode="json"))
    return path


@pytest.fixture(scope="module")
def study(tiny_recipe) -> Study:
    rates = ("0.05", "0.2", "1e30")
    recipes = [
        changed(tiny_recipe, [f"optimizer.peak_lr={rate}", "schedule.steps=6"]).model_copy(
            update={"name": f"rate-{rate}"}
        )
        for rate in rates
    ]
    return Study(name="rates", recipes=tuple(recipes), seeds=(0, 1))


@pytest.fixture(scope="module")
def done(study, settings, tmp_path_factory):
    return run_study(
        study, tmp_path_factory.mktemp("studies") / "rates", settings, jobs=2, say=lambda _: None
    )


def test_a_failing_run_is_a_row_and_the_others_finish(done):
    states = {(row.recipe, row.seed): row.status for row in done.rows}
    assert states == {
        ("rate-0.05", 0): "finished", ("rate-0.05", 1): "finished",
        ("rate-0.2", 0): "finished", ("rate-0.2", 1): "finished",
        ("rate-1e30", 0): "failed", ("rate-1e30", 1): "failed",
    }  # fmt: skip
    assert all("not finite" in row.error for row in done.rows if row.status == "failed")
    environment = runs.open_run(done.folder / done.rows[0].run).environment
    assert environment["threads"] == 1
    assert done.rows[0].split == "val"


def test_the_same_again_runs_nothing(done, settings):
    told = []
    again = run_study(done.study, done.folder, settings, say=told.append)
    assert again.rows == done.rows
    assert told == [
        "4 of 6 runs are there already",
        "2 of 6 have failed before and are left so; --retry tries them again",
    ]


def test_another_studys_folder_is_left_alone(done, settings):
    before = (done.folder / "study.json").read_text()
    new = tuple(one.model_copy(update={"name": f"new-{one.name}"}) for one in done.study.recipes)
    other = done.study.model_copy(update={"recipes": new})
    with pytest.raises(TinlabError, match=r"holds another study, of rate-0\.05; name .* --name"):
        run_study(other, done.folder, settings)
    with pytest.raises(TinlabError, match=r"another study, of rate-0\.05; name another place with --out"):
        run_study(other, done.folder, settings, option="--out")
    assert (done.folder / "study.json").read_text() == before


def test_the_table_holds_means_spreads_and_paired_differences(done):
    one, other, failing = summarise(done)
    values = {row.seed: row.top1_percent for row in done.rows if row.recipe == "rate-0.2"}
    assert other.values == values
    assert other.difference == over_seeds(values, one.values)
    assert one.difference is None
    assert (failing.failed, failing.spread, shown_mean(failing)) == (2, None, "–")
    assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d%", shown_mean(one))
    assert "paired t test over seeds" in interval_note([one, other, failing])


def test_one_seed_is_compared_image_by_image(done):
    alone = replace(
        done,
        study=done.study.model_copy(update={"seeds": (1,)}),
        rows=tuple(row for row in done.rows if row.seed == 1),
    )
    lines = summarise(alone)
    found = lines[1].difference
    assert (found.over, found.n) == ("images", 40)
    assert found.mean == pytest.approx(lines[1].spread.mean - lines[0].spread.mean)
    assert found.low <= found.mean <= found.high
    assert "says nothing about other seeds" in interval_note(lines)
    assert shown_difference(lines[1]).startswith(f"{found.mean:+.2f} (")


def test_the_page_stands_alone(done):
    lines = summarise(done)
    page = write_study(done, lines)
    text = page.read_text()
    assert "http://" not in re.sub(r'"http://(www\.w3\.org|purl\.org|creativecommons\.org)[^"]*"', "", text)
    for words in ("rate-0.05", "not finite", "optimizer.peak_lr", "<svg", shown_mean(lines[0])):
        assert words in text
    assert (done.folder / "chart.png").read_bytes()[:4] == b"\x89PNG"
    assert differing_fields(done) == [("optimizer.peak_lr", ["0.05", "0.2", "1e+30"])]
    assert verdict(lines).startswith(max(lines[:2], key=lambda line: line.spread.mean).recipe)
    assert "&lt;b&gt;" in render(
        replace(done, study=done.study.model_copy(update={"summary": "<b>"})), lines, "<svg></svg>"
    )


def test_a_report_has_the_study_on_top_of_its_runs(done, tmp_path):
    part, shown = read_part(done.folder)
    assert part.recipes == [line.recipe for line in summarise(done)]
    firsts = [row for row in done.rows if row.status == "finished" and row.seed == done.study.seeds[0]]
    assert shown == [done.folder / row.run for row in firsts]
    text = write_report(shown, study=part, explain=False, out=tmp_path / "page.html").read_text()
    places = [text.index(f'id="{name}"') for name in ("study", "comparison", "curves", "run-A", "run-B")]
    assert places == sorted(places)
    assert "var(--ink)" in text
    assert INK not in text.split('<figure class="drawn"')[1].split("</figure>")[0]


def test_a_signal_saves_every_run_and_the_same_command_goes_on(recipe_file, shapes_pack, tmp_path):
    command = [
        sys.executable, "-m", "tinlab", "study", str(recipe_file), "--set", "schedule.steps=300",
        "--seeds", "2", "--jobs", "2", "--data", str(shapes_pack.path), "--out", str(tmp_path),
        "--device", "cpu", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    place = tmp_path / "tiny-steps"
    end = time.monotonic() + 200
    while not (
        len(runs.list_runs(place / "runs")) == 2 and all(r.metrics() for r in runs.list_runs(place / "runs"))
    ):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "give the same command again to go on" in errors
    stopped = [json.loads(path.read_text())["status"] for path in sorted((place / "trials").glob("*.json"))]
    assert stopped == ["stopped", "stopped"]
    made = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=200).stdout)
    assert [(row["status"], row["attempts"]) for row in made["runs"]] == [("finished", 2)] * 2
    assert len(runs.list_runs(place / "runs")) == 2


def test_a_run_without_memory_is_a_row_that_says_so(recipe_file, shapes_pack, tmp_path):
    words = (
        f"ulimit -v 6000000; exec {sys.executable} -m tinlab study {recipe_file} --seeds 0, --data "
        f"{shapes_pack.path} --out {tmp_path} --set data.image_sizes=[16],[1024] "
        "--set schedule.batch_size=600 --set schedule.steps=1 --device cpu --json"
    )
    made = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=200, check=False)
    assert made.returncode == 0, made.stderr
    small, large = json.loads(made.stdout)["runs"]
    assert small["status"] == "finished"
    assert (large["status"], large["out_of_memory"]) == ("failed", True)


BAD = {
    "nothing of that name": (["sun_block"], "sun_blocks"),
    "no such file": (["none.json"], "none.json"),
    "study without recipes": (["EMPTY"], "recipes"),
    "values of nothing": (["RECIPE", "--set", "optimizer.peak_lr"], "PATH=VALUE"),
    "unknown field": (["RECIPE", "--set", "optimizer.lr=1,2"], "no field 'lr'"),
    "a field twice": (["RECIPE", "--set", "model.width=2", "--set", "model.width=4"], "twice"),
    "no seeds": (["RECIPE", "--seeds", "0"], "--seeds"),
    "no data": (["RECIPE", "--data", "nowhere"], "nowhere"),
    "unknown network": (["RECIPE", "--set", "model.name=resnet1"], "resnet18"),
    "unknown device": (["RECIPE", "--device", "abacus"], "abacus"),
    "jobs on a cluster": (["RECIPE", "--jobs", "2", "--cluster", "local"], "--jobs"),
    "more gpus than there are": (["RECIPE", "--gpus", "99"], "99 GPUs"),
    "part of a gpu": (["RECIPE", "--gpus", "1.5"], "--gpus"),
    "no cluster there": (["RECIPE", "--cluster", "127.0.0.1:1"], "--cluster"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, recipe_file, shapes_pack, tmp_path, monkeypatch, capsys):
    words, expected = BAD[case]
    if case == "no cluster there":
        pytest.importorskip("ray", reason="ray is not installed: pip install 'tinlab[cluster]'")
    (tmp_path / "EMPTY").write_text('{"name": "x", "recipes": []}')
    given = [{"RECIPE": str(recipe_file)}.get(word, word) for word in words]
    if "--data" not in given:
        given += ["--data", str(shapes_pack.path)]
    fails(["study", *given, "--out", "studies"], tmp_path, monkeypatch, capsys, expected)


def test_rows_are_added_as_runs_end(recipe_file, shapes_pack, tmp_path, monkeypatch):
    finished_at_each = []

    def record(run, path):
        finished_at_each.append(sum(1 for _ in run.parent.glob("*/result.json")))

    monkeypatch.setattr(results, "record", record)
    words = ["study", str(recipe_file), "--data", str(shapes_pack.path), "--out", str(tmp_path)]
    words += ["--seeds", "2", "--set", "schedule.steps=2", "--device", "cpu", "--add-results"]
    monkeypatch.setattr(sys, "argv", ["tinlab", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    assert finished_at_each == [1, 2]
