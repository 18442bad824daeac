"""A trial as its parent sees it: a child process, and a row that says what became of it.

A study's folder:

study.json           the study, resolved; can be given back to `tinlab study`
runs/                a run folder a trial, as `tinlab train` makes them
trials/KEY.json      a row: how the trial stands, or how it failed
trials/KEY.log       what the child said on standard error
chart.png, .svg      the comparison, and report.html with its table

Rows are a file each, so that several machines can write them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from tinlab import runs
from tinlab.errors import TinlabError
from tinlab.files import read_json, write_json
from tinlab.recipe.knobs import Knobs
from tinlab.study.plan import Trial
from tinlab.study.trial import Work, find_run
from tinlab.training.memory import says_out_of_memory


@dataclass(frozen=True)
class Settings:
    """How the trials of a study are run. `pack` is a path that every machine has; `cpus` and `gpus` are what
    one run gets (`gpus` None: what there is)."""

    pack: Path
    pack_digest: str
    device: str = "auto"
    final_split: str = "val"
    checkpoint_seconds: float = 300
    cpus: int = 1
    gpus: float | None = None


class Row(Knobs):
    """What became of a trial."""

    recipe: str
    recipe_digest: str
    seed: int
    pack_digest: str
    status: Literal["waiting", "running", "finished", "failed", "stopped"] = "waiting"
    out_of_memory: bool = False
    error: str | None = None
    """The last line of a failed trial's words."""
    exit_code: int | None = None
    signal: str | None = None
    attempts: int = 0
    run: str | None = None
    """The run folder, inside the study's folder."""
    split: str | None = None
    top1_percent: float | None = None
    top5_percent: float | None = None
    loss: float | None = None
    train_minutes: float | None = None
    peak_memory_gib: float | None = None
    """The most main memory that the child held at once."""
    peak_gpu_memory_gib: float | None = None
    host: str | None = None
    ended_at: str | None = None


def read_row(folder: Path, trial: Trial, pack_digest: str, option: str = "--name") -> Row:
    """How `trial` stands. A run that was finished counts, whatever the row says.

    Raises TinlabError where the folder holds this trial with another recipe or on another pack; `option` is
    what names another folder.
    """
    fresh = _fresh(trial, pack_digest)
    path = _place(folder, trial, ".json")
    try:
        row = Row.model_validate(read_json(path))
    except (OSError, ValueError, ValidationError):
        row = fresh  # none yet, or a damaged one: the run folder says what there is
    if (row.recipe, row.seed) != (fresh.recipe, fresh.seed) or not _is_inside(row.run):
        row = fresh
    if row.recipe_digest != fresh.recipe_digest:
        raise TinlabError(
            f"{folder} holds another recipe called '{trial.recipe.name}'; name another place with {option}"
        )
    if row.pack_digest != pack_digest:
        raise TinlabError(f"{folder} holds runs on another pack; name another place with {option}")
    whole = None not in (row.run, row.split, row.top1_percent, row.top5_percent, row.loss)
    if row.status == "finished" and whole and (folder / str(row.run) / "result.json").is_file():
        return row
    return _with_run(row, folder, trial)


def _is_inside(run: str | None) -> bool:
    """Whether a row's run is none, or a folder of the study's own: predictions are written into it."""
    return run is None or re.fullmatch(r"runs/(?!\.)[^/\0]+", run) is not None


def _with_run(row: Row, folder: Path, trial: Trial) -> Row:
    """`row` with what its run folder says; finished if the run is, and not if it is not."""
    run = find_run(folder / "runs", trial.recipe, trial.seed, row.pack_digest)
    result = run.result if run else None
    found: dict[str, Any] = {"run": str(run.path.relative_to(folder)) if run else None}
    if result:
        found |= {name: result[name] for name in ("split", "top1_percent", "top5_percent", "loss")}
        found |= {"train_minutes": round(result["train_seconds"] / 60, 3), "status": "finished"}
        found |= {"error": None, "out_of_memory": False}
    else:
        found |= dict.fromkeys(("split", "top1_percent", "top5_percent", "loss"))  # which results alone have
        if row.status == "finished":
            found["status"] = "stopped"
    return row.model_copy(update=found)


def write_row(folder: Path, trial: Trial, row: Row) -> Row:
    """Keep `row`, and return it."""
    write_json(_place(folder, trial, ".json"), row.model_dump(mode="json"))
    return row


class Attempt:
    """A trial in a child process: started here, asked with `poll` how it stands."""

    def __init__(
        self, folder: Path, trial: Trial, settings: Settings, environment: Mapping[str, str] | None = None
    ) -> None:
        self.trial = trial
        self._folder = folder
        self._log = _place(folder, trial, ".log")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        before = read_row(folder, trial, settings.pack_digest)
        row = before.model_copy(
            update={
                "status": "running",
                "attempts": before.attempts + 1,
                "host": socket.gethostname(),
                "out_of_memory": False,
                **dict.fromkeys(("error", "exit_code", "signal", "ended_at")),
            }
        )
        self.row = write_row(folder, trial, row)
        work = Work(
            recipe=trial.recipe,
            seed=trial.seed,
            pack=str(settings.pack),
            runs=str(folder / "runs"),
            lock=str(_place(folder, trial, ".lock")),
            device=settings.device,
            final_split=settings.final_split,
            checkpoint_seconds=settings.checkpoint_seconds,
            threads=settings.cpus,
        )
        threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        own = {**os.environ, **dict.fromkeys(threads, str(settings.cpus)), **(environment or {})}
        self._asked = False
        self._memory_kills = _memory_kills()
        with self._log.open("ab") as log:
            self._said_before = log.tell()
            # Of a session of its own: Ctrl-C is for the parent, which tells its children.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tinlab.study.trial"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=own,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(work.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone already; `poll` tells why

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def poll(self) -> Row | None:
        """The row of the trial once its process has ended; None while it runs."""
        if self._process.returncode is not None:
            return self.row
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if pid == 0:
            return None
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        told = self._process.stdout.read()
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            gpu = json.loads(told)["peak_gpu_memory_gib"]
        except (ValueError, KeyError, TypeError):
            gpu = None
        unit = 2**30 if sys.platform == "darwin" else 2**20
        known = {
            "peak_memory_gib": round(usage.ru_maxrss / unit, 3),
            "peak_gpu_memory_gib": gpu,
            "ended_at": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        }
        with self._log.open("rb") as log:
            log.seek(self._said_before)
            said = log.read().decode(errors="replace")
        ended = judged(code, said, asked=self._asked, memory_kill=_memory_kills() > self._memory_kills)
        row = _with_run(self.row.model_copy(update={**ended, **known}), self._folder, self.trial)
        self.row = write_row(self._folder, self.trial, row)
        return self.row

    def wait(self) -> Row:
        """The row, once the process has ended."""
        while (row := self.poll()) is None:
            time.sleep(0.1)
        return row

    def stop(self) -> None:
        """Ask the child to finish its step, save and end."""
        if self._process.returncode is None and not self._asked:
            self._asked = True
            self._process.send_signal(signal.SIGTERM)


def judged(code: int, said: str, *, asked: bool, memory_kill: bool) -> dict[str, Any]:
    """The fields of a row that tell how a child ended which left no result: its exit code (minus the number
    of the signal that killed it) and its words. `asked`: whether its parent told it to stop; `memory_kill`:
    whether the system has killed a process for memory meanwhile."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = (lines[-1] if lines else "it said nothing").removeprefix("tinlab: ")[:400]
    if code in (130, 143):
        return {"status": "stopped", "exit_code": code}
    if code >= 0:
        found = {"status": "failed", "exit_code": code, "error": last}
        return {**found, "out_of_memory": says_out_of_memory(last)}
    name = signal.Signals(-code).name
    if asked:
        return {"status": "stopped", "signal": name}
    error = f"killed by {name}"
    if memory_kill and name == "SIGKILL":
        return {
            "status": "failed", "signal": name, "out_of_memory": True,
            "error": f"{error}: the system ran out of memory",
        }  # fmt: skip
    return {"status": "failed", "signal": name, "error": error}


def local_gpus() -> list[str]:
    """The GPUs that a process started here would see, by the names that CUDA_VISIBLE_DEVICES takes."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [name for name in stated.split(",") if name.strip()]
    try:
        asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        listed = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()


def gpus_of_slot(slot: int, gpus: list[str], each: float | None) -> str | None:
    """What CUDA_VISIBLE_DEVICES is for the run in place `slot`, of several side by side; None: as it is.

    `each` GPUs a run; below 1, as many runs share one as fit. None: one a run, in turn.
    """
    if each == 0:
        return ""
    if not gpus:
        return None
    if each is None:
        return gpus[slot % len(gpus)]
    if each < 1:
        return gpus[int(slot * each + 1e-9) % len(gpus)]
    count = int(each)
    return ",".join(gpus[(slot * count + place) % len(gpus)] for place in range(count))


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of_cores(jobs: int) -> int:
    """Threads for each of `jobs` runs side by side: an equal share, and no more than OMP_NUM_THREADS."""
    share = max(1, cores() // jobs)
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(stated)) if stated.isdigit() and int(stated) else share


def _fresh(trial: Trial, pack_digest: str) -> Row:
    recipe = trial.recipe
    return Row(recipe=recipe.name, recipe_digest=recipe.digest, seed=trial.seed, pack_digest=pack_digest)


def _place(folder: Path, trial: Trial, suffix: str) -> Path:
    return folder / "trials" / f"{trial.key}{suffix}"


def _memory_kills() -> int:
    """How many processes Linux has killed since it started because memory ran out."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def open_result(folder: Path, row: Row) -> runs.Run:
    """The run folder of a finished row."""
    assert row.run is not None
    return runs.open_run(folder / row.run)
