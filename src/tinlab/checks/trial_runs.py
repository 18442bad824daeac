"""Runs of the training loop that leave nothing behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinlab.data.scratch import remove_leftovers, scratch_folder
from tinlab.errors import TinlabError
from tinlab.training.endings import TrainingStopped


class Enough(Exception):
    """Raised by a watcher of the training to end it: what was to be seen has been seen."""


class CheckStopped(TinlabError):
    """A signal ended a check; there is no run to go on with."""

    def __init__(self, check: str, stopped: TrainingStopped) -> None:
        super().__init__(f"{check} was stopped, and nothing of it is kept; start it again")
        self.exit_code = stopped.exit_code


@contextmanager
def scratch(check: str) -> Iterator[Path]:
    """A folder for the runs of `check`, which is gone afterwards: after a kill, once the next check begins.

    Raises CheckStopped after a signal.
    """
    place = Path(tempfile.gettempdir()) / "tinlab-check"
    remove_leftovers(place)
    with scratch_folder(place) as folder:
        try:
            yield folder
        except TrainingStopped as stopped:
            raise CheckStopped(check, stopped) from None
