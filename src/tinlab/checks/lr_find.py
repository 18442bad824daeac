"""The learning-rate range test: Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017.

Stated there, and first in 2015: train for a short while as the rate climbs, and look at where learning begins
and where it breaks down. The habits that fastai's `lr_find` spread are these: the rate climbs by the same
factor at every step, the loss is smoothed by an exponential moving average, the test ends when that is above
four times its lowest value, and a rate is read off where the loss falls fastest, or at a tenth of where it is
lowest (Gugger, "How Do You Find A Good Learning Rate", 2018).

Changed: the average keeps 0.95 of itself a step, where fastai keeps 0.98. An average lags by k / (1 - k)
steps, 49 at k = 0.98: a quarter of the 200 steps here, and nearly two of their seven powers of ten.

Of the two rates the steepest is recommended. benchmarks/lr_find.py trains at both: a small ResNet on rendered
images, with SGD, AdamW and Muon, two seeds each, ended at a lower loss with it in 5 of 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.signal import savgol_filter

from tinlab.checks.trial_runs import Enough, scratch
from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.recipe import Recipe, Schedule
from tinlab.training import endings, loop
from tinlab.training.progress import Progress, Watcher
from tinlab.training.schedule import learning_rate

KEPT = 0.95
"""Share of itself that the smoothed loss keeps at a step."""
TOO_HIGH = 4.0
"""The test ends where the smoothed loss is above this many times its lowest value."""
LEAST_STEPS = 20
"""Fewer make no curve."""
ON_THE_WAY = 0.1
"""Share of its fall after which the loss is on its way down."""
SLOPE_SHARE = 0.1
"""The slope at a rate is that of a line through this share of the curve around it."""

Ended = Literal["range", "rose", "diverged"]


@dataclass(frozen=True)
class Marks:
    """What a curve says. `steepest`: the rate at which the smoothed loss falls fastest over the logarithm of
    the rate; `lowest`: the rate at which it is lowest. `fall` is how far it falls to there from its
    beginning, and `noise` the standard deviation of the loss from step to step."""

    steepest: float
    lowest: float
    fall: float
    noise: float

    @property
    def fell(self) -> bool:
        """Whether the fall is more than the noise. The average of noise alone strays by a sixth of it."""
        return self.fall > self.noise


@dataclass(frozen=True)
class RangeTest:
    """A finished test. `rates`, `losses` and `smoothed` have a value a step. `ended`: at the range's end,
    where the loss rose, or where it was not finite any more. `recommended` is None where the loss did not
    fall; `why` says why it is recommended, or what to try; `assignments` put it into a recipe."""

    recipe: Recipe
    image_size: int
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    ended: Ended
    marks: Marks
    recommended: float | None
    why: str
    assignments: tuple[str, ...]

    def summary(self) -> str:
        """The test in a line, for those who do not see its chart."""
        begin = (
            f"Loss of {self.recipe.name} as the learning rate climbs from {self.rates[0]:.2g} to "
            f"{self.rates[-1]:.2g}: "
        )
        if self.recommended is None:
            return f"{begin}it does not fall."
        return (
            f"{begin}it falls fastest at {self.marks.steepest:.2g} and is lowest at {self.marks.lowest:.2g}; "
            f"{self.recommended:.2g} is recommended."
        )


def lr_find(
    recipe: Recipe,
    pack: Pack,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 200,
    seed: int = 0,
    device: str = "auto",
    watch: Watcher | None = None,
) -> RangeTest:
    """Train `recipe` on `pack` for at most `steps` steps, as the rate climbs from `low` to `high`.

    Augmentation, optimizer, momentum and batch are the recipe's; images have the largest of its sizes all the
    way, and no moving average is kept, which does not change the training. Nothing is measured on a held-out
    split, and nothing is kept. Of a recipe with stages it is the first one. Raises TinlabError for a range
    without an inside, and as `loop.train` does.
    """
    recipe = recipe.phases[0]
    if not (0 < low < high < math.inf):
        raise TinlabError(f"the rates must rise from above 0; {low:g} to {high:g} do not (--from, --to)")
    if steps < LEAST_STEPS:
        raise TinlabError(f"{steps} steps make no curve; give --steps {LEAST_STEPS} or more")
    climbing = climbing_recipe(recipe, low, high, steps)
    recorder = _Recorder(climbing, watch)
    ended: Ended = "range"
    with scratch("the range test") as folder:
        try:
            loop.train(
                climbing,
                pack,
                folder,
                seed=seed,
                device=device,
                checkpoint_seconds=math.inf,
                final_split="tune",
                log_every=1,
                watch=recorder,
            )
        except Enough:
            ended = "rose" if recorder.rose else "range"
        except endings.Diverged:
            ended = "diverged"
    if len(recorder.losses) < 2:
        raise TinlabError(
            f"the loss was not finite from the first steps on, at a rate of {low:g}; try a lower --from, and "
            f"'tinlab overfit' on the recipe"
        )
    return concluded(recipe, climbing.data.image_sizes[0], recorder.rates, recorder.losses, ended)


def climbing_recipe(recipe: Recipe, low: float, high: float, steps: int) -> Recipe:
    """`recipe` with a rate that climbs from `low` to `high` in `steps` steps, and with one size of images.

    Where two rates go together, as Muon's do, they climb together.
    """
    own = recipe.optimizer
    rest = None if own.rest_lr is None else own.rest_lr * high / own.peak_lr
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"image_sizes": (max(recipe.data.image_sizes),)}),
            "optimizer": own.model_copy(update={"peak_lr": high, "rest_lr": rest, "ema_decay": None}),
            "schedule": Schedule(
                steps=steps,
                batch_size=recipe.schedule.batch_size,
                accumulate=recipe.schedule.accumulate,
                shape="exponential",
                start_divisor=high / low,
            ),
            "evaluate_every_epochs": 1e9,  # never
        }
    )


def concluded(
    recipe: Recipe, image_size: int, rates: Sequence[float], losses: Sequence[float], ended: Ended
) -> RangeTest:
    """What the losses at the rising `rates` say of `recipe`."""
    smoothed = smooth(losses)
    marks = marked(rates, losses, smoothed)
    recommended, why, assignments = None, "", []
    if not marks.fell:
        why = (
            f"the loss did not fall: by {max(0.0, marks.fall):.3g} at best, and from step to step it varies "
            f"by {marks.noise:.3g}; try a wider range (--from, --to) or more --steps"
        )
    else:
        # Two digits: the curve knows no more.
        recommended = float(f"{marks.steepest:.1e}")
        why = (
            "where the loss falls fastest: there a step brings most, and the rate at which it begins to rise "
            f"is {marks.lowest / marks.steepest:.1f} times as high"
        )
        if ended == "range" and marks.lowest >= rates[-1] / 1.5:
            why += "; the loss was still falling at the highest rate, so try a higher --to"
        assignments.append(f"optimizer.peak_lr={recommended:g}")
        if recipe.optimizer.rest_lr is not None:
            rest = recipe.optimizer.rest_lr * recommended / recipe.optimizer.peak_lr
            assignments.append(f"optimizer.rest_lr={rest:.2g}")
    return RangeTest(
        recipe=recipe,
        image_size=image_size,
        rates=tuple(rates),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
        ended=ended,
        marks=marks,
        recommended=recommended,
        why=why,
        assignments=tuple(assignments),
    )


def smooth(losses: Sequence[float], kept: float = KEPT) -> list[float]:
    """The exponential moving average of `losses`, divided by the sum of its weights, so that it does not
    start at zero."""
    average, smoothed = 0.0, []
    for count, loss in enumerate(losses, 1):
        average = kept * average + (1 - kept) * loss
        smoothed.append(average / (1 - kept**count))
    return smoothed


def marked(rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float]) -> Marks:
    """Where `smoothed` is lowest, and where on the way down to there it falls fastest.

    The fall is counted from the median of the first tenth, and the way down begins where a tenth of it is
    done for good. That tenth is left out, where the average is one of few steps.
    """
    skipped = min(len(smoothed) // 10, len(smoothed) - 2)
    lowest = skipped + int(np.argmin(smoothed[skipped:]))
    begin = float(np.median(losses[: max(1, len(losses) // 10)]))
    fall = begin - smoothed[lowest]
    above = [place for place in range(skipped, lowest) if smoothed[place] > begin - ON_THE_WAY * fall]
    down = max(above, default=skipped)
    window = max(3, round(SLOPE_SHARE * len(smoothed))) | 1
    if len(smoothed) > window:
        slopes = savgol_filter(smoothed, window, polyorder=1, deriv=1)
    else:
        slopes = np.gradient(np.asarray(smoothed))
    steepest = down + int(np.argmin(slopes[down : lowest + 1]))
    before = np.asarray(losses[: max(lowest + 1, len(losses) // 4)])
    # Of differences, which a trend hardly touches (von Neumann 1941).
    noise = float(np.std(np.diff(before)) / math.sqrt(2)) if len(before) > 2 else 0.0
    return Marks(float(rates[steepest]), float(rates[lowest]), fall, noise)


class _Recorder:
    """A watcher that notes the loss of each step, and ends the training where that is enough."""

    def __init__(self, climbing: Recipe, watch: Watcher | None) -> None:
        self._recipe = climbing
        self._watch = watch
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.rose = False

    def __call__(self, progress: Progress) -> None:
        if self._watch is not None:
            self._watch(progress)
        self.losses.append(progress.loss)
        self.rates.append(self._rate(progress.step - 1, progress))
        smoothed = smooth(self.losses)
        self.rose = smoothed[-1] > TOO_HIGH * min(smoothed)
        if self.rose or progress.step == progress.total_steps:
            raise Enough

    def _rate(self, step: int, progress: Progress) -> float:
        return learning_rate(
            self._recipe.schedule, self._recipe.optimizer.peak_lr, step, progress.total_steps
        )
