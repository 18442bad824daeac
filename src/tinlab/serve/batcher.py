"""The queue, and the one thread that runs networks.

Requests put single pieces of work into lanes; the thread takes the lane whose first piece has waited longest,
and as many pieces of it as fit into a batch. One thread, because a network whose forward pass is hooked or
differentiated must not run twice at a time, and because two passes side by side are no faster than one after
the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger("tinlab.serve")


class BusyError(Exception):
    """The queue is full."""


class ClosedError(Exception):
    """The server is stopping."""


@dataclass(frozen=True)
class Lane:
    """`work` maps up to `max_batch` pieces to as many answers, in their order."""

    work: Callable[[list[Any]], Sequence[Any]]
    max_batch: int


@dataclass(eq=False)
class Job:
    """One piece of work that waits, or is done."""

    lane: Hashable
    piece: Any
    arrived: float = field(default_factory=time.monotonic)
    answer: Future[Any] = field(default_factory=Future)


class Batcher:
    """Runs pieces of work in batches. `start()`, then `submit`; `close()` ends it.

    At most `capacity` pieces wait. A batch that is not full waits until its oldest piece is
    `max_wait_seconds` old. `batches` and `pieces` count what was run.
    """

    def __init__(self, lanes: Mapping[Hashable, Lane], *, capacity: int, max_wait_seconds: float) -> None:
        self.lanes = dict(lanes)
        self.capacity = capacity
        self.max_wait_seconds = max_wait_seconds
        self.batches = 0
        self.pieces = 0
        self._waiting: dict[Hashable, deque[Job]] = {name: deque() for name in lanes}
        self._changed = threading.Condition()
        self._closing = False
        # A network that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="tinlab-networks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        with self._changed:
            return self._count()

    def submit(self, work: Iterable[tuple[Hashable, Any]]) -> list[Job]:
        """Queue (lane, piece) pairs, all or none. Raises BusyError where they do not fit, or ClosedError."""
        jobs = [Job(lane, piece) for lane, piece in work]
        with self._changed:
            if self._closing:
                raise ClosedError
            if self._count() + len(jobs) > self.capacity:
                raise BusyError
            for job in jobs:
                self._waiting[job.lane].append(job)
            self._changed.notify()
        return jobs

    def discard(self, jobs: Iterable[Job]) -> None:
        """Drop those of `jobs` that still wait; what runs already is finished, for nobody."""
        with self._changed:
            for job in jobs:
                if job.answer.cancel() and job in self._waiting[job.lane]:
                    self._waiting[job.lane].remove(job)
            self._changed.notify()

    def hurry(self) -> None:
        """Let no batch wait for more from now on."""
        with self._changed:
            self.max_wait_seconds = 0.0
            self._changed.notify()

    def close(self, grace_seconds: float) -> None:
        """Take no more work, finish what waits within the grace, and refuse the rest with ClosedError."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(grace_seconds)
        with self._changed:
            left = [job for lane in self._waiting.values() for job in lane]
            for lane in self._waiting.values():
                lane.clear()
        for job in left:
            if job.answer.set_running_or_notify_cancel():
                job.answer.set_exception(ClosedError())

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _run(self) -> None:
        # In a call of its own, so that nothing of a batch is kept while the next one is waited for.
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        batch = self._next()
        if batch is None:
            return False
        batch = [job for job in batch if job.answer.set_running_or_notify_cancel()]
        if not batch:
            return True
        self.batches += 1
        self.pieces += len(batch)
        try:
            answers = self.lanes[batch[0].lane].work([job.piece for job in batch])
            if len(answers) != len(batch):
                raise ValueError(f"{len(answers)} answers to {len(batch)} pieces")
        except Exception as error:
            log.exception("%s failed on a batch of %d", batch[0].lane, len(batch))
            for job in batch:
                job.answer.set_exception(error)
            return True
        for job, answer in zip(batch, answers, strict=True):
            job.answer.set_result(answer)
        return True

    def _next(self) -> list[Job] | None:
        """The next batch, waited for; None at the end."""
        with self._changed:
            while True:
                busy = [lane for lane in self._waiting.values() if lane]
                if not busy:
                    if self._closing:
                        return None
                    self._changed.wait()
                    continue
                lane = min(busy, key=lambda lane: lane[0].arrived)
                full = self.lanes[lane[0].lane].max_batch
                left = lane[0].arrived + self.max_wait_seconds - time.monotonic()
                if len(lane) < full and left > 0 and not self._closing:
                    self._changed.wait(left)
                    continue  # the lane may have grown, or been emptied
                return [lane.popleft() for _ in range(min(full, len(lane)))]
