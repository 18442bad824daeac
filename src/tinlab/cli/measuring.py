"""Commands that measure runs and show them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinlab import terminal
from tinlab.cli.common import (
    RUNS,
    AsJson,
    Device,
    OtherDataOption,
    Out,
    RunArgument,
    app,
    bars,
    between,
    no_folder,
    results_commands,
    save_picture,
)
from tinlab.errors import TinlabError

if TYPE_CHECKING:
    from tinlab.evaluating import Evaluation, Robustness

TTA_WORDS = {"flip": "flip, mean of 2", "shift": "flip and shift, mean of 10"}
"""What heads the column of a test-time augmentation."""


@app.command()
def evaluate(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="Which labelled split.")] = "val",
    tta: Annotated[
        bool, typer.Option("--tta", help="Also average over the mirror image, and over shifts by 2 pixels.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Also fit a temperature on tune, where that was held out.")
    ] = False,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Also measure under 15 corruptions in 5 strengths.")
    ] = False,
    images: Annotated[
        int | None, typer.Option(min=1, help="For --corruptions: so many images, as many of every class.")
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="For --corruptions: a picture of what they do to two images."),
    ] = None,
    data: OtherDataOption = None,
    device: Device = "auto",
    classes: Annotated[bool, typer.Option("--classes", help="List every class.")] = False,
    json: AsJson = False,
) -> None:
    """Measure a run: logits are saved once, and read after that. What an option added stays."""
    from tinlab.data.pack import Pack
    from tinlab.data.places import open_data
    from tinlab.evaluating import evaluate as measure_run
    from tinlab.evaluation.corruption_gallery import corruption_gallery
    from tinlab.runs import open_run

    for name, given in (("--images", images), ("--gallery", gallery)):
        if given is not None and not corruptions:
            raise TinlabError(f"{name} goes with --corruptions")
    no_folder(gallery, "gallery.png", "--gallery")
    opened = open_run(run)
    pack = open_data(data) if data is not None else None
    with bars() as watch:
        found = measure_run(
            run,
            split=split,
            pack=pack,
            device=device,
            tta=tta or None,
            calibrate=calibrate or None,
            corruptions=corruptions or None,
            images=images,
            watch=watch,
        )
    if json:
        terminal.show_json(found.to_json() | ({"gallery": str(gallery.resolve())} if gallery else {}))
    else:
        _show_scores(found)
        _show_calibration(found)
        _show_classes(found, every=classes)
        if found.robustness is not None:
            _show_robustness(found.robustness)
    if gallery is not None:
        save_picture(corruption_gallery(pack or Pack.open(opened.pack), split=split), gallery)
        if not json:
            terminal.show(f"gallery: {gallery.resolve()}")


def _show_scores(found: Evaluation) -> None:
    columns = {"as it is": found.scores}
    columns |= {TTA_WORDS.get(name, name): of for name, of in found.tta.items()}
    terminal.show_table(
        ("", *columns),
        [
            ("top-1 %", *(_with(of.top1_percent, of.top1_interval_percent, 2) for of in columns.values())),
            ("top-5 %", *(_with(of.top5_percent, of.top5_interval_percent, 2) for of in columns.values())),
            ("loss", *(_with(of.loss, of.loss_interval, 3) for of in columns.values())),
        ],
        title=f"{found.split}, {found.scores.images:,} images, with 95% bootstrap intervals over images",
    )
    for note in found.notes:
        terminal.show(f"note: {note}")


def _with(value: float, interval: tuple[float, float], digits: int) -> str:
    return f"{value:.{digits}f} {between(interval, digits)}"


def _show_calibration(found: Evaluation) -> None:
    terminal.show()
    fitted = found.temperature
    columns = {"as it is": found.calibration}
    if fitted is not None:
        columns[f"logits / {fitted.temperature:.3f}"] = fitted.after
    shown = columns.values()
    terminal.show_table(
        ("calibration", *columns),
        [
            ("mean confidence %", *(f"{of.mean_confidence_percent:.2f}" for of in shown)),
            ("top-1 %", *(f"{of.top1_percent:.2f}" for of in shown)),
            ("calibration error (ECE) %", *(f"{of.error_percent:.2f}" for of in shown)),
            ("with bins of equal mass %", *(f"{of.adaptive_error_percent:.2f}" for of in shown)),
            ("Brier score, 0 to 2", *(f"{of.brier:.4f}" for of in shown)),
            ("loss", *(f"{of.loss:.4f}" for of in shown)),
        ],
        right=tuple(columns),
    )
    if fitted is not None:
        terminal.show(f"temperature fitted on the {fitted.fitted_images:,} images of {fitted.fitted_on}")
        if fitted.at_limit:
            terminal.show("it is the end of the range that was searched: the loss still fell there")
    elif found.temperature_note is not None:
        terminal.show(found.temperature_note)


def _show_classes(found: Evaluation, *, every: bool) -> None:
    from tinlab.data.words import short_names
    from tinlab.runs import open_run

    terminal.show()
    names = short_names(open_run(found.run).classes)
    best, worst = found.classes[:5], found.classes[-5:]
    if every or len(found.classes) <= 10:
        best, worst = found.classes, ()
    rows = [
        (
            f"{row.top1_percent:.0f}%",
            names[row.label],
            "" if row.taken_for is None else f"{names[row.taken_for]} ({row.taken_images} of {row.images})",
        )
        for row in (*best, *worst)
    ]
    if worst:
        rows.insert(len(best), ("…", "", ""))
    terminal.show_table(("top-1", "class", "most often taken for"), rows, right=("top-1",))
    if not found.confusions:
        return
    terminal.show()
    # The other direction of a pair stands in its row, and needs none of its own.
    order = {(row.true, row.predicted): place for place, row in enumerate(found.confusions)}
    shown = [
        row
        for place, row in enumerate(found.confusions)
        if order.get((row.predicted, row.true), place) >= place
    ]
    terminal.show_table(
        ("most confused: true", "taken for", "images", "the other way"),
        [
            (
                names[row.true],
                names[row.predicted],
                f"{row.images} of {row.of_images}",
                f"{row.images_back} of {row.of_images_back}",
            )
            for row in shown[:10]
        ],
        right=("images", "the other way"),
    )


def _show_robustness(found: Robustness) -> None:
    terminal.show()
    columns = ("group", "corruption", "1", "2", "3", "4", "5", "mean")
    rows: list[tuple[str, ...]] = []
    for row in found.corruptions:
        first = not rows or all(row.group != seen[0] for seen in rows)
        strengths = (f"{value:.1f}" for value in row.top1_percent)
        rows.append(
            (
                row.group if first else "",
                row.name.replace("_", " "),
                *strengths,
                f"{row.mean_top1_percent:.1f}",
            )
        )
    title = f"top-1 in percent of {found.images:,} images of {found.split}, corrupted, by strength"
    terminal.show_table(columns, rows, right=columns[2:], title=title)
    terminal.show(
        "means: " + ", ".join(f"{name} {value:.1f}%" for name, value in found.group_top1_percent.items())
    )
    terminal.show(
        f"mean corruption accuracy {found.mean_top1_percent:.2f}% "
        f"{between(found.mean_top1_interval_percent, 2)}, "
        f"{found.drop_points:.2f} points {between(found.drop_interval_points, 2)} below the "
        f"{found.clean_top1_percent:.2f}% of the same images as they are"
    )
    terminal.show("strengths are tinlab's own, for small images: not to be compared with ImageNet-C")


@app.command()
def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN…", help="Run folders; with --study, by default some of the study's."),
    ] = None,
    study: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A study's folder: its table and chart on top.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Default: RUN/report.html; report.html here for several; FOLDER/report.html for a study.",
        ),
    ] = None,
    data: OtherDataOption = None,
    explain: Annotated[
        bool,
        typer.Option("--explain/--no-explain", help="Explain a handful of images, which takes some seconds."),
    ] = True,
    device: Device = "auto",
    json: AsJson = False,
) -> None:
    """Write a page on a run, or one that compares several: one self-contained HTML file."""
    from tinlab.data.places import open_data
    from tinlab.report.page import write_report
    from tinlab.runs import open_run, pack_of

    folders = list(runs or [])
    if not folders and study is None:
        raise TinlabError("no run is named; 'tinlab runs' lists those there are")
    part = None
    if study is not None:
        from tinlab.study.page import read_part

        part, own = read_part(study)
        folders = folders or own
        out = out or study / "report.html"
    pack = open_data(data) if data is not None else None
    for folder in folders if pack is None else ():
        try:
            pack_of(open_run(folder))
        except TinlabError as error:
            terminal.say(f"without pictures of {folder.name}: {error}")
    page = write_report(folders, out=out, pack=pack, explain=explain, study=part, device=device)
    if json:
        terminal.show_json({"report": str(page.resolve()), "runs": [str(folder) for folder in folders]})
    else:
        terminal.show(f"report: {page.resolve()}")


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
                "split": result.get("split"),
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
        (f"run in {out}", "top-1", "of", "epochs", "minutes", "started (UTC)"),
        [
            (
                Path(r["run"]).name,
                f"{r['top1_percent']:.2f}%" if r["finished"] else "unfinished",
                r["split"] or "",
                f"{r['epochs']:.1f}",
                f"{r['train_minutes']:.1f}",
                r["started_at"][:16].replace("T", " "),
            )
            for r in rows
        ],
        right=("top-1", "epochs", "minutes"),
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
        terminal.show(f"{path}: {row['recipe']}, seed {row['seed']}: {row['top1_percent']:.2f}%")
