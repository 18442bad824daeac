"""results.csv: a row for each finished run that is worth keeping, with all that makes its number a number."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinlab import runs
from tinlab.data.digests import OFFICIAL_DIGEST
from tinlab.data.places import DEFAULTS
from tinlab.environment import sittings
from tinlab.errors import TinlabError
from tinlab.evaluating import predictions_of
from tinlab.evaluation.metrics import measure
from tinlab.files import only_one, read_text, write_text
from tinlab.recipes import budget_of

COLUMNS = (
    "recipe", "recipe_digest", "seed", "split", "top1_percent", "top1_low_percent", "top1_high_percent",
    "top5_percent", "loss", "train_top1_percent", "train_images", "steps", "epochs", "train_minutes",
    "images_per_second", "parameters", "hardware", "threads", "torch", "tinlab", "commit", "source_kind",
    "content_digest", "finished_at", "budget", "classes", "image_size", "tune_fraction", "pack_seed",
    "weights",
)  # fmt: skip
"""The bounds are the 95% bootstrap interval over the images; the training accuracy is that of the last pass
over the data, as it was trained, augmented and in training mode; minutes are those of the steps alone; the
content digest is the source's (see tinlab.data.digests); a budget says how much of the recipe's length was
run, such as `6 of 70 epochs`, and is empty where it was all of it. Of the pack are how many classes it has,
the side of its images in pixels, the share of the training images that is its `tune`, and the seed that these
were drawn by, empty where the run did not note it. The weights that a run began from are `imagenet`, or the
first 12 hex digits of their file's SHA-256; empty: none."""
ADDED = ("budget", "classes", "image_size", "tune_fraction", "pack_seed", "weights")
"""Columns that older files do not have; their rows are empty there, and stay so when a row is added."""

TINY_IMAGENET = {
    "content_digest": OFFICIAL_DIGEST,
    "classes": "200",
    "image_size": f"{DEFAULTS['image_size']}",
    "tune_fraction": f"{DEFAULTS['tune_fraction']:g}",
    "pack_seed": f"{DEFAULTS['seed']}",
}
"""Tiny ImageNet, packed as it is packed where nobody says otherwise, in the columns that say what images a
row is of. A row that is empty in one of them is from before it, and is taken to be of such a pack."""

PERCENTAGES = ("top1_percent", "top1_low_percent", "top1_high_percent")

CURVE_COLUMNS = (
    "kind", "split", "step", "epoch", "loss", "top1_percent", "top5_percent", "learning_rate", "image_size",
    "images_per_second", "train_seconds", "elapsed_seconds",
)  # fmt: skip


def results_file() -> Path:
    """results/results.csv of the source tree that runs, or of the working folder outside a checkout."""
    tree = Path(__file__).resolve().parents[2]
    return (tree if (tree / "pyproject.toml").is_file() else Path()) / "results" / "results.csv"


def read_results(path: Path) -> list[dict[str, str]]:
    """The rows of `path`; none where there is no file. Raises TinlabError for a file with other columns."""
    if not path.is_file():
        return []
    try:
        rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
        names = tuple(rows.fieldnames or ())
        found = list(rows)
    except (OSError, ValueError, csv.Error) as error:
        raise TinlabError(f"{path} cannot be read ({error}); move it aside") from error
    if not are_columns(names, COLUMNS):
        raise TinlabError(f"{path} has other columns than this tinlab writes; move it aside")
    check_numbers(path, found)
    return [{name: row.get(name) or "" for name in COLUMNS} for row in found]


def are_columns(names: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether a file's `names` are `columns`, or those that an older tinlab wrote: without some of ADDED."""
    return list(names) == [name for name in columns if name in names or name not in ADDED]


def check_numbers(path: Path, rows: Sequence[Mapping[str, str | None]], wanted: tuple[str, ...] = ()) -> None:
    """Raise TinlabError where a row of `path` lacks a seed or an accuracy, or a number in one of `wanted`."""
    for number, row in enumerate(rows, start=2):
        for name in ("seed", *PERCENTAGES, *wanted):
            try:
                value = float(row[name] or "")
            except ValueError:
                value = math.nan
            if not (
                0 <= value <= (100 if name in PERCENTAGES else math.inf)
                and (name != "seed" or value % 1 == 0)
            ):
                raise TinlabError(
                    f"{path}, line {number}: {name} is '{str(row[name])[:80]}'; mend or remove it"
                )


class AlreadyRecorded(TinlabError):
    """A run has its row already."""


def record(run: str | Path, path: Path) -> dict[str, Any]:
    """Add the finished run in folder `run` as a row of `path`, write its curve into curves/ beside it, and
    return the row. Other processes that add rows at the same time wait for each other.

    Raises AlreadyRecorded where it was added before, and TinlabError where the run is not finished, or its
    results were made on rendered images, which say nothing about real ones.
    """
    opened = runs.open_run(run)
    row = row_of(run)
    if path.is_dir():
        raise TinlabError(f"{path} is a folder; name a CSV file, such as {path / 'results.csv'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with only_one(path.parent):  # another process may add a row at the same time
        rows: list[dict[str, Any]] = list(read_results(path))
        if any(all(str(row[n]) == old[n] for n in ("recipe_digest", "seed", "finished_at")) for old in rows):
            raise AlreadyRecorded(f"{path} has a row for {run} already")
        # The row comes last, so that none is there without its curve.
        points = opened.metrics()
        write_table(_new_curve_file(path, row, rows, points), CURVE_COLUMNS, points)
        write_table(path, COLUMNS, [*rows, row])
    return row


def curve_file(path: Path, row: Mapping[str, Any]) -> Path:
    """Where the curve of a row of `path` lies: a changed recipe keeps its name, and has another digest. Of
    runs of one recipe and seed the first one's curve is called by these alone, and others' also by when they
    finished."""
    plain, own = _curve_files(path, row)
    return own if own.is_file() else plain


def _curve_files(path: Path, row: Mapping[str, Any]) -> tuple[Path, Path]:
    """Where the curve of a row may lie: by recipe and seed alone, and by when the run finished."""
    name = f"{row['recipe']}-{row['recipe_digest']}-s{row['seed']}"
    finished = "".join(character for character in str(row["finished_at"]) if character in "0123456789")[:14]
    return path.parent / "curves" / f"{name}.csv", path.parent / "curves" / f"{name}-{finished}.csv"


def _new_curve_file(
    path: Path, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], points: list[dict[str, Any]]
) -> Path:
    """Where the curve of a new row goes: not where another row of `rows`, or of another file beside `path`,
    has its own. What a killed process wrote of this very run is written again."""
    plain, own = _curve_files(path, row)
    taken = any(_curve_files(path, old)[0] == plain for old in rows)
    if not taken and plain.is_file():
        taken = plain.read_bytes() != _table(CURVE_COLUMNS, points).encode()
    return own if taken else plain


def row_of(run: str | Path) -> dict[str, Any]:
    """The row of COLUMNS for the finished run in folder `run`. Raises TinlabError as `record` does."""
    opened = runs.open_run(run)
    result, environment = opened.result, opened.environment
    if result is None:
        quoted = shlex.quote(str(run))
        raise TinlabError(f"{run} is not finished; go on with: tinlab train --resume {quoted}")
    try:
        kind, images = environment["pack"]["source_kind"], images_of(environment["pack"])
        weights = opened.recipe.beginning(0).weights or ""
        if weights not in ("", "imagenet"):  # a path says nothing about what lay there
            weights = str(environment["weights"]["sha256"])[:12]
        parts = sittings(environment)
        hardware = _in_turn(one["gpu"] or f"{one['cpu']}, {one['cores']} cores" for one in parts)
        about = {
            name: _in_turn(one[name] for one in parts) for name in ("threads", "torch", "tinlab", "commit")
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise TinlabError(
            f"{run}: environment.json is damaged ({error!r}), so no number can be traced"
        ) from error
    # What names a file is the run's own recipe, and not what its result says.
    if (result["recipe"], result.get("seed")) != (opened.recipe.name, opened.seed):
        raise TinlabError(f"{run}: result.json is of another recipe or seed than the run; train it again")
    if opened.seed < 0:
        raise TinlabError(f"{run}: its seed is {opened.seed}, and one is 0 or more; train it with another")
    if kind == "rendered":
        raise TinlabError(f"{run} was trained on rendered images; results are of real ones")
    predictions = predictions_of(run, split=result["split"])
    measured = measure(predictions.logits, predictions.labels)
    low, high = measured.top1_interval_percent
    row = {
        **{name: result[name] for name in COLUMNS if name in result},
        "top1_percent": round(result["top1_percent"], 2),
        "top5_percent": round(result["top5_percent"], 2),
        "loss": round(result["loss"], 4),
        "train_top1_percent": round(train_top1_percent(opened.metrics()), 2),
        "top1_low_percent": round(low, 2),
        "top1_high_percent": round(high, 2),
        "train_minutes": round(result["train_seconds"] / 60, 1),
        "hardware": hardware,
        **about,
        "source_kind": kind,
        **images,
        "budget": budget_of(opened.recipe, _epochs(opened)),
        "classes": len(opened.classes),
        "weights": weights,
    }
    if lacking := [name for name in COLUMNS if name not in row]:
        raise TinlabError(f"{run}: result.json lacks {lacking[0]}; remove it and resume the run")
    return {name: row[name] for name in COLUMNS}


def _in_turn(values: Iterable[Any]) -> Any:
    """The one value, or, where a run was resumed elsewhere, all that differ: `1 then 2`."""
    found = list(dict.fromkeys(values))
    return found[0] if len(found) == 1 else " then ".join("none" if v is None else str(v) for v in found)


def _epochs(run: runs.Run) -> float | None:
    """Passes that all stages of a finished run took; None where its stages have different images."""
    assert run.result is not None
    return run.result["epochs"] if len(run.recipe.phases) == 1 else None


def train_top1_percent(metrics: list[dict[str, Any]]) -> float:
    """The training accuracy over the last pass over the data, in percent, from the points of a run."""
    points = [point for point in metrics if point["kind"] == "train"]
    if not points:
        raise TinlabError("the run has no training points, so it has no training accuracy")
    steps = [0, *(point["step"] for point in points)]
    if any(not isinstance(point.get("top1_percent"), int | float) for point in points):
        raise TinlabError("the run has a training point without an accuracy, so it has no training accuracy")
    last = [
        (point["top1_percent"], step - before)
        for point, before, step in zip(points, steps, steps[1:], strict=False)
        if point["epoch"] > points[-1]["epoch"] - 1
    ]
    images = sum(count for _, count in last)
    if images <= 0:
        raise TinlabError("the run's training points are out of order, so it has no training accuracy")
    return sum(value * count for value, count in last) / images


def write_table(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Write `rows` as a CSV file with the given columns, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, _table(columns, rows))


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def images_of(pack: Mapping[str, Any]) -> dict[str, str]:
    """What images the pack has that `tinlab.environment.describe_pack` describes, in the columns of
    TINY_IMAGENET. Raises KeyError, TypeError, ValueError or OverflowError for what is no such
    description."""
    counts = {**pack["counts"]}
    train, tune = (int(counts.get(name, 0)) for name in ("train", "tune"))
    return {
        "content_digest": str(pack["content_digest"] or ""),
        "classes": str(pack["classes"]),
        "image_size": str(pack["image_size"]),
        # Of the images and not as it was asked for, so that packs with the same images say the same.
        "tune_fraction": f"{tune / max(train + tune, 1):.4g}",
        "pack_seed": "" if pack.get("seed") is None else str(pack["seed"]),
    }


def same_images(row: Mapping[str, str], images: Mapping[str, str]) -> bool:
    """Whether a row is of a pack with these images, both in the columns of TINY_IMAGENET."""
    return row["content_digest"] == images["content_digest"] and all(
        (row.get(name) or usual) == (images.get(name) or usual)
        for name, usual in TINY_IMAGENET.items()
        if name != "content_digest"
    )


def of_tiny_imagenet(row: Mapping[str, str]) -> bool:
    """Whether a row was measured on all of Tiny ImageNet's val, and after training on what the usual pack
    holds, and so stands beside the papers' numbers."""
    return same_images(row, TINY_IMAGENET)


def measured_on_tiny_imagenet(row: Mapping[str, str]) -> bool:
    """Whether a row was measured on all of Tiny ImageNet's val at its own size, whichever of the training
    images it was trained on."""
    return same_images({**row, "tune_fraction": "", "pack_seed": ""}, TINY_IMAGENET)


def recorded(path: Path, images: Mapping[str, str] = TINY_IMAGENET) -> dict[tuple[str, int], float]:
    """Recipe digest and seed -> top-1 in percent on val of the latest row in `path` that is of a pack with
    these images, in the columns of TINY_IMAGENET."""
    return {
        (row["recipe_digest"], int(float(row["seed"]))): float(row["top1_percent"])
        for row in sorted(read_results(path), key=lambda one: one["finished_at"])
        if row["split"] == "val" and same_images(row, images)
    }


def mean_top1_percent(path: Path | None = None) -> dict[str, float]:
    """Recipe digest -> mean top-1 in percent over the seeds on Tiny ImageNet's val, from results.csv."""
    found: dict[str, list[float]] = {}
    for (digest, _), top1 in recorded(path or results_file()).items():
        found.setdefault(digest, []).append(top1)
    return {digest: sum(values) / len(values) for digest, values in found.items()}
