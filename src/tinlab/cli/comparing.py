"""The command that compares runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinlab import terminal
from tinlab.cli.common import AsJson, Device, OtherDataOption, app, bars, between, no_folder, save_picture

if TYPE_CHECKING:
    from tinlab.evaluating import Comparison


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Two or more run folders.")],
    split: Annotated[str, typer.Option(help="Which labelled split.")] = "val",
    data: OtherDataOption = None,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PNG", help="A picture of images that only one of two gets right."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Compare runs on the same images: which is better, and do they err alike."""
    from tinlab.data.pack import Pack
    from tinlab.data.places import open_data
    from tinlab.evaluating import compare as compare_runs
    from tinlab.evaluating.comparing import disagreements
    from tinlab.runs import open_run

    no_folder(out, "compared.png")
    pack = open_data(data) if data is not None else None
    with bars() as watch:
        found = compare_runs(runs, split=split, pack=pack, device=device, watch=watch)
    if json:
        terminal.show_json(found.to_json() | ({"picture": str(out.resolve())} if out else {}))
    else:
        _show(found)
    if out is not None:
        save_picture(disagreements(found, pack or Pack.open(open_run(runs[0]).pack)), out)
        if not json:
            terminal.show(f"picture: {out.resolve()}")


def _show(found: Comparison) -> None:
    letters = [member.letter for member in found.members]
    terminal.show_table(
        ("", f"run, on {found.images:,} images of {found.split}", "top-1", "", "top-5", "loss"),
        [
            (
                letter,
                member.name,
                f"{member.scores.top1_percent:.2f}%",
                between(member.scores.top1_interval_percent, 2),
                f"{member.scores.top5_percent:.2f}%",
                f"{member.scores.loss:.4f}",
            )
            for letter, member in zip(letters, found.members, strict=True)
        ],
        right=("top-1", "top-5", "loss"),
    )
    for letter, member in zip(letters, found.members, strict=True):
        for note in member.notes:
            terminal.show(f"note: {letter}: {note}")
    terminal.show()
    columns = (
        "",
        "top-1, points",
        "",
        "McNemar p",
        "same answer",
        "both right",
        "both wrong",
        "only one right",
    )
    terminal.show_table(
        columns,
        [
            (
                f"{letters[b]} - {letters[a]}",
                f"{pair.difference_points:+.2f}",
                between(pair.difference_interval_points, 2),
                _p(pair.mcnemar_p),
                f"{pair.same_answer_percent:.1f}%",
                f"{pair.both_right_percent:.1f}%",
                f"{pair.both_wrong_percent:.1f}%",
                f"{letters[a]} {len(pair.only_first):,} · {letters[b]} {len(pair.only_second):,}",
            )
            for a, b, pair in found.pairs
        ],
        right=("top-1, points", *columns[3:]),
    )
    terminal.show()
    terminal.show_table(
        ("errors' correlation (Pearson)", "image by image", "class by class"),
        [
            (
                f"{letters[a]}, {letters[b]}",
                _r(pair.error_correlation_images),
                _r(pair.error_correlation_classes),
            )
            for a, b, pair in found.pairs
        ],
        right=("image by image", "class by class"),
    )
    terminal.show(
        "in brackets: 95% bootstrap intervals over images, for differences drawn in pairs; "
        "they say nothing about other seeds"
    )


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}" if value >= 1e-99 else "< 1e-99"


def _r(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
