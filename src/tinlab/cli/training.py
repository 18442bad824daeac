"""Commands that train one network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from tinlab import terminal
from tinlab.cli.common import (
    RUNS,
    AsJson,
    CheckpointSeconds,
    DataOption,
    Device,
    Out,
    Seed,
    SeedOrNone,
    app,
    show_metrics,
    show_next,
    split_auto,
    with_fitting_batch,
)
from tinlab.errors import TinlabError


@app.command()
def demo(
    data: DataOption = None, out: Out = RUNS, seed: Seed = 0, device: Device = "auto", json: AsJson = False
) -> None:
    """The main job, end to end, in about two minutes: data, pack, train, evaluate, report."""
    from tinlab.demo import demo as run_demo

    with terminal.counting("prepare the images") as count, terminal.training() as watch:
        made = run_demo(data, out=out, seed=seed, device=device, say=terminal.say, count=count, watch=watch)
    if json:
        terminal.show_json({"run": str(made.run.path), "report": str(made.report), "result": made.run.result})
        return
    show_metrics(made.metrics, "val")
    terminal.show(f"report: {made.report.resolve()}")


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A name, or a recipe.json.")] = None,
    data: DataOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where run folders are.  [default: runs]"),
    ] = None,
    seed: SeedOrNone = None,
    device: Device = "auto",
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Change one field; repeatable. batch_size=auto: the largest that fits into memory.",
        ),
    ] = None,
    scale_lr: Annotated[
        bool, typer.Option("--scale-lr", help="With batch_size=auto: scale the rate with the batch.")
    ] = False,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with this run.")] = None,
    checkpoint_seconds: CheckpointSeconds = 300,
    stop_after: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", help="Save and stop then, with exit code 75 if it is not finished."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Train a recipe, and measure it on val. On several GPUs or machines: torchrun -m tinlab train …"""
    from tinlab import ranks, recipes
    from tinlab.data.pack import Pack
    from tinlab.data.places import open_data
    from tinlab.training import loop
    from tinlab.training.memory import gigabytes

    if (recipe is None) == (resume is None):
        raise TinlabError("name a recipe ('tinlab recipes' lists them), or a run with --resume, and not both")
    if resume is not None and set:
        raise TinlabError("--resume goes on with the run's own recipe; --set changes a new run")
    if resume is not None and (seed is not None or out is not None):
        raise TinlabError(
            "--resume goes on in the run's own folder with its own seed; leave out --seed and --out"
        )
    assignments, fitting = split_auto(set or [])
    if scale_lr and not fitting:
        raise TinlabError("--scale-lr goes with --set batch_size=auto; otherwise set optimizer.peak_lr")

    if stop_after is not None and not 0 < stop_after < math.inf:
        raise TinlabError(f"--stop-after is in minutes and above 0, not {stop_after:g}")
    if stop_after is not None and ranks.restarts():
        raise TinlabError(
            "--stop-after ends the ranks, and torchrun --max-restarts starts them again: give one of the two"
        )
    stop_after_seconds = None if stop_after is None else 60 * stop_after

    def started(run: Any) -> None:
        terminal.say(f"run: {run.path}")

    pack: Pack | None
    if resume is not None:
        pack = open_data(data) if data is not None else None
        with terminal.training() as watch:
            run = loop.resume(
                resume,
                pack=pack,
                device=device,
                checkpoint_seconds=checkpoint_seconds,
                stop_after_seconds=stop_after_seconds,
                watch=watch,
            )
    else:
        assert recipe is not None
        chosen, foreign = recipes.with_changes(recipes.find(recipe), assignments)
        if foreign and ranks.number() == 0:
            terminal.say(f"left out, as {chosen.model.name} has none: {', '.join(foreign)}")
        with terminal.counting("pack the images") as count:
            pack = open_data(data, progress=count)
        if fitting:
            chosen = with_fitting_batch(chosen, pack, device, scale_lr=scale_lr)
        with terminal.training() as watch:
            run = loop.train(
                chosen,
                pack,
                out or RUNS,
                seed=seed or 0,
                device=device,
                checkpoint_seconds=checkpoint_seconds,
                stop_after_seconds=stop_after_seconds,
                watch=watch,
                started=started,
            )
    if ranks.number() > 0:
        return
    result = run.result or {}
    if json:
        terminal.show_json({"run": str(run.path), **result})
        return
    terminal.show(
        f"{result['split']}: top-1 {result['top1_percent']:.2f}%, top-5 {result['top5_percent']:.2f}%, "
        f"loss {result['loss']:.4f}, {result['train_seconds'] / 60:.1f} minutes of training, "
        f"{gigabytes(result['peak_memory_bytes'])} of memory at most"
    )
    if "sparsity" in result:
        terminal.show(f"pruned: {100 * result['sparsity']:.1f}% of the weights are zero")
    if "measured_blocks" in result:
        terminal.show(
            f"depth: {result['measured_blocks']:.2f} of {result['blocks']} blocks ran in a step on average, "
            f"{result['expected_blocks']:.2f} expected"
        )
    terminal.show(f"run: {run.path}")
    show_next("report", run.path)
