"""Tiny runs on the rendered pack: three that leave tune out, and one that was trained on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinlab.recipe import changed
from tinlab.training import loop


@pytest.fixture(scope="session")
def honest_runs(tiny_recipe, shapes_pack, tmp_path_factory) -> list[Path]:
    out = tmp_path_factory.mktemp("honest")
    return [
        loop.train(
            changed(tiny_recipe, ["compute.precision=fp32", f"schedule.steps={steps}"]),
            shapes_pack,
            out,
            seed=seed,
            device="cpu",
        ).path
        for seed, steps in enumerate((15, 25, 35))
    ]


@pytest.fixture(scope="session")
def run_on_tune(tiny_recipe, shapes_pack, tmp_path_factory) -> Path:
    recipe = changed(tiny_recipe, ["data.train_split=train+tune", "compute.precision=fp32"])
    return loop.train(recipe, shapes_pack, tmp_path_factory.mktemp("tuned"), device="cpu").path
