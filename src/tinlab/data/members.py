"""The bytes of a zip's members, from where its table says that they lie.

Apart from the table's parsing (tinlab.data.archive), so that a process which only reads some members needs
their columns and no more.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import deflate
import numpy as np

from tinlab.errors import TinlabError

MAX_MEMBER_BYTES = 64 << 20
"""The largest member that is read: far beyond any image worth shrinking to a pack's size."""

SPAN_BYTES = 256 << 10
"""Members that lie together are fetched by one read of about this size, which a CPU's cache can hold."""

COLUMNS = ("record", "name_length", "start", "reach", "limit", "packed", "size", "crc", "deflated")
"""What is known of a member, int64 each: where its record lies in the table and how long its name is; where
it starts, up to where to read for it, and where it must end; its bytes in the archive and outside of it."""

LOCAL = struct.Struct("<4s5H3L2H")
STORED, DEFLATED = 0, 8
U16, U32 = 0xFFFF, 0xFFFFFFFF
_RECORD_BYTES = 46
_DESCRIPTOR, _UTF8 = 1 << 3, 1 << 11


class Members:
    """Reads members of the zip `file`, which was opened from `path`, by rows of COLUMNS.

    `table` is the raw central directory, or what was sent of it. Not for several threads at once.
    """

    def __init__(self, path: Path, file: Any, table: bytes) -> None:
        self.path = path
        self.table = table
        self._file = file

    def read(self, columns: np.ndarray) -> Iterator[bytes | bytearray]:
        """The bytes of the members of `columns`, int64 (N, 9), one after the other. Raises TinlabError."""
        for run in _runs(columns):
            low = int(run[:, 2].min())
            yield from self._run(run, self.fetch(low, int(run[:, 3].max()) - low), low)

    def fetch(self, start: int, length: int) -> bytes:
        blocks = []
        try:
            self._file.seek(start)
            while length > 0:
                block = self._file.read(length)
                if not block:
                    self.damaged("it ends too early")
                blocks.append(block)
                length -= len(block)
        except OSError as error:
            raise TinlabError(f"{self.path} cannot be read ({error.strerror}); copy it anew") from error
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def name(self, row: np.ndarray) -> str:
        """The name of the member that `row` of COLUMNS describes."""
        at, length = int(row[0]), int(row[1])
        raw = self.table[at + _RECORD_BYTES : at + _RECORD_BYTES + length]
        modern = int.from_bytes(self.table[at + 8 : at + 10], "little") & _UTF8
        return raw.decode() if modern or raw.isascii() else raw.decode("cp437")

    def _run(self, run: np.ndarray, data: bytes, low: int) -> Iterator[bytes | bytearray]:
        """The members of `run`, whose headers and bytes lie in `data`, which was read from `low`."""
        starts = run[:, 2] - low
        heads = np.frombuffer(data, np.uint8)[starts[:, None] + np.arange(LOCAL.size)]
        records = np.frombuffer(self.table, np.uint8)[run[:, 0, None] + np.arange(6, 30)]
        # Nearly always header and record agree byte for byte, from the version to the length of the name.
        alike = (heads[:, :4] == np.frombuffer(b"PK\x03\x04", np.uint8)).all(axis=1)
        alike &= (heads[:, 4:28] == records).all(axis=1)
        names = starts + LOCAL.size
        extras = heads[:, 28] + 256 * heads[:, 29].astype(np.int64)  # may differ from what the record says
        bodies = names + run[:, 1] + extras
        ends = bodies + run[:, 5]
        beyond = ends > run[:, 4] - low
        inflate, checksum, table = deflate.deflate_decompress, deflate.crc32, self.table
        columns = (alike, beyond, names, names + run[:, 1], run[:, 0] + _RECORD_BYTES, bodies, ends)
        for place, (agrees, too_far, name, name_end, stated, body, end, size, crc, deflated) in enumerate(
            zip(*(column.tolist() for column in (*columns, *run[:, 6:].T)), strict=True)
        ):
            if not agrees or data[name:name_end] != table[stated : stated + name_end - name]:
                self._check_header(run[place], data, name - LOCAL.size)
            if too_far:
                self.damaged(f"{self.name(run[place])} overlaps what follows it")
            content: bytes | bytearray = data[body:end]
            if deflated:
                try:
                    content = inflate(content, size)  # never more than `size`, whatever the member holds
                except deflate.DeflateError:
                    self.damaged(
                        f"{self.name(run[place])} does not inflate to the size that its table states"
                    )
            if len(content) != size:
                self.damaged(f"{self.name(run[place])} does not have the size that its table states")
            if checksum(content) != crc:
                self.damaged(f"{self.name(run[place])} does not have the checksum that its table states")
            yield content

    def _check_header(self, row: np.ndarray, data: bytes, start: int) -> None:
        """Refuse a local header that says something else than the table, beyond what the format allows."""
        signature, _, flags, method, _, _, crc, packed, size, name_length, _ = LOCAL.unpack_from(data, start)
        name = data[start + LOCAL.size : start + LOCAL.size + name_length]
        record, length, _, _, _, stated_packed, stated_size, stated_crc, deflated = row.tolist()
        agrees = (
            signature == b"PK\x03\x04"
            and method == (DEFLATED if deflated else STORED)
            and name == self.table[record + _RECORD_BYTES : record + _RECORD_BYTES + length]
        )
        if agrees and not flags & _DESCRIPTOR:  # else size and checksum stand behind the data
            agrees = crc == stated_crc and packed in (stated_packed, U32) and size in (stated_size, U32)
        if not agrees:
            self.damaged(f"its table and the header of {self.name(row)} contradict one another")

    def damaged(self, what: str) -> NoReturn:
        raise TinlabError(f"{self.path} is damaged ({what}); fetch or copy it anew")


def identity(file: Any) -> list[int]:
    """What tells the opened `file` from another that has taken its name: device, inode, bytes, time."""
    status = os.fstat(file.fileno())
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def _runs(columns: np.ndarray) -> Iterator[np.ndarray]:
    """`columns` cut into runs that one read each can fetch without much waste."""
    starts, reach = columns[:, 2], columns[:, 3]
    span = int(reach.max() - starts.min()) if len(columns) else 0
    if len(columns) <= 1 or (span <= SPAN_BYTES and span <= 4 * int((reach - starts).sum())):
        if len(columns):
            yield columns
    else:
        middle = len(columns) // 2
        yield from _runs(columns[:middle])
        yield from _runs(columns[middle:])


def reopened(reopening: dict[str, Any]) -> Callable[[bytes], Iterator[bytes | bytearray]]:
    """A reader of parcels of the archive that gave `reopening`. Raises TinlabError."""
    path = Path(reopening["path"])
    try:
        file = path.open("rb", buffering=0)
        same = identity(file) == reopening["identity"]
    except OSError as error:
        raise TinlabError(f"{path} cannot be opened ({error.strerror}); name a readable zip") from error
    if not same:
        raise TinlabError(f"{path} has changed while it was read; pack it again")

    def read(parcel: bytes) -> Iterator[bytes | bytearray]:
        count = int.from_bytes(parcel[:8], "little")
        table_at = 8 * (1 + count * len(COLUMNS))
        columns = np.frombuffer(parcel[8:table_at], np.int64).reshape(count, len(COLUMNS))
        return Members(path, file, parcel[table_at:]).read(columns)

    return read
