"""Commands that check a recipe before hours go into it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tinlab import terminal
from tinlab.cli.common import (
    AsJson,
    Changes,
    DataOption,
    Device,
    Seed,
    app,
    no_folder,
    split_auto,
    with_fitting_batch,
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A name, or a recipe.json.")]


@app.command(name="lr-find")
def lr_find(
    recipe: RecipeArgument,
    set: Changes = None,
    data: DataOption = None,
    low: Annotated[float, typer.Option("--from", help="The first rate.")] = 1e-6,
    high: Annotated[float, typer.Option("--to", help="The last rate.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Steps from the first to the last.")] = 200,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, typer.Option("--out", metavar="PNG", help="Where the chart goes.")] = Path(
        "lr-find.png"
    ),
    json: AsJson = False,
) -> None:
    """Find a learning rate: train for a moment as it climbs, and look at the loss."""
    from tinlab.checks import charts
    from tinlab.checks.lr_find import lr_find as range_test
    from tinlab.drawing import save_png

    no_folder(out, "lr-find.png")
    chosen, pack = _recipe_and_pack(recipe, set, data, device)
    with terminal.training() as watch:
        found = range_test(
            chosen, pack, low=low, high=high, steps=steps, seed=seed, device=device, watch=watch
        )
    if json:
        told = {name: value for name, value in asdict(found).items() if name != "recipe"}
        terminal.show_json({**told, "recipe": chosen.name, "fell": found.marks.fell, "chart": str(out)})
    else:
        if found.recommended is not None:
            marks = found.marks
            terminal.show(
                f"the loss falls fastest at {marks.steepest:.2g}; it is lowest at {marks.lowest:.2g}, a "
                f"tenth of which is {marks.lowest / 10:.2g}"
            )
            terminal.show(f"recommended: {found.recommended:g}, {found.why}")
            terminal.show(" ".join(f"--set {assignment}" for assignment in found.assignments))
        else:
            terminal.show(f"no rate to recommend: {found.why}")
    # Last, so that it takes nothing away where it fails.
    save_png(charts.range_chart(found), out, found.summary())
    if not json:
        terminal.show(f"chart: {out.resolve()}")
    if found.recommended is None:
        raise typer.Exit(1)


@app.command()
def overfit(
    recipe: RecipeArgument,
    images: Annotated[int, typer.Option(help="How many images to learn by heart.")] = 100,
    steps: Annotated[int, typer.Option(help="At most so many steps.")] = 300,
    set: Changes = None,
    data: DataOption = None,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, typer.Option("--out", metavar="PNG", help="Where the chart goes.")] = Path(
        "overfit.png"
    ),
    json: AsJson = False,
) -> None:
    """Check that a recipe can learn a few images by heart; exit code 1 where it cannot, and why."""
    from tinlab.checks import charts
    from tinlab.checks.overfit import overfit as learn_by_heart
    from tinlab.drawing import save_png

    no_folder(out, "overfit.png")
    chosen, pack = _recipe_and_pack(recipe, set, data, device)
    with terminal.training() as watch:
        found = learn_by_heart(
            chosen, pack, images=images, steps=steps, seed=seed, device=device, watch=watch
        )
    if json:
        told = {name: value for name, value in asdict(found).items() if name != "recipe"}
        terminal.show_json({**told, "recipe": chosen.name, "chart": str(out)})
    else:
        if found.switched_off:
            terminal.show(f"switched off: {'; '.join(map(str, found.switched_off))}")
        if found.set:
            terminal.show(f"set: {'; '.join(map(str, found.set))}")
        if found.left_on:
            terminal.show(f"left on, as no field switches it off: {'; '.join(found.left_on)}")
        terminal.show(found.summary())
        for finding in found.findings:
            terminal.show(f"- {finding.cause}: {finding.evidence}")
            terminal.show(f"  try: {finding.advice}")
    save_png(charts.overfit_chart(found), out, found.summary())
    if not json:
        terminal.show(f"chart: {out.resolve()}")
    if not found.passed:
        raise typer.Exit(1)


def _recipe_and_pack(
    recipe: str, assignments: list[str] | None, data: str | None, device: str
) -> tuple[Any, Any]:
    from tinlab import recipes
    from tinlab.data.places import open_data

    kept, fitting = split_auto(assignments or [])
    chosen, foreign = recipes.with_changes(recipes.find(recipe), kept)
    if foreign:
        terminal.say(f"left out, as {chosen.model.name} has none: {', '.join(foreign)}")
    with terminal.counting("pack the images") as count:
        pack = open_data(data, progress=count)
    if fitting:
        chosen = with_fitting_batch(chosen, pack, device)
    return chosen, pack
