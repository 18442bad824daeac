import numpy as np
import pytest
import torch
from help import EVERY

from tinlab.augment.gallery import gallery, pictures
from tinlab.errors import TinlabError
from tinlab.recipe import POLICIES
from tinlab.recipe import operations as ops


def see(operations, pack, passes=3, size=64, count=4):
    split = pack.split("train")
    stored = torch.from_numpy(np.array(split.images[:count]))
    return stored.numpy(), *pictures(operations, stored, torch.arange(count), passes, size, pack, 0)


def test_pictures_are_what_the_network_sees_and_are_named(shapes_pack):
    stored, made, named = see((ops.Rotate(degrees=(10, 10)), ops.Invert(probability=1)), shapes_pack)
    assert made.shape == (4, 3, 64, 64, 3)
    assert named == [["rotate +10°, invert"] * 3] * 4
    stored, made, named = see((), shapes_pack, passes=1)
    assert np.array_equal(made[:, 0], stored)
    assert named == [["unchanged"]] * 4


def test_what_did_not_happen_is_not_named(shapes_pack):
    _, _, named = see((ops.Rotate(probability=0.0), ops.Flip(probability=1)), shapes_pack)
    assert named == [["flip"] * 3] * 4


@pytest.mark.parametrize("operation", EVERY, ids=lambda operation: operation.kind)
def test_every_operation_has_words(operation, shapes_pack):
    _, _, named = see((operation,), shapes_pack, passes=1)
    for (text,) in named:
        assert 3 < len(text) < 40
        assert "_" not in text


def test_fixed_copies_are_the_columns(shapes_pack):
    _, made, named = see(POLICIES["shcherbina_fixed"](), shapes_pack, passes=9)
    assert made.shape[1] == 5
    assert [text.split()[0] for text in named[0]] == ["flip", "flip", "crop", "contrast", "tint"]


def test_mixed_images_say_how_much_is_left(shapes_pack):
    _, _, named = see((ops.Mixup(alpha=1.0),), shapes_pack)
    assert all(text.endswith("% of it") for row in named for text in row)


@pytest.mark.parametrize("name", ["sun_heavy", "shcherbina_fixed"])
def test_a_page(name, shapes_pack):
    page = gallery(POLICIES[name](), shapes_pack, images=3, columns=4, size=32, title=name)
    assert page.width > 4 * 160
    assert np.asarray(page).std() > 10


@pytest.mark.parametrize("wrong", [{"images": 0}, {"columns": 1}, {"size": 4}, {"split": "none"}])
def test_a_wrong_number_is_refused(wrong, shapes_pack):
    with pytest.raises(TinlabError):
        gallery((), shapes_pack, **wrong)
