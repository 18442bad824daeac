"""Seconds of training to a stated accuracy on val: a recipe trained with several seeds, against the clock.

The clock counts steps alone. Compiling and the first steps of every size of images are taken before it starts
and undone; it stands still while the network is measured. Printed are, for each target, the seconds after
which the held-out curve first was at or above it (mean and standard deviation over the seeds, and how many
got there), the seconds of the whole run, the final accuracy on val without and with flips at test time, and
the share of the least time that the operations could take at the rate of the machine's matrix units.

    python benchmarks/fast.py [--recipe fast_gpu] [--data DATA] [--out OUT] [--target 65.32 ...] [--runs 5]
    python benchmarks/fast.py --recipe fast_cpu --target 52 56.3 65.32 --runs 1
    python benchmarks/fast.py --choose schedule.epochs=20,25,30,40   (which length? `tune` tells, never val)

With --choose the values are tried in turn, with `tune` held out and measured, until one is at or above the
target and --margin; the seeds are then trained with that value on all images. Without a value that gets
there the one that came closest is taken. Everything lies in OUT: run folders, a row of OUT/results.csv (or
--results) for each run on real images, and OUT/RECIPE.json with what is printed. Given again, it goes on
where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tinlab.tuning import tune_process

CHOOSING_SEED = 1000
"""Of the runs that choose; the runs that are measured have the seeds from 0 on."""
NEVER = 10.0**9


def first_at(points: Iterable[dict[str, Any]], target: float) -> float | None:
    """The seconds of training at the first held-out point at or above `target` percent, or None. While images
    grow, a point is measured at the size in training."""
    for point in points:
        if point["kind"] == "eval" and point["top1_percent"] >= target:
            return float(point["train_seconds"])
    return None


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, standard deviation (None for fewer than two) and count of the values that there are."""
    found = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(found) if found else None,
        "sd": statistics.stdev(found) if len(found) > 1 else None,
        "n": len(found),
        "of": len(values),
    }


def shown(found: dict[str, Any], digits: int = 1) -> str:
    """`12.3 ± 0.4 (5 of 5)`, or that no run got there."""
    if found["mean"] is None:
        return f"not reached (0 of {found['of']})"
    around = "" if found["sd"] is None else f" ± {found['sd']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{around} ({found['n']} of {found['of']})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="fast_gpu")
    parser.add_argument("--data", help="a pack or a data set")
    parser.add_argument("--out", type=Path, default=Path("runs/fast"))
    parser.add_argument("--target", type=float, nargs="+", default=[65.32], help="top-1 in percent")
    parser.add_argument("--runs", type=int, default=5, help="seeds, from 0 on")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--choose", metavar="PATH=VALUE,VALUE,…", help="in rising order of cost")
    parser.add_argument("--margin", type=float, default=1.0, help="points on tune above the first target")
    parser.add_argument("--results", type=Path, help="where rows go")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    tune_process()
    from tinlab.errors import TinlabError

    try:
        report = measured(args)
    except TinlabError as error:
        print(f"fast.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{report['recipe']}.json").write_text(json.dumps(report, indent=2) + "\n")
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Train what the options ask for, and everything that is printed."""
    from tinlab import recipes
    from tinlab.compute import resolve_device
    from tinlab.data.places import open_data
    from tinlab.training.limit import matrix_rate, training_operations

    pack, device = open_data(args.data), resolve_device(args.device)
    recipe, _ = recipes.with_changes(recipes.find(args.recipe), args.set)
    tried: list[dict[str, Any]] = []
    changes = list(args.set)
    if args.choose:
        tried = choose(args, recipe, pack)
        wanted = args.target[0] + args.margin
        reached = [one for one in tried if one["tune_top1_percent"] >= wanted]
        best = reached[0] if reached else max(tried, key=lambda one: one["tune_top1_percent"])
        changes.append(best["change"])
        recipe, _ = recipes.with_changes(recipe, [best["change"]])
    rate = matrix_rate(device, recipe.compute.precision)
    operations = training_operations(recipe, pack)
    lines = [one_run(args, recipe, pack, seed) for seed in range(args.runs)]
    seconds = [line["seconds"] for line in lines]
    return {
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "changes": changes,
        "device": str(device),
        "tried": tried,
        "runs": lines,
        "targets": {
            f"{target:g}": {
                "seconds": spread([line["reached"][f"{target:g}"] for line in lines]),
                "seconds_whole_run": spread(
                    [line["seconds"] if line["top1_percent"] >= target else None for line in lines]
                ),
                "seconds_whole_run_with_flips": spread(
                    [line["seconds"] if line["top1_flip_percent"] >= target else None for line in lines]
                ),
            }
            for target in args.target
        },
        "seconds": spread(seconds),
        "top1_percent": spread([line["top1_percent"] for line in lines]),
        "top1_flip_percent": spread([line["top1_flip_percent"] for line in lines]),
        "operations": operations,
        "matrix_flops": rate,
        "seconds_at_least": operations / rate,
        "share_of_limit": operations / rate / statistics.fmean(seconds) if seconds else None,
    }


def choose(args: argparse.Namespace, recipe: Any, pack: Any) -> list[dict[str, Any]]:
    """Train with each value of --choose on the images besides `tune`, and measure on it, until one reaches
    the first target and the margin."""
    from tinlab import recipes
    from tinlab.study.plan import parse_grid

    ((path, values),) = parse_grid([args.choose]).items()
    tried = []
    for value in values:
        change = f"{path}={value if isinstance(value, str) else json.dumps(value)}"
        short, _ = recipes.with_changes(recipe, [change, "data.train_split=train"])
        run = trained(args, short, pack, CHOOSING_SEED, "tune")
        found = {
            "change": change,
            "tune_top1_percent": run.result["top1_percent"],
            "seconds": run.result["train_seconds"],
        }
        tried.append(found)
        say(f"{change}: {found['tune_top1_percent']:.2f}% of tune after {found['seconds']:.1f} s")
        if found["tune_top1_percent"] >= args.target[0] + args.margin:
            break
    return tried


def one_run(args: argparse.Namespace, recipe: Any, pack: Any, seed: int) -> dict[str, Any]:
    """Train, or find, the run of one seed, measure it with flips, and keep its row."""
    from tinlab.errors import TinlabError
    from tinlab.evaluating import predictions_of
    from tinlab.evaluation.metrics import measure
    from tinlab.results import record

    run = trained(args, recipe, pack, seed, "val")
    flips = predictions_of(run.path, split="val", tta="flip", pack=pack, device=args.device)
    result, points = run.result, run.metrics()
    line = {
        "seed": seed,
        "run": str(run.path),
        "seconds": result["train_seconds"],
        "warm_up_seconds": result.get("warm_up_seconds"),
        "top1_percent": result["top1_percent"],
        "top1_flip_percent": measure(flips.logits, flips.labels).top1_percent,
        "images_per_second": result["images_per_second"],
        "reached": {f"{target:g}": first_at(points, target) for target in args.target},
        "curve": [(p["train_seconds"], p["top1_percent"]) for p in points if p["kind"] == "eval"],
    }
    say(
        f"seed {seed}: {line['seconds']:.2f} s, {line['top1_percent']:.2f}% of val, "
        f"{line['top1_flip_percent']:.2f}% with flips"
    )
    try:
        record(run.path, args.results or args.out / "results.csv")
    except TinlabError as error:
        say(f"no row: {error}")
    return line


def trained(args: argparse.Namespace, recipe: Any, pack: Any, seed: int, split: str) -> Any:
    """The finished run: found, gone on with, or trained, with its first steps before the clock."""
    from tinlab.study.trial import find_run
    from tinlab.training import loop

    folder = args.out / "runs"
    options: dict[str, Any] = {"device": args.device, "warm_up": True, "checkpoint_seconds": NEVER}
    run = find_run(folder, recipe, seed, pack.digest)
    if run is not None:
        return loop.resume(run.path, pack=pack, **options)
    return loop.train(recipe, pack, folder, seed=seed, final_split=split, **options)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(report: dict[str, Any]) -> None:
    changed = f" with {', '.join(report['changes'])}" if report["changes"] else ""
    print(f"{report['recipe']}{changed} on {report['device']}, {len(report['runs'])} runs")
    for target, found in report["targets"].items():
        print(f"seconds to {target}% on the curve   {shown(found['seconds'])}")
        print(f"  whole runs that end there      {shown(found['seconds_whole_run'])}")
        print(f"  and with flips                 {shown(found['seconds_whole_run_with_flips'])}")
    print(f"seconds of the whole run         {shown(report['seconds'])}")
    print(f"val top-1, percent               {shown(report['top1_percent'], 2)}")
    print(f"val top-1 with flips             {shown(report['top1_flip_percent'], 2)}")
    tera = 1e-12
    print(
        f"{report['operations']:.3g} operations at {report['matrix_flops'] * tera:.3g} TFLOP/s: at least "
        f"{report['seconds_at_least']:.1f} s; {100 * (report['share_of_limit'] or 0):.1f}% of that limit"
    )


if __name__ == "__main__":
    main()
