"""The names of a data set's files, packed: a list of a million strings takes a hundred megabytes."""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

_AT_ONCE = 8192
"""Names that are strings at one time, where all are looked through."""

_RUN = 1 << 15
"""Names that are sorted at one time, as strings of some five megabytes; the runs are then merged."""


class Names(Sequence[str]):
    """Names in one block of bytes; `names[i]` makes a string of one.

    Name i lies in `block` from `starts[i]` to `stops[i]`, int64 (N,), as UTF-8; bytes of a file's name that
    are none are kept as Python keeps them (surrogateescape).
    """

    def __init__(self, block: bytes, starts: np.ndarray, stops: np.ndarray) -> None:
        self._block, self._starts, self._stops = block, starts, stops

    @staticmethod
    def of(names: Iterable[str]) -> Names:
        """The same names, packed."""
        block, stops = bytearray(), array("q", [0])
        for name in names:
            block += name.encode("utf-8", "surrogateescape")
            stops.append(len(block))
        ends = np.frombuffer(stops, np.int64)
        return Names(bytes(block), ends[:-1], ends[1:])

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Names: ...
    def __getitem__(self, at: int | slice) -> str | Names:
        if isinstance(at, slice):
            return Names(self._block, self._starts[at], self._stops[at])
        return self._block[self._starts[at] : self._stops[at]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self.some(slice(start, start + _AT_ONCE))

    def some(self, rows: slice | np.ndarray) -> list[str]:
        """The names of `rows`, as strings."""
        raw = self.raw(rows)
        # One text that is cut is made sooner than many, unless a name has a line break.
        texts = b"\n".join(raw).decode("utf-8", "surrogateescape").split("\n")
        return texts if len(texts) == len(raw) else [one.decode("utf-8", "surrogateescape") for one in raw]

    def of_rows(self, rows: np.ndarray) -> Iterator[str]:
        """The names of `rows`, int64 (n,), one after the other."""
        for start in range(0, len(rows), _AT_ONCE):
            yield from self.some(rows[start : start + _AT_ONCE])

    def take(self, rows: np.ndarray) -> Names:
        """The names of `rows`, by index or by mask, in the same block."""
        return Names(self._block, self._starts[rows], self._stops[rows])

    def without(self, prefix: str) -> Names:
        """The names, those that begin with `prefix` without it."""
        begins = (name.startswith(prefix) for name in self)
        cut = len(prefix.encode()) * np.fromiter(begins, bool, len(self)).astype(np.int64)
        return Names(self._block, self._starts + cut, self._stops)

    def repeated(self) -> str | None:
        """A name that is there twice, or None."""
        hashes = np.fromiter(
            (hash(raw) for start in range(0, len(self), _AT_ONCE)
             for raw in self.raw(slice(start, start + _AT_ONCE))),
            np.int64, len(self),
        )  # fmt: skip
        ranked = np.sort(hashes)
        alike = np.unique(ranked[1:][ranked[1:] == ranked[:-1]])
        seen: set[str] = set()
        for row in np.flatnonzero(np.isin(hashes, alike)).tolist() if len(alike) else ():
            if (name := self[row]) in seen:
                return name
            seen.add(name)
        return None

    def sort(self, rows: np.ndarray) -> np.ndarray:
        """`rows`, int64 (n,), in the order of their names."""
        runs = []
        for start in range(0, len(rows), _RUN):
            run = rows[start : start + _RUN]
            texts = self.some(run)
            runs.append(run[np.array(sorted(range(len(texts)), key=texts.__getitem__), np.int64)])
            del texts
        if all(self[before[-1]] <= self[after[0]] for before, after in itertools.pairwise(runs)):
            return np.concatenate(runs) if runs else rows
        merged = heapq.merge(*(zip(self.of_rows(run), run.tolist(), strict=True) for run in runs))
        return np.fromiter((row for _, row in merged), np.int64, len(rows))

    def raw(self, rows: slice | np.ndarray) -> list[bytes]:
        """The names of `rows`, as bytes."""
        block, starts, stops = self._block, self._starts[rows].tolist(), self._stops[rows].tolist()
        return [block[start:stop] for start, stop in zip(starts, stops, strict=True)]
