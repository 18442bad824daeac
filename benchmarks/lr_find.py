"""Which rate of a range test trains better: where the loss falls fastest, or a tenth of where it is lowest?

A small ResNet is trained at both, with each of three optimizers, on rendered images, and the final training
losses are compared. Nothing is timed.

    python benchmarks/lr_find.py [--seeds 2] [--steps 60] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tinlab.checks.lr_find import lr_find
from tinlab.data.pack import Pack
from tinlab.data.packing import pack
from tinlab.data.shapes import render
from tinlab.recipe import Data, Flip, Model, Optimizer, Recipe, Schedule, changed
from tinlab.training import endings, loop

RECIPE = Recipe(
    name="small",
    data=Data(image_sizes=(32,)),
    augment=(Flip(),),
    model=Model(width=8, stem="patch"),
    schedule=Schedule(steps=60, batch_size=16, shape="linear", warmup_fraction=0.2),
)
OPTIMIZERS = {name: Optimizer(name=name) for name in ("sgd", "adamw", "muon")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        images = render(Path(name) / "images", classes=4, train_per_class=30, val_per_class=10, test_images=8)
        data = pack(images, Path(name) / "pack")
        for optimizer, knobs in OPTIMIZERS.items():
            recipe = changed(RECIPE.model_copy(update={"optimizer": knobs}), [f"schedule.steps={args.steps}"])
            for seed in range(args.seeds):
                marks = lr_find(recipe, data, seed=seed, device="cpu").marks
                found = {"steepest": marks.steepest, "lowest / 10": marks.lowest / 10}
                losses = {mark: final_loss(recipe, rate, data, seed) for mark, rate in found.items()}
                rows.append({"optimizer": optimizer, "seed": seed, "rates": found, "losses": losses})
                if not args.json:
                    told = ", ".join(f"{m} {found[m]:.2g}: loss {losses[m]:.3f}" for m in found)
                    print(f"{optimizer}, seed {seed}: {told}", flush=True)
    ratios = [row["losses"]["steepest"] / row["losses"]["lowest / 10"] for row in rows]
    won = sum(ratio < 1 for ratio in ratios)
    if args.json:
        print(json.dumps({"rows": rows, "steepest is lower": won, "of": len(rows)}, indent=2))
        return
    median = statistics.median(ratios)
    print(f"loss at steepest / at lowest / 10: median {median:.2f}; lower in {won} of {len(rows)}")


def final_loss(recipe: Recipe, rate: float, data: Pack, seed: int) -> float:
    """The mean training loss of the last tenth of the steps."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = loop.train(
                changed(recipe, [f"optimizer.peak_lr={rate}"]),
                data,
                Path(folder),
                seed=seed,
                device="cpu",
                final_split="tune",
            )
        except endings.Diverged:
            return math.inf
        losses = [point["loss"] for point in run.metrics() if point["kind"] == "train"]
    return statistics.mean(losses[-max(1, len(losses) // 10) :])


if __name__ == "__main__":
    main()
