"""Commands that measure runs and show them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tinlab import terminal
from tinlab.cli.common import (
    RUNS,
    AsJson,
    DataOption,
    Device,
    Out,
    RunArgument,
    app,
    results_commands,
    show_metrics,
)
from tinlab.errors import TinlabError


@app.command()
def evaluate(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="Which labelled split.")] = "val",
    data: DataOption = None,
    device: Device = "auto",
    classes: Annotated[bool, typer.Option("--classes", help="List every class.")] = False,
    json: AsJson = False,
) -> None:
    """Measure a run: logits are saved once, and read after that."""
    from tinlab.data.places import open_data
    from tinlab.evaluating import evaluate as measure_run
    from tinlab.runs import open_run

    opened = open_run(run)
    measured = measure_run(run, split=split, pack=open_data(data) if data else None, device=device)
    per_class = sorted(
        (
            (accuracy, c.id, c.words)
            for c, accuracy in zip(opened.classes, measured.per_class_percent, strict=True)
            if accuracy is not None
        ),
        key=lambda row: (-row[0], row[2]),
    )
    if json:
        found = {"run": str(run), "split": split, **measured.to_json()}
        found["classes_by_accuracy"] = [
            {"id": id, "words": words, "top1_percent": accuracy} for accuracy, id, words in per_class
        ]
        terminal.show_json(found)
        return
    show_metrics(measured, split)
    best, worst = per_class[:5], per_class[-5:]
    shown = per_class if classes or len(per_class) <= 10 else [*best, ("…", "", ""), *worst]
    rows = [(f"{a:.0f}%" if isinstance(a, float) else a, words) for a, _, words in shown]
    terminal.show_table(("top-1", "class"), rows, right=("top-1",))


@app.command()
def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: RUN/report.html.")] = None,
    data: DataOption = None,
    json: AsJson = False,
) -> None:
    """Write the run's page: one self-contained HTML file."""
    from tinlab.data.pack import Pack
    from tinlab.data.places import open_data
    from tinlab.report.page import write_report
    from tinlab.runs import open_run

    pack = open_data(data) if data else None
    if pack is None:
        opened = open_run(run)
        try:
            pack = Pack.open(opened.pack)
            if pack.digest != opened.pack_digest:
                raise TinlabError(f"{pack.path} has changed since {run} was trained on it")
        except TinlabError as error:
            terminal.say(f"without pictures: {error}")
            pack = None
    page = write_report(run, out=out, pack=pack)
    if json:
        terminal.show_json({"report": str(page.resolve())})
    else:
        print(f"report: {page.resolve()}")


@app.command()
def runs(out: Out = RUNS, json: AsJson = False) -> None:
    """List the runs, oldest first."""
    from tinlab.runs import list_runs

    rows: list[dict[str, Any]] = []
    for run in list_runs(out):
        result = run.result or {}
        last = (run.metrics() or [{}])[-1]
        rows.append(
            {
                "run": str(run.path),
                "recipe": run.recipe.name,
                "seed": run.seed,
                "finished": bool(result),
                "top1_percent": result.get("top1_percent"),
                "epochs": result.get("epochs", last.get("epoch", 0)),
                "train_minutes": round(result.get("train_seconds", last.get("train_seconds", 0)) / 60, 1),
                "started_at": run.started_at,
            }
        )
    if json:
        terminal.show_json(rows)
        return
    if not rows:
        terminal.say(f"no runs in {out}; 'tinlab train RECIPE' makes one")
        return
    terminal.show_table(
        (f"run in {out}", "val top-1", "epochs", "minutes", "started (UTC)"),
        [
            (
                Path(r["run"]).name,
                f"{r['top1_percent']:.2f}%" if r["finished"] else "unfinished",
                f"{r['epochs']:.1f}",
                f"{r['train_minutes']:.1f}",
                r["started_at"][:16].replace("T", " "),
            )
            for r in rows
        ],
        right=("val top-1", "epochs", "minutes"),
    )


@results_commands.command(name="add")
def add_result(
    run: RunArgument,
    file: Annotated[Path | None, typer.Option(metavar="CSV", help="Default: results/results.csv.")] = None,
    json: AsJson = False,
) -> None:
    """Add a finished run as a row."""
    from tinlab.results import record, results_file

    path = file or results_file()
    row = record(run, path)
    if json:
        terminal.show_json(row)
    else:
        print(f"{path}: {row['recipe']}, seed {row['seed']}: {row['top1_percent']:.2f}%")
