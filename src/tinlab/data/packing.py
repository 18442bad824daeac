"""A source -> a pack: every image decoded once, checked, summed and digested in one pass.

Chunks of images are read and decoded by a few threads (all of the work that counts is C code which lets go
of the interpreter's lock) into a fixed ring of buffers; one thread writes them in order. So memory does not
grow with the data set.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import queue
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from tinlab.data.decode import ImageError, decode_into
from tinlab.data.layouts import Samples
from tinlab.data.moments import PixelSums
from tinlab.data.pack import Pack, PackInfo, SplitInfo
from tinlab.data.scratch import remove_leftovers, scratch_folder
from tinlab.data.source import Source, open_source
from tinlab.errors import TinlabError
from tinlab.files import flush_folder, write_json

OFFICIAL_DIGEST = "be0f13a5b2ae99468fbb724f396af226b83bd5469929439804e3af9ec0e863d4"
"""Content digest of Tiny ImageNet: of its 120,203 files, with paths that begin with tiny-imagenet-200/."""

RULES = 1
"""Counts up when the same source and settings would give other pixels, rows or labels than before."""

CHUNK_BYTES = 3 << 20


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
    `workers` is the number of threads, by default that of the CPUs at hand. `progress` is called with the
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
        if _taken(out):
            return _existing(out, opened, settings)
        splits = _held_out(opened, val_fraction, tune_fraction, seed)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(out)
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
    if not 1 <= image_size <= 1024:
        raise TinlabError(f"image_size is {image_size}; it must be from 1 to 1024 pixels")
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
    if not same and before.get("content_digest") != _content_digests(source, _read_digests(source))[0]:
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
    names = source.names
    rank = np.array(
        [xxhash.xxh3_64_intdigest(f"{purpose} {names[row]}".encode("utf-8", "surrogateescape"), seed)
         for row in samples.rows.tolist()],
        dtype=np.uint64,
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


@dataclass
class _Chunk:
    """Some consecutive rows of a file of the pack, decoded."""

    images: np.ndarray
    sums: np.ndarray
    digests: list[str]
    faults: list[tuple[str, str]]


def _build(
    folder: Path,
    source: Source,
    splits: dict[str, Samples],
    settings: dict[str, Any],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the whole pack into `folder`. Raises TinlabError or OSError."""
    digests: dict[int, str] = {}
    faults: list[tuple[str, str]] = []
    files: dict[str, str] = {}
    infos: dict[str, SplitInfo] = {}
    total = sum(map(len, splits.values()))
    layout = {
        "train": ["train", "tune"],
        **{name: [name] for name in splits if name not in ("train", "tune")},
    }
    done = 0
    with _Decoder(source, settings["image_size"], workers) as decoder:
        for file, members in layout.items():
            start = 0
            count = sum(len(splits[member]) for member in members)
            with _Digested(folder / f"{file}.npy") as output:
                output.write(_npy_header((count, decoder.size, decoder.size, 3)))
                for member in members:
                    samples = splits[member]
                    sums = np.zeros((2, 3))
                    for rows, chunk in decoder.chunks(samples.rows):
                        digests.update(zip(rows.tolist(), chunk.digests, strict=True))
                        faults.extend(chunk.faults)
                        sums += chunk.sums
                        output.write(chunk.images.reshape(-1).data)
                        done += len(rows)
                        if progress:
                            progress(done, total)
                    stop = start + len(samples)
                    infos[member] = SplitInfo(file, start, stop, _triple(sums[0]), _triple(sums[1]))
                    start = stop
            files[f"{file}.npy"] = output.digest
            labels = io.BytesIO()
            np.save(labels, np.concatenate([splits[member].labels for member in members]))
            names = [source.names[row] for member in members for row in splits[member].rows.tolist()]
            for name, content in (
                (f"{file}.labels.npy", labels.getvalue()),
                (f"{file}.names.json", json.dumps(names).encode()),
            ):
                with _Digested(folder / name) as output:
                    output.write(content)
                files[name] = output.digest
    if faults:
        name, reason = faults[0]
        more = f" ({len(faults) - 1} more images are bad too)" if len(faults) > 1 else ""
        raise TinlabError(f"{source.path}: {name} cannot be used, {reason}{more}; mend or remove it")
    if source.file_digests is None:
        for row, data in zip(source.others.tolist(), source.store.read(source.others), strict=True):
            digests[row] = hashlib.sha256(data).hexdigest()
    content_digest, by_folder = _content_digests(source, digests)
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


class _Decoder:
    """Threads that read and decode chunks of a source's images, and hand them over in order."""

    def __init__(self, source: Source, size: int, workers: int) -> None:
        self.source = source
        self.size = size
        self._rows_a_chunk = max(1, min(CHUNK_BYTES // (3 * size * size), source.rows_at_a_time))
        self._in_flight = workers + 2
        self._buffers: queue.SimpleQueue[tuple[np.ndarray, PixelSums]] = queue.SimpleQueue()
        for _ in range(self._in_flight):
            images = np.zeros((self._rows_a_chunk, size, size, 3), dtype=np.uint8)
            self._buffers.put((images, PixelSums(size)))
        self._pool = ThreadPoolExecutor(workers, "decode")
        self._stopped = False

    def __enter__(self) -> _Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def chunks(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, _Chunk]]:
        """The images of the source's `rows`, in order; a chunk holds until the next one is taken."""
        waiting: deque[tuple[np.ndarray, Future[_Chunk], Any]] = deque()
        for start in range(0, len(rows), self._rows_a_chunk):
            if len(waiting) == self._in_flight:
                yield from self._finish(waiting.popleft())
            part = rows[start : start + self._rows_a_chunk]
            data: Iterator[bytes] | list[bytes] = self.source.store.read(part)
            if self.source.sequential:
                data = list(data)
            tools = self._buffers.get()
            waiting.append((part, self._pool.submit(self._decode, part, data, *tools), tools))
        while waiting:
            yield from self._finish(waiting.popleft())

    def _finish(self, entry: tuple[np.ndarray, Future[_Chunk], Any]) -> Iterator[tuple[np.ndarray, _Chunk]]:
        part, future, tools = entry
        yield part, future.result()
        self._buffers.put(tools)

    def _decode(
        self, rows: np.ndarray, data: Iterator[bytes] | list[bytes], buffer: np.ndarray, sums: PixelSums
    ) -> _Chunk:
        images = buffer[: len(rows)]
        hashing = self.source.file_digests is None
        digests = []
        faults = []
        for place, content in enumerate(data):
            if self._stopped:
                break
            digests.append(hashlib.sha256(content).hexdigest() if hashing else "")
            try:
                decode_into(content, images[place])
            except ImageError as error:
                faults.append((self.source.names[rows[place]], str(error)))
        return _Chunk(images, sums.of(images), digests, faults)


class _Digested:
    """A file being written, flushed to the disk where the `with` ends; after that, `digest` is known."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._state = xxhash.xxh3_128()
        self.digest = ""

    def __enter__(self) -> _Digested:
        return self

    def write(self, data: bytes | memoryview) -> None:
        self._state.update(data)
        left = memoryview(data)
        while left:
            left = left[os.write(self._file.fileno(), left) :]

    def __exit__(self, kind: object, *_: object) -> None:
        with contextlib.closing(self._file):
            if kind is None:
                os.fsync(self._file.fileno())
        self.digest = self._state.hexdigest()


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The head of an .npy file of uint8 in C order."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return head.getvalue()


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = values.tolist()
    return red, green, blue


def _read_digests(source: Source) -> dict[int, str]:
    """SHA-256 by row of everything in `source`, where its rows are files."""
    if source.file_digests is not None:
        return {}
    rows = np.concatenate([source.others, *(samples.rows for samples in source.splits.values())])
    rows.sort()
    contents = source.store.read(rows)
    return {row: hashlib.sha256(data).hexdigest() for row, data in zip(rows.tolist(), contents, strict=True)}


def _content_digests(source: Source, digests: dict[int, str]) -> tuple[str, dict[str, str]]:
    """The content digest of `source`, and that of each of its folders train/, val/, test/ and so on."""
    if source.file_digests is not None:
        pairs = sorted(source.file_digests.items())
    else:
        pairs = sorted((f"{source.root}{source.names[row]}", digest) for row, digest in digests.items())
    lines: dict[str, list[str]] = {}
    for path, digest in pairs:
        top, slash, _ = path[len(source.root) :].partition("/")
        lines.setdefault(top if slash else "", []).append(f"{digest}  {path}\n")
    whole = _sha256(f"{digest}  {path}\n" for path, digest in pairs)
    return whole, {top: _sha256(part) for top, part in sorted(lines.items()) if top}


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
