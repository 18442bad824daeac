"""Commands on data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinlab import terminal
from tinlab.cli.common import AsJson, DataOption, Seed, data_commands, show_next, write_picture
from tinlab.errors import TinlabError


@data_commands.command()
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
        terminal.show(f"archive: {path}")
        show_next("data", "pack", path)


@data_commands.command()
def render(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER")],
    classes: int = 20,
    train_per_class: int = 500,
    val_per_class: int = 50,
    test_images: int = 200,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Draw a stand-in data set, in the official layout, for work without a network.

    FOLDER is a new or empty one; a set that was rendered there before is replaced.
    """
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
        terminal.show(f"images: {made}")
        show_next("data", "pack", made)


@data_commands.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A zip, folder or parquet export.")],
    out: Annotated[Path | None, typer.Option(metavar="PACK", help="Default: in the cache folder.")] = None,
    image_size: Annotated[int, typer.Option(help="Side in pixels.")] = 64,
    tune_fraction: Annotated[float, typer.Option(help="Share of each class held out as 'tune'.")] = 0.1,
    val_fraction: Annotated[float, typer.Option(help="Share taken for 'val' where there is none.")] = 0.1,
    seed: Seed = 0,
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
    terminal.show(f"pack: {made.path}{' (was there already)' if made.reused else ''}")
    terminal.show(f"{len(made.info.classes)} classes; {listed}")


@data_commands.command()
def subset(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new pack's folder.")],
    half: Annotated[
        str | None, typer.Option(metavar="A|B", help="The first half of the classes, or the other.")
    ] = None,
    class_id: Annotated[
        list[str] | None, typer.Option("--class", metavar="ID", help="This class; repeatable.")
    ] = None,
    data: DataOption = None,
    json: AsJson = False,
) -> None:
    """Write a pack of some of a pack's classes, checksummed as any pack."""
    from tinlab.data import subset as subsets
    from tinlab.data.places import open_data

    if (half is None) == (not class_id):
        raise TinlabError("name the classes by --half A or --half B, or each by --class ID")
    pack = open_data(data)
    made = subsets.subset_pack(pack, class_id or subsets.half(pack, half or ""), out)
    counts = {name: split.count for name, split in made.info.splits.items()}
    if json:
        found = {"pack": str(made.path), "digest": made.digest, "reused": made.reused, "splits": counts}
        terminal.show_json({**found, "classes": len(made.info.classes)})
        return
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    terminal.show(f"pack: {made.path}{' (was there already)' if made.reused else ''}")
    terminal.show(f"{len(made.info.classes)} classes; {listed}")


@data_commands.command()
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
        terminal.show(terminal.plain(line))


@data_commands.command()
def show(
    pack: Annotated[str | None, typer.Argument(metavar="[PACK]", help="Default: as for --data.")] = None,
    split: str = "train",
    classes: Annotated[int, typer.Option(help="Rows.")] = 8,
    images: Annotated[int, typer.Option(help="Images a row.")] = 8,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(metavar="PNG")] = Path("grid.png"),
    json: AsJson = False,
) -> None:
    """Write a picture of some classes: their words and some of their images."""
    from tinlab.data.grid import pack_grid
    from tinlab.data.places import open_data

    picture = pack_grid(open_data(pack), split=split, classes=classes, images_per_class=images, seed=seed)
    write_picture(picture, out, json)
