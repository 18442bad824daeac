"""Trials on this machine, N at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from tinlab.errors import TinlabError
from tinlab.study.attempt import Attempt, Row, Settings, gpus_of_slot, local_gpus
from tinlab.study.plan import Trial
from tinlab.training.signals import StopRequest

POLL_SECONDS = 0.1


def run_locally(
    folder: Path,
    trials: Sequence[Trial],
    settings: Settings,
    *,
    jobs: int = 1,
    stop: StopRequest,
    ended: Callable[[Trial, Row], None],
) -> None:
    """Run `trials`, `jobs` at a time, and tell `ended` of each. A trial that fails does not stop the others.

    Once `stop` has a signal, no trial is begun and those that run are told to save and end.
    """
    waiting = deque(trials)
    running: dict[int, Attempt] = {}
    gpus = local_gpus() if settings.gpus != 0 else []
    check_share(jobs, settings, gpus)
    try:
        while running or (waiting and not stop.signal_number):
            for slot in range(jobs):
                if slot not in running and waiting and not stop.signal_number:
                    running[slot] = Attempt(
                        folder, waiting.popleft(), settings, environment(slot, gpus, settings)
                    )
            for slot, attempt in list(running.items()):
                if stop.signal_number:
                    attempt.stop()
                if (row := attempt.poll()) is not None:
                    del running[slot]
                    ended(attempt.trial, row)
            time.sleep(POLL_SECONDS)
    finally:
        for attempt in running.values():
            attempt.stop()


def check_share(jobs: int, settings: Settings, gpus: list[str]) -> None:
    """Raise TinlabError where `jobs` runs at a time ask for more GPUs than there are."""
    if settings.gpus and jobs * settings.gpus > len(gpus):
        raise TinlabError(
            f"--jobs {jobs} with --gpus {settings.gpus:g} asks for {jobs * settings.gpus:g} GPUs, and there "
            f"are {len(gpus)}; ask for fewer"
        )


def environment(slot: int, gpus: list[str], settings: Settings) -> dict[str, str]:
    """What the run in place `slot` finds in its environment."""
    seen = gpus_of_slot(slot, gpus, settings.gpus)
    return {} if seen is None else {"CUDA_VISIBLE_DEVICES": seen}
