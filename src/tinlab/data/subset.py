"""A pack of some of a pack's classes."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from tinlab.data.pack import (
    HEADER_BYTES,
    UNLABELLED,
    ClassInfo,
    Pack,
    PackInfo,
    Split,
    SplitInfo,
    block_rows,
    digest_of_digests,
    triple,
)
from tinlab.data.scratch import remove_leftovers, scratch_folder
from tinlab.errors import TinlabError
from tinlab.files import flush_folder, is_file, refused, write_flushed, write_json

HALVES = ("A", "B")


def half(pack: Pack, which: str) -> tuple[str, ...]:
    """The ids of the classes of one half of `pack`: A, the first half in the pack's order, or B, the others.

    Raises TinlabError for another letter, and for fewer than four classes.
    """
    ids = [one.id for one in pack.info.classes]
    if which not in HALVES:
        raise TinlabError(f"a half of the classes is A or B, not '{which}'")
    if len(ids) < 4:
        raise TinlabError(f"{pack.path} has {len(ids)} classes; halves of two or more need four")
    middle = len(ids) // 2
    return tuple(ids[:middle] if which == "A" else ids[middle:])


def subset_pack(pack: Pack, classes: Sequence[str], out: str | Path) -> Pack:
    """Write the images of `classes`, ids in the order that their labels then have, into the pack `out`.

    Every split keeps its images of these classes, in their order, and has moments of its own; images without
    a label are left out, and so is a split that is then empty. Where `out` is this very subset already it is
    opened as it is, and its `reused` is True; nothing else is ever overwritten. Raises TinlabError for an
    unknown class, for fewer than two, for a pack that is damaged, and for an `out` that is taken or cannot be
    written.
    """
    out = Path(out)
    chosen = _chosen(pack, classes)
    if out.exists() or out.is_symlink():
        return _existing(out, pack, chosen)
    pack.verify_once()  # the new digests would vouch for whatever is read
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        with scratch_folder(out) as folder:
            _write(folder, pack, chosen)
            folder.rename(out)
        flush_folder(out.parent)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and is_file(out / "pack.json"):
            return _existing(out, pack, chosen)  # another process was quicker
        said = refused(error, out) or f"{out} cannot be written ({error.strerror}); name another place"
        raise TinlabError(said) from error
    return Pack.open(out)


def _chosen(pack: Pack, classes: Sequence[str]) -> dict[int, ClassInfo]:
    """Label in `pack` -> class, in the order of `classes`."""
    labels = {one.id: label for label, one in enumerate(pack.info.classes)}
    if unknown := [one for one in classes if one not in labels]:
        raise TinlabError(f"{pack.path} has no class '{unknown[0]}'; classes are named by their ids")
    chosen = {labels[one]: pack.info.classes[labels[one]] for one in classes}
    if len(chosen) < max(2, len(classes)):
        raise TinlabError("name two or more classes, each of them once")
    return chosen


def _about(pack: Pack, chosen: dict[int, ClassInfo]) -> dict[str, Any]:
    """Where the subset comes from: the source of `pack`, and what was taken from it."""
    return {**pack.info.source, "subset_of": pack.digest, "classes": [one.id for one in chosen.values()]}


def _existing(out: Path, pack: Pack, chosen: dict[int, ClassInfo]) -> Pack:
    found = Pack.open(out)
    about = _about(pack, chosen)
    if any(found.info.source.get(name) != about[name] for name in ("subset_of", "classes")):
        raise TinlabError(f"{out} is another pack; remove it or name another place")
    found.reused = True
    return found


def _write(folder: Path, pack: Pack, chosen: dict[int, ClassInfo]) -> None:
    renumbered = np.full(len(pack.info.classes), UNLABELLED, np.int64)
    renumbered[list(chosen)] = np.arange(len(chosen))
    files: dict[str, list[str]] = {}
    for name, info in pack.info.splits.items():
        files.setdefault(info.file, []).append(name)
    splits: dict[str, SplitInfo] = {}
    digests: dict[str, str] = {}
    for file, members in files.items():
        parts = [
            (split, np.flatnonzero(np.isin(split.labels, list(chosen))))
            for split in sorted(map(pack.split, members), key=lambda one: one.start)
        ]
        parts = [(split, rows) for split, rows in parts if len(rows)]
        if not parts:
            continue
        digests[f"{file}.npy"], sums = _save_images(folder / f"{file}.npy", parts, pack.info.image_size)
        start = 0
        for (split, rows), (values, squares) in zip(parts, sums, strict=True):
            splits[split.name] = SplitInfo(file, start, start + len(rows), triple(values), triple(squares))
            start += len(rows)
        labels = io.BytesIO()
        np.save(labels, np.concatenate([renumbered[split.labels[rows]] for split, rows in parts]))
        names = [split.names[row] for split, rows in parts for row in rows]
        for name, content in (
            (f"{file}.labels.npy", labels.getvalue()),
            (f"{file}.names.json", json.dumps(names).encode()),
        ):
            write_flushed(folder / name, content)
            digests[name] = xxhash.xxh3_128_hexdigest(content)
    described = PackInfo(
        name=f"{pack.info.name}, {len(chosen)} classes",
        image_size=pack.info.image_size,
        classes=tuple(chosen.values()),
        splits={name: splits[name] for name in pack.info.splits if name in splits},
        files=digests,
        source=_about(pack, chosen),
        notes=pack.info.notes,
    )
    write_json(folder / "pack.json", described.to_json())


def _save_images(
    path: Path, parts: Sequence[tuple[Split, np.ndarray]], size: int
) -> tuple[str, list[np.ndarray]]:
    """Write these rows of these splits to `path`, block by block.

    Returns the digest that a pack gives the file, and float64 (2, 3) a split: the sums of its values and of
    their squares.
    """
    count = sum(len(rows) for _, rows in parts)
    made = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, size, size, 3))
    if hasattr(
        os, "posix_fallocate"
    ):  # a disk that is full says so here, where it would end the process below
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    step, place = block_rows(size), 0
    sums = []
    for split, rows in parts:
        total = np.zeros((2, 3))
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            block = np.asarray(split.images[some])  # (n, size, size, 3)
            made[place : place + len(some)] = block
            place += len(some)
            values = block.reshape(-1, 3).astype(np.float64)
            total += [values.sum(axis=0), np.square(values).sum(axis=0)]
        sums.append(total)
    made.flush()
    pieces = [xxhash.xxh3_128_digest(_head(path))]
    pieces += [xxhash.xxh3_128_digest(made[at : at + step].tobytes()) for at in range(0, count, step)]
    return digest_of_digests(pieces), sums


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)
