"""The content digest of a source: one SHA-256 for all of its files."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from tinlab.data.source import Source

OFFICIAL_DIGEST = "be0f13a5b2ae99468fbb724f396af226b83bd5469929439804e3af9ec0e863d4"
"""Content digest of Tiny ImageNet: of its 120,203 files, with paths that begin with tiny-imagenet-200/."""

_HEX = 64  # characters of a SHA-256
_AT_ONCE = 8192
"""Lines that are text at one time."""


def file_digests(source: Source) -> np.ndarray:
    """uint8 (rows, 32): SHA-256 of everything in `source`, where its rows are files. Raises TinlabError."""
    digests = np.zeros((len(source.names), 32), dtype=np.uint8)
    if source.file_digests is None:
        read_into(digests, source, _rows(source))
    return digests


def read_into(digests: np.ndarray, source: Source, rows: np.ndarray) -> None:
    """Put the SHA-256 of each of `rows` of `source` into its place in `digests`, uint8 (rows, 32)."""
    for row, data in zip(rows.tolist(), source.store.read(rows), strict=True):
        digests[row] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)


def content_digests(source: Source, digests: np.ndarray) -> tuple[str, dict[str, str]]:
    """The content digest of `source`, and that of each of its folders train/, val/, test/ and so on.

    `digests` is uint8 (rows, 32), the SHA-256 of each file.
    """
    whole = hashlib.sha256()
    parts: dict[str, Any] = {}
    for top, text in _lines(source, digests):
        data = text.encode("utf-8", "surrogateescape")
        whole.update(data)
        if top:
            parts.setdefault(top, hashlib.sha256()).update(data)
    return whole.hexdigest(), {top: part.hexdigest() for top, part in sorted(parts.items())}


def _lines(source: Source, digests: np.ndarray) -> Iterator[tuple[str, str]]:
    """The lines `SHA256  PATH`, sorted by path, some at a time, after the folder that they are in."""
    if source.file_digests is not None:
        paths, hexes = (list(column) for column in zip(*sorted(source.file_digests.items()), strict=True))
        yield from _by_folder(source.root, paths, hexes)
        return
    rows = source.names.sort(_rows(source))
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        text = digests[some].tobytes().hex()
        hexes = [text[at : at + _HEX] for at in range(0, len(text), _HEX)]
        yield from _by_folder(source.root, source.names.some(some), hexes)


def _by_folder(root: str, paths: list[str], hexes: list[str]) -> Iterator[tuple[str, str]]:
    """The lines of some sorted paths, by the folder at the top that they are in."""
    lines = [f"{digest}  {root}{path}\n" for digest, path in zip(hexes, paths, strict=True)]
    top = _top(paths[0])
    if top and top == _top(paths[-1]):  # as what lies between them is, then
        yield top, "".join(lines)
        return
    for top, group in itertools.groupby(zip(paths, lines, strict=True), key=lambda pair: _top(pair[0])):
        yield top, "".join(line for _, line in group)


def _top(path: str) -> str:
    top, slash, _ = path.partition("/")
    return top if slash else ""


def _rows(source: Source) -> np.ndarray:
    """The rows whose files count as content, int64, ascending."""
    rows = np.concatenate([source.others, *(samples.rows for samples in source.splits.values())])
    rows.sort()
    return rows
