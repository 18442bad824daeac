"""The checks as commands: what they print, and their exit codes."""

import json

import pytest
from typer.testing import CliRunner

from tinlab.cli import app
from tinlab.errors import TinlabError
from tinlab.files import write_json


@pytest.fixture(scope="module")
def recipe_file(tiny_recipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.json"
    write_json(path, tiny_recipe.model_dump(mode="json"))
    return path


@pytest.fixture
def tinlab(recipe_file, shapes_pack, tmp_path):
    def run(command, *words):
        where = ["--data", str(shapes_pack.path), "--out", str(tmp_path / "out"), "--device", "cpu"]
        return CliRunner().invoke(app, [command, str(recipe_file), *where, *words])

    return run


def test_a_check_that_passes(tinlab, tmp_path):
    words = (
        "--images",
        "8",
        "--set",
        "model.width=8",
        "--set",
        "optimizer.peak_lr=0.1",
        "--set",
        "augment=[]",
    )
    done = tinlab("overfit", *words, "--steps", "60")
    assert done.exit_code == 0, done.output
    assert "PASS: tiny gets 8 of 8 images right in evaluation mode" in done.stdout
    assert "switched off: loss.label_smoothing 0.1 -> 0" in done.stdout
    assert (tmp_path / "out").read_bytes()[:4] == b"\x89PNG"


def test_a_check_that_fails_says_why(tinlab):
    words = ("--images", "8", "--steps", "4", "--set", "optimizer.peak_lr=1e-9")
    done = tinlab("overfit", *words)
    assert done.exit_code == 1
    assert "FAIL" in done.stdout
    assert "- the learning rate is too low: the weights moved by" in done.stdout
    told = json.loads(tinlab("overfit", *words, "--json").stdout)
    assert (told["passed"], told["findings"][0]["cause"]) == (False, "the learning rate is too low")


def test_a_range_test(tinlab):
    # Noise is at home in so few steps: only what is printed is looked at.
    words = ("--steps", "40", "--from", "0.001", "--to", "1e4")
    done = tinlab("lr-find", *words)
    told = json.loads(tinlab("lr-find", *words, "--json").stdout)
    assert done.exit_code == (0 if told["fell"] else 1)
    if told["fell"]:
        assert f"--set optimizer.peak_lr={told['recommended']:g}" in done.stdout
    else:
        assert "no rate to recommend" in done.stdout
    assert len(told["rates"]) == len(told["losses"]) == len(told["smoothed"]) <= 40
    assert told["ended"] in ("range", "rose", "diverged")


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        ("overfit", ["--images", "1000"], "has only 108 images"),
        ("overfit", ["--set", "model.width=wide"], "model.width"),
        ("lr-find", ["--from", "1", "--to", "0.1"], "--from"),
        ("lr-find", ["--steps", "3"], "--steps"),
        ("train", ["--scale-lr"], "--scale-lr goes with"),
        ("train", ["--set", "batch_size=automatic"], "schedule.batch_size"),
    ],
)
def test_bad_input_is_one_sentence(tinlab, command, words, expected):
    done = tinlab(command, *words)
    assert isinstance(done.exception, TinlabError)
    assert expected in str(done.exception)


def test_a_batch_that_fits_is_written_into_the_run(tinlab, tmp_path):
    done = tinlab("train", "--set", "batch_size=auto", "--scale-lr", "--set", "schedule.steps=1", "--json")
    assert done.exit_code == 0, done.output
    (run,) = (tmp_path / "out").iterdir()
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["schedule"]["batch_size"] == 104
    assert recipe["optimizer"]["peak_lr"] == pytest.approx(0.05 * 104 / 16)


@pytest.mark.parametrize("command", ["overfit", "lr-find"])
def test_a_folder_in_the_charts_place_is_refused_before_the_work(tinlab, tmp_path, command):
    (tmp_path / "out").mkdir()
    done = tinlab(command, "--steps", "1000000")
    assert "is a folder; name a file, such as" in str(done.exception)
    assert done.stdout == ""


def test_a_chart_that_cannot_be_written_takes_nothing_away(tinlab, monkeypatch):
    def refuse(chart, out, words):
        raise TinlabError(f"{out} cannot be written")

    monkeypatch.setattr("tinlab.drawing.save_png", refuse)
    done = tinlab("overfit", "--images", "8", "--steps", "4", "--set", "optimizer.peak_lr=1e-9")
    assert "FAIL" in done.stdout
    assert "cannot be written" in str(done.exception)
