"""The content digest of a source: one SHA-256 for all of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from tinlab.data.source import Source

_HEX = 64  # characters of a SHA-256


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
    root = len(source.root)
    if source.file_digests is not None:
        lines = [f"{digest}  {path}\n" for path, digest in sorted(source.file_digests.items())]
    else:
        text = digests.tobytes().hex()
        names = source.names
        rows = sorted(_rows(source).tolist(), key=names.__getitem__)
        lines = [f"{text[_HEX * row : _HEX * (row + 1)]}  {source.root}{names[row]}\n" for row in rows]
    parts: dict[str, list[str]] = {}
    for line in lines:
        top, slash, _ = line[_HEX + 2 + root :].partition("/")
        parts.setdefault(top if slash else "", []).append(line)
    return _sha256(lines), {top: _sha256(part) for top, part in sorted(parts.items()) if top}


def _rows(source: Source) -> np.ndarray:
    """The rows whose files count as content, int64, ascending."""
    rows = np.concatenate([source.others, *(samples.rows for samples in source.splits.values())])
    rows.sort()
    return rows


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
