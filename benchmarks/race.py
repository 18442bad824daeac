"""Recipes' curves against a plain script's: the same images, the same minutes, one machine, one time axis.

The sides take turns of `--turn-minutes`, so that a machine that swings treats them alike. A turn is a process
of its own, which goes on from where its side stood, saves, and measures on val. The clock of a side runs in
its training steps alone, reading and augmenting included; it stands still while it saves, measures and waits.

    python benchmarks/race.py OUT [--data DATA] [--recipe fast_cpu fast_cpu_56] [--set FIELD=VALUE …]
        [--minutes M] [--peers plain best] [--turn-minutes 5] [--publish]

The peers are benchmarks/peer.py as it stands, and with bf16 and channels-last memory: SGD at a rate of 0.1,
momentum 0.9, flips and random crops as usual, a weight decay of 5e-4 and a cosine. Their speed is measured
first, and the cosine ends after as many steps as they make in M minutes; M is by default what the longest
recipe is expected to take by the speed of its network here. The same command goes on with what OUT holds.
OUT/race.csv and OUT/race.png are written after every turn; `--publish` copies them to results/ and docs/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measuring

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PUBLISHED = (ROOT / "results" / "race.csv", ROOT / "docs" / "race.png")
MARKS = {52.0: "Sun's first network", 56.3: "Sun's improved one", 65.32: "Sun's final one"}
"""Top-1 in percent: Sun, "ResNet on Tiny ImageNet", section 4, the conclusion and section 7. The first is of
val; of the others no split is named. The improved network's val is 57 in section 5.3, 60 on the poster."""
PEERS = {"plain": "plain script, as it stands", "best": "plain script, bf16 and channels-last"}
PEER_WORDS: dict[str, list[str]] = {"plain": [], "best": ["--best"]}
WEIGHT_DECAY = 5e-4
WARMUP, BATCH = 3, 128


@dataclass(frozen=True)
class Point:
    """A row of race.csv: a side's top-1 on val after so many minutes of training."""

    side: str
    minutes: float
    top1_percent: float
    epochs: float
    data: str
    hardware: str
    versions: str
    commit: str
    date: str


@dataclass(frozen=True)
class Plan:
    """What a race is, in OUT/plan.json, so that the same command goes on with the same race."""

    recipes: dict[str, dict[str, Any]]
    """By name."""
    seed: int
    minutes: float
    turn_minutes: float
    peer_steps: dict[str, int]
    """Side -> steps that it makes in the minutes."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="a folder for the race")
    parser.add_argument("--data", help="the official data set as a zip or a folder")
    parser.add_argument(
        "--recipe", nargs="+", default=["fast_cpu", "fast_cpu_56"], help="names, or JSON files"
    )
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="changes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=positive, help="of training, for the peers' schedule")
    parser.add_argument("--turn-minutes", type=positive, default=5.0)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["plain", "best"])
    parser.add_argument("--probe-steps", type=measuring.at_least(1), default=20)
    parser.add_argument("--publish", action="store_true", help="write results/race.csv and docs/race.png")
    parser.add_argument("--turn", nargs=2, metavar=("RECIPE", "SECONDS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn is not None:
        print(json.dumps(own_turn(args.out, args.turn[0], float(args.turn[1]))))
        return
    from tinlab.errors import TinlabError

    kept = args.out / "forms" / measuring.FORMS
    forms = measuring.forms_of(args.out / "forms" if kept.is_file() else args.data, args.out / "forms")
    if forms.val is None:
        raise TinlabError(f"{forms.source} has no val, which both sides are measured on")
    if args.publish and forms.rendered:
        raise TinlabError("--publish: this race is on rendered images; what is published is of real ones")
    plan = planned(args, forms)
    points = raced(args.out, plan, forms)
    print(summary(points))
    if args.publish:
        for source, place in zip((args.out / "race.csv", args.out / "race.png"), PUBLISHED, strict=True):
            shutil.copyfile(source, place)
            print(f"wrote {place.relative_to(ROOT)}")


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def planned(args: argparse.Namespace, forms: measuring.Forms) -> Plan:
    """The plan in OUT, or a new one, for which speeds are measured."""
    from tinlab import recipes
    from tinlab.errors import TinlabError
    from tinlab.files import read_json, write_json
    from tinlab.recipe import changed, read_recipe

    found = [
        changed(read_recipe(Path(name)) if name.endswith(".json") else recipes.find(name), args.changes)
        for name in args.recipe
    ]
    ours = {recipe.name: recipe.model_dump(mode="json") for recipe in found}
    if len(ours) < len(found):
        raise TinlabError("--recipe: two recipes of one name")
    stated = {"recipes": ours, "seed": args.seed, "turn_minutes": args.turn_minutes}
    place = args.out / "plan.json"
    if place.is_file():
        plan = Plan(**read_json(place))
        same = all(getattr(plan, name) == value for name, value in stated.items())
        if not same or set(plan.peer_steps) != set(args.peers) or args.minutes not in (None, plan.minutes):
            raise TinlabError(f"{args.out} holds another race; name another folder, or the same options")
        return plan
    for recipe in found:
        if recipe.data.train_split != "train+tune":
            raise TinlabError(
                f"{recipe.name} leaves tune out of its training, and the peers do not; "
                "add --set data.train_split=train+tune"
            )
    minutes = args.minutes or max(expected_minutes(recipe, forms) for recipe in found)
    words = {name: probe(forms, args.probe_steps, PEER_WORDS[name]) for name in args.peers}

    def images_per_second(name: str) -> float:
        return float(measuring.child(*words[name])["images_per_second"])

    speeds = measuring.in_turn(words, images_per_second, 3)
    steps = {}
    for name, measured in speeds.items():
        speed = statistics.median(measured)
        steps[name] = max(1, round(speed * minutes * 60 / BATCH))
        print(f"{PEERS[name]}: {speed:.0f} images/s, {steps[name]:,} steps in {minutes:.1f} minutes")
    plan = Plan(minutes=minutes, peer_steps=steps, **stated)
    write_json(place, asdict(plan))
    return plan


def probe(forms: measuring.Forms, steps: int, words: Sequence[str]) -> list[object]:
    return [HERE / "peer.py", forms.train, "--steps", steps, "--warmup", WARMUP, *words]


def expected_minutes(recipe: Any, forms: measuring.Forms) -> float:
    """What the training steps of `recipe` take here, by the speed of its network and of its optimizer at each
    size of images."""
    import torch

    from tinlab.data.pack import Pack
    from tinlab.training.speed import images_per_second
    from tinlab.training.stages import spans

    pack, seconds = Pack.open(forms.pack), 0.0
    for span in spans(recipe, pack, 0):
        of = span.recipe
        sizes, images = of.data.image_sizes, span.steps * of.schedule.batch_size
        for size in set(sizes):
            speed = images_per_second(
                of.model, len(pack.info.classes), size, device=torch.device("cpu"), compute=of.compute,
                trained_by=of.optimizer, batch_size=of.schedule.batch_size,
            )  # fmt: skip
            seconds += sizes.count(size) / len(sizes) * images / speed
    print(f"{recipe.name}: {seconds / 60:.1f} minutes of training expected")
    return seconds / 60


def raced(out: Path, plan: Plan, forms: measuring.Forms) -> list[Point]:
    """The points of all sides, which take their turns until each has come to its end."""
    points = measuring.read_csv(out / "race.csv", Point)
    done: set[str] = set()
    while waiting := [side for side in (*plan.recipes, *plan.peer_steps) if side not in done]:
        clock = {
            side: max((p.minutes for p in points if p.side == name_of(side)), default=0.0) for side in waiting
        }
        side = min(waiting, key=clock.__getitem__)
        seconds = 60 * plan.turn_minutes
        if side in plan.recipes:
            found = measuring.child(HERE / "race.py", out, "--turn", side, seconds)
        else:
            total = plan.peer_steps[side]
            words = ["--cosine", "--warmup", 0, "--weight-decay", WEIGHT_DECAY, *PEER_WORDS[side]]
            words += ["--steps", total, "--seconds", seconds, "--checkpoint", out / f"{side}.pt"]
            found = measuring.child(HERE / "peer.py", forms.train, "--val", forms.val, *words)
            found["finished"] = found["step"] >= total
        if found["finished"]:
            done.add(side)
        point = point_of(name_of(side), found, forms.described)
        # A side that had ended before this process began is measured again, and is no new point.
        if not any((p.side, p.minutes) == (point.side, point.minutes) for p in points):
            points.append(point)
            measuring.write_csv(out / "race.csv", points, Point)
            draw(points, out / "race.png")
        print(f"{point.side}: {point.minutes:.1f} minutes, {point.top1_percent:.2f}%", flush=True)
    return points


def name_of(side: str) -> str:
    """What a side is called in the table and the chart."""
    return PEERS.get(side, f"tinlab, {side}")


def own_turn(out: Path, name: str, seconds: float) -> dict[str, Any]:
    """Train the recipe called `name` for `seconds` from where it stands, save, and measure it on val."""
    from tinlab.tuning import tune_process

    tune_process()
    import numpy as np
    import torch

    from tinlab import runs
    from tinlab.classifier import load
    from tinlab.data.pack import Pack
    from tinlab.evaluation.metrics import measure
    from tinlab.evaluation.predict import predict_split
    from tinlab.files import read_json
    from tinlab.recipe import parse_recipe
    from tinlab.training import checkpoint, endings, loop, statistics
    from tinlab.training.progress import Progress

    plan = Plan(**read_json(out / "plan.json"))
    pack = Pack.open(measuring.forms_of(out / "forms", out / "forms").pack)
    recipe = parse_recipe(plan.recipes[name], str(out / "plan.json"))
    folder = out / "runs" / name
    began: float | None = None
    asked = False

    def watch(_: Progress) -> None:
        nonlocal began, asked
        now = time.perf_counter()
        began = now if began is None else began
        if now - began >= seconds and not asked:
            asked = True  # a second signal would end the process at once
            os.kill(os.getpid(), signal.SIGTERM)

    kept = [run for run in runs.list_runs(folder) if checkpoint.latest(run.path) or run.result]
    # Only the ends of turns are saved, so that no turn holds more of them than another.
    how: dict[str, Any] = {"device": "cpu", "checkpoint_seconds": float("inf"), "watch": watch}
    try:
        if kept:
            run = loop.resume(kept[-1].path, pack=pack, **how)
        else:
            run = loop.train(recipe, pack, folder, seed=plan.seed, **how)
    except endings.TrainingStopped:
        run = [run for run in runs.list_runs(folder) if checkpoint.latest(run.path)][-1]
        split = pack.split("val")
        model, seen, cpu = load(run.path, "cpu").model, run.preprocessing, torch.device("cpu")
        if (images := recipe.data.precise_bn_images) is not None:  # as at the end of the training
            known = pack.split(recipe.data.train_split)
            rows = statistics.spread(np.arange(len(known)), images)
            names = statistics.norms_of(model.train())
            statistics.take_anew(model, names, seen, known, rows, recipe.compute, cpu)
        found = predict_split(model, seen, split, recipe.compute, cpu)
        top1 = measure(found.logits, found.labels).top1_percent
        last = checkpoint.latest(run.path)
        assert last is not None
        state = checkpoint.read_state(last)
        step, trained = state.step, state.train_seconds
    else:
        assert run.result is not None
        top1, step, trained = (run.result[name] for name in ("top1_percent", "steps", "train_seconds"))
    return {
        "seconds": trained,
        "step": step,
        "epochs": step * recipe.schedule.batch_size / len(pack.split(recipe.data.train_split)),
        "top1_percent": top1,
        "finished": run.result is not None,
    }


def point_of(side: str, found: dict[str, Any], data: str) -> Point:
    return Point(
        side=side,
        minutes=round(found["seconds"] / 60, 3),
        top1_percent=round(found["top1_percent"], 2),
        epochs=round(found["epochs"], 3),
        data=data,
        **measuring.provenance(),
    )


def minutes_to(points: Sequence[Point], side: str, mark: float) -> float | None:
    """The minutes of the side's first point at or above `mark`; None where it has none."""
    return next((p.minutes for p in points if p.side == side and p.top1_percent >= mark), None)


def summary(points: Sequence[Point]) -> str:
    """For the terminal: where each side ended, and when it was first measured at or above each mark."""
    lines = []
    for side in dict.fromkeys(point.side for point in points):
        last = [point for point in points if point.side == side][-1]
        lines.append(f"{side}: {last.top1_percent:.2f}% after {last.minutes:.1f} minutes")
        for mark in MARKS:
            if (minutes := minutes_to(points, side, mark)) is not None:
                lines.append(f"    {mark:g}% after {minutes:.1f}")
    return "\n".join(lines)


def draw(points: Sequence[Point], path: Path) -> None:
    """Top-1 on val over minutes of training, a line a side, with Sun's accuracies as marks."""
    from tinlab.drawing import ACCENT, GRID, INK, MUTED, WARM, new_figure, save_png

    figure, axes = new_figure(height=4.2)
    sides = dict.fromkeys(point.side for point in points)
    ours = [side for side in sides if side not in PEERS.values()]
    own_colours = [(ACCENT, INK)[n % 2] for n in range(len(ours))]
    colours = dict(zip([*ours, *PEERS.values()], [*own_colours, MUTED, WARM], strict=True))
    end = max(point.minutes for point in points)
    ends: list[tuple[float, str]] = []
    for side in sides:
        own = [point for point in points if point.side == side]
        axes.plot(
            [0, *(point.minutes for point in own)],
            [None, *(point.top1_percent for point in own)],
            color=colours[side], linewidth=2.2 if side in ours else 1.6, marker="o", markersize=3.2,
            label=f"{side}: {own[-1].top1_percent:.1f}%",
        )  # fmt: skip
        ends.append((own[-1].top1_percent, side))
    top = max(max(value for value, _ in ends), *MARKS)
    for mark, name in MARKS.items():
        axes.axhline(mark, color=INK, linestyle=":", linewidth=0.9)
        axes.annotate(
            f"{mark:g}%  {name}", (0, mark), xytext=(4, 3), textcoords="offset points", color=INK, fontsize=8
        )
    axes.set_xlim(0, end * 1.02)
    axes.set_ylim(0, top + 6)
    axes.grid(axis="y", color=GRID)
    axes.set_xlabel("minutes of training", color=MUTED)
    axes.set_ylabel("top-1 on val, %", color=MUTED)
    axes.set_title("The same images, machine and minutes", loc="left", color=INK, fontsize=11)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    told = "; ".join(f"{side} ends at {value:.1f}%" for value, side in ends)
    save_png(figure, path, f"Top-1 on val over minutes of training: {told}")


if __name__ == "__main__":
    measuring.run(main)
