"""Transfer inside Tiny ImageNet, the setting of Stanford's CS231n: a network learns half of the classes (A),
and is fine-tuned on the other half (B), at few images a class and at many, against networks from scratch.

No image and no class of B was seen before, which cannot be said of ImageNet's weights.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinlab.data.pack import Pack
from tinlab.data.subset import half, subset_pack
from tinlab.environment import describe_pack
from tinlab.errors import TinlabError
from tinlab.files import only_one, read_text, write_json
from tinlab.papers.length import expected_minutes, images_per_second
from tinlab.recipe import Recipe, Schedule, Stage
from tinlab.recipes import shortened
from tinlab.results import (
    COLUMNS,
    TINY_IMAGENET,
    are_columns,
    check_numbers,
    images_of,
    row_of,
    same_images,
    write_table,
)
from tinlab.runs import Run
from tinlab.study.comparison import Spread, spread
from tinlab.study.trial import find_run, training_alone
from tinlab.training import fitting, loop
from tinlab.training.progress import Watcher

IMAGES_PER_CLASS = (5, 25, 50, 500)
"""Of B, in training; 500 are all."""
LEAST_STEPS, EPOCHS = 400, 12
"""Networks on B see their images EPOCHS times, and take at least so many steps."""
CURVE_POINTS = 12
"""How often B's validation images are looked at: every epoch would be every other step where five images a
class are all there is."""


STARTS = ("from A", "from scratch")
"""How a network on B begins."""


@dataclass(frozen=True)
class Trained:
    """One training of a transfer: on B with so many images a class, or with 0 of them that on A itself."""

    recipe: Recipe
    fraction: float
    images_per_class: int
    start: str
    run: Run


@dataclass(frozen=True)
class Line:
    """What networks reach on B's validation images: top-1 in percent over the seeds, seed -> value."""

    images_per_class: int
    from_a: dict[int, float]
    from_scratch: dict[int, float]

    @property
    def spreads(self) -> tuple[Spread, Spread]:
        """Of the networks from A, and of those from scratch."""
        return spread(list(self.from_a.values())), spread(list(self.from_scratch.values()))


def transfer(
    recipe: Recipe,
    pack: Pack,
    out: Path,
    *,
    images_per_class: tuple[int, ...] = IMAGES_PER_CLASS,
    seeds: tuple[int, ...] = (0,),
    fraction: float = 1.0,
    device: str = "auto",
    checkpoint_seconds: float = 300,
    say: Callable[[str], None] = print,
    watch: Watcher | None = None,
    finished: Callable[[Trained], None] = lambda one: None,
    recorded: Mapping[tuple[int, str, int], float] | None = None,
) -> list[Line]:
    """Train `recipe` on half A of the classes of `pack`, then networks on half B, from it and from scratch.

    All is in the folder `out`: the packs A and B, the runs, and transfer.json with the lines. What is
    finished stays, and what was stopped goes on. `fraction` shortens every training; `finished` is told of
    each training as it ends, or is found to have ended. What `recorded` has (images a class, start and
    seed -> top-1 in percent) is not trained, nor is A where nothing needs it. Raises what `loop.train`
    raises, and TinlabError where `recipe` starts from weights, where the classes cannot be halved, or where a
    number of images is none, or more than B has of each class.
    """
    if any(count < 1 for count in images_per_class):
        raise TinlabError("images a class are 1 or more")
    if recipe.model.weights is not None:
        raise TinlabError(
            f"{recipe.name} starts from weights ({recipe.model.weights}), which may have seen the images of "
            "both halves; take a recipe from scratch"
        )
    ids, labels = half(pack, "B"), pack.split(recipe.data.train_split).labels
    labels = labels - (len(pack.info.classes) - len(ids))  # B's come last
    least = int(np.bincount(labels[labels >= 0], minlength=len(ids)).min())
    if (most := max(images_per_class, default=0)) > least:
        raise TinlabError(
            f"{most} images a class are more than half B of {pack.path} has: {least} of its "
            f"smallest class in {recipe.data.train_split}; give --images up to that"
        )
    halves = {which: subset_pack(pack, half(pack, which), out / f"pack-{which}") for which in ("A", "B")}

    def trained(one: Recipe, which: str, seed: int) -> Run:
        here, runs = halves[which], out / "runs"
        options = {"device": device, "checkpoint_seconds": checkpoint_seconds, "watch": watch}
        run = find_run(runs, one, seed, here.digest)
        if run is None or run.result is None:
            with training_alone(runs, one, seed, here.digest):
                run = find_run(runs, one, seed, here.digest)  # another process may have begun it meanwhile
                if run is None:
                    say(f"{one.name}, seed {seed}: begins")
                    return loop.train(one, here, runs, seed=seed, **options)  # type: ignore[arg-type]
                if run.result is None:
                    say(f"{one.name}, seed {seed}: goes on")
                    return loop.resume(run.path, pack=here, **options)  # type: ignore[arg-type]
        say(f"{one.name}, seed {seed}: finished already")
        return run

    found: list[Line] = []
    for count in images_per_class:
        values: tuple[dict[int, float], dict[int, float]] = ({}, {})
        for seed in seeds:
            for place, start in enumerate(STARTS):
                if (known := (recorded or {}).get((count, start, seed))) is not None:
                    say(f"{count} images a class, {start}, seed {seed}: has a row already: {known:.2f}%")
                    values[place][seed] = known
                    continue
                weights = None
                if start == "from A":
                    base = trained(on_a(recipe, fraction), "A", seed)
                    finished(Trained(recipe, fraction, 0, "A itself", base))
                    weights = str(base.path.resolve())
                run = trained(on_b(recipe, count, weights, fraction, halves["B"]), "B", seed)
                assert run.result is not None
                values[place][seed] = run.result["top1_percent"]
                finished(Trained(recipe, fraction, count, start, run))
        found.append(Line(count, *values))
    write_json(out / "transfer.json", [vars(line) for line in found])
    return found


def on_a(recipe: Recipe, fraction: float = 1.0) -> Recipe:
    """What is trained on A."""
    short = shortened(recipe, fraction)
    return short.model_copy(update={"name": f"transfer-a-{short.name}"[:64]})


def on_b(recipe: Recipe, images_per_class: int, weights: str | None, fraction: float, pack: Pack) -> Recipe:
    """What is trained on B: the recipe's network, from the weights of a run on A or from scratch.

    Both have the same images and the same number of steps. From A, the new classifier first learns alone for
    a fifth of them; then all of the network, at a tenth of the recipe's rates.
    """
    train = len(pack.split(recipe.data.train_split))
    images = min(images_per_class * len(pack.info.classes), train)
    steps, batch = _length(recipe, images, fraction)
    classifier = _classifier(recipe)
    head = max(1, steps // 5)
    slower = recipe.optimizer.rates_times(0.1)
    schedule = Schedule(steps=steps, batch_size=batch, shape="linear", warmup_fraction=0.1)
    stages: tuple[Stage, ...] = ()
    if weights is not None:
        stages = (
            Stage(
                name="classifier",
                changes={
                    "schedule.steps": head,
                    "optimizer.layer_rates": [
                        {"layers": classifier, "factor": 1},
                        {"layers": "*", "factor": 0},
                    ],
                },
                fresh=(classifier,),
            ),
            Stage(
                name="all",
                changes={
                    "schedule.steps": steps - head,
                    **{f"optimizer.{field}": rate for field, rate in slower.items()},
                },
            ),
        )
    start = "scratch" if weights is None else "a"
    return recipe.model_copy(
        update={
            "name": f"transfer-b-{images_per_class}-from-{start}-{recipe.name}"[:64],
            "summary": f"{recipe.name} on half B, {images_per_class} images a class, from {start}",
            "paper": None,
            "provenance": {},
            "data": recipe.data.model_copy(
                update={
                    "images_per_class": images_per_class,
                    "images": None,
                    "image_sizes": (fitting.network_size(recipe, pack),),
                }
            ),
            "model": recipe.model.model_copy(update={"weights": weights}),
            "schedule": schedule,
            "stages": stages,
            "evaluate_every_epochs": max(1.0, steps * batch / images / CURVE_POINTS),
        }
    )


def _length(recipe: Recipe, images: int, fraction: float) -> tuple[int, int]:
    """Steps of a training on `images` images, and the images of a step."""
    batch = min(recipe.schedule.batch_size, images)
    return max(2, round(fraction * max(LEAST_STEPS, EPOCHS * images / batch))), batch


def _classifier(recipe: Recipe) -> str:
    from tinlab import models

    return models.find(recipe.model.name).classifier


TABLE_COLUMNS = ("network", "share", "images_per_class", "start", *COLUMNS)
"""transfer.csv: the recipe whose network and rate it is and the share of its length, then what results.csv
has of a run; the digest is the network's recipe's, since that of the training names a folder."""
KEY = ("network", "recipe_digest", "share", "images_per_class", "start", "seed")
"""What a row is of, besides its images."""
HALF = TINY_IMAGENET | {"classes": "100"}
"""Half of Tiny ImageNet's classes, packed as usual: the images whose rows are shown."""


def transfer_file(results: Path) -> Path:
    """transfer.csv beside results.csv."""
    return results.parent / "transfer.csv"


def read_transfer(path: Path) -> list[dict[str, str]]:
    """The rows of `path`; none where there is no file. Raises TinlabError for other columns."""
    if not path.is_file():
        return []
    try:
        rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
        names = tuple(rows.fieldnames or ())
        found = [{name: row.get(name) or "" for name in TABLE_COLUMNS} for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise TinlabError(f"{path} cannot be read ({error}); move it aside") from error
    if not are_columns(names, TABLE_COLUMNS):
        raise TinlabError(f"{path} has other columns than this tinlab writes; move it aside")
    check_numbers(path, found, ("share", "images_per_class", "train_minutes"))
    return found


def recorded_transfer(
    path: Path, recipe: Recipe, fraction: float, pack: Pack
) -> dict[tuple[int, str, int], float]:
    """Images a class, start and seed -> top-1 in percent of the rows of `path` for `recipe` at that share of
    its length, on halves of the classes of `pack`."""
    whole = images_of(describe_pack(pack))
    halves = [whole | {"classes": str(len(half(pack, which)))} for which in ("A", "B")]
    return {
        (int(row["images_per_class"]), row["start"], int(float(row["seed"]))): float(row["top1_percent"])
        for row in read_transfer(path)
        if row["recipe_digest"] == recipe.digest
        and float(row["share"]) == float(f"{fraction:g}")  # as it is written
        and any(same_images(row, images) for images in halves)
    }


def record_transfer(one: Trained, path: Path) -> bool:
    """Put a finished training into `path`, in place of an older one of the same kind, seed and images;
    whether that changed anything. Raises TinlabError as `tinlab.results.record` does."""
    row: dict[str, Any] = {
        **row_of(one.run.path),
        "network": one.recipe.name,
        "share": f"{one.fraction:g}",
        "images_per_class": one.images_per_class,
        "start": one.start,
        "recipe_digest": one.recipe.digest,
    }
    row = {name: "" if row[name] is None else str(row[name]) for name in TABLE_COLUMNS}
    path.parent.mkdir(parents=True, exist_ok=True)
    with only_one(path.parent):
        rows = read_transfer(path)
        if row in rows:
            return False
        kept = [
            old for old in rows if not same_images(old, row) or any(old[name] != row[name] for name in KEY)
        ]
        write_table(path, TABLE_COLUMNS, [*kept, row])
    return True


Row = Mapping[str, str]
"""A row of transfer.csv."""


def of_one_network(rows: Sequence[Row]) -> list[Row]:
    """The rows of the network that was measured last on Tiny ImageNet's halves, at its largest share: what a
    page shows."""
    rows = [row for row in rows if same_images(row, HALF)]
    if not rows:
        return []
    newest = max(rows, key=lambda row: row["finished_at"])
    same = [row for row in rows if row["recipe_digest"] == newest["recipe_digest"]]
    share = max(float(row["share"]) for row in same)
    return [row for row in same if float(row["share"]) == share]


def spreads_of(rows: Sequence[Row]) -> dict[int, dict[str, tuple[Spread, float, float]]]:
    """Images a class -> start -> top-1 over the seeds, with 95% bounds: over the seeds, or for one over the
    images; in the order of the numbers of images."""
    found: dict[int, dict[str, tuple[Spread, float, float]]] = {}
    for count in sorted({int(row["images_per_class"]) for row in rows}):
        for start in dict.fromkeys(row["start"] for row in rows):
            own = [row for row in rows if int(row["images_per_class"]) == count and row["start"] == start]
            if not own:
                continue
            over = spread([float(row["top1_percent"]) for row in own])
            low, high = over.low, over.high
            if low is None or high is None:
                low, high = float(own[0]["top1_low_percent"]), float(own[0]["top1_high_percent"])
            found.setdefault(count, {})[start] = over, low, high
    return found


def drawn_points(rows: Sequence[Row]) -> dict[str, list[tuple[int, float, float, float]]]:
    """Start -> (images a class, mean, low, high), for the starts that have any."""
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for count, starts in spreads_of(of_one_network(rows)).items():
        for start in STARTS:
            if count and start in starts:
                over, low, high = starts[start]
                found.setdefault(start, []).append((count, over.mean, low, high))
    return found


def transfer_minutes(recipe: Recipe, classes: int = 100, train: int = 50_000) -> float | None:
    """Minutes of all of it on two cores, for one seed, with halves of so many classes and training images;
    None for a network whose speed was not measured."""
    whole, speed = expected_minutes(recipe), images_per_second(recipe.model)
    if whole is None or speed is None:
        return None
    minutes = whole * (0.5 if recipe.schedule.epochs is not None else 1)
    for count in IMAGES_PER_CLASS:
        steps, batch = _length(recipe, min(count * classes, train), 1.0)
        minutes += 2 * steps * batch / speed / 60
    return minutes
