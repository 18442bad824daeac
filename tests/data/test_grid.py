from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinlab.data import grid as grids
from tinlab.data.grid import grid, pack_grid
from tinlab.data.pack import ClassInfo, Pack, PackInfo, SplitInfo
from tinlab.data.shapes import catalogue, draw
from tinlab.errors import TinlabError
from tinlab.files import write_json


def make_pack(
    folder: Path, *, classes: int = 3, per_class: int = 4, unlabelled: int = 0, words: str | None = None
) -> Pack:
    """A pack of rendered images; every image of train has its class's number in its top left pixel."""
    labels = np.repeat(np.arange(classes), per_class)
    images = draw("train", labels, np.tile(np.arange(per_class), classes)).images
    images[:, 0, 0] = labels[:, None]
    parts = {
        "train": (images, labels, [f"train/{n}.JPEG" for n in range(len(labels))]),
        "test": (
            images[:unlabelled],
            np.full(unlabelled, -1),
            [f"test/images/test_{n}.JPEG" for n in range(unlabelled)],
        ),
    }
    folder.mkdir()
    for name, (pixels, numbers, names) in parts.items():
        np.save(folder / f"{name}.npy", pixels)
        np.save(folder / f"{name}.labels.npy", numbers.astype(np.int64))
        write_json(folder / f"{name}.names.json", names)
    zeros = (0.0, 0.0, 0.0)
    info = PackInfo(
        name="toys",
        image_size=64,
        classes=tuple(ClassInfo(c.wnid, c.words if words is None else words) for c in catalogue(classes)),
        splits={name: SplitInfo(name, 0, len(part[1]), zeros, zeros) for name, part in parts.items()},
        files={},
        source={"kind": "rendered"},
    )
    write_json(folder / "pack.json", info.to_json())
    return Pack.open(folder)


def codes(pixels: np.ndarray | Image.Image) -> np.ndarray:
    """One number for each colour: (height, width, 3) to (height, width)."""
    return np.asarray(pixels).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def places(page: np.ndarray, tile: np.ndarray, scale: int) -> list[tuple[int, int]]:
    """Where on a page of colour codes (x, y) the tile stands, enlarged by repeating its pixels."""
    large = np.repeat(np.repeat(codes(tile), scale, 0), scale, 1)
    height, width = large.shape
    starts = np.argwhere(page[: 1 - height or None, : 1 - width or None] == large[0, 0])
    return [(int(x), int(y)) for y, x in starts if (page[y : y + height, x : x + width] == large).all()]


def ink(sheet: Image.Image, box: tuple[int, int, int, int]) -> int:
    """How many dark pixels a part of the sheet (x0, y0, x1, y1) has."""
    return int((np.asarray(sheet.crop(box)).max(2) < 120).sum())


@pytest.mark.parametrize("scale", [1, 3])
def test_images_stand_in_reading_order_enlarged_without_smoothing(scale: int) -> None:
    images = draw("val", np.arange(5), np.zeros(5)).images
    sheet = grid(images, ["a"] * 5, columns=2, scale=scale)
    page = codes(sheet)
    found = [places(page, image, scale) for image in images]
    assert [len(f) for f in found] == [1] * 5
    (x0, y0), (x1, y1), (x2, y2), (x3, y3), (x4, y4) = (f[0] for f in found)
    assert y0 == y1 < y2 == y3 < y4
    assert x0 == x2 == x4 < x1 == x3
    assert x1 - x0 > 64 * scale
    assert y2 - y0 > 64 * scale
    assert x3 + 64 * scale < sheet.width
    assert y4 + 64 * scale < sheet.height


def test_captions_stand_beneath_their_images_and_within_their_width() -> None:
    white = np.full((2, 64, 64, 3), 255, np.uint8)
    sheet = grid(white, ["", "a caption of many words, far too long to fit beneath " * 3], columns=2)
    middle = sheet.width // 2
    assert ink(sheet, (0, 0, middle, sheet.height)) == 0
    assert ink(sheet, (middle, 0, sheet.width, 128)) == 0
    assert ink(sheet, (middle, 128, sheet.width, sheet.height)) > 50
    assert ink(sheet, (sheet.width - 20, 0, sheet.width, sheet.height)) == 0


def test_a_title_stands_above_and_widens_the_page() -> None:
    white = np.full((1, 64, 64, 3), 255, np.uint8)
    bare = grid(white, [""], columns=9, scale=1)
    titled = grid(white, [""], columns=9, scale=1, title="A title that is wider than one small image")
    assert ink(bare, (0, 0, bare.width, bare.height)) == 0
    assert titled.width > bare.width
    assert ink(titled, (0, 0, titled.width, titled.height - 64)) > 50
    assert ink(titled, (titled.width - 5, 0, titled.width, titled.height)) == 0


def test_one_image_takes_no_more_room_than_it_needs() -> None:
    sheet = grid(np.zeros((1, 64, 64, 3), np.uint8), ["one"], columns=8)
    assert 128 < sheet.width < 200
    assert 128 < sheet.height < 220


def test_wrapping_keeps_the_words_and_cuts_what_is_left() -> None:
    page = grids.Page(2, None)
    assert page.wrap("", 100, 2) == []
    assert page.wrap("striped teal hexagon", 1000, 2) == ["striped teal hexagon"]
    assert page.wrap("striped teal", page.length("striped"), 2) == ["striped", "teal"]
    lines = page.wrap("one two three four five six seven eight nine", 80, 2)
    assert len(lines) == 2
    assert lines[0].startswith("one")
    assert lines[1].endswith("…")
    assert all(page.length(line) <= 80 for line in lines)
    long = page.wrap("n" * 500, 80, 2)
    assert len(long) == 1
    assert 40 < page.length(long[0]) <= 80


@pytest.mark.parametrize(
    ("images", "captions", "columns", "scale", "message"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), [], 1, 1, "no images"),
        (np.zeros((2, 8, 8, 3), np.uint8), ["a"], 1, 1, "2 images and 1 captions"),
        (np.zeros((1, 8, 8, 3), np.uint8), ["a"], 0, 1, "columns is 0"),
        (np.zeros((1, 8, 8, 3), np.uint8), ["a"], 1, 0, "scale is 0"),
        (np.zeros((1, 8, 8, 1), np.uint8), ["a"], 1, 1, r"shape \(8, 8, 1\)"),
        (np.zeros((1, 8, 8, 3), np.float32), ["a"], 1, 1, "uint8"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], ["a", "b"], 1, 1, "one shape"),
        (np.zeros((1, 8, 8, 3), np.uint8), ["a"], 1, 4000, "enlarge them less"),
    ],
)
def test_bad_arguments_are_refused(
    images: np.ndarray, captions: list[str], columns: int, scale: int, message: str
) -> None:
    with pytest.raises(TinlabError, match=message):
        grid(images, captions, columns=columns, scale=scale)


def shown_labels(pack: Pack, sheet: Image.Image, scale: int) -> dict[int, list[tuple[int, int]]]:
    """For each class that the sheet shows, where its images stand."""
    rows = pack.split("train")
    page, found = codes(sheet), dict[int, list[tuple[int, int]]]()
    for image, label in zip(rows.images, rows.labels, strict=True):
        for place in places(page, image, scale):
            found.setdefault(int(label), []).append(place)
    return found


def test_a_pack_is_shown_with_a_row_for_each_class(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", classes=5, per_class=4)
    sheet = pack_grid(pack, classes=3, images_per_class=2, seed=1)
    found = shown_labels(pack, sheet, 2)
    assert len(found) == 3
    assert all(len(set(spots)) == 2 and len({y for _, y in spots}) == 1 for spots in found.values())
    heights = [found[label][0][1] for label in sorted(found)]
    assert heights == sorted(heights)
    leftmost = min(x for spots in found.values() for x, _ in spots)
    for y in heights:
        assert ink(sheet, (0, y, leftmost, y + 128)) > 50


def test_the_seed_decides_what_is_shown(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", classes=5, per_class=4)
    same, again, other = (pack_grid(pack, classes=2, images_per_class=2, seed=s) for s in (1, 1, 2))
    assert same.tobytes() == again.tobytes()
    assert same.tobytes() != other.tobytes()


def test_fewer_classes_and_images_than_asked_for_are_all_shown(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", classes=2, per_class=3)
    found = shown_labels(pack, pack_grid(pack, classes=50, images_per_class=50), 2)
    assert {label: len(set(spots)) for label, spots in found.items()} == {0: 3, 1: 3}


def test_two_hundred_classes_are_folded_into_columns(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", classes=200, per_class=1)
    sheet = pack_grid(pack, classes=200, images_per_class=8, scale=1)
    assert 0.4 < sheet.height / sheet.width < 1.7
    found = shown_labels(pack, sheet, 1)
    assert sorted(found) == list(range(200))
    assert len({spots[0] for spots in found.values()}) == 200


def test_an_unlabelled_split_is_shown_by_its_names(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", unlabelled=7)
    sheet = pack_grid(pack, split="test", classes=2, images_per_class=3)
    rows = pack.split("test")
    page = codes(sheet)
    found = [spot for image in rows.images for spot in places(page, image, 2)]
    assert len(found) == 6
    assert len({x for x, _ in found}) == 3
    for x, y in found:
        assert ink(sheet, (x, y + 129, x + 128, y + 150)) > 20


@pytest.mark.parametrize("words", ["", "x" * 400, "many words " * 40])
def test_odd_words_keep_the_page_in_shape(tmp_path: Path, words: str) -> None:
    sheet = pack_grid(make_pack(tmp_path / "pack", words=words), images_per_class=1)
    assert 150 < sheet.width < 700
    assert ink(sheet, (0, sheet.height // 3, 60, sheet.height)) > 20


@pytest.mark.parametrize("bad", [{"classes": 0}, {"images_per_class": 0}, {"scale": 0}])
def test_numbers_below_one_are_refused(tmp_path: Path, bad: dict[str, int]) -> None:
    pack = make_pack(tmp_path / "pack")
    with pytest.raises(TinlabError, match=f"{next(iter(bad))} is 0"):
        pack_grid(pack, **bad)  # type: ignore[arg-type]


def test_a_missing_and_an_empty_split_are_refused(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack")
    with pytest.raises(TinlabError, match="no split 'val'"):
        pack_grid(pack, split="val")
    with pytest.raises(TinlabError, match="no images in test"):
        pack_grid(pack, split="test")
