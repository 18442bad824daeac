"""Starting jobs, hearing of their ends, and keeping the state."""

from __future__ import annotations

import argparse
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planned.plan import START_SECONDS, Job, Start, State, next_start, start_seconds

HERE = Path(__file__).resolve().parent.parent

RESERVE_SECONDS = 20.0
"""Of the minutes, for stopping, saving and the table."""

GRACE_SECONDS = 30.0
"""From the order to end to the end of a process that does not follow it."""


class Lane:
    """A process that trains one recipe after another, so that Python, torch and CUDA start once."""

    def __init__(self, number: int, args: argparse.Namespace, events: queue.Queue[Any]) -> None:
        self.number, self._args, self._events = number, args, events
        self.job: Job | None = None
        self.began = 0.0
        self._process: subprocess.Popen[str] | None = None

    def start(self, start: Start, deadline: float) -> None:
        """Begin `start` in this lane; its end is an event."""
        from tinlab.recipe import changed
        from tinlab.recipes import shortened

        self.job, self.began = start.job, time.monotonic()
        recipe = shortened(start.job.recipe, start.fraction)
        if start.eager:
            recipe = changed(recipe, ["compute.compile=false"])
        work = {
            "recipe": recipe.model_dump(mode="json"),
            "seed": start.job.seed,
            "pack": str(self._args.pack),
            "runs": str(self._args.out / "runs"),
            "device": self._args.device,
            "ends_at": time.time() + deadline - time.monotonic(),
        }
        if self._process is None or self._process.poll() is not None:
            self._process = self._begun()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(work) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is an event, too

    def _begun(self) -> subprocess.Popen[str]:
        with (self._args.out / "logs" / f"lane-{self.number}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "gpu.py"), "--worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip

        def listen() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                self._events.put((self, json.loads(line)))
            process.wait()  # until then it would be given the next job, which nobody would hear of again
            self._events.put((self, None if process is self._process else {"status": "old"}))

        threading.Thread(target=listen, daemon=True).start()
        return process

    def signal(self, number: int) -> None:
        """Send it to the process, if there is one."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def close(self) -> None:
        """End the process; it ends by itself once nobody gives it work."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(GRACE_SECONDS)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()


class Program:
    """A command in a process of its own."""

    def __init__(self, job: Job, state: State, args: argparse.Namespace, events: queue.Queue[Any]) -> None:
        assert job.command is not None
        self.job: Job | None = job
        self.began = time.monotonic()
        self.output = args.out / "logs" / f"{job.id}.json"
        words = job.command(state)
        log_path = args.out / "logs" / f"{job.id}.log"
        with self.output.open("w") as output, log_path.open("a") as log:
            self._process = subprocess.Popen(
                words,
                cwd=HERE.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )

        def wait() -> None:
            code = self._process.wait()
            status = {0: "finished", 75: "paused", 130: "paused", 143: "paused", -15: "paused"}
            events.put((self, {"status": status.get(code, "failed"), "code": code}))

        threading.Thread(target=wait, daemon=True).start()

    def signal(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)


class Driver:
    """Starts jobs, hears of their ends, and keeps the state."""

    def __init__(
        self, args: argparse.Namespace, jobs: Sequence[Job], state: State, began: float | None = None
    ) -> None:
        """`began` is when the minutes did, by time.monotonic()."""
        self.args, self.jobs, self.state = args, jobs, state
        self.events: queue.Queue[Any] = queue.Queue()
        self.lanes = [Lane(number, args, self.events) for number in range(args.lanes)]
        self.programs: list[Program] = []
        self.began = time.monotonic() if began is None else began
        self.all_seconds = 60 * args.minutes - RESERVE_SECONDS
        self.deadline = self.began + self.all_seconds
        self.stopped = 0
        self._told: list[Job] = []

    def run(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        while True:
            self._start()
            if not self._busy():
                break
            try:
                who, reply = self.events.get(timeout=1.0)
            except queue.Empty:
                self._late()
                continue
            self._ended(who, reply)
        for lane in self.lanes:
            lane.close()

    def _busy(self) -> list[tuple[Lane | Program, Job]]:
        everyone: list[Lane | Program] = [*self.lanes, *self.programs]
        return [(who, who.job) for who in everyone if who.job is not None]

    def _start(self) -> None:
        while not self.stopped:
            left = self.deadline - time.monotonic()
            running = [job for _, job in self._busy()]
            start = next_start(
                self.jobs, self.state, running,
                left_seconds=left, all_seconds=self.all_seconds, lanes=len(self.lanes),
            )  # fmt: skip
            if start is None:
                return
            part = "" if start.fraction == 1 else f", {100 * start.fraction:g}% of its length"
            say(f"{self._clock()} {start.job.id}{part}; {left / 60:.1f} minutes are left")
            if start.fraction != 1 or start.eager:
                self.state.note(start.job, fraction=start.fraction, eager=start.eager)
                self._save()  # its checkpoints are of this recipe alone
            if start.job.command is not None:
                self.programs.append(Program(start.job, self.state, self.args, self.events))
            else:
                next(lane for lane in self.lanes if lane.job is None).start(start, self.deadline)

    def _ended(self, who: Any, reply: dict[str, Any] | None) -> None:
        job = who.job
        if job is None or (reply or {}).get("status") == "old":
            return
        seconds = time.monotonic() - who.began
        if reply is None:  # its process is gone
            died = {"status": "failed", "error": "its process died; see logs/"}
            reply = {"status": "paused"} if self.stopped or job in self._told else died
        known = self.state.of(job)
        more: dict[str, Any] = {"seconds": round(known.get("seconds", 0.0) + seconds, 1)}
        if reply["status"] == "failed":
            more["failures"] = known.get("failures", 0) + 1
            if "share" not in known:  # nothing was trained that would go on at this length alone
                self.state.of(job).pop("fraction", None)
        if reply["status"] == "finished" and job.recipe is not None:
            before = start_seconds(job)
            expected = (job.expected_seconds - before) * known.get("fraction", 1.0)
            if "share" not in known and expected > START_SECONDS:
                more["pace"] = (seconds - before) / expected
            reply = {**reply, **self._kept(reply["run"])}
        if reply["status"] == "finished" and job.recipe is None:
            self._take(job, who.output)
        self.state.note(job, **{**reply, **more})
        who.job = None
        self.programs = [program for program in self.programs if program.job is not None]
        said = reply.get("error") or (f"{reply['top1_percent']:.2f}%" if "top1_percent" in reply else "")
        say(f"{self._clock()} {job.id}: {reply['status']} after {seconds:.0f} s {said}")
        self._save()

    def _take(self, job: Job, output: Path) -> None:
        """What later jobs take from this one's answer."""
        try:
            answer = json.loads(output.read_text())
        except ValueError:
            return  # the smoke test answers in words
        if job.id == "measure":
            self.state.found["fastest"] = answer["fastest"]
        if job.id == "fast_gpu-length":
            self.state.found["length"] = answer["changes"][-1]
        self.state.found[job.id] = answer

    def _kept(self, run: str) -> dict[str, Any]:
        """Add a finished run's row to OUT/results.csv."""
        from tinlab.errors import TinlabError
        from tinlab.results import record
        from tinlab.runs import open_run

        found = {"top1_percent": (open_run(run).result or {}).get("top1_percent")}
        try:
            record(run, self.args.out / "results.csv")
        except TinlabError as error:
            found["note"] = str(error)
        return found

    def _late(self) -> None:
        """Tell what has outlived its time to end, and end what does not."""
        beyond = time.monotonic() - self.deadline
        for who, job in self._busy():
            slack = 0.0 if isinstance(who, Program) else GRACE_SECONDS / 2  # a lane looks at the clock itself
            if beyond > slack + GRACE_SECONDS:
                who.signal(signal.SIGKILL)
            elif beyond > slack and job not in self._told:
                self._told.append(job)  # once: a second time would not wait for a checkpoint
                who.signal(signal.SIGTERM)

    def _stop(self, number: int, frame: Any) -> None:
        self.stopped = number
        self.deadline = time.monotonic()
        for who, job in self._busy():
            self._told.append(job)
            who.signal(signal.SIGTERM)

    def _save(self) -> None:
        from tinlab.files import write_json

        write_json(self.args.out / "state.json", {"jobs": self.state.jobs, "found": self.state.found})

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self.began)
        return f"[{seconds // 60:02d}:{seconds % 60:02d}]"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
