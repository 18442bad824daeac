"""What the commands share: the program, options that many of them take, and how they show things."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tinlab import __version__, terminal
from tinlab.errors import TinlabError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, measure, explain and compare image classifiers on small images.",
)
data_commands = typer.Typer(no_args_is_help=True, help="Get, pack, check and look at data.")
results_commands = typer.Typer(no_args_is_help=True, help="The rows of results.csv.")
app.add_typer(data_commands, name="data")
app.add_typer(results_commands, name="results")

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


def write_picture(picture: Any, out: Path, json: bool, **more: Any) -> None:
    """Write a PIL image to `out`, and say where it is; in JSON with `more`."""
    from tinlab.files import write_atomically

    try:
        write_atomically(out, lambda path: picture.save(path, format="PNG"))
    except OSError as error:
        raise TinlabError(f"{out} cannot be written: {error.strerror or error}") from error
    if json:
        size = {"width": picture.width, "height": picture.height}
        terminal.show_json({"picture": str(out.resolve()), **size, **more})
    else:
        print(f"picture: {out.resolve()}")


def show_metrics(measured: Any, split: str) -> None:
    low, high = measured.top1_interval_percent
    print(
        f"{split}: top-1 {measured.top1_percent:.2f}% (95% interval {low:.2f} to {high:.2f}), "
        f"top-5 {measured.top5_percent:.2f}%, loss {measured.loss:.4f}, {measured.images:,} images"
    )
