"""Twenty deterministic steps, and their losses: a refactor must reproduce them.

Run as a program it rewrites losses.json; do so only for a change that is meant to change them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tinlab import recipes
from tinlab.data.pack import Pack
from tinlab.data.packing import pack
from tinlab.data.shapes import render
from tinlab.recipe import Recipe, changed
from tinlab.training import loop

FILE = Path(__file__).with_name("losses.json")
STEPS = 20


def golden_recipes() -> dict[str, Recipe]:
    """Small versions of the recipes that differ most, at rates that do not blow up rounding errors."""
    small = [f"schedule.steps={STEPS}", "schedule.batch_size=16", "compute.precision=fp32", "model.width=8"]
    return {
        "demo": changed(recipes.find("demo"), [*small, "optimizer.peak_lr=0.02"]),
        "sun_vanilla": changed(
            recipes.find("sun_vanilla"),
            [
                *small,
                "model.name=resnet18",
                "model.zero_last_bn=true",
                "model.width=16",
                "schedule.milestone_steps=[15]",
                "optimizer.peak_lr=0.001",
            ],
        ),
        "adamw": changed(
            recipes.find("demo"),
            [*small, "optimizer.name=adamw", "optimizer.nesterov=false", "optimizer.peak_lr=0.003"],
        ),
    }


def golden_pack(folder: Path) -> Pack:
    """The rendered images that the losses belong to."""
    images = render(folder / "images", classes=4, train_per_class=30, val_per_class=10, test_images=8)
    return pack(images, folder / "pack")


def losses(recipe: Recipe, on: Pack, out: Path) -> list[float]:
    """The training loss of each of the steps."""
    run = loop.train(recipe, on, out, seed=3, device="cpu")
    points = [point for point in run.metrics() if point["kind"] == "train"]
    assert [point["step"] for point in points] == list(range(1, STEPS + 1)), "one point a step"
    return [point["loss"] for point in points]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        data = golden_pack(Path(name))
        found = {key: losses(recipe, data, Path(name)) for key, recipe in golden_recipes().items()}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(f"{FILE}\n")
