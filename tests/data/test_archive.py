"""The zip reader against Python's own, and against damaged and malicious archives."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinlab.data.archive import ZipArchive
from tinlab.data.members import MAX_MEMBER_BYTES
from tinlab.errors import TinlabError

RNG = np.random.default_rng(0)
CONTENT = {f"a/file{i}.bin": RNG.integers(0, 64, 50 * i, dtype=np.uint8).tobytes() for i in range(12)}


class Unseekable(io.RawIOBase):
    """Makes zipfile write data descriptors."""

    def __init__(self) -> None:
        self.data = io.BytesIO()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return self.data.write(data)  # type: ignore[arg-type]


def zipped(method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        out.mkdir("a")
        for name, data in CONTENT.items():
            out.writestr(name, data)
        out.comment = comment
    return file.getvalue()


def contents(path: Path) -> dict[str, bytes]:
    with ZipArchive(path) as archive:
        return dict(zip(archive.names, archive.read(range(len(archive.names))), strict=True))


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(TinlabError) as caught:
        contents(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.zip"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("comment", [b"", b"a comment with PK\x05\x06 in it? no: " + b"x" * 60000])
def test_reads_what_zipfile_wrote(path: Path, method: int, comment: bytes) -> None:
    path.write_bytes(zipped(method, comment.replace(b"PK\x05\x06", b"")))
    assert contents(path) == CONTENT
    with ZipArchive(path) as archive:
        assert archive.folders == ["a"]
        some = [7, 2, 11, 2]
        assert list(archive.read(some)) == [CONTENT[archive.names[i]] for i in some]
        assert list(archive.read([])) == []


def test_reads_data_descriptors_and_zip64_and_foreign_names(path: Path) -> None:
    stream = Unseekable()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as out:  # type: ignore[arg-type]
        for name, data in CONTENT.items():
            with out.open(name, "w", force_zip64=True) as member:
                member.write(data)
        out.writestr("katzen/größe.txt", "ß")
    path.write_bytes(stream.data.getvalue())
    assert contents(path) == {**CONTENT, "katzen/größe.txt": "ß".encode()}


def test_reads_a_zip64_table(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    path.write_bytes(zipped())
    assert b"PK\x06\x06" in path.read_bytes()
    assert contents(path) == CONTENT


def test_an_empty_zip_has_no_members(path: Path) -> None:
    with zipfile.ZipFile(path, "w"):
        pass
    assert contents(path) == {}


@pytest.mark.parametrize("cut", [1, 21, 22, 100, 500])
def test_refuses_a_truncated_zip(path: Path, cut: int) -> None:
    refused(path, zipped()[:-cut])
    refused(path, zipped()[cut:])


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "C:/x", "a\\..\\x"])
def test_refuses_names_that_leave_the_archive(path: Path, name: str) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr(name, b"x")
    assert "outside" in refused(path, file.getvalue())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_refuses_a_name_that_stands_twice(path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("x", b"1")
        out.writestr("x", b"2")
    assert "twice" in refused(path, file.getvalue())


def test_refuses_a_bomb(path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("x", bytes(MAX_MEMBER_BYTES + 1))
    honest = file.getvalue()
    assert "64 MiB" in refused(path, honest)
    table = honest.rindex(b"PK\x01\x02")
    lying = bytearray(honest)
    lying[table + 24 : table + 28] = struct.pack("<L", 1000)
    lying[22:26] = struct.pack("<L", 1000)
    assert "size" in refused(path, bytes(lying))


def test_refuses_lies(path: Path) -> None:
    good = zipped()
    first = good.index(b"PK\x01\x02")
    second = good.index(b"PK\x01\x02", good.index(b"PK\x01\x02", first + 4) + 4)

    def changed(at: int, value: bytes) -> bytes:
        return good[:at] + value + good[at + len(value) :]

    local = good.index(b"a/file5.bin") - 30
    assert "contradict" in refused(path, changed(local + 30, b"b"))
    assert "contradict" in refused(path, changed(local + 14, b"\0\0\0\0"))
    assert "contradict" in refused(path, changed(local + 22, b"\1\0\0\0"))
    assert "overlaps" in refused(path, changed(second + 42, struct.pack("<L", 1)))
    assert "behind" in refused(path, changed(second + 42, struct.pack("<L", len(good))))
    assert "encrypted" in refused(path, changed(second + 8, b"\1\0"))
    assert "deflate" in refused(path, changed(second + 10, b"\x0c\0"))
    assert "several" in refused(path, changed(len(good) - 18, b"\1\0"))
    body = good.index(b"a/file9.bin") + len("a/file9.bin")
    refused(path, changed(body + 40, bytes([good[body + 40] ^ 255])))
    extra = changed(local + 28, b"\xff\xff")
    assert "overlaps" in refused(path, extra)


def test_a_file_that_is_no_zip_or_not_there(path: Path) -> None:
    with pytest.raises(TinlabError, match="No such file"):
        ZipArchive(path)
    refused(path, b"")
    refused(path, b"not a zip at all")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 10**6)),
    near_end=st.booleans(),
)
def test_no_mutation_gives_anything_but_a_clear_error(
    tmp_path: Path, flips: list[tuple[int, int]], cut: int | None, near_end: bool
) -> None:
    data = bytearray(zipped())
    reach = 600 if near_end else len(data)  # the tables are where most can go wrong
    for at, value in flips:
        data[len(data) - 1 - at % reach] = value
    if cut is not None:
        del data[cut % len(data) :]
    path = tmp_path / "mutated.zip"
    path.write_bytes(data)
    with contextlib.suppress(TinlabError):
        contents(path)
