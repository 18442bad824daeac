"""What a source is taken for, its classes and labels, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from official import TEST, TRAIN, VAL, WNIDS, jpeg, official_files, write_folder, write_zip

from tinlab.data.source import Source, open_source
from tinlab.errors import TinlabError

Files = dict[str, bytes]


def labels_by_name(source: Source, split: str) -> dict[str, str]:
    samples = source.splits[split]
    return {
        source.names[row]: source.classes[label].id if label >= 0 else ""
        for row, label in zip(samples.rows.tolist(), samples.labels.tolist(), strict=True)
    }


def refused(path: Path) -> str:
    with pytest.raises(TinlabError) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("container", ["zip", "flat zip", "folder", "folder above"])
def test_the_official_layout(tmp_path: Path, container: str) -> None:
    files = official_files()
    if "zip" in container:
        path = write_zip(tmp_path / "x.zip", files, "" if "flat" in container else "tiny-imagenet-200/")
    else:
        path = write_folder(tmp_path / "above" / "renamed", files)
        path = path.parent if "above" in container else path
    with open_source(path) as source:
        assert source.kind == ("official_zip" if "zip" in container else "official_folder")
        assert [c.id for c in source.classes] == list(WNIDS)
        assert source.classes[0].words == "word 2, other word"
        assert {name: len(s) for name, s in source.splits.items()} == {
            "train": TRAIN * len(WNIDS),
            "val": VAL * len(WNIDS),
            "test": TEST,
        }
        train = labels_by_name(source, "train")
        assert all(name.split("/")[1] == wnid for name, wnid in train.items())
        assert list(train) == [n for w in WNIDS for n in sorted(train) if w in n.split("/")[1]]
        assert labels_by_name(source, "val")["val/images/val_1.JPEG"] == WNIDS[1]
        assert set(labels_by_name(source, "test").values()) == {""}
        for samples in source.splits.values():
            for row, data in zip(samples.rows, source.store.read(samples.rows), strict=True):
                assert data == files[source.names[row]]
        assert len(source.others) == len(WNIDS) + 3


def test_val_that_somebody_sorted_into_class_folders(tmp_path: Path) -> None:
    files = official_files()
    del files["val/val_annotations.txt"]
    for name in [name for name in files if name.startswith("val/")]:
        number = int(name.split("_")[1].split(".")[0])
        files[f"val/{WNIDS[number % 3]}/{name.split('/')[-1]}"] = files.pop(name)
    with open_source(write_folder(tmp_path / "set", files)) as source:
        assert labels_by_name(source, "val")[f"val/{WNIDS[2]}/val_2.JPEG"] == WNIDS[2]


def without(name: str) -> Callable[[Files], object]:
    return lambda files: files.pop(name)


def annotations(change: Callable[[str], str]) -> Callable[[Files], object]:
    name = "val/val_annotations.txt"
    return lambda files: files.update({name: change(files[name].decode()).encode()})


def without_class(files: Files) -> None:
    for name in [name for name in files if name.startswith(f"train/{WNIDS[1]}/images")]:
        del files[name]


BROKEN: dict[str, tuple[Callable[[Files], object], str]] = {
    "no annotations": (without("val/val_annotations.txt"), "val_annotations.txt is missing"),
    "malformed annotations": (annotations(lambda text: text.replace("\t", " ")), "line 1"),
    "unknown wnid": (annotations(lambda text: text.replace(WNIDS[1], "n9")), "names n9"),
    "image without a line": (annotations(lambda text: text.split("\n", 1)[1]), "no line"),
    "line without an image": (without("val/images/val_3.JPEG"), "not in val/images"),
    "line twice": (annotations(lambda text: text + text.split("\n")[0]), "second time"),
    "empty class": (without_class, "has no images"),
    "class not listed": (lambda files: files.update({"wnids.txt": WNIDS[0].encode()}), "not a class"),
    "class listed twice": (lambda files: files.update({"wnids.txt": b"n1\nn1"}), "twice"),
    "no list": (without("wnids.txt"), "wnids.txt"),
    "empty list": (lambda files: files.update({"wnids.txt": b""}), "empty"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("container", ["zip", "folder"])
def test_a_broken_official_layout_is_refused(tmp_path: Path, case: str, container: str) -> None:
    change, reason = BROKEN[case]
    files = official_files()
    change(files)
    zipped = container == "zip"
    path = write_zip(tmp_path / "x.zip", files) if zipped else write_folder(tmp_path / "x", files)
    assert reason in refused(path)


def test_class_folders(tmp_path: Path) -> None:
    files = {f"{kind}/{i}.jpg": jpeg(i, 32) for kind in ("cat", "ant") for i in range(4)}
    with open_source(write_folder(tmp_path / "plain", {**files, "cat/notes.txt": b""})) as source:
        assert source.kind == "class_folders"
        assert [c.id for c in source.classes] == ["ant", "cat"]
        assert list(source.splits) == ["train"]
        assert labels_by_name(source, "train") == {name: name.split("/")[0] for name in sorted(files)}
        assert "1 files were left out" in source.notes[0]
    split = {f"{top}/{name}": data for top in ("train", "validation") for name, data in files.items()}
    split |= {"test/7.png": b"", "test/8.png": b""}
    for path in (
        write_folder(tmp_path / "split", split),
        write_zip(tmp_path / "split.zip", split, ""),
        write_zip(tmp_path / "below.zip", split, "below/"),
    ):
        with open_source(path) as source:
            assert {name: len(s) for name, s in source.splits.items()} == {"train": 8, "val": 8, "test": 2}
            assert labels_by_name(source, "val")["validation/cat/1.jpg"] == "cat"
            assert set(source.splits["test"].labels) == {-1}


def test_class_folders_map_by_name_and_refuse_what_does_not_fit(tmp_path: Path) -> None:
    files = {f"train/{kind}/{i}.jpg": jpeg(i, 8) for kind in ("ant", "bee", "cat") for i in range(2)}
    path = write_folder(tmp_path / "set", {**files, "val/cat/0.jpg": b"", "val/bee/0.jpg": b""})
    with open_source(path) as source:
        assert labels_by_name(source, "val") == {"val/bee/0.jpg": "bee", "val/cat/0.jpg": "cat"}
        assert source.notes == ("val has no images of 1 classes, ant first",)
    (path / "val" / "ant").mkdir()
    assert "val/ant holds no images" in refused(path)
    (path / "val" / "ant").rename(path / "val" / "dog")
    assert "lacks" in refused(path)
    (path / "val" / "dog").rename(path / "train" / "dog")
    assert "train/dog holds no images" in refused(path)


def test_what_is_no_source(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "accepted are" in refused(tmp_path / "empty")
    (tmp_path / "text.txt").write_text("hello")
    assert "accepted are" in refused(tmp_path / "text.txt")
    (tmp_path / "text.zip").write_text("hello")
    assert "damaged" in refused(tmp_path / "text.zip")
    assert "no class folders" in refused(write_zip(tmp_path / "none.zip", {"readme.txt": b""}, ""))
    (tmp_path / "loop" / "a").mkdir(parents=True)
    (tmp_path / "loop" / "a" / "b").symlink_to(tmp_path / "loop")
    with pytest.raises(TinlabError, match="leads back"):
        open_source(tmp_path / "loop")


def write_parquet(
    path: Path, labels: list[object], names: list[str] | None = None, plain: bool = False
) -> Path:
    images = [jpeg(seed, 16) for seed in range(len(labels))]
    column = (
        pa.array(images, pa.binary())
        if plain
        else pa.array(
            [{"bytes": data, "path": None} for data in images],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
    )
    table = pa.table({"image": column, "label": labels})
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, path, row_group_size=3)
    return path


def test_parquet_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_parquet(folder / "train-00000-of-00002.parquet", [1, 0, 1, 2], ["x", "y", "z"])
    write_parquet(folder / "train-00001-of-00002.parquet", [2, 0], ["x", "y", "z"])
    write_parquet(folder / "valid-00000-of-00001.parquet", [2, 1], ["x", "y", "z"])
    write_parquet(folder / "test-00000-of-00001.parquet", [-1, -1], ["x", "y", "z"])
    with open_source(folder) as source:
        assert source.kind == "parquet"
        assert [c.id for c in source.classes] == ["x", "y", "z"]
        assert source.splits["train"].labels.tolist() == [1, 0, 1, 2, 2, 0]
        assert source.splits["val"].labels.tolist() == [2, 1]
        assert source.splits["test"].labels.tolist() == [-1, -1]
        rows = source.splits["train"].rows
        every = list(source.store.read(rows))
        assert every == [jpeg(seed, 16) for seed in (0, 1, 2, 3, 0, 1)]
        assert list(source.store.read(rows[[1, 4, 5]])) == [every[1], every[4], every[5]]
        assert list(source.store.read(rows[[0]])) == every[:1]
        assert source.names[rows[4]] == "train-00001-of-00002.parquet#0"


@pytest.mark.parametrize("plain", [True, False])
def test_parquet_labels_that_are_strings_or_bare_numbers(tmp_path: Path, plain: bool) -> None:
    with open_source(write_parquet(tmp_path / "any.parquet", ["b", "a", "b"], plain=plain)) as source:
        assert [c.id for c in source.classes] == ["a", "b"]
        assert source.splits["train"].labels.tolist() == [1, 0, 1]
    with open_source(write_parquet(tmp_path / "any.parquet", [7, 3, 7], plain=plain)) as source:
        assert [c.id for c in source.classes] == ["3", "7"]


def test_broken_parquet_files(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", ["a", None, "b"])
    assert "train.parquet#1 has no label" in refused(path)
    assert "unknown label 5" in refused(write_parquet(path, [0, 5], ["x", "y"]))
    write_parquet(path, [0, 1])
    path.write_bytes(path.read_bytes()[:-30])
    assert "damaged" in refused(path)
    pq.write_table(pa.table({"label": [1, 2]}), path)
    assert "no column of image bytes" in refused(path)
    pq.write_table(pa.table({"image": [b"", b""], "speed": [1.0, 2.0]}), path)
    assert "no label column" in refused(path)
    with open_source(write_parquet(path, [0, 1, 1, 0])) as source:
        data = bytearray(path.read_bytes())
        data[4:400] = bytes(396)
        path.write_bytes(data)
        with pytest.raises(TinlabError, match="damaged"):
            list(source.store.read(np.arange(4)))


@pytest.mark.real
def test_the_real_zip_opens(real_zip: Path) -> None:
    with open_source(real_zip) as source:
        assert source.kind == "official_zip"
        assert len(source.classes) == 200
        assert source.classes[0].id == "n02124075"
        assert source.classes[0].words == "Egyptian cat"
        assert {n: len(s) for n, s in source.splits.items()} == {"train": 10**5, "val": 10**4, "test": 10**4}
        for split, each in (("train", 500), ("val", 50)):
            assert (np.bincount(source.splits[split].labels) == each).all()
