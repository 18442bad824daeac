"""The command as a person types it, in this process."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image
from typer.testing import CliRunner

from tinlab.cli import app
from tinlab.cli.explain import METHODS_HELP
from tinlab.errors import TinlabError
from tinlab.explain import METHODS

QUICK = ("--methods", "saliency,grad_cam", "--device", "cpu")


def call(*words):
    done = CliRunner().invoke(app, ["explain", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_the_help_names_every_method():
    assert re.findall(r"\b[a-z]+(?:_[a-z]+)*\b(?=[,.])", METHODS_HELP)[: len(METHODS)] == list(METHODS)


def test_maps_of_two_runs(run, shapes_pack, tmp_path):
    out = tmp_path / "maps.png"
    name = shapes_pack.split("test").names[2].rpartition("/")[2]
    done = call(run.path, run.path, "--index", 3, "--file", name, "--out", out, "--json", *QUICK)
    told = json.loads(done.stdout)
    assert told["picture"] == str(out)
    assert told["images"] == [name, "val 3"]
    assert told["methods"] == ["saliency", "grad_cam"]
    assert "Grad-CAM" in told["alt"]
    with Image.open(out) as picture:
        assert picture.size == (told["width"], told["height"])
    assert f"picture: {out}" in call(run.path, "--images", 1, "--out", out, *QUICK).stdout


def test_filters_errors_and_label_errors(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tinlab.explain.filters.STEPS", 2)
    call(run.path, "--filters", "--images", 20, "--device", "cpu")
    call(run.path, "--errors", "--device", "cpu")
    told = json.loads(call(run.path, "--label-errors", "--audit", "--json", "--device", "cpu").stdout)
    assert all(entry["label"] != entry["likely"] for entry in told["label_errors"])
    assert {path.name for path in tmp_path.iterdir()} == {"filters.png", "errors.png", "label-errors.png"}


def test_the_sanity_check_prints_a_table(run):
    done = call(run.path, "--sanity", "--images", 2, *QUICK)
    assert re.search(r"saliency +[+-]0\.\d\d", done.stdout)
    assert "2 images" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", ","), "none is named"),
        (("--methods", "salincy"), "try saliency"),
        (("--index", 400), "no row 400"),
        (("--file", "nowhere.png"), "neither a file nor the name"),
        (("--class", "spaceship"), "no class 'spaceship'"),
        (("--target", "both"), "give true or predicted"),
        (("--images", 0), "images is 0"),
        (("--errors", "--filters"), "give one of them"),
        (("--errors", "--index", 3), "--index is for maps and --sanity, not for --errors"),
        (("--sanity", "--out", "a.png"), "not for --sanity"),
        (("--audit",), "--audit is for --label-errors, not for maps"),
        (("--errors", "--split", "test"), "never published"),
        (("--filters", "--layer", "nowhere"), "no layer of the network"),
        (("--filters", "--by", "sum"), "give max or mean"),
        (("--split", "none"), "has no split 'none'"),
        (("--out", "/proc/no/where.png", "--images", 1), "cannot be written"),
    ],
)
def test_bad_input_is_one_clear_sentence(words, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tinlab.explain.filters.STEPS", 2)
    more = () if "--methods" in words or words[0] in ("--errors", "--filters") else QUICK
    with pytest.raises(TinlabError, match=re.escape(message)):
        call(run.path, *words, *more)
    assert list(tmp_path.iterdir()) == []


def test_one_run_at_a_time_where_two_make_no_sense(run):
    with pytest.raises(TinlabError, match="about one run"):
        call(run.path, run.path, "--errors")
