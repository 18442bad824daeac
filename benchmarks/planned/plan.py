"""What is run next, and for how long."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

START_SECONDS = 15.0
"""Of a training, before and after its steps."""

COMPILE_SECONDS = 90.0
"""Of one that is compiled, before its steps besides."""

PIECE_SECONDS = 60.0
"""A training that cannot be finished is not begun, nor gone on with, for less."""

LEAST_SHARE = 0.1
"""Of its length: one that is shortened is not begun for less, or for half of what a whole call has room for,
where that is less. It keeps the length that it is begun with."""

ATTEMPTS = 2
"""How often a job that fails is tried."""

DONE = ("finished", "published", "left out")


@dataclass(frozen=True)
class Job:
    """One thing to do: a training (`recipe` and `seed`), or what `command` gives the words for.

    `seconds` is what it is expected to take at full length; None: by its recipe. `alone`: nothing runs beside
    it. `shortens`: it may be trained for a part of its length. `row` is the paper's row that it belongs to.
    `after` are the jobs whose answers it takes, if they are among those that are run.
    """

    id: str
    seconds: float | None = None
    recipe: Any = None
    seed: int = 0
    command: Callable[[State], list[str]] | None = None
    alone: bool = False
    shortens: bool = False
    row: str = ""
    after: tuple[str, ...] = ()

    @property
    def expected_seconds(self) -> float:
        if self.seconds is not None:
            return self.seconds
        if self.recipe.digest not in KNOWN_SECONDS:
            KNOWN_SECONDS[self.recipe.digest] = expected_seconds(self.recipe)
        return KNOWN_SECONDS[self.recipe.digest]


KNOWN_SECONDS: dict[str, float] = {}
"""Digest of a recipe -> what it is expected to take. Counting a network takes a while, and the machine is not
to wait for the counts of jobs that do not get their turn."""


@dataclass
class State:
    """How the jobs stand, by id, and what later jobs take from earlier ones."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    def of(self, job: Job) -> dict[str, Any]:
        return self.jobs.get(job.id, {})

    def note(self, job: Job, **values: Any) -> None:
        self.jobs[job.id] = {**self.of(job), **values}

    @property
    def pace(self) -> float:
        """How long trainings take, over what was expected of them: the median of the finished ones, and no
        less than a half."""
        ratios = [one["pace"] for one in self.jobs.values() if one.get("pace")]
        return max(0.5, statistics.median(ratios)) if ratios else 1.0


@dataclass(frozen=True)
class Start:
    """A job to be started now, at a share of its length; `eager`: without compiling."""

    job: Job
    fraction: float = 1.0
    eager: bool = False


def next_start(
    jobs: Sequence[Job],
    state: State,
    running: Iterable[Job],
    *,
    left_seconds: float,
    all_seconds: float,
    lanes: int,
) -> Start | None:
    """Which job is to be started now, the first in order of worth that fits into what is left, or None.

    One that wants the machine for itself waits for the others to end, and they for it. A training longer than
    `all_seconds`, which would never fit, is begun or gone on with where PIECE_SECONDS are left for its steps.
    One that failed while it was compiled is tried again without.
    """
    running = list(running)
    if len(running) >= lanes or any(job.alone for job in running):
        return None
    busy = {job.id for job in running}
    waiting = {job.id for job in jobs if not over(state.of(job))}
    for job in jobs:
        known = state.of(job)
        if job.id in busy or job.id not in waiting or not waiting.isdisjoint(job.after):
            continue
        fraction = known.get("fraction", 1.0)
        pace = state.pace if job.recipe is not None else 1.0
        before = start_seconds(job)
        steps = max(0.0, job.expected_seconds - before) * pace
        needed = before + steps * fraction * (1 - known.get("share", 0.0))
        fits = needed <= left_seconds
        if not fits and job.recipe is not None and left_seconds >= before + PIECE_SECONDS:
            if job.shortens and "fraction" not in known:
                whole = (all_seconds - before) / steps
                fraction = rounded_down((left_seconds - before) / steps)
                fits = fraction > 0 and fraction >= min(LEAST_SHARE, whole / 2)
            else:
                fits = known.get("status") == "paused" or before + steps * fraction > all_seconds
        if not fits:
            continue
        if job.alone and running:
            return None
        compiled_in_vain = known.get("failures", 0) > 0 and "share" not in known and compiles(job)
        return Start(job, fraction, eager=known.get("eager", compiled_in_vain))
    return None


def over(known: dict[str, Any]) -> bool:
    """Whether a job that stands so is not to be started again."""
    return known.get("status") in DONE or known.get("failures", 0) >= ATTEMPTS


def compiles(job: Job) -> bool:
    return job.recipe is not None and job.recipe.compute.compile


def start_seconds(job: Job) -> float:
    """What `job` takes besides the steps of its training."""
    if job.recipe is None:
        return 0.0
    return START_SECONDS + (COMPILE_SECONDS if compiles(job) else 0.0)


def rounded_down(fraction: float) -> float:
    """A share of a length, at most 1, to two digits after the point; to three below a tenth."""
    unit = 1000 if fraction < 0.1 else 100
    return min(1.0, int(max(0.0, fraction) * unit) / unit)


def expected_seconds(recipe: Any) -> float:
    """Seconds that a training takes on one H200, roughly; the planner corrects it by what it sees.

    A step takes what the host needs to launch it, by the layers of its network, or what the operations take
    at a sixth of the matrix rate, whichever is longer. Each evaluation of the held-out images is half a
    second.
    """
    from tinlab.papers.length import train_images

    total = START_SECONDS + (COMPILE_SECONDS if recipe.compute.compile else 0.0)
    for phase in recipe.phases:
        sizes = phase.data.image_sizes
        images = train_images(phase)
        steps = phase.schedule.total_steps(images)
        adds = sum(counted(phase.model, size)[0] for size in sizes) / len(sizes)
        layers = counted(phase.model, sizes[0])[1]
        launched = 0.002 + (0.00003 if phase.compute.compile else 0.00006) * layers
        computed = 6 * adds * phase.schedule.batch_size / (790e12 / 6)
        evaluations = steps * phase.schedule.batch_size / images / recipe.evaluate_every_epochs
        total += steps * max(launched, computed) + 0.5 * evaluations
    return total


@cache
def counted(model: Any, size: int) -> tuple[int, int]:
    """Multiply-adds an image of `size` pixels a side, and layers, of the network that `model` describes."""
    from tinlab.models.summary import summarise
    from tinlab.papers.length import CLASSES

    found = summarise(model.model_copy(update={"init": None, "weights": None}), CLASSES, size)
    return found.multiply_adds, len(found.layers)
