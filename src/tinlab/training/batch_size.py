"""The largest batch that fits into memory.

On a GPU it is tried; on a CPU, where what does not fit is swapped or killed and not refused, it is estimated.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tinlab import models
from tinlab.augment.policy import Policy
from tinlab.compute import place
from tinlab.data.batches import Batches, chosen_rows
from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.recipe import Recipe, changed
from tinlab.training import fitting, optimizer
from tinlab.training.averaging import Lookahead, MovingAverage
from tinlab.training.memory import Peak, free_bytes, gigabytes, is_out_of_memory, resident_peak_bytes
from tinlab.training.penalties import Penalties
from tinlab.training.scaling import Scaling
from tinlab.training.sharpness import SharpnessAware
from tinlab.training.step import in_parts

MARGIN = 0.1
"""Share of the memory that a batch found by `find_batch_size` leaves free."""
MULTIPLE = 8
"""Such batches are multiples of this, where they are not smaller: the units that tensor cores work in."""
LARGEST_ON_A_CPU = 1024
"""On a CPU a larger batch is no faster: a small one keeps its cores busy already."""
PROBE_SIZES = (8, 40)
"""Batches whose peaks are measured on a CPU. The second is so much larger that what the first one leaves to
the C library cannot hold it."""


@dataclass(frozen=True)
class FoundBatch:
    """A batch size that fits. `bytes_needed` is its peak as measured or, on a CPU, estimated; `bytes_allowed`
    what it may take; `measured` the peaks that were measured, batch size -> bytes; `why` says what limits
    it."""

    batch_size: int
    bytes_needed: int
    bytes_allowed: int
    measured: dict[int, int]
    why: str


def largest_batch(fits: Callable[[int], bool], *, most: int, multiple: int = MULTIPLE, unit: int = 1) -> int:
    """The largest batch size up to `most` that `fits`, or 0 where none does.

    It is a multiple of `unit`, and of `multiple` too where one such batch fits; below that, `unit` times a
    power of two. Tries doubling sizes, and then halves the gap; where a batch fits, smaller ones must too.
    """
    step = math.lcm(multiple, unit)
    low = 0
    if most >= step and fits(step):
        low, high = 1, most // step  # in steps: `low` fits
        first_misfit = high + 1
        while low < high:
            trial = min(2 * low, high)
            if not fits(trial * step):
                first_misfit = trial
                break
            low = trial
        while first_misfit - low > 1:
            middle = (low + first_misfit) // 2
            if fits(middle * step):
                low = middle
            else:
                first_misfit = middle
        return low * step
    size = unit
    while size < step and size <= most and fits(size):
        low, size = size, 2 * size
    return low


def find_batch_size(recipe: Recipe, pack: Pack, device: torch.device) -> FoundBatch:
    """The largest batch that `recipe` can be trained with on `device`, leaving MARGIN of its free memory.

    On a CUDA device batches of doubling sizes are tried, in real training steps on images of the recipe's
    largest size. Elsewhere two small batches are measured in a process of their own, and the rest is a
    straight line through them. A batch has no more than the training images, and on a CPU no more than
    LARGEST_ON_A_CPU. With `schedule.accumulate` it is the whole batch, whose parts are what must fit.

    Of a recipe with stages it is the one with the largest images. Raises TinlabError where not even the
    smallest batch fits.
    """
    fitting.recipe_fits(recipe, pack)
    recipe = max(recipe.phases, key=lambda phase: max(phase.data.image_sizes))
    images = len(
        chosen_rows(pack.split(recipe.data.train_split), recipe.data.images_per_class, recipe.data.images)
    )
    parts = recipe.schedule.accumulate
    if device.type == "cuda":
        allowed = int((1 - MARGIN) * free_bytes(device))
        probe = _CudaProbe(recipe, pack, device)
        try:
            return searched(
                probe.bytes_needed, allowed, most=images, parts=parts, limit="the training images"
            )
        finally:
            probe.close()
    allowed = int((1 - MARGIN) * free_bytes(device))
    peaks = measured_in_a_process(recipe, pack, device, tuple(parts * size for size in PROBE_SIZES))
    most, limit = images, "the training images"
    if images > LARGEST_ON_A_CPU and device.type == "cpu":
        most, limit = LARGEST_ON_A_CPU, f"{LARGEST_ON_A_CPU}, beyond which a CPU gets no faster"
    found = searched(straight_line(peaks), allowed, most=most, parts=parts, limit=limit)
    return FoundBatch(found.batch_size, found.bytes_needed, allowed, peaks, found.why)


def searched(
    bytes_needed: Callable[[int], int | None], allowed: int, *, most: int, parts: int = 1, limit: str
) -> FoundBatch:
    """The largest batch up to `most` whose `bytes_needed` are `allowed`, where None means that it failed.

    `limit` says in words what `most` is. Raises TinlabError where none fits.
    """
    measured: dict[int, int] = {}

    def fits(batch_size: int) -> bool:
        needed = bytes_needed(batch_size)
        if needed is not None:
            measured[batch_size] = needed
        return needed is not None and needed <= allowed

    found = largest_batch(fits, most=most, unit=parts)
    if not found:
        raise TinlabError(
            f"not even a batch of {parts} fits into the {gigabytes(allowed)} that are free, less a margin of "
            f"{MARGIN:.0%}; take a smaller network (model.width) or smaller images (data.image_sizes)"
        )
    step = math.lcm(MULTIPLE, parts)
    full = found + step > most
    why = f"limited by {limit}" if full else f"limited by the memory, less a margin of {MARGIN:.0%}"
    return FoundBatch(found, measured[found], allowed, dict(sorted(measured.items())), why)


def straight_line(peaks: dict[int, int]) -> Callable[[int], int]:
    """Batch size -> bytes, by the line through the smallest and the largest of `peaks`.

    Memory that falls as the batch grows is no line, but what a process had before: then it is flat.
    """
    (small, low), (large, high) = min(peaks.items()), max(peaks.items())
    slope = max(0.0, (high - low) / (large - small))
    return lambda batch_size: math.ceil(low + slope * (batch_size - small))


def with_batch_size(recipe: Recipe, batch_size: int, *, scale_lr: bool = False) -> Recipe:
    """`recipe` with another batch size, and with `scale_lr` with `optimizer.scaled_rates`."""
    changes = [f"schedule.batch_size={batch_size}"]
    if scale_lr:
        rates = optimizer.scaled_rates(recipe, batch_size)
        changes += [f"optimizer.{name}={rate!r}" for name, rate in rates.items()]
    return changed(recipe, changes)


class _Steps:
    """Training steps of a recipe on real images of its largest size, with all that it keeps beside."""

    def __init__(self, recipe: Recipe, pack: Pack, device: torch.device) -> None:
        self._recipe, self._device = recipe, device
        shown = fitting.preprocessing(recipe, pack)
        self._split = pack.split(recipe.data.train_split)
        self._rows = chosen_rows(self._split, recipe.data.images_per_class, recipe.data.images)
        mean, std = (torch.tensor(values, device=device) for values in (shown.mean, shown.std))
        self._policy = Policy(recipe.augment, mean, std, 0)
        torch.manual_seed(0)
        built = models.build(recipe.model, len(pack.info.classes), image_size=shown.network_size)
        self._model = place(built, recipe.compute, device).train()
        knobs = recipe.optimizer
        self._updater = optimizer.build(knobs, self._model)
        self._scaling = Scaling(device, recipe.compute.precision == "fp16")
        self._penalties = Penalties(recipe.loss.penalties, self._model)
        self._sharpness = None if knobs.sam_rho is None else SharpnessAware(self._model, knobs.sam_rho)
        self._beside = [
            None if knobs.ema_decay is None else MovingAverage(self._model, knobs.ema_decay),
            None
            if knobs.lookahead_steps is None
            else Lookahead(self._model, knobs.lookahead_steps, knobs.lookahead_alpha),
        ]

    def take(self, batch_size: int) -> None:
        """Two steps: the second has the optimizer's memory beside its own."""
        batches = Batches(self._split, self._rows, batch_size, 0, self._device)
        for step in range(2):
            inputs, batch = self._policy.inputs(batches.at(step), max(self._recipe.data.image_sizes))

            def backward(inputs: Any = inputs, batch: Any = batch) -> Any:
                return in_parts(self._model, inputs, batch, self._recipe, self._penalties, self._scaling)

            backward() if self._sharpness is None else self._sharpness(backward)
            # What stochastic depth happens to leave out here may run in a later step.
            optimizer.fill_missing_gradients(self._model)
            self._scaling.step(self._updater)
            self._updater.zero_grad(set_to_none=True)


class _CudaProbe:
    """Peaks of real steps on a CUDA device."""

    def __init__(self, recipe: Recipe, pack: Pack, device: torch.device) -> None:
        self._device = device
        self._peak = Peak(device)
        self._steps: _Steps | None = None
        try:
            self._steps = _Steps(recipe, pack, device)
        except torch.OutOfMemoryError:
            self._steps = None  # then no batch fits

    def bytes_needed(self, batch_size: int) -> int | None:
        if self._steps is None:
            return None
        torch.cuda.empty_cache()
        self._peak.start()
        try:
            self._steps.take(batch_size)
            torch.cuda.synchronize(self._device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        return self._peak.read()

    def close(self) -> None:
        self._steps = None
        torch.cuda.empty_cache()


def measured_in_a_process(
    recipe: Recipe, pack: Pack, device: torch.device, batch_sizes: tuple[int, ...]
) -> dict[int, int]:
    """The peak resident set of training steps on batches of rising sizes: batch size -> bytes.

    In a process of its own, since a process's peak does not fall. Raises TinlabError where it fails.
    """
    work = {
        "recipe": recipe.model_dump(mode="json"),
        "pack": str(pack.path),
        "device": str(device),
        "batch_sizes": batch_sizes,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tinlab.training.batch_size"],
        input=json.dumps(work),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    try:
        return {int(size): int(peak) for size, peak in json.loads(done.stdout).items()}
    except (ValueError, AttributeError):
        lines = done.stderr.strip().splitlines()
        raise TinlabError(
            f"a batch of {batch_sizes[0]} could not be tried ({lines[-1] if lines else 'killed'}); give "
            "schedule.batch_size a number"
        ) from None


def _main() -> None:
    """Take the steps that standard input names, and print the peak after each size."""
    from tinlab.tuning import tune_process

    tune_process()
    work = json.load(sys.stdin)
    recipe = Recipe.model_validate(work["recipe"])
    steps = _Steps(recipe, Pack.open(work["pack"]), torch.device(work["device"]))
    peaks = {}
    for size in work["batch_sizes"]:
        steps.take(size)
        peaks[size] = resident_peak_bytes()
    print(json.dumps(peaks))


if __name__ == "__main__":
    _main()
