"""The command that shows what networks look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tinlab import terminal
from tinlab.cli.common import AsJson, Device, Seed, app, write_picture
from tinlab.errors import TinlabError

METHODS_HELP = (
    "Some of saliency, saliency_positive, saliency_negative, smoothgrad, integrated_gradients, "
    "guided_backprop, grad_cam, occlusion. Default: all."
)


@app.command()
def explain(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="A pack or a data set. Default: the first run's.")
    ] = None,
    split: Annotated[str, typer.Option(help="Where images come from.")] = "val",
    images: Annotated[
        int | None,
        typer.Option(help="Images to explain (4), or for --filters to look through (2,000)."),
    ] = None,
    index: Annotated[
        list[int] | None, typer.Option(metavar="ROW", help="This image of the split; repeatable.")
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="An image of your own, or one by its name in the data; repeatable."
        ),
    ] = None,
    methods: Annotated[str | None, typer.Option(metavar="NAME,...", help=METHODS_HELP)] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Explain the 'true' class's score, or the 'predicted' one's. Default: true if known."
        ),
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="CLASS", help="Explain this class's score: an id or a word."),
    ] = None,
    filters: Annotated[bool, typer.Option("--filters", help="Show filters, and what excites them.")] = False,
    layer: Annotated[
        str | None, typer.Option(help="For --filters: whose channels. Default: the last feature map.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="For --filters: a channel's 'max' over the image (default), or its 'mean'."),
    ] = None,
    errors: Annotated[bool, typer.Option("--errors", help="Show the errors that it is surest of.")] = False,
    label_errors: Annotated[
        bool, typer.Option("--label-errors", help="Show images whose label is perhaps wrong.")
    ] = False,
    audit: Annotated[
        bool, typer.Option("--audit", help="For --label-errors: mark what 'data audit' finds.")
    ] = False,
    sanity: Annotated[
        bool, typer.Option("--sanity", help="Measure how far the maps depend on what was learned.")
    ] = False,
    top: Annotated[
        int | None, typer.Option(min=1, help="For --errors and --label-errors: how many.  [default: 24]")
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Default: explain.png, filters.png, errors.png, ...")
    ] = None,
    device: Device = "auto",
    json: AsJson = False,
) -> None:
    """Write a picture of what networks look at, or of filters, errors or likely label errors."""
    from tinlab import classifier
    from tinlab import explain as room
    from tinlab.data.pack import Pack
    from tinlab.data.places import open_data
    from tinlab.evaluating import predictions_of
    from tinlab.runs import open_run

    asked = {"--filters": filters, "--errors": errors, "--label-errors": label_errors, "--sanity": sanity}
    modes = [name for name, wanted in asked.items() if wanted]
    if len(modes) > 1:
        raise TinlabError(f"{' and '.join(modes)} are different pictures; give one of them")
    mode = modes[0].removeprefix("--") if modes else "explain"
    if modes and len(runs) > 1:
        raise TinlabError(f"{modes[0]} is about one run; name one of the {len(runs)}")
    _refuse(
        mode,
        {
            "--index": (bool(index), ("explain", "sanity")),
            "--file": (bool(file), ("explain", "sanity")),
            "--methods": (methods is not None, ("explain", "sanity")),
            "--target": (target is not None, ("explain", "sanity")),
            "--class": (class_name is not None, ("explain", "sanity")),
            "--images": (images is not None, ("explain", "sanity", "filters")),
            "--layer": (layer is not None, ("filters",)),
            "--by": (by is not None, ("filters",)),
            "--audit": (audit, ("label-errors",)),
            "--top": (top is not None, ("errors", "label-errors")),
            "--out": (out is not None, ("explain", "filters", "errors", "label-errors")),
        },
    )
    if images is not None and (index or file):
        raise TinlabError("--images is how many are drawn; --index and --file name them, so leave it out")
    place = out or Path(f"{mode}.png")
    first = open_run(runs[0])

    def pack() -> Pack:
        return open_data(data) if data is not None else Pack.open(first.pack)

    if mode in ("errors", "label-errors"):
        about: dict[str, Any] = {
            "split": split,
            "device": device,
            "pack": open_data(data) if data is not None else None,
        }
        if audit:
            predictions_of(runs[0], **about)  # what can go wrong does so before the audit
            about["audit"] = _audit(pack())
        show = room.errors_sheet if mode == "errors" else room.label_errors_sheet
        picture, listed = show(runs[0], most=top or 24, **about)
        write_picture(picture.image, place, json, alt=picture.alt, **{mode.replace("-", "_"): listed})
        return
    networks = [classifier.load(run, device) for run in runs]
    if mode == "filters":
        with terminal.counting("look for images") as count:
            picture = room.filters_sheet(
                networks[0],
                pack().split(split),
                layer=layer,
                by=by or "max",  # type: ignore[arg-type]
                images=2000 if images is None else images,
                seed=seed,
                progress=count,
            )
        write_picture(picture.image, place, json, alt=picture.alt)
        return
    chosen = [room.from_name(name, pack) for name in file or []]
    if index or not file:
        count_shown = 4 if images is None else images
        chosen += room.from_split(pack().split(split), images=count_shown, seed=seed, indices=index or ())
    wanted = (
        [name.strip() for name in methods.split(",") if name.strip()]
        if methods is not None
        else list(room.METHODS)
    )
    how: dict[str, Any] = {"methods": wanted, "target": target, "class_name": class_name}
    if mode == "sanity":
        _sanity(networks[0], chosen, how, seed, json)
        return
    picture = room.compare(networks, chosen, **how)
    write_picture(
        picture.image, place, json, alt=picture.alt, images=[one.name for one in chosen], methods=wanted
    )


def _refuse(mode: str, options: dict[str, tuple[bool, tuple[str, ...]]]) -> None:
    for name, (given, fits) in options.items():
        if given and mode not in fits:
            what = " and ".join("maps" if m == "explain" else f"--{m}" for m in fits)
            raise TinlabError(f"{name} is for {what}, not for {'maps' if mode == 'explain' else '--' + mode}")


def _audit(pack: Any) -> Any:
    from tinlab.data.audit import audit

    with terminal.counting("audit", "steps") as count:
        return audit(pack, progress=lambda stage, done, total: count(done, total))


def _sanity(network: Any, chosen: Any, how: dict[str, Any], seed: int, json: bool) -> None:
    from dataclasses import asdict

    from tinlab.explain.sanity import check

    found = check(network, chosen, seed=seed, **how)
    if json:
        terminal.show_json({name: [asdict(point) for point in points] for name, points in found.items()})
        return
    (first, *_) = found.values()
    columns = ("maps of", *(f"{point.randomised_layers}" for point in first))
    rows = [(name, *(f"{point.rank_correlation:+.2f}" for point in points)) for name, points in found.items()]
    terminal.show_table(columns, rows, right=columns[1:])
    terminal.show(
        f"Rank correlation with the trained network's maps, {len(chosen)} images, after so many of its last "
        f"layers lost what they learned ({first[-1].randomised_layers}: all)."
    )
