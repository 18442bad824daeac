"""Commands that run the papers' experiments, and set ours beside theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tinlab import terminal
from tinlab.cli.common import (
    RUNS,
    AsJson,
    Changes,
    CheckpointSeconds,
    DataOption,
    Device,
    Out,
    app,
    results_commands,
)
from tinlab.errors import TinlabError

AddResults = Annotated[
    bool,
    typer.Option(
        "--add-results",
        help="Add a row for each run as it ends, write RESULTS.md anew; what has one is not trained again.",
    ),
]
ResultsFile = Annotated[
    Path | None,
    typer.Option("--file", metavar="CSV", help="Where rows are. Default: results/results.csv."),
]


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="[PAPER|ROW]", help="Run these. Default: list all.")
    ] = None,
    data: DataOption = None,
    out: Out = RUNS,
    seeds: Annotated[
        str | None, typer.Option(metavar="N|LIST", help="How many, or which. Default: the row's own.")
    ] = None,
    set: Changes = None,
    budget: Annotated[
        float, typer.Option(metavar="FRACTION", help="Train for this share of the length.")
    ] = 1.0,
    jobs: Annotated[int, typer.Option(min=1, help="For studies: runs at a time.")] = 1,
    add_results: AddResults = False,
    file: ResultsFile = None,
    device: Device = "auto",
    checkpoint_seconds: CheckpointSeconds = 300,
    json: AsJson = False,
) -> None:
    """Run a paper's experiments as it reports them. Given again, it goes on where it was."""
    from tinlab.papers import registry

    rows = registry.rows_of(name)
    if name is None:
        for option, given in (
            ("--budget", budget != 1),
            ("--set", bool(set)),
            ("--seeds", seeds is not None),
            ("--jobs", jobs > 1),
        ):
            if given:
                raise TinlabError(f"{option} changes how a row is run; name a row or a paper")
        if add_results:
            raise TinlabError("--add-results adds what is run; name a row or a paper")
        _list(rows, file, out, json)
        return
    if jobs > 1 and not any(row.study for row in rows):
        raise TinlabError(f"--jobs is for studies, and {name} trains one network after another; leave it out")
    if not any(row.recipes or row.needs for row in rows):
        options = {"--budget": budget != 1, "--set": bool(set), "--seeds": seeds is not None}
        for option, given in options.items():
            if given:
                raise TinlabError(
                    f"{option} changes trainings, and {name} neither trains nor looks at one; leave it out"
                )
    _check_budget(budget)
    place = _place(file, add_results)
    _run(
        rows,
        data,
        out,
        seeds,
        tuple(set or ()),
        budget,
        jobs,
        place,
        device,
        checkpoint_seconds,
        json,
    )


def _check_budget(budget: float) -> None:
    from tinlab.recipes import LEAST_FRACTION

    if not LEAST_FRACTION <= budget <= 1:
        raise TinlabError(f"--budget is a share of the length, from {LEAST_FRACTION:g} to 1, not {budget:g}")


def _place(file: Path | None, add_results: bool) -> Path | None:
    """The file that rows are added to, or None; what is wrong with it is told before hours of training."""
    from tinlab.papers.measures import measures_file, read_measures
    from tinlab.papers.remarks import read_remarks, remarks_file
    from tinlab.papers.transfer import read_transfer, transfer_file
    from tinlab.papers.write import check_pages
    from tinlab.results import read_results, results_file

    if not add_results:
        if file is not None:
            raise TinlabError("--file says where rows are added; give --add-results with it")
        return None
    path = file or results_file()
    read_results(path)
    read_measures(measures_file(path))
    read_transfer(transfer_file(path))
    read_remarks(remarks_file(path))
    check_pages(path)
    return path


def _list(rows: Any, file: Path | None, out: Path, json: bool) -> None:
    from tinlab.papers.length import row_minutes, shown_minutes
    from tinlab.papers.measures import measures_file, read_measures
    from tinlab.papers.page import said
    from tinlab.papers.reproduce import status
    from tinlab.results import read_results, results_file

    path = file or results_file()
    lines, measured = read_results(path), read_measures(measures_file(path))
    found = [
        {
            "id": row.id,
            "what": row.what,
            "run_by": "recipe" if row.recipe else "study" if row.study else "command",
            "name": row.recipe or row.study or row.command,
            "reported": row.numbers,
            "needs_imagenet_weights": row.saw_imagenet,
            "needs": list(row.needs),
            "seeds": list(row.seeds),
            "expected_minutes": round(row_minutes(row), 1),
            "status": status(row, lines, measured.get(row.id, ()), out),
            "said": said(row),
        }
        for row in rows
    ]
    if json:
        terminal.show_json([{name: value for name, value in one.items() if name != "said"} for one in found])
        return
    terminal.show_table(
        ("row", "how", "time on 2 cores", "weights", "status", "what"),
        [
            (
                one["id"],
                one["run_by"],
                "" if one["run_by"] == "command" else shown_minutes(float(one["expected_minutes"])),
                "ImageNet" if one["needs_imagenet_weights"] else "",
                one["status"],
                one["what"],
            )
            for one in found
        ],
        right=("time on 2 cores",),
    )
    terminal.show(
        "next: tinlab reproduce ROW, or a paper: sun, ma, yu, shcherbina; --budget 0.1 for a tenth of it"
    )


def _run(
    rows: Any,
    data: str | None,
    out: Path,
    seeds: str | None,
    changes: tuple[str, ...],
    budget: float,
    jobs: int,
    results: Path | None,
    device: str,
    checkpoint_seconds: float,
    json: bool,
) -> None:
    from tinlab.cli.many import _study_settings
    from tinlab.data.pack import Pack
    from tinlab.environment import describe_pack
    from tinlab.papers.measures import measures_file, record_measures
    from tinlab.papers.reproduce import How, Reproduced
    from tinlab.papers.reproduce import reproduce as run_row
    from tinlab.results import images_of, of_tiny_imagenet, recorded
    from tinlab.study.attempt import share_of_cores
    from tinlab.study.plan import parse_seeds

    settings = _study_settings(data, device, checkpoint_seconds, share_of_cores(jobs), None)
    images = images_of(describe_pack(Pack.open(settings.pack)))
    how = How(
        settings=settings,
        out=out,
        seeds=None if seeds is None else parse_seeds(seeds),
        fraction=budget,
        changes=changes,
        jobs=jobs,
        recorded={} if results is None else recorded(results, images),
    )
    done: list[Reproduced] = []
    failed: dict[str, str] = {}

    def finished(run: Path) -> None:
        if results is not None:
            _add_run(run, results)

    for row in rows:
        try:
            with terminal.training() as watch:
                found = run_row(row, how, say=terminal.say, watch=watch, finished=finished)
        except TinlabError as error:
            if len(rows) == 1 or error.exit_code != 2:  # a signal ends all of it
                raise
            failed[row.id] = str(error)
            terminal.say(f"{row.id}: {error}")
            continue
        done.append(found)
        if found.failed:
            failed[row.id] = "; ".join(found.failed)
        if results is not None:
            if found.values and found.of and changes:
                terminal.say(f"{row.id}: not added, as it is of changed trainings")
            elif found.values and found.of and how.seeds and how.seeds[0] != 0:
                terminal.say(f"{row.id}: not added, as it is of trainings from seed {how.seeds[0]}, not 0")
            elif found.values and found.of and not of_tiny_imagenet(images):
                terminal.say(
                    f"{row.id}: not added, as its runs are of another pack than Tiny ImageNet's usual one"
                )
            elif found.values:
                share = budget if found.of else 1
                try:
                    record_measures(measures_file(results), found.row, found.values, found.of, share)
                except TinlabError as error:
                    terminal.say(f"{row.id}: not added: {error}")
            _write_pages(results)
    if json:
        terminal.show_json({"rows": [_answer(found) for found in done], "failed": failed})
    else:
        for found in done:
            _show(found)
        for name, why in failed.items():
            terminal.show(f"{name}: failed: {why}")
    if failed:
        raise typer.Exit(1)


def _answer(found: Any) -> dict[str, Any]:
    from tinlab.runs import open_run

    return {
        "row": found.row.id,
        "reported": found.row.numbers,
        "runs": [{"run": str(path), **(open_run(path).result or {})} for path in found.runs],
        "recorded": found.recorded,
        "measures": found.values,
    }


def _show(found: Any) -> None:
    from tinlab.papers.page import measure_words, said
    from tinlab.recipes import budget_of
    from tinlab.runs import open_run

    terminal.show(f"{found.row.id}: the paper: {said(found.row)}")
    for path in found.runs:
        run = open_run(path)
        result = run.result or {}
        budget = budget_of(run.recipe, result["epochs"])
        terminal.show(
            f"  {run.recipe.name}, seed {run.seed}: {result['split']} top-1 {result['top1_percent']:.2f}% in "
            f"{result['train_seconds'] / 60:.1f} minutes{f', budget: {budget}' if budget else ''}: {path}"
        )
    for line in found.recorded:
        terminal.show(f"  {line}; without --add-results it is run again")
    for measure, value in found.values.items():
        terminal.show(f"  {measure_words(measure)} {value:g}")
    if picture := found.answer.get("picture") or found.answer.get("report"):
        terminal.show(f"  made: {picture}")


def _add_run(run: Path, path: Path) -> None:
    """Put a finished run into `path`, and write the pages anew; what was there stays, without a word."""
    from tinlab.results import AlreadyRecorded, record

    try:
        row = record(run, path)
    except AlreadyRecorded:
        return
    except TinlabError as error:
        terminal.say(f"not added: {error}")
        return
    terminal.say(f"{path}: {row['recipe']}, seed {row['seed']}: {row['top1_percent']:.2f}%")
    _write_pages(path)


def _write_pages(path: Path) -> None:
    """Write the pages anew. What keeps them from being written is told, and ends no training: `tinlab
    results` writes them later."""
    from tinlab.papers.write import write_pages

    try:
        write_pages(path)
    except TinlabError as error:
        terminal.say(f"the pages were not written: {error}")


@results_commands.callback(invoke_without_command=True)
def results(
    context: typer.Context,
    file: Annotated[Path | None, typer.Option(metavar="CSV", help="Default: results/results.csv.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the pages go. Default: above a folder results, or beside the CSV.",
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Write RESULTS.md, docs/what-helps.md, docs/papers.md and results/figures/ from results.csv."""
    if context.invoked_subcommand is not None:
        if file is not None or out is not None or json:
            raise TinlabError(f"give options after '{context.invoked_subcommand}'")
        return
    from tinlab.papers.page import unexplained
    from tinlab.papers.write import write_pages
    from tinlab.results import results_file

    path = file or results_file()
    if file is not None and not file.is_file():
        raise TinlabError(f"there is no {file}; 'tinlab results add RUN' begins one")
    written, silent = write_pages(path, out, "--out"), unexplained(path)
    if json:
        terminal.show_json({"written": [str(one) for one in written], "below_without_remark": silent})
        return
    for one in written:
        terminal.show(str(one))
    for name in silent:
        terminal.show(f"{name} is below its paper's number, and no remark in results/remarks.toml says why")


@app.command()
def transfer(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name, or a recipe.json.")] = "fast_cpu",
    images: Annotated[
        str, typer.Option(metavar="LIST", help="Images a class of half B, such as 5,25.")
    ] = "5,25,50,500",
    data: DataOption = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where all of it goes.")] = Path("transfer"),
    seeds: Annotated[str, typer.Option(metavar="N|LIST", help="How many, or which, such as 0,5.")] = "1",
    set: Changes = None,
    budget: Annotated[
        float, typer.Option(metavar="FRACTION", help="Train for this share of the length.")
    ] = 1.0,
    add_results: AddResults = False,
    file: ResultsFile = None,
    device: Device = "auto",
    checkpoint_seconds: CheckpointSeconds = 300,
    json: AsJson = False,
) -> None:
    """Train on half of the classes, and fine-tune on the others, against from scratch."""
    from tinlab import recipes
    from tinlab.data.places import open_data
    from tinlab.papers.transfer import Trained, record_transfer, recorded_transfer, transfer_file
    from tinlab.papers.transfer import transfer as run_transfer
    from tinlab.study.plan import parse_seeds

    try:
        counts = tuple(int(one) for one in images.split(","))
    except ValueError:
        raise TinlabError(f"--images takes numbers, such as 5,25,50,500, not '{images}'") from None
    _check_budget(budget)
    place = _place(file, add_results)
    chosen, foreign = recipes.with_changes(recipes.find(recipe), set or [])
    if foreign:
        terminal.say(f"left out, as {chosen.model.name} has none: {', '.join(foreign)}")
    with terminal.counting("pack the images") as count:
        pack = open_data(data, progress=count)

    def finished(one: Trained) -> None:
        if place is None:
            return
        try:
            added = record_transfer(one, transfer_file(place))
        except TinlabError as error:
            terminal.say(f"not added: {error}")
            return
        if added:
            _write_pages(place)

    with terminal.training() as watch:
        lines = run_transfer(
            chosen,
            pack,
            out,
            images_per_class=counts,
            seeds=parse_seeds(seeds),
            fraction=budget,
            device=device,
            checkpoint_seconds=checkpoint_seconds,
            say=terminal.say,
            watch=watch,
            finished=finished,
            recorded={} if place is None else recorded_transfer(transfer_file(place), chosen, budget, pack),
        )
    if json:
        terminal.show_json([vars(line) for line in lines])
        return
    terminal.show_table(
        ("images a class of B", "fine-tuned from A", "from scratch", "gain"),
        [
            (
                line.images_per_class,
                *(
                    f"{one.mean:.2f}%" + ("" if one.deviation is None else f" ± {one.deviation:.2f}")
                    for one in line.spreads
                ),
                f"{line.spreads[0].mean - line.spreads[1].mean:+.2f}",
            )
            for line in lines
        ],
        right=("images a class of B", "fine-tuned from A", "from scratch", "gain"),
    )
    terminal.show(f"top-1 on B's validation images; the runs: {out / 'runs'}")
