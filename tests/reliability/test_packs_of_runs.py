"""A pack that goes away, or changes, under a run or between two of its parts."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tinlab import runs
from tinlab.checks.small_pack import small_pack
from tinlab.data.pack import Pack
from tinlab.data.subset import half, subset_pack
from tinlab.errors import TinlabError
from tinlab.evaluating import predictions_of, robustness
from tinlab.explain import from_split
from tinlab.recipe import changed
from tinlab.serve.samples import find_samples
from tinlab.training import checkpoint, loop


@pytest.fixture
def pack(shapes_pack, tmp_path):
    """A copy that may be harmed."""
    return Pack.open(shutil.copytree(shapes_pack.path, tmp_path / "pack"))


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    return changed(tiny_recipe, ["schedule.steps=6"])


@pytest.fixture(scope="module")
def expected(recipe, shapes_pack, tmp_path_factory):
    run = loop.train(recipe, shapes_pack, tmp_path_factory.mktemp("runs"), device="cpu")
    return load_file(checkpoint.latest(run.path) / "model.safetensors")


def spoil(path):
    """Change a byte in the middle, in place; gives what puts it back."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 1]))

    def mend():
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(old)

    return mend


def at_step(step, act):
    """A watcher that does `act` once, after step `step`."""

    def watch(progress):
        if progress.step == step:
            act()

    return watch


def end():
    raise KeyboardInterrupt


def begun(recipe, pack, tmp_path):
    """A run that ended after its third step, with a checkpoint of the second."""
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, pack, tmp_path / "runs", device="cpu", checkpoint_seconds=0, watch=at_step(3, end))
    (run,) = runs.list_runs(tmp_path / "runs")
    assert checkpoint.latest(run.path).name == "step-00000002"
    return run


def is_as_expected(run, expected):
    found = load_file(checkpoint.latest(run.path) / "model.safetensors")
    return run.result is not None and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["train.npy", "val.npy", "train.labels.npy"])
def test_a_changed_byte_is_seen_before_a_training_and_leaves_no_run(name, recipe, pack, tmp_path):
    spoil(pack.path / name)
    with pytest.raises(TinlabError, match=rf"{name} is not what was packed .* pack again"):
        loop.train(recipe, pack, tmp_path / "runs", device="cpu")
    assert not (tmp_path / "runs").exists()


def test_a_changed_byte_is_seen_before_a_run_goes_on(recipe, pack, expected, tmp_path):
    run = begun(recipe, pack, tmp_path)
    mend = spoil(pack.path / "train.npy")
    with pytest.raises(TinlabError, match=r"train\.npy is not what was packed"):
        loop.resume(run.path, device="cpu")
    mend()
    assert is_as_expected(loop.resume(run.path, device="cpu"), expected)


def test_a_pack_that_is_written_to_under_a_run_ends_it_with_an_honest_checkpoint(
    recipe, pack, expected, tmp_path
):
    mended = []
    with pytest.raises(
        TinlabError, match=r"train\.npy was written to while .* go on from the last checkpoint"
    ):
        loop.train(
            recipe,
            pack,
            tmp_path / "runs",
            device="cpu",
            checkpoint_seconds=0,
            watch=at_step(4, lambda: mended.append(spoil(pack.path / "train.npy"))),
        )
    (run,) = runs.list_runs(tmp_path / "runs")
    assert checkpoint.latest(run.path).name == "step-00000003"
    mended[0]()
    assert is_as_expected(loop.resume(run.path, device="cpu"), expected)


def test_a_pack_that_is_replaced_and_goes_away_under_a_run_does_it_no_harm(
    tiny_recipe, pack, shapes_pack, tmp_path
):
    stages = (
        '[{"name": "a", "changes": {"schedule.steps": 3}}, {"name": "b", "changes": {"schedule.steps": 3}}]'
    )
    recipe = changed(tiny_recipe, [f"stages={stages}"])
    other = shutil.copytree(pack.path, tmp_path / "other")
    spoil(other / "train.npy")
    acts = {
        2: lambda: (shutil.rmtree(pack.path), other.rename(pack.path)),
        5: lambda: shutil.rmtree(pack.path),
    }
    whole = loop.train(recipe, shapes_pack, tmp_path / "whole", device="cpu")
    run = loop.train(
        recipe,
        pack,
        tmp_path / "runs",
        device="cpu",
        checkpoint_seconds=0,
        watch=lambda progress: acts.pop(progress.step, lambda: None)(),
    )
    assert acts == {}
    assert is_as_expected(run, load_file(checkpoint.latest(whole.path) / "model.safetensors"))


def test_a_pack_that_went_away_is_told_and_the_run_goes_on_once_it_is_back(recipe, pack, expected, tmp_path):
    run = begun(recipe, pack, tmp_path)
    pack.path.rename(tmp_path / "elsewhere")
    with pytest.raises(TinlabError, match="is not a pack"):
        loop.resume(run.path, device="cpu")
    moved = Pack.open(tmp_path / "elsewhere")
    assert is_as_expected(loop.resume(run.path, pack=moved, device="cpu"), expected)


def test_a_pack_is_read_once_by_a_process_as_long_as_it_stays(pack, monkeypatch):
    read = []
    verify = Pack.verify
    monkeypatch.setattr(Pack, "verify", lambda self, files: (read.append(files), verify(self, files)))
    pack.verify_once()
    Pack.open(pack.path).verify_once()
    pack.split("val").verify_once()
    assert len(read) == 1
    os.utime(pack.path / "val.npy", ns=(0, 1))
    pack.split("tune").verify_once()
    assert len(read) == 1
    pack.split("val").verify_once()
    pack.verify_once()
    assert read[1:] == [["val.npy"]]


def test_a_changed_byte_is_never_measured(recipe, pack, tmp_path):
    run = loop.train(recipe, pack, tmp_path / "runs", device="cpu").path
    saved = predictions_of(run, device="cpu")
    shutil.rmtree(run / "predictions")
    mend = spoil(pack.path / "val.npy")
    for measure in (predictions_of, robustness):
        with pytest.raises(TinlabError, match=r"val\.npy is not what was packed"):
            measure(run, device="cpu")
    assert not (run / "predictions").exists()
    with pytest.raises(TinlabError, match=r"val\.npy is not what was packed"):
        find_samples([], pack.path)
    with pytest.raises(TinlabError, match=r"val\.npy is not what was packed"):
        from_split(Pack.open(pack.path).split("val"))
    mend()
    assert torch.equal(torch.tensor(predictions_of(run, device="cpu").logits), torch.tensor(saved.logits))


def test_a_changed_byte_does_not_get_into_another_pack(pack, tmp_path):
    spoil(pack.path / "train.npy")
    with pytest.raises(TinlabError, match=r"train\.npy is not what was packed"):
        subset_pack(pack, half(pack, "A"), tmp_path / "half")
    with pytest.raises(TinlabError, match=r"train\.npy is not what was packed"):
        small_pack(pack, "train", np.arange(4), tmp_path / "few")
    assert not (tmp_path / "half").exists()
    assert not (tmp_path / "few").exists()
