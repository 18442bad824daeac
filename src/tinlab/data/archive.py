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
from typing import Any, NoReturn

import numpy as np

from tinlab.errors import TinlabError

MAX_MEMBER_BYTES = 64 << 20
"""The largest member that is read: far beyond any image worth shrinking to a pack's size."""

SPAN_BYTES = 2 << 20
"""Members that lie together are fetched by one read of about this size."""

_END = struct.Struct("<4s4H2LH")  # end of central directory
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 1, 8, 1 << 11
_U16, _U32 = 0xFFFF, 0xFFFFFFFF
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
        for run in self._runs(members):
            low = int(self._starts[run].min())
            data = self._fetch(low, int(self._reach[run].max()) - low)
            for member in run:
                yield self._member(int(member), data, low)

    def _runs(self, members: np.ndarray) -> Iterator[list[int]]:
        """`members` cut into runs, each of which one read of at most SPAN_BYTES or one member covers."""
        starts, ends = self._starts[members].tolist(), self._reach[members].tolist()
        run: list[int] = []
        low = high = wanted = 0
        for member, start, end in zip(members.tolist(), starts, ends, strict=True):
            span = max(high, end) - min(low, start)
            if run and (span > SPAN_BYTES or span > 4 * (wanted + end - start) + 4096):
                yield run
                run = []
            if not run:
                low, high, wanted = start, end, 0
            run.append(member)
            low, high, wanted = min(low, start), max(high, end), wanted + end - start
        if run:
            yield run

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
        size, packed, crc = self._sizes[member], self._packed[member], self._crcs[member]
        name_at, name_end = self._raw_names[member]
        header_end = start + _LOCAL.size
        signature, _, flags, method, _, _, crc_here, packed_here, size_here, name_length, extra_length = (
            _LOCAL.unpack_from(data, start)
        )
        body = header_end + name_length + extra_length
        if (
            signature != b"PK\x03\x04"
            or method != self._methods[member]
            or data[header_end : header_end + name_length] != self.table[name_at:name_end]
            or body + packed > self._limits[member] - low
            or (not flags & _DESCRIPTOR and crc_here != crc)
            or (not flags & _DESCRIPTOR and packed_here not in (packed, _U32))
            or (not flags & _DESCRIPTOR and size_here not in (size, _U32))
        ):
            self._damaged(f"its table and the header of {self.names[member]} contradict one another")
        packed_bytes = data[body : body + packed]
        if method == _STORED:
            content = packed_bytes
        else:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                content = inflater.decompress(packed_bytes, size + 1)
            except zlib.error:
                self._damaged(f"{self.names[member]} does not inflate")
            if not inflater.eof and len(content) <= size and inflater.decompress(b"", 1):
                self._damaged(f"{self.names[member]} does not have the size that its table states")
        if len(content) != size:
            self._damaged(f"{self.names[member]} does not have the size that its table states")
        if zlib.crc32(content) != crc:
            self._damaged(f"{self.names[member]} does not have the checksum that its table states")
        return content

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
        if _U16 in (disk, table_disk, here, count) or _U32 in (length, start):
            locator_at = end - _LOCATOR64.size
            if locator_at >= 0:
                signature, disk64, at64, disks = _LOCATOR64.unpack(self._fetch(locator_at, _LOCATOR64.size))
                if signature == b"PK\x06\x07":
                    if disk64 or disks > 1 or at64 + _END64.size > locator_at:
                        self._damaged("its zip64 table is not where it states")
                    fields = _END64.unpack(self._fetch(at64, _END64.size))
                    if fields[0] != b"PK\x06\x06":
                        self._damaged("its zip64 table is not where it states")
                    disk, table_disk, here, count, length, start = fields[4:10]
                    end = at64
        if disk or table_disk or here != count:
            self._damaged("it is one part of several; join them first")
        if start + length != end:
            self._damaged("its table of members is not where it states: bytes are missing or were added")
        return self._fetch(start, length), count, start

    def _parse_table(self, count: int) -> None:
        table = self.table
        if count * _CENTRAL.size > len(table):
            self._damaged("its table of members is cut off")
        members: list[tuple[Any, ...]] = []
        at, end, unpack = 0, len(table), _CENTRAL.unpack_from
        for _ in range(count):
            if at + _CENTRAL.size > end:
                self._damaged("its table of members is cut off")
            fields = unpack(table, at)
            name_at = at + _CENTRAL.size
            name_end = name_at + fields[10]
            extra_end = name_end + fields[11]
            at = extra_end + fields[12]
            if fields[0] != b"PK\x01\x02" or at > end:
                self._damaged("its table of members is cut off")
            packed, size, offset = fields[8], fields[9], fields[16]
            if _U32 in (packed, size, offset):
                packed, size, offset = self._zip64(table[name_end:extra_end], packed, size, offset)
            raw = table[name_at:name_end]
            try:
                name = raw.decode("utf-8" if fields[3] & _UTF8 else "cp437")
            except UnicodeDecodeError:
                self._damaged(f"the name of member {len(members)} is not UTF-8")
            members.append(
                (name, fields[3], fields[4], fields[7], packed, size, offset, fields[13], name_at, name_end)
            )
        if at != end:
            self._damaged("its table of members is longer than it states")
        self._check(members)

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

    def _check(self, members: list[tuple[Any, ...]]) -> None:
        """Refuse what is suspicious in the table; keep the files' columns."""
        names = [member[0] for member in members]
        every_name = "\n".join(names)
        if (
            ".." in every_name
            or "\\" in every_name
            or ":" in every_name
            or "\x00" in every_name
            or (every_name.startswith("/") or "\n/" in every_name)
        ):
            for name in names:
                if _OUTSIDE.search(name):
                    self._refused(f"holds {name!r}, which would lie outside of it")
        if len(set(names)) != len(names):
            seen: set[str] = set()
            for name in names:
                if name in seen:
                    self._refused(f"holds {name} twice")
                seen.add(name)
        for name, flags, method, _, packed, size, _, disk, _, _ in members:
            if size > MAX_MEMBER_BYTES or packed > MAX_MEMBER_BYTES:
                self._refused(f"holds {name} of {size / 2**20:,.0f} MiB; at most 64 MiB are read as one file")
            if flags & _ENCRYPTED:
                self._refused(f"holds {name}, which is encrypted")
            if method not in (_STORED, _DEFLATED) or (method == _STORED and size != packed) or disk:
                self._refused(f"holds {name}, compressed by method {method}, of which 0 and 8 are read")
        starts = np.array([member[6] for member in members], dtype=np.uint64)
        if len(starts) and int(starts.max()) >= self._table_start:
            self._damaged("a member starts behind the table of members")
        order = np.argsort(starts, kind="stable")
        limits = np.empty(len(starts), dtype=np.int64)
        limits[order] = np.append(starts[order][1:], self._table_start).astype(np.int64)
        least = np.array([_LOCAL.size + m[9] - m[8] + m[4] for m in members], dtype=np.int64)
        overlapping = starts.astype(np.int64) + least > limits
        if overlapping.any():
            self._damaged(f"{names[int(overlapping.argmax())]} overlaps another member")
        files = [i for i, name in enumerate(names) if not name.endswith("/")]
        self.folders = [name[:-1] for name in names if name.endswith("/")]
        self.names = [names[i] for i in files]
        self._methods = [members[i][2] for i in files]
        self._crcs = [members[i][3] for i in files]
        self._packed = [members[i][4] for i in files]
        self._sizes = [members[i][5] for i in files]
        self._raw_names = [(members[i][8], members[i][9]) for i in files]
        self._starts = starts.astype(np.int64)[files]
        limits = limits[files]
        # A member ends where the next starts; where there is a gap, no more of it than a header can claim.
        self._reach = np.minimum(limits, self._starts + least[files] + _U16)
        self._local = self._starts.tolist()
        self._limits = self._reach.tolist()

    def _damaged(self, what: str) -> NoReturn:
        raise TinlabError(f"{self.path} is damaged ({what}); fetch or copy it anew")

    def _refused(self, what: str) -> NoReturn:
        raise TinlabError(f"{self.path} {what}; make the zip again from files you trust")
