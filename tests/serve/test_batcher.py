"""The queue and its thread, without networks."""

from __future__ import annotations

import threading
import time

import pytest

from tinlab.serve.batcher import Batcher, BusyError, ClosedError, Lane

SECONDS = 5


def batcher(*, max_batch=4, capacity=100, wait=0.0, **lanes):
    return Batcher(
        {name: Lane(work, max_batch) for name, work in lanes.items()},
        capacity=capacity,
        max_wait_seconds=wait,
    )


class Gate:
    """Work that waits until it is let through, and remembers its batches."""

    def __init__(self):
        self.batches = []
        self.begun = threading.Event()
        self.open = threading.Event()

    def __call__(self, pieces):
        self.batches.append(list(pieces))
        self.begun.set()
        assert self.open.wait(SECONDS)
        return [2 * piece for piece in pieces]


def answers(jobs):
    return [job.answer.result(SECONDS) for job in jobs]


def test_what_waits_is_done_in_batches():
    gate = Gate()
    queue = batcher(double=gate)
    queue.start()
    first = queue.submit([("double", 0)])
    assert gate.begun.wait(SECONDS)
    rest = queue.submit([("double", n) for n in range(1, 11)])
    gate.open.set()
    assert answers(first + rest) == [2 * n for n in range(11)]
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert (queue.batches, queue.pieces) == (4, 11)
    queue.close(SECONDS)


def test_a_batch_waits_for_more_and_no_longer():
    gate = Gate()
    gate.open.set()
    queue = batcher(double=gate, wait=1.0)
    queue.start()
    began = time.monotonic()
    one = queue.submit([("double", 1)])
    two = queue.submit([("double", 2)])
    assert answers(one + two) == [2, 4]
    assert 0.9 < time.monotonic() - began < SECONDS
    assert gate.batches == [[1, 2]]
    began = time.monotonic()
    answers(queue.submit([("double", n) for n in range(4)]))  # full, and so at once
    assert time.monotonic() - began < 0.9
    queue.close(SECONDS)


def test_lanes_do_not_mix_and_the_oldest_goes_first():
    gate, other = Gate(), Gate()
    other.open.set()
    queue = batcher(gate=gate, other=other)
    queue.start()
    jobs = queue.submit([("gate", 0)])
    assert gate.begun.wait(SECONDS)
    jobs += queue.submit([("other", 1), ("gate", 2), ("other", 3)])
    gate.open.set()
    assert answers(jobs) == [0, 2, 4, 6]
    assert (gate.batches, other.batches) == ([[0], [2]], [[1, 3]])
    queue.close(SECONDS)


def test_an_error_is_told_and_the_thread_goes_on():
    def broken(pieces):
        raise ValueError("no")

    queue = batcher(broken=broken, fine=lambda pieces: pieces)
    queue.start()
    bad, good = queue.submit([("broken", 1), ("fine", 2)])
    with pytest.raises(ValueError, match="no"):
        bad.answer.result(SECONDS)
    assert answers([good, *queue.submit([("fine", 3)])]) == [2, 3]
    queue.close(SECONDS)


def test_work_that_answers_too_little_is_an_error():
    queue = batcher(short=lambda pieces: [])
    queue.start()
    for _ in range(2):  # the thread lives on
        (job,) = queue.submit([("short", 1)])
        with pytest.raises(ValueError, match="answers"):
            job.answer.result(SECONDS)
    queue.close(SECONDS)


def test_a_full_queue_takes_all_or_nothing():
    queue = batcher(fine=lambda pieces: pieces, capacity=3)
    queue.submit([("fine", 0), ("fine", 1)])
    with pytest.raises(BusyError):
        queue.submit([("fine", 2), ("fine", 3)])
    assert queue.waiting == 2
    queue.submit([("fine", 2)])
    queue.start()
    queue.close(SECONDS)
    assert queue.pieces == 3


def test_what_is_discarded_is_never_run():
    gate = Gate()
    queue = batcher(double=gate, capacity=3)
    queue.start()
    running = queue.submit([("double", 0)])
    assert gate.begun.wait(SECONDS)
    dropped = queue.submit([("double", 1), ("double", 2)])
    kept = queue.submit([("double", 3)])
    queue.discard(dropped + running)  # what runs is finished
    assert queue.waiting == 1
    gate.open.set()
    assert answers(kept + running) == [6, 0]
    assert gate.batches == [[0], [3]]
    queue.close(SECONDS)


def test_closing_finishes_what_waits():
    gate = Gate()
    gate.open.set()
    queue = batcher(double=gate, wait=60)
    queue.start()
    jobs = queue.submit([("double", 1)])
    queue.close(SECONDS)  # and does not wait for a full batch
    assert answers(jobs) == [2]
    assert not queue.alive
    with pytest.raises(ClosedError):
        queue.submit([("double", 1)])


def test_in_a_hurry_no_batch_waits():
    gate = Gate()
    gate.open.set()
    queue = batcher(double=gate, wait=60)
    queue.start()
    jobs = queue.submit([("double", 1)])
    queue.hurry()
    assert answers(jobs) == [2]
    assert answers(queue.submit([("double", 2)])) == [4]
    queue.close(SECONDS)


def test_closing_refuses_what_the_grace_was_too_short_for():
    gate = Gate()
    queue = batcher(double=gate, max_batch=1)
    queue.start()
    jobs = queue.submit([("double", 1), ("double", 2)])
    assert gate.begun.wait(SECONDS)
    queue.close(0.01)
    with pytest.raises(ClosedError):
        jobs[1].answer.result(SECONDS)
    gate.open.set()
    assert answers(jobs[:1]) == [2]
