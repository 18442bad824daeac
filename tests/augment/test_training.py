"""Policies in the training loop, and on the command line."""

import json

import pytest
from typer.testing import CliRunner

from tinlab.cli import app
from tinlab.recipe import POLICIES
from tinlab.recipe import operations as ops
from tinlab.training import loop


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    heavy = (
        ops.FixedCopies(share=0.5, operations=(ops.Rotate(), ops.Hue())),
        *POLICIES["sun_heavy"](),
        ops.Mixup(probability=0.5),
        ops.Cutmix(probability=0.5),
    )
    return tiny_recipe.model_copy(update={"augment": heavy})


def test_a_run_with_everything_repeats_itself_and_resumes(recipe, shapes_pack, tmp_path):
    whole = loop.train(recipe, shapes_pack, tmp_path / "whole", seed=2, device="cpu")
    losses = [point["loss"] for point in whole.metrics() if point["kind"] == "train"]
    rows = len(shapes_pack.split("train"))
    assert whole.result["train_images"] == rows + 2 * round(0.5 * rows)

    class Enough(Exception):
        pass

    def stop(progress):
        if progress.step == 7:
            raise Enough

    begun = []
    with pytest.raises(Enough):
        loop.train(
            recipe, shapes_pack, tmp_path / "cut", seed=2, device="cpu", checkpoint_seconds=0, watch=stop,
            started=begun.append,
        )  # fmt: skip
    resumed = loop.resume(begun[0].path, device="cpu")
    again = [point["loss"] for point in resumed.metrics() if point["kind"] == "train"]
    assert again == losses
    assert resumed.result["loss"] == whole.result["loss"]


def test_the_command_lists_and_draws(shapes_pack, tmp_path):
    runner = CliRunner()
    shown = runner.invoke(app, ["augment"])
    assert shown.exit_code == 0
    assert all(name in shown.output for name in POLICIES)
    listed = json.loads(runner.invoke(app, ["augment", "--json"]).output)
    flip = {"kind": "flip", "probability": 0.5, "axis": "left_right", "alternate": False}
    assert listed["sun_light"] == [flip]
    for policy in ("sun_heavy", "demo"):
        picture = tmp_path / f"{policy}.png"
        words = [
            "augment",
            policy,
            "--data",
            shapes_pack.path,
            "--images",
            2,
            "--columns",
            3,
            "--out",
            picture,
        ]
        made = runner.invoke(app, [str(word) for word in words])
        assert made.exit_code == 0, made.output
        assert picture.read_bytes()[:4] == b"\x89PNG"
    refused = runner.invoke(app, ["augment", "sun_heavier", "--data", str(shapes_pack.path)])
    assert "there is no policy 'sun_heavier'" in str(refused.exception)
