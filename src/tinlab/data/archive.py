"""A zip read in place: its table of members, and their bytes, checked.

Python's `zipfile` builds an object a member, which for the 120,203 members of Tiny ImageNet takes longer than
inflating a quarter of them; here the table is a handful of arrays. It is also stricter, since an archive may
come from anywhere: names that leave the archive, members that overlap, headers that contradict one another,
and members larger than any sane image are refused.

The format: APPNOTE.TXT 6.3.10 of PKWARE. Understood are stored and deflated members, data descriptors and
zip64; refused are encryption, other compressions and archives in several parts.
"""

from __future__ import annotations

import re
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from tinlab.errors import TinlabError

MAX_MEMBER_BYTES = 64 << 20
"""The largest member that is read: far beyond any image worth shrinking to a pack's size."""

SPAN_BYTES = 2 << 20
"""Members that lie together are fetched by one read of about this size."""

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
_CENTRAL_SIGNATURE = 0x02014B50
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 1, 8, 1 << 11
_U16, _U32 = 0xFFFF, 0xFFFFFFFF
_MOST_INFLATION = 1032  # deflate cannot do more: 258 bytes for two bits
_OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|\x00")


class ZipArchive:
    """The files of the zip at `path`: `names[i]` and, through `read`, their bytes.

    `folders` lists the members that are folders, without the closing slash. `table` is the raw central
    directory, which holds the CRC of every member and so stands for the archive's content. Reading is safe
    from several threads. Raises TinlabError where the archive is damaged or suspicious.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise TinlabError(f"{path} cannot be opened ({error.strerror}); name a readable zip") from error
        try:
            self._size = self._file.seek(0, 2)
            self.table, count, self._table_start = self._find_table()
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

    def read(self, members: Sequence[int] | np.ndarray) -> Iterator[bytes]:
        """The bytes of each of `members` (indices into `names`), in that order, one after the other."""
        members = np.asarray(members, dtype=np.int64)
        if not len(members):
            return
        for run in self._runs(members):
            low = int(self._starts[run].min())
            data = self._fetch(low, int(self._reach[run].max()) - low)
            for member in run.tolist():
                yield self._member(member, data, low)

    def _runs(self, members: np.ndarray) -> Iterator[np.ndarray]:
        """`members` cut into runs that one read each can fetch without much waste."""
        starts, reach = self._starts[members], self._reach[members]
        span = int(reach.max() - starts.min())
        if len(members) <= 1 or (span <= SPAN_BYTES and span <= 4 * int((reach - starts).sum())):
            yield members
        else:
            middle = len(members) // 2
            yield from self._runs(members[:middle])
            yield from self._runs(members[middle:])

    def _fetch(self, start: int, length: int) -> bytes:
        blocks = []
        try:
            with self._lock:  # the file has one position
                self._file.seek(start)
                while length > 0:
                    block = self._file.read(length)
                    if not block:
                        self._damaged("it ends too early")
                    blocks.append(block)
                    length -= len(block)
        except OSError as error:
            raise TinlabError(f"{self.path} cannot be read ({error.strerror}); copy it anew") from error
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def _member(self, member: int, data: bytes, low: int) -> bytes:
        """The bytes of `member`, whose header lies in `data`, which was read from position `low`."""
        start = self._local[member] - low
        at = self._at[member]
        size, packed, name_length = self._sizes[member], self._packed[member], self._name_lengths[member]
        body = start + _LOCAL.size + name_length
        # Nearly always the two headers agree byte for byte, from the version to the length of the name.
        if (
            data[start : start + 4] != b"PK\x03\x04"
            or data[start + 4 : start + 28] != self.table[at + 6 : at + 30]
            or data[start + _LOCAL.size : body]
            != self.table[at + _CENTRAL_BYTES : at + _CENTRAL_BYTES + name_length]
        ):
            self._check_header(member, data, start)
        body += data[start + 28] + 256 * data[start + 29]  # the extra field, whose length may differ
        if body + packed > self._limits[member] - low:
            self._damaged(f"{self.names[member]} overlaps what follows it")
        content = data[body : body + packed]
        if self._deflated[member]:
            content = self._inflate(member, content, size)
        if len(content) != size:
            self._damaged(f"{self.names[member]} does not have the size that its table states")
        if zlib.crc32(content) != self._crcs[member]:
            self._damaged(f"{self.names[member]} does not have the checksum that its table states")
        return content

    def _check_header(self, member: int, data: bytes, start: int) -> None:
        """Refuse a local header that says something else than the table, beyond what the format allows."""
        signature, _, flags, method, _, _, crc, packed, size, name_length, _ = _LOCAL.unpack_from(data, start)
        at = self._at[member] + _CENTRAL_BYTES
        name = data[start + _LOCAL.size : start + _LOCAL.size + name_length]
        agrees = (
            signature == b"PK\x03\x04"
            and method == (_DEFLATED if self._deflated[member] else _STORED)
            and name == self.table[at : at + self._name_lengths[member]]
        )
        if agrees and not flags & _DESCRIPTOR:  # else size and checksum stand behind the data
            agrees = (
                crc == self._crcs[member]
                and packed in (self._packed[member], _U32)
                and size in (self._sizes[member], _U32)
            )
        if not agrees:
            self._damaged(f"its table and the header of {self.names[member]} contradict one another")

    def _inflate(self, member: int, packed: bytes, size: int) -> bytes:
        """At most `size` + 1 bytes where there is much to inflate: a member may claim less than it is."""
        try:
            if len(packed) * _MOST_INFLATION <= MAX_MEMBER_BYTES:
                return zlib.decompress(packed, -zlib.MAX_WBITS, size)
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
        except zlib.error:
            self._damaged(f"{self.names[member]} does not inflate")

    def _find_table(self) -> tuple[bytes, int, int]:
        """The central directory, how many members it states, and where it starts."""
        tail_at = max(0, self._size - _END.size - _U16)
        tail = self._fetch(tail_at, self._size - tail_at)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + _END.size > len(tail):
            self._damaged("it has no table of its members: a download that broke off?")
        _, disk, table_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
        end = tail_at + at
        if at + _END.size + comment != len(tail):
            self._damaged("its end does not have the length that it states")
        locator = self._fetch(end - _LOCATOR64.size, _LOCATOR64.size) if end >= _LOCATOR64.size else b""
        if locator.startswith(b"PK\x06\x07"):
            _, disk64, at64, disks = _LOCATOR64.unpack(locator)
            end -= _LOCATOR64.size
            fields = _END64.unpack(self._fetch(at64, _END64.size)) if at64 + _END64.size <= end else (b"",)
            if disk64 or disks > 1 or fields[0] != b"PK\x06\x06":
                self._damaged("its zip64 table is not where it states")
            _, _, _, _, disk, table_disk, here, count, length, start = fields
            end = at64
        if disk or table_disk or here != count:
            self._damaged("it is one part of several; join them first")
        if start + length != end:
            self._damaged("its table of members is not where it states: bytes are missing or were added")
        return self._fetch(start, length), count, start

    def _parse_table(self, count: int) -> None:
        """Fill the columns from the table's records. One loop finds them, the rest is done on arrays."""
        table = self.table
        positions: list[int] = []
        raw_names: list[bytes] = []
        at, end, lengths_of = 0, len(table), _LENGTHS.unpack_from
        for _ in range(count):
            if at + _CENTRAL_BYTES > end:
                self._damaged("its table of members is cut off")
            name_length, extra_length, comment_length = lengths_of(table, at + 28)
            positions.append(at)
            at += _CENTRAL_BYTES
            raw_names.append(table[at : at + name_length])
            at += name_length + extra_length + comment_length
        if at != end:
            self._damaged("its table of members does not have the length that it states")
        where = np.array(positions, dtype=np.int64)
        fixed = np.frombuffer(table, np.uint8)[where[:, None] + np.arange(_CENTRAL_BYTES)]
        records = fixed.view(_CENTRAL)[:, 0] if count else np.empty(0, _CENTRAL)
        if (records["signature"] != _CENTRAL_SIGNATURE).any():
            self._damaged("its table of members holds something else")
        packed, size, offset = (records[c].astype(np.uint64) for c in ("packed", "size", "offset"))
        for member in np.flatnonzero((packed == _U32) | (size == _U32) | (offset == _U32)).tolist():
            start = positions[member] + _CENTRAL_BYTES + len(raw_names[member])
            extra = table[start : start + int(records["extra_length"][member])]
            packed[member], size[member], offset[member] = self._zip64(
                extra, int(packed[member]), int(size[member]), int(offset[member])
            )
        self._check_names(names := self._decode_names(raw_names, records["flags"]))
        self._check_records(names, records, packed, size)
        starts, limits, reach = self._extents(names, records, packed, offset)
        is_file = np.array([not name.endswith("/") for name in names], dtype=bool)
        self.folders = [name[:-1] for name in names if name.endswith("/")]
        self.names = [name for name in names if not name.endswith("/")]
        self._at = where[is_file].tolist()
        self._name_lengths = records["name_length"][is_file].tolist()
        self._deflated = (records["method"][is_file] == _DEFLATED).tolist()
        self._crcs = records["crc"][is_file].tolist()
        self._packed = packed[is_file].tolist()
        self._sizes = size[is_file].tolist()
        self._starts, self._reach = starts[is_file], reach[is_file]
        self._local = self._starts.tolist()
        self._limits = limits[is_file].tolist()

    def _decode_names(self, raw_names: list[bytes], flags: np.ndarray) -> list[str]:
        utf8 = ((flags & _UTF8) != 0).tolist()
        try:
            return [
                raw.decode() if modern or raw.isascii() else raw.decode("cp437")
                for raw, modern in zip(raw_names, utf8, strict=True)
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
                    size = next(values) if size == _U32 else size
                    packed = next(values) if packed == _U32 else packed
                    offset = next(values) if offset == _U32 else offset
                except StopIteration:
                    break
            at += 4 + length
        if _U32 in (packed, size, offset):
            self._damaged("a member's zip64 sizes are missing")
        return packed, size, offset

    def _check_names(self, names: list[str]) -> None:
        joined = "\n".join(names)
        if joined.startswith("/") or any(sign in joined for sign in ("..", "\n/", "\\", ":", "\0")):
            for name in names:
                if _OUTSIDE.search(name):
                    self._refused(f"holds {name!r}, which would lie outside of it")
        if len(set(names)) != len(names):
            seen: set[str] = set()
            for name in names:
                if name in seen:
                    self._refused(f"holds {name} twice")
                seen.add(name)

    def _check_records(
        self, names: list[str], records: np.ndarray, packed: np.ndarray, size: np.ndarray
    ) -> None:
        method = records["method"]
        stored = method == _STORED
        for wrong, what in (
            (size > MAX_MEMBER_BYTES, "is larger than the 64 MiB that are read as one file"),
            (packed > MAX_MEMBER_BYTES, "is larger than the 64 MiB that are read as one file"),
            ((records["flags"] & _ENCRYPTED) != 0, "is encrypted"),
            (~stored & (method != _DEFLATED), "is compressed in a way other than deflate"),
            (stored & (size != packed), "states two sizes"),
            (records["disk"] != 0, "lies in another part of the archive"),
        ):
            if wrong.any():
                self._refused(f"holds {names[int(wrong.argmax())]}, which {what}")

    def _extents(
        self, names: list[str], records: np.ndarray, packed: np.ndarray, offset: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int64 (N,) each: where a member starts, where it must end, and up to where to read for it."""
        beyond = offset >= self._table_start
        if beyond.any():
            self._damaged(f"{names[int(beyond.argmax())]} starts behind the table of members")
        starts = offset.astype(np.int64)
        order = np.argsort(starts, kind="stable")
        limits = np.empty_like(starts)
        limits[order] = np.append(starts[order][1:], self._table_start)
        least = _LOCAL.size + records["name_length"].astype(np.int64) + packed.astype(np.int64)
        overlapping = starts + least > limits
        if overlapping.any():
            self._damaged(f"{names[int(overlapping.argmax())]} overlaps another member")
        # Where a gap follows, no more of it is read than an extra field can fill.
        return starts, limits, np.minimum(limits, starts + least + _U16)

    def _damaged(self, what: str) -> NoReturn:
        raise TinlabError(f"{self.path} is damaged ({what}); fetch or copy it anew")

    def _refused(self, what: str) -> NoReturn:
        raise TinlabError(f"{self.path} {what}; make the zip again from files you trust")
