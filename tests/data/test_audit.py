"""The audit, on packs with planted faults, and on the real set against its published facts."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from tinlab.data import similar
from tinlab.data.audit import Audit, audit
from tinlab.data.pack import ClassInfo, Pack, PackInfo, SplitInfo

SIZE = 64


def photographs(count: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Coloured noise with detail at several scales; uint8 (count, size, size, 3)."""
    random = np.random.default_rng(seed)
    images = np.zeros((count, size, size, 3))
    for width in (1, 2, 4, 8):
        noise = gaussian_filter(random.standard_normal(images.shape), (0, width, width, 0), mode="wrap")
        images += noise / noise.std()
    return np.clip(128 + 25 * images, 0, 255).astype(np.uint8)


def make_pack(folder: Path, tune: int = 0, classes: int = 2, **splits: tuple[np.ndarray, list[int]]) -> Pack:
    """A pack of the given images and labels; the last `tune` rows of train become `tune`."""
    folder.mkdir(parents=True, exist_ok=True)
    none = (0.0, 0.0, 0.0)
    described = {}
    for name, (images, labels) in splits.items():
        np.save(folder / f"{name}.npy", images)
        np.save(folder / f"{name}.labels.npy", np.array(labels, np.int64))
        (folder / f"{name}.names.json").write_text(json.dumps([f"{name}/{i}" for i in range(len(images))]))
        rows = len(images)
        described[name] = SplitInfo(name, 0, rows, none, none)
        if name == "train" and tune:
            described["train"] = SplitInfo(name, 0, rows - tune, none, none)
            described["tune"] = SplitInfo(name, rows - tune, rows, none, none)
    size = next(iter(splits.values()))[0].shape[1]
    info = PackInfo(
        "planted",
        size,
        tuple(ClassInfo(f"n{i}", f"word {i}, other") for i in range(classes)),
        described,
        {},
        {},
    )
    (folder / "pack.json").write_text(json.dumps(info.to_json()))
    return Pack.open(folder)


def names(groups: tuple) -> list[list[str]]:
    return sorted([member.name for member in group.members] for group in groups)


def near(tmp_path: Path, *pairs: tuple[np.ndarray, np.ndarray]) -> Audit:
    """An audit of 300 different images followed by both of each pair."""
    images = np.concatenate([photographs(300, 7, len(pairs[0][0])), *(np.stack(pair) for pair in pairs)])
    return audit(make_pack(tmp_path / "pack", train=(images, [0] * len(images))))


def test_identical_images_are_classed(tmp_path: Path) -> None:
    train, val, test = photographs(12), photographs(4, 1), photographs(6, 2)
    train[1] = train[0]  # one label
    train[3] = train[2]  # two labels
    train[11] = train[4]  # train and tune
    val[0] = train[5]
    test[0] = train[6]
    test[1] = val[1]
    test[3] = test[2]
    val[3] = test[5] = train[7]  # in all three
    labels = [0, 0, 0, 1] + [0] * 8
    pack = make_pack(tmp_path, tune=2, train=(train, labels), val=(val, [1, 0, 0, 0]), test=(test, [-1] * 6))
    found = audit(pack)
    assert names(found.identical) == [
        ["test/2", "test/3"],
        ["train/0", "train/1"],
        ["train/2", "train/3"],
        ["train/4", "train/11"],
        ["train/5", "val/0"],
        ["train/6", "test/0"],
        ["train/7", "val/3", "test/5"],
        ["val/1", "test/1"],
    ]
    by_place = {}
    for group in found.identical:
        by_place.setdefault(group.place, []).append(group)
    counts = {place: len(groups) for place, groups in by_place.items()}
    assert counts == {"train": 3, "train & val": 1, "train & test": 1, "val & test": 1, "test": 1} | {
        "train & val & test": 1
    }
    assert names(tuple(g for g in found.identical if g.conflicting)) == [
        ["train/2", "train/3"],
        ["train/5", "val/0"],
    ]
    assert names(tuple(g for g in found.identical if g.crosses_tune)) == [["train/4", "train/11"]]
    assert sum(g.leak for g in found.identical) == 4
    assert found.near == ()
    assert found.verdict().startswith(
        "8 groups of identical images, 2 with conflicting labels, 4 leaking between splits; no nearly"
    )
    text = "\n".join(found.lines())
    assert "train/5 [train: word 0] = val/0 [val: word 1]  (two labels, leak)" in text
    assert "the first 5 of 8" in text
    assert found.identical[0].leak
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert len(value["identical"]) == 8
    assert value["identical"][0]["members"][0].keys() >= {"name", "split", "row", "label", "class"}


def recompressed(image: np.ndarray) -> np.ndarray:
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "JPEG", quality=75)
    return np.asarray(Image.open(memory).convert("RGB"))


CHANGES = {
    "brighter": lambda image: np.minimum(image.astype(int) + 3, 255).astype(np.uint8),
    "more contrast": lambda image: np.clip((image.astype(float) - 128) * 1.15 + 128, 0, 255).astype(np.uint8),
    "recompressed": recompressed,
    "shifted right": lambda image: np.concatenate([image[:, :1], image[:, :-1]], 1),
    "shifted up": lambda image: np.concatenate([image[1:], image[-1:]]),
    "mirrored": lambda image: image[:, ::-1],
    "mirrored, recompressed": lambda image: recompressed(np.ascontiguousarray(image[:, ::-1])),
    "one pixel": lambda image: np.where(np.arange(image.size).reshape(image.shape) == 5, 0, image),
}


@pytest.mark.parametrize("change", CHANGES)
def test_near_duplicates_are_found(tmp_path: Path, change: str) -> None:
    originals = photographs(5, 3)
    found = near(tmp_path, *((image, CHANGES[change](image).astype(np.uint8)) for image in originals))
    assert found.identical == ()
    assert found.near is not None
    assert names(found.near) == [[f"train/{300 + 2 * i}", f"train/{301 + 2 * i}"] for i in range(5)]
    assert all(group.mirrored == change.startswith("mirrored") for group in found.near)
    assert all(0.605 <= group.score <= 1.001 for group in found.near)


@pytest.mark.parametrize("size", [28, 32, 96])
def test_near_duplicates_at_other_sizes(tmp_path: Path, size: int) -> None:
    original = photographs(1, 3, size)[0]
    found = near(tmp_path, (original, CHANGES["brighter"](original)))
    assert names(found.near or ()) == [["train/300", "train/301"]]


def test_a_shared_frame_or_gradient_is_no_duplicate(tmp_path: Path) -> None:
    framed = photographs(2, 4)
    framed[:, :8] = framed[:, -8:] = 255
    framed[:, :, :8] = framed[:, :, -8:] = 255
    slope = np.broadcast_to(np.linspace(0, 200, SIZE)[:, None, None], (SIZE, SIZE, 3))
    random = np.random.default_rng(0)
    skies = [np.clip(slope + random.normal(0, 1, slope.shape), 0, 255).astype(np.uint8) for _ in range(2)]
    found = near(tmp_path, (framed[0], framed[1]), (skies[0], skies[1]))
    assert found.near == ()


def test_near_groups_hold_every_copy_and_count_conflicts_and_leaks(tmp_path: Path) -> None:
    train, val = photographs(20), photographs(5, 1)
    train[1] = train[0]
    val[0] = CHANGES["brighter"](train[0])
    pack = make_pack(tmp_path, train=(train, [0] * 20), val=(val, [1] * 5))
    found = audit(pack)
    assert found.near is not None
    assert names(found.identical) == [["train/0", "train/1"]]
    assert names(found.near) == [["train/0", "train/1", "val/0"]]
    assert found.near[0].leak
    assert found.near[0].conflicting
    assert audit(pack, near_duplicates=False).near is None


def test_many_look_alikes_raise_the_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "CANDIDATE_LIMIT", 10)
    image = photographs(1)[0]
    random = np.random.default_rng(0)
    alike = np.stack([image + random.integers(0, 20, image.shape) for _ in range(40)]).astype(np.uint8)
    found = audit(make_pack(tmp_path, train=(alike, [0] * 40)))
    assert found.near_bar is not None
    assert found.near_bar > similar.CANDIDATE_BAR
    assert found.near


def test_greyscale_one_colour_and_labels(tmp_path: Path) -> None:
    train, val = photographs(30), photographs(8, 1)
    train[3:7] = train[3:7, ..., :1]
    train[8] = (10, 20, 30)
    val[2] = 77  # of one colour, and so greyscale too
    labels = [0] * 10 + [1] * 10 + [2] * 4 + [7, -5] + [1] * 4
    found = audit(make_pack(tmp_path, classes=4, train=(train, labels), val=(val, [0] * 7 + [-1])))
    one, two = found.splits["train"], found.splits["val"]
    assert (one.images, one.greyscale, one.one_colour) == (30, 4, ("train/8",))
    assert (two.images, two.greyscale, two.one_colour, two.unlabelled) == (8, 1, ("val/2",), 1)
    assert one.label_out_of_range == ("train/24", "train/25")
    assert one.class_median == 10
    assert (one.undersized, one.missing) == ({"n2": 4}, ("n3",))
    assert (two.undersized, two.missing) == ({}, ("n1", "n2", "n3"))
    assert "2 labels out of range; 2 images of one colour; 5 undersized or missing classes" in found.verdict()
    text = "\n".join(found.lines(first=1))
    assert "train, labels out of range: train/24 and 1 more" in text
    json.dumps(found.to_json(), allow_nan=False)


def test_an_empty_split_and_a_faultless_pack(tmp_path: Path) -> None:
    nothing = np.empty((0, SIZE, SIZE, 3), np.uint8)
    seen: list[tuple[str, int, int]] = []
    pack = make_pack(tmp_path, train=(photographs(6), [0, 0, 0, 1, 1, 1]), test=(nothing, []))
    found = audit(pack, progress=lambda *step: seen.append(step))
    assert found.verdict() == "no identical images; no nearly identical images"
    assert found.lines()
    assert seen[0] == ("reading", 6, 6)
    assert seen[-1] == ("comparing", 1, 1)


@pytest.mark.real
def test_the_real_set(real_pack: Pack) -> None:
    found = audit(real_pack)
    grey = {name: split.greyscale for name, split in found.splits.items()}
    # More than the 1,821, 168 and 189 JPEGs of one component: some grey pictures are stored as RGB.
    assert (grey["train"] + grey["tune"], grey["val"], grey["test"]) == (1937, 187, 199)
    places: dict[str, int] = {}
    for group in found.identical:
        places[group.place] = places.get(group.place, 0) + 1
    assert places == {"train": 20, "train & val": 7, "train & test": 9, "test": 2, "val & test": 1}
    assert all(group.conflicting for group in found.identical if group.place in ("train", "train & val"))
    assert found.near is not None
    assert len(found.near) == 14
    assert sum(group.conflicting for group in found.near) == 3
    assert sum(group.leak for group in found.near) == 3
    assert {split.class_median for name, split in found.splits.items() if name == "val"} == {50}
    assert not any(split.undersized or split.missing or split.one_colour for split in found.splits.values())
