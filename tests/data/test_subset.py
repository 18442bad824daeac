import numpy as np
import pytest

from tinlab.data import subset
from tinlab.data.pack import Pack
from tinlab.data.subset import half, subset_pack
from tinlab.errors import TinlabError


@pytest.fixture
def ids(shapes_pack):
    return [one.id for one in shapes_pack.info.classes]


def test_a_subset_has_its_classes_images_and_nothing_else(shapes_pack, ids, tmp_path):
    wanted = (ids[3], ids[1])
    made = subset_pack(shapes_pack, wanted, tmp_path / "pack")
    assert [one.id for one in made.info.classes] == list(wanted)
    assert made.splits == ["train", "tune", "val"]  # the images of test have no labels
    for name in (*made.splits, "train+tune"):
        before, after = shapes_pack.split(name), made.split(name)
        rows = np.flatnonzero(np.isin(before.labels, (1, 3)))
        assert np.array_equal(after.images, before.images[rows])
        assert after.names == [before.names[row] for row in rows]
        assert [wanted[label] for label in after.labels] == [ids[label] for label in before.labels[rows]]
        mean, std = made.moments(name)
        values = np.asarray(after.images, np.float64).reshape(-1, 3) / 255
        assert mean == pytest.approx(values.mean(axis=0), abs=1e-12)
        assert std == pytest.approx(values.std(axis=0), abs=1e-9)


def test_a_subset_is_checksummed_as_any_pack(shapes_pack, ids, tmp_path):
    made = subset_pack(shapes_pack, ids[:2], tmp_path / "pack")
    made.verify()
    with (made.path / "val.npy").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    with pytest.raises(TinlabError, match=r"val\.npy"):
        made.verify()


def test_the_same_subset_is_opened_and_another_pack_is_left_alone(shapes_pack, ids, tmp_path):
    made = subset_pack(shapes_pack, ids[:2], tmp_path / "pack")
    again = subset_pack(shapes_pack, ids[:2], tmp_path / "pack")
    assert again.reused
    assert again.digest == made.digest
    with pytest.raises(TinlabError, match="another pack"):
        subset_pack(shapes_pack, ids[2:], tmp_path / "pack")
    assert Pack.open(tmp_path / "pack").digest == made.digest


def test_who_comes_second_takes_what_the_first_made(shapes_pack, ids, tmp_path, monkeypatch):
    write = subset._write

    def slowly(folder, pack, chosen):
        write(folder, pack, chosen)
        monkeypatch.setattr(subset, "_write", write)
        subset_pack(shapes_pack, ids[:2], tmp_path / "pack")  # the other one

    monkeypatch.setattr(subset, "_write", slowly)
    assert subset_pack(shapes_pack, ids[:2], tmp_path / "pack").reused
    assert [one.name for one in tmp_path.iterdir()] == ["pack"]


def test_halves_part_the_classes(shapes_pack, ids, tmp_path):
    assert half(shapes_pack, "A") + half(shapes_pack, "B") == tuple(ids)
    assert half(shapes_pack, "A") == tuple(ids[:2])
    with pytest.raises(TinlabError, match="A or B"):
        half(shapes_pack, "C")
    with pytest.raises(TinlabError, match="need four"):
        half(subset_pack(shapes_pack, ids[:2], tmp_path / "pack"), "A")


@pytest.mark.parametrize("classes", [["nothing"], [], ["first"], ["first", "first"]])
def test_what_is_no_subset_is_refused(classes, shapes_pack, ids, tmp_path):
    named = [ids[0] if one == "first" else one for one in classes]
    with pytest.raises(TinlabError, match=r"no class|two or more"):
        subset_pack(shapes_pack, named, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()
