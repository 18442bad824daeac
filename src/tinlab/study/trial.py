"""One training in a process of its own: `python -m tinlab.study.trial`.

What to do is one line of JSON on standard input, a `Work`. The input then stays open: its end means that the
parent is gone, however that happened, and counts as SIGTERM, so that no training is left behind. Words go to
standard error; standard output gets one line of JSON at the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinlab import runs
from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.files import FULL
from tinlab.recipe import Recipe
from tinlab.recipe.knobs import Knobs
from tinlab.tuning import tune_process

LOCK_SECONDS = 90
"""How long a trial waits for another process that holds it: one whose parent died, and that is saving."""
LOCKS = ".locks"
"""Beside run folders: a file for each recipe, seed and pack that was trained there."""


class Work(Knobs):
    """What a child process is to do."""

    recipe: Recipe
    seed: int
    pack: str
    runs: str
    """The folder that holds run folders. One of this recipe and seed is gone on with."""
    lock: str
    """A file that is held while the trial runs."""
    device: str = "auto"
    final_split: str = "val"
    checkpoint_seconds: float = 300
    threads: int


def find_run(folder: Path, recipe: Recipe, seed: int, pack_digest: str) -> runs.Run | None:
    """The newest run of this recipe and seed on this pack inside `folder`."""
    found = []
    for path in folder.glob(f"{recipe.name}-s{seed}-*"):
        try:
            run = runs.open_run(path)
        except TinlabError:
            continue  # cut short before it was a run
        same = run.recipe.name == recipe.name and run.recipe.digest == recipe.digest and run.seed == seed
        if same and run.pack_digest == pack_digest:
            found.append(run)
    return max(found, key=lambda run: (run.started_at, run.path.name), default=None)


@contextmanager
def training_alone(folder: Path, recipe: Recipe, seed: int, pack_digest: str) -> Iterator[None]:
    """Let one process at a time look for, and then train, this recipe and seed on this pack inside `folder`.
    Under torchrun the first rank holds it for all. Raises TinlabError where another process has it."""
    from tinlab import ranks

    if ranks.number() > 0:
        yield
        return
    try:
        (folder / LOCKS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        mend = "make room" if error.errno in FULL else "name another place with --out"
        raise TinlabError(f"no run folder can be made in {folder}: {error.strerror}; {mend}") from error
    lock = f"{recipe.name}-s{seed}-{recipe.digest}-{pack_digest}"
    with runs.locked(folder / LOCKS, lock, f"{recipe.name}, seed {seed}, in {folder}"):
        yield


def main() -> int:
    """Do the work that standard input names, and return the exit code, as the command line would."""
    tune_process()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # What libraries print must not get into the one line of output.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work = Work.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_stop_without_parent, daemon=True).start()
    try:
        _train(work)
    except TinlabError as error:
        print(f"tinlab: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        json.dump({"peak_gpu_memory_gib": _peak_gpu_memory_gib()}, answer)
        answer.close()
    return 0


def _train(work: Work) -> None:
    with _held(Path(work.lock)):
        import torch

        from tinlab.training import loop

        torch.set_num_threads(work.threads)
        pack = Pack.open(work.pack)
        options: dict[str, Any] = {"device": work.device, "checkpoint_seconds": work.checkpoint_seconds}
        run = find_run(Path(work.runs), work.recipe, work.seed, pack.digest)
        if run is None:
            split = work.final_split
            loop.train(work.recipe, pack, Path(work.runs), seed=work.seed, final_split=split, **options)
        else:
            loop.resume(run.path, pack=pack, **options)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold the file `path`, waiting for a process that has it. The lock dies with the process."""
    import fcntl

    end = time.monotonic() + LOCK_SECONDS
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > end:
                    raise TinlabError(f"{path} is held by another process; end it first") from None
                time.sleep(0.2)
        yield


def _stop_without_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _peak_gpu_memory_gib() -> float | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return round(torch.cuda.max_memory_reserved() / 2**30, 3)


if __name__ == "__main__":
    sys.exit(main())
