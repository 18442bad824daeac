"""The run folder: what was trained, how, and what came out.

recipe.json          the resolved recipe; can be given back to `tinlab train`
run.json             seed, pack, preprocessing, when it began, what it is measured on, and what the weights
                     that it began with had been trained on
classes.json         ids and words, in the order of the network's outputs
environment.json     hardware, versions, commit, pack digest, command
metrics.jsonl        the curves, one JSON object a line
tensorboard/         the same, for TensorBoard
checkpoints/         see tinlab.training.checkpoint
predictions/         logits of a split, saved once
result.json          one row: the numbers of the finished run
report.html          the page
"""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tinlab.data.pack import LARGEST_SIZE, ClassInfo, Pack, triple
from tinlab.data.scratch import remove_leftovers, scratch_folder
from tinlab.errors import TinlabError
from tinlab.files import FULL, flush_folder, is_file, read_json, refused, write_json, write_text
from tinlab.recipe import Recipe, read_recipe


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the network: a square of `image_size` pixels a side, as packs hold it,
    resized to `measured_size` where that is another, scaled to 0..1, minus `mean`, over `std`."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    measured_size: int | None = None

    @property
    def network_size(self) -> int:
        """Pixels a side of what the network sees."""
        return self.image_size if self.measured_size is None else self.measured_size

    def at(self, size: int) -> Preprocessing:
        """The same, but resized to `size` pixels a side."""
        return replace(self, measured_size=size)


@dataclass(frozen=True)
class TrainedOn:
    """Splits of a pack that a network was trained on. `content_digest` is that of the pack's source, None
    where it is not known."""

    splits: tuple[str, ...]
    pack: str
    pack_digest: str
    content_digest: str | None


@dataclass(frozen=True)
class Seen:
    """That a network was trained on images of a split, or may have been.

    `how` is `split` where it was trained on the split itself, `pack` where `images` of the split's `of`
    images are among those of another pack of the same source that it was trained on, and `unknown` where
    nobody can tell. `before`: it was the network that its weights are from.
    """

    how: Literal["split", "pack", "unknown"]
    before: bool
    images: int = 0
    of: int = 0


@dataclass(frozen=True)
class Run:
    """An opened run folder."""

    path: Path
    recipe: Recipe
    seed: int
    pack: str
    pack_digest: str
    preprocessing: Preprocessing
    classes: tuple[ClassInfo, ...]
    started_at: str
    launch: str | None = None
    """The torchrun that began it; None without one."""
    final_split: str = "val"
    """What it is measured on in the end."""
    log_every: int | None = None
    """Steps between two points of the training curve; None: by the length of a pass over the data."""
    weights_trained_on: tuple[TrainedOn, ...] | None = None
    """What the weights that it began with had been trained on, by runs of tinlab; None: not known."""
    weights_path: str | None = None
    """Where the weights that it began with lay, absolute; None: drawn, ImageNet's, or not recorded."""

    @property
    def result(self) -> dict[str, Any] | None:
        """The row in result.json, or None while the run is not finished. Raises TinlabError for a damaged
        one."""
        return read_result(self.path / "result.json")

    @property
    def environment(self) -> dict[str, Any]:
        return _json_or_none(self.path / "environment.json") or {}

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl. A last line that a kill cut short is left out."""
        return read_metrics(self.path / "metrics.jsonl")


def create(
    out: Path,
    recipe: Recipe,
    seed: int,
    pack: Pack,
    preprocessing: Preprocessing,
    *,
    launch: str | None = None,
    final_split: str = "val",
    log_every: int | None = None,
) -> Run:
    """Make a new run folder inside `out`, named after the recipe, the seed and the time (UTC).

    It is made beside its place and renamed into it, so that a kill leaves no half run. `launch` names the
    torchrun that began it; the last two are as in Run.
    """
    started = datetime.now(UTC)
    # Now, while the place that the recipe names is there, and is looked up from where it was meant.
    before = _weights_of(recipe)
    name = f"{recipe.name}-s{seed}"
    about = {
        "seed": seed,
        "pack": str(pack.path.resolve()),
        "pack_digest": pack.digest,
        "preprocessing": asdict(preprocessing),
        "started_at": started.isoformat(timespec="seconds"),
        "launch": launch,
        "final_split": final_split,
        "log_every": log_every,
        "weights_trained_on": None if before is None else [asdict(one) for one in before],
        "weights_path": _weights_path(recipe),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out / name)
        with scratch_folder(out / name) as folder:
            write_json(folder / "recipe.json", recipe.model_dump(mode="json"))
            write_json(folder / "classes.json", [asdict(c) for c in pack.info.classes])
            write_json(folder / "run.json", about)
            path = _placed(folder, out / f"{name}-{started:%Y%m%d-%H%M%S}")
        flush_folder(out)
    except OSError as error:
        mend = "make room" if error.errno in FULL else "name another place with --out"
        raise TinlabError(f"no run folder can be made in {out}: {error.strerror}; {mend}") from error
    return open_run(path)


def _placed(folder: Path, place: Path) -> Path:
    """Rename `folder` to `place`, or to the first of `place`-2, `place`-3, … that is free; returns which."""
    for attempt in itertools.count(1):
        path = place if attempt == 1 else place.with_name(f"{place.name}-{attempt}")
        try:
            if not path.exists():  # a rename would take the place of an empty folder
                folder.rename(path)
                return path
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
    raise AssertionError  # the count has no end


def open_run(path: str | Path) -> Run:
    """Open run folder `path`. Raises TinlabError where it is none, or a damaged one."""
    path = Path(path)
    if not is_file(path / "run.json"):
        raise TinlabError(f"{path} is not a run folder (no run.json); 'tinlab runs' lists those there are")
    try:
        about = read_json(path / "run.json")
        classes = read_json(path / "classes.json")
        shown = about["preprocessing"]
        size, mean, std = int(shown["image_size"]), triple(shown["mean"]), triple(shown["std"])
        measured = shown.get("measured_size")
        preprocessing = Preprocessing(size, mean, std, None if measured is None else int(measured))
        sizes = preprocessing.image_size, preprocessing.network_size
        if not 1 <= min(sizes) <= max(sizes) <= LARGEST_SIZE or not classes:
            raise ValueError(f"images of {sizes[0]} or {sizes[1]} pixels a side, and {len(classes)} classes")
        return Run(
            path=path,
            recipe=read_recipe(path / "recipe.json"),
            seed=int(about["seed"]),
            pack=str(about["pack"]),
            pack_digest=str(about["pack_digest"]),
            preprocessing=preprocessing,
            classes=tuple(ClassInfo(str(c["id"]), str(c["words"])) for c in classes),
            started_at=str(about["started_at"]),
            launch=about.get("launch"),
            final_split=str(about.get("final_split", "val")),
            log_every=None if (every := about.get("log_every")) is None else int(every),
            weights_trained_on=_recorded(about.get("weights_trained_on")),
            weights_path=None if (place := about.get("weights_path")) is None else str(place),
        )
    except (OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"run.json or classes.json lacks {error}" if isinstance(error, KeyError) else error
        raise TinlabError(f"{path} is damaged ({reason}); restore its files, or train again") from error


def pack_of(run: Run) -> Pack:
    """The pack that the run was trained on. Raises TinlabError where it is gone, or has changed since."""
    pack = Pack.open(run.pack)
    if pack.digest != run.pack_digest:
        raise TinlabError(
            f"{pack.path} has changed since {run.path} was trained on it; name its pack with --data"
        )
    return pack


def seen_in_training(run: Run, split: str, pack: Pack | None = None) -> bool:
    """Whether the network was trained on images of `split`, or may have been: see `seen`."""
    return bool(seen(run, split, pack))


def seen(run: Run, split: str, pack: Pack | None = None) -> tuple[Seen, ...]:
    """How the network came to be trained on images of `split` of `pack`, by default the run's own: in this
    run, and in those that its weights are from. Empty where it was not.

    Images of two packs of one source are the same where they have the same name in it; those of two sources,
    of which one may be a later state of the other, where their pixels are the same as well.
    """
    digest = pack.digest if pack else run.pack_digest
    before = run.weights_trained_on
    if before is None:  # an older run
        before = _weights_of(run.recipe)
    found = [] if before is not None else [Seen("unknown", before=True)]
    for place, trained in enumerate((_trained_on(run), *(before or ()))):
        if trained.pack_digest == digest:
            how = Seen("split", place > 0) if set(trained.splits) & set(split.split("+")) else None
        else:
            how = _seen_in_another_pack(trained, split, pack or run, before=place > 0)
        if how is not None and how not in found:
            found.append(how)
    return tuple(found)


def whether_seen(shown: Sequence[Seen]) -> bool | None:
    """What `seen` found, in a word: whether the network was trained on images of the split; None where that
    is not known."""
    if shown and all(one.how == "unknown" for one in shown):
        return None
    return bool(shown)


def another_source(run: Run, pack: Pack) -> bool:
    """Whether `pack` was made of another data set than the run's own pack; False where that is not known."""
    content, own = pack.info.source.get("content_digest"), _content_of(run)
    return content is not None and own is not None and content != own


def _seen_in_another_pack(
    trained: TrainedOn, split: str, measured: Pack | Run, *, before: bool
) -> Seen | None:
    """By the names that both packs have, and the pixels where they are of different sources. Where one of
    them cannot be opened, or is no longer as it was: unknown, or none where the sources differ."""
    if isinstance(measured, Pack):
        content = measured.info.source.get("content_digest")
    else:
        content = _content_of(measured)
    differ = bool(content and trained.content_digest and content != trained.content_digest)
    unknown = None if differ else Seen("unknown", before)
    try:
        other = Pack.open(trained.pack)
        pack = measured if isinstance(measured, Pack) else pack_of(measured)
        sources = [one.info.source.get("content_digest") for one in (pack, other)]
        if other.digest != trained.pack_digest or None in sources:
            return unknown
        parts = [other.split(part) for part in trained.splits]
        own = pack.split(split)
    except TinlabError:
        return unknown
    shown = {name: (part, row) for part in parts for row, name in enumerate(part.names)}
    pairs = [(row, shown[name]) for row, name in enumerate(own.names) if name in shown]
    if sources[0] != sources[1]:
        pairs = [
            (row, (part, at)) for row, (part, at) in pairs if np.array_equal(own.images[row], part.images[at])
        ]
    return Seen("pack", before, len(pairs), len(own)) if pairs else None


def _trained_on(run: Run) -> TrainedOn:
    splits = tuple(run.recipe.data.train_split.split("+"))
    return TrainedOn(splits, run.pack, run.pack_digest, _content_of(run))


def _content_of(run: Run) -> str | None:
    pack = run.environment.get("pack")
    content = pack.get("content_digest") if isinstance(pack, dict) else None
    return content if isinstance(content, str) else None


def _weights_of(recipe: Recipe) -> tuple[TrainedOn, ...] | None:
    """What the weights that `recipe` begins with were trained on, by the run that they are from and those
    that its own are from; nothing where they are drawn, or ImageNet's. None where that cannot be told: what
    the recipe names is gone or lies in no run's folder, or a run on the way is damaged."""
    weights = recipe.beginning(0).weights
    if weights is None or weights == "imagenet":
        return ()
    try:
        path = Path(weights).expanduser().absolute()
        if not path.exists():
            return None
        real = path.resolve()
        folders = (path, *path.parents, real, *real.parents)
        origin = next((folder for folder in folders if is_file(folder / "run.json")), None)
        if origin is None:
            return None
        run = open_run(origin)
    except (TinlabError, OSError, ValueError, RuntimeError):
        return None
    before = run.weights_trained_on
    if before is None:
        before = _weights_of(run.recipe)
    return None if before is None else tuple(dict.fromkeys((_trained_on(run), *before)))


def _weights_path(recipe: Recipe) -> str | None:
    weights = recipe.beginning(0).weights
    if weights is None or weights == "imagenet":
        return None
    return str(Path(weights).expanduser().absolute())


def _recorded(value: Any) -> tuple[TrainedOn, ...] | None:
    """Raises KeyError or TypeError where `value`, of run.json, is damaged."""
    if value is None:
        return None
    return tuple(
        TrainedOn(
            splits=tuple(str(split) for split in one["splits"]),
            pack=str(one["pack"]),
            pack_digest=str(one["pack_digest"]),
            content_digest=None if one["content_digest"] is None else str(one["content_digest"]),
        )
        for one in value
    )


def list_runs(out: Path) -> list[Run]:
    """The runs directly inside folder `out`, oldest first; a damaged one is left out."""
    runs = []
    for path in sorted(out.glob("*/run.json")) if out.is_dir() else []:
        if path.parent.name.startswith("."):
            continue  # one that is being made
        try:
            run = open_run(path.parent)
            _ = run.result
            runs.append(run)
        except TinlabError:
            continue
    return sorted(runs, key=lambda run: run.started_at)


@contextmanager
def locked(run: Path, lock: str = "lock", what: str | None = None) -> Iterator[None]:
    """Hold the run folder for this process: its file `lock`, and `what` that stands for where that is not the
    folder. The lock dies with the process, however that ends.

    Raises TinlabError where another process has it, or it cannot be written to.
    """
    import fcntl

    try:
        file = (run / lock).open("a")
    except OSError as error:
        said = refused(error, run) or f"{run} cannot be written to ({error.strerror}); check its disk"
        raise TinlabError(said) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TinlabError(
                f"{what or run} is being trained by another process; wait for it or end it"
            ) from None
        except OSError as error:
            raise TinlabError(
                f"{run} cannot be locked ({error.strerror}); put runs on a disk that has locks, with --out"
            ) from error
        yield


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of `path`, without lines that a kill cut short; none where there is no file."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and _is_point(value):
            lines.append(value)
    return lines


def _is_point(line: dict[str, Any]) -> bool:
    """Whether it is a point of a curve: what kind, and numbers where numbers belong."""
    numbers = (
        value for name, value in line.items() if name not in ("kind", "split", "stage", "hard_classes")
    )
    classes = line.get("hard_classes", [])
    return (
        line.get("kind") in ("train", "eval")
        and isinstance(classes, list)
        and all(type(one) is int for one in classes)
        and all(_is_number(line.get(name)) for name in ("step", "epoch"))
        # A loss of a training that diverges may be no number.
        and all(value is None or type(value) is float or _is_number(value) for value in numbers)
    )


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that others can be counted with."""
    return type(value) in (int, float) and abs(value) < 2**63


def read_result(path: Path) -> dict[str, Any] | None:
    """The row in result.json file `path`; None where there is none. Raises TinlabError for a damaged one."""
    if not path.exists():
        return None
    try:
        row = read_json(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TinlabError(f"{path} cannot be read ({reason}); remove it and resume the run") from error
    words = ("recipe", "recipe_digest", "split", "finished_at")
    needed = ("top1_percent", "top5_percent", "loss", "train_seconds", "epochs")
    optional = (
        "seed", "steps", "images", "train_images", "parameters", "images_per_second", "elapsed_seconds",
        "peak_memory_bytes", "sparsity", "blocks", "measured_blocks", "expected_blocks",
    )  # fmt: skip
    if not isinstance(row, dict):
        raise TinlabError(f"{path} is damaged (it holds no object); remove it and resume the run")
    wrong = [name for name in words if not isinstance(row.get(name), str)]
    wrong += [name for name in needed if not _is_number(row.get(name))]
    wrong += [name for name in optional if name in row and not _is_number(row[name])]
    if wrong:
        raise TinlabError(
            f"{path} is damaged ({wrong[0]} is missing or of a wrong kind); remove it and resume the run"
        )
    found: dict[str, Any] = row
    return found


def keep_metrics_until(path: Path, step: int) -> None:
    """Drop the points after `step`, which a resumed run will measure again."""
    kept = [line for line in read_metrics(path) if line.get("step", 0) <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _json_or_none(path: Path) -> dict[str, Any] | None:
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
