"""Commands that start in milliseconds: forked from a process that has imported torch and tinlab already.

`Warm` starts this file as a program, which reads a command a line and forks a child that becomes it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 300
"""A command that takes longer hangs."""
CLOCK = "clock"
"""Among the changes for a command: a seed, by which its clock jumps at every look."""


class Warm:
    """A process that forks a child for each command; for a `with`."""

    def __enter__(self) -> Warm:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TINLAB_DATA": ""},
        )
        self._logs = tempfile.TemporaryDirectory(prefix="tinlab-logs-")
        self._ended: dict[int, int] = {}
        self._told = b""
        assert self._next(PATIENCE_SECONDS) == {"ready": True}
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._logs.cleanup()

    def start(self, words: Sequence[object], folder: Path, changes: dict[str, Any] | None = None) -> Command:
        """Start `tinlab` with `words` in `folder`. `changes` are module:name -> a value for this process."""
        log = Path(tempfile.mkdtemp(dir=self._logs.name))
        order = {
            "words": [str(word) for word in words],
            "folder": str(folder),
            "log": str(log),
            "changes": changes or {},
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        while "pid" not in (told := self._next(PATIENCE_SECONDS) or {}):
            self._ended[told["ended"]] = told["code"]
        return Command(self, told["pid"], log)

    def code(self, pid: int, seconds: float) -> int | None:
        """Its exit code, or minus the number of the signal that ended it; None where it runs longer."""
        end = time.monotonic() + seconds
        while pid not in self._ended:
            told = self._next(max(0.0, end - time.monotonic()))
            if told is None:
                return None
            self._ended[told["ended"]] = told["code"]
        return self._ended.pop(pid)

    def _next(self, seconds: float) -> dict[str, Any] | None:
        """The next line that it tells; None after `seconds` without one."""
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        end = time.monotonic() + seconds
        while b"\n" not in self._told:
            if not select.select([handle], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            more = os.read(handle, 1 << 16)
            assert more, "the process that starts commands is gone"
            self._told += more
        line, _, self._told = self._told.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found


@dataclass
class Command:
    """A command that runs, or has run."""

    warm: Warm
    pid: int
    log: Path
    code: int | None = None

    def wait(self, seconds: float) -> int | None:
        """Its exit code, or None where it runs longer."""
        if self.code is None:
            self.code = self.warm.code(self.pid, seconds)
        return self.code

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> bool:
        """Kill it; whether it was still running."""
        self.send(signal.SIGKILL)
        return self.wait(PATIENCE_SECONDS) == -signal.SIGKILL

    @property
    def printed(self) -> str:
        return (self.log / "out").read_text(errors="replace")

    @property
    def said(self) -> str:
        return (self.log / "err").read_text(errors="replace")


def serve_commands() -> None:
    """What `Warm` starts: reads a command a line, forks a child for it, tells its number and how it ended."""
    from tinlab.tuning import tune_process

    tune_process()
    for name in (
        "torch", "torch.utils.tensorboard", "scipy.stats", "matplotlib.figure", "jinja2", "sklearn.metrics",
        "tinlab.cli", "tinlab.data.packing", "tinlab.data.shapes", "tinlab.training.loop",
        "tinlab.evaluating", "tinlab.report.page", "tinlab.study.page", "tinlab.study.run", "tinlab.results",
        "tinlab.papers.write",
    ):  # fmt: skip
        importlib.import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a process with threads must not be forked"
    gc.freeze()
    # Children let them through once they have begun, so that none comes before the program can take it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    children: set[int] = set()
    rest = b""

    def tell(**what: Any) -> None:
        os.write(1, json.dumps(what).encode() + b"\n")

    tell(ready=True)
    while True:
        readable = select.select([0], [], [], 0.005 if children else None)[0]
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                children.remove(pid)
                tell(ended=pid, code=os.waitstatus_to_exitcode(status))
        if not readable:
            continue
        more = os.read(0, 1 << 16)
        if not more:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            return
        *lines, rest = (rest + more).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                _become(json.loads(line))
            children.add(pid)
            tell(pid=pid)


def _become(order: dict[str, Any]) -> None:
    """Be the command; does not return."""
    code = 1
    try:
        os.setsid()
        for number, name, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, f"{order['log']}/out", os.O_WRONLY | os.O_CREAT),
            (2, f"{order['log']}/err", os.O_WRONLY | os.O_CREAT),
        ):
            handle = os.open(name, flags)
            os.dup2(handle, number)
            os.close(handle)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(order["folder"])
        sys.argv = ["tinlab", *order["words"]]
        changes = order["changes"]
        if CLOCK in changes:
            _let_the_clock_jump(changes.pop(CLOCK))
        for place, value in changes.items():
            module, _, name = place.partition(":")
            owner = importlib.import_module(module)
            setattr(owner, name, (lambda value=value: value) if callable(getattr(owner, name)) else value)
        from tinlab import cli

        begin = cli._run

        def run() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
            try:
                begin()
            finally:  # it is done: one that comes now would find the interpreter itself
                signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))

        cli._run = run
        cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _let_the_clock_jump(seed: int) -> None:
    """From now on every look at this process's clock is up to a week early or late."""
    from tinlab import runs

    dice, now, gmtime = random.Random(seed), time.time, time.gmtime

    def jumping() -> float:
        return now() + dice.uniform(-7, 7) * 86_400

    class Clock(datetime):
        @classmethod
        def now(cls, zone: Any = None) -> Any:
            return datetime.fromtimestamp(now(), UTC) + timedelta(days=dice.uniform(-7, 7))

    time.time = jumping
    time.gmtime = lambda *given: gmtime(*(given or (jumping(),)))
    runs.datetime = Clock  # type: ignore[misc]


if __name__ == "__main__":
    serve_commands()
