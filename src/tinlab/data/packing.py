"""A source -> a pack: every image decoded once, checked, summed and digested in one pass.

Tasks of about a mebibyte are shared out among a few processes (tinlab.data.crew), each of which decodes into
a buffer of its own and writes to its rows of the output. So memory does not grow with the data set.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from tinlab.data.crew import Crew, Task, task_rows
from tinlab.data.digests import OFFICIAL_DIGEST, content_digests, file_digests, read_into
from tinlab.data.layouts import Samples
from tinlab.data.pack import LARGEST_SIZE, Pack, PackInfo, SplitInfo, digest_of_digests, triple
from tinlab.data.scratch import remove_leftovers, scratch_folder
from tinlab.data.source import Source, open_source
from tinlab.errors import TinlabError
from tinlab.files import flush, flush_folder, write_json

RULES = 1
"""Counts up when the same source and settings would give other pixels, rows or labels than before."""


def pack(
    source: str | Path,
    out: str | Path,
    *,
    image_size: int = 64,
    tune_fraction: float = 0.1,
    val_fraction: float = 0.1,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pack:
    """Decode the images of `source` once, into the folder `out`, and open it.

    `image_size` is in pixels. Of each class's training images, `tune_fraction` are held out as the split
    `tune` (50 of 500), at least one where there are two or more; where the source has no validation images,
    `val_fraction` are taken out for `val` first. Which ones depends on `seed` and the images' names alone.
    `workers` is the number of processes, this one included, by default that of the CPUs at hand; a small
    source is decoded by this one alone. `progress` is called with the
    images done and their total.

    Where `out` is a pack of the same source with the same settings already, it is opened as it is and its
    `reused` is True. Nothing else is ever overwritten. Raises TinlabError for a source that cannot be packed,
    for an `out` that cannot be written, and for one that is taken; what was there stays as it was.
    """
    out = Path(out)
    _check_settings(image_size, tune_fraction, val_fraction, seed, workers)
    with open_source(source) as opened:
        settings = {"image_size": image_size, "tune_fraction": tune_fraction, "seed": seed, "rules": RULES}
        if "val" not in opened.splits:
            settings["val_fraction"] = val_fraction
        with contextlib.suppress(OSError):  # a folder that cannot be read is told of below
            remove_leftovers(out)
        if _taken(out):
            return _existing(out, opened, settings)
        splits = _held_out(opened, val_fraction, tune_fraction, seed)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            _check_room(out, sum(map(len, splits.values())) * image_size**2 * 3)
            with scratch_folder(out) as folder:
                _build(folder, opened, splits, settings, workers or _cpus(), progress)
                try:
                    folder.rename(out)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise
                    return _existing(out, opened, settings)  # another process was quicker
                flush_folder(out.parent)
        except OSError as error:
            raise _unwritable(out, error) from error
    return Pack.open(out)


def _check_settings(
    image_size: int, tune_fraction: float, val_fraction: float, seed: int, workers: int | None
) -> None:
    if not 1 <= image_size <= LARGEST_SIZE:
        raise TinlabError(f"image_size is {image_size}; it must be from 1 to {LARGEST_SIZE} pixels")
    for name, value in (("tune_fraction", tune_fraction), ("val_fraction", val_fraction)):
        if not 0 <= value < 1:
            raise TinlabError(f"{name} is {value}; it must be at least 0 and below 1")
    if not 0 <= seed < 2**63:
        raise TinlabError(f"seed is {seed}; it must be at least 0 and below 2**63")
    if workers is not None and workers < 1:
        raise TinlabError(f"workers is {workers}; it must be at least 1")


def _cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _taken(out: Path) -> bool:
    """Whether something other than an empty folder stands at `out`."""
    try:
        return any(out.iterdir())
    except FileNotFoundError:
        return out.is_symlink()
    except OSError as error:
        if out.is_file():
            raise TinlabError(f"{out} is a file, and a pack is a folder; name another place") from None
        raise _unwritable(out, error) from error


def _existing(out: Path, source: Source, settings: dict[str, Any]) -> Pack:
    """The pack at `out`, if it is what packing `source` would make. Raises TinlabError otherwise."""
    if not (out / "pack.json").is_file():
        raise TinlabError(f"{out} holds something other than a pack; name another place")
    found = Pack.open(out)
    before = found.info.source
    if before.get("settings") != settings:
        raise TinlabError(
            f"{out} is a pack made with other settings ({_difference(before.get('settings'), settings)});"
            " remove it or name another place"
        )
    same = before.get("fingerprint") == source.fingerprint and before.get("kind") == source.kind
    if not same and before.get("content_digest") != content_digests(source, file_digests(source))[0]:
        raise TinlabError(
            f"{out} is a pack of another source ({before.get('path')}), or that one has changed since; remove"
            " the pack or name another place"
        )
    found.reused = True
    return found


def _difference(before: Any, now: dict[str, Any]) -> str:
    before = before if isinstance(before, dict) else {}
    return ", ".join(
        f"{name} {before.get(name)} instead of {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    )


def _held_out(source: Source, val_fraction: float, tune_fraction: float, seed: int) -> dict[str, Samples]:
    """The splits to write: `val` taken out of train where the source has none, then `tune`."""
    splits = dict(source.splits)
    val = None
    if "val" not in splits:
        splits["train"], val = _take(source, splits["train"], val_fraction, seed, "val")
    splits["train"], tune = _take(source, splits["train"], tune_fraction, seed, "tune")
    rest = {name: samples for name, samples in splits.items() if name != "train"}
    if val is not None:
        rest = {"val": val, **rest}
    return {"train": splits["train"], "tune": tune, **rest}


def _take(
    source: Source, samples: Samples, fraction: float, seed: int, purpose: str
) -> tuple[Samples, Samples]:
    """`samples` without a `fraction` of each class, and that fraction, both in their old order.

    An image's rank is a hash of its name, so that the choice does not depend on the order of the files, on
    other classes, or on the version of a random generator.
    """
    names = source.names.of_rows(samples.rows)
    rank = np.fromiter(
        (xxhash.xxh3_64_intdigest(f"{purpose} {name}".encode("utf-8", "surrogateescape"), seed)
         for name in names),
        np.uint64, len(samples),
    )  # fmt: skip
    taken = np.zeros(len(samples), dtype=bool)
    by_class = np.lexsort((samples.rows, rank, samples.labels))
    starts = np.flatnonzero(np.diff(samples.labels[by_class], prepend=-2))
    for members in np.split(by_class, starts[1:]):
        count = min(max(round(fraction * len(members)), 1), len(members) - 1) if fraction else 0
        taken[members[:count]] = True
    return (
        Samples(samples.rows[~taken], samples.labels[~taken]),
        Samples(samples.rows[taken], samples.labels[taken]),
    )


def _check_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise TinlabError(
            f"{out} needs {needed / 1e6:,.0f} MB, and its disk has {free / 1e6:,.0f} MB left; make room or"
            " name another place"
        )


def _unwritable(out: Path, error: OSError) -> TinlabError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TinlabError(f"{out} cannot be written: the disk is full; make room or name another place")
    return TinlabError(f"{out} cannot be written ({error.strerror}); name a place that can be")


def _build(
    folder: Path,
    source: Source,
    splits: dict[str, Samples],
    settings: dict[str, Any],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the whole pack into `folder`. Raises TinlabError or OSError."""
    layout = {
        "train": ["train", "tune"],
        **{name: [name] for name in splits if name not in ("train", "tune")},
    }
    digests = np.zeros((len(source.names), 32), dtype=np.uint8)
    sums, files = _write_images(
        folder, source, splits, layout, settings["image_size"], workers, digests, progress
    )
    infos: dict[str, SplitInfo] = {}
    for file, members in layout.items():
        start = 0
        for member in members:
            stop = start + len(splits[member])
            infos[member] = SplitInfo(file, start, stop, triple(sums[member][0]), triple(sums[member][1]))
            start = stop
        labels = np.concatenate([splits[member].labels for member in members])
        rows = np.concatenate([splits[member].rows for member in members])
        for name, parts in (
            (f"{file}.labels.npy", (_npy_header(labels), labels.data)),
            (f"{file}.names.json", _json_list(source.names.of_rows(rows))),
        ):
            files[name] = _write_parts(folder / name, parts)
    if source.file_digests is None:
        read_into(digests, source, source.others)
    content_digest, by_folder = content_digests(source, digests)
    origin: dict[str, Any] = {
        "kind": source.kind,
        "name": source.path.name,
        "path": str(source.path.absolute()),
        "content_digest": content_digest,
        "digests": by_folder,
        "fingerprint": source.fingerprint,
        "settings": settings,
    }
    if content_digest == OFFICIAL_DIGEST:
        origin["verified"] = "official content"
    info = PackInfo(
        name=source.name,
        image_size=settings["image_size"],
        classes=source.classes,
        splits={name: infos[name] for name in splits},
        files=files,
        source=origin,
        notes=source.notes,
    )
    write_json(folder / "pack.json", info.to_json())


def _write_images(
    folder: Path,
    source: Source,
    splits: dict[str, Samples],
    layout: dict[str, list[str]],
    size: int,
    workers: int,
    digests: np.ndarray,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Write the .npy of images of each file of `layout`.

    Gives the sums of each split, float64 (2, 3), and the digest of each .npy. The SHA-256 of the source's
    files is put into `digests`, uint8 (rows, 32). Raises TinlabError, for bad images too, or OSError.
    """
    paths = [folder / f"{file}.npy" for file in layout]
    rows = [np.concatenate([splits[member].rows for member in members]) for members in layout.values()]
    headers = [_image_header(len(every), size) for every in rows]
    for path, header in zip(paths, headers, strict=True):
        _write_parts(path, [header])
    sums = {name: np.zeros((2, 3)) for name in splits}
    blocks: list[dict[int, bytes]] = [{} for _ in paths]
    faults: list[tuple[int, int, str]] = []
    done, total = 0, sum(map(len, rows))
    step = task_rows(source, size)
    tasks = (
        Task(file, first, rows[file][first : first + step], len(splits[members[0]]) - first)
        for file, members in enumerate(layout.values())
        for first in range(0, len(rows[file]), step)
    )
    with Crew(source, size, paths, workers) as crew:
        for task, part in crew.results(tasks):
            for member, added in zip(list(layout.values())[task.file], part.sums, strict=False):
                sums[member] += added
            blocks[task.file][task.first] = part.blocks
            if part.files:
                digests[task.rows] = np.frombuffer(part.files, np.uint8).reshape(-1, 32)
            faults.extend((task.file, task.first + place, reason) for place, reason in part.faults)
            done += len(task.rows)
            if progress:
                progress(done, total)
    if faults:
        file, row, reason = min(faults)
        more = f" ({len(faults) - 1} more images are bad too)" if len(faults) > 1 else ""
        name = source.names[rows[file][row]]
        raise TinlabError(f"{source.path}: {name} cannot be used, {reason}{more}; mend or remove it")
    files = {}
    for path, header, found in zip(paths, headers, blocks, strict=True):
        flush(path)
        pieces = (xxhash.xxh3_128_digest(header), *(found[first] for first in sorted(found)))
        files[path.name] = digest_of_digests(pieces)
    return sums, files


def _write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Write `parts` one after the other, bring them to the disk, and digest them."""
    digest = xxhash.xxh3_128()
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
    flush(path)
    return digest.hexdigest()


def _json_list(texts: Iterator[str]) -> Iterator[bytes]:
    """A JSON list of `texts`, some at a time."""
    before = "["
    while some := list(itertools.islice(texts, 8192)):
        yield (before + json.dumps(some)[1:-1]).encode()
        before = ", "
    yield b"]" if before == ", " else b"[]"


def _image_header(count: int, size: int) -> bytes:
    """The head of an .npy of `count` images."""
    return _npy_header(np.broadcast_to(np.uint8(0), (count, size, size, 3)))


def _npy_header(array: np.ndarray) -> bytes:
    """The head of an .npy file of values like those of `array`, in C order."""
    head = io.BytesIO()
    about = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(head, about)
    return head.getvalue()
