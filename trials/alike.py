"""What must come out alike, from images to numbers: tiny networks on drawn images, through the real commands.

    python trials/alike.py [end_to_end processes threads resume] [--rounds N] [--place FOLDER]

end_to_end  Classes renamed so that their order changes, images twice, images mirrored under mirrored views,
            other batch sizes and numbers of threads, a run compared and joined with a copy of itself.
processes   The same recipe and seed in two processes that differ in all that must not matter.
threads     The same with one thread and with two, which add in other orders.
resume      Stopped at a drawn step, and gone on with.

A round draws its own images, network and recipe. Counted are the numbers, or tensors, that were compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Threads that wait sleep: there may be more of them than cores. torch reads it when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from ledger import Promise, record
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tinlab import runs
from tinlab.cli import app
from tinlab.data.pack import Pack
from tinlab.data.packing import pack
from tinlab.evaluating import predictions_of
from tinlab.evaluation import predict
from tinlab.evaluation.ensemble import RULES
from tinlab.evaluation.tta import TTA
from tinlab.files import read_json, write_json
from tinlab.recipe import Data, Flip, Loss, Model, Optimizer, RandomResizedCrop, Recipe, Schedule, changed
from tinlab.training import checkpoint, loop
from tinlab.training.progress import Progress

TESTS = "tests/reliability/test_numbers.py"
PROMISES = tuple(
    Promise(f"numbers.{name}", sentence, f"{TESTS}::test_{name}", f"python trials/alike.py {name}")
    for name, sentence in {
        "end_to_end": "From a folder of images to the printed numbers, renaming classes, repeating or"
        " mirroring images, and other batch sizes change nothing that they must not; a run differs from its"
        " copy by 0 with p = 1.",
        "processes": "The same recipe, seed and number of threads give the same weights, curves and logits,"
        " bit for bit, in any process on one machine.",
        "threads": "Another number of threads changes the losses of twenty steps at a low rate by rounding"
        " alone: by less than one part in ten thousand.",
        "resume": "A training that was stopped anywhere and resumed ends with the weights and curves of one"
        " that was not, bit for bit.",
    }.items()
)  # fmt: skip
SOURCES = Path(__file__).resolve().parent.parent / "src"
SIDE = 32
TOLERANCE = 1e-4
"""Of logits in float32 whose sums were taken in another order."""

KNOBS = (
    ["optimizer.name=adamw", "optimizer.nesterov=false", "optimizer.peak_lr=0.003"],
    ["optimizer.name=lion", "optimizer.nesterov=false", "optimizer.peak_lr=0.001"],
    ["optimizer.ema_decay=0.9"],
    ["optimizer.lookahead_steps=4"],
    ["optimizer.sam_rho=0.05"],
    ["optimizer.clip_norm=0.5"],
    ["schedule.accumulate=2"],
    ["schedule.shape=cosine"],
    ["model.final_survival=0.5"],
    ["model.dropout=0.3"],
    ['augment=[{"kind": "flip"}, {"kind": "mixup"}]'],
    ['augment=[{"kind": "random_resized_crop"}, {"kind": "cutmix"}]'],
    ["evaluate_every_epochs=0.5"],
    ["compute.precision=bf16"],
)
"""Changes to the tiny recipe, of which a round draws some."""


def recipe_of(rng: random.Random, steps: int = 12, knobs: int = 3) -> Recipe:
    """A tiny recipe with `knobs` of KNOBS."""
    tiny = Recipe(
        name="tiny",
        data=Data(image_sizes=(16, SIDE)),
        augment=(Flip(), RandomResizedCrop()),
        model=Model(width=4, stem="patch"),
        optimizer=Optimizer(peak_lr=0.03, nesterov=True),
        schedule=Schedule(steps=steps, batch_size=16, shape="linear", warmup_fraction=0.2),
        loss=Loss(label_smoothing=0.1),
    )
    chosen = [["compute.precision=fp32"], *rng.sample(KNOBS, knobs)]
    return changed(tiny, [change for changes in chosen for change in changes])


class Images:
    """A set of drawn images: `train` and `val` uint8 (C, N, SIDE, SIDE, 3), each class of another colour."""

    def __init__(self, seed: int, train: int = 14, val: int = 9) -> None:
        rng = np.random.default_rng(seed)
        self.classes = int(rng.integers(3, 6))
        colours = rng.integers(40, 216, (self.classes, 1, 1, 1, 3))
        noise = rng.normal(0, 50, (self.classes, train + val, SIDE // 4, SIDE // 4, 3))
        drawn = (colours + noise).repeat(4, axis=2).repeat(4, axis=3).clip(0, 255).astype(np.uint8)
        self.train, self.val = drawn[:, :train], drawn[:, train:]

    def write(self, folder: Path, names: list[str], *, mirrored: bool = False, copies: int = 1) -> Path:
        """Class folders of PNGs, which keep every pixel; class c is called names[c]."""
        for split, of in (("train", self.train), ("val", self.val)):
            for name, images in zip(names, of, strict=True):
                place = folder / split / name
                place.mkdir(parents=True)
                for number, image in enumerate(images):
                    picture = Image.fromarray(image[:, ::-1] if mirrored else image)
                    for copy in range(copies if split == "val" else 1):
                        picture.save(place / f"{number:03d}-{copy}.png", compress_level=1)
        return folder


def command(*words: object) -> Any:
    """What `tinlab WORDS --json` prints."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    if done.exit_code:
        raise AssertionError(f"tinlab {' '.join(map(str, words))}: {done.exception}")
    return json.loads(done.stdout[done.stdout.index("{") :])


def close(found: Any, expected: Any, tolerance: float = TOLERANCE) -> int:
    """Equal within rounding; how many numbers that were."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    np.testing.assert_allclose(found, expected, tolerance, tolerance)
    return found.size


PERCENTAGES = ("top1_percent", "top5_percent", "mean_confidence_percent", "calibration_error_percent")


def same_numbers(found: dict[str, Any], expected: dict[str, Any]) -> int:
    """Everything in two answers of `evaluate` that does not depend on the order or the number of images."""
    compared = sum(close(found[name], expected[name], 1e-3) for name in (*PERCENTAGES, "loss"))
    for name in ("error_percent", "adaptive_error_percent", "brier", "loss"):
        compared += close(found["calibration"][name], expected["calibration"][name], 1e-3)
    return compared


def end_to_end(place: Path, seed: int) -> int:
    """One round of what must not matter; how many numbers were compared. Raises AssertionError."""
    rng, images = random.Random(seed), Images(seed)
    names = [f"{chr(97 + k)}-{rng.randrange(10**6)}" for k in range(images.classes)]
    base = pack(images.write(place / "set", names), place / "pack", image_size=SIDE)
    recipe = changed(recipe_of(rng, steps=20, knobs=0), ["data.image_sizes=[32]"])
    run = loop.train(recipe, base, place / "runs", seed=seed, device="cpu").path
    plain = command("evaluate", run, "--tta", "--device", "cpu")
    logits = predictions_of(run).logits
    assert len(np.unique(logits)) > images.classes, "a network that says the same of all images shows nothing"
    compared = 0

    # Renamed, so that class c stands in place places[c]; the same images, in another order.
    places = rng.sample(range(images.classes), images.classes)
    others = [f"{chr(97 + p)}-other" for p in places]
    renamed = pack(images.write(place / "renamed", others), place / "renamed-pack", image_size=SIDE)
    moved = renamed_run(run, renamed, places, place / "renamed-run")
    found = command("evaluate", moved, "--tta", "--device", "cpu")
    compared += same_numbers(found, plain)
    for before, after in enumerate(places):
        compared += close(found["per_class_percent"][after], plain["per_class_percent"][before], 1e-9)
    old = {(places[p["true"]], places[p["predicted"]]): p["images"] for p in plain["confusions"]}
    assert old == {(p["true"], p["predicted"]): p["images"] for p in found["confusions"]}
    compared += len(old)
    for view in TTA:
        compared += close(found["tta"][view]["loss"], plain["tta"][view]["loss"])

    # Every image twice: the same rates, and an interval that shrinks by the root of two.
    twice = pack(images.write(place / "twice", names, copies=2), place / "twice-pack", image_size=SIDE)
    found = command("evaluate", run, "--data", twice.path, "--device", "cpu")
    assert found["images"] == 2 * plain["images"]
    compared += same_numbers(found, plain)
    compared += close([n / 2 for n in found["per_class_images"]], plain["per_class_images"])
    widths = [high - low for low, high in (plain["loss_interval"], found["loss_interval"])]
    compared += close(widths[0] / widths[1], 2**0.5, 0.15)

    # Mirrored images, seen in pairs of mirrored views.
    mirrored = pack(
        images.write(place / "mirrored", names, mirrored=True), place / "mirrored-pack", image_size=SIDE
    )
    assert np.abs(predictions_of(run, pack=mirrored, device="cpu").logits - logits).max() > 1e-3
    for view in TTA:
        found, expected = (
            predictions_of(run, pack=on, tta=view, device="cpu").logits for on in (mirrored, None)
        )
        compared += close(found, expected)

    # Other batches, and another number of threads.
    for size, threads in ((1, 1), (7, 1), (250, 2)):
        with settings(size, threads):
            shutil.rmtree(run / "predictions")
            compared += close(predictions_of(run, device="cpu").logits, logits)

    # A copy of the run.
    copy = shutil.copytree(run, place / "copy")
    (pair,) = command("compare", run, copy, "--device", "cpu")["pairs"]
    assert (pair["difference_points"], pair["difference_interval_points"]) == (0, [0, 0])
    assert (pair["mcnemar_p"], pair["same_answer_percent"]) == (1, 100)
    assert pair["only_first"] == pair["only_second"] == []
    both = command("ensemble", run, copy, "--device", "cpu")
    assert [row["rule"] for row in both["rows"]] == [*RULES]
    for row in both["rows"]:
        if row["note"] is None:
            compared += close((row["top1_percent"], row["gain"], row["gain_low"], row["gain_high"]),
                              (plain["top1_percent"], 0, 0, 0))  # fmt: skip
        if row["rule"] in ("probabilities", "logits"):
            compared += close(row["loss"], plain["loss"])
    return compared + 6


def renamed_run(run: Path, on: Pack, places: list[int], path: Path) -> Path:
    """A copy of the run whose class c is the one that `on` has in place places[c]."""
    shutil.copytree(run, path, ignore=shutil.ignore_patterns("predictions"))
    write_json(path / "classes.json", [{"id": c.id, "words": c.words} for c in on.info.classes])
    about = read_json(path / "run.json")
    write_json(path / "run.json", {**about, "pack": str(on.path), "pack_digest": on.digest})
    last = checkpoint.latest(path)
    assert last is not None
    weights = load_file(last / "model.safetensors")
    order = np.argsort(places)
    for name in ("fc.weight", "fc.bias"):
        weights[name] = weights[name][order].contiguous()
    save_file(weights, last / "model.safetensors")
    return path


@contextmanager
def settings(batch_size: int, threads: int) -> Any:
    """Predict in batches of another size, with another number of threads."""
    before = predict.BATCH_SIZE, torch.get_num_threads()
    predict.BATCH_SIZE = batch_size
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        predict.BATCH_SIZE = before[0]
        torch.set_num_threads(before[1])


def small_pack(place: Path, seed: int) -> Pack:
    images = Images(seed)
    names = [f"class{k}" for k in range(images.classes)]
    return pack(images.write(place / "set", names), place / "pack", image_size=SIDE)


def same_bits(one: Path, other: Path) -> int:
    """All that two runs kept is equal; how many tensors and points that were. Raises AssertionError."""
    compared = 0
    first, second = (checkpoint.latest(run) for run in (one, other))
    assert first is not None
    assert second is not None
    pairs = [(path, second / path.name) for path in sorted(first.glob("*.safetensors"))]
    pairs += [
        (path, other / "predictions" / path.name) for path in (one / "predictions").glob("*.safetensors")
    ]
    assert len(pairs) >= 3
    for a, b in pairs:
        left, right = load_file(a), load_file(b)
        assert left.keys() == right.keys(), a.name
        for name, tensor in left.items():
            assert torch.equal(tensor, right[name]), f"{a.name}: {name}"
            compared += 1
    fields = ("kind", "step", "loss", "learning_rate", "top1_percent")
    lines = [
        [[p.get(field) for field in fields] for p in runs.open_run(run).metrics()] for run in (one, other)
    ]
    assert lines[0] == lines[1]
    return compared + len(lines[0])


def process(recipe: Recipe, on: Pack, place: Path, seed: int, differs: bool) -> Path:
    """The run of `tinlab train` in a process of its own; with `differs`, one in other surroundings."""
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "recipe.json", recipe.model_dump(mode="json"))
    surroundings = {"PYTHONHASHSEED": "0", "TZ": "UTC", "LANG": "C.UTF-8"}
    if differs:
        surroundings = {"PYTHONHASHSEED": str(1 + seed % 1000), "TZ": "Asia/Kathmandu", "LANG": "C"}
        surroundings |= {"NOTHING_" * 20: "x" * 5000}  # moves the stack
    # Watching, and more checkpoints, change nothing either.
    words = ["--checkpoint-seconds", "0"] if differs else []
    done = subprocess.run(
        [sys.executable, "-m", "tinlab", "train", place / "recipe.json", "--data", on.path,
         "--seed", str(seed), "--out", place / "runs", "--device", "cpu", "--json", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCES), **surroundings},
        cwd=place if differs else None, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(done.stderr)
    return Path(json.loads(done.stdout)["run"])


def processes(place: Path, seed: int) -> int:
    rng = random.Random(seed)
    on, recipe = small_pack(place, seed), recipe_of(rng)
    return same_bits(*(process(recipe, on, place / str(k), seed, differs=bool(k)) for k in (0, 1)))


def threads(place: Path, seed: int, counts: tuple[int, ...] = (1, 2, 3), steps: int = 20) -> int:
    """Blocks begin as the identity and the rate is low, or else a training blows rounding errors up."""
    on = small_pack(place, seed)
    steady = ["optimizer.peak_lr=0.005", "model.width=8", "model.zero_last_bn=true", "data.image_sizes=[32]"]
    recipe, losses = changed(recipe_of(random.Random(seed), steps=steps, knobs=0), steady), []
    for count in counts:
        with settings(predict.BATCH_SIZE, count):
            run = loop.train(recipe, on, place / str(count), seed=seed, device="cpu", log_every=1)
        losses.append([point["loss"] for point in run.metrics() if point["kind"] == "train"])
    assert len(losses[0]) == steps
    return sum(close(other, losses[0]) for other in losses[1:])


class Stopped(Exception):
    """Raised at the drawn step, as a kill there would end it."""


def resume(place: Path, seed: int) -> int:
    rng = random.Random(seed)
    on, recipe = small_pack(place, seed), recipe_of(rng)
    whole = loop.train(recipe, on, place / "whole", seed=seed, device="cpu")
    stops = sorted(rng.sample(range(2, 12), rng.choice((1, 2))))

    def until(stop: int | None) -> Callable[[Progress], None]:
        def watch(progress: Progress) -> None:
            if progress.step == stop:
                raise Stopped

        return watch

    parts = place / "parts"
    for number, stop in enumerate([*stops, None]):
        try:
            if number == 0:
                loop.train(
                    recipe, on, parts, seed=seed, device="cpu", checkpoint_seconds=0, watch=until(stop)
                )
            else:
                (begun,) = runs.list_runs(parts)
                loop.resume(begun.path, device="cpu", checkpoint_seconds=0, watch=until(stop))
        except Stopped:
            continue
    (ended,) = runs.list_runs(parts)
    return same_bits(whole.path, ended.path)


CHECKS: dict[str, tuple[Callable[[Path, int], int], int, str]] = {
    "end_to_end": (end_to_end, 40, "numbers"),
    "processes": (processes, 20, "tensors and points"),
    "threads": (threads, 40, "losses"),
    "resume": (resume, 100, "tensors and points"),
}
"""The check, the rounds of a trial, and what is counted."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=", ".join(CHECKS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--first", type=int, default=0, help="Seed of the first round.")
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    if unknown := set(args.checks) - set(CHECKS):
        parser.error(f"there is no check {unknown.pop()}; there are {', '.join(CHECKS)}")
    failures = 0
    for name in args.checks or CHECKS:
        check, usual, unit = CHECKS[name]
        rounds, began, compared, failed = args.rounds or usual, time.perf_counter(), 0, 0
        for seed in range(args.first, args.first + rounds):
            with tempfile.TemporaryDirectory(dir=args.place) as place:
                try:
                    compared += check(Path(place), seed)
                except Exception:
                    print(f"{name}, seed {seed}:", flush=True)
                    traceback.print_exc()
                    failed += 1
        failures += failed
        promise = next(p for p in PROMISES if p.id == f"numbers.{name}")
        note = f"{rounds} rounds, first seed {args.first}"
        record(promise, compared, unit, failed, time.perf_counter() - began, note)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
