"""Images in parquet files, as the Hugging Face hub's data sets are exported.

Files are told apart by their names (train-00000-of-00001.parquet, valid/0000.parquet); a file that names no
split is training data. The image column is binary, or a struct whose field `bytes` is. Labels are integers,
with names where the schema's `huggingface` metadata gives them, or strings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tinlab.data.layouts import VALIDATION_NAMES, Layout, Samples, class_info
from tinlab.data.members import MAX_MEMBER_BYTES
from tinlab.data.names import Names
from tinlab.data.pack import UNLABELLED
from tinlab.data.worker import joined
from tinlab.errors import TinlabError

IMAGE_COLUMNS = ("image", "img", "picture", "jpeg", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
"""Columns that are preferred by their names; a column that is the only one of its type will do too."""

_BATCH_BYTES = 4 << 20
_LABELS_AT_ONCE = 1 << 16
_STRUCTS_AT_ONCE = 64


class ParquetRows:
    """The rows of `files`, one after the other. `read` streams, so it wants rows in ascending order.

    `names[row]` is FILE#ROW. `values` are the labels that occur, and `codes`, int32 (N,), says which of them
    each row has. All files must have the same columns. Raises TinlabError.
    """

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        self.files = sorted(files)
        self._starts = [0]
        stated = []
        codes: list[np.ndarray] = []
        code_of: dict[Any, int] = {}
        for file in self.files:
            with self._errors(file), self._open(file) as table:
                if file == self.files[0]:
                    self._image, self._label, self.class_names = _columns(file, table.schema_arrow)
                missing = {self._image.split(".")[0], self._label} - set(table.schema_arrow.names)
                if missing:
                    raise TinlabError(f"{file} has no column {missing.pop()}, which other files have")
                count = table.metadata.num_rows
                if not 0 <= count <= file.stat().st_size:
                    raise TinlabError(
                        f"{file} is damaged: it states more rows than it has bytes; copy it anew"
                    )
                labelled = 0
                with self._open(file, [self._label]) as labels:
                    for batch in labels.iter_batches(_LABELS_AT_ONCE, columns=[self._label]):
                        codes.append(_coded(batch.column(0), code_of))
                        labelled += len(codes[-1])
                if labelled != count:
                    raise TinlabError(f"{file} is damaged: it has fewer labels than rows; copy it anew")
            self._starts.append(self._starts[-1] + count)
            stated.append((self.relative(file), file.stat().st_size, file.stat().st_mtime_ns))
        if not codes:
            raise TinlabError(f"{path} holds no rows; export the data set again")
        self.values, self.codes = list(code_of), np.concatenate(codes)
        counts = zip(map(self.relative, self.files), map(len, map(self.rows_of, self.files)), strict=True)
        self.names = Names.of(f"{name}#{row}" for name, count in counts for row in range(count))
        self.fingerprint = xxhash.xxh3_128_hexdigest(repr(stated).encode("utf-8", "surrogateescape"))
        self.total_bytes = sum(size for _, size, _ in stated)
        self._rows_at_a_time = max(1, _BATCH_BYTES // (self.total_bytes // len(self.names) + 1))
        self._stream: Iterator[tuple[int, bytes]] = iter(())
        self._next_row = 0

    def relative(self, file: Path) -> str:
        return file.name if file == self.path else file.relative_to(self.path).as_posix()

    def rows_of(self, file: Path) -> range:
        at = self.files.index(file)
        return range(self._starts[at], self._starts[at + 1])

    @property
    def file_digests(self) -> dict[str, str]:
        """SHA-256 of each file, by its path below the source. Reads them all."""
        found = {}
        for file in self.files:
            with self._errors(file), file.open("rb") as opened:
                found[self.relative(file)] = hashlib.file_digest(opened, "sha256").hexdigest()
        return found

    def read(self, rows: Sequence[int] | np.ndarray) -> Iterator[bytes]:
        """The image bytes of `rows`, in ascending order; going back starts the stream anew."""
        for row in np.asarray(rows).tolist():
            if row < self._next_row or self._next_row == 0:
                self._stream = self._rows_from(row)
            for found, data in self._stream:
                self._next_row = found + 1
                if found == row:
                    yield data
                    break
            else:
                raise TinlabError(f"{self.path} has fewer rows than it states; copy it anew")

    def parcel(self, rows: np.ndarray) -> bytes:
        """The bytes of `rows`: another process would have to read all that lies before them."""
        return joined(list(self.read(rows)))

    @property
    def reopening(self) -> dict[str, Any]:
        return {"kind": "bytes"}

    def close(self) -> None:
        self._stream = iter(())

    def _rows_from(self, first: int) -> Iterator[tuple[int, bytes]]:
        """Row numbers and image bytes, from the row group on that holds row `first`."""
        for file, start in zip(self.files, self._starts, strict=False):
            flat = "." not in self._image
            # As places in a dictionary: one that stands there once, for many rows, is not copied.
            # Arrow cannot do so inside a struct; there, few rows at a time are what bounds the copies.
            with self._errors(file), self._open(file, [self._image] if flat else []) as table:
                at_a_time = min(self._rows_at_a_time, rows_at_a_time(table.metadata))
                at_a_time = at_a_time if flat else min(at_a_time, _STRUCTS_AT_ONCE)
                groups = []
                row = at = start
                for group in range(table.metadata.num_row_groups):
                    at += table.metadata.row_group(group).num_rows
                    if at > first:
                        groups.append(group)
                    else:
                        row = at
                batches = table.iter_batches(at_a_time, groups, [self._image]) if groups else ()
                for batch in batches:
                    column = batch.column(0)
                    values = column.flatten()[0] if pa.types.is_struct(column.type) else column
                    for value in values:
                        if not value.is_valid:
                            raise TinlabError(f"{self.path}: {self.names[row]} has no image; take it out")
                        data = value.as_py()
                        if len(data) > MAX_MEMBER_BYTES:
                            raise TinlabError(
                                f"{self.path}: {self.names[row]} has more than 64 MiB; shrink it"
                            )
                        yield row, data
                        row += 1

    def _open(self, file: Path, dictionary: Sequence[str] = ()) -> pq.ParquetFile:
        # A buffered stream, or else a whole row group (which may be the whole file) is fetched at once.
        return pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False, read_dictionary=list(dictionary))

    @contextlib.contextmanager
    def _errors(self, file: Path) -> Iterator[None]:
        try:
            yield
        except TinlabError:
            raise
        # A damaged file makes Arrow raise errors of its own, and Python's for text that is not UTF-8, for
        # numbers beyond all bounds and for memory that is not there.
        except (
            pa.ArrowException,
            OSError,
            EOFError,
            ValueError,
            OverflowError,
            MemoryError,
            KeyError,
        ) as error:
            reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise TinlabError(f"{file} is damaged or cannot be read ({reason}); copy it anew") from error


def _columns(file: Path, schema: pa.Schema) -> tuple[str, str, list[str] | None]:
    """The image column (with `.bytes` for a struct), the label column, and the classes' names if given."""
    images = [f.name if _is_bytes(f.type) else f"{f.name}.bytes" for f in schema if _holds_images(f.type)]
    named = [name for name in images if name.split(".")[0].lower() in IMAGE_COLUMNS]
    if not images:
        raise TinlabError(
            f"{file} has no column of image bytes (binary, or a struct with 'bytes') among"
            f" {', '.join(schema.names)}; export the images themselves, not their paths"
        )
    if len(named or images) > 1:
        raise TinlabError(f"{file} has several image columns ({', '.join(named or images)}); keep one")
    labels = [field.name for field in schema if _holds_labels(field.type)]
    preferred = [name for name in LABEL_COLUMNS if name in labels]
    if not labels or (len(labels) > 1 and not preferred):
        raise TinlabError(
            f"{file} has no label column that can be told from others ({', '.join(schema.names)}); call it"
            " 'label'"
        )
    label = (preferred or labels)[0]
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        stated = features[label]["names"]
        names = [str(name) for name in stated]
    except (KeyError, TypeError, ValueError, RecursionError):
        names = None
    if names is not None and len(set(names)) < len(names):
        raise TinlabError(f"{file} gives two classes one name in its metadata; rename one")
    return (named or images)[0], label, names


def rows_at_a_time(about: Any) -> int:
    """How many rows of a file that states `about` of itself make a batch, as they are when they are unpacked.

    Of the single columns nothing is asked: pyarrow ends the process where what a file says of one contradicts
    itself.
    """
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    mean_bytes = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    return max(1, _BATCH_BYTES // (max(0, mean_bytes) + 1))


def _coded(column: pa.Array, code_of: dict[Any, int]) -> np.ndarray:
    """int32 (n,): the code of each value of `column`; new values get the next ones."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    values = [*column.dictionary.to_pylist(), None]
    codes = np.array([code_of.setdefault(value, len(code_of)) for value in values], np.int32)
    return codes[column.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)]


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return _is_bytes(kind)


def _holds_labels(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def parquet_layout(rows: ParquetRows) -> Layout:
    """Classes, and the splits by the files' names, in the order of the files and their rows."""
    files_of: dict[str, list[int]] = {}
    for at, file in enumerate(rows.files):
        files_of.setdefault(_split_of(rows.relative(file)), []).append(at)
    if "train" not in files_of:
        raise TinlabError(f"{rows.path} has no training file; call it train-00000-of-00001.parquet")
    rows_of = {
        split: np.concatenate([np.array(rows.rows_of(rows.files[at])) for at in files])
        for split, files in files_of.items()
    }
    names = rows.class_names
    held = (rows.values[code] for code in np.unique(rows.codes[rows_of["train"]]).tolist())
    every = range(len(names)) if names is not None else sorted(v for v in held if v is not None)
    label_of = {value: label for label, value in enumerate(every)}
    classes = tuple(class_info(rows.path, *(2 * [names[v] if names is not None else str(v)])) for v in every)
    splits: dict[str, Samples] = {}
    for split in ("train", "val", "test"):
        if split not in files_of:
            continue
        numbers = rows_of[split]
        labels = np.array([label_of.get(value, UNLABELLED) for value in rows.values])[rows.codes[numbers]]
        for place in np.flatnonzero(labels == UNLABELLED).tolist():
            value = rows.values[rows.codes[numbers[place]]]
            missing = value in (None, "", UNLABELLED)
            if split == "test" and missing:
                continue
            what = "has no label" if missing else f"has the unknown label {value!r}"
            name = rows.names[numbers[place]]
            raise TinlabError(f"{rows.path}: {name} {what}; mend it or take the row out")
        splits[split] = Samples(numbers, labels)
    absent = len(classes) - len(np.unique(splits["train"].labels))
    notes = (f"train has no images of {absent} classes",) if absent else ()
    return Layout(classes, splits, notes=notes)


def _split_of(name: str) -> str:
    """The split that a file's name, or the folder it stands in, speaks of; train where none does."""
    for part in reversed(name.lower().removesuffix(".parquet").split("/")):
        for word in re.split(r"[^a-z]+", part):
            if word in VALIDATION_NAMES:
                return "val"
            if word in ("train", "test"):
                return word
    return "train"
