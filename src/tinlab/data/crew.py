"""This process and some others, which decode the images of a pack together.

Decoding small images in threads wastes a quarter of the time on handing the interpreter's lock to and fro,
since an image is several calls of microseconds that each release it. So the helpers are processes, of
`tinlab.data.worker`. They start in a tenth of a second, which small sources are not worth. Where none can be
started, this process does all of the work.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

import tinlab
from tinlab.data.blocks import BlockDecoder, Decoded, Output
from tinlab.data.pack import block_rows
from tinlab.data.source import Source
from tinlab.data.worker import decoded_from, receive, send
from tinlab.errors import TinlabError

TASK_BYTES = 1 << 20
"""A task's images are this much to read, or one block: some 20 milliseconds of Tiny ImageNet."""

WORTH_BYTES = 8 << 20
"""Sources smaller than this are decoded sooner than a helper has started."""

WAITING_BYTES = 256 << 20
"""Of a store that this process alone can read, at most so much is on its way to helpers."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from tinlab.data.worker import main; main()"
)
_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "MKL", "OMP")}


@dataclass(frozen=True)
class Task:
    """Rows of the source that become consecutive rows, from `first` on, of the output number `file`.

    The rows before `cut` belong to one split and those behind it to the next.
    """

    file: int
    first: int
    rows: np.ndarray
    cut: int


def task_rows(source: Source, size: int) -> int:
    """How many images make a task."""
    mean_bytes = source.store.total_bytes // max(len(source.names), 1) + 1
    rows = block_rows(size)
    return rows * max(1, TASK_BYTES // (rows * mean_bytes))


class Crew:
    """Up to `workers` processes, this one included, that decode `source` into `outputs`; for a `with`.

    `size` is the images' side in pixels. `outputs` are .npy files that have their headers already.
    """

    def __init__(self, source: Source, size: int, outputs: Sequence[Path], workers: int) -> None:
        self._source = source
        self._outputs = [Output(path, size) for path in outputs]
        self._decoder = BlockDecoder(size, source.file_digests is None)
        self._lock = threading.Lock()
        self._tasks: Iterator[Task] = iter(())
        self._done: queue.SimpleQueue[tuple[Task, Decoded] | BaseException | None] = queue.SimpleQueue()
        self._order = {
            "size": size,
            "hashing": source.file_digests is None,
            "outputs": [str(path.absolute()) for path in outputs],
            "source": source.store.reopening,
        }
        helpers = workers - 1 if source.store.total_bytes >= WORTH_BYTES else 0
        if source.sequential:
            mean_bytes = source.store.total_bytes // len(source.names) + 1
            helpers = min(helpers, WAITING_BYTES // (task_rows(source, size) * mean_bytes))
        self._helpers = [process for _ in range(helpers) if (process := _started()) is not None]
        self._ready: set[int] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        self._tasks = iter(())
        for helper in self._helpers:
            helper.kill()  # it is idle, or what it does is of no use any more
        for thread in self._threads:
            thread.join()
        for helper in self._helpers:
            helper.wait()
            for pipe in (helper.stdin, helper.stdout):
                with contextlib.suppress(OSError):  # what it can no longer read
                    if pipe is not None:
                        pipe.close()
        for output in self._outputs:
            output.__exit__(None)

    def results(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, Decoded]]:
        """Do all of `tasks`, in whatever order they end. Raises TinlabError or OSError."""
        self._tasks = tasks
        self._threads = [
            threading.Thread(target=self._attend, args=(helper,), daemon=True) for helper in self._helpers
        ]
        for thread in self._threads:
            thread.start()
        attended = len(self._threads)
        while (mine := self._next()) is not None:
            task, contents = mine
            output = self._outputs[task.file]
            yield task, self._decoder.decode(contents, len(task.rows), task.cut, output, task.first)
            while not self._done.empty():
                attended -= (result := self._finished()) is None
                if result is not None:
                    yield result
        for helper in self._helpers:
            if helper.pid not in self._ready:  # and so has no task
                helper.kill()
        while attended:
            attended -= (result := self._finished()) is None
            if result is not None:
                yield result

    def _finished(self) -> tuple[Task, Decoded] | None:
        """What a helper has done, or None where one has gone home."""
        result = self._done.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def _next(self) -> tuple[Task, Iterator[bytes | bytearray]] | None:
        """The next task for this process."""
        with self._lock:
            task = next(self._tasks, None)
            if task is None:
                return None
            contents = self._source.store.read(task.rows)
            if self._source.sequential and self._helpers:
                contents = iter(list(contents))  # before the next task's rows are read for a helper
            return task, contents

    def _next_parcel(self) -> tuple[Task, bytes] | None:
        """The next task for a helper, and what it needs for it."""
        with self._lock:
            task = next(self._tasks, None)
            return None if task is None else (task, self._source.store.parcel(task.rows))

    def _attend(self, helper: subprocess.Popen[bytes]) -> None:
        """Give tasks to `helper`, from a thread of its own, and take what it has done."""
        try:
            self._converse(helper)
        except BaseException as error:
            self._done.put(error)
        finally:
            self._done.put(None)

    def _converse(self, helper: subprocess.Popen[bytes]) -> None:
        requests, replies = helper.stdin, helper.stdout
        assert requests is not None
        assert replies is not None
        try:
            send(requests, self._order)
        except OSError:
            return
        if receive(replies) is None:
            return  # it could not be started: others do the work
        self._ready.add(helper.pid)
        while (work := self._next_parcel()) is not None:
            task, parcel = work
            header = {"file": task.file, "first": task.first, "count": len(task.rows), "cut": task.cut}
            try:
                send(requests, header, parcel)
                reply = receive(replies)
            except OSError:
                reply = None
            if reply is None:
                raise TinlabError(
                    f"{self._source.path}: a process that decoded images was ended from outside (exit status"
                    f" {helper.wait()}); see whether memory is short, and pack again"
                )
            self._done.put((task, _result(*reply)))


def _result(header: dict[str, object], blob: bytes) -> Decoded:
    """What a helper has done. Raises what went wrong there."""
    if "refused" in header:
        raise TinlabError(str(header["refused"]))
    if "errno" in header:
        raise OSError(header["errno"], header["strerror"])
    if "broken" in header:
        raise RuntimeError(f"while decoding in another process: {header['broken']}")
    return decoded_from(header, blob)


def _started() -> subprocess.Popen[bytes] | None:
    """A helper, or None where this interpreter cannot be started once more."""
    if not sys.executable or getattr(sys, "frozen", False):
        return None
    # Isolated and without site-packages' start-up files, which take longer than numpy; so it gets the path.
    path = [entry for entry in sys.path if entry]
    path.append(str(Path(tinlab.__file__).resolve().parents[1]))
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_ONE_THREAD},
            process_group=0
            if os.name == "posix"
            else None,  # Ctrl-C is for the parent, which ends its helpers
        )
    except OSError:
        return None
