from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinlab.data.shapes import (
    MOST_CLASSES,
    SHAPES,
    TEXTURES,
    catalogue,
    draw,
    outlines,
    picture,
    render,
    surfaces,
    tables,
)
from tinlab.data.shapes.dice import Dice
from tinlab.data.shapes.folder import jpeg
from tinlab.errors import TinlabError

SMALL = {"classes": 3, "train_per_class": 5, "val_per_class": 2, "test_images": 4, "workers": 1}


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def table(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("shapes") / "set", **SMALL)


def test_the_folder_has_the_official_layout(rendered: Path) -> None:
    wnids = (rendered / "wnids.txt").read_text("utf-8").split()
    assert wnids == [c.wnid for c in catalogue(3)]
    expected = {"wnids.txt", "words.txt", "shapes.json", "val/val_annotations.txt"}
    expected |= {f"val/images/val_{n}.JPEG" for n in range(6)} | {
        f"test/images/test_{n}.JPEG" for n in range(4)
    }
    for wnid in wnids:
        expected |= {f"train/{wnid}/{wnid}_boxes.txt"}
        expected |= {f"train/{wnid}/images/{wnid}_{n}.JPEG" for n in range(5)}
    assert set(contents(rendered)) == expected
    assert dict(table(rendered / "words.txt")) == {c.wnid: c.words for c in catalogue(3)}


def test_the_annotations_name_every_image_its_class_and_its_box(rendered: Path) -> None:
    rows = table(rendered / "val" / "val_annotations.txt")
    assert [row[0] for row in rows] == [f"val_{n}.JPEG" for n in range(6)]
    assert sorted(row[1] for row in rows) == sorted([c.wnid for c in catalogue(3)] * 2)
    rows = [row[2:] for row in rows]
    for c in catalogue(3):
        boxes = table(rendered / "train" / c.wnid / f"{c.wnid}_boxes.txt")
        assert [row[0] for row in boxes] == [f"{c.wnid}_{n}.JPEG" for n in range(5)]
        rows += [row[1:] for row in boxes]
    for row in rows:
        x0, y0, x1, y1 = map(int, row)
        assert 0 <= x0 < x1 <= 63
        assert 0 <= y0 < y1 <= 63


def test_the_files_are_jpegs_of_what_was_drawn_for_their_class(rendered: Path) -> None:
    number = {c.wnid: n for n, c in enumerate(catalogue(3))}
    seen: dict[int, int] = {}
    pairs = []
    for file, wnid, *_ in table(rendered / "val" / "val_annotations.txt"):
        label = number[wnid]
        candidates = draw("val", np.full(2, label), np.arange(2)).images
        pairs.append((rendered / "val" / "images" / file, candidates))
        seen[label] = seen.get(label, 0) + 1
    for wnid, label in number.items():
        for n, image in enumerate(draw("train", np.full(5, label), np.arange(5)).images):
            pairs.append((rendered / "train" / wnid / "images" / f"{wnid}_{n}.JPEG", image[None]))
    for path, candidates in pairs:
        with Image.open(path) as file:
            assert file.format == "JPEG"
            assert file.size == (64, 64)
            found = np.asarray(file.convert("RGB")).astype(float)
        assert np.abs(found - candidates).mean((1, 2, 3)).min() < 14, path


def test_bytes_depend_on_neither_workers_nor_counts(rendered: Path, tmp_path: Path) -> None:
    few = contents(rendered)
    assert contents(render(tmp_path / "threads", **{**SMALL, "workers": 3})) == few
    more = contents(render(tmp_path / "more", classes=5, train_per_class=70, val_per_class=3, workers=2))
    train = [name for name in few if name.startswith("train") and name.endswith("JPEG")]
    assert len(train) == 15
    assert all(more[name] == few[name] for name in train)
    of_val = [{d for name, d in files.items() if name.startswith("val/images")} for files in (few, more)]
    assert of_val[0] < of_val[1]


def test_every_image_is_drawn_alone_as_in_company() -> None:
    labels, indices = np.array([4, 0, 11, 7, 4] * 5), np.arange(25)
    together = draw("train", labels, indices, seed=5)
    for n in range(25):
        alone = draw("train", labels[n : n + 1], indices[n : n + 1], seed=5)
        assert (alone.images[0] == together.images[n]).all()
        assert (alone.boxes[0] == together.boxes[n]).all()


def test_seed_split_class_and_index_each_change_the_picture() -> None:
    first = draw("train", np.array([0]), np.array([0]), seed=0).images.astype(int)
    others = [
        draw("train", np.array([0]), np.array([0]), seed=1),
        draw("val", np.array([0]), np.array([0]), seed=0),
        draw("train", np.array([1]), np.array([0]), seed=0),
        draw("train", np.array([0]), np.array([1]), seed=0),
    ]
    for other in others:
        assert np.abs(other.images.astype(int) - first).mean() > 5


def test_no_two_images_of_train_and_val_are_the_same() -> None:
    labels, indices = np.repeat(np.arange(4), 60), np.tile(np.arange(60), 4)
    images = np.concatenate([draw(split, labels, indices).images for split in ("train", "val", "test")])
    assert len({image.tobytes() for image in images}) == len(images)


def test_two_in_a_hundred_are_grey_files() -> None:
    drawn = draw("train", np.zeros(1200, int), np.arange(1200))
    assert 0.01 < drawn.grey.mean() < 0.035
    spread = np.ptp(drawn.images.astype(int), axis=3).max((1, 2))
    assert (spread[drawn.grey] == 0).all()
    assert (spread[~drawn.grey] > 0).all()
    for n in (np.argmax(drawn.grey), np.argmin(drawn.grey)):
        with Image.open(io.BytesIO(jpeg(drawn.images[n], bool(drawn.grey[n])))) as file:
            assert file.mode == ("L" if drawn.grey[n] else "RGB")


def test_the_classes_of_a_catalogue_are_distinct_and_their_ids_out_of_order() -> None:
    every = catalogue(MOST_CLASSES)
    assert MOST_CLASSES >= 200
    assert len({(c.shape, c.texture) for c in every}) == MOST_CLASSES
    wnids = [c.wnid for c in every]
    assert len(set(wnids)) == len({c.words for c in every}) == MOST_CLASSES
    assert all(re.fullmatch(r"n99\d{6}", wnid) for wnid in wnids)
    assert wnids[:2] != sorted(wnids[:2])
    assert catalogue(7) == every[:7]


def test_each_of_twenty_classes_shares_its_shape_its_texture_and_its_colours_with_others() -> None:
    chosen = catalogue(20)
    for c in chosen:
        others = [other for other in chosen if other != c]
        assert any(other.shape == c.shape for other in others)
        assert any(other.texture == c.texture for other in others)
        assert sum(other.palette == c.palette for other in others) >= 3


def test_the_colours_of_a_class_vary_and_overlap_with_those_of_another() -> None:
    # The middle of the box is mostly the object; classes 1 and 4 are a red disc and a green star.
    tints = []
    for label in (1, 4):
        drawn = draw("train", np.full(200, label), np.arange(200))
        x, y = drawn.boxes[:, ::2].sum(1) // 2, drawn.boxes[:, 1::2].sum(1) // 2
        pixels = drawn.images[np.arange(200), y, x].astype(int)
        tints.append(pixels[:, 0] - pixels[:, 1])  # more red than green, or less
    red, green = tints
    assert np.median(red) > 30
    assert np.median(green) < -30
    assert (red < 0).mean() > 0.05
    assert (green > 0).mean() > 0.05


@pytest.mark.parametrize("number", range(len(SHAPES)), ids=[name for name, _ in SHAPES])
def test_every_shape_is_a_body_with_a_true_distance_around_it(number: int) -> None:
    ticks = np.linspace(-outlines.REACH, outlines.REACH, outlines.TABLE)
    distance = outlines.distances().reshape(len(SHAPES), outlines.TABLE, outlines.TABLE)[number]
    inside = distance < 0
    assert 0.08 < inside.mean() < 0.4
    # Nothing touches the table's edge, where the distance must be wide enough for the softest shadow.
    border = np.concatenate([distance[0], distance[-1], distance[:, 0], distance[:, -1]])
    assert border.min() > 0.25
    # Measured another way: the distance from a node outside to the nearest node inside.
    x, y = np.meshgrid(ticks, ticks)
    nodes = np.stack([x[inside], y[inside]], 1)
    for row in range(4, outlines.TABLE, 24):
        for column in range(4, outlines.TABLE, 24):
            if not inside[row, column]:
                true = np.hypot(nodes[:, 0] - ticks[column], nodes[:, 1] - ticks[row]).min()
                # Unions and cuts of bodies underestimate it a little in their hollows, never more than this.
                assert -0.2 < distance[row, column] - true < 0.02


def test_all_shapes_differ() -> None:
    inside = (outlines.distances() < 0).reshape(len(SHAPES), -1)
    for a in range(len(SHAPES)):
        for b in range(a):
            union, both = (inside[a] | inside[b]).sum(), (inside[a] & inside[b]).sum()
            assert both / union < 0.93, (SHAPES[a], SHAPES[b])


def test_textures_differ_and_stay_within_their_two_colours() -> None:
    axis = np.linspace(-1, 1, 64, dtype=np.float32)
    u, v = (np.ascontiguousarray(c)[None] for c in np.meshgrid(axis, axis))
    dice = Dice(np.array([3], np.uint64))
    weave = surfaces.throw_weave(dice, np.zeros(1, int), (8, 8), np.full(1, 32.0, np.float32))
    patterns = [surfaces.one_texture(name, weave, u, v) for name in TEXTURES]
    for name, pattern in zip(TEXTURES, patterns, strict=True):
        assert pattern.shape == (1, 64, 64)
        assert pattern.min() >= 0
        assert pattern.max() <= 1
        assert (pattern.std() > 0.2) == (name != "plain")
    for a in range(len(TEXTURES)):
        for b in range(a):
            assert np.abs(patterns[a] - patterns[b]).mean() > 0.1, (TEXTURES[a], TEXTURES[b])


def test_reading_between_nodes_is_linear() -> None:
    flat = np.arange(12, dtype=np.float32).reshape(3, 4) ** 2
    column = np.array([[[0.0, 0.5, 2.25]]], np.float32)
    row = np.array([[[0.0, 1.0, 0.75]]], np.float32)
    found = tables.read(flat.ravel(), 4, np.zeros((1, 1, 1), np.float32), column, row)
    corner = 0.25 * (0.75 * flat[0, 2] + 0.25 * flat[0, 3]) + 0.75 * (0.75 * flat[1, 2] + 0.25 * flat[1, 3])
    assert found.ravel() == pytest.approx([flat[0, 0], (flat[1, 0] + flat[1, 1]) / 2, corner])


def test_oklch_gives_known_colours() -> None:
    # The coordinates of pure red, white and black, from Ottosson's definition of the space.
    light, chroma, hue = np.array([0.62796, 1, 0]), np.array([0.25768, 0, 0]), np.array([29.234, 0, 0])
    found = surfaces.oklch(light, chroma, hue)
    assert found == pytest.approx(np.array([[1, 0, 0], [1, 1, 1], [0, 0, 0]]), abs=0.01)


def test_boxes_bound_what_is_covered() -> None:
    covered = np.zeros((2, 64, 64), bool)
    covered[0, 5:9, 20] = True
    covered[1] = True
    assert picture.boxes_of(covered).tolist() == [[20, 5, 20, 8], [0, 0, 63, 63]]


def test_progress_counts_up_to_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    render(tmp_path / "set", **SMALL, progress=lambda done, total: calls.append((done, total)))
    done = [d for d, _ in calls]
    assert {total for _, total in calls} == {15 + 6 + 4}
    assert done == sorted(done)
    assert done[-1] == 25


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(tmp_path: Path, raised: type[BaseException]) -> None:
    def stop(done: int, total: int) -> None:
        raise raised

    with pytest.raises(raised):
        render(tmp_path / "set", **SMALL, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_set_stays_whole_until_it_is_replaced(tmp_path: Path) -> None:
    folder = render(tmp_path / "set", **SMALL)
    before = contents(folder)

    def stop(done: int, total: int) -> None:
        assert contents(folder) == before
        raise RuntimeError

    with pytest.raises(RuntimeError):
        render(folder, **SMALL, seed=1, progress=stop)
    assert contents(folder) == before
    render(folder, **SMALL, seed=1)
    after = contents(folder)
    assert set(after) == set(before)
    assert after != before
    assert list(tmp_path.iterdir()) == [folder]


def test_an_empty_folder_is_filled_and_gets_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    folder = render(tmp_path / "set", **SMALL)
    (tmp_path / "other").mkdir()
    assert (folder / "wnids.txt").is_file()
    assert folder.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_strangers_files_are_not_touched(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "set"
    (tmp_path / "elsewhere").mkdir()
    if kind == "folder":
        place.mkdir()
        (place / "thesis.tex").write_text("precious")
    elif kind == "file":
        place.write_text("precious")
    else:
        place.symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path)
    with pytest.raises(TinlabError, match="set "):
        render(place, **SMALL)
    assert contents(tmp_path) == before
    assert place.is_symlink() == (kind == "link")


@pytest.mark.parametrize(
    "marker",
    ["", "[]", '{"train": 5}', '{"train": [1], "val": 2, "test": 4, "classes": 3, "seed": 0, "version": 1}'],
)
def test_a_file_of_the_markers_name_does_not_make_a_folder_ours(tmp_path: Path, marker: str) -> None:
    place = tmp_path / "set"
    place.mkdir()
    (place / "shapes.json").write_text(marker)
    before = contents(tmp_path)
    with pytest.raises(TinlabError, match="were not rendered"):
        render(place, **SMALL)
    assert contents(tmp_path) == before


def test_a_rendered_set_to_which_something_was_added_is_not_replaced(tmp_path: Path) -> None:
    folder = render(tmp_path / "set", **SMALL)
    (folder / "thesis.tex").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(TinlabError, match="were not rendered"):
        render(folder, **SMALL, seed=1)
    assert contents(tmp_path) == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(TinlabError, match="file/set cannot be written"):
        render(tmp_path / "file" / "set", **SMALL)


def test_a_full_disk_leaves_nothing_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(TinlabError, match="No space left on device"):
        render(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("classes", 0),
        ("classes", MOST_CLASSES + 1),
        ("train_per_class", 0),
        ("val_per_class", 0),
        ("test_images", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("workers", 0),
    ],
)
def test_bad_arguments_are_refused_by_name(tmp_path: Path, argument: str, value: int) -> None:
    with pytest.raises(TinlabError, match=f"{argument} is {value}"):
        render(tmp_path / "set", **{**SMALL, argument: value})
    assert list(tmp_path.iterdir()) == []


def test_no_test_images_leave_an_empty_test_folder(tmp_path: Path) -> None:
    folder = render(tmp_path / "set", **{**SMALL, "test_images": 0})
    assert list((folder / "test" / "images").iterdir()) == []


def test_two_hundred_classes_are_rendered(tmp_path: Path) -> None:
    folder = render(tmp_path / "set", classes=200, train_per_class=1, val_per_class=1, test_images=0)
    assert len((folder / "wnids.txt").read_text("utf-8").split()) == 200
    assert len(list((folder / "train").iterdir())) == 200
    labels = [row[1] for row in table(folder / "val" / "val_annotations.txt")]
    assert len(set(labels)) == 200
    # Not in the classes' order, as in the official set.
    assert sum(wnid == c.wnid for wnid, c in zip(labels, catalogue(200), strict=True)) < 10
