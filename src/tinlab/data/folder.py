"""The files below a folder, read like those of an archive."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from tinlab.data.members import MAX_MEMBER_BYTES
from tinlab.data.names import Names
from tinlab.errors import TinlabError


class FolderFiles:
    """Every file below `path`: `names[i]`, with slashes and in sorted order, and, through `read`, its bytes.

    `folders` lists the folders, the empty ones too. Hidden files and folders (a leading dot) are left out.
    `fingerprint` covers names, sizes and times of change.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders: list[str] = []
        sizes, times = array("q"), array("q")
        waiting = [""]
        seen: set[tuple[int, int]] = set()

        def walk() -> Iterator[str]:
            while waiting:
                inside = waiting.pop()
                here = path / inside
                status = here.stat()
                if (status.st_dev, status.st_ino) in seen:
                    raise TinlabError(f"{here} leads back to a folder above it; remove that link")
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(here) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        name = f"{inside}/{entry.name}" if inside else entry.name
                        if entry.is_dir():
                            self.folders.append(name)
                            waiting.append(name)
                        elif entry.is_file():
                            status = entry.stat()
                            sizes.append(status.st_size)
                            times.append(status.st_mtime_ns)
                            yield name
                        else:
                            raise TinlabError(f"{entry.path} is neither a file nor a folder; remove it")

        try:
            names = Names.of(walk())
        except OSError as error:
            raise TinlabError(
                f"{error.filename} cannot be read ({error.strerror}); mend its rights"
            ) from error
        order = names.sort(np.arange(len(names)))
        self.names = names.take(order)
        self.total_bytes = sum(sizes)
        self.fingerprint = _fingerprint(
            self.names, *(np.frombuffer(of, np.int64)[order] for of in (sizes, times))
        )

    def read(self, rows: Sequence[int] | np.ndarray) -> Iterator[bytes]:
        """The bytes of each file of `rows`, in that order."""
        return contents(self.path, self.names.of_rows(np.asarray(rows, dtype=np.int64)))

    def parcel(self, rows: np.ndarray) -> bytes:
        """The names of `rows`, for a process that was given `reopening`."""
        return json.dumps(self.names.some(rows)).encode()

    @property
    def reopening(self) -> dict[str, Any]:
        return {"kind": "folder", "path": str(self.path.absolute())}

    def close(self) -> None:
        """Nothing stays open between reads."""


def _fingerprint(names: Names, sizes: np.ndarray, times: np.ndarray) -> str:
    """Digest of the list of (name, size, time), as Python writes it."""
    digest, comma = xxhash.xxh3_128(b"["), ""
    for start in range(0, len(names), 8192):
        some = slice(start, start + 8192)
        files = zip(names.some(some), sizes[some].tolist(), times[some].tolist(), strict=True)
        digest.update((comma + ", ".join(map(repr, files))).encode("utf-8", "surrogateescape"))
        comma = ", "
    digest.update(b"]")
    return digest.hexdigest()


def contents(folder: str | Path, names: Iterable[str]) -> Iterator[bytes]:
    """The bytes of each file of `names` below `folder`, in that order. Raises TinlabError."""
    for name in names:
        path = f"{folder}/{name}"
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (100,000 times: no Path object)
                size = os.fstat(file.fileno()).st_size
                if size > MAX_MEMBER_BYTES:
                    raise TinlabError(
                        f"{path} has {size / 2**20:,.0f} MiB, and at most 64 MiB are read as one file;"
                        " remove it"
                    )
                yield file.read()
        except OSError as error:
            raise TinlabError(f"{path} cannot be read ({error.strerror}); mend or remove it") from error
