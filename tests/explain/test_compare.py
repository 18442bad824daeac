from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from PIL import Image

from tinlab.data.pack import ClassInfo, Pack
from tinlab.data.words import find_class, short_names
from tinlab.errors import TinlabError
from tinlab.evaluation.predict import forward
from tinlab.explain import METHODS, Chosen, compare, explain, from_name, from_split, inputs_of
from tinlab.explain import attribution as maps
from tinlab.explain.compare import percent, run_labels

QUICK = ("saliency", "grad_cam")


def test_inputs_are_those_of_the_network(network, shapes_pack):
    images = np.array(shapes_pack.split("val").images[:3])
    arrays, inputs = inputs_of(network, list(images))
    assert np.array_equal(arrays, images)
    shown, compute = network.run.preprocessing, network.run.recipe.compute
    with torch.no_grad():
        expected = forward(network.model, shown, torch.from_numpy(images), compute)
        assert torch.allclose(network.model(inputs), expected, atol=1e-5)


def test_images_are_drawn_with_a_seed(shapes_pack):
    split = shapes_pack.split("val")
    first = [one.name for one in from_split(split, images=5, seed=1)]
    assert first == [one.name for one in from_split(split, images=5, seed=1)]
    assert first != [one.name for one in from_split(split, images=5, seed=2)]
    (seventh,) = from_split(split, indices=[7])
    assert np.array_equal(seventh.image, split.images[7])
    assert seventh.true == shapes_pack.info.classes[split.labels[7]]
    assert from_split(shapes_pack.split("test"), images=1)[0].true is None
    with pytest.raises(TinlabError, match="rows 0 to 39, and no row 40"):
        from_split(split, indices=[40])
    with pytest.raises(TinlabError, match="images is 0"):
        from_split(split, images=0)


def test_an_image_is_found_on_the_disk_and_by_its_name(shapes_pack, tmp_path):
    split = shapes_pack.split("test")
    name = Path(split.names[3]).name
    found = from_name(name, lambda: shapes_pack)
    assert np.array_equal(found.image, split.images[3])
    own = tmp_path / "own.png"
    Image.fromarray(split.images[3]).resize((90, 70)).save(own)

    def refuse():
        raise AssertionError("no pack is needed")

    assert from_name(str(own), refuse) == Chosen("own.png", own)
    with pytest.raises(TinlabError, match="neither a file nor the name of an image"):
        from_name("test_99999.JPEG", lambda: shapes_pack)


def test_a_name_may_begin_as_a_home_does(tmp_path, shapes_pack, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("~backup.png")
    assert from_name("~backup.png", lambda: shapes_pack).name == "~backup.png"
    with pytest.raises(TinlabError, match="neither a file"):
        from_name("~nobody/x.png", lambda: shapes_pack)


def test_a_name_that_several_images_have_is_refused_and_a_whole_one_taken(shapes_pack, tmp_path):
    pack = Pack.open(shutil.copytree(shapes_pack.path, tmp_path / "pack"))
    names = [f"{folder}/{row}.jpg" for folder in "abcdef" for row in (1, 2)]
    names = [*names, "1.jpg", *shapes_pack.split("val").names[13:]]
    (pack.path / "val.names.json").write_text(json.dumps(names))
    digest = xxhash.xxh3_128_hexdigest((pack.path / "val.names.json").read_bytes())
    pack.info.files["val.names.json"] = digest
    with pytest.raises(TinlabError, match=r"6 images .* a/2\.jpg \(val\), .* e/2\.jpg \(val\), …; name one"):
        from_name("2.jpg", lambda: pack)
    for name, row in (("c/2.jpg", 5), ("1.jpg", 12)):
        assert np.array_equal(from_name(name, lambda: pack).image, pack.split("val").images[row])


def test_the_true_class_is_explained_where_it_is_known(network, shapes_pack):
    known = from_split(shapes_pack.split("val"), images=3)
    unknown = from_split(shapes_pack.split("test"), images=1)
    found = explain(network, [*known, *unknown], methods=QUICK)
    assert [one.target.id for one in found[:3]] == [one.true.id for one in known]
    assert [one.target_is for one in found] == ["true"] * 3 + ["predicted"]
    assert found[3].target == found[3].guess
    predicted = explain(network, known, methods=QUICK, target="predicted")
    assert all(one.target == one.guess for one in predicted)
    with pytest.raises(TinlabError, match="has no true class"):
        explain(network, unknown, methods=QUICK, target="true")


def test_a_class_can_be_named(network, shapes_pack):
    chosen = from_split(shapes_pack.split("val"), images=2)
    wanted = shapes_pack.info.classes[2]
    found = explain(network, chosen, methods=("saliency",), class_name=wanted.words.upper())
    assert {one.target.id for one in found} == {wanted.id}
    _, inputs = inputs_of(network, [one.image for one in chosen])
    expected = maps.saliency(network.model, inputs, torch.tensor([2, 2]))
    from tinlab.explain.drawing import shade

    assert np.array_equal(found[1].pictures["saliency"], shade("size", expected[1].numpy(), found[1].image))
    with pytest.raises(TinlabError, match="no class 'spaceship'; try"):
        explain(network, chosen, class_name="spaceship")
    with pytest.raises(TinlabError, match="give one of them"):
        explain(network, chosen, class_name=wanted.id, target="true")


def test_a_class_is_named_by_id_or_word():
    classes = [ClassInfo("n1", "crane"), ClassInfo("n2", "crane, bird"), ClassInfo("n3", "tabby, tabby cat")]
    assert find_class(classes, "Tabby cat ") == 2
    assert find_class(classes, "n2") == 1
    assert find_class(classes, "bird") == 1
    with pytest.raises(TinlabError, match=r"2 classes are called 'crane'.*n1, n2"):
        find_class(classes, "crane")
    assert short_names(classes) == ["crane (n1)", "crane, bird (n2)", "tabby"]


def test_a_sheet_of_two_networks(network, shapes_pack, tmp_path):
    own = tmp_path / "own.jpg"
    Image.fromarray(shapes_pack.split("val").images[0]).resize((100, 80)).save(own)
    chosen = [*from_split(shapes_pack.split("val"), images=2), Chosen("own.jpg", own)]
    one, two = compare([network], chosen, methods=QUICK), compare([network, network], chosen, methods=QUICK)
    assert two.image.height > one.image.height + 3 * 128
    assert two.image.width == one.image.width
    assert "Grad-CAM" in one.alt
    assert "own.jpg" in one.alt
    assert one.alt.count("takes") == 3
    everything = compare([network], chosen[:1], methods=list(METHODS))
    assert everything.image.width > 9 * 128
    with pytest.raises(TinlabError, match="nothing to explain"):
        compare([network], [])


def test_a_method_that_does_not_apply_is_said_in_its_place(network, shapes_pack, monkeypatch):
    chosen = from_split(shapes_pack.split("val"), images=1)

    def refuse(*_):
        raise TinlabError("there are no ReLUs")

    fits = compare([network], chosen, methods=("saliency", "guided_backprop"))
    monkeypatch.setitem(
        METHODS, "guided_backprop", dataclasses.replace(METHODS["guided_backprop"], attribute=refuse)
    )
    (found,) = explain(network, chosen, methods=("saliency", "guided_backprop"))
    assert found.refusals == {"guided_backprop": "there are no ReLUs"}
    assert list(found.pictures) == ["saliency"]
    told = compare([network], chosen, methods=("saliency", "guided_backprop"))
    assert told.image.size == fits.image.size


def test_runs_are_told_apart(network):
    assert run_labels([network]) == ["tiny, seed 0"]
    other = dataclasses.replace(network.run, seed=1)
    later = dataclasses.replace(network.run, started_at="2030-01-02T03:04:05+00:00")

    def wrap(*runs):
        return [type(network)(run, network.model, network.device, network.step) for run in runs]

    labels = run_labels(wrap(network.run, other, later))
    assert labels[1] == "tiny, seed 1"
    assert labels[2] == "tiny, seed 0, 2030-01-02 03:04"
    assert len(set(labels)) == 3
    same_minute = [dataclasses.replace(network.run, path=Path(f"runs/{name}")) for name in ("a", "b", "x/b")]
    assert run_labels(wrap(*same_minute[:2], later)) == ["a", "b", labels[2]]
    assert run_labels(wrap(*same_minute)) == ["a", "runs/b", "runs/x/b"]


def test_percentages_say_what_a_reader_needs():
    assert [percent(v) for v in (1, 0.973, 0.012, 0.004, 1e-5)] == ["100%", "97%", "1%", "0.4%", "below 0.1%"]
