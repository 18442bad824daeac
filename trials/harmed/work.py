"""What is harmed: commands with all that they need, and what must be there after them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from warm import CLOCK, PATIENCE_SECONDS, Command


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
    done_codes: tuple[int, ...] = (0,)
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
        if found := runs_in(self.folder):
            return ["train", "--resume", found[0].path, *self.options]
        recipe = self.ground.recipes[self.variant]
        return [
            "train", recipe, "--data", self.ground.pack.path, "--out", self.folder, "--seed", 5, *self.options
        ]  # fmt: skip

    def whole(self) -> None:
        found = runs_in(self.folder)
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
        (run,) = runs_in(self.folder)
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
        for run in runs_in(self.folder):
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
        from tinlab.results import curve_file, read_results

        rows = read_results(self.file)
        assert rows[: len(self.before)] == self.before, "a row is lost"
        for row in rows[len(self.before) :]:
            lines = curve_file(self.file, row).read_text().splitlines()
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
        self.left_behind: list[Any] = []
        """Trainings that were not killed with the study: they see that it is gone, save and end."""

    def words(self) -> list[object]:
        return [
            "study", *self.ground.recipes[:2], "--seeds", 1, "--name", "study", "--out", self.folder,
            "--data", self.ground.pack.path, "--device", "cpu", "--checkpoint-seconds", 0, "--json",
        ]  # fmt: skip

    def whole(self) -> None:
        """Again, where a training that was left behind wrote while its files were read."""
        import psutil

        writing = [child for child in self.left_behind if child.is_running()]
        try:
            self._whole()
        except Exception:
            if not writing:
                raise
            psutil.wait_procs(writing, timeout=PATIENCE_SECONDS)
            self._whole()

    def _whole(self) -> None:
        runs = {}
        for run in runs_in(self.folder / "study" / "runs"):
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
        runs = sorted(runs_in(self.folder / "study" / "runs"), key=lambda run: run.recipe.name)
        return rows, [_trained(run) for run in runs]

    def victims(self, command: Command, dice: random.Random) -> list[int]:
        """Every other time its trainings too."""
        import psutil

        self.left_behind = []
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(command.pid).children(recursive=True)
            if dice.random() < 0.5:
                return [child.pid for child in children]
            self.left_behind = children
        return []


class OnRay(Study):
    """The same study on a Ray cluster that it starts itself. It is not killed, but its workers are."""

    name = "ray"

    def words(self) -> list[object]:
        return [*super().words(), "--cluster", "local"]


PARTS: dict[str, type[Part]] = {
    part.name: part for part in (Packing, Training, Clock, Evaluation, Study, Report, Results)
}


def runs_in(out: Path) -> list[Any]:
    """The runs in `out`. Raises AssertionError where something else lies there."""
    from tinlab.runs import list_runs

    found = list_runs(out)
    there = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    assert there == {run.path.name for run in found}, f"half a run: {there - {r.path.name for r in found}}"
    return found


def _run_is_whole(run: Any) -> int:
    """Read all files of a run; the steps of its last checkpoint. Raises where one cannot be read."""
    from safetensors.torch import load_file

    from tinlab.evaluation.logits import Predictions
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

    weights, last = {}, checkpoint.latest(run.path)
    assert last is not None
    for path in sorted(last.glob("*.safetensors")):
        tensors = load_file(path)
        weights[path.name] = {name: _digest(tensors[name].numpy().tobytes()) for name in sorted(tensors)}
    curve = [(p["kind"], p["step"], p["loss"], p["top1_percent"]) for p in run.metrics()]
    times = ("train_seconds", "elapsed_seconds", "images_per_second", "peak_memory_bytes", "finished_at")
    return weights, curve, {name: value for name, value in run.result.items() if name not in times}


def same(found: Any, wanted: Any, place: str = "the result") -> None:
    """Raise AssertionError that names the first difference."""
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        for key in wanted:
            same(found[key], wanted[key], f"{place}.{key}")
    elif isinstance(found, list | tuple) and isinstance(wanted, list | tuple) and len(found) == len(wanted):
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            same(one, other, f"{place}.{number}")
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
