"""How much memory there is, how much a run takes, and what to do where there was too little.

What a person reads is in GB of 10^9 bytes.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import psutil
import torch

from tinlab.errors import TinlabError
from tinlab.models.summary import summarise
from tinlab.recipe import Recipe
from tinlab.training.optimizer import scaled_rates

MEMORY_WORDS = re.compile(
    r"out of memory|(can't|cannot|unable to) allocate|MemoryError|bad_alloc|ALLOC_FAILED", re.IGNORECASE
)
"""What torch, CUDA, numpy, the operating system and the C++ library say where there is no memory left."""

BYTES_A_PARAMETER = 14
"""Weight, gradient and momentum in float32, and a copy of the weight in bf16."""


def free_bytes(device: torch.device) -> int:
    """Memory that is free on `device`; beside the CPU's own, what the container's limit leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text("ascii").strip() for name in ("max", "current"))
        return free if limit == "max" else max(0, min(free, int(limit) - int(used)))
    except (OSError, ValueError):
        return free  # no control group, or one of the old kind


def total_bytes(device: torch.device) -> int:
    """Memory that `device` has."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return int(psutil.virtual_memory().total)


class Peak:
    """The most memory that was held at once since `start`.

    On a CUDA device: what torch reserved there, which is its tensors and the room between them. Elsewhere the
    resident set of this process, Python and its libraries included; the operating system keeps its peak since
    the process began, so that what came before counts too.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> int:
        """In bytes."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_reserved(self._device))
        return resident_peak_bytes()


def resident_peak_bytes() -> int:
    """The largest resident set that this process has had.

    From /proc where that is: the other call's figure begins, on Linux, with that of the parent process.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows, where psutil knows
        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that there was no memory left, on a device or on the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and says_out_of_memory(str(error))


def says_out_of_memory(words: str) -> bool:
    """Whether the words of an error say that there was no memory left."""
    return MEMORY_WORDS.search(words) is not None


class OutOfMemory(TinlabError):
    """There was no memory left; the message says how to need less."""


def explain_out_of_memory(
    error: BaseException,
    recipe: Recipe,
    peak_bytes: int | None,
    device: torch.device,
    *,
    classes: int = 200,
    image_size: int = 64,
    run: Path | None = None,
    saved: bool = False,
) -> OutOfMemory:
    """What to say where `is_out_of_memory(error)`: what was tried, what there was, and what needs less.

    `peak_bytes` is what had been held at most; `run` the run's folder, and `saved` whether it has a
    checkpoint. The figures for other settings are estimates, from what a step keeps for its backward pass.
    """
    schedule, largest = recipe.schedule, max(recipe.data.image_sizes)
    part = schedule.batch_size // schedule.accumulate
    of = f" in {schedule.accumulate} parts" if schedule.accumulate > 1 else ""
    where = "on the GPU" if device.type == "cuda" else "in main memory"
    said = f"out of memory {where} at a batch of {schedule.batch_size}{of}, {largest}x{largest} images"
    if peak_bytes is not None:
        said += f": {gigabytes(peak_bytes)} had been held at most, of {gigabytes(total_bytes(device))}"
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ [KMGT]iB)|allocate (\d+) bytes", str(error))
    if asked:
        more = asked[1] or gigabytes(int(asked[2]))
        said += f", when {more} more were asked for"
    tries = []
    if part > 1:
        half = max(1, part // 2)
        fewer = half * schedule.accumulate
        rates = [f" --set optimizer.{name}={rate:g}" for name, rate in scaled_rates(recipe, fewer).items()]
        kept = _kept(recipe, classes, image_size, part, half)
        tries.append(f"--set schedule.batch_size={fewer}{''.join(rates)}{kept}")
        if schedule.batch_size % (2 * schedule.accumulate) == 0:
            tries.append(
                f"--set schedule.accumulate={2 * schedule.accumulate}, the same batch in parts of {half}, "
                "which is what batch norm then sees"
            )
    if recipe.compute.precision == "fp32":
        tries.append("--set compute.precision=bf16, which halves what a step keeps")
    if largest > 16:
        smaller = max(8, 3 * largest // 4 // 8 * 8)
        share = (smaller / largest) ** 2
        sizes = [min(size, smaller) for size in recipe.data.image_sizes]
        words = shlex.quote(f"data.image_sizes={json.dumps(sizes, separators=(',', ':'))}")
        tries.append(f"--set {words}, which keeps {share:.0%} of it")
    advice = "; then ".join(tries) or "take a smaller network (model.width)"
    if run is not None:
        back = f"'tinlab train --resume {shlex.quote(str(run))}'"
        said_again = f"goes on with this run {'from its last checkpoint' if saved else 'from its beginning'}"
        advice += f"; {back} {said_again} as it is, where other programs held the memory"
    return OutOfMemory(f"{said}; try {advice}")


def _kept(recipe: Recipe, classes: int, image_size: int, part: int, half: int) -> str:
    """How much a step keeps for its backward pass, before and after, in words."""
    largest = max(recipe.data.image_sizes)
    try:
        found = summarise(recipe.model, classes, image_size)
    except TinlabError:
        return ""
    bytes_a_value = 2 if recipe.compute.precision == "fp32" else 1
    each = found.activation_bytes * bytes_a_value * (largest / image_size) ** 2
    return f" (a step keeps about {gigabytes(each * part)} of activations now, {gigabytes(each * half)} then)"


def gigabytes(count: float) -> str:
    """`count` bytes for a person: 1.25 GB."""
    return f"{count / 1e9:.2f} GB" if count < 1e10 else f"{count / 1e9:.0f} GB"
