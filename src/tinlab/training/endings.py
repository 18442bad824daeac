"""How a training ends before its last step."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

from tinlab.errors import TinlabError

NOT_FINISHED = 75
"""Exit code of a training that is to be gone on with: EX_TEMPFAIL of sysexits.h, try again."""
OUT_OF_TIME = 1 << 16
"""Stands among the signals that end a training for the end of its time; no signal has this number."""


class TrainingStopped(TinlabError):
    """A signal ended the training after a step; everything is saved."""

    def __init__(self, run: Path, step: int, total_steps: int, signal_number: int) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(
            f"stopped by {name} after step {step} of {total_steps}; go on with: tinlab train --resume "
            f"{shlex.quote(str(run))}"
        )
        self.exit_code = 128 + signal_number
        self.on_every_rank = True
        self.run, self.share = run, step / total_steps


class TimeIsUp(TinlabError):
    """The time that the training was given is over before it has finished; everything is saved."""

    def __init__(self, run: Path, step: int, total_steps: int) -> None:
        super().__init__(
            f"not finished: the time is up after step {step} of {total_steps}; go on with: tinlab train "
            f"--resume {shlex.quote(str(run))}"
        )
        self.exit_code = NOT_FINISHED
        self.on_every_rank = True
        self.run, self.share = run, step / total_steps


class Diverged(TinlabError):
    """The loss, or a weight, is no longer a finite number."""

    on_every_rank = True
