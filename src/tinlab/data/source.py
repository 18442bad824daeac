"""Where images come from: a path -> samples, classes, splits.

Understood are, by what a path holds and not by what it is called:

- the official layout of Tiny ImageNet, as a zip (read in place) or as a folder,
- a folder, or a zip, of class folders,
- a parquet export, one file or a folder of them.

A source gives names and labels at once, and the bytes of its images when asked. Its images are not decoded
here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from tinlab.data.archive import ZipArchive
from tinlab.data.folder import FolderFiles
from tinlab.data.layouts import Samples, class_folders, official
from tinlab.data.names import Names
from tinlab.data.pack import ClassInfo
from tinlab.errors import TinlabError

ACCEPTED = (
    "accepted are the official tiny-imagenet-200.zip, the folder it unpacks to, a folder or zip of class"
    " folders (optionally below train/, val/ and test/), and parquet files with an image and a label column"
)

MOST_LIST_BYTES = 32 << 20
"""Of a text in a data set. The largest, words.txt of all of WordNet, has 3 MiB."""


class Store(Protocol):
    """Rows of bytes: the files of a folder or an archive, or the images of a table."""

    @property
    def total_bytes(self) -> int:
        """About how much there is to read."""
        ...

    def read(self, rows: Sequence[int] | np.ndarray) -> Iterator[bytes | bytearray]:
        """The bytes of `rows`, in that order. Raises TinlabError."""
        ...

    @property
    def reopening(self) -> dict[str, Any]:
        """How another process reads from this store: what `tinlab.data.worker.opened` takes."""
        ...

    def parcel(self, rows: np.ndarray) -> bytes:
        """What that process is to be sent in order to read `rows`. Raises TinlabError."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Source:
    """An opened source: close it, or use it in a `with`.

    `names[row]` is the path of a row of `store` inside the data set. `splits` holds train and, where the
    source has them, val and test. `others` are the rows that belong to the source without being images
    (boxes, lists); they count in its content digest, in which every path is preceded by `root`.
    `file_digests`, where not None, is what the content digest is made from instead: SHA-256 by path.
    `fingerprint` changes where the source does, and costs no reading. A `sequential` store is read in
    ascending order, and by one process: others are sent the bytes themselves.
    """

    path: Path
    kind: str
    name: str
    classes: tuple[ClassInfo, ...]
    splits: dict[str, Samples]
    store: Store
    names: Names
    others: np.ndarray
    root: str
    fingerprint: str
    notes: tuple[str, ...] = ()
    file_digests: Mapping[str, str] | None = None
    sequential: bool = False

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()


def open_source(path: str | Path) -> Source:
    """Find out what `path` holds, and read its lists. Raises TinlabError that says what is wrong with it."""
    path = Path(path)
    try:
        if path.is_dir():
            return _open_folder(path)
        if not path.exists():
            raise TinlabError(f"{path} does not exist; {ACCEPTED}")
        if not path.is_file():
            raise TinlabError(f"{path} is neither a file nor a folder; {ACCEPTED}")
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise TinlabError(f"{path} cannot be read ({error.strerror}); {ACCEPTED}") from error
    if start == b"PAR1":
        return _open_parquet(path, [path])
    if start[:2] == b"PK" or path.suffix.lower() == ".zip":
        return _open_zip(path)
    raise TinlabError(f"{path} is of no kind that can be packed; {ACCEPTED}")


def _open_zip(path: Path) -> Source:
    archive = ZipArchive(path)
    try:
        fingerprint = xxhash.xxh3_128_hexdigest(archive.table)
        return _open_files(path, path.stem, "zip", archive, archive.names, archive.folders, fingerprint)
    except BaseException:
        archive.close()
        raise


def _open_folder(path: Path) -> Source:
    if not (path / "wnids.txt").exists():
        lists = [found.parent for found in path.glob("*/wnids.txt")]
        path = lists[0] if len(lists) == 1 else path  # the folder above the data set will do
    files = FolderFiles(path)
    tables = [path / name for name in files.names if name.endswith(".parquet")]
    if tables:
        return _open_parquet(path, tables)
    name = path.resolve().name
    return _open_files(path, name, "folder", files, files.names, files.folders, files.fingerprint)


def _open_files(
    path: Path,
    name: str,
    container: str,
    store: Store,
    names: Names,
    folders: Sequence[str],
    fingerprint: str,
) -> Source:
    """A source whose rows are files: the official layout where there is a wnids.txt, or class folders."""
    root = _root_of(names, folders) if container == "zip" else ""

    def read_text(row: int) -> str:
        data = next(store.read([row]))
        if len(data) > MOST_LIST_BYTES:
            raise TinlabError(
                f"{path}: {names[row]} has more than {MOST_LIST_BYTES >> 20} MiB; it is no list"
            )
        return data.decode("utf-8", errors="replace").removeprefix("\ufeff")

    inside = names.without(root) if root else names
    lists = {"wnids.txt", "shapes.json", "val/val_annotations.txt"}.intersection(inside)
    folders = [f.removeprefix(root) for f in folders if f.startswith(root)]
    if "wnids.txt" in lists:
        kind, name = f"official_{container}", "tiny-imagenet-200"
        if "shapes.json" in lists:  # which tinlab.data.shapes leaves in what it draws
            kind, name = "rendered", "shapes"
        layout = official(path, inside, read_text)
        digest_root = "tiny-imagenet-200/"
    elif "val/val_annotations.txt" in lists:
        raise TinlabError(f"{path}: wnids.txt, the list of classes, is missing; fetch the data set anew")
    else:
        kind = "class_folders"
        layout = class_folders(path, inside, folders, ACCEPTED)
        digest_root = ""
    if not layout.splits["train"]:
        raise TinlabError(f"{path} holds no training images; {ACCEPTED}")
    return Source(
        path=path,
        kind=kind,
        name=name,
        classes=layout.classes,
        splits=layout.splits,
        store=store,
        names=inside,
        others=layout.others,
        root=digest_root,
        fingerprint=fingerprint,
        notes=layout.notes,
    )


def _root_of(names: Names, folders: Sequence[str]) -> str:
    """The folder inside an archive that the data set stands in: '' or one that ends with a slash."""
    lists = [n for n in names if n == "wnids.txt" or (n.endswith("/wnids.txt") and n.count("/") == 1)]
    if lists:
        return min(lists, key=len)[: -len("wnids.txt")]
    tops = {name.split("/", 1)[0] for name in (*names, *folders)}
    # An archive of one folder: everything stands below one name, and class folders below that.
    if len(tops) == 1 and any(name.count("/") >= 2 for name in names):
        return f"{tops.pop()}/"
    return ""


def _open_parquet(path: Path, files: Sequence[Path]) -> Source:
    from tinlab.data.parquet import ParquetRows, parquet_layout  # pyarrow, which nothing else here needs

    rows = ParquetRows(path, files)
    layout = parquet_layout(rows)
    return Source(
        path=path,
        kind="parquet",
        name=re.sub(r"\W+", "-", path.resolve().stem) or "parquet",
        classes=layout.classes,
        splits=layout.splits,
        store=rows,
        names=rows.names,
        others=layout.others,
        root="",
        fingerprint=rows.fingerprint,
        notes=layout.notes,
        file_digests=rows.file_digests,
        sequential=True,
    )
