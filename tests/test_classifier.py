import numpy as np
import pytest
import torch
from PIL import Image

import tinlab
from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.evaluating import evaluate, predictions_of
from tinlab.recipe import changed
from tinlab.training import loop


@pytest.fixture(scope="module")
def run(tiny_recipe, shapes_pack, tmp_path_factory):
    recipe = changed(tiny_recipe, ["schedule.steps=40", "compute.precision=fp32"])
    return loop.train(recipe, shapes_pack, tmp_path_factory.mktemp("runs"), device="cpu")


@pytest.fixture(scope="module")
def classifier(run):
    return tinlab.load(run.path, device="cpu")


def test_it_predicts_what_was_measured(classifier, run, shapes_pack):
    val = shapes_pack.split("val")
    saved = predictions_of(run.path)
    probabilities = classifier.probabilities(list(val.images))
    assert np.allclose(probabilities, torch.from_numpy(saved.logits).softmax(1).numpy(), atol=1e-4)
    guesses = classifier.predict(list(val.images), top=1)
    right = [
        guess[0].id == classifier.classes[label].id for guess, label in zip(guesses, val.labels, strict=True)
    ]
    assert 100 * np.mean(right) == pytest.approx(evaluate(run.path).metrics.top1_percent)


def test_guesses_are_ordered_and_have_words(classifier, shapes_pack):
    (guesses,) = classifier.predict(shapes_pack.split("val").images[0], top=3)
    assert len(guesses) == 3
    assert guesses[0].probability >= guesses[1].probability >= guesses[2].probability
    words = {c.id: c.words for c in shapes_pack.info.classes}
    assert all(words[guess.id] == guess.words for guess in guesses)
    (every,) = classifier.predict(shapes_pack.split("val").images[0], top=99)
    assert sum(guess.probability for guess in every) == pytest.approx(1, abs=1e-5)


def test_arrays_pictures_and_paths_are_alike(classifier, shapes_pack, tmp_path):
    pixels = np.array(shapes_pack.split("val").images[3])
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    expected = classifier.predict(pixels)
    assert classifier.predict(path) == expected
    assert classifier.predict(str(path)) == expected
    assert classifier.predict(Image.fromarray(pixels)) == expected
    both = classifier.predict([path, pixels])
    assert [guess.id for guess in both[1]] == [guess.id for guess in expected[0]]


def test_any_size_and_mode(classifier):
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        assert len(classifier.predict(Image.new(mode, (123, 45)))) == 1
    assert len(classifier.predict(np.zeros((7, 9), np.uint8))) == 1
    assert classifier.predict([]) == []


@pytest.mark.parametrize(
    "thing", [np.zeros((8, 8, 3)), 3, None, "nowhere.png", np.zeros((8, 8, 5), np.uint8), b"abc"]
)
def test_what_is_no_image_is_refused(classifier, thing):
    with pytest.raises(TinlabError):
        classifier.predict([thing])


def test_a_damaged_file_is_named(classifier, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8 nothing")
    with pytest.raises(TinlabError, match=r"broken\.jpg"):
        classifier.predict(path)


def test_another_pack_is_measured_and_kept_apart(run, shapes_folder, tmp_path):
    from tinlab.data.packing import pack

    other = pack(shapes_folder, tmp_path / "other", tune_fraction=0.3)
    own = predictions_of(run.path)
    assert len(predictions_of(run.path, split="tune", pack=other).labels) == 36
    assert np.array_equal(predictions_of(run.path).logits, own.logits)
    smaller = pack(shapes_folder, tmp_path / "smaller", image_size=32)
    with pytest.raises(TinlabError, match="32 pixels"):
        evaluate(run.path, pack=smaller)


def test_a_changed_pack_is_noticed(run, shapes_pack, tmp_path, monkeypatch):
    monkeypatch.setattr(Pack, "digest", property(lambda self: "0" * 32))
    (run.path / "predictions" / "tune.safetensors").unlink(missing_ok=True)
    with pytest.raises(TinlabError, match="changed since"):
        evaluate(run.path, split="tune")


def test_no_run_and_no_checkpoint(tmp_path):
    with pytest.raises(TinlabError, match="not a run folder"):
        tinlab.load(tmp_path)
