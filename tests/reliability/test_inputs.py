"""Inputs that a stranger made: a few of each of the kinds of trials/inputs.py, and what was found there."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import warnings
import zipfile
from pathlib import Path

import inputs
import numpy as np
import pytest
from PIL import Image
from strange.binary import pack_files, run_files
from strange.data_sets import chunks, class_files, official_files, png_of, small_jpeg, zipped
from strange.records import study_files
from strange.sandbox import drawn, memory_mib, said, try_one

from tinlab import files, runs
from tinlab.data.given import squares
from tinlab.data.pack import ClassInfo, Pack
from tinlab.data.packing import pack
from tinlab.data.parquet import ParquetRows, rows_at_a_time
from tinlab.errors import TinlabError

FEW = {
    "report": 2,
    "study": 2,
    "results": 4,
    "checkpoint": 4,
    "weights": 5,
    "answers": 5,
    "pack": 8,
    "folder": 8,
}
"""Inputs of a kind; 12 of those that are not listed."""


def refused(function, *arguments, **options) -> str:
    """What `function` says, in one line."""
    with pytest.raises(TinlabError) as caught:
        function(*arguments, **options)
    return said(caught.value)


def put(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_every_part_has_its_promise():
    assert [promise.id for promise in inputs.PROMISES] == [f"inputs.{name}" for name in inputs.PARTS]


@pytest.mark.parametrize("name", inputs.PARTS)
def test_inputs_get_a_result_or_a_sentence(name, tmp_path):
    part = inputs.PARTS[name]
    inputs.warm_up(part, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(FEW.get(name, 12)):
            try_one(part, drawn(part, 1, number), tmp_path / "sandbox")


def test_the_sandbox_notices(tmp_path):
    """A part that writes elsewhere, starts a program, hangs, raises, or changes its input."""
    from strange.sandbox import Fault, Part

    def trying(attempt, seconds=20.0):
        part = Part("bad", lambda rng: {"x": b"1"}, attempt)
        with pytest.raises(Fault) as caught:
            try_one(part, {"x": b"1"}, tmp_path / "sandbox", seconds)
        return str(caught.value)

    assert "open" in trying(lambda place, out: (tmp_path / "elsewhere").write_text("x"))
    assert "os.mkdir" in trying(lambda place, out: (tmp_path / "folder").mkdir())
    assert "os.system" in trying(lambda place, out: os.system("true"))
    assert "more than 0.05 seconds" in trying(lambda place, out: time.sleep(1), 0.05)
    assert trying(lambda place, out: 1 / 0).startswith("ZeroDivisionError")
    assert "it did what" in trying(lambda place, out: (place / "x").write_text("2"))

    def mumble(place, out):
        raise TinlabError("no")

    assert "no sentence" in trying(mumble)


# What is no file, and what no file should hold.


@pytest.mark.parametrize("kind", ["pipe", "endless device", "folder", "loop", "empty"])
def test_what_is_no_file_is_not_waited_for(kind, tmp_path):
    from tinlab import recipes
    from tinlab.evaluating.submission import check_submission
    from tinlab.results import read_results

    path = tmp_path / "x.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to("x.json")
    else:
        path.touch()
    assert "x.json" in refused(recipes.find, str(path))
    assert "x.json" in refused(squares, [path], 8)
    place = put(tmp_path / "pack", pack_files())
    assert "x.json" in refused(check_submission, path, Pack.open(place), split="val")
    for name in ("train.npy", "train.labels.npy", "train.names.json"):
        (place / name).unlink()
        (place / name).symlink_to(path)
        if kind != "empty" or name != "train.names.json":
            assert "pack" in refused(lambda: Pack.open(place).split("train").names)
        (place / name).unlink()
        (place / name).write_bytes(pack_files()[name])
    if kind in ("pipe", "endless device", "folder"):
        assert read_results(path) == []  # as if there were none


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' twice"),
        (b"[" * 100_000, "too deeply"),
        (b"[" * 70 + b"]" * 70, "too deeply"),
        (b"9" * 5000, "digits"),
        ('{"a": "é"}'.encode("utf-16"), "utf-8"),
        (b"", "Expecting value"),
        (b"{} {}", "Extra data"),
    ],
)
def test_json_is_read_strictly(text, wrong, tmp_path):
    (tmp_path / "x").write_bytes(text)
    assert wrong in refused(files.read_given_json, tmp_path / "x")


def test_json_survives_what_editors_and_file_names_add(tmp_path):
    (tmp_path / "x").write_bytes('\ufeff{"a": "é"}'.encode())
    assert files.read_json(tmp_path / "x") == {"a": "é"}
    files.write_json(tmp_path / "y", {"name": "a\udcffé"})  # a lone byte in a file's name, as Python reads it
    assert files.read_json(tmp_path / "y") == {"name": "a\udcffé"}


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/x", "a" * 5000])
def test_names_that_no_file_can_have(name, monkeypatch):
    from tinlab import models, recipes
    from tinlab.data.places import find_source
    from tinlab.models.weight_files import find_file
    from tinlab.recipe import Model

    refused(recipes.find, name)
    refused(find_source, name + "/y")
    refused(runs.open_run, name)
    refused(Pack.open, name)
    refused(find_file, models.find("resnet18"), Model(weights=name + ".pth"))


# Archives.


def zip_with(place: Path, name: str, data: bytes = b"x", **changes: int) -> Path:
    """A data set with one member more."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, content in class_files().items():
            archive.writestr(other, content)
        info = zipfile.ZipInfo("N" * len(name.encode()))
        info.external_attr = changes.get("attributes", 0) << 16
        archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    made = out.getvalue().replace(b"N" * len(name.encode()), name.encode())
    if changes.get("encrypted"):
        for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            start = made.rindex(signature)
            made = made[: start + at] + b"\x01\x00" + made[start + at + 2 :]
    (place / "set.zip").write_bytes(made)
    return place / "set.zip"


@pytest.mark.parametrize(
    "name",
    ["../out.jpg", "train/../../out.jpg", "/etc/out.jpg", "C:/out.jpg", "c:out.jpg", "..\\out.jpg",
    "\\out.jpg",
     "train\\..\\out.jpg", "train/ant/a.jpg\0.txt", "..", "train/ant/.."],
)  # fmt: skip
def test_names_that_lead_out_of_an_archive(name, tmp_path):
    assert "outside of it" in refused(pack, zip_with(tmp_path, name), tmp_path / "out" / "pack", image_size=8)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["set.zip"], ["out", "set.zip"])


def test_members_that_are_links_encrypted_or_there_twice(tmp_path):
    link = zip_with(tmp_path, "train/ant/link.jpg", b"/etc/passwd", attributes=0o120777)
    assert "no image" in refused(
        pack, link, tmp_path / "pack", image_size=8
    )  # its bytes, and not what they name
    assert "encrypted" in refused(
        pack, zip_with(tmp_path, "train/ant/9.jpg", encrypted=1), tmp_path / "pack", image_size=8
    )
    assert "twice" in refused(pack, zip_with(tmp_path, "train/ant/0.jpg"), tmp_path / "pack", image_size=8)


def test_an_archive_that_inflates_to_much_more(tmp_path):
    bomb = zip_with(tmp_path, "train/ant/9.jpg", bytes(65 << 20))
    assert bomb.stat().st_size < 100_000
    assert "64 MiB" in refused(pack, bomb, tmp_path / "pack", image_size=8)
    # A size that the table makes smaller than what is there.
    data = bytearray(zip_with(tmp_path, "train/ant/9.jpg", bytes(1 << 20)).read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<L", 10)
    at = data.rindex(b"PK\x03\x04")
    data[at + 22 : at + 26] = struct.pack("<L", 10)
    (tmp_path / "set.zip").write_bytes(data)
    assert "does not inflate" in refused(pack, tmp_path / "set.zip", tmp_path / "pack", image_size=8)


def test_lists_that_inflate_to_millions_of_lines(tmp_path):
    held = memory_mib()
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        lists = zipped({**official_files(), name: b"a\n" * (20 << 20)})
        (tmp_path / "set.zip").write_bytes(lists)
        assert len(lists) < 200_000
        assert name in refused(pack, tmp_path / "set.zip", tmp_path / "pack", image_size=8)
    assert memory_mib() - held < 300


def test_a_class_that_is_listed_twice_is_found_at_once(tmp_path):
    wnids = [f"n{number}" for number in range(150_000)]
    content = {**official_files(), "wnids.txt": "\n".join([*wnids, wnids[-1]]).encode()}
    (tmp_path / "set.zip").write_bytes(zipped(content))
    begun = time.process_time()
    assert "n149999 twice" in refused(pack, tmp_path / "set.zip", tmp_path / "pack", image_size=8)
    assert time.process_time() - begun < 2  # looked for in the list anew for each, it took minutes


@pytest.mark.parametrize("sign", ["\x0b", "\x1c", "\x85", "\u2028", "\r"])
def test_words_hold_signs_that_part_lines_elsewhere(sign, tmp_path):
    words = f"n01\tgold{sign}fish, a\tb; c\nn02\t<b>\n"
    (tmp_path / "set.zip").write_bytes(zipped({**official_files(), "words.txt": words.encode()}))
    made = pack(tmp_path / "set.zip", tmp_path / "pack", image_size=8)
    named = {one.id: one.words for one in Pack.open(made.path).info.classes}
    assert named == {"n02": "<b>", "n01": "gold" if sign == "\r" else f"gold{sign}fish, a\tb; c"}


def test_a_byte_order_mark_is_no_part_of_a_class(tmp_path):
    content = {**official_files(), "wnids.txt": b"\xef\xbb\xbfn02\r\nn01\r\n"}
    (tmp_path / "set.zip").write_bytes(zipped(content))
    made = pack(tmp_path / "set.zip", tmp_path / "pack", image_size=8)
    assert [one.id for one in made.info.classes] == ["n02", "n01"]


# Folders.


def test_folders_with_other_things_than_files(tmp_path):
    place = put(tmp_path / "set", class_files())
    (place / "train/ant/pipe.jpg").parent.mkdir(exist_ok=True)
    os.mkfifo(place / "train/ant/pipe.jpg")
    assert "neither a file nor a folder" in refused(pack, place, tmp_path / "pack", image_size=8)
    (place / "train/ant/pipe.jpg").unlink()
    for target in ("/dev/zero", "nowhere", "link.jpg"):
        (place / "train/ant/link.jpg").symlink_to(target)
        refused(pack, place, tmp_path / "pack", image_size=8)
        (place / "train/ant/link.jpg").unlink()
    (place / "train/ant/loop").symlink_to(place, target_is_directory=True)
    assert "leads back" in refused(pack, place, tmp_path / "pack", image_size=8)


def test_a_folders_name_that_is_no_text(tmp_path):
    place = put(tmp_path / os.fsdecode(b"set-\xff"), class_files())
    made = pack(place, tmp_path / "pack", image_size=8)
    assert Pack.open(made.path).info.source["path"] == str(place)
    (place / "train/ant").rename(place / os.fsdecode(b"train/\xffant"))
    assert "not UTF-8" in refused(pack, place, tmp_path / "other", image_size=8)
    for name in ("", "x" * 1001, "a\ud800"):
        with pytest.raises(ValueError, match="name"):
            ClassInfo(name, name)


# Images.


def png_header(width: int, height: int) -> bytes:
    real = io.BytesIO()
    Image.new("RGB", (8, 8)).save(real, "PNG")
    parts = chunks(real.getvalue())
    return png_of([(b"IHDR", struct.pack(">2L", width, height) + parts[0][1][8:]), *parts[1:]])


def icon_of(inner: bytes) -> bytes:
    """An icon that says of its image that it is of one pixel."""
    return struct.pack("<3H4B2H2L", 0, 1, 1, 1, 1, 0, 0, 1, 32, len(inner), 22) + inner


def jpeg_of_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan stands there many times."""
    real = io.BytesIO()
    Image.new("RGB", (64, 64)).save(real, "JPEG", progressive=True)
    data = real.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (png_header(50_000, 50_000), "million"),
        (png_header(2**31 - 1, 2**31 - 1), "million"),
        (icon_of(png_header(12_000, 12_000)), "million"),
        (
            small_jpeg(1).replace(struct.pack(">2H", 8, 8), struct.pack(">2H", 65500, 65500), 1),
            "million",
        ),
        (jpeg_of_scans(5000), "scans"),
        (b"", "empty"),
        (b"<svg onload='x'/>", "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
        # which would start another program
    ],
    ids=["png", "png overflow", "icon", "jpeg", "scans", "empty", "svg", "eps"],
)
def test_images_that_say_too_much_of_themselves(data, wrong, tmp_path):
    (tmp_path / "x.png").write_bytes(data)
    held, begun = memory_mib(), time.process_time()
    assert wrong in refused(squares, [tmp_path / "x.png"], 64)
    assert memory_mib() - held < 100
    assert time.process_time() - begun < 2


# Parquet.


def test_parquet_that_lies(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def written(**columns) -> bytes:
        file = io.BytesIO()
        pq.write_table(pa.table(columns), file, compression="zstd")
        return file.getvalue()

    path = tmp_path / "train.parquet"
    # More rows than bytes: one image and one label, as often as one likes.
    path.write_bytes(written(image=pa.array([small_jpeg(1)] * 200_000), label=pa.array([0] * 200_000)))
    assert path.stat().st_size < 100_000
    assert "more rows" in refused(pack, path, tmp_path / "pack", image_size=8)
    # A value of 2 MB, which the file holds once, in each of 60 rows: each is made from it in its turn.
    big = pa.DictionaryArray.from_arrays(pa.array([0] * 60), pa.array([os.urandom(2_000_000)]))
    table = pa.table({"image": big, "label": pa.array([0, 1] * 30)})
    pq.write_table(
        table.cast(pa.schema({"image": pa.binary(), "label": pa.int64()})), path, compression="zstd"
    )
    assert path.stat().st_size < 5_000_000
    del table, big
    before = pa.total_allocated_bytes()
    rows = ParquetRows(path, [path])
    for data in rows.read(range(60)):
        assert len(data) == 2_000_000
        assert pa.total_allocated_bytes() - before < 20_000_000
    rows.close()
    # Values that pack well, and fill the memory when they are unpacked.
    path.write_bytes(
        written(image=pa.array([bytes(10**6 + n) for n in range(40)]), label=pa.array([0, 1] * 20))
    )
    with pq.ParquetFile(path) as table:
        assert rows_at_a_time(table.metadata) < 5
    # Text that is no text, which pyarrow lets through.
    bad = pa.array([b"\xff\xfe", b"a"]).view(pa.string())
    path.write_bytes(written(image=pa.array([small_jpeg(1)] * 2), label=bad))
    assert "train.parquet" in refused(pack, path, tmp_path / "pack", image_size=8)
    # A footer that is longer than the file.
    whole = written(image=pa.array([small_jpeg(1)] * 2), label=pa.array([0, 1]))
    path.write_bytes(whole[:-8] + struct.pack("<L", 2**31) + b"PAR1")
    assert "train.parquet" in refused(pack, path, tmp_path / "pack", image_size=8)


# Recipes, --set, studies.


@pytest.mark.parametrize(
    "assignment",
    ["provenance=5", "augment.².kind=flip", f"augment.{'9' * 5000}.kind=flip",
    "augment.-1.kind=x",
     "stages." + "[" * 100_000 + "=1", "schedule.epochs=" + "[" * 100_000, "optimizer.peak_lr=" + "9" * 5000,
     "optimizer.peak_lr=1e999", "optimizer.peak_lr=NaN", "name=../x", "name=" + "x" * 100_000,
     "x" * 100_000 + "=1"],
    ids=range(12),
)  # fmt: skip
def test_set_says_what_is_wrong(assignment):
    from tinlab import recipes

    assert len(refused(recipes.with_changes, recipes.find("sun_improved"), [assignment])) <= 1000


def test_studies_of_too_many_runs_are_refused_before_they_are_listed():
    from tinlab import recipes
    from tinlab.study.plan import MOST_RUNS, Study, parse_seeds, resolved
    from tinlab.study.space import parse_space

    for seeds in ("1000000000", "9" * 40, f"{MOST_RUNS + 1}"):
        assert "10,000" in refused(parse_seeds, seeds)
    assert "2" in refused(parse_seeds, f"1,{2**63}")
    grid = {f"model.{n}": tuple(range(10)) for n in range(40)}
    assert "at most 10,000" in refused(resolved, Study(name="s", recipes=(recipes.find("demo"),), grid=grid))
    from tinlab.study.plan import file_name, split_values

    begun = time.process_time()
    assert len(split_values("[" * 600_000 + "1")) == 1
    assert split_values(' 1, [2,3],{"a,b": 4},"x,y",') == ["1", "[2,3]", '{"a,b": 4}', '"x,y"', ""]
    assert time.process_time() - begun < 2
    assert len(file_name("\udcff" + "x" * 100)) == 64
    assert {file_name(name)[:1] in (".", "") for name in ("..", ".", "/", "-../x", "é", "../../x")} == {False}
    refused(parse_space, ["optimizer.peak_lr=" + "[" * 5000 + ":1"])


# Packs.


def changed_pack(place: Path, **fields) -> Path:
    content = pack_files()
    value = json.loads(content["pack.json"])
    for path, item in fields.items():
        *groups, last = path.split("__")
        group = value
        for name in groups:
            group = group[name]
        group[last] = item
    return put(place, {**content, "pack.json": json.dumps(value).encode()})


@pytest.mark.parametrize(
    "fields",
    [
        {"files": {"../../../etc/passwd": "x"}}, {"files": {"/dev/zero": "x"}},
        {"splits__val__file": "../val"},
        {"splits": {"../x": {}}}, {"image_size": float("inf")}, {"image_size": 0}, {"image_size": 10**30},
        {"image_size": 1e999}, {"classes": []}, {"classes": [{"id": "a", "words": "b"}] * 2}, {"classes": 5},
        {"classes": [{"id": "\ud800", "words": "x"}]}, {"splits__val__stop": 10**18},
        {"splits__val__start": -1},
        {"splits__val__channel_sum": [1e308] * 3}, {"splits__val__channel_sum": ["nan"] * 3}, {"splits": []},
        {"classes": [{"id": "one", "words": "x"}]}, {"format": 3}, {"source": 7}, {"notes": 7},
    ],
    ids=range(21),
)  # fmt: skip
def test_a_description_that_is_none(fields, tmp_path):
    place = changed_pack(tmp_path / "pack", **fields)
    assert "pack" in refused(lambda: Pack.open(place).split("train"))


@pytest.mark.parametrize(
    "header",
    ["{'descr': '<i8', 'fortran_order': False, 'shape': (4611686018427387904,), }", "(" * 500 + ")" * 500,
     "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000000000000000000,), }",
     "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000,), }", "__import__('os').abort()",
     "{'descr': '|O', 'fortran_order': False, 'shape': (6,), }", "{'descr': '<i8', 'fortran_order': 0}"],
    ids=range(7),
)  # fmt: skip
def test_an_array_whose_header_lies(header, tmp_path):
    place = put(tmp_path / "pack", pack_files())
    head = header.encode().ljust(2000) + b"\n"
    data = b"\x93NUMPY\x02\x00" + struct.pack("<L", len(head)) + head
    for name in ("train.labels.npy", "train.npy"):
        (place / name).write_bytes(data + pack_files()[name][128:])
        assert name in refused(Pack.open, place)
        (place / name).write_bytes(pack_files()[name])


def test_an_archive_or_a_label_in_the_place_of_another(tmp_path):
    place = put(tmp_path / "pack", pack_files())
    (place / "train.npy").write_bytes(zipped({"arr_0.npy": pack_files()["train.npy"]}))
    assert "train.npy" in refused(Pack.open, place)
    (place / "train.npy").write_bytes(pack_files()["train.npy"])
    labels = np.load(place / "train.labels.npy")
    for wrong in (labels + 1, labels.astype(np.float64), labels[:, None], labels[:-1]):
        np.save(place / "train.labels.npy", wrong)
        assert "train.labels.npy" in refused(lambda: Pack.open(place).split("train"))


# Runs: checkpoints, results, reports.


def changed_run(place: Path, name: str, **fields) -> Path:
    content = dict(run_files())
    value = json.loads(content[f"run/{name}"])
    content[f"run/{name}"] = json.dumps({**value, **fields}).encode()
    return put(place, content) / "run"


CHECKPOINT = "checkpoints/step-00000002"


@pytest.mark.parametrize(
    "fields",
    [{"stage": 7}, {"stage": "x"}, {"stage": -1}, {"step": 1e308}, {"step": [1]}, {"step": True},
    {"plateau": 5},
     {"structure": {"conv1": {"in_channels": 10**9}}}, {"structure": "x"}, {"optimizer": {"a": "b"}},
     {"window_images": -5}, {"hard_classes": ["x"]}, {"hard_classes": [2**70]}, {"what": 1}],
    ids=range(14),
)  # fmt: skip
def test_a_state_that_no_training_left(fields, tmp_path):
    from tinlab.classifier import load

    refused(load, changed_run(tmp_path, f"{CHECKPOINT}/state.json", **fields), "cpu")


def test_weights_whose_header_lies(tmp_path):
    from tinlab.classifier import load
    from tinlab.evaluation.logits import Predictions

    place = put(tmp_path, run_files()) / "run" / CHECKPOINT / "model.safetensors"
    whole = place.read_bytes()
    for wrong in (b"", struct.pack("<Q", 2**60) + whole[8:], whole[:-1], whole + b"x", struct.pack("<Q", 0)):
        place.write_bytes(wrong)
        assert "model.safetensors" in refused(load, tmp_path / "run", "cpu")
    place.unlink()
    os.mkfifo(place)
    assert "pipe" in refused(load, tmp_path / "run", "cpu")
    # A number format that numpy does not have.
    header = json.dumps({name: {"dtype": "BF16", "shape": [0, 2], "data_offsets": [0, 0]} for name in
                         ("logits", "labels", "indices")}).encode()  # fmt: skip
    (tmp_path / "p.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "p.safetensors" in refused(Predictions.load, tmp_path / "p.safetensors")


def test_an_optimizers_state_that_lacks_some_or_fits_no_parameter(tmp_path):
    """The step after it ended in a TypeError or a RuntimeError of torch's."""
    from safetensors.numpy import load, save

    name = f"run/{CHECKPOINT}/optimizer.safetensors"
    tensors = load(run_files()[name])
    first, second, *_ = tensors
    part = inputs.PARTS["checkpoint"]
    lacking = {key: value for key, value in tensors.items() if key != first}
    assert try_one(part, {**run_files(), name: save(lacking)}, tmp_path / "sandbox") is None
    for wrong in (tensors[second].astype(np.float64), tensors[second].reshape(-1)[:1], tensors[second][None]):
        changed = save({**tensors, second: wrong})
        assert "damaged" in (try_one(part, {**run_files(), name: changed}, tmp_path / "sandbox") or "")
    for key in ("params/#0", "lr/#0"):
        changed = save({**tensors, key: np.zeros(1, np.float32)})
        assert "damaged" in (try_one(part, {**run_files(), name: changed}, tmp_path / "sandbox") or "")


def test_a_result_names_no_file(tmp_path):
    """results add wrote the run's curve to a file that was called what result.json said."""
    from tinlab.results import record

    for name in ("../../owned", "/tmp/owned", "tiny2"):
        run = changed_run(tmp_path / str(len(name)), "result.json", recipe=name)
        assert "another recipe" in refused(record, run, tmp_path / "results" / "results.csv")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "fields",
    [{"top1_percent": None}, {"train_seconds": "x"}, {"epochs": 10**400}, {"split": 3}, {"loss": [1]}],
)
def test_a_damaged_result_is_named_and_not_listed(fields, tmp_path):
    run = changed_run(tmp_path, "result.json", **fields)
    assert next(iter(fields)) in refused(lambda: runs.open_run(run).result)
    assert runs.list_runs(tmp_path) == []


def test_curves_without_what_is_no_point(tmp_path):
    lines = ["[]", "5", '{"kind": "train"}', '{"kind": "x", "step": 1, "epoch": 1}', "[" * 100_000,
             '{"kind": "eval", "step": "1", "epoch": 1}',
             '{"kind": "eval", "step": 2, "epoch": 1, "loss": NaN}',
             '{"kind": "eval", "step": 1, "epoch": 1, "top1_percent": {}}',
             '{"kind": "eval", "step": 1, "ep']  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [line["step"] for line in runs.read_metrics(tmp_path / "metrics.jsonl")] == [2]


def test_a_studys_row_leads_to_no_run_of_others(tmp_path):
    """Missing predictions are made and saved in the run that a row names."""
    from tinlab.study.page import read_study
    from tinlab.study.plan import trials

    place = put(tmp_path, study_files()) / "study"
    done = read_study(place)
    path = place / "trials" / f"{trials(done.study)[0].key}.json"
    for elsewhere in ("../other", "runs/../../other", "/etc", "runs/.."):
        path.write_text(json.dumps({**json.loads(path.read_text()), "run": elsewhere}))
        assert all((row.run or "runs/").startswith("runs/tiny") or row.run is None or "other" in row.recipe
                   for row in read_study(place).rows)  # fmt: skip
        assert not any(elsewhere == row.run for row in read_study(place).rows)
    for fields in (
        {"run": None},
        {"split": None},
        {"top1_percent": None},
        {"status": "stopped", "run": None},
    ):
        row = json.loads(study_files()[f"study/trials/{path.name}"])
        path.write_text(json.dumps({**row, **fields}))
        inputs.PARTS["study"].attempt(tmp_path, tmp_path)
    (place / "study.json").write_text(json.dumps({"name": "s", "recipes": ["demo"]}))
    assert "study.json" in refused(read_study, place)


def test_tables_with_separators_quotes_and_no_numbers(tmp_path):
    from tinlab.papers.measures import read_measures
    from tinlab.results import COLUMNS, mean_top1_percent, read_results

    head = ",".join(COLUMNS)
    row = ['"a,b""c"' if name == "recipe" else '"x\ny"' if name == "hardware" else "1" for name in COLUMNS]
    (tmp_path / "r.csv").write_text(f"{head}\n{','.join(row)}\n")
    assert [read_results(tmp_path / "r.csv")[0][name] for name in ("recipe", "hardware")] == ['a,b"c', "x\ny"]
    for name, bad in (("top1_percent", "NaN"), ("top1_percent", "x"), ("recipe", "x" * 200_000)):
        values = dict(zip(COLUMNS, row, strict=True)) | {name: bad, "split": "val"}
        (tmp_path / "r.csv").write_text(f"{head}\n{','.join(values.values())}\n")
        assert "r.csv" in refused(mean_top1_percent, tmp_path / "r.csv")
    (tmp_path / "r.csv").write_bytes(head.encode() + b"\n\xff\xfe\n")
    assert "r.csv" in refused(read_results, tmp_path / "r.csv")
    (tmp_path / "m.csv").write_text("row,measure\n")
    assert "other columns" in refused(read_measures, tmp_path / "m.csv")


# Names in the terminal and on pages.

NASTY = "\x1b[31mred\x07\u202egpj\x00\x9b2J<script>alert(1)</script>\"'</title>{{ 7*7 }}[/red][bold]$\\frac{"


def test_nothing_drives_the_terminal(capsys):
    from tinlab import terminal

    table = {"columns": ("a", NASTY), "rows": [(NASTY, 1)], "title": NASTY}
    terminal.show_table(table["columns"], table["rows"], title=table["title"])
    terminal.show(NASTY)
    terminal.say(NASTY)
    terminal.fail(NASTY, 2)
    with terminal.counting(NASTY):
        pass
    out, err = capsys.readouterr()
    assert "[/red][bold]" in out  # no markup of rich either
    terminal.show_json({"name": NASTY, "lone": "\ud800", "joined": "a\u200db"})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"name": NASTY, "lone": "\ud800", "joined": "a\u200db"}
    for bad in "\x1b\x07\u202e\x00\x9b":
        assert bad not in out + err + shown


def test_commands_print_names_without_their_signs(tmp_path, capsys):
    """What lists classes, runs and packs, from data whose every name is nasty."""
    from typer.testing import CliRunner

    from tinlab.cli import app

    place = put(tmp_path / "set", {name.replace("ant", NASTY.replace("/", "|").replace("\0", "")): data
                                   for name, data in class_files().items()})  # fmt: skip
    made = pack(place, tmp_path / "pack", image_size=8)
    about = [{"id": one.id, "words": one.words} for one in made.info.classes]
    run = put(tmp_path, {**run_files(), "run/classes.json": json.dumps(about).encode()}) / "run"
    for words in (
        ["data", "audit", str(made.path), "--no-near-duplicates"],
        ["data", "audit", str(made.path), "--no-near-duplicates", "--json"],
        ["data", "show", str(made.path), "--out", str(tmp_path / "grid.png")],
        ["evaluate", str(run), "--classes"],
        ["evaluate", str(run), "--json"],
        ["runs", "--out", str(tmp_path)],
        ["report", str(run), "--no-explain"],
    ):
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, (words, done.output)
        for bad in "\x1b\x07\u202e\x9b":
            assert bad not in done.output, words
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert html[: html.index("</head>")].count("</title>") == 1
    assert "{{ 7*7 }}" in html
    for bad in "\x1b\x07\u202e\x9b":
        assert bad not in html
