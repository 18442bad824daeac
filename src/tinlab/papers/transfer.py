"""Transfer inside Tiny ImageNet, the setting of Stanford's CS231n: a network learns half of the classes (A),
and is fine-tuned on the other half (B), at few images a class and at many, against networks from scratch.

No image and no class of B was seen before, which cannot be said of ImageNet's weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tinlab.data.pack import Pack
from tinlab.data.subset import half, subset_pack
from tinlab.errors import TinlabError
from tinlab.files import write_json
from tinlab.recipe import Recipe, Schedule, Stage
from tinlab.recipes import shortened
from tinlab.runs import Run
from tinlab.study.comparison import Spread, spread
from tinlab.study.trial import find_run
from tinlab.training import loop

IMAGES_PER_CLASS = (5, 25, 50, 500)
"""Of B, in training; 500 are all."""
LEAST_STEPS, EPOCHS = 400, 12
"""Networks on B see their images EPOCHS times, and take at least so many steps."""


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
    watch: loop.Watcher | None = None,
) -> list[Line]:
    """Train `recipe` on half A of the classes of `pack`, then networks on half B, from it and from scratch.

    All is in the folder `out`: the packs A and B, the runs, and transfer.json with the lines. What is
    finished stays, and what was stopped goes on. `fraction` shortens every training. Raises what `loop.train`
    raises, and TinlabError where the classes cannot be halved or a number of images is none.
    """
    if any(count < 1 for count in images_per_class):
        raise TinlabError("images a class are 1 or more")
    halves = {which: subset_pack(pack, half(pack, which), out / f"pack-{which}") for which in ("A", "B")}

    def trained(one: Recipe, which: str, seed: int) -> Run:
        here, runs = halves[which], out / "runs"
        run = find_run(runs, one, seed, here.digest)
        if run is not None and run.result is not None:
            say(f"{one.name}, seed {seed}: finished already")
            return run
        options = {"device": device, "checkpoint_seconds": checkpoint_seconds, "watch": watch}
        say(f"{one.name}, seed {seed}: {'begins' if run is None else 'goes on'}")
        if run is not None:
            return loop.resume(run.path, pack=here, **options)  # type: ignore[arg-type]
        return loop.train(one, here, runs, seed=seed, **options)  # type: ignore[arg-type]

    found: list[Line] = []
    for count in images_per_class:
        values: tuple[dict[int, float], dict[int, float]] = ({}, {})
        for seed in seeds:
            base = trained(on_a(recipe, fraction), "A", seed)
            for place, weights in enumerate((str(base.path.resolve()), None)):
                run = trained(on_b(recipe, count, weights, fraction, halves["B"]), "B", seed)
                assert run.result is not None
                values[place][seed] = run.result["top1_percent"]
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
    a fifth of them; then all of the network, at a tenth of the recipe's rate.
    """
    train = len(pack.split(recipe.data.train_split))
    images = min(images_per_class * len(pack.info.classes), train)
    batch = min(recipe.schedule.batch_size, images)
    steps = max(2, round(fraction * max(LEAST_STEPS, EPOCHS * images / batch)))
    classifier = _classifier(recipe)
    head = max(1, steps // 5)
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
                    "optimizer.peak_lr": recipe.optimizer.peak_lr / 10,
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
                    "image_sizes": (pack.info.image_size,),
                }
            ),
            "model": recipe.model.model_copy(update={"weights": weights}),
            "schedule": schedule,
            "stages": stages,
        }
    )


def _classifier(recipe: Recipe) -> str:
    from tinlab import models

    return models.find(recipe.model.name).classifier
