"""The learning rate, and where it is cycled the momentum, as functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tinlab import recipe


@dataclass
class Plateau:
    """What shape `plateau` has seen: the lowest held-out loss, how many evaluations in a row were no lower,
    how often the rate was cut, and the step of the last evaluation that counted."""

    lowest: float | None = None
    waited: int = 0
    cuts: int = 0
    step: int = 0

    def observe(self, knobs: recipe.Schedule, step: int, loss: float) -> None:
        """Count the evaluation at `step`, unless it has been."""
        if step <= self.step:
            return
        self.step = step
        if self.lowest is None or loss < self.lowest * (1 - knobs.least_improvement):
            self.lowest, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > knobs.patience:
            self.cuts, self.waited = self.cuts + 1, 0


def learning_rate(knobs: recipe.Schedule, peak: float, step: int, total_steps: int, cuts: int = 0) -> float:
    """The learning rate of step `step`, counted from 0, of `total_steps`; `cuts` is Plateau's."""
    warmup_steps = round(knobs.warmup_fraction * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    final = knobs.final_fraction
    match knobs.shape:
        case "constant":
            return peak
        case "step":
            passed = sum(step >= milestone for milestone in knobs.milestone_steps)
            return peak * knobs.factor**passed
        case "cosine":
            return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))
        case "linear":
            return peak * (final + (1 - final) * (1 - done))
        case "inverse_time":
            return peak / (1 + knobs.decay * (step - warmup_steps))
        case "plateau":
            return peak * max(final, knobs.factor**cuts)
        case "one_cycle":
            start = peak / knobs.start_divisor
            return _cycle(knobs, step, total_steps, start, peak, start / knobs.end_divisor)
        case "exponential":
            # A run of one step is at its start.
            return peak * knobs.start_divisor ** (step / max(1, total_steps - 1) - 1)


def momentum(knobs: recipe.Schedule, high: float, step: int, total_steps: int) -> float | None:
    """The momentum of step `step`, where `high` is the recipe's; None where it stays as it is."""
    if knobs.low_momentum is None:
        return None
    return _cycle(knobs, step, total_steps, high, knobs.low_momentum, high)


def set_rates(updater: torch.optim.Optimizer, rate: float, momentum: float | None) -> None:
    """Give `updater` its learning rate, a group with a `rate_factor` its own, and its momentum or beta 1
    where that is cycled."""
    for group in updater.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)
        if momentum is None:
            continue
        if "momentum" in group:
            group["momentum"] = momentum
        else:
            group["betas"] = (momentum, *group["betas"][1:])


def _cycle(
    knobs: recipe.Schedule, step: int, total_steps: int, start: float, middle: float, end: float
) -> float:
    """From `start` to `middle`, which falls on step rise_fraction * total_steps - 1, and on to `end`, which
    falls on the last step (Smith and Topin 2018, in the two phases of fastai and torch's OneCycleLR)."""
    turn = max(0.0, knobs.rise_fraction * total_steps - 1)
    last = total_steps - 1
    if step < turn:
        return _between(knobs, start, middle, step / turn)
    return _between(knobs, middle, end, (step - turn) / (last - turn) if last > turn else 0.0)


def _between(knobs: recipe.Schedule, start: float, end: float, done: float) -> float:
    if knobs.cycle_curve == "linear":
        return start + (end - start) * done
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))
