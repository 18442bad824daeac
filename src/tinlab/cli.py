"""The command line: each command calls one library function and shows what it returns.

Modules that take long to import are imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tinlab import __version__, terminal
from tinlab.errors import TinlabError
from tinlab.tuning import tune_process

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, measure, explain and compare image classifiers on small images.",
)
data = typer.Typer(no_args_is_help=True, help="Get, pack, check and look at data.")
results = typer.Typer(no_args_is_help=True, help="The rows of results.csv.")
app.add_typer(data, name="data")
app.add_typer(results, name="results")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="PATH", help="A pack or a data set. Default: $TINLAB_DATA, then the cache."
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where run folders are.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
RUNS = Path("runs")


@app.callback(invoke_without_command=True)
def _tinlab(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"tinlab {__version__}")
        raise typer.Exit


@app.command()
def demo(
    data: DataOption = None, out: Out = RUNS, seed: int = 0, device: Device = "auto", json: AsJson = False
) -> None:
    """The main job, end to end, in about two minutes: data, pack, train, evaluate, report."""
    from tinlab.demo import demo as run_demo

    with terminal.counting("prepare the images") as count, terminal.training() as watch:
        made = run_demo(data, out=out, seed=seed, device=device, say=terminal.say, count=count, watch=watch)
    if json:
        terminal.show_json({"run": str(made.run.path), "report": str(made.report), "result": made.run.result})
        return
    _show_metrics(made.metrics, "val")
    print(f"report: {made.report.resolve()}")


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A name, or a recipe.json.")] = None,
    data: DataOption = None,
    out: Out = RUNS,
    seed: Annotated[int, typer.Option(help="Decides every random draw.")] = 0,
    device: Device = "auto",
    set: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one field; repeatable.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with this run.")] = None,
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="Time between checkpoints.")] = 300,
    json: AsJson = False,
) -> None:
    """Train a recipe, and measure it on val."""
    from tinlab import recipes
    from tinlab.data.pack import Pack
    from tinlab.data.places import open_data
    from tinlab.training import loop

    if (recipe is None) == (resume is None):
        raise TinlabError("name a recipe ('tinlab recipes' lists them), or a run with --resume, and not both")
    if resume is not None and set:
        raise TinlabError("--resume goes on with the run's own recipe; --set changes a new run")

    def started(run: Any) -> None:
        terminal.say(f"run: {run.path}")

    pack: Pack | None
    if resume is not None:
        pack = open_data(data) if data else None
        with terminal.training() as watch:
            run = loop.resume(
                resume, pack=pack, device=device, checkpoint_seconds=checkpoint_seconds, watch=watch
            )
    else:
        assert recipe is not None
        chosen, foreign = recipes.with_changes(recipes.find(recipe), set or [])
        if foreign:
            terminal.say(f"left out, as {chosen.model.name} has none: {', '.join(foreign)}")
        with terminal.counting("pack the images") as count:
            pack = open_data(data, progress=count)
        with terminal.training() as watch:
            run = loop.train(
                chosen,
                pack,
                out,
                seed=seed,
                device=device,
                checkpoint_seconds=checkpoint_seconds,
                watch=watch,
                started=started,
            )
    result = run.result or {}
    if json:
        terminal.show_json({"run": str(run.path), **result})
        return
    print(
        f"{result['split']}: top-1 {result['top1_percent']:.2f}%, top-5 {result['top5_percent']:.2f}%, "
        f"loss {result['loss']:.4f}, {result['train_seconds'] / 60:.1f} minutes of training"
    )
    if "measured_blocks" in result:
        print(
            f"depth: {result['measured_blocks']:.2f} of {result['blocks']} blocks ran in a step on average, "
            f"{result['expected_blocks']:.2f} expected"
        )
    print(f"run: {run.path}")
    print(f"next: tinlab report {run.path}")


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
    add_results: Annotated[bool, typer.Option("--add-results", help="Add rows to results.csv.")] = False,
    device: Device = "auto",
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="Time between checkpoints.")] = 300,
    json: AsJson = False,
) -> None:
    """Train recipes times seeds, and compare them. Given again, it goes on where it was."""
    from tinlab.results import record, results_file
    from tinlab.study import plan, summary
    from tinlab.study.attempt import share_of_cores
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
    done = run_study(
        chosen.model_copy(update=changes),
        out / changes.get("name", chosen.name),
        _study_settings(
            data, device, checkpoint_seconds, cpus or (1 if cluster else share_of_cores(jobs)), gpus
        ),
        jobs=jobs,
        cluster=cluster,
        retry=retry,
        say=terminal.say,
    )
    lines = summary.summarise(done)
    page = write_study(done, lines)
    added = 0
    for row in done.rows if add_results else ():
        if row.run is not None and row.status == "finished":
            try:
                record(done.folder / row.run, results_file())
                added += 1
            except TinlabError as error:
                terminal.say(f"not added: {error}")
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
        print(summary.interval_note(lines, len(done.study.seeds)))
        if add_results:
            print(f"{results_file()}: {added} rows added")
        print(f"chart: {done.folder / 'chart.png'}")
        print(f"report: {page}")
    if not any(line.spread for line in lines):
        raise typer.Exit(1)


@app.command()
def search(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name, or a recipe.json.")],
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space", metavar="PATH=LOW:HIGH[:log]", help="What may change; or PATH=A|B|…; repeatable."
        ),
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one field; repeatable.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many in all, with those of before.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="The seed of every trial's training.")] = 0,
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
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="Time between checkpoints.")] = 300,
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
        print(", ".join(f"{count} trials {state}" for state, count in found.counts.items()))
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
                print("importance: needs at least four finished trials that differ")
            print(f"best: tune top-1 {found.top1_percent:.2f}%: {found.best_file}")
            print(f"chart: {found.folder / 'search.png'}")
            print(f"next: tinlab train {found.best_file}")
    if found.best is None:
        raise typer.Exit(1)


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
    _show_metrics(measured, split)
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


@app.command(name="recipes")
def list_recipes(
    name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Print this one whole.")] = None,
    json: AsJson = False,
) -> None:
    """List the recipes with what their papers report and what was measured here, or print one."""
    from tinlab import recipes
    from tinlab.results import mean_top1_percent

    if name is not None:
        terminal.show_json(recipes.find(name).model_dump(mode="json"))
        return
    ours = mean_top1_percent()
    rows: list[dict[str, Any]] = []
    for key, make in recipes.RECIPES.items():
        recipe = make()
        rows.append(
            {
                "name": key,
                "summary": recipe.summary,
                "paper": f"{recipe.paper.authors}, {recipe.paper.title}" if recipe.paper else None,
                "reported_val_top1_percent": recipe.paper.reported.get("val_top1_percent")
                if recipe.paper
                else None,
                "ours_val_top1_percent": ours.get(recipe.digest),
                "digest": recipe.digest,
            }
        )
    if json:
        terminal.show_json(rows)
        return
    terminal.show_table(
        ("recipe", "what", "paper", "reported", "ours"),
        [
            (
                r["name"],
                r["summary"],
                r["paper"] or "",
                _percent(r["reported_val_top1_percent"]),
                _percent(r["ours_val_top1_percent"]),
            )
            for r in rows
        ],
        right=("reported", "ours"),
    )


@app.command(name="models")
def list_models(
    name: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Draw its layers; also torchvision:NAME, timm:NAME.")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Change a field, such as model.width=32; repeatable."
        ),
    ] = None,
    image_size: Annotated[int, typer.Option(min=8, max=1024, help="Side in pixels.")] = 64,
    classes: Annotated[int, typer.Option(min=2, help="Outputs.")] = 200,
    speed: Annotated[bool, typer.Option("--speed", help="Measure images/s of training steps here.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="For --speed.")] = 128,
    device: Device = "auto",
    json: AsJson = False,
) -> None:
    """List the networks with what they cost, or draw the layers of one."""
    from tinlab import models, networks
    from tinlab.compute import resolve_device

    if name in ("torchvision:", "timm:"):
        listed = models.zoo.names(name.removesuffix(":"))
        if json:
            terminal.show_json(listed)
        else:
            print("\n".join(listed))
        return
    how: dict[str, Any] = {"classes": classes, "image_size": image_size, "batch_size": batch_size}
    timed_on = resolve_device(device) if speed else None
    if name is not None:
        found = networks.describe(name, set or [], timed_on=timed_on, **how)
        (terminal.show_json if json else terminal.show_layers)(found)
        return
    rows = networks.catalogue(set or [], timed_on=timed_on, say=terminal.say, **how)
    if json:
        terminal.show_json(rows)
        return
    columns = ("network", "what", "parameters", "multiply-adds", "activations", "images/s")[
        : 6 if speed else 5
    ]
    terminal.show_table(
        columns,
        [
            (
                r["model"],
                r["summary"],
                f"{r['parameters'] / 1e6:,.2f} M",
                f"{r['multiply_adds'] / 1e6:,.0f} M",
                f"{r['activation_bytes'] / 1e6:.2f} MB",
                *([_count(r["train_images_per_second"])] if speed else []),
            )
            for r in rows
        ],
        right=columns[2:],
    )
    pixels = f"{image_size}x{image_size}"
    print(f"For an image of {pixels} pixels; activations are what training keeps of one, in bf16.")
    print("More: torchvision:NAME and timm:NAME; 'tinlab models timm:' lists them.")


@app.command()
def augment(
    policy: Annotated[
        str | None, typer.Argument(metavar="[POLICY]", help="A policy's name, or a recipe's.")
    ] = None,
    data: DataOption = None,
    split: str = "train",
    images: Annotated[int, typer.Option(help="Rows.")] = 8,
    columns: Annotated[int, typer.Option(help="Pictures a row; the first is the stored image.")] = 8,
    size: Annotated[
        int | None,
        typer.Option(min=8, max=1024, help="Training size in pixels. Default: the stored one."),
    ] = None,
    seed: int = 0,
    out: Annotated[Path, typer.Option(metavar="PNG")] = Path("augment.png"),
    json: AsJson = False,
) -> None:
    """List the augmentation policies, or write a picture of what one does to some images."""
    from tinlab import recipes
    from tinlab.recipe import POLICIES

    if policy is None:
        listed = {name: make() for name, make in POLICIES.items()}
        if json:
            terminal.show_json({n: [o.model_dump(mode="json") for o in made] for n, made in listed.items()})
            return
        for name, made in listed.items():
            print(name)
            for operation in made:
                print("\n".join("    " + line for line in operation.lines()))
        return

    from tinlab.augment.gallery import gallery
    from tinlab.data.places import open_data

    if policy not in POLICIES and policy not in recipes.RECIPES and not Path(policy).exists():
        raise TinlabError(
            f"there is no policy '{policy}'; there are {', '.join(POLICIES)}, and every recipe's"
        )
    operations = POLICIES[policy]() if policy in POLICIES else recipes.find(policy).augment
    picture = gallery(
        operations,
        open_data(data),
        split=split,
        images=images,
        columns=columns,
        size=size,
        seed=seed,
        title=policy,
    )
    if not json:
        print("\n".join(line for operation in operations for line in operation.lines()))
    _write_picture(picture, out, json)


@results.command(name="add")
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


@data.command()
def download(
    to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: the cache folder.")] = None,
    url: Annotated[str | None, typer.Option(help="A mirror of the official archive.")] = None,
    json: AsJson = False,
) -> None:
    """Fetch Tiny ImageNet's official archive, resumed after a break and verified by its content."""
    from tinlab.data import download as fetch

    with terminal.counting("download", "bytes") as count:
        path = fetch.download(to, url=url or fetch.OFFICIAL_URL, progress=count)
    if json:
        terminal.show_json({"archive": str(path)})
    else:
        print(f"archive: {path}")
        print(f"next: tinlab data pack {path}")


@data.command()
def render(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER")],
    classes: int = 20,
    train_per_class: int = 500,
    val_per_class: int = 50,
    test_images: int = 200,
    seed: int = 0,
    json: AsJson = False,
) -> None:
    """Draw a stand-in data set, in the official layout, for work without a network."""
    from tinlab.data import shapes

    with terminal.counting("draw the images") as count:
        made = shapes.render(
            folder,
            classes=classes,
            train_per_class=train_per_class,
            val_per_class=val_per_class,
            test_images=test_images,
            seed=seed,
            progress=count,
        )
    if json:
        terminal.show_json({"folder": str(made)})
    else:
        print(f"images: {made}")
        print(f"next: tinlab data pack {made}")


@data.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A zip, folder or parquet export.")],
    out: Annotated[Path | None, typer.Option(metavar="PACK", help="Default: in the cache folder.")] = None,
    image_size: Annotated[int, typer.Option(help="Side in pixels.")] = 64,
    tune_fraction: Annotated[float, typer.Option(help="Share of each class held out as 'tune'.")] = 0.1,
    val_fraction: Annotated[float, typer.Option(help="Share taken for 'val' where there is none.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Decides which images are held out.")] = 0,
    json: AsJson = False,
) -> None:
    """Decode a data set once, into a checksummed pack."""
    from tinlab.data import packing
    from tinlab.data.places import default_pack_place

    with terminal.counting("pack the images") as count:
        made = packing.pack(
            source,
            out or default_pack_place(source, image_size),
            image_size=image_size,
            tune_fraction=tune_fraction,
            val_fraction=val_fraction,
            seed=seed,
            progress=count,
        )
    counts = {name: split.count for name, split in made.info.splits.items()}
    if json:
        found = {"pack": str(made.path), "digest": made.digest, "reused": made.reused, "splits": counts}
        terminal.show_json({**found, "classes": len(made.info.classes), "source": made.info.source})
        return
    for note in made.info.notes:
        terminal.say(f"note: {note}")
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    print(f"pack: {made.path}{' (was there already)' if made.reused else ''}")
    print(f"{len(made.info.classes)} classes; {listed}")


@data.command()
def audit(
    pack: Annotated[str | None, typer.Argument(metavar="[PACK]", help="Default: as for --data.")] = None,
    near_duplicates: Annotated[bool, typer.Option(help="Look for nearly identical images too.")] = True,
    verify: Annotated[bool, typer.Option(help="Compare every file's digest first.")] = True,
    first: Annotated[int, typer.Option(min=0, help="How many of each kind to list.")] = 5,
    json: AsJson = False,
) -> None:
    """Find duplicates, conflicting labels, leaks between splits, greyscale and undersized classes."""
    from tinlab.data.audit import audit as check
    from tinlab.data.places import open_data

    opened = open_data(pack)
    if verify:
        opened.verify()
    with terminal.counting("audit", "steps") as count:
        found = check(
            opened, near_duplicates=near_duplicates, progress=lambda stage, done, total: count(done, total)
        )
    if json:
        terminal.show_json({**found.to_json(), "pack": str(opened.path)})
        return
    for line in found.lines(first=first):
        print(terminal.plain(line))


@data.command()
def show(
    pack: Annotated[str | None, typer.Argument(metavar="[PACK]", help="Default: as for --data.")] = None,
    split: str = "train",
    classes: Annotated[int, typer.Option(help="Rows.")] = 8,
    images: Annotated[int, typer.Option(help="Images a row.")] = 8,
    seed: int = 0,
    out: Annotated[Path, typer.Option(metavar="PNG")] = Path("grid.png"),
    json: AsJson = False,
) -> None:
    """Write a picture of some classes: their words and some of their images."""
    from tinlab.data.grid import pack_grid
    from tinlab.data.places import open_data

    picture = pack_grid(open_data(pack), split=split, classes=classes, images_per_class=images, seed=seed)
    _write_picture(picture, out, json)


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


def _write_picture(picture: Any, out: Path, json: bool) -> None:
    """Write a PIL image to `out`, and say where it is."""
    from tinlab.files import write_atomically

    try:
        write_atomically(out, lambda path: picture.save(path, format="PNG"))
    except OSError as error:
        raise TinlabError(f"{out} cannot be written: {error.strerror or error}") from error
    if json:
        terminal.show_json({"picture": str(out.resolve()), "width": picture.width, "height": picture.height})
    else:
        print(f"picture: {out.resolve()}")


def _show_metrics(measured: Any, split: str) -> None:
    low, high = measured.top1_interval_percent
    print(
        f"{split}: top-1 {measured.top1_percent:.2f}% (95% interval {low:.2f} to {high:.2f}), "
        f"top-5 {measured.top5_percent:.2f}%, loss {measured.loss:.4f}, {measured.images:,} images"
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}%"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def main() -> None:
    """Run the command line. Errors that a person can mend are one line; the exit code is then 2."""
    tune_process()
    # As an exception, so that what is half made is removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except TinlabError as error:
        sys.exit(terminal.fail(str(error), error.exit_code))
    except KeyboardInterrupt:
        sys.exit(terminal.fail("stopped", 130))
    except BrokenPipeError:
        sys.exit(141)
