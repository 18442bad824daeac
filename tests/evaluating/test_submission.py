"""The challenge's file of answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tinlab.cli import app
from tinlab.data.packing import pack
from tinlab.errors import TinlabError
from tinlab.evaluating import evaluate, predictions_of
from tinlab.evaluating.ensemble import compare_rules, save_ensemble
from tinlab.evaluating.submission import check_submission, file_names, natural, submit


def test_a_line_for_each_test_image(honest_runs, shapes_pack, tmp_path):
    made = submit(honest_runs[2], tmp_path / "s.txt", device="cpu")
    assert (made.images, made.top1_percent) == (8, None)
    predicted = predictions_of(honest_runs[2], split="test").logits.argmax(1)
    ids = [c.id for c in shapes_pack.info.classes]
    names = [name.rpartition("/")[2] for name in shapes_pack.split("test").names]
    expected = {name: ids[i] for name, i in zip(names, predicted, strict=True)}
    lines = (tmp_path / "s.txt").read_text().splitlines()
    assert dict(line.split(" ") for line in lines) == expected
    assert [line.split()[0] for line in lines] == [f"test_{i}.JPEG" for i in range(8)]


def test_val_scores_what_was_measured(honest_runs, tmp_path, shapes_pack):
    made = submit(honest_runs[2], tmp_path / "s.txt", split="val", device="cpu")
    assert made.top1_percent == pytest.approx(evaluate(honest_runs[2]).metrics.top1_percent)
    again = check_submission(tmp_path / "s.txt", shapes_pack, split="val")
    assert np.array_equal(again.classes, made.classes)
    lines = (tmp_path / "s.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [f"val_{i}.JPEG" for i in range(40)]  # 9 before 10


def test_a_score_on_training_images_is_said_to_be_one(honest_runs, tmp_path):
    assert submit(honest_runs[2], tmp_path / "s.txt", split="val", device="cpu").notes == ()
    save_ensemble(compare_rules(honest_runs, rules=["vote"], device="cpu"), tmp_path / "e.json", "vote")
    for source in (honest_runs[2], tmp_path / "e.json"):
        words = f"submit {source} --out {tmp_path / 's.txt'} --split train --device cpu".split()
        shown = CliRunner().invoke(app, words).output
        assert "the network was trained on images of train" in shown
        assert json.loads(CliRunner().invoke(app, [*words, "--json"]).output)["notes"]


def test_an_ensemble_answers_too(honest_runs, tmp_path):
    found = compare_rules(honest_runs, rules=["vote"], device="cpu")
    save_ensemble(found, tmp_path / "e.json", "vote")
    made = submit(tmp_path / "e.json", tmp_path / "s.txt", split="val", device="cpu")
    assert made.top1_percent == pytest.approx(found.rows[0].top1_percent)


def test_natural_order():
    names = ["test_10.JPEG", "test_9.JPEG", "test_0.JPEG", "a.JPEG", "test_100.JPEG", "7.png"]
    expected = ["7.png", "a.JPEG", "test_0.JPEG", "test_9.JPEG", "test_10.JPEG", "test_100.JPEG"]
    assert sorted(names, key=natural) == expected


def test_other_peoples_files_are_checked(honest_runs, shapes_pack, tmp_path):
    path = tmp_path / "s.txt"
    submit(honest_runs[0], path, device="cpu")
    lines = path.read_text().splitlines()
    id = lines[0].split()[1]
    path.write_text("\r\n".join(lines[::-1]))  # any order, and Windows' line ends
    assert check_submission(path, shapes_pack).images == 8
    for wrong, message in (
        (lines[:-1], "lacks 1 of the 8 files of test; first: test_7.JPEG"),
        ([*lines, lines[0]], "line 9: 'test_0.JPEG' came before"),
        (["test_8.JPEG " + id, *lines[1:]], "line 1: test of .* has no image 'test_8.JPEG'"),
        ([lines[0], "test_1.JPEG n00000000", *lines[2:]], "line 2: .* no class 'n00000000'"),
        ([lines[0], "test_1.JPEG", *lines[2:]], "line 2: not 'FILE CLASS'"),
        ([lines[0], "test_1.JPEG  " + id, *lines[2:]], "line 2: not 'FILE CLASS'"),
        ([lines[0], "", *lines[1:]], "line 2: not"),
        ([lines[0], f"test_1.JPEG\t{id}", *lines[2:]], "line 2: not"),
        ([], "lacks 8"),
    ):
        path.write_text("".join(f"{line}\n" for line in wrong))
        with pytest.raises(TinlabError, match=message):
            check_submission(path, shapes_pack)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TinlabError, match="not UTF-8"):
        check_submission(path, shapes_pack)


def test_nothing_wrong_is_written(honest_runs, tmp_path, monkeypatch):
    """What the check refuses never stands at the file's place, and what stood there stays."""
    path = tmp_path / "s.txt"
    path.write_text("old")
    monkeypatch.setattr("tinlab.evaluating.submission.natural", lambda name: [len(name)])
    original = check_submission

    def doubting(place, *args, **more):
        place.write_text(place.read_text().replace("test_3", "test_4"))
        return original(place, *args, **more)

    monkeypatch.setattr("tinlab.evaluating.submission.check_submission", doubting)
    with pytest.raises(TinlabError, match="came before"):
        submit(honest_runs[0], path, device="cpu")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["s.txt"]


def test_names_that_cannot_stand_in_a_file(tmp_path):
    from PIL import Image

    for folder in ("cat", "a dog"):
        for i in range(6):
            place = tmp_path / "photos" / folder / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (40 * i, 0, 9)).save(place)
    own = pack(tmp_path / "photos", tmp_path / "pack")
    with pytest.raises(TinlabError, match="two images of train are called"):
        file_names(own.split("train"))
    (tmp_path / "photos" / "cat").rename(tmp_path / "photos" / "bird")
    for i in range(6):
        (tmp_path / "photos" / "bird" / f"{i}.png").rename(tmp_path / "photos" / "bird" / f"b{i}.png")
    own = pack(tmp_path / "photos", tmp_path / "other")
    with pytest.raises(TinlabError, match="'a dog' holds a blank"):
        file_names(own.split("train"))


def test_the_command(honest_runs, tmp_path):
    out = tmp_path / "answers.txt"
    words = ["submit", str(honest_runs[0]), "--out", str(out), "--split", "val"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.exception
    shown = json.loads(done.stdout)
    assert shown["images"] == 40
    assert shown["top1_percent"] == pytest.approx(evaluate(honest_runs[0]).metrics.top1_percent)
    assert "it scores" in CliRunner().invoke(app, words).stdout
    for words, message in (
        (["submit", str(tmp_path / "nowhere")], "not a run folder"),
        (["submit", str(out)], "is not JSON"),
        (["submit", str(honest_runs[0]), "--out", str(tmp_path)], "is a folder"),
        (["submit", str(honest_runs[0]), "--split", "x"], "no split 'x'"),
        (["submit", str(honest_runs[0]), "--out", "/proc/no/s.txt"], "cannot be written"),
    ):
        done = CliRunner().invoke(app, words)
        assert isinstance(done.exception, TinlabError), done.exception
        assert message in str(done.exception)
