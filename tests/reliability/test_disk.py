"""Disks that are full or not to be written to, and what killed and living writers leave each other."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tinlab import files, results, runs
from tinlab.data.subset import half, subset_pack
from tinlab.errors import TinlabError
from tinlab.recipe import changed
from tinlab.training import checkpoint, fitting, loop

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    return changed(tiny_recipe, ["schedule.steps=6"])


@pytest.fixture(scope="module")
def finished(recipe, shapes_pack, tmp_path_factory):
    return loop.train(recipe, shapes_pack, tmp_path_factory.mktemp("runs"), device="cpu")


def weights(run):
    return load_file(checkpoint.latest(run.path) / "model.safetensors")


def test_a_full_disk_keeps_the_checkpoint_before_and_says_how_to_go_on(
    recipe, shapes_pack, finished, tmp_path, monkeypatch
):
    saved = []
    save_file = checkpoint.save_file

    def filling(tensors, path):
        saved.append(path)
        if len(saved) > 7:  # the second file of the fourth checkpoint
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", filling)
    with pytest.raises(
        TinlabError, match=r"no space left on device at .*; make room, and go on with: .*--resume"
    ):
        loop.train(recipe, shapes_pack, tmp_path, device="cpu", checkpoint_seconds=0)
    monkeypatch.undo()
    (run,) = runs.list_runs(tmp_path)
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step-00000003"]
    run = loop.resume(run.path, device="cpu")
    found, expected = weights(run), weights(finished)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_whatever_a_run_cannot_write_is_one_sentence(number, recipe, shapes_pack, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(loop, "write_json", refuse)
        with pytest.raises(TinlabError, match="go on with: tinlab train --resume"):
            loop.train(recipe, shapes_pack, tmp_path, device="cpu")
    (run,) = runs.list_runs(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        with pytest.raises(TinlabError, match=r"cannot be (used|written)"), runs.locked(run.path):
            pass


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FULL, "a file cannot be written: the disk is full; make room and give the command again"),
        (
            OSError(errno.EROFS, "Read-only file system", "/a/b"),
            "/a/b cannot be used (read-only file system)",
        ),
        (OSError(errno.EACCES, "Permission denied", "/a/b"), "/a/b cannot be used (permission denied)"),
        (OSError(errno.EBADF, "Bad file descriptor"), None),
    ],
)
def test_what_a_disk_says_is_put_into_words(error, expected):
    said = files.refused(error)
    assert said is None if expected is None else said.startswith(expected)


def test_an_error_of_a_writer_names_the_file_that_was_to_be_written(tmp_path):
    def write(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    place = tmp_path / "a.json"
    place.write_text("old")
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_atomically(place, write)
    assert caught.value.filename == str(place)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert place.read_text() == "old"


def test_the_command_line_says_what_a_disk_said(tmp_path, monkeypatch, capsys):
    from tinlab import cli

    def app(**_):
        raise OSError(errno.EROFS, "Read-only file system", "/a/b")

    monkeypatch.setattr(cli, "app", app)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("tinlab: /a/b cannot be used (read-only file system)")


def test_a_subset_on_a_full_disk_is_an_error_and_not_the_end_of_the_process(
    shapes_pack, tmp_path, monkeypatch
):
    def full(*_):
        raise FULL

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(TinlabError, match="the disk is full"):
        subset_pack(shapes_pack, half(shapes_pack, "A"), tmp_path / "half")
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys, time
from pathlib import Path
from tinlab.files import write_atomically
def write(path):
    path.write_text("half")
    print("now", flush=True)
    time.sleep(60)
write_atomically(Path(sys.argv[1]), write)
"""
HOLDER = """
import sys, time
from pathlib import Path
from tinlab.runs import locked
with locked(Path(sys.argv[1])):
    print("now", flush=True)
    time.sleep(60)
"""
MAKER = """
import sys, time
from pathlib import Path
from tinlab import runs
from tinlab.data.pack import Pack
from tinlab.recipe import read_recipe
write = runs.write_json
def slow(path, value):
    if path.name == "run.json":
        print("now", flush=True)
        time.sleep(60)
    write(path, value)
runs.write_json = slow
shown = runs.Preprocessing(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
runs.create(Path(sys.argv[1]), read_recipe(Path({recipe!r})), 0, Pack.open({pack!r}), shown)
"""


def started(code, place):
    """A process that runs `code` on `place`, once it is in the middle of it."""
    process = subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "now\n"
    return process


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    place = tmp_path / "a.json"
    (tmp_path / ".a.json.notes.partial").write_text("somebody else's")
    killed, living = started(WRITER, place), started(WRITER, place)
    try:
        assert len(list(tmp_path.iterdir())) == 3
        killed.kill()
        killed.wait()
        files.write_text(place, "whole")
        assert len(list(tmp_path.iterdir())) == 3  # the file, the living writer's, and somebody else's
        assert place.read_text() == "whole"
    finally:
        living.kill()
        living.wait()
    files.write_text(place, "whole again")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", ".a.json.notes.partial"}


def test_a_run_is_held_by_one_process_and_free_once_that_is_dead(tmp_path):
    holder = started(HOLDER, tmp_path)
    try:
        with pytest.raises(TinlabError, match="is being trained by another process"), runs.locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with runs.locked(tmp_path):
        pass


def test_a_run_folder_is_whole_or_absent(recipe, shapes_pack, tmp_path):
    out = tmp_path / "runs"
    files.write_json(tmp_path / "recipe.json", recipe.model_dump(mode="json"))
    killed = started(MAKER.format(recipe=str(tmp_path / "recipe.json"), pack=str(shapes_pack.path)), out)
    assert runs.list_runs(out) == []
    killed.kill()
    killed.wait()
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == []
    run = runs.create(out, recipe, 0, shapes_pack, fitting.preprocessing(recipe, shapes_pack))
    assert list(out.iterdir()) == [run.path]


def test_rows_that_are_added_at_the_same_time_are_all_there(finished, tmp_path, monkeypatch):
    copies = []
    for number in range(4):
        copy = shutil.copytree(finished.path, tmp_path / f"run{number}")
        result = json.loads((copy / "result.json").read_text()) | {"finished_at": f"time {number}"}
        (copy / "result.json").write_text(json.dumps(result))
        environment = json.loads((copy / "environment.json").read_text())
        environment["pack"]["source_kind"] = "class_folders"
        (copy / "environment.json").write_text(json.dumps(environment))
        copies.append(copy)
    together = threading.Barrier(len(copies))
    measure = results.measure

    def measured(*given):
        found = measure(*given)
        together.wait(30)
        return found

    monkeypatch.setattr(results, "measure", measured)
    place = tmp_path / "results" / "results.csv"
    threads = [threading.Thread(target=results.record, args=(copy, place)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = sorted(row["finished_at"] for row in results.read_results(place))
    assert found == [f"time {number}" for number in range(4)]


def test_a_run_is_read_while_its_training_saves(finished, tmp_path, monkeypatch):
    """The checkpoint that was found is gone once it is read: the training has saved a newer one."""
    from tinlab import classifier

    copy = shutil.copytree(finished.path, tmp_path / "run")
    read = checkpoint.read_state
    moved = []

    def late(place):
        if not moved:
            moved.append(place.rename(place.with_name("step-00000009")))
        return read(place)

    monkeypatch.setattr(checkpoint, "read_state", late)
    found = classifier.load(copy, "cpu")
    assert moved
    expected = weights(finished)
    assert all(torch.equal(value, expected[name]) for name, value in found.model.state_dict().items())
    (moved[0] / "state.json").write_text("{")
    with pytest.raises(TinlabError, match="cannot be read"):
        classifier.load(copy, "cpu")


def test_a_row_is_there_only_with_its_curve(finished, tmp_path, monkeypatch):
    copy = shutil.copytree(finished.path, tmp_path / "run")
    environment = json.loads((copy / "environment.json").read_text())
    environment["pack"]["source_kind"] = "class_folders"
    (copy / "environment.json").write_text(json.dumps(environment))
    write = results.write_table

    def full(path, *rest):
        if path.parent.name == "curves":
            raise FULL
        write(path, *rest)

    monkeypatch.setattr(results, "write_table", full)
    place = tmp_path / "results.csv"
    with pytest.raises(OSError, match="No space"):
        results.record(copy, place)
    assert results.read_results(place) == []
    monkeypatch.undo()
    results.record(copy, place)
    assert len(list((tmp_path / "curves").glob("tiny-*-s0.csv"))) == 1


LOST = """
import os, signal, time
from tinlab import cli
class Lost:
    def __del__(self):  # where an exception is told of and dropped
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
def app(**_):
    Lost()
    for _ in range(300):
        time.sleep(0.1)
cli.app = app
cli.main()
"""


def test_a_signal_that_comes_where_nothing_can_be_raised_is_not_lost():
    done = subprocess.run(
        [sys.executable, "-c", LOST], capture_output=True, text=True, timeout=25, check=False
    )
    assert done.returncode == 143
    assert done.stderr.startswith("tinlab: stopped by SIGTERM")
