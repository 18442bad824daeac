"""What is told of a training while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinlab.training.checkpoint import State
from tinlab.training.stages import Span


@dataclass(frozen=True)
class Progress:
    """What a watcher is told after each step or now and then."""

    step: int
    total_steps: int
    epoch: float
    images_per_second: float
    loss: float
    top1_percent: float
    image_size: int
    seconds_left: float
    held_out: str
    held_out_top1_percent: float | None
    stage: str | None = None


Watcher = Callable[[Progress], None]


def seconds_left(planned: Sequence[Span], state: State) -> float:
    """By the speed so far, where a step takes time in proportion to its images' pixels."""

    def cost(span: Span, steps: int) -> float:
        sizes = span.recipe.data.image_sizes
        shares = len(sizes) * steps / span.steps  # how many of the sizes are done with, and a part
        pixels = sum(size**2 * min(1.0, max(0.0, shares - place)) for place, size in enumerate(sizes))
        return pixels / len(sizes) * span.steps * span.recipe.schedule.batch_size

    done = sum(cost(s, min(s.steps, max(0, state.step - s.first_step))) for s in planned)
    return state.train_seconds * (sum(cost(s, s.steps) for s in planned) / done - 1)
