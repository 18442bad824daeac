"""Can a recipe learn a few images by heart? A check of network, rate, labels and code before hours go in.

A sound recipe without regularisation gets every one of a hundred images right within minutes; one that does
not has something wrong with it that more data would hide. Ma, "Tiny ImageNet Challenge", 2017, section
"Overfit a small dataset", where ResNet-18 from scratch fails, as the recipe ma_overfit_failing does here.

The training goes through the one loop, on a pack that holds these images alone, as what is trained on and as
what is measured: in evaluation mode, since there batch norm's statistics show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from tinlab import models
from tinlab.checks.diagnosis import Evidence, Finding, diagnose, look_at
from tinlab.checks.small_pack import small_pack
from tinlab.checks.trial_runs import Enough, scratch
from tinlab.data.batches import chosen_rows
from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.evaluation.metrics import NotFinite
from tinlab.models.depth import KINDS
from tinlab.recipe import Recipe, Schedule
from tinlab.runs import Run
from tinlab.training import endings, fitting, loop
from tinlab.training.optimizer import scaled_rates
from tinlab.training.progress import Progress, Watcher

STEPS = 300
"""Budget in steps where none is given."""
EVALUATIONS = 60
"""How often the images are measured in the budget."""


@dataclass(frozen=True)
class Changed:
    """A field of the recipe that the check sets, as text."""

    path: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.path} {self.before} -> {self.after}"


@dataclass(frozen=True)
class Curve:
    """Equally long: steps, mean losses, and top-1 in percent."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    top1_percents: tuple[float, ...]


@dataclass(frozen=True)
class Overfit:
    """What came out. `right` of `images` are right in evaluation mode after `steps` steps, of `budget`.

    `switched_off` is the regularisation that the recipe has and the check leaves out, `set` what else it
    sets, and `left_on` layers that no field of a recipe switches off. `training` has a point a step,
    `evaluation` one now and then. `findings` say why it failed, the likeliest first; none where it passed.
    """

    recipe: Recipe
    passed: bool
    images: int
    labels: int
    right: int
    steps: int
    budget: int
    chance_loss: float
    switched_off: tuple[Changed, ...]
    set: tuple[Changed, ...]
    left_on: tuple[str, ...]
    training: Curve
    evaluation: Curve
    findings: tuple[Finding, ...]

    def summary(self) -> str:
        """The verdict in a line."""
        return (
            f"{'PASS' if self.passed else 'FAIL'}: {self.recipe.name} gets {self.right} of {self.images} "
            f"images right in evaluation mode after {self.steps} of {self.budget} steps"
        )


def overfit(
    recipe: Recipe,
    pack: Pack,
    *,
    images: int = 100,
    steps: int = STEPS,
    seed: int = 0,
    device: str = "auto",
    watch: Watcher | None = None,
) -> Overfit:
    """Train `recipe` on `images` images of its training split alone, without regularisation, until all of
    them are right in evaluation mode or `steps` steps are over.

    Images are the first of every class, then the second, …; a batch has all of them, or the recipe's number
    where that is smaller. The rate falls along a line to zero, after the recipe's warm-up. Of a recipe with
    stages it is the first one. Raises TinlabError where there are not so many images, and as `loop.train`
    does.
    """
    recipe = recipe.phases[0]
    if images < 2:
        raise TinlabError(f"--images {images}: two or more are needed, which the network must tell apart")
    if steps < 2:
        raise TinlabError(f"--steps {steps} are too few to learn anything; leave it out for {STEPS}")
    fitting.recipe_fits(recipe, pack)
    split = pack.split(recipe.data.train_split)
    if images > len(split):
        raise TinlabError(
            f"--images {images}: {pack.path} has only {len(split):,} images in {recipe.data.train_split}"
        )
    rows = chosen_rows(split, images=images)
    labels = len(np.unique(split.labels[rows]))
    if labels < 2:
        raise TinlabError(f"the {images} images have one label, which teaches nothing; give more --images")
    size = fitting.network_size(recipe, pack)
    bare, switched_off = without_regularisation(recipe, size)
    bare, set_too = _for_the_check(bare, images, steps, size)
    recorder = _Stopper(watch)
    with scratch("the check") as folder:
        few = small_pack(pack, recipe.data.train_split, rows, folder / "pack")
        stopped = ""
        try:
            loop.train(
                bare,
                few,
                folder / "runs",
                seed=seed,
                device=device,
                checkpoint_seconds=math.inf,
                watch=recorder,
                started=recorder.started,
            )
        except Enough:
            pass
        except (endings.Diverged, NotFinite) as error:
            stopped = str(error).partition(";")[0]
        run = recorder.run
        assert run is not None
        training, evaluation = (_curve(run, kind) for kind in ("train", "eval"))
        right = round(images * evaluation.top1_percents[-1] / 100) if evaluation.steps else 0
        passed = right == images and not stopped
        evidence = Evidence(
            recipe=bare,
            peak_lr=recipe.optimizer.peak_lr,
            labels=tuple(int(label) for label in split.labels[rows]),
            steps=max(training.steps, default=0),
            losses=training.losses,
            right=right,
            diverged=stopped,
        )
        findings: tuple[Finding, ...] = ()
        if not passed:
            findings = diagnose(evidence, look_at(run, few, device))
    return Overfit(
        recipe=bare,
        passed=passed,
        images=images,
        labels=labels,
        right=right,
        steps=evaluation.steps[-1] if passed else evidence.steps,
        budget=steps,
        chance_loss=evidence.chance_loss,
        switched_off=switched_off,
        set=set_too,
        left_on=tuple(left_on(models.sketch(bare.model, len(pack.info.classes), image_size=size))),
        training=training,
        evaluation=evaluation,
        findings=findings,
    )


def without_regularisation(recipe: Recipe, image_size: int) -> tuple[Recipe, tuple[Changed, ...]]:
    """`recipe` with all that keeps a network from learning by heart switched off, and what that was."""
    resolved = models.find(recipe.model.name, image_size).resolve(recipe.model)
    model: dict[str, Any] = {"dropconnect": ()}
    if resolved.dropout is not None:
        model["dropout"] = (0.0,) * len(resolved.dropout)
    if resolved.final_survival is not None:
        model["final_survival"] = 1.0
    optimizer = {"weight_decay": 0.0, "sam_rho": None, "ema_decay": None}
    loss = {"label_smoothing": 0.0, "penalties": ()}
    found = [
        *_changes("", recipe, {"augment": (), "hard_classes": None}),
        *_changes("loss.", recipe.loss, loss),
        *_changes("model.", resolved, model),
        *_changes("optimizer.", recipe.optimizer, optimizer),
    ]
    bare = recipe.model_copy(
        update={
            "augment": (),
            "hard_classes": None,
            "loss": recipe.loss.model_copy(update=loss),
            "model": recipe.model.model_copy(update=model),
            "optimizer": recipe.optimizer.model_copy(update=optimizer),
        }
    )
    return bare, tuple(found)


def left_on(model: nn.Module) -> Iterable[str]:
    """Layers of `model` that drop something at random in training, in words."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            rate = layer.p
        elif isinstance(layer, KINDS):
            rate = 1 - layer.probability
        else:
            # timm's DropPath has the one, torchvision's StochasticDepth the other.
            own = type(layer).__name__
            rate = getattr(layer, {"DropPath": "drop_prob", "StochasticDepth": "p"}.get(own, ""), 0.0) or 0.0
        if rate > 0:
            yield f"{name} ({type(layer).__name__} {rate:.2g})"


def _for_the_check(
    recipe: Recipe, images: int, steps: int, image_size: int
) -> tuple[Recipe, tuple[Changed, ...]]:
    """`recipe` for `images` images in all and `steps` steps, and what is set besides them."""
    own = recipe.schedule
    batch_size = min(own.batch_size, images)
    every = max(1, steps // EVALUATIONS)
    data = {"images": None, "images_per_class": None, "image_sizes": (image_size,), "train_split": "train"}
    rates = scaled_rates(recipe, batch_size)
    compute = {"compile": False}
    schedule = Schedule(
        steps=steps,
        batch_size=batch_size,
        accumulate=own.accumulate if batch_size % own.accumulate == 0 else 1,
        shape="linear",
        warmup_fraction=own.rise_fraction if own.shape == "one_cycle" else own.warmup_fraction,
    )
    shown = {"batch_size": batch_size, "accumulate": schedule.accumulate, "shape": "linear"}
    found = [
        *_changes("data.", recipe.data, {"image_sizes": (image_size,)}),
        *_changes("optimizer.", recipe.optimizer, rates),
        *_changes("schedule.", own, shown),
        *_changes("compute.", recipe.compute, compute),
    ]
    ready = recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update=data),
            "optimizer": recipe.optimizer.model_copy(update=rates),
            "schedule": schedule,
            "compute": recipe.compute.model_copy(update=compute),
            "evaluate_every_epochs": every * batch_size / images,
        }
    )
    return ready, tuple(found)


def _changes(group: str, knobs: Any, values: dict[str, Any]) -> list[Changed]:
    return [
        Changed(group + name, _text(getattr(knobs, name)), _text(value))
        for name, value in values.items()
        if getattr(knobs, name) != value
    ]


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def _curve(run: Run, kind: str) -> Curve:
    points = [point for point in run.metrics() if point["kind"] == kind]
    return Curve(
        tuple(point["step"] for point in points),
        tuple(point["loss"] for point in points),
        tuple(point["top1_percent"] for point in points),
    )


class _Stopper:
    """A watcher that ends the training once every image was right."""

    def __init__(self, watch: Watcher | None) -> None:
        self._watch = watch
        self.run: Run | None = None

    def started(self, run: Run) -> None:
        self.run = run

    def __call__(self, progress: Progress) -> None:
        if self._watch is not None:
            self._watch(progress)
        if progress.held_out_top1_percent == 100:
            raise Enough
