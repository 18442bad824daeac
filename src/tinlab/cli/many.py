"""Commands that train many networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tinlab import terminal
from tinlab.cli.common import (
    AsJson,
    Changes,
    CheckpointSeconds,
    DataOption,
    Device,
    app,
    check_seed,
    show_next,
)
from tinlab.errors import TinlabError


@app.command()
def study(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME|FILE|RECIPE…", help="A study, its file, or recipes.")
    ],
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE,…", help="Try these values of a field; repeatable."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N|LIST", help="How many, or which, such as 0,5.  [default: 3]")
    ] = None,
    data: DataOption = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where studies are.")] = Path("studies"),
    name: Annotated[str | None, typer.Option(help="The study's folder. Default: as it is called.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time on this machine.")] = 1,
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Ray cluster; 'local' starts one here.")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="Cores for a run. Default: its share; on a cluster, 1.")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs for a run. Default: one, if there are; on a cluster, 0.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed runs again.")] = False,
    add_results: Annotated[
        bool, typer.Option("--add-results", help="Add a row for each run as it ends.")
    ] = False,
    device: Device = "auto",
    checkpoint_seconds: CheckpointSeconds = 300,
    json: AsJson = False,
) -> None:
    """Train recipes times seeds, and compare them. Given again, it goes on where it was."""
    from tinlab.results import record, results_file
    from tinlab.study import plan, summary
    from tinlab.study.attempt import Row, share_of_cores
    from tinlab.study.page import write_study
    from tinlab.study.run import run_study
    from tinlab.study.studies import STUDIES

    chosen = plan.find(names, STUDIES)
    grid = plan.parse_grid(set or [])
    changes: dict[str, Any] = {"grid": {**chosen.grid, **grid}}
    if seeds is not None:
        changes["seeds"] = plan.parse_seeds(seeds)
    if name is not None or grid:
        label = name or "-".join([chosen.name, *(path.rpartition(".")[2] for path in grid)])
        changes["name"] = plan.file_name(label)
    if jobs > 1 and cluster:
        raise TinlabError("--jobs is for this machine; on a cluster, --cpus and --gpus decide what fits")
    folder = out / changes.get("name", chosen.name)
    added = 0

    def add(row: Row) -> None:
        nonlocal added
        try:
            record(folder / str(row.run), results_file())
            added += 1
        except TinlabError as error:
            terminal.say(f"not added: {error}")

    done = run_study(
        chosen.model_copy(update=changes),
        folder,
        _study_settings(
            data, device, checkpoint_seconds, cpus or (1 if cluster else share_of_cores(jobs)), gpus
        ),
        jobs=jobs,
        cluster=cluster,
        retry=retry,
        say=terminal.say,
        finished=add if add_results else lambda row: None,
    )
    lines = summary.summarise(done)
    page = write_study(done, lines)
    if json:
        terminal.show_json(
            {
                "study": str(done.folder),
                "report": str(page),
                "recipes": [line.to_json() for line in lines],
                "runs": [row.model_dump(mode="json") for row in done.rows],
            }
        )
    else:
        terminal.show_table(
            ("recipe", "seeds", "val top-1", "difference", "minutes", "failed"),
            [
                (
                    line.recipe,
                    len(line.values),
                    summary.shown_mean(line),
                    summary.shown_difference(line),
                    "" if line.minutes is None else f"{line.minutes:.1f}",
                    line.failed or "",
                )
                for line in lines
            ],
            right=("seeds", "val top-1", "difference", "minutes", "failed"),
        )
        terminal.show(summary.interval_note(lines))
        if add_results:
            terminal.show(f"{results_file()}: {added} rows added")
        terminal.show(f"chart: {done.folder / 'chart.png'}")
        terminal.show(f"report: {page}")
    if not any(line.spread for line in lines):
        raise typer.Exit(1)


@app.command()
def search(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name, or a recipe.json.")],
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space",
            metavar="PATH=LOW:HIGH[:log]",
            help="What may change, in whole numbers where the field is one; or PATH=A|B|…; repeatable.",
        ),
    ] = None,
    set: Changes = None,
    trials: Annotated[int, typer.Option(min=1, help="How many in all, with those of before.")] = 20,
    seed: Annotated[
        int, typer.Option(callback=check_seed, help="Of every training; the values tried are drawn anew.")
    ] = 0,
    data: DataOption = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where searches are.")] = Path("searches"),
    name: Annotated[
        str | None, typer.Option(help="The search's folder, and its name in the storage.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Such as postgresql://…. Default: SQLite in the folder.")
    ] = None,
    pruner: Annotated[str, typer.Option(help="median, hyperband or none.")] = "median",
    jobs: Annotated[int, typer.Option(min=1, help="Trials at a time on this machine.")] = 1,
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores for a trial. Default: its share.")] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs for a trial. Default: one, if there are.")
    ] = None,
    device: Device = "auto",
    checkpoint_seconds: CheckpointSeconds = 300,
    json: AsJson = False,
) -> None:
    """Look for a recipe's best values by top-1 on tune. Given again, it goes on where it was."""
    from dataclasses import asdict

    from tinlab import recipes
    from tinlab.recipe import changed
    from tinlab.study import space as spaces
    from tinlab.study.attempt import share_of_cores
    from tinlab.study.plan import file_name
    from tinlab.study.search import PRUNERS
    from tinlab.study.search import search as run_search

    if pruner not in PRUNERS:
        raise TinlabError(f"--pruner is one of {', '.join(PRUNERS)}, not '{pruner}'")
    base = changed(recipes.find(recipe), set or [])
    parsed = spaces.parse_space(space or [])
    spaces.check_space(parsed, base)
    found = run_search(
        base,
        parsed,
        out / file_name(name or base.name),
        _study_settings(data, device, checkpoint_seconds, cpus or share_of_cores(jobs), gpus),
        number=trials,
        jobs=jobs,
        storage=storage,
        pruning=pruner,
        seed=seed,
        say=terminal.say,
    )
    if json:
        row = asdict(found) | {"folder": str(found.folder)}
        row["best"] = str(found.best_file) if found.best_file else None
        del row["best_file"]
        terminal.show_json(row)
    else:
        terminal.show(", ".join(f"{count} trials {state}" for state, count in found.counts.items()))
        if found.best is not None:
            terminal.show_table(
                ("field", "best", "importance"),
                [
                    (path, value, f"{found.importances[path]:.2f}" if path in found.importances else "")
                    for path, value in found.values.items()
                ],
                right=("best", "importance"),
            )
            if not found.importances:
                terminal.show("importance: needs at least four finished trials that differ")
            terminal.show(f"best: tune top-1 {found.top1_percent:.2f}%: {found.best_file}")
            terminal.show(f"chart: {found.folder / 'search.png'}")
            show_next("train", found.best_file)
    if found.best is None:
        raise typer.Exit(1)


def _study_settings(
    data: str | None, device: str, checkpoint_seconds: float, cpus: int, gpus: float | None
) -> Any:
    """How the runs of a study or a search are made."""
    from tinlab.data.places import open_data
    from tinlab.study.attempt import Settings

    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise TinlabError(f"--gpus is a share of one GPU or a whole number, not {gpus:g}")
    with terminal.counting("pack the images") as count:
        pack = open_data(data, progress=count)
    return Settings(
        pack=pack.path.resolve(),
        pack_digest=pack.digest,
        device=device,
        checkpoint_seconds=checkpoint_seconds,
        cpus=cpus,
        gpus=gpus,
    )
