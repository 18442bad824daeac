"""The command that makes a network a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinlab import terminal
from tinlab.cli.common import AsJson, OtherDataOption, RunArgument, app
from tinlab.errors import TinlabError

if TYPE_CHECKING:
    from tinlab.export.exporting import Way


@app.command()
def export(
    run: RunArgument,
    format: Annotated[str, typer.Option(help="onnx.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Write a quantised file too.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: RUN/model.onnx.")] = None,
    images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Measure on N images of val. Default: all.")
    ] = None,
    calibration_images: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Training images that set the int8 ranges.  [default: 512]"),
    ] = None,
    data: OtherDataOption = None,
    json: AsJson = False,
) -> None:
    """Write the network as an ONNX file, preprocessing and classes included, checked against PyTorch."""
    if format != "onnx":
        raise TinlabError(f"--format {format} cannot be written; there is: onnx")
    if calibration_images is not None and not int8:
        raise TinlabError("--calibration-images goes with --int8")
    from tinlab.data.places import open_data
    from tinlab.export.exporting import CALIBRATION_IMAGES, export_run

    terminal.say("exporting, checking and measuring takes some minutes on a large network")
    made = export_run(
        run,
        out,
        int8=int8,
        images=images,
        calibration_images=calibration_images or CALIBRATION_IMAGES,
        pack=open_data(data) if data is not None else None,
    )
    if json:
        terminal.show_json(made.to_json())
        return
    columns = (
        "",
        "val top-1",
        "change, points",
        "same class",
        "largest difference",
        "MB",
        "images/s, 1",
        "64",
    )
    terminal.show_table(
        columns,
        [_row(way) for way in made.ways],
        right=columns[1:],
        title=f"{made.images:,} images of val, {made.threads} threads",
    )
    terminal.show(
        "same class, largest difference: first classes and logits beside PyTorch fp32, on real images in "
        "batches of 1, 7 and 64"
    )
    if made.calibration_images is not None:
        terminal.show(f"int8: activations' ranges from {made.calibration_images:,} training images")
    terminal.show(f"file: {made.file}")
    if made.int8_file:
        terminal.show(f"int8: {made.int8_file}")


def _row(way: Way) -> tuple[str, ...]:
    agreement = way.agreement
    change = way.change
    return (
        way.name,
        "–" if way.top1_percent is None else f"{way.top1_percent:.2f}%",
        "" if change is None else f"{change[0]:+.2f} ({change[1]:+.2f} to {change[2]:+.2f})",
        "" if agreement is None else f"{agreement.same_percent:.1f}%",
        "" if agreement is None else f"{agreement.difference:.2g}",
        "" if way.megabytes is None else f"{way.megabytes:.2f}",
        f"{way.batch_1_images_per_second:,.0f}",
        f"{way.batch_64_images_per_second:,.0f}",
    )
