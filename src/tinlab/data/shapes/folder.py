"""Writing rendered sets, in the official layout."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from tinlab.data.scratch import remove_leftovers, scratch_folder
from tinlab.data.shapes.catalogue import ShapeClass, catalogue
from tinlab.data.shapes.dice import mix
from tinlab.data.shapes.outlines import distances
from tinlab.data.shapes.picture import SPLITS, draw
from tinlab.data.shapes.tables import clouds, grain
from tinlab.errors import TinlabError
from tinlab.files import flush_folder, read_json

MARKER = "shapes.json"
"""The file by which a rendered folder is known; it holds the arguments that made it."""
VERSION = 1
"""Changes whenever the same seed would give other pixels."""

_MADE = {"train", "val", "test", "wnids.txt", "words.txt", MARKER}
"""The top level of a rendered folder."""

MOST_IMAGES = 10_000_000

_BATCH = 64


def render(
    folder: Path,
    *,
    classes: int = 20,
    train_per_class: int = 500,
    val_per_class: int = 50,
    test_images: int = 200,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a rendered data set of the official layout into `folder`, and return `folder`.

    It is built beside its place and renamed into it, so a kill leaves no half set. A folder that an earlier
    call made (its shapes.json says so, and at its top is nothing else) is replaced; an empty one is filled.
    `workers` is a number of threads, by default one a core, 8 at most. `progress` is called on the calling
    thread with the images done and their total.

    Raises TinlabError for a bad argument, for a folder that holds anything else, and where the disk refuses.
    """
    folder = Path(folder)
    counts = {"train": train_per_class, "val": val_per_class, "test": test_images}
    chosen = catalogue(classes)
    for name, count in (("train_per_class", train_per_class), ("val_per_class", val_per_class)):
        if count < 1:
            raise TinlabError(f"{name} is {count}; at least 1 image is needed")
    if test_images < 0:
        raise TinlabError(f"test_images is {test_images}; give 0 or more")
    if not 0 <= seed < 2**63:
        raise TinlabError(f"seed is {seed}; give a whole number from 0 to 2**63 - 1")
    images = classes * (train_per_class + val_per_class) + test_images
    if images > MOST_IMAGES:
        raise TinlabError(f"these are {images:,} images, and at most {MOST_IMAGES:,} are drawn; give less")
    if workers is not None and workers < 1:
        raise TinlabError(f"workers is {workers}; give 1 or more, or leave it out")
    try:
        _check_replaceable(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        with scratch_folder(folder) as temporary:
            _write_images(temporary, chosen, counts, seed, workers or _cores(), progress)
            _write_lists(temporary, chosen, {**counts, "classes": classes, "seed": seed, "version": VERSION})
            _move_into_place(temporary, folder)
    except OSError as error:
        raise TinlabError(
            f"{folder} cannot be written ({error.strerror or error}); give another place"
        ) from error
    return folder


def _cores() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 8)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise TinlabError(f"{folder} exists and is not a folder; give another place")
    found = {entry.name for entry in folder.iterdir()}
    # What is here is removed, so a name that anybody may give a file is not enough.
    if found and not (found <= _MADE and _is_marker(folder / MARKER)):
        raise TinlabError(f"{folder} holds files that were not rendered; give an empty or new folder")


def _is_marker(path: Path) -> bool:
    """Whether the file `path` holds what `_write_lists` writes into MARKER."""
    try:
        written = read_json(path)
    except (OSError, ValueError):
        return False
    return (
        isinstance(written, dict)
        and written.keys() == {"train", "val", "test", "classes", "seed", "version"}
        and all(type(value) is int for value in written.values())
    )


def _move_into_place(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`, first taking away what an earlier call left there."""
    _check_replaceable(folder)
    if folder.exists():
        with scratch_folder(folder) as old:
            folder.rename(old / folder.name)
            try:
                temporary.rename(folder)
            except OSError:
                (old / folder.name).rename(folder)
                raise
    else:
        temporary.rename(folder)
    flush_folder(folder.parent)


def _jobs(split: str, classes: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each image of a split its class, its index within the class, and the number in its file's name."""
    if split == "train":
        labels, indices = np.divmod(np.arange(classes * count), count)
        return labels, indices, indices
    total = classes * count if split == "val" else count
    indices, labels = np.divmod(np.arange(total), classes)
    # As in the official set, neighbouring files of val and test are of unrelated classes.
    shuffled = mix(np.arange(total, dtype=np.uint64) ^ mix(np.array([seed + SPLITS[split]], np.uint64)))
    return labels, indices, np.argsort(np.argsort(shuffled))


def _write_images(
    folder: Path,
    chosen: list[ShapeClass],
    counts: dict[str, int],
    seed: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Draw all the images and write them, then the files that give their boxes."""
    for split in ("val", "test"):
        (folder / split / "images").mkdir(parents=True)
    for c in chosen:
        (folder / "train" / c.wnid / "images").mkdir(parents=True)
    plan = {split: _jobs(split, len(chosen), count, seed) for split, count in counts.items()}
    boxes = {split: np.zeros((len(labels), 4), np.int64) for split, (labels, _, _) in plan.items()}

    def path(split: str, job: np.integer | int) -> Path:
        labels, _, numbers = plan[split]
        if split == "train":
            wnid = chosen[labels[job]].wnid
            return folder / split / wnid / "images" / f"{wnid}_{numbers[job]}.JPEG"
        return folder / split / "images" / f"{split}_{numbers[job]}.JPEG"

    def work(split: str, start: int) -> int:
        labels, indices, _ = plan[split]
        drawn = draw(split, labels[start : start + _BATCH], indices[start : start + _BATCH], seed=seed)
        for n, image in enumerate(drawn.images):
            path(split, start + n).write_bytes(jpeg(image, bool(drawn.grey[n])))
        boxes[split][start : start + _BATCH] = drawn.boxes
        return len(drawn.images)

    total, done = sum(map(len, boxes.values())), 0
    for prepare in (distances, clouds, grain):
        prepare()  # here, so that threads do not each build the tables
    # glibc hands freed blocks back to the system unless a block as large was freed before (up to 32 MiB).
    # Without this, a third of the time goes into fresh pages. Elsewhere it does nothing.
    np.empty(2**25 - 2**16, np.uint8)
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, s, n) for s in plan for n in range(0, len(boxes[s]), _BATCH)]
        try:
            for future in as_completed(futures):
                done += future.result()
                if progress:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise

    for number, c in enumerate(chosen):
        jobs = np.flatnonzero(plan["train"][0] == number)
        lines = [_line(path("train", job).name, *boxes["train"][job]) for job in jobs]
        (folder / "train" / c.wnid / f"{c.wnid}_boxes.txt").write_text("".join(lines), "utf-8")
    labels, _, numbers = plan["val"]
    order = np.argsort(numbers)
    lines = [_line(path("val", n).name, chosen[labels[n]].wnid, *boxes["val"][n]) for n in order]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines), "utf-8")


def _line(*fields: object) -> str:
    return "\t".join(map(str, fields)) + "\n"


def jpeg(image: np.ndarray, grey: bool) -> bytes:
    """Encode uint8 (64, 64, 3); a grey picture gets one channel, as 2% of the official files have."""
    import simplejpeg

    if grey:
        image = np.ascontiguousarray(image[:, :, :1])
        return bytes(simplejpeg.encode_jpeg(image, quality=90, colorspace="GRAY", colorsubsampling="Gray"))
    return bytes(simplejpeg.encode_jpeg(image, quality=90, colorspace="RGB", colorsubsampling="420"))


def _write_lists(folder: Path, chosen: list[ShapeClass], arguments: dict[str, int]) -> None:
    (folder / "wnids.txt").write_text("".join(f"{c.wnid}\n" for c in chosen), "utf-8")
    words = [f"{c.wnid}\t{c.words}\n" for c in sorted(chosen, key=lambda c: c.wnid)]
    (folder / "words.txt").write_text("".join(words), "utf-8")
    (folder / MARKER).write_text(json.dumps(arguments, indent=2) + "\n", "utf-8")
