"""The main job, end to end: data -> pack -> train -> evaluate -> report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tinlab import recipes
from tinlab.data.pack import Pack
from tinlab.data.places import cache_folder, find_source, open_data
from tinlab.evaluating import evaluate
from tinlab.evaluation.metrics import Metrics
from tinlab.report.page import write_report
from tinlab.runs import Run
from tinlab.training import loop
from tinlab.training.progress import Watcher

Count = Callable[[int, int], None]


@dataclass(frozen=True)
class Demo:
    """What the demo made."""

    pack: Pack
    run: Run
    metrics: Metrics
    report: Path


def rendered_pack(count: Count | None = None) -> Pack:
    """The rendered stand-in set of 20 classes, drawn and packed in the cache folder if it is not there."""
    from tinlab.data import packing, shapes

    place = cache_folder() / "packs" / "rendered-20"
    if (place / "pack.json").is_file():
        return Pack.open(place)
    images = shapes.render(cache_folder() / "rendered-20", progress=count)
    return packing.pack(images, place)


def demo(
    stated: str | Path | None = None,
    *,
    out: Path = Path("runs"),
    seed: int = 0,
    device: str = "auto",
    say: Callable[[str], None] = print,
    count: Count | None = None,
    watch: Watcher | None = None,
) -> Demo:
    """Run the main job on Tiny ImageNet where it is found, otherwise on a rendered stand-in, and say which.

    `stated` is a pack or data set; otherwise $TINLAB_DATA and the cache folder are looked at. Raises what the
    steps raise.
    """
    source = find_source(stated)
    if source is None:
        say("data: no Tiny ImageNet in --data, $TINLAB_DATA or the cache; a rendered stand-in set is used")
        pack = rendered_pack(count)
    else:
        say(f"data: {source}")
        pack = open_data(source, progress=count)
    train, tune, val = (len(pack.split(name)) for name in ("train", "tune", "val"))
    say(
        f"pack: {pack.path}: {len(pack.info.classes)} classes, {train:,} images to train on, {tune:,} for "
        f"tuning, {val:,} to measure on"
    )
    recipe = recipes.find("demo")
    say(f"train: {recipe.name}, {recipe.summary}")
    run = loop.train(
        recipe, pack, out, seed=seed, device=device, watch=watch, started=lambda run: say(f"run: {run.path}")
    )
    metrics = evaluate(run.path, pack=pack, device=device).metrics
    report = write_report(run.path, pack=pack)
    return Demo(pack, run, metrics, report)
