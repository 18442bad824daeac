"""What the commands share: the program, options that many of them take, and how they show things."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
results_commands = typer.Typer()
app.add_typer(data_commands, name="data")
app.add_typer(results_commands, name="results")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="PATH", help="A pack or a data set. Default: $TINLAB_DATA, then the cache."
    ),
]
OtherDataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="PATH", help="A pack or a data set. Default: the pack trained on."),
]


def check_seed(seed: int | None) -> int | None:
    if seed is not None and not 0 <= seed < 2**63:
        raise TinlabError(f"--seed is a whole number from 0 to 2^63 - 1, not {seed}")
    return seed


def _seconds(seconds: float) -> float:
    if not 0 <= seconds < math.inf:
        raise TinlabError(f"--checkpoint-seconds are 0 or more, not {seconds:g}")
    return seconds


Seed = Annotated[int, typer.Option(callback=check_seed, help="Decides every random draw.")]
SeedOrNone = Annotated[
    int | None, typer.Option(callback=check_seed, help="Decides every random draw.  [default: 0]")
]
CheckpointSeconds = Annotated[float, typer.Option(callback=_seconds, help="Time between checkpoints.")]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where run folders are.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one field; repeatable.")
]
RUNS = Path("runs")

UsageError: Any = typer.BadParameter.__base__
"""What is raised for words on the command line that no command takes. typer has it from click, or carries it
under a name of its own."""


def usage_sentence(error: Any) -> str:
    """A UsageError as one sentence; empty where its help has been shown in its place."""
    said = " ".join(str(error.format_message()).split()).rstrip(".")
    if not said or type(error).__name__ == "NoArgsIsHelpError":
        return ""
    help = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
    return said[:1].lower() + said[1:] + help


@app.callback(invoke_without_command=True)
def _tinlab(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        terminal.show(f"tinlab {__version__}")
        raise typer.Exit


def show_next(*words: object) -> None:
    """The command to go on with, quoted for a shell."""
    terminal.show(f"next: {shlex.join(['tinlab', *map(str, words)])}")


def write_picture(picture: Any, out: Path, json: bool, **more: Any) -> None:
    """Write a PIL image to `out`, and say where it is; in JSON with `more`."""
    save_picture(picture, out)
    if json:
        size = {"width": picture.width, "height": picture.height}
        terminal.show_json({"picture": str(out.resolve()), **size, **more})
    else:
        terminal.show(f"picture: {out.resolve()}")


def no_folder(out: Path | None, name: str, option: str = "--out") -> None:
    """Raise TinlabError where the file to write is a folder: before the work, and not after it."""
    if out is not None and out.is_dir():
        raise TinlabError(f"{option} {out} is a folder; name a file, such as {out / name}")


def save_picture(picture: Any, out: Path) -> None:
    """Write a PIL image to `out`, as PNG."""
    from tinlab.files import write_atomically

    try:
        write_atomically(out, lambda path: picture.save(path, format="PNG"))
    except OSError as error:
        raise TinlabError(f"{out} cannot be written: {error.strerror or error}") from error


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars for work that counts (what, images done, images in all): a new one for each `what`."""
    with ExitStack() as stack:
        shown: dict[str, Callable[[int, int | None], None]] = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in shown:
                stack.pop_all().close()
                shown.clear()
                shown[what] = stack.enter_context(terminal.counting(what))
            shown[what](done, total)

        yield watch


def between(interval: tuple[float, float], digits: int) -> str:
    """An interval, in brackets."""
    low, high = interval
    return f"({low:.{digits}f} to {high:.{digits}f})"


def show_metrics(measured: Any, split: str) -> None:
    low, high = measured.top1_interval_percent
    terminal.show(
        f"{split}: top-1 {measured.top1_percent:.2f}% (95% interval {low:.2f} to {high:.2f}), "
        f"top-5 {measured.top5_percent:.2f}%, loss {measured.loss:.4f}, {measured.images:,} images"
    )


def split_auto(assignments: list[str]) -> tuple[list[str], bool]:
    """`assignments` of --set without `batch_size=auto` or `schedule.batch_size=auto`, and whether that was
    the last one for the batch size. `batch_size` alone is short for that field with a number, too."""
    kept, automatic = [], False
    for assignment in assignments:
        path, _, value = assignment.partition("=")
        if path in ("batch_size", "schedule.batch_size"):
            automatic = value.strip() == "auto"
            assignment = f"schedule.batch_size={value}"
            if automatic:
                continue
        kept.append(assignment)
    return kept, automatic


def with_fitting_batch(recipe: Any, pack: Any, device: str, *, scale_lr: bool = False) -> Any:
    """`recipe` with the largest batch that fits into memory, and say what was found."""
    from tinlab.compute import resolve_device
    from tinlab.training.batch_size import find_batch_size, with_batch_size
    from tinlab.training.memory import gigabytes

    found = find_batch_size(recipe, pack, resolve_device(device))
    new = with_batch_size(recipe, found.batch_size, scale_lr=scale_lr)
    rate, before = new.optimizer.peak_lr, recipe.optimizer.peak_lr
    terminal.say(
        f"batch size: {found.batch_size}, {found.why}; about {gigabytes(found.bytes_needed)} at most of "
        f"{gigabytes(found.bytes_allowed)} (the recipe has {recipe.schedule.batch_size})"
    )
    if new.schedule.batch_size != recipe.schedule.batch_size:
        terminal.say(
            f"learning rate: {rate:g}, scaled from {before:g}"
            if scale_lr
            else f"learning rate: {rate:g} as before; --scale-lr scales it with the batch"
        )
        if recipe.schedule.steps is not None:
            terminal.say(f"steps: {recipe.schedule.steps} as before, each on another number of images")
    return new
