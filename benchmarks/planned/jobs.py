"""What there is to run, in order of worth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from planned.plan import START_SECONDS, Job, State

HERE = Path(__file__).resolve().parent.parent

FIRST_ROWS = (
    "sun_vanilla", "sun_improved", "sun_final", "sun_variants", "yu_vgg", "shcherbina_vgglike", "what_helps",
)  # fmt: skip
"""The rows of the papers that two cores take longest for or that others build on; the rest comes last."""

BEST = ("best_resnet18", "best")

SMOKE = ("tests/training/test_cuda.py", "tests/augment/test_policies.py")

LENGTHS = "22,30,40,52"
"""Epochs of fast_gpu, of which `tune` tells the shortest that is long enough."""


def trainings(published: Iterable[Mapping[str, str]]) -> list[Job]:
    """The trainings, in order of worth: FIRST_ROWS by their first seeds, BEST, then all other rows and seeds.

    Left out are rows that look at other rows, those that begin from ImageNet's weights, which cannot be
    fetched, and whatever is in `published`, rows of results.csv.
    """
    from tinlab import recipes
    from tinlab.papers.registry import every_row
    from tinlab.results import of_tiny_imagenet

    there = {
        (line["recipe_digest"], line["seed"])
        for line in published
        if line["split"] == "val" and of_tiny_imagenet(line)
    }
    rows = {row.id: row for row in every_row() if row.recipes and not row.saw_imagenet}
    order = [rows[name] for name in FIRST_ROWS] + [r for name, r in rows.items() if name not in FIRST_ROWS]
    first: list[Job] = []
    later: list[Job] = []
    for row in order:
        for number, seed in enumerate(row.seeds):
            for recipe in row.recipes:
                if (recipe.digest, str(seed)) in there:
                    continue
                name = f"{row.id}/{recipe.name}-s{seed}" if row.study else f"{recipe.name}-s{seed}"
                job = Job(name, None, recipe, seed, row=row.id)
                (first if number == 0 and row.id in FIRST_ROWS else later).append(job)
    best = []
    for name in BEST:
        recipe = recipes.find(name)
        if (recipe.digest, "0") not in there:
            best.append(Job(f"{name}-s0", None, recipe, alone=True, shortens=True, row=name))
    return without_twins([*first, *best, *later])


def without_twins(jobs: Sequence[Job]) -> list[Job]:
    """The first of jobs that train the same recipe with the same seed, as two studies may."""
    seen: set[tuple[str, str, int]] = set()
    kept = []
    for job in jobs:
        key = (job.recipe.name, job.recipe.digest, job.seed)
        if key not in seen:
            seen.add(key)
            kept.append(job)
    return kept


def commands(args: argparse.Namespace) -> list[Job]:
    """The jobs before the trainings: programs of their own, each with the machine for itself."""
    python, data = sys.executable, ["--data", str(args.pack), "--device", args.device]
    fast = [python, str(HERE / "fast.py"), "--json", "--out", str(args.out / "fast"), *data]
    fast += ["--results", str(args.out / "results.csv"), "--target", "1" if args.tiny else "65.32"]
    tiny = [word for change in TINY_CHANGES for word in ("--set", change)] if args.tiny else []

    def smoke(state: State) -> list[str]:
        # By file: others import what only the tests of a whole installation have.
        return [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", *SMOKE]

    def measure(state: State) -> list[str]:
        more = [*tiny, "--seconds", "0.05", "--ways", "eager"] if args.tiny else []
        return [python, str(HERE / "device.py"), "--json", *data, *more]

    def chosen(state: State, *, length: bool) -> list[str]:
        way = state.found.get("fastest")
        changes = {"eager": ["compute.compile=false"], "cuda graphs": ["compute.cuda_graphs=true"]}.get(
            way or "", []
        )
        if length and "length" in state.found:
            changes = [*changes, state.found["length"]]
        return [*tiny, *(word for change in changes for word in ("--set", change))]

    def length(state: State) -> list[str]:
        values = "schedule.steps=2,3" if args.tiny else f"schedule.epochs={LENGTHS}"
        return [*fast, *chosen(state, length=False), "--choose", values, "--runs", "0"]

    def runs(count: int) -> Callable[[State], list[str]]:
        return lambda state: [*fast, *chosen(state, length=True), "--runs", str(count)]

    return [
        Job("smoke", 120, command=smoke, alone=True),
        Job("measure", 180, command=measure, alone=True),
        Job("fast_gpu-length", 240, command=length, alone=True, after=("measure",)),
        Job("fast_gpu-1", 100, command=runs(1), alone=True, after=("measure", "fast_gpu-length")),
        Job(
            "fast_gpu-5",
            280,
            command=runs(2 if args.tiny else 5),
            alone=True,
            after=("measure", "fast_gpu-length"),
        ),
    ]


TINY_CHANGES = (
    "schedule.steps=3", "schedule.batch_size=8", "model.width=8", "data.image_sizes=[32,48]",
    "compute.compile=false",
)  # fmt: skip

TOO_LARGE = ("keras_alexnet",)
"""Networks that --tiny leaves out: 1.4 billion parameters are slow on a CPU whatever is done with them."""


def tiny(recipe: Any) -> Any:
    """`recipe` for two steps of four images a stage, as narrow as its network goes, called NAME-tiny."""
    from tinlab import models
    from tinlab.recipe import parse_recipe

    value = recipe.model_dump(mode="json")
    value["schedule"] |= {
        "steps": 2,
        "epochs": None,
        "batch_size": 4,
        "warmup_fraction": 0.0,
        "accumulate": 1,
    }
    if value["schedule"]["shape"] == "step":
        value["schedule"]["milestone_steps"] = [1]
    for stage in value["stages"]:
        kept = {name: item for name, item in stage["changes"].items() if not name.startswith("schedule.")}
        stage["changes"] = kept
    if "width" in models.find(recipe.model.name).options:
        value["model"]["width"] = 8
    value["compute"] |= {"compile": False, "cuda_graphs": False}
    value["name"] = f"{recipe.name[:59]}-tiny"
    return parse_recipe(value, value["name"])


def shrunk(jobs: Iterable[Job]) -> list[Job]:
    """`jobs` by --tiny: first seeds alone, each a second or two, without the networks that are too large."""
    found = []
    for job in jobs:
        if job.recipe is not None:
            if job.seed != 0 or job.recipe.model.name in TOO_LARGE:
                continue
            job = replace(job, recipe=tiny(job.recipe))
        found.append(replace(job, seconds=START_SECONDS + 5))
    return found


def wanted(job: Job, names: Sequence[str]) -> bool:
    """Whether `job` is one of those that --jobs names."""
    return not names or any(job.id.startswith(name) or job.row == name for name in names)
