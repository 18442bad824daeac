"""What benchmarks/gpu.sh does: everything that wants a GPU and is still missing, in order of worth.

    python benchmarks/gpu.py PACK OUT [MINUTES] [--jobs NAME,…] [--lanes 3] [--device cuda] [--weights]

The jobs are, in this order: a smoke test (the tests marked `cuda`), what the device and a step on it can do
(benchmarks/device.py), fast_gpu's length by `tune`, then one and then five timed runs of it
(benchmarks/fast.py), the rows of the papers' tables that results/results.csv does not have, best_resnet18 and
best. A job that measures time has the machine for itself; of the papers' trainings, whose small steps leave a
large GPU half idle, some run side by side.

What is finished is not done again: OUT/state.json says how each job stands. A job is started where its
expected time, corrected by how the finished ones kept to theirs, is left of MINUTES. A training that is
longer than all of MINUTES is begun all the same; it saves and stops in time, and goes on in the next call.
best and best_resnet18 are shortened to what is left, and their rows say so (`6 of 300 epochs`). Nothing is
killed half-way without a checkpoint.

In OUT: results.csv and curves/, in the format of results/ (`tinlab results` reads them once they are copied
there), runs/, fast/, logs/, state.json, table.txt, and with --weights the weights of fast_gpu and of the best
networks in half precision, in pieces of at most 16 MiB that `cat` puts together again.

--jobs takes names as the table has them, or how they begin: --jobs smoke,measure,fast. --tiny makes every
training a few steps long, to try the whole list on a CPU: its rows are called NAME-tiny and mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

MODULES = ("torch", "numpy", "pydantic", "safetensors", "simplejpeg", "psutil", "tensorboard")
"""What must be importable for any of it."""

RESERVE_SECONDS = 20.0
"""Of the minutes, for stopping, saving and the table."""
START_SECONDS = 15.0
"""Of a training, before and after its steps."""
COMPILE_SECONDS = 90.0
"""Of one that is compiled, before its steps besides."""
PIECE_SECONDS = 60.0
"""A training that cannot be finished is not begun, nor gone on with, for less."""
GRACE_SECONDS = 30.0
"""From the order to end to the end of a process that does not follow it."""
ATTEMPTS = 2
"""How often a job that fails is tried."""
PIECE_BYTES = 16 << 20
"""Of a file with weights."""

FIRST_ROWS = (
    "sun_vanilla", "sun_improved", "sun_final", "sun_variants", "yu_vgg", "shcherbina_vgglike", "what_helps",
)  # fmt: skip
"""The rows of the papers that two cores take longest for or that others build on; the rest comes last."""
BEST = ("best_resnet18", "best")
SMOKE = ("tests/training/test_cuda.py", "tests/augment/test_policies.py")
LENGTHS = "22,30,40,52"
"""Epochs of fast_gpu, of which `tune` tells the shortest that is long enough."""

DONE = ("finished", "published", "left out")


@dataclass(frozen=True)
class Job:
    """One thing to do: a training (`recipe` and `seed`), or what `command` gives the words for.

    `seconds` is what it is expected to take at full length; None: by its recipe. `alone`: nothing runs beside
    it. `shortens`: it may be trained for a part of its length. `row` is the paper's row that it belongs to.
    """

    id: str
    seconds: float | None = None
    recipe: Any = None
    seed: int = 0
    command: Callable[[State], list[str]] | None = None
    alone: bool = False
    shortens: bool = False
    row: str = ""

    @property
    def expected_seconds(self) -> float:
        if self.seconds is not None:
            return self.seconds
        if self.recipe.digest not in KNOWN_SECONDS:
            KNOWN_SECONDS[self.recipe.digest] = expected_seconds(self.recipe)
        return KNOWN_SECONDS[self.recipe.digest]


KNOWN_SECONDS: dict[str, float] = {}
"""Digest of a recipe -> what it is expected to take. Counting a network takes a while, and the machine is not
to wait for the counts of jobs that do not get their turn."""


@dataclass
class State:
    """How the jobs stand, by id, and what later jobs take from earlier ones."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    def of(self, job: Job) -> dict[str, Any]:
        return self.jobs.get(job.id, {})

    def note(self, job: Job, **values: Any) -> None:
        self.jobs[job.id] = {**self.of(job), **values}

    @property
    def pace(self) -> float:
        """How long trainings take, over what was expected of them: the median of the finished ones, and no
        less than a half."""
        ratios = [one["pace"] for one in self.jobs.values() if one.get("pace")]
        return max(0.5, statistics.median(ratios)) if ratios else 1.0


@dataclass(frozen=True)
class Start:
    """A job to be started now, at a share of its length."""

    job: Job
    fraction: float = 1.0


def next_start(
    jobs: Sequence[Job],
    state: State,
    running: Iterable[Job],
    *,
    left_seconds: float,
    all_seconds: float,
    lanes: int,
) -> Start | None:
    """Which job is to be started now, the first in order of worth that fits into what is left, or None.

    One that wants the machine for itself waits for the others to end, and they for it. A training longer than
    `all_seconds`, which would never fit, is begun or gone on with where PIECE_SECONDS are left.
    """
    running = list(running)
    if len(running) >= lanes or any(job.alone for job in running):
        return None
    busy = {job.id for job in running}
    for job in jobs:
        known = state.of(job)
        if job.id in busy or known.get("status") in DONE or known.get("failures", 0) >= ATTEMPTS:
            continue
        fraction = known.get("fraction", 1.0)
        pace = state.pace if job.recipe is not None else 1.0
        before = start_seconds(job)
        steps = max(0.0, job.expected_seconds - before) * pace
        needed = before + steps * fraction * (1 - known.get("share", 0.0))
        fits = needed <= left_seconds
        if not fits and job.recipe is not None and left_seconds >= PIECE_SECONDS:
            if job.shortens and "fraction" not in known:
                fraction = rounded_down((left_seconds - before) / steps)
                fits = fraction > 0
            else:
                fits = known.get("status") == "paused" or before + steps * fraction > all_seconds
        if not fits:
            continue
        if job.alone and running:
            return None
        return Start(job, fraction)
    return None


def start_seconds(job: Job) -> float:
    """What `job` takes besides the steps of its training."""
    if job.recipe is None:
        return 0.0
    return START_SECONDS + (COMPILE_SECONDS if job.recipe.compute.compile else 0.0)


def rounded_down(fraction: float) -> float:
    """A share of a length, at most 1, to two digits after the point; to three below a tenth."""
    unit = 1000 if fraction < 0.1 else 100
    return min(1.0, int(max(0.0, fraction) * unit) / unit)


def expected_seconds(recipe: Any) -> float:
    """Seconds that a training takes on one H200, roughly; the planner corrects it by what it sees.

    A step takes what the host needs to launch it, by the layers of its network, or what the operations take
    at a sixth of the matrix rate, whichever is longer. Each evaluation of the held-out images is half a
    second.
    """
    from tinlab.papers.length import train_images

    total = START_SECONDS + (COMPILE_SECONDS if recipe.compute.compile else 0.0)
    for phase in recipe.phases:
        sizes = phase.data.image_sizes
        images = train_images(phase)
        steps = phase.schedule.total_steps(images)
        adds = sum(counted(phase.model, size)[0] for size in sizes) / len(sizes)
        layers = counted(phase.model, sizes[0])[1]
        launched = 0.002 + (0.00003 if phase.compute.compile else 0.00006) * layers
        computed = 6 * adds * phase.schedule.batch_size / (790e12 / 6)
        evaluations = steps * phase.schedule.batch_size / images / recipe.evaluate_every_epochs
        total += steps * max(launched, computed) + 0.5 * evaluations
    return total


@cache
def counted(model: Any, size: int) -> tuple[int, int]:
    """Multiply-adds an image of `size` pixels a side, and layers, of the network that `model` describes."""
    from tinlab.models.summary import summarise
    from tinlab.papers.length import CLASSES

    found = summarise(model.model_copy(update={"init": None, "weights": None}), CLASSES, size)
    return found.multiply_adds, len(found.layers)


def trainings(published: Iterable[Mapping[str, str]]) -> list[Job]:
    """The trainings, in order of worth: FIRST_ROWS by their first seeds, BEST, then all other rows and seeds.

    Left out are rows that look at other rows, those that begin from ImageNet's weights, which cannot be
    fetched, and whatever is in `published`, rows of results.csv.
    """
    from tinlab import recipes
    from tinlab.papers.registry import every_row

    there = {(line["recipe_digest"], line["seed"]) for line in published if line["split"] == "val"}
    rows = {row.id: row for row in every_row() if row.recipes and not row.saw_imagenet}
    order = [rows[name] for name in FIRST_ROWS] + [r for name, r in rows.items() if name not in FIRST_ROWS]
    first, later = [], []
    for row in order:
        for number, seed in enumerate(row.seeds):
            for recipe in row.recipes:
                if (recipe.digest, str(seed)) in there:
                    continue
                name = f"{row.id}/{recipe.name}-s{seed}" if row.study else f"{recipe.name}-s{seed}"
                job = Job(name, None, recipe, seed, row=row.id)
                (first if number == 0 and row.id in FIRST_ROWS else later).append(job)
    best = []
    for name in BEST:
        recipe = recipes.find(name)
        if (recipe.digest, "0") not in there:
            best.append(Job(f"{name}-s0", None, recipe, alone=True, shortens=True, row=name))
    return without_twins([*first, *best, *later])


def without_twins(jobs: Sequence[Job]) -> list[Job]:
    """The first of jobs that train the same recipe with the same seed, as two studies may."""
    seen: set[tuple[str, str, int]] = set()
    kept = []
    for job in jobs:
        key = (job.recipe.name, job.recipe.digest, job.seed)
        if key not in seen:
            seen.add(key)
            kept.append(job)
    return kept


def commands(args: argparse.Namespace) -> list[Job]:
    """The jobs before the trainings: programs of their own, each with the machine for itself."""
    python, data = sys.executable, ["--data", str(args.pack), "--device", args.device]
    fast = [python, str(HERE / "fast.py"), "--json", "--out", str(args.out / "fast"), *data]
    fast += ["--results", str(args.out / "results.csv"), "--target", "1" if args.tiny else "65.32"]
    tiny = [word for change in TINY_CHANGES for word in ("--set", change)] if args.tiny else []

    def smoke(state: State) -> list[str]:
        # By file: others import what only the tests of a whole installation have.
        return [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", *SMOKE]

    def measure(state: State) -> list[str]:
        more = [*tiny, "--seconds", "0.05", "--ways", "eager"] if args.tiny else []
        return [python, str(HERE / "device.py"), "--json", *data, *more]

    def chosen(state: State, *, length: bool) -> list[str]:
        way = state.found.get("fastest")
        changes = {"eager": ["compute.compile=false"], "cuda graphs": ["compute.cuda_graphs=true"]}.get(
            way or "", []
        )
        if length and "length" in state.found:
            changes = [*changes, state.found["length"]]
        return [*tiny, *(word for change in changes for word in ("--set", change))]

    def length(state: State) -> list[str]:
        values = "schedule.steps=2,3" if args.tiny else f"schedule.epochs={LENGTHS}"
        return [*fast, *chosen(state, length=False), "--choose", values, "--runs", "0"]

    def runs(count: int) -> Callable[[State], list[str]]:
        return lambda state: [*fast, *chosen(state, length=True), "--runs", str(count)]

    return [
        Job("smoke", 120, command=smoke, alone=True),
        Job("measure", 180, command=measure, alone=True),
        Job("fast_gpu-length", 240, command=length, alone=True),
        Job("fast_gpu-1", 100, command=runs(1), alone=True),
        Job("fast_gpu-5", 280, command=runs(2 if args.tiny else 5), alone=True),
    ]


TINY_CHANGES = (
    "schedule.steps=3", "schedule.batch_size=8", "model.width=8", "data.image_sizes=[32,48]",
    "compute.compile=false",
)  # fmt: skip
TOO_LARGE = ("keras_alexnet",)
"""Networks that --tiny leaves out: 1.4 billion parameters are slow on a CPU whatever is done with them."""


def tiny(recipe: Any) -> Any:
    """`recipe` for two steps of four images a stage, as narrow as its network goes, called NAME-tiny."""
    from tinlab import models
    from tinlab.recipe import parse_recipe

    value = recipe.model_dump(mode="json")
    value["schedule"] |= {
        "steps": 2,
        "epochs": None,
        "batch_size": 4,
        "warmup_fraction": 0.0,
        "accumulate": 1,
    }
    if value["schedule"]["shape"] == "step":
        value["schedule"]["milestone_steps"] = [1]
    for stage in value["stages"]:
        kept = {name: item for name, item in stage["changes"].items() if not name.startswith("schedule.")}
        stage["changes"] = kept
    if "width" in models.find(recipe.model.name).options:
        value["model"]["width"] = 8
    value["compute"] |= {"compile": False, "cuda_graphs": False}
    value["name"] = f"{recipe.name[:59]}-tiny"
    return parse_recipe(value, value["name"])


def shrunk(jobs: Iterable[Job]) -> list[Job]:
    """`jobs` by --tiny: first seeds alone, each a second or two, without the networks that are too large."""
    found = []
    for job in jobs:
        if job.recipe is not None:
            if job.seed != 0 or job.recipe.model.name in TOO_LARGE:
                continue
            job = replace(job, recipe=tiny(job.recipe))
        found.append(replace(job, seconds=START_SECONDS + 5))
    return found


class Lane:
    """A process that trains one recipe after another, so that Python, torch and CUDA start once."""

    def __init__(self, number: int, args: argparse.Namespace, events: queue.Queue[Any]) -> None:
        self.number, self._args, self._events = number, args, events
        self.job: Job | None = None
        self.began = 0.0
        self._process: subprocess.Popen[str] | None = None

    def start(self, start: Start, deadline: float) -> None:
        """Begin `start` in this lane; its end is an event."""
        from tinlab.recipes import shortened

        self.job, self.began = start.job, time.monotonic()
        recipe = shortened(start.job.recipe, start.fraction)
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
                words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=log, start_new_session=True
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

    def __init__(self, args: argparse.Namespace, jobs: Sequence[Job], state: State) -> None:
        self.args, self.jobs, self.state = args, jobs, state
        self.events: queue.Queue[Any] = queue.Queue()
        self.lanes = [Lane(number, args, self.events) for number in range(args.lanes)]
        self.programs: list[Program] = []
        self.began = time.monotonic()
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

    def _busy(self) -> list[Any]:
        return [who for who in (*self.lanes, *self.programs) if who.job is not None]

    def _start(self) -> None:
        while not self.stopped:
            left = self.deadline - time.monotonic()
            running = [who.job for who in self._busy()]
            start = next_start(
                self.jobs, self.state, running,
                left_seconds=left, all_seconds=self.all_seconds, lanes=len(self.lanes),
            )  # fmt: skip
            if start is None:
                return
            part = "" if start.fraction == 1 else f", {100 * start.fraction:g}% of its length"
            say(f"{self._clock()} {start.job.id}{part}; {left / 60:.1f} minutes are left")
            if start.fraction != 1:
                self.state.note(start.job, fraction=start.fraction)
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
            reply = {"status": "paused"} if self.stopped else died
        known = self.state.of(job)
        more: dict[str, Any] = {"seconds": round(known.get("seconds", 0.0) + seconds, 1)}
        if reply["status"] == "failed":
            more["failures"] = known.get("failures", 0) + 1
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
        over = time.monotonic() - self.deadline
        for who in self._busy():
            slack = 0.0 if isinstance(who, Program) else GRACE_SECONDS / 2  # a lane looks at the clock itself
            if over > slack + GRACE_SECONDS:
                who.signal(signal.SIGKILL)
            elif over > slack and who.job not in self._told:
                self._told.append(who.job)  # once: a second time would not wait for a checkpoint
                who.signal(signal.SIGTERM)

    def _stop(self, number: int, frame: Any) -> None:
        self.stopped = number
        self.deadline = time.monotonic()
        for who in self._busy():
            self._told.append(who.job)
            who.signal(signal.SIGTERM)

    def _save(self) -> None:
        from tinlab.files import write_json

        write_json(self.args.out / "state.json", {"jobs": self.state.jobs, "found": self.state.found})

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self.began)
        return f"[{seconds // 60:02d}:{seconds % 60:02d}]"


def worker() -> int:
    """Train what standard input names, a JSON object a line, and answer each with one."""
    from tinlab.tuning import tune_process

    tune_process()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get among the answers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            given.put(line)
        given.put(None)
        if training.is_set():
            os.kill(os.getpid(), signal.SIGTERM)  # nobody is there any more: save and stop

    training = threading.Event()
    threading.Thread(target=listen, daemon=True).start()
    while (line := given.get()) is not None:
        training.set()
        reply = trained(json.loads(line))
        training.clear()
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
    return 0


def trained(work: Mapping[str, Any]) -> dict[str, Any]:
    """Train, or go on with, one recipe, until it is finished or its time is up."""
    import torch

    from tinlab.data.pack import Pack
    from tinlab.errors import TinlabError
    from tinlab.recipe import parse_recipe
    from tinlab.study.trial import find_run
    from tinlab.training import loop

    recipe, folder = parse_recipe(work["recipe"], "work"), Path(work["runs"])
    try:
        pack = Pack.open(work["pack"])
        options: dict[str, Any] = {
            "device": work["device"],
            "stop_after_seconds": work["ends_at"] - time.time(),
            "checkpoint_seconds": 120,
        }
        run = find_run(folder, recipe, work["seed"], pack.digest)
        if run is None:
            run = loop.train(recipe, pack, folder, seed=work["seed"], **options)
        else:
            run = loop.resume(run.path, pack=pack, **options)
    except (loop.TimeIsUp, loop.TrainingStopped) as error:
        return {"status": "paused", "run": str(error.run), "share": error.share, "error": None}
    except (TinlabError, RuntimeError) as error:
        return {"status": "failed", "error": " ".join(str(error).split())[:300]}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return {"status": "finished", "run": str(run.path), "error": None}


def write_halves(run: str | Path, folder: Path) -> list[Path]:
    """The weights of a finished run that were measured, in half precision: a .safetensors file in pieces of
    at most PIECE_BYTES, named NAME.safetensors.00, .01, … Raises TinlabError where there is no checkpoint."""
    import safetensors.torch
    import torch

    from tinlab import models
    from tinlab.errors import TinlabError
    from tinlab.runs import open_run
    from tinlab.training import checkpoint

    opened = open_run(run)
    place = checkpoint.latest(opened.path)
    if place is None:
        raise TinlabError(f"{run} has no checkpoint, so it has no weights")
    size = opened.preprocessing.image_size
    model = models.build(opened.recipe.phases[-1].model, len(opened.classes), image_size=size)
    averaged = (opened.result or {}).get("weights") == checkpoint.EMA
    checkpoint.load_measured(place, model, torch.device("cpu"), averaged)
    halves = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    data = safetensors.torch.save(halves)
    folder.mkdir(parents=True, exist_ok=True)
    pieces = []
    for number, start in enumerate(range(0, len(data), PIECE_BYTES)):
        pieces.append(folder / f"{opened.recipe.name}-s{opened.seed}.safetensors.{number:02d}")
        pieces[-1].write_bytes(data[start : start + PIECE_BYTES])
    return pieces


def table(jobs: Sequence[Job], state: State) -> str:
    """How all jobs stand, as text."""
    from tinlab.papers.registry import every_row

    rows = {row.id: row for row in every_row()}
    lines = [("job", "status", "seconds", "val top-1", "paper", "")]
    for job in jobs:
        known = state.of(job)
        number = known.get("top1_percent")
        paper = reported(rows[job.row].numbers) if job.row in rows and job.row == job.id[:-3] else ""
        lines.append(
            (
                job.id,
                known.get("status", "not yet run"),
                f"{known['seconds']:.0f}" if "seconds" in known else expected(job),
                "" if number is None else f"{number:.2f}",
                paper,
                note(known),
            )
        )
    widths = [max(len(line[n]) for line in lines) for n in range(5)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)) + "  " + line[5]
        for line in lines
    ]
    return "\n".join([*(line.rstrip() for line in text), "", *measures(state.found)])


def expected(job: Job) -> str:
    """What a job that was not run is expected to take, where that is known by now."""
    seconds = job.seconds or (KNOWN_SECONDS.get(job.recipe.digest) if job.recipe is not None else None)
    return "" if seconds is None else f"({seconds:.0f})"


def note(known: Mapping[str, Any]) -> str:
    if known.get("share") and known.get("status") == "paused":
        return f"{100 * known['share']:.0f}% done"
    part = f"{100 * known['fraction']:g}% of its length" if known.get("fraction", 1) != 1 else ""
    return "; ".join(word for word in (part, known.get("error") or known.get("note") or "") if word)


def reported(numbers: Mapping[str, float]) -> str:
    """The paper's own number, on val where it gives one."""
    for name in ("val_top1_percent", "top1_percent"):
        if name in numbers:
            return f"{numbers[name]:g}"
    return ""


def measures(found: Mapping[str, Any]) -> list[str]:
    """What the device and fast_gpu came to, in lines."""
    from fast import shown

    lines = []
    if one := found.get("measure"):
        lines.append(
            f"{one['device']}: {one['matrix_tflops']:.3g} TFLOP/s, copy {one['copy_gb_per_s']:.3g} GB/s; "
            f"fastest way: {one['fastest']}"
        )
        for step in one["steps"]:
            if "failed" in step:
                lines.append(f"  {step['way']}: {step['failed']}")
                continue
            lines.append(
                f"  {step['way']}, {step['size']} pixels: {step['milliseconds']:.2f} ms, "
                f"{100 * step['share_of_matrix_rate']:.1f}% of the matrix rate"
            )
        lines += [
            f"  augmentation {a['policy']}, {a['size']} pixels: {a['percent']:.2f}% of a step"
            for a in one["augmentation"]
        ]
    if one := found.get("fast_gpu-length"):
        lines += [
            f"fast_gpu, {t['change']}: {t['tune_top1_percent']:.2f}% of tune, {t['seconds']:.1f} s"
            for t in one["tried"]
        ]
    if one := found.get("fast_gpu-5") or found.get("fast_gpu-1"):
        lines.append(
            f"fast_gpu with {', '.join(one['changes']) or 'nothing changed'}: {shown(one['seconds'], 2)} s; "
            f"val {shown(one['top1_percent'], 2)}%, with flips {shown(one['top1_flip_percent'], 2)}%; "
            f"{100 * one['share_of_limit']:.1f}% of the limit"
        )
        for target, reached in one["targets"].items():
            lines.append(
                f"  seconds to {target}%: {shown(reached['seconds'], 2)}; whole runs that end there "
                f"{shown(reached['seconds_whole_run'], 2)}, with flips "
                f"{shown(reached['seconds_whole_run_with_flips'], 2)}"
            )
    return lines


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def wanted(job: Job, names: Sequence[str]) -> bool:
    """Whether `job` is one of those that --jobs names."""
    return not names or any(job.id.startswith(name) or job.row == name for name in names)


def check_modules() -> None:
    missing = []
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception:  # one that is there and broken is as bad
            missing.append(name)
    if missing:
        sys.exit(
            f"gpu.py: {', '.join(missing)} cannot be imported by {sys.executable}; put wheels into .whl/ "
            "beside pyproject.toml, or name another Python with PYTHON=…"
        )


def main() -> int:
    if sys.argv[1:] == ["--worker"]:
        return worker()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pack", type=Path, metavar="PACK")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("minutes", type=float, nargs="?", default=9.5, metavar="MINUTES")
    parser.add_argument("--jobs", default="", metavar="NAME,…")
    parser.add_argument("--lanes", type=int, default=3, help="trainings side by side")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--weights", action="store_true")
    args = parser.parse_args()
    check_modules()
    from tinlab.compute import resolve_device
    from tinlab.data.pack import Pack
    from tinlab.errors import TinlabError
    from tinlab.files import read_json
    from tinlab.results import read_results, results_file

    try:
        resolve_device(args.device)
        Pack.open(args.pack)
        args.pack, args.out = args.pack.resolve(), args.out.resolve()
        (args.out / "logs").mkdir(parents=True, exist_ok=True)
        published = [] if args.tiny else read_results(results_file())
        jobs = [*commands(args), *trainings(published)]
    except (TinlabError, OSError) as error:
        sys.exit(f"gpu.py: {error}")
    jobs = shrunk(jobs) if args.tiny else jobs
    names = [name for name in args.jobs.split(",") if name]
    jobs = [job for job in jobs if wanted(job, names)]
    if not jobs:
        sys.exit(f"gpu.py: no job is called {args.jobs}; leave --jobs out for the list")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.lanes)))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(args.out / "compiled"))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    state = State()
    if (args.out / "state.json").is_file():
        state = State(**read_json(args.out / "state.json"))
    driver = Driver(args, jobs, state)
    driver.run()
    if args.weights:
        for run in best_runs(args.out, state):
            say(f"weights: {len(write_halves(run, args.out / 'weights'))} files of {run}")
    text = table(jobs, state)
    (args.out / "table.txt").write_text(text + "\n")
    print(text)
    return 128 + driver.stopped if driver.stopped else 0


def best_runs(out: Path, state: State) -> list[str]:
    """The finished runs whose weights are worth keeping."""
    found = [
        str(one["run"])
        for name, one in state.jobs.items()
        if name.startswith("best") and one.get("status") == "finished"
    ]
    fast = state.found.get("fast_gpu-5") or state.found.get("fast_gpu-1") or {"runs": []}
    return [*found, *(line["run"] for line in fast["runs"][:1])]


if __name__ == "__main__":
    sys.exit(main())
