"""Packs against their sources, and packing under every way to fail."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from official import TEST, TRAIN, VAL, WNIDS, decoded, encoded, jpeg, official_files, write_folder, write_zip
from PIL import Image

from tinlab.data import crew, packing
from tinlab.data.archive import ZipArchive
from tinlab.data.digests import OFFICIAL_DIGEST
from tinlab.data.pack import Pack
from tinlab.data.packing import pack
from tinlab.errors import TinlabError

SOURCES = Path(__file__).resolve().parents[2] / "src"
README_DIGESTS = {
    "train": "cc56f987d45d9f026e3fd88f1862ee691870cf076e90f99cdb2da2a412e874fd",
    "val": "beb854a2b69f131cd079cb559fb075fbf5cdad264ba13b29f7580cf1f2af96cc",
    "test": "b83b975a655550eba703c2bf00fa76bf539218a4d8bbf7ac57f28ad2bd138ae5",
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "set.zip", official_files())


def beside(out: Path) -> list[str]:
    """What stands where `out` was to be made, temporary folders included."""
    return (
        sorted(path.name for path in out.parent.iterdir() if "out" in path.name)
        if out.parent.is_dir()
        else []
    )


def refused(source: Path, out: Path, **options: object) -> str:
    """The error of a packing that must leave nothing behind."""
    before = beside(out)
    with pytest.raises(TinlabError) as caught:
        pack(source, out, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert beside(out) == before
    return str(caught.value)


def check_against_files(made: Pack, files: dict[str, bytes]) -> None:
    made.verify()
    for name in made.splits:
        split = made.split(name)
        for image, path in zip(split.images, split.names, strict=True):
            np.testing.assert_array_equal(image, decoded(files[path]))
        mean, deviation = made.moments(name)
        scaled = split.images.reshape(-1, 3) / 255
        np.testing.assert_allclose(mean, scaled.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(deviation, scaled.std(axis=0), rtol=1e-9)


def test_the_official_zip_and_folder_give_one_pack(tmp_path: Path, archive: Path) -> None:
    calls: list[tuple[int, int]] = []
    made = pack(archive, tmp_path / "out", progress=lambda done, total: calls.append((done, total)))
    files = official_files()
    check_against_files(made, files)
    assert not made.reused
    assert made.info.name == "tiny-imagenet-200"
    assert made.info.source["kind"] == "official_zip"
    assert "verified" not in made.info.source
    total = len(WNIDS) * (TRAIN + VAL) + TEST
    assert calls[-1] == (total, total)
    assert {name: len(made.split(name)) for name in made.splits} == {
        "train": len(WNIDS) * (TRAIN - 1),
        "tune": len(WNIDS),
        "val": len(WNIDS) * VAL,
        "test": TEST,
    }
    assert np.bincount(made.split("tune").labels).tolist() == [1, 1, 1]
    assert not made.split("test").labelled
    train = made.split("train")
    assert train.labels.tolist() == sorted(train.labels)
    assert train.names[0].split("/")[1] == WNIDS[0]
    assert beside(tmp_path / "out") == ["out"]
    again = pack(write_folder(tmp_path / "folder", files), tmp_path / "other")
    assert again.digest == made.digest
    assert again.info.source["content_digest"] == made.info.source["content_digest"]
    assert again.info.source["digests"] == made.info.source["digests"]


def test_tune_depends_on_the_seed_and_is_never_everything(tmp_path: Path) -> None:
    files = {f"{kind}/{i}.jpg": jpeg(i, 8) for kind, n in (("a", 1), ("b", 2), ("c", 20)) for i in range(n)}
    source = write_folder(tmp_path / "set", files)
    chosen = {}
    for seed, fraction in ((0, 0.1), (1, 0.1), (0, 0.99), (0, 0)):
        made = pack(
            source, tmp_path / f"out{seed}{fraction}", image_size=8, seed=seed, tune_fraction=fraction
        )
        names = {name: made.split(name).names for name in ("train", "tune", "val")}
        assert sorted(itertools.chain(*names.values())) == sorted(files)
        assert set(made.split("train").labels) == {0, 1, 2}
        assert np.bincount(made.split("val").labels, minlength=3).tolist() == [0, 1, 2]
        chosen[seed, fraction] = names
    assert len(chosen[0, 0.1]["tune"]) == 2
    assert chosen[0, 0.1]["tune"] != chosen[1, 0.1]["tune"]
    assert len(chosen[0, 0.99]["tune"]) == 17
    assert chosen[0, 0]["tune"] == []


def test_images_of_any_kind_are_made_square(tmp_path: Path) -> None:
    big = Image.fromarray(np.full((90, 120, 3), 77, np.uint8))
    files = {"a/1.png": encoded(big, "PNG"), "a/2.jpg": encoded(big), "a/3.gif": encoded(big, "GIF")}
    made = pack(write_folder(tmp_path / "set", files), tmp_path / "out", image_size=32, val_fraction=0)
    assert made.split("train+tune").images.shape == (3, 32, 32, 3)
    assert abs(made.split("train+tune").images.astype(int) - 77).max() <= 1


def test_a_parquet_export_equals_its_images(tmp_path: Path) -> None:
    data = [jpeg(seed) for seed in range(700)]
    table = pa.table({"image": pa.array(data, pa.binary()), "label": [f"c{i % 7}" for i in range(700)]})
    pq.write_table(table, tmp_path / "train.parquet")
    made = pack(tmp_path / "train.parquet", tmp_path / "out")
    check_against_files(made, {f"train.parquet#{row}": image for row, image in enumerate(data)})
    assert {name: len(made.split(name)) for name in made.splits} == {"train": 567, "tune": 63, "val": 70}


def test_a_pack_that_is_there_is_used_again_or_left_alone(tmp_path: Path, archive: Path) -> None:
    out = tmp_path / "out"
    first = pack(archive, out)
    stamp = (out / "train.npy").stat().st_mtime_ns
    assert pack(archive, out).reused
    copy = write_folder(tmp_path / "copy", official_files())
    assert pack(copy, out).reused  # the same content, elsewhere
    assert "tune_fraction 0.1 instead of 0.2" in refused(archive, out, tune_fraction=0.2)
    (copy / "test" / "images" / "test_0.JPEG").write_bytes(jpeg(5))
    assert "another source" in refused(copy, out)
    assert (out / "train.npy").stat().st_mtime_ns == stamp
    assert Pack.open(out).digest == first.digest
    (tmp_path / "out2").mkdir()
    assert not pack(archive, tmp_path / "out2").reused  # an empty folder is no hindrance
    (tmp_path / "out3").mkdir()
    (tmp_path / "out3" / "thesis.txt").write_text("precious")
    assert "other than a pack" in refused(archive, tmp_path / "out3")
    (tmp_path / "out4").write_text("a file")
    assert "is a file" in refused(archive, tmp_path / "out4")


@pytest.mark.parametrize(
    "options",
    [{"image_size": 0}, {"tune_fraction": 1.0}, {"val_fraction": -0.1}, {"seed": -1}, {"workers": 0}],
)
def test_settings_are_checked(tmp_path: Path, archive: Path, options: dict[str, float]) -> None:
    assert next(iter(options)) in refused(archive, tmp_path / "out", **options)


def test_bad_images_are_named_and_counted(tmp_path: Path) -> None:
    files = official_files()
    names = sorted(name for name in files if name.startswith(f"train/{WNIDS[0]}/images"))
    bad = {names[2]: b"", names[5]: b"garbage", names[7]: files[names[7]][:700]}
    for name, data in bad.items():
        message = refused(write_zip(tmp_path / "one.zip", {**files, name: data}), tmp_path / "out")
        assert f"{name} cannot be used" in message
        assert "more" not in message
    message = refused(write_folder(tmp_path / "three", {**files, **bad}), tmp_path / "out")
    assert "2 more images are bad too" in message


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> list[crew.Crew]:
    """Makes a crew of even the smallest source, with tasks of one block; this process waits for the others.

    The crews that worked are put into the list.
    """
    crews: list[crew.Crew] = []
    take = crew.Crew._next

    def patient(self: crew.Crew) -> object:
        if self not in crews:
            crews.append(self)
        until = time.monotonic() + 20
        while len(self._ready) < len(self._helpers) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        return take(self)

    monkeypatch.setattr(crew, "WORTH_BYTES", 0)
    monkeypatch.setattr(crew, "TASK_BYTES", 1)
    monkeypatch.setattr(crew.Crew, "_next", patient)
    return crews


def many_images(count: int = 300) -> dict[str, bytes]:
    return {f"{'ab'[number % 2]}/{number}.jpg": jpeg(number) for number in range(count)}


@pytest.mark.parametrize("kind", ["zip", "folder", "parquet"])
def test_any_number_of_processes_makes_the_same_pack(
    tmp_path: Path, helped: list[crew.Crew], kind: str
) -> None:
    files = many_images()
    if kind == "zip":
        source = write_zip(tmp_path / "set.zip", files)
    elif kind == "folder":
        source = write_folder(tmp_path / "set", files)
    else:
        source = tmp_path / "train.parquet"
        table = pa.table({"image": pa.array(files.values(), pa.binary()), "label": [n[0] for n in files]})
        pq.write_table(table, source)
        files = {f"train.parquet#{row}": image for row, image in enumerate(files.values())}
    alone = pack(source, tmp_path / "out1", workers=1)
    assert not helped[0]._helpers
    for workers in (2, 4):
        made = pack(source, tmp_path / f"out{workers}", workers=workers)
        assert len(helped[-1]._ready) == workers - 1
        assert made.digest == alone.digest
        assert made.info == alone.info
        check_against_files(made, files)


def test_a_helper_names_the_bad_image_and_the_damaged_member(tmp_path: Path, helped: list[crew.Crew]) -> None:
    files = many_images(200)
    bad = dict.fromkeys(files, b"garbage")
    source = write_zip(tmp_path / "bad.zip", bad)
    message = refused(source, tmp_path / "out", workers=2)
    assert len(helped[-1]._ready) == 1
    assert ".jpg cannot be used, it is no image" in message
    assert "199 more images are bad too" in message
    source = write_zip(tmp_path / "set.zip", files)
    with ZipArchive(source) as opened:
        bodies = (opened.columns(np.arange(len(opened.names)))[:, 2] + 500).tolist()
    data = bytearray(source.read_bytes())
    for at in bodies:
        data[at] ^= 255
    source.write_bytes(data)
    assert "damaged" in refused(source, tmp_path / "out", workers=2)


def test_a_helper_that_is_killed_leaves_nothing(
    tmp_path: Path, helped: list[crew.Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_zip(tmp_path / "set.zip", many_images(100))

    def shoot(done: int, total: int) -> None:
        for helper in helped[-1]._helpers:
            helper.kill()

    parcel = ZipArchive.parcel

    def slow(self: ZipArchive, members: np.ndarray) -> bytes:
        time.sleep(0.3)  # so that the helper is asked for more when it is dead
        return parcel(self, members)

    monkeypatch.setattr(ZipArchive, "parcel", slow)
    assert "ended from outside" in refused(source, tmp_path / "out", workers=2, progress=shoot)
    assert all(helper.poll() is not None for helper in helped[-1]._helpers)


def test_without_helpers_the_work_is_done_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: Path
) -> None:
    monkeypatch.setattr(crew, "WORTH_BYTES", 0)
    for executable in ("", str(tmp_path / "none"), "/bin/false"):
        monkeypatch.setattr(sys, "executable", executable)
        made = pack(archive, tmp_path / f"out{len(executable)}", workers=3)
        check_against_files(made, official_files())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_helpers_end_with_their_parent(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "set.zip", many_images(100))
    code = (
        "import sys, time; from tinlab.data import crew, packing\n"
        "crew.WORTH_BYTES, crew.TASK_BYTES = 0, 1\n"
        "started = crew._started\n"
        "def noted():\n"
        "    helper = started(); print(helper.pid, flush=True); return helper\n"
        "crew._started = noted\n"
        "packing.pack(sys.argv[1], sys.argv[2], workers=2, progress=lambda *_: time.sleep(60))\n"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SOURCES)})
    assert parent.stdout is not None
    helper = Path("/proc") / parent.stdout.readline().decode().strip() / "stat"
    assert helper.exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 30
    while helper.exists() and ") Z " not in helper.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert not helper.exists() or ") Z " in helper.read_text()


def test_a_damaged_zip_leaves_nothing(tmp_path: Path, archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    with ZipArchive(archive) as opened:
        middle = int(opened.columns(np.array([20]))[0, 2]) + 500
    data[middle] ^= 255
    archive.write_bytes(data)
    assert "damaged" in refused(archive, tmp_path / "out")
    archive.write_bytes(data[: len(data) // 2])
    assert "damaged" in refused(archive, tmp_path / "out")


def test_a_full_disk_leaves_nothing(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    write = os.write

    def filling(handle: int, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if written > 400_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[:1000])  # and short writes on the way

    monkeypatch.setattr(os, "write", filling)
    assert "disk is full" in refused(archive, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    assert "make room" in refused(archive, tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root to mount")
def test_a_really_full_disk_leaves_nothing(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        assert "make room" in refused(archive, place / "out")
        monkeypatch.setattr(packing, "_check_room", lambda *_: None)
        assert "disk is full" in refused(archive, place / "out")
        assert list(place.iterdir()) == []
        monkeypatch.setattr(crew, "WORTH_BYTES", 0)
        monkeypatch.setattr(crew, "TASK_BYTES", 1)
        source = write_zip(tmp_path / "many.zip", many_images())
        assert "disk is full" in refused(source, place / "out", workers=3)
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_an_unwritable_place(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(archive, tmp_path / "file" / "packs" / "out")

    def denied(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(
        "pathlib.Path.mkdir", denied
    )  # root may write anywhere, so rights alone prove nothing
    assert "Permission denied" in refused(archive, tmp_path / "out")


def child(archive: Path, out: Path, pause_seconds: float = 0) -> subprocess.Popen[bytes]:
    """A process that packs, and says so on its standard output after its first images."""
    code = (
        "import sys, time; from tinlab.data.packing import pack\n"
        "def progress(done, total):\n"
        "    print(done, flush=True); time.sleep(float(sys.argv[3]))\n"
        "print(pack(sys.argv[1], sys.argv[2], progress=progress).reused)\n"
    )
    command = [sys.executable, "-c", code, str(archive), str(out), str(pause_seconds)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def await_first_images(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline()


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals and locks")
def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(
    tmp_path: Path, archive: Path
) -> None:
    out = tmp_path / "out"
    killed = child(archive, out, 60)
    living = child(archive, out, 60)
    await_first_images(killed)
    await_first_images(living)
    assert len(beside(out)) == 2
    assert not out.exists()
    killed.kill()
    killed.wait()
    pack(archive, out)
    assert len(beside(out)) == 2  # the pack, and what the living process works on
    living.send_signal(signal.SIGINT)
    _, stderr = living.communicate(timeout=30)
    assert b"KeyboardInterrupt" in stderr
    assert beside(out) == ["out"]


def test_two_processes_that_pack_the_same_both_end_well(tmp_path: Path, archive: Path) -> None:
    out = tmp_path / "out"
    both = [child(archive, out, 0.2) for _ in range(2)]
    ends = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert sorted(stdout.split()[-1] for stdout, _ in ends) == [b"False", b"True"]
    assert beside(out) == ["out"]
    Pack.open(out).verify()


def test_packing_images_loads_no_large_library() -> None:
    code = "import sys, tinlab.data.packing; print([m for m in ('torch', 'pyarrow') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment).split() == [b"[]"]


@pytest.mark.real
def test_the_real_set(real_zip: Path, tmp_path: Path) -> None:
    start = time.perf_counter()
    made = pack(real_zip, tmp_path / "out")
    print(f"packed in {time.perf_counter() - start:.1f} s")
    counts = {name: len(made.split(name)) for name in made.splits}
    assert counts == {"train": 90_000, "tune": 10_000, "val": 10_000, "test": 10_000}
    assert made.info.source["content_digest"] == OFFICIAL_DIGEST
    assert made.info.source["digests"] == README_DIGESTS
    assert made.info.source["verified"] == "official content"
    assert (np.bincount(made.split("train").labels) == 450).all()
    assert (np.bincount(made.split("tune").labels) == 50).all()
    assert (np.bincount(made.split("val").labels) == 50).all()
    with ZipArchive(real_zip) as archive:
        row_of = {name.removeprefix("tiny-imagenet-200/"): row for row, name in enumerate(archive.names)}
        for name, grey_count in (("train+tune", 1821), ("val", 168), ("test", 189)):
            split = made.split(name)
            rows = np.array([row_of[path] for path in split.names])
            grey = 0
            for at, data in enumerate(archive.read(rows)):
                if Image.open(io.BytesIO(data)).mode == "L":
                    grey += 1
                    image = split.images[at]
                    assert (image == image[:, :, :1]).all()
                    np.testing.assert_array_equal(image, decoded(data))
                elif at % 97 == 0:
                    np.testing.assert_array_equal(split.images[at], decoded(data))
            assert grey == grey_count
    for name in ("val", "test", "tune"):
        mean, deviation = made.moments(name)
        pixels = made.split(name).images.reshape(-1, 3)
        np.testing.assert_allclose(mean, pixels.mean(axis=0) / 255, rtol=1e-9)
        np.testing.assert_allclose(deviation, pixels.std(axis=0) / 255, rtol=1e-6)
    names = json.loads((tmp_path / "out" / "train.names.json").read_text())
    assert len(set(names)) == 100_000
