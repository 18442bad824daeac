"""Kill commands at random moments, stop them with signals, fill their disk; and see what is lost.

    python trials/faults.py                          all parts
    python trials/faults.py training report --kills 60 --seed 3
    python trials/faults.py signals disk

A part is a command with all it needs. It runs once undisturbed. Then it is started again and again and
killed at a moment drawn over the time that it took. After each kill what is there must be whole, and the next
command must go on or begin anew. Once it ends by itself, the result must be that of the undisturbed one, bit
for bit, beside the same files and no others. Images are rendered, networks tiny. Commands are forked from a
process that has imported torch already, so that they start in milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from ledger import Promise, record
from warm import CLOCK, PATIENCE_SECONDS, Command, Warm

PROMPT_SECONDS = 30
"""A command that has got a signal ends within this time on a busy machine; a training, within a step."""
TEST = "tests/reliability/test_faults.py"


def _promise(part: str, sentence: str, test: str, kills: int) -> Promise:
    return Promise(
        f"faults.{part}", sentence, f"{TEST}::{test}", f"python trials/faults.py {part} --kills {kills}"
    )


PROMISES = (
    _promise(
        "packing",
        "Packing that is killed at any moment leaves a whole pack or none; the next one is the same.",
        "test_killed_at_random_moments",
        40,
    ),
    _promise(
        "training",
        "A training that is killed at any moment goes on with --resume, to the same weights bit for bit.",
        "test_killed_at_random_moments",
        60,
    ),
    _promise(
        "clock",
        "A clock that jumps by days, under a training and between kills, changes no weight and no duration.",
        "test_killed_at_random_moments",
        20,
    ),
    _promise(
        "evaluation",
        "Measuring that is killed at any moment harms no run; given again it finds the same numbers.",
        "test_killed_at_random_moments",
        40,
    ),
    Promise(
        "faults.study",
        "A study that is killed at any moment, alone or with its trainings, loses no run and goes on.",
        "tests/study/test_attempt.py::"
        "test_a_stopped_trial_goes_on_from_its_checkpoint_and_a_killed_one_is_a_row",
        "python trials/faults.py study --kills 20",
    ),
    _promise(
        "report",
        "A report that is killed at any moment is the old page, the new one or none, never half of one.",
        "test_killed_at_random_moments",
        40,
    ),
    _promise(
        "results",
        "Adding a row that is killed at any moment keeps every row, and no row is there without its curve.",
        "test_killed_at_random_moments",
        40,
    ),
    _promise(
        "signals",
        "Every command that gets SIGINT or SIGTERM ends promptly, with one sentence and code 130 or 143.",
        "test_every_command_ends_on_a_signal",
        60,
    ),
    _promise(
        "packs",
        "A pack that is changed, cut short, replaced or removed under a training cannot change its weights.",
        "test_a_pack_that_is_harmed_under_a_training",
        40,
    ),
    _promise(
        "two",
        "Two commands on one run, pack or file of results do each other no harm; a dead one holds nothing.",
        "test_two_commands_at_once",
        40,
    ),
    Promise(
        "faults.ranks",
        "A rank that dies ends the training of all, which goes on from its checkpoint on any number.",
        "tests/training/test_ranks.py::test_a_rank_that_dies_ends_the_run_which_goes_on_with_one",
        "python trials/faults.py ranks --kills 5",
    ),
    Promise(
        "faults.ray",
        "A worker of a Ray cluster that dies costs no run: its training goes on elsewhere.",
        "tests/study/test_cluster.py::test_a_dead_node_costs_no_run",
        "python trials/faults.py ray --kills 5",
    ),
    _promise(
        "disk",
        "On a disk that fills up or is read-only a command says so in one sentence, and goes on once it can.",
        "test_a_disk_that_fills_up_or_is_read_only",
        40,
    ),
)


# What commands work on.


class Ground:
    """A folder with all that the commands are given; made once."""

    def __init__(self, folder: Path) -> None:
        from tinlab.data.packing import pack
        from tinlab.data.shapes import render
        from tinlab.files import write_json
        from tinlab.training import loop

        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.images = render(folder / "images", classes=4, train_per_class=40, val_per_class=8, test_images=8)
        self.zip = folder / "images.zip"
        with zipfile.ZipFile(self.zip, "w") as archive:
            for path in sorted(self.images.rglob("*")):
                archive.write(path, Path("tiny-imagenet-200") / path.relative_to(self.images))
        self.pack = pack(self.images, folder / "pack")
        self.recipes = []
        for recipe in recipes():
            self.recipes.append(folder / f"{recipe.name}.json")
            write_json(self.recipes[-1], recipe.model_dump(mode="json"))
        self.runs = []
        for seed in (0, 1):
            run = loop.train(recipes()[0], self.pack, folder / "runs", seed=seed, device="cpu")
            # As if on real images: of rendered ones no results are kept.
            environment = run.environment
            environment["pack"]["source_kind"] = "class_folders"
            write_json(run.path / "environment.json", environment)
            self.runs.append(run.path)


def recipes() -> list[Any]:
    """Tiny recipes that between them leave something in every file of a checkpoint."""
    from tinlab.recipe import Data, Flip, Model, Optimizer, RandomResizedCrop, Recipe, Schedule, changed

    plain = Recipe(
        name="plain",
        data=Data(image_sizes=(16, 32)),
        augment=(Flip(), RandomResizedCrop()),
        model=Model(width=4, stem="patch"),
        optimizer=Optimizer(peak_lr=0.05),
        schedule=Schedule(steps=24, batch_size=16, shape="linear", warmup_fraction=0.2),
        evaluate_every_epochs=0.5,
    )
    averaged = changed(
        plain,
        [
            "name=averaged",
            "optimizer.name=adamw",
            "optimizer.peak_lr=0.002",
            "optimizer.ema_decay=0.9",
            "optimizer.lookahead_steps=3",
            "model.final_survival=0.7",
            "schedule.shape=plateau",
            'augment=[{"kind": "mixup"}]',
        ],
    )
    staged = changed(
        plain,
        [
            "name=staged",
            'stages=[{"name": "whole", "changes": {"schedule.steps": 12}}, {"name": "pruned", '
            '"changes": {"schedule.steps": 12}, "prune": {"kind": "magnitude", "share": 0.5}}]',
        ],
    )
    return [plain, averaged, staged]


# The parts.


class Part:
    """A command, where it works, and what must hold of it. `folder` is its own; `begin` makes it anew."""

    name = ""
    done_codes = (0,)
    """Exit codes of a command that has done what it is for."""

    def __init__(self, ground: Ground, folder: Path) -> None:
        self.ground, self.folder = ground, folder
        self.chains = 0

    def begin(self) -> None:
        """Make the folder anew. Each time may try another variant: `chains` counts them."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.chains += 1

    @property
    def variant(self) -> int:
        return 0

    @property
    def changes(self) -> dict[str, Any]:
        return {}

    def words(self) -> list[object]:
        """The command to give, or the next one after a kill."""
        raise NotImplementedError

    def whole(self) -> None:
        """Raise where something that is there is lost or half written."""

    def result(self, command: Command) -> Any:
        """What must be the same with kills and without."""
        raise NotImplementedError

    def victims(self, command: Command, dice: random.Random) -> list[int]:
        """Processes to kill besides the command."""
        return []


class Packing(Part):
    name = "packing"

    @property
    def variant(self) -> int:
        return self.chains % 3

    @property
    def changes(self) -> dict[str, Any]:
        # Two of three decode in helper processes too.
        helped = {"tinlab.data.crew:WORTH_BYTES": 0, "tinlab.data.packing:_cpus": 3}
        return helped if self.variant else {}

    def words(self) -> list[object]:
        source = (self.ground.zip, self.ground.zip, self.ground.images)[self.variant]
        return ["data", "pack", source, "--out", self.folder / "pack", "--json"]

    def whole(self) -> None:
        from tinlab.data.pack import Pack

        if (self.folder / "pack").exists():
            Pack.open(self.folder / "pack").verify()

    def result(self, command: Command) -> Any:
        self.whole()
        return json.loads(command.printed)["digest"]


class Training(Part):
    name = "training"
    options: tuple[object, ...] = ("--checkpoint-seconds", 0, "--device", "cpu", "--json")

    def begin(self) -> None:
        super().begin()
        self.run, self.steps = None, 0

    @property
    def variant(self) -> int:
        return self.chains % len(self.ground.recipes)

    def words(self) -> list[object]:
        if found := _runs(self.folder):
            return ["train", "--resume", found[0].path, *self.options]
        recipe = self.ground.recipes[self.variant]
        return [
            "train", recipe, "--data", self.ground.pack.path, "--out", self.folder, "--seed", 5, *self.options
        ]  # fmt: skip

    def whole(self) -> None:
        found = _runs(self.folder)
        assert len(found) <= 1, "a second run was begun"
        assert found or self.run is None, "the run is lost"
        for run in found:
            assert self.run in (None, run.path)
            self.run = run.path
            steps = _run_is_whole(run)
            assert steps >= self.steps, f"the run fell back from step {self.steps} to {steps}"
            self.steps = steps

    def result(self, command: Command) -> Any:
        self.whole()
        (run,) = _runs(self.folder)
        return _trained(run)


class Clock(Training):
    """A training whose clock jumps by days at every look, and another way after each kill."""

    name = "clock"

    def begin(self) -> None:
        super().begin()
        self.starts = 0

    @property
    def changes(self) -> dict[str, Any]:
        self.starts += 1
        return {CLOCK: 1000 * self.chains + self.starts}

    def whole(self) -> None:
        super().whole()
        for run in _runs(self.folder):
            for point in run.metrics():
                assert 0 < point["train_seconds"] <= point["elapsed_seconds"] < PATIENCE_SECONDS


class Evaluation(Part):
    name = "evaluation"

    @property
    def variant(self) -> int:
        return int(self.chains % 3 == 0)

    def begin(self) -> None:
        super().begin()
        self.run = self.folder / "run"
        shutil.copytree(self.ground.runs[0], self.run)
        (self.run / "predictions" / "val.safetensors").unlink()

    def words(self) -> list[object]:
        extra = ("--corruptions", "--images", 4) if self.variant else ("--tta", "--calibrate")
        return ["evaluate", self.run, "--json", "--device", "cpu", *extra]

    def whole(self) -> None:
        from tinlab.runs import open_run

        _run_is_whole(open_run(self.run))

    def result(self, command: Command) -> Any:
        self.whole()
        return json.loads(command.printed)


class Report(Part):
    name = "report"

    def begin(self) -> None:
        super().begin()
        self.run, self.page = self.folder / "run", None
        shutil.copytree(self.ground.runs[0], self.run)
        if self.chains % 2:
            (self.run / "report.html").write_text("the old page")

    def words(self) -> list[object]:
        return ["report", self.run, "--json", "--device", "cpu"]

    def whole(self) -> None:
        page = self.run / "report.html"
        if self.chains % 2:
            assert page.exists(), "the old page is lost"
        if page.exists():
            text = page.read_text()
            assert text == "the old page" or text.rstrip().endswith("</html>"), "half a page"

    def result(self, command: Command) -> Any:
        self.whole()
        return _digest((self.run / "report.html").read_bytes())


class Results(Part):
    """Adding a row, and every third time writing the pages that stand on the rows."""

    name = "results"
    done_codes = (0, 2)

    @property
    def variant(self) -> int:
        return int(self.chains % 3 == 2)

    def begin(self) -> None:
        from tinlab.results import read_results, results_file

        super().begin()
        self.file = self.folder / "results" / "results.csv"
        self.file.parent.mkdir()
        shutil.copy(results_file(), self.file)
        shutil.copytree(results_file().parent / "curves", self.file.parent / "curves")
        self.before = read_results(self.file)

    def words(self) -> list[object]:
        if self.variant:
            return ["results", "--file", self.file, "--json"]
        return ["results", "add", self.ground.runs[0], "--file", self.file, "--json"]

    def whole(self) -> None:
        from tinlab.results import read_results

        rows = read_results(self.file)
        assert rows[: len(self.before)] == self.before, "a row is lost"
        curve = self.file.parent / "curves" / "plain-s0.csv"
        if len(rows) > len(self.before):
            lines = curve.read_text().splitlines()
            assert len(lines) > 2, "a row without its curve"

    def result(self, command: Command) -> Any:
        if command.code == 2:  # the kill came after the row was there
            assert "has a row for" in command.said, command.said
        self.whole()
        places = sorted(path for path in self.folder.rglob("*") if path.suffix in (".csv", ".md"))
        return {str(path.relative_to(self.folder)): _digest(path.read_bytes()) for path in places}


class Study(Part):
    name = "study"

    def begin(self) -> None:
        super().begin()
        self.finished: dict[str, Any] = {}

    def words(self) -> list[object]:
        return [
            "study", *self.ground.recipes[:2], "--seeds", 1, "--name", "study", "--out", self.folder,
            "--data", self.ground.pack.path, "--device", "cpu", "--checkpoint-seconds", 0, "--json",
        ]  # fmt: skip

    def whole(self) -> None:
        runs = {}
        for run in _runs(self.folder / "study" / "runs"):
            key = f"{run.recipe.name}-s{run.seed}"
            assert key not in runs, f"a second run of {key} was begun"
            runs[key] = run
            _run_is_whole(run)
        for key, numbers in self.finished.items():
            assert runs[key].result == numbers, f"the finished run of {key} has changed"
        self.finished = {key: run.result for key, run in runs.items() if run.result}
        for row in (self.folder / "study").glob("trials/*.json"):
            json.loads(row.read_text())

    def result(self, command: Command) -> Any:
        self.whole()
        told = json.loads(command.printed)
        rows = [(row["recipe"], row["seed"], row["status"], row["top1_percent"]) for row in told["runs"]]
        runs = sorted(_runs(self.folder / "study" / "runs"), key=lambda run: run.recipe.name)
        return rows, [_trained(run) for run in runs]

    def victims(self, command: Command, dice: random.Random) -> list[int]:
        """Every other time its trainings too; otherwise they see that it is gone, save and end."""
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            if dice.random() < 0.5:
                return [child.pid for child in psutil.Process(command.pid).children(recursive=True)]
        return []


PARTS: dict[str, type[Part]] = {
    part.name: part for part in (Packing, Training, Clock, Evaluation, Study, Report, Results)
}


def _runs(out: Path) -> list[Any]:
    """The runs in `out`. Raises AssertionError where something else lies there."""
    from tinlab.runs import list_runs

    found = list_runs(out)
    there = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    assert there == {run.path.name for run in found}, f"half a run: {there - {r.path.name for r in found}}"
    return found


def _run_is_whole(run: Any) -> int:
    """Read all files of a run; the steps of its last checkpoint. Raises where one cannot be read."""
    from safetensors.torch import load_file

    from tinlab.evaluation.predict import Predictions
    from tinlab.training import checkpoint

    for path in (run.path / "predictions").rglob("[!.]*.safetensors"):
        Predictions.load(path)
    for path in (run.path / "predictions").rglob("[!.]*.json"):
        json.loads(path.read_text())
    if run.result is not None:
        assert (run.path / "predictions").exists()
        assert checkpoint.latest(run.path) is not None, "a result without its checkpoint"
    last = checkpoint.latest(run.path)
    if last is None:
        return 0
    for path in last.glob("*.safetensors"):
        load_file(path)
    return checkpoint.read_state(last).step


def _trained(run: Any) -> Any:
    """What came out of a training, without times."""
    from safetensors.torch import load_file

    from tinlab.training import checkpoint

    weights = {}
    for path in sorted(checkpoint.latest(run.path).glob("*.safetensors")):
        tensors = load_file(path)
        weights[path.name] = {name: _digest(tensors[name].numpy().tobytes()) for name in sorted(tensors)}
    curve = [(p["kind"], p["step"], p["loss"], p["top1_percent"]) for p in run.metrics()]
    times = ("train_seconds", "elapsed_seconds", "images_per_second", "peak_memory_bytes", "finished_at")
    return weights, curve, {name: value for name, value in run.result.items() if name not in times}


def _same(found: Any, wanted: Any, place: str = "the result") -> None:
    """Raise AssertionError that names the first difference."""
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        for key in wanted:
            _same(found[key], wanted[key], f"{place}.{key}")
    elif isinstance(found, list | tuple) and isinstance(wanted, list | tuple) and len(found) == len(wanted):
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            _same(one, other, f"{place}.{number}")
    else:
        assert found == wanted, f"{place} is {str(found)[:200]}, not {str(wanted)[:200]}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files_in(folder: Path) -> set[str]:
    """The files and folders of `folder`, but for the time in a run's name and TensorBoard's files."""
    found = set()
    for path in folder.rglob("*"):
        name = re.sub(r"-\d{8}-\d{6}", "-TIME", str(path.relative_to(folder)))
        if "/tensorboard/" not in name:
            found.add(name)
    return found


# What is done to them.


@dataclass
class Tally:
    """What a trial counted."""

    tried: int = 0
    finished: int = 0
    failures: list[str] = field(default_factory=list)
    words: str = ""

    def note(self, what: str) -> None:
        self.failures.append(what)
        print(f"FAILED: {what}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Undisturbed:
    seconds: float
    result: Any
    files: set[str]


def undisturbed(part: Part, warm: Warm) -> Undisturbed:
    """One run of the part's command, in its folder as it is."""
    began = time.monotonic()
    command = warm.start(part.words(), part.folder, part.changes)
    code = command.wait(PATIENCE_SECONDS)
    seconds = time.monotonic() - began
    assert code == 0, f"{part.name}: code {code}: {command.said}"
    return Undisturbed(seconds, part.result(command), files_in(part.folder))


def kill_at_random_moments(part: Part, warm: Warm, kills: int, seed: int) -> Tally:
    """Kill the part's command `kills` times, and let it end by itself again and again."""
    dice, tally = random.Random(f"{part.name} {seed}"), Tally()
    expected: dict[int, Undisturbed] = {}
    seconds: dict[int, float] = {}
    while tally.tried < kills:
        part.begin()
        if part.variant not in expected:
            expected[part.variant] = undisturbed(part, warm)
            seconds[part.variant] = expected[part.variant].seconds
            part.chains -= 1
            part.begin()
        wanted = expected[part.variant]
        moments: list[float] = []
        try:
            while True:
                command = warm.start(part.words(), part.folder, part.changes)
                last = tally.tried >= kills
                moment = PATIENCE_SECONDS if last else dice.uniform(0, 1.25 * seconds[part.variant])
                began = time.monotonic()
                if command.wait(moment) is not None:
                    if not moments:  # it may be quicker than the first time
                        took = time.monotonic() - began
                        seconds[part.variant] = min(seconds[part.variant], took)
                    break
                assert not last, "it hangs"
                others = part.victims(command, dice)
                if command.kill():
                    tally.tried += 1
                    moments.append(round(moment, 3))
                for pid in others:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                part.whole()
            assert command.code in part.done_codes, f"code {command.code}: {command.said[-2000:]}"
            assert "Traceback" not in command.said, command.said[-2000:]
            _same(part.result(command), wanted.result)
            found = files_in(part.folder)
            assert found == wanted.files, (
                f"left behind {found - wanted.files}, missing {wanted.files - found}"
            )
            tally.finished += 1
        except Exception as error:
            tally.note(f"{part.name}, killed after {moments} s: {type(error).__name__}: {error}")
    tally.words = f"{tally.finished} times it then ended by itself, with the result of the undisturbed one."
    return tally


class OnRay(Study):
    """The same study on a Ray cluster that it starts itself. It is not killed, but its workers are."""

    name = "ray"

    def words(self) -> list[object]:
        return [*super().words(), "--cluster", "local"]


def kill_workers(part: OnRay, warm: Warm, kills: int, seed: int) -> Tally:
    """Kill Ray's worker under a trial `kills` times, once in each study; Ray begins the trial anew."""
    import psutil

    dice, tally = random.Random(f"ray {seed}"), Tally()
    part.begin()
    expected = undisturbed(part, warm)
    while tally.tried < kills:
        part.begin()
        command = warm.start(part.words(), part.folder)
        steps = dice.randrange(1, 20)
        try:
            worker = None
            while worker is None and command.wait(0.05) is None:
                begun = _runs(part.folder / "study" / "runs")
                if not any(p["step"] >= steps for run in begun if not run.result for p in run.metrics()):
                    continue
                with contextlib.suppress(psutil.NoSuchProcess):
                    below = psutil.Process(command.pid).children(recursive=True)
                    tasks = [p for p in below if " ".join(p.cmdline()).startswith("ray::run_here")]
                    worker = dice.choice(tasks) if tasks else None
            if worker is None:
                continue  # the trainings were too quick
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
                tally.tried += 1
            code = command.wait(PATIENCE_SECONDS)
            assert code == 0, f"code {code}: {command.said[-2000:]}"
            _same(part.result(command), expected.result)
            found = files_in(part.folder)
            assert found == expected.files, f"left behind {found - expected.files}"
            tally.finished += 1
        except Exception as error:
            tally.note(f"a worker of Ray, killed after step {steps}: {type(error).__name__}: {error}")
        finally:
            command.send(signal.SIGTERM)
            command.wait(PATIENCE_SECONDS)
    tally.words = (
        f"{tally.finished} studies then ended by themselves, with the result of the undisturbed one."
    )
    return tally


def harm_packs(ground: Ground, folder: Path, warm: Warm, times: int, seed: int) -> Tally:
    """Change, cut short, replace or remove the pack under a training, then put it back and go on."""
    dice, tally = random.Random(f"packs {seed}"), Tally()
    part = Training(ground, folder)
    part.begin()
    expected = undisturbed(part, warm)
    ended: dict[str, int] = {}
    while tally.tried < times:
        part.chains -= 1
        part.begin()
        pack = shutil.copytree(ground.pack.path, folder.with_name("harmed"), dirs_exist_ok=True)
        harm = dice.choice(sorted(HARMS))
        words = [pack if word == ground.pack.path else word for word in part.words()]
        command = warm.start(words, folder)
        if command.wait(dice.uniform(0, expected.seconds)) is not None:
            continue  # it was quicker
        HARMS[harm](pack, dice)
        tally.tried += 1
        try:
            code = command.wait(PATIENCE_SECONDS)
            ended[f"{harm}: {code}"] = ended.get(f"{harm}: {code}", 0) + 1
            assert code in ((0, 2, -signal.SIGBUS) if harm == "cut short" else (0, 2)), f"code {code}"
            assert "Traceback" not in command.said, command.said[-2000:]
            if code == 2:
                assert _is_a_sentence(command.said, "pack|data|written to while"), command.said[-2000:]
            part.whole()
            shutil.rmtree(pack, ignore_errors=True)
            shutil.copytree(ground.pack.path, pack)
            if code != 0:
                words = [pack if word == ground.pack.path else word for word in part.words()]
                command = warm.start(words, folder)
                assert command.wait(PATIENCE_SECONDS) == 0, command.said[-2000:]
            _same(part.result(command), expected.result)
            tally.finished += 1
        except Exception as error:
            tally.note(f"a pack under a training, {harm}: {type(error).__name__}: {error}")
    tally.words = f"{tally.finished} times the same weights came out in the end; " + ", ".join(
        f"{what}, {count} times" for what, count in sorted(ended.items())
    )
    return tally


def _change(pack: Path, dice: random.Random) -> None:
    path = dice.choice(sorted(pack.glob("train*.npy")))
    with path.open("r+b") as file:
        place = dice.randrange(128, path.stat().st_size)
        file.seek(place)
        old = file.read(1)[0]
        file.seek(place)
        file.write(bytes([old ^ 1]))


def _replace(pack: Path, dice: random.Random) -> None:
    other = shutil.copytree(pack, pack.with_name("another"))
    _change(other, dice)
    shutil.rmtree(pack)
    other.rename(pack)


HARMS: dict[str, Callable[[Path, random.Random], None]] = {
    "changed": _change,
    "cut short": lambda pack, dice: os.truncate(pack / "train.npy", dice.randrange(200, 100_000)),
    "replaced": _replace,
    "removed": lambda pack, dice: shutil.rmtree(pack),
}


def two_at_once(ground: Ground, folder: Path, warm: Warm, times: int, seed: int) -> Tally:
    """Give a command twice, the second a random moment after the first: to one run folder, one pack, one file
    of results."""
    dice, tally = random.Random(f"two {seed}"), Tally()
    kinds = {kind.name: kind(ground, folder / kind.name) for kind in (Packing, Training, Evaluation, Results)}
    expected: dict[tuple[str, int], Undisturbed] = {}
    refused = 0
    while tally.tried < times:
        part = kinds[dice.choice(sorted(kinds))]
        part.begin()
        key = (part.name, part.variant)
        if key not in expected:
            expected[key] = undisturbed(part, warm)
            part.chains -= 1
            part.begin()
        wanted = expected[key]
        try:
            if part.name == "training":  # a run that was begun, to go on with
                command = warm.start(part.words(), part.folder)
                while not _runs(part.folder) and command.wait(0.01) is None:
                    pass
                command.kill()
            first = warm.start(part.words(), part.folder, part.changes)
            first.wait(dice.uniform(0, wanted.seconds))
            second = warm.start(part.words(), part.folder, part.changes)
            tally.tried += 1
            codes = [one.wait(PATIENCE_SECONDS) for one in (first, second)]
            told = f"codes {codes}: {first.said[-1000:]} {second.said[-1000:]}"
            assert 0 in codes, told
            assert set(codes) <= {0, 2}, told
            assert "Traceback" not in told, told
            if 2 in codes:
                refused += 1
                assert _is_a_sentence((first, second)[codes.index(2)].said, "another process|already"), told
            part.whole()
            done = (first, second)[codes.index(0)]
            _same(part.result(done), wanted.result)
            found = files_in(part.folder)
            assert found == wanted.files, f"left behind {found - wanted.files}"
            tally.finished += 1
        except Exception as error:
            tally.note(f"{part.name}, twice at once: {type(error).__name__}: {error}")
    tally.words = f"{refused} times the other was told so and left it alone."
    return tally


def kill_ranks(ground: Ground, folder: Path, warm: Warm, kills: int, seed: int) -> Tally:
    """Kill one of two ranks at a random moment; one process alone goes on with the run, to its end."""
    import psutil

    dice, tally = random.Random(f"ranks {seed}"), Tally()
    part = Training(ground, folder)
    while tally.tried < kills:
        part.chains = 0
        part.begin()
        torchrun = subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                "-m", "tinlab", *map(str, part.words()), "--set", "schedule.steps=150",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            steps, ranks = dice.randrange(1, 100), []
            while torchrun.poll() is None and not ranks:
                time.sleep(0.02)
                begun = _runs(folder)
                if begun and any(point["step"] >= steps for point in begun[0].metrics()):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        below = psutil.Process(torchrun.pid).children()
                        ranks = [p for p in below if "tinlab" in p.cmdline()]
            if not ranks:
                assert torchrun.poll() == 0, "torchrun failed by itself"
                continue
            dice.choice(ranks).kill()
            tally.tried += 1
            assert torchrun.wait(PATIENCE_SECONDS) != 0
            part.whole()
            command = warm.start(part.words(), folder)
            assert command.wait(PATIENCE_SECONDS) == 0, command.said[-2000:]
            (run,) = _runs(folder)
            assert run.result["steps"] == 150
            tally.finished += 1
        except Exception as error:
            tally.note(f"a rank, killed after step {steps}: {type(error).__name__}: {error}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(torchrun.pid, signal.SIGKILL)
    tally.words = f"{tally.finished} runs then ended, on one process."
    return tally


def commands(ground: Ground, folder: Path, port: int) -> dict[str, list[object]]:
    """Every command of the program, with words for it; at `port` somebody listens and is silent."""
    first, second = ground.runs
    pack, plain = ground.pack.path, ground.recipes[0]
    data = ("--data", pack)
    return {
        "demo": ["demo", *data, "--out", folder],
        "train": ["train", plain, *data, "--out", folder, "--set", "schedule.steps=5000"],
        "study": ["study", plain, *data, "--out", folder],
        "search": ["search", plain, *data, "--out", folder, "--space", "optimizer.peak_lr=0.01:0.1"],
        "reproduce": ["reproduce", "sun_vanilla", *data, "--out", folder, "--budget", 0.01],
        "transfer": ["transfer", plain, *data, "--out", folder, "--images", 5],
        "lr-find": ["lr-find", plain, *data, "--out", folder / "a.png"],
        "overfit": ["overfit", plain, *data, "--out", folder / "a.png"],
        "evaluate": ["evaluate", folder / "run", "--tta", "--calibrate", "--corruptions"],
        "compare": ["compare", first, second, "--split", "tune"],
        "ensemble": ["ensemble", first, second],
        "submit": ["submit", folder / "run", "--out", folder / "answers.txt"],
        "explain": ["explain", first, "--out", folder / "a.png"],
        "export": ["export", first, "--out", folder / "a.onnx"],
        "serve": ["serve", first, "--port", 0],
        "report": ["report", first, second, "--out", folder / "a.html"],
        "runs": ["runs", "--out", ground.folder / "runs"],
        "recipes": ["recipes"],
        "models": ["models", "--speed"],
        "augment": ["augment", *data, "--out", folder / "a.png"],
        "results": ["results", "--out", folder],
        "results add": ["results", "add", first, "--file", folder / "results.csv"],
        "data download": ["data", "download", "--to", folder, "--url", f"http://127.0.0.1:{port}/a.zip"],
        "data render": ["data", "render", folder / "images"],
        "data pack": ["data", "pack", ground.zip, "--out", folder / "pack"],
        "data subset": ["data", "subset", folder / "half", "--half", "A", *data],
        "data audit": ["data", "audit", pack],
        "data show": ["data", "show", pack, "--out", folder / "a.png"],
    }


def stop_every_command(
    ground: Ground, folder: Path, warm: Warm, times: int, seed: int, *, within_seconds: float = 1.0
) -> Tally:
    """Send SIGINT or SIGTERM to every command `times` times, at a moment of its first second."""
    dice, tally = random.Random(f"signals {seed}"), Tally()
    slowest = 0.0
    with socket.create_server(("127.0.0.1", 0), backlog=128) as silent:
        names = list(commands(ground, folder, 0))
        for name in names * times:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            shutil.copytree(ground.runs[0], folder / "run")
            words = commands(ground, folder, silent.getsockname()[1])[name]
            number = dice.choice((signal.SIGINT, signal.SIGTERM))
            command = warm.start(words, folder)
            if command.wait(dice.uniform(0, within_seconds)) is not None:
                continue  # it was done before
            command.send(number)
            began = time.monotonic()
            code = command.wait(PROMPT_SECONDS)
            slowest = max(slowest, time.monotonic() - began)
            if code == 0 or (code == 128 + number and command.printed and not command.said):
                continue  # it was done in that very moment
            tally.tried += 1
            told = f"{name}, {signal.Signals(number).name}: code {code}: {command.said[-1500:]}"
            left = [place for place in files_in(folder) if place.endswith(".partial")]
            if code is None:
                command.kill()
                tally.note(f"{told}: it goes on")
            elif code != 128 + number or not _is_a_sentence(command.said, "stopped"):
                tally.note(told)
            elif left or "Traceback" in command.said:
                tally.note(f"{told}: left behind {left}")
    tally.words = f"{len(names)} commands; the slowest took {slowest:.1f} s to end."
    return tally


def refuse_to_write(parts: Sequence[Part], warm: Warm, disk: Path, times: int, seed: int) -> Tally:
    """Give the parts' commands less room than they need on the small disk at `disk`, or make it read-only, as
    every fourth time; then give them room enough."""
    dice, tally = random.Random(f"disk {seed}"), Tally()
    expected: dict[tuple[str, int], Undisturbed] = {}
    most: dict[tuple[str, int], int] = {}
    while tally.tried < times and len(tally.failures) < times:
        for part in parts:
            shutil.rmtree(part.folder, ignore_errors=True)
        part = parts[dice.randrange(len(parts))]
        part.begin()
        key = (part.name, part.variant)
        if key not in expected:
            before = _size(part.folder)
            expected[key] = undisturbed(part, warm)
            most[key] = _size(part.folder) - before
            part.chains -= 1
            part.begin()
        read_only = tally.tried % 4 == 3
        room = None if read_only else int(dice.uniform(0, 1.3 * most[key])) + 4096
        try:
            with _refusing(disk, room):
                command = warm.start(part.words(), part.folder, part.changes)
                code = command.wait(PATIENCE_SECONDS)
                assert code is not None, "it hangs"
                if code == 0:
                    part.result(command)
                    continue
                tally.tried += 1
                told = f"with {room} bytes of room, code {code}: {command.said[-2000:]}"
                assert code == 2, told
                assert "Traceback" not in command.said, told
                mend = "read-only" if read_only else r"make room|another place"
                assert _is_a_sentence(command.said, mend), told
                part.whole()
            command = warm.start(part.words(), part.folder, part.changes)
            code = command.wait(PATIENCE_SECONDS)
            assert code in part.done_codes, f"with room again code {code}: {command.said[-2000:]}"
            _same(part.result(command), expected[key].result)
            found = files_in(part.folder)
            assert found == expected[key].files, f"left behind {found - expected[key].files}"
            tally.finished += 1
        except Exception as error:
            tally.note(f"{part.name} on a disk that refuses: {type(error).__name__}: {error}")
    tally.words = (
        f"Every fourth was read-only; {tally.finished} times the next command went on, to the result of the "
        "undisturbed one."
    )
    return tally


@contextlib.contextmanager
def _refusing(disk: Path, room: int | None) -> Iterator[None]:
    """Leave `room` bytes on the disk, or none to be written (None), for so long."""
    if room is None:
        subprocess.run(["mount", "-o", "remount,ro,bind", disk], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw,bind", disk], check=True)
        return
    filler = disk / "filler"
    with filler.open("wb") as file:
        for spare in itertools.count(0, 65536):  # the system gives room of removed files back with some delay
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, max(1, _free(disk) - room - spare))
                break
    try:
        yield
    finally:
        filler.unlink()


def _size(folder: Path) -> int:
    """The bytes of the files in `folder`, in pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*"))


def _free(disk: Path) -> int:
    return shutil.disk_usage(disk).free


def _is_a_sentence(said: str, pattern: str) -> bool:
    """Whether the last line is the program's own, and holds `pattern`."""
    last = (said.strip().splitlines() or [""])[-1]
    return last.startswith("tinlab: ") and re.search(pattern, last, re.IGNORECASE) is not None


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A tmpfs at `place`; for a process that may mount, such as one that `unshare --mount` started."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


MORE = {"packs": harm_packs, "two": two_at_once, "ranks": kill_ranks}
COMMANDS = 28
IN_NAMESPACE = "TINLAB_FAULTS_MAY_MOUNT"
OTHERS = {
    "signals": "signals",
    "disk": "disks that refuse",
    "packs": "harmed packs",
    "two": "pairs of commands",
    "ranks": "dead ranks",
    "ray": "dead workers",
}


def run(parts: Sequence[str], *, kills: int, seed: int, keep: bool) -> int:
    """Run these parts and return how many things failed. With `keep`, the ledger gets their rows."""
    failed = 0
    promises = {promise.id: promise for promise in PROMISES}
    with tempfile.TemporaryDirectory(prefix="tinlab-faults-") as name, Warm() as warm:
        ground = Ground(Path(name) / "ground")
        for part in parts:
            began = time.monotonic()
            folder = Path(name) / part
            if part == "signals":
                tally = stop_every_command(ground, folder, warm, max(1, kills // COMMANDS), seed)
            elif part in MORE:
                tally = MORE[part](ground, folder, warm, kills, seed)
            elif part == "ray":
                tally = kill_workers(OnRay(ground, folder), warm, kills, seed)
            elif part == "disk":
                # The commands' processes are children of one that was started before the mount; it sees it.
                with small_disk(folder, 32) as disk:
                    own = [PARTS[p](ground, disk / p) for p in PARTS if p not in ("study", "clock")]
                    tally = refuse_to_write(own, warm, disk, kills, seed)
            else:
                tally = kill_at_random_moments(PARTS[part](ground, folder), warm, kills, seed)
            seconds = time.monotonic() - began
            failed += len(tally.failures)
            unit = OTHERS.get(part, "kills")
            if keep:
                record(
                    promises[f"faults.{part}"], tally.tried, unit, len(tally.failures), seconds, tally.words
                )
            else:
                print(
                    f"{part}: {tally.tried} {unit}, {len(tally.failures)} failed. {tally.words}", flush=True
                )
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join([*PARTS, *OTHERS]))
    parser.add_argument("--kills", type=int, default=40, help="for each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="leave results/trials.csv as it is")
    given = parser.parse_args()
    parts = given.parts or [*PARTS, *OTHERS]
    if unknown := set(parts) - {*PARTS, *OTHERS}:
        parser.error(f"there is no part {min(unknown)}")
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # before torch is imported
    if "disk" in parts and IN_NAMESPACE not in os.environ:
        # Mounts of its own, which nobody else sees and which end with it.
        os.environ[IN_NAMESPACE] = "1"
        os.execvp("unshare", ["unshare", "--map-root-user", "--mount", sys.executable, *sys.argv])
    sys.exit(min(1, run(parts, kills=given.kills, seed=given.seed, keep=not given.dry)))


if __name__ == "__main__":
    main()
