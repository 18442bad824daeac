"""A zip read in place: its table of members, and their bytes, checked.

Python's `zipfile` builds an object a member, which for the 120,203 members of Tiny ImageNet takes longer than
inflating a quarter of them; here the table is a handful of arrays. It is also stricter, since an archive may
come from anywhere: names that leave the archive, members that overlap, headers that contradict one another,
and members larger than any sane image are refused.

The format: APPNOTE.TXT 6.3.10 of PKWARE. Understood are stored and deflated members, data descriptors and
zip64; refused are encryption, other compressions and archives in several parts.
"""

from __future__ import annotations

import itertools
import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tinlab.data.members import (
    COLUMNS,
    DEFLATED,
    LOCAL,
    MAX_MEMBER_BYTES,
    STORED,
    U16,
    U32,
    Members,
    identity,
)
from tinlab.data.names import Names
from tinlab.errors import TinlabError

_END = struct.Struct("<4s4H2LH")  # end of central directory
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_LENGTHS = struct.Struct("<3H")  # of the name, the extra field and the comment, in a record of the table
_CENTRAL = np.dtype(
    [
        ("signature", "<u4"),
        ("versions", "<u4"),
        ("flags", "<u2"),
        ("method", "<u2"),
        ("time", "<u4"),
        ("crc", "<u4"),
        ("packed", "<u4"),
        ("size", "<u4"),
        ("name_length", "<u2"),
        ("extra_length", "<u2"),
        ("comment_length", "<u2"),
        ("disk", "<u2"),
        ("attributes", "V6"),
        ("offset", "<u4"),
    ]
)
_CENTRAL_BYTES = _CENTRAL.itemsize
_KEPT = np.dtype(
    [(name, _CENTRAL[name]) for name in ("flags", "method", "crc", "name_length", "extra_length", "disk")]
)
_WIDTHS = {
    "name_length": np.uint16,
    "packed": np.uint32,
    "size": np.uint32,
    "crc": np.uint32,
    "deflated": bool,
}
_AT_ONCE = 8192
"""Records that are looked at in one go."""
_CENTRAL_SIGNATURE, _SIGNATURE = 0x02014B50, b"PK\x01\x02"
_ENCRYPTED, _UTF8 = 1, 1 << 11
_OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|\x00")


class ZipArchive:
    """The files of the zip at `path`: `names[i]` and, through `read`, their bytes.

    `folders` lists the members that are folders, without the closing slash. `table` is the raw central
    directory, which holds the CRC of every member and so stands for the archive's content. Not for
    several threads at once. Raises TinlabError where the archive is damaged or suspicious.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise TinlabError(f"{path} cannot be opened ({error.strerror}); name a readable zip") from error
        try:
            self._size = self._file.seek(0, 2)
            self._members = Members(path, self._file, b"")  # without a table, it fetches
            self.table, count, self._table_start = self._find_table()
            self._members = Members(path, self._file, self.table)
            self._parse_table(count)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ZipArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, members: Sequence[int] | np.ndarray) -> Iterator[bytes | bytearray]:
        """The bytes of each of `members` (indices into `names`), in that order, one after the other."""
        return self._members.read(self.columns(np.asarray(members, dtype=np.int64)))

    def parcel(self, members: np.ndarray) -> bytes:
        """What a process that was given `reopening` needs to know in order to read `members`."""
        columns = self.columns(members)
        pieces = [
            self.table[record : record + _CENTRAL_BYTES + length]
            for record, length in columns[:, :2].tolist()
        ]
        # The records that the rows tell of are sent along, and stand elsewhere in what is sent.
        columns[:, 0] = np.cumsum([0, *map(len, pieces[:-1])])
        return b"".join((len(members).to_bytes(8, "little"), columns.tobytes(), *pieces))

    @property
    def total_bytes(self) -> int:
        return self._size

    @property
    def reopening(self) -> dict[str, Any]:
        """How another process opens this archive without parsing its table again."""
        return {
            "kind": "zip",
            "path": str(self.path.absolute()),
            "identity": identity(self._file),
        }

    def _find_table(self) -> tuple[bytes, int, int]:
        """The central directory, how many members it states, and where it starts."""
        tail_at = max(0, self._size - _END.size - U16)
        tail = self._members.fetch(tail_at, self._size - tail_at)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + _END.size > len(tail):
            self._damaged("it has no table of its members: a download that broke off?")
        _, disk, table_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
        end = tail_at + at
        if at + _END.size + comment != len(tail):
            self._damaged("its end does not have the length that it states")
        locator = (
            self._members.fetch(end - _LOCATOR64.size, _LOCATOR64.size) if end >= _LOCATOR64.size else b""
        )
        if locator.startswith(b"PK\x06\x07"):
            _, disk64, at64, disks = _LOCATOR64.unpack(locator)
            end -= _LOCATOR64.size
            fields = (
                _END64.unpack(self._members.fetch(at64, _END64.size)) if at64 + _END64.size <= end else (b"",)
            )
            if disk64 or disks > 1 or fields[0] != b"PK\x06\x06":
                self._damaged("its zip64 table is not where it states")
            _, _, _, _, disk, table_disk, here, count, length, start = fields
            end = at64
        if disk or table_disk or here != count:
            self._damaged("it is one part of several; join them first")
        if start + length != end:
            self._damaged("its table of members is not where it states: bytes are missing or were added")
        return self._members.fetch(start, length), count, start

    def _parse_table(self, count: int) -> None:
        """Fill the columns from the table's records."""
        positions = self._positions(count)
        records = np.empty(count, _KEPT)
        packed, size, offset = (np.empty(count, np.uint64) for _ in range(3))
        for start in range(0, count, _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            fixed = self._bytes_at(positions[some], 0, _CENTRAL_BYTES).view(_CENTRAL)[:, 0]
            if (fixed["signature"] != _CENTRAL_SIGNATURE).any():
                self._damaged("its table of members holds something else")
            for name in _KEPT.names or ():
                records[name][some] = fixed[name]
            for column, name in ((packed, "packed"), (size, "size"), (offset, "offset")):
                column[some] = fixed[name]
        ends = positions + _CENTRAL_BYTES + records["name_length"]
        for member in np.flatnonzero((packed == U32) | (size == U32) | (offset == U32)).tolist():
            start = int(ends[member])
            extra = self.table[start : start + int(records["extra_length"][member])]
            packed[member], size[member], offset[member] = self._zip64(
                extra, int(packed[member]), int(size[member]), int(offset[member])
            )
        names = self._names(positions + _CENTRAL_BYTES, ends, records["flags"])
        self._check_records(names, records, packed, size)
        starts, limits = self._extents(names, records, packed, offset)
        is_file = (np.frombuffer(self.table, np.uint8)[ends - 1] != ord("/")) | (records["name_length"] == 0)
        self.folders = [name[:-1] for name in names.take(~is_file)]
        self.names = names.take(is_file)
        columns = {
            "record": positions,
            "name_length": records["name_length"],
            "start": starts,
            "limit": limits,
            "packed": packed,
            "size": size,
            "crc": records["crc"],
            "deflated": records["method"] == DEFLATED,
        }
        self._kept = {  # the narrowest types that hold them: sizes were found to be below 64 MiB
            name: column[is_file].astype(_WIDTHS.get(name, np.int64)) for name, column in columns.items()
        }

    def columns(self, members: np.ndarray) -> np.ndarray:
        """COLUMNS of `members`, int64 (n, 9)."""
        kept = {name: column[members].astype(np.int64) for name, column in self._kept.items()}
        # Where a gap follows, no more of it is read than an extra field can fill.
        least = kept["start"] + LOCAL.size + kept["name_length"] + kept["packed"]
        kept["reach"] = np.minimum(kept["limit"], least + U16)
        return np.stack([kept[name] for name in COLUMNS], axis=1)

    def _bytes_at(self, positions: np.ndarray, start: int, stop: int) -> np.ndarray:
        """uint8 (n, stop - start): the table's bytes from `start` to `stop` behind each position."""
        return np.frombuffer(self.table, np.uint8)[positions[:, None] + np.arange(start, stop)]

    def _positions(self, count: int) -> np.ndarray:
        """int64 (count,): where each record starts. Raises TinlabError where they do not fill the table."""
        table, end, lengths_of = self.table, len(self.table), _LENGTHS.unpack_from
        # Records follow upon one another, and each begins with a signature. Where the text between two of
        # these is as long as the record says, as it is unless a name holds a signature, all were found.
        found = array("q")
        at = table.find(_SIGNATURE)
        while at >= 0 and len(found) <= count:
            found.append(at)
            at = table.find(_SIGNATURE, at + len(_SIGNATURE))
        found.append(end)
        if (
            len(found) == count + 1
            and found[0] == 0
            and self._as_long_as_stated(np.frombuffer(found, np.int64))
        ):
            return np.frombuffer(found, np.int64)[:-1]
        found = array("q")
        at = 0
        for _ in range(count):
            if at + _CENTRAL_BYTES > end:
                self._damaged("its table of members is cut off")
            found.append(at)
            at += _CENTRAL_BYTES + sum(lengths_of(table, at + 28))
        if at != end:
            self._damaged("its table of members does not have the length that it states")
        return np.array(found, dtype=np.int64)

    def _as_long_as_stated(self, edges: np.ndarray) -> bool:
        """Whether each record, from one of `edges` to the next, has the length that it states."""
        sizes = np.diff(edges)
        for start in range(0, len(sizes), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            if int(sizes[some].min()) < _CENTRAL_BYTES:
                return False
            stated = self._bytes_at(edges[:-1][some], 28, 34).view("<u2").sum(axis=1, dtype=np.int64)
            if (stated + _CENTRAL_BYTES != sizes[some]).any():
                return False
        return True

    def _names(self, starts: np.ndarray, ends: np.ndarray, flags: np.ndarray) -> Names:
        """The names that lie in the table from `starts` to `ends`, checked."""
        modern = (flags & _UTF8) != 0
        raw = Names(self.table, starts, ends)

        def decoded() -> Iterator[list[str]]:
            for start in range(0, len(raw), _AT_ONCE):
                some = slice(start, start + _AT_ONCE)
                yield self._decoded(raw.raw(some), modern[some])

        ascii_alone = True
        for some_names in decoded():
            self._check_names(some_names)
            ascii_alone = ascii_alone and all(map(str.isascii, some_names))
        # Where a name is in the older code, all get a block of their own.
        plain = ascii_alone or bool(modern.all())
        names = raw if plain else Names.of(itertools.chain.from_iterable(decoded()))
        if (twice := names.repeated()) is not None:
            self._refused(f"holds {twice} twice")
        return names

    def _decoded(self, raw_names: list[bytes], modern: np.ndarray) -> list[str]:
        joined = b"\n".join(raw_names)
        if joined.isascii() and joined.count(b"\n") == len(raw_names) - 1:
            return joined.decode().split("\n")
        try:
            return [
                raw.decode() if utf8 or raw.isascii() else raw.decode("cp437")
                for raw, utf8 in zip(raw_names, modern.tolist(), strict=True)
            ]
        except UnicodeDecodeError as error:
            self._damaged(f"the name {error.object!r} is not UTF-8")

    def _zip64(self, extra: bytes, packed: int, size: int, offset: int) -> tuple[int, int, int]:
        """Sizes and offset, taken from the zip64 field where they do not fit into 32 bits."""
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            if kind == 1 and at + 4 + length <= len(extra):
                values = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
                try:
                    size = next(values) if size == U32 else size
                    packed = next(values) if packed == U32 else packed
                    offset = next(values) if offset == U32 else offset
                except StopIteration:
                    break
            at += 4 + length
        if U32 in (packed, size, offset):
            self._damaged("a member's zip64 sizes are missing")
        return packed, size, offset

    def _check_names(self, names: list[str]) -> None:
        joined = "\n".join(names)
        if joined.startswith("/") or any(sign in joined for sign in ("..", "\n/", "\\", ":", "\0")):
            for name in names:
                if _OUTSIDE.search(name):
                    self._refused(f"holds {name!r}, which would lie outside of it")

    def _check_records(self, names: Names, records: np.ndarray, packed: np.ndarray, size: np.ndarray) -> None:
        method = records["method"]
        stored = method == STORED
        for wrong, what in (
            (size > MAX_MEMBER_BYTES, "is larger than the 64 MiB that are read as one file"),
            (packed > MAX_MEMBER_BYTES, "is larger than the 64 MiB that are read as one file"),
            ((records["flags"] & _ENCRYPTED) != 0, "is encrypted"),
            (~stored & (method != DEFLATED), "is compressed in a way other than deflate"),
            (stored & (size != packed), "states two sizes"),
            (records["disk"] != 0, "lies in another part of the archive"),
        ):
            if wrong.any():
                self._refused(f"holds {names[int(wrong.argmax())]}, which {what}")

    def _extents(
        self, names: Names, records: np.ndarray, packed: np.ndarray, offset: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """int64 (N,) each: where a member starts, and where it must end."""
        beyond = offset >= self._table_start
        if beyond.any():
            self._damaged(f"{names[int(beyond.argmax())]} starts behind the table of members")
        starts = offset.astype(np.int64)
        order = np.argsort(starts, kind="stable")
        limits = np.empty_like(starts)
        limits[order] = np.append(starts[order][1:], self._table_start)
        least = LOCAL.size + records["name_length"].astype(np.int64) + packed.astype(np.int64)
        overlapping = starts + least > limits
        if overlapping.any():
            self._damaged(f"{names[int(overlapping.argmax())]} overlaps another member")
        return starts, limits

    def _damaged(self, what: str) -> NoReturn:
        self._members.damaged(what)

    def _refused(self, what: str) -> NoReturn:
        raise TinlabError(f"{self.path} {what}; make the zip again from files you trust")
