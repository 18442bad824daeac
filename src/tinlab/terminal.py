"""What a person sees in the terminal: progress bars, tables, one line for an error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tinlab.files import harmless, plain

if TYPE_CHECKING:
    from tinlab.training.progress import Progress as Standing
    from tinlab.training.progress import Watcher

LINE_SECONDS = 30
"""How often progress is written as a line where the output is no terminal."""

FILE_COLUMNS = 160
"""Width of a table where the output is no terminal."""

out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else FILE_COLUMNS)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def say(text: str) -> None:
    """A line of progress, on standard error: standard output is for results."""
    err.print(Text(plain(text)))


def show(text: str = "") -> None:
    """A line of results, on standard output."""
    print(plain(text))


def show_json(value: Any) -> None:
    """One JSON value on standard output; what could drive a terminal is escaped in its strings."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    print("".join(c if harmless(c) else json.dumps(c)[1:-1] for c in text))


def one_line(message: str, most: int = 1000) -> str:
    """`message` without control characters and line breaks; of one longer than `most` characters, which a
    stranger's names can make, the beginning and the end."""
    line = " ".join(plain(message).split())
    return line if len(line) <= most else f"{line[: most - 300]} … {line[-297:]}"


def show_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    right: Sequence[str] = (),
    title: str | None = None,
) -> None:
    """A table on standard output; the columns named in `right` are aligned to the right."""
    heading = None if title is None else Text(plain(title), style="table.title")
    table = Table(title=heading, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(Text(plain(column)), justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain("" if cell is None else str(cell))) for cell in row))
    out.print(table)


def show_layers(network: dict[str, Any]) -> None:
    """A network's layers and what they cost: a summary with name, source and options, as a dict."""
    rows = [
        (
            layer["name"],
            layer["kind"],
            "x".join(map(str, layer["output"])),
            f"{layer['parameters']:,}" if layer["parameters"] else "",
            f"{layer['multiply_adds']:,}" if layer["multiply_adds"] else "",
        )
        for layer in network["layers"]
    ]
    total = ("", "", "", f"{network['parameters']:,}", f"{network['multiply_adds']:,}")
    columns = ("layer", "what", "output", "parameters", "multiply-adds")
    show_table(columns, [*rows, total], right=columns[2:], title=f"{network['model']}: {network['summary']}")
    out.print(Text(plain(f"from {network['source']}")))
    shown = ", ".join(f"{name}={_short(value)}" for name, value in network["options"].items())
    out.print(Text(plain(f"options: {shown or 'none of its own'}")))
    kept = network["activation_bytes"] / 1e6
    out.print(Text(f"a training step keeps {kept:.2f} MB of activations an image, in bf16"))
    if network["expected_blocks"] < network["blocks"]:
        out.print(
            Text(f"{network['expected_blocks']:.2f} of {network['blocks']} blocks run in a step on average")
        )
    if speed := network.get("train_images_per_second"):
        out.print(Text(f"{speed:,.0f} images/s in training steps on this machine"))


def _short(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | tuple) else str(value)


@contextmanager
def counting(what: str, unit: str = "images") -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar for work that counts (done, total), or a line now and then where the output is no
    terminal. Nothing is shown where there is nothing to do."""
    scale, name = (1e6, "MB") if unit == "bytes" else (1, unit)

    def amount(done: int, total: int | None) -> str:
        return f"{done / scale:,.0f}" + (f" of {total / scale:,.0f}" if total else "") + f" {name}"

    if not err.is_terminal:
        begun = last = time.monotonic()

        def write(done: int, total: int | None) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= LINE_SECONDS:
                last = now
                left = f" · {_clock((total - done) * (now - begun) / done)} left" if total and done else ""
                say(f"{what}: {amount(done, total)}{left}")

        yield write
        return
    with _bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        _Left(),
    ) as bar:
        task = bar.add_task(plain(what), total=None, visible=False, count="")

        def count(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=True, count=amount(done, total))

        yield count


@contextmanager
def training() -> Iterator[Watcher]:
    """The training's progress bar, or a line now and then where the output is no terminal."""
    if not err.is_terminal:
        yield _Lines()
        return
    with _bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[numbers]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        expand=True,
    ) as bar:
        task = bar.add_task("train", total=None, numbers="", left="")

        def watch(progress: Standing) -> None:
            bar.update(
                task,
                total=progress.total_steps,
                completed=progress.step,
                description=f"epoch {progress.epoch:.1f}",
                numbers=plain(_numbers(progress)),
                left=f"{_clock(progress.seconds_left)} left",
            )

        yield watch


class _Lines:
    """Progress as lines, for logs."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, progress: Standing) -> None:
        done = progress.step == progress.total_steps
        if time.monotonic() - self._last >= LINE_SECONDS or done:
            self._last = time.monotonic()
            say(
                f"step {progress.step} of {progress.total_steps} · epoch {progress.epoch:.2f} · "
                f"{_numbers(progress)} · {_clock(progress.seconds_left)} left"
            )


def _numbers(progress: Standing) -> str:
    text = "" if progress.stage is None else f"{progress.stage} · "
    text += f"{progress.images_per_second:,.0f} images/s · loss {progress.loss:.3f}"
    text += f" · train {progress.top1_percent:.1f}%"
    if progress.held_out_top1_percent is not None:
        text += f" · {progress.held_out} {progress.held_out_top1_percent:.1f}%"
    return text


class _Left(ProgressColumn):
    """Time left, by the speed so far."""

    def render(self, task: Task) -> Text:
        if not task.total or not task.completed or task.elapsed is None:
            return Text("")
        if task.finished:
            return Text(_clock(task.finished_time or task.elapsed), style="dim")
        return Text(_clock((task.total - task.completed) * task.elapsed / task.completed) + " left")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _bar(*columns: ProgressColumn, expand: bool = False) -> Progress:
    return Progress(*columns, console=err, disable=not err.is_terminal, expand=expand, refresh_per_second=4)


def fail(message: str, exit_code: int) -> int:
    """Print one line of error and return the exit code."""
    err.print(Text("tinlab: ", style="bold red") + Text(one_line(message)))
    sys.stdout.flush()
    return exit_code
