"""Commands that show what there is: recipes, networks, augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tinlab import terminal
from tinlab.cli.common import AsJson, DataOption, SeedOrNone, app, write_picture
from tinlab.errors import TinlabError


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
    batch_size: Annotated[int | None, typer.Option(min=1, help="For --speed.  [default: 128]")] = None,
    device: Annotated[
        str | None, typer.Option(help="For --speed: auto, cpu, cuda or mps.  [default: auto]")
    ] = None,
    json: AsJson = False,
) -> None:
    """List the networks with what they cost, or draw the layers of one."""
    for option, value in (("--batch-size", batch_size), ("--device", device)):
        if value is not None and not speed:
            raise TinlabError(f"{option} goes with --speed")

    from tinlab import models, networks
    from tinlab.compute import resolve_device

    if name in ("torchvision:", "timm:"):
        listed = models.zoo.names(name.removesuffix(":"))
        if json:
            terminal.show_json(listed)
        else:
            terminal.show("\n".join(listed))
        return
    how: dict[str, Any] = {"classes": classes, "image_size": image_size, "batch_size": batch_size or 128}
    timed_on = resolve_device("auto" if device is None else device) if speed else None
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
    terminal.show(f"For an image of {pixels} pixels; activations are what training keeps of one, in bf16.")
    terminal.show("More: torchvision:NAME and timm:NAME; 'tinlab models timm:' lists them.")


@app.command()
def augment(
    policy: Annotated[
        str | None, typer.Argument(metavar="[POLICY]", help="A policy's name, or a recipe's.")
    ] = None,
    data: DataOption = None,
    split: Annotated[str | None, typer.Option(help="Where images are from.  [default: train]")] = None,
    images: Annotated[int | None, typer.Option(help="Rows.  [default: 8]")] = None,
    columns: Annotated[
        int | None, typer.Option(help="Pictures a row; the first is the stored image.  [default: 8]")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=8, max=1024, help="Training size in pixels. Default: the stored one."),
    ] = None,
    seed: SeedOrNone = None,
    out: Annotated[Path | None, typer.Option(metavar="PNG", help="[default: augment.png]")] = None,
    json: AsJson = False,
) -> None:
    """List the augmentation policies, or write a picture of what one does to some images."""
    from tinlab import recipes
    from tinlab.recipe import POLICIES

    if policy is None:
        of_picture = {
            "--data": data, "--split": split, "--images": images, "--columns": columns, "--size": size,
            "--seed": seed, "--out": out,
        }  # fmt: skip
        if given := [option for option, value in of_picture.items() if value is not None]:
            raise TinlabError(f"{given[0]} is for the picture of a policy; name one ({', '.join(POLICIES)})")
        listed = {name: make() for name, make in POLICIES.items()}
        if json:
            terminal.show_json({n: [o.model_dump(mode="json") for o in made] for n, made in listed.items()})
            return
        for name, made in listed.items():
            terminal.show(name)
            for operation in made:
                terminal.show("\n".join("    " + line for line in operation.lines()))
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
        split="train" if split is None else split,
        images=8 if images is None else images,
        columns=8 if columns is None else columns,
        size=size,
        seed=seed or 0,
        title=policy,
    )
    if not json:
        terminal.show("\n".join(line for operation in operations for line in operation.lines()))
    write_picture(picture, out or Path("augment.png"), json)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}%"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
