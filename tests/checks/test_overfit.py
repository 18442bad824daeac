"""Learning a few images by heart: what passes, what fails, and whether the reasons are the true ones."""

import copy
import math
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import xxhash
from torch import nn

from tinlab.checks import diagnosis
from tinlab.checks.charts import overfit_chart
from tinlab.checks.diagnosis import Activation, Evidence, Layer, Look, _one_pass, best_possible, diagnose
from tinlab.checks.overfit import left_on, overfit, without_regularisation
from tinlab.checks.small_pack import small_pack
from tinlab.data.pack import HEADER_BYTES, Pack, block_rows, digest_of_digests
from tinlab.drawing import save_png
from tinlab.errors import TinlabError
from tinlab.files import write_json
from tinlab.recipe import (
    Data,
    DropConnect,
    Flip,
    Loss,
    Model,
    Optimizer,
    Penalty,
    Recipe,
    Schedule,
    changed,
)

IMAGES = 12


@pytest.fixture(scope="module")
def recipe():
    return Recipe(
        name="small",
        data=Data(image_sizes=(32,)),
        augment=(Flip(),),
        model=Model(width=8, stem="patch", dropout=0.5, final_survival=0.5),
        loss=Loss(label_smoothing=0.1),
        optimizer=Optimizer(peak_lr=0.05, weight_decay=0.1, ema_decay=0.9, sam_rho=0.1),
        schedule=Schedule(epochs=3, batch_size=IMAGES, shape="one_cycle"),
    )


def check(recipe, pack, *assignments, steps=60):
    return overfit(changed(recipe, assignments), pack, images=IMAGES, steps=steps, device="cpu")


@pytest.fixture(scope="module")
def passed(recipe, shapes_pack):
    return check(recipe, shapes_pack)


def causes(found):
    return [finding.cause for finding in found.findings]


def test_a_sound_recipe_passes_before_its_budget_is_over(passed):
    assert passed.passed
    assert (passed.right, passed.images, passed.labels) == (IMAGES, IMAGES, 4)
    assert passed.steps < 60
    assert passed.evaluation.top1_percents[-1] == 100
    assert passed.findings == ()
    assert passed.chance_loss == pytest.approx(math.log(4))
    assert passed.summary() == (
        f"PASS: small gets 12 of 12 images right in evaluation mode after {passed.steps} of 60 steps"
    )


def test_what_was_switched_off_is_said(passed):
    assert {change.path for change in passed.switched_off} == {
        "augment", "loss.label_smoothing", "model.dropout", "model.final_survival", "optimizer.weight_decay",
        "optimizer.sam_rho", "optimizer.ema_decay",
    }  # fmt: skip
    assert "optimizer.weight_decay 0.1 -> 0" in map(str, passed.switched_off)
    assert {change.path for change in passed.set} == {"data.image_sizes", "schedule.shape"}
    assert passed.left_on == ()
    assert passed.recipe.schedule.warmup_fraction == 0.3


def test_a_networks_own_dropout_and_every_penalty_go():
    recipe = Recipe(
        name="vgg",
        model=Model(name="keras_vgg", dropconnect=(DropConnect(layers="fc1"),)),
        loss=Loss(penalties=(Penalty(layers="conv1", l2=1),)),
        schedule=Schedule(steps=1),
    )
    bare, off = without_regularisation(recipe, 64)
    assert bare.model.dropout == (0, 0, 0)
    assert (bare.model.dropconnect, bare.loss.penalties) == ((), ())
    assert {change.path for change in off} >= {"model.dropout", "model.dropconnect", "loss.penalties"}


def test_what_no_field_switches_off_is_found():
    model = nn.Sequential(nn.Dropout(0.3), nn.Dropout(0.0), nn.Dropout2d(0.25))
    assert list(left_on(model)) == ["0 (Dropout 0.3)", "2 (Dropout2d 0.25)"]


def test_a_rate_that_is_too_low_is_named_and_the_advice_followed_passes(recipe, shapes_pack):
    failed = check(recipe, shapes_pack, "optimizer.peak_lr=0.000001")
    assert not failed.passed
    assert causes(failed)[0] == "the learning rate is too low"
    advice = failed.findings[0].advice.split()[1].rstrip(",")
    assert check(recipe, shapes_pack, advice).passed


@pytest.mark.parametrize("rate", ["1e9", "1e30"])
def test_a_rate_that_is_too_high_is_named(recipe, shapes_pack, rate):
    failed = check(recipe, shapes_pack, f"optimizer.peak_lr={rate}", "schedule.rise_fraction=0.01")
    assert not failed.passed
    assert causes(failed) == ["the learning rate is too high"]
    assert "not finite" in failed.findings[0].evidence


def test_statistics_that_lag_are_named_and_proved(recipe, shapes_pack):
    words = ("schedule.rise_fraction=0.01", "optimizer.peak_lr=0.1")
    failed = check(recipe, shapes_pack, *words, steps=12)
    assert not failed.passed
    assert "batch norm's running statistics lag behind the weights" in causes(failed)
    assert "remember about 10 steps, of 12 in all" in failed.findings[0].evidence


def test_one_image_with_two_labels_is_named(recipe, shapes_pack, tmp_path):
    rows = np.arange(len(shapes_pack.split("train")))
    pack = small_pack(shapes_pack, "train", rows, tmp_path / "pack")
    labels = pack.split("train").labels
    first, other = 0, int(np.argmax(labels != labels[0]))
    images = np.load(tmp_path / "pack" / "few.npy")
    images[other] = images[first]
    np.save(tmp_path / "pack" / "few.npy", images)
    header, step = (tmp_path / "pack" / "few.npy").read_bytes()[:HEADER_BYTES], block_rows(images.shape[1])
    pieces = [header, *(images[at : at + step].tobytes() for at in range(0, len(images), step))]
    pack.info.files["few.npy"] = digest_of_digests(map(xxhash.xxh3_128_digest, pieces))
    write_json(tmp_path / "pack" / "pack.json", pack.info.to_json())
    failed = check(recipe, Pack.open(tmp_path / "pack"), steps=30)
    assert not failed.passed
    assert causes(failed)[0] == "identical images have different labels"
    assert "2 of the 12 images" in failed.findings[0].evidence
    assert "at most 11 can be right" in failed.findings[0].evidence


def test_nothing_is_left_behind(recipe, shapes_pack, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    check(recipe, shapes_pack, steps=2)
    assert list(tmp_path.iterdir()) == []


def test_a_few_images_as_a_pack(shapes_pack, tmp_path):
    split = shapes_pack.split("train")
    few = small_pack(shapes_pack, "train", np.array([3, 50, 60]), tmp_path / "few")
    few.verify()
    for name in ("train", "tune", "val"):
        assert np.array_equal(few.split(name).images, split.images[[3, 50, 60]])
        assert few.split(name).labels.tolist() == split.labels[[3, 50, 60]].tolist()
    for ours, theirs in zip(few.moments("train"), shapes_pack.moments("train"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
    assert [c.id for c in few.info.classes] == [c.id for c in shapes_pack.info.classes]


def test_how_many_can_be_right_by_hand():
    black, white, grey = (np.full((2, 2, 3), value, np.uint8) for value in (0, 255, 128))
    images = np.stack([black, black, black, white, white, grey])
    assert best_possible(images, np.array([0, 0, 1, 2, 2, 3])) == (5, 3)
    assert best_possible(images, np.array([0, 1, 2, 0, 1, 2])) == (3, 5)


def test_dead_channels_and_missing_gradients_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([-100.0, -100, -100, 100]))
    recipe = Recipe(name="x", schedule=Schedule(steps=1), compute={"precision": "fp32"})
    inputs, labels = torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 0, 1, 0])
    layers, activations = _one_pass(copy.deepcopy(model), inputs, labels, recipe)
    assert activations == (Activation("2", 0.75),)
    assert [layer.name for layer in layers] == ["1", "3"]
    assert all(layer.gradient > 0 for layer in layers)
    with torch.no_grad():
        model[1].bias.fill_(-100.0)
    layers, activations = _one_pass(model, inputs, labels, recipe)
    assert activations == (Activation("2", 1.0),)
    assert [layer.gradient for layer in layers] == [0, 0]


FALLING = tuple(np.geomspace(4.6, 1.0, 100))
FLAT = (4.6,) * 100
SOUND = Look(
    parameters=1000, layers=(Layer("conv1", 1.0), Layer("fc", 2.0)), activations=(Activation("act1", 0.1),),
    moved=0.5, right_in_batches=40, right_renewed=40, momentum=0.1, spread=1.0, attainable=100,
    contradictions=0,
)  # fmt: skip
SHAKING = tuple(2 + 1.5 * (-1) ** n for n in range(100))


@pytest.mark.parametrize(
    ("losses", "changes", "expected"),
    [
        (FLAT, {"moved": 1e-4}, "the learning rate is too low"),
        (FLAT, {"activations": (Activation("act1", 0.99),)}, "dead activations"),
        (FLAT, {"layers": (Layer("conv1", 0.0), Layer("fc", 2.0))}, "no gradient reaches some layers"),
        (FLAT, {"spread": 0.001}, "the network gives every image the same answer"),
        (FALLING, {}, "it was not finished"),
        (SHAKING, {}, "the learning rate is rather high"),
        ((4.6, *[2.0] * 99), {}, "the network is too small, or its rate does not suit it"),
        ((1.0, *[9.0] * 99), {}, "the learning rate is too high"),
        (
            FALLING,
            {"right_in_batches": 100, "right_renewed": 50},
            "the network reads a batch's statistics, not the image",
        ),
        (FALLING, {"attainable": 98, "contradictions": 4}, "identical images have different labels"),
    ],
)
def test_what_the_figures_say(recipe, losses, changes, expected):
    evidence = Evidence(recipe, 0.05, tuple(range(100)), len(losses), tuple(losses), right=40, diverged="")
    found = diagnose(evidence, replace(SOUND, **changes))
    assert found[0].cause == expected
    assert any(digit in found[0].evidence for digit in "0123456789")
    assert found[0].advice


def test_a_network_whose_first_values_are_not_finite_is_told_from_a_high_rate(recipe):
    evidence = Evidence(recipe, 0.05, tuple(range(100)), 1, (), right=0, diverged="not finite at step 1")
    broken = replace(SOUND, moved=None, layers=(Layer("conv1", math.nan),))
    assert diagnose(evidence, broken)[0].cause == "the network's first values are not usable"
    assert diagnose(evidence, replace(SOUND, moved=None))[0].cause == "the learning rate is too high"


@pytest.mark.parametrize(
    ("images", "steps", "words"),
    [
        (1, 60, "--images 1"),
        (0, 60, "--images 0"),
        (10_000, 60, "has only 108 images in train"),
        (12, 1, "--steps 1"),
    ],
)
def test_bad_input_is_refused(recipe, shapes_pack, images, steps, words):
    with pytest.raises(TinlabError, match=words):
        overfit(recipe, shapes_pack, images=images, steps=steps, device="cpu")


def test_the_chart_says_the_verdict(passed, tmp_path):
    import PIL.Image

    save_png(overfit_chart(passed), tmp_path / "chart.png", passed.summary())
    with PIL.Image.open(tmp_path / "chart.png") as picture:
        assert picture.text["Description"].startswith("PASS: small gets 12 of 12")


def test_gradients_are_looked_at_at_the_size_that_was_trained_on(recipe, shapes_pack, monkeypatch):
    sizes = []
    one_pass = diagnosis._one_pass

    def noted(model, inputs, *rest):
        sizes.append(tuple(inputs.shape[2:]))
        return one_pass(model, inputs, *rest)

    monkeypatch.setattr(diagnosis, "_one_pass", noted)
    smaller = changed(recipe, ["data.image_sizes=[24]", "data.measured_size=24", "optimizer.peak_lr=1e-9"])
    overfit(smaller, shapes_pack, images=8, steps=2, device="cpu")
    assert sizes == [(24, 24)]
