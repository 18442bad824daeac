"""The range test: what it reads off curves that are known, and that its rate is a good one."""

import math
import tempfile

import numpy as np
import pytest

from tinlab.checks.charts import range_chart
from tinlab.checks.lr_find import climbing_recipe, concluded, lr_find, marked, smooth
from tinlab.checks.trial_runs import CheckStopped, scratch
from tinlab.drawing import save_png
from tinlab.errors import TinlabError
from tinlab.recipe import Data, Flip, Model, Optimizer, Recipe, Schedule, changed
from tinlab.training import endings, loop

RATES = np.geomspace(1e-6, 10, 200)


@pytest.fixture(scope="module")
def recipe():
    return Recipe(
        name="small",
        data=Data(image_sizes=(16, 32)),
        augment=(Flip(),),
        model=Model(width=4, stem="patch"),
        optimizer=Optimizer(peak_lr=0.05, ema_decay=0.9),
        schedule=Schedule(steps=60, batch_size=16, shape="constant"),
    )


@pytest.fixture(scope="module")
def found(recipe, shapes_pack):
    return lr_find(recipe, shapes_pack, device="cpu", steps=120)


def fall_and_rise(middle, bottom):
    """From 2 down to 1 around rate `middle`, and up without end from rate `bottom` on."""
    place = np.log10(RATES)
    return 2 - 1 / (1 + np.exp(-6 * (place - math.log10(middle)))) + 10 ** (3 * (place - math.log10(bottom)))


def test_the_average_is_that_of_the_weights_written_out():
    losses = [3.0, 1.0, 4.0, 1.5, 9.0]
    for count in range(1, 6):
        weights = 0.8 ** np.arange(count)[::-1]
        assert smooth(losses, 0.8)[count - 1] == pytest.approx(np.average(losses[:count], weights=weights))
    assert smooth([7.0] * 50) == pytest.approx([7.0] * 50)


@pytest.mark.parametrize("middle", [1e-4, 1e-2])
def test_marks_of_a_known_curve(middle):
    losses = fall_and_rise(middle, bottom=100 * middle).tolist()
    marks = marked(RATES, losses, losses)
    step = RATES[1] / RATES[0]
    assert middle / step < marks.steepest < middle * step
    assert marks.lowest == pytest.approx(RATES[int(np.argmin(losses))])
    assert marks.fall == pytest.approx(2 - min(losses), abs=0.01)
    assert marks.fell


def test_the_lag_of_the_average_is_less_than_a_power_of_ten():
    losses = fall_and_rise(1e-3, bottom=0.1).tolist()
    marks = marked(RATES, losses, smooth(losses))
    assert 1e-3 < marks.steepest < 1e-2


def test_noise_before_the_fall_is_not_the_fall():
    dice = np.random.Generator(np.random.Philox(3))
    for _ in range(20):
        losses = (fall_and_rise(1e-2, bottom=1) + dice.normal(0, 0.15, 200)).tolist()
        marks = marked(RATES, losses, smooth(losses))
        assert 2e-3 < marks.steepest < 0.3
        assert marks.noise == pytest.approx(0.15, rel=0.3)


def test_noise_alone_is_no_fall(recipe):
    dice = np.random.Generator(np.random.Philox(4))
    for _ in range(20):
        losses = (2 + dice.normal(0, 0.2, 200)).tolist()
        found = concluded(recipe, 32, RATES.tolist(), losses, "range")
        assert found.recommended is None
        assert found.assignments == ()
        assert "did not fall" in found.why


def test_a_loss_that_still_falls_at_the_end_is_said(recipe):
    losses = (2 - 0.2 * (np.log10(RATES) + 6)).tolist()
    assert "higher --to" in concluded(recipe, 32, RATES.tolist(), losses, "range").why


def test_the_rate_found_trains_better_than_one_100_times_as_low_or_high(found, recipe, shapes_pack, tmp_path):
    (assignment,) = found.assignments
    assert assignment == f"optimizer.peak_lr={found.recommended:g}"

    def last_loss(rate):
        chosen = changed(recipe, [f"optimizer.peak_lr={rate}", "data.image_sizes=[32]"])
        try:
            run = loop.train(chosen, shapes_pack, tmp_path, device="cpu", final_split="tune")
        except endings.Diverged:
            return math.inf
        losses = [point["loss"] for point in run.metrics() if point["kind"] == "train"]
        return float(np.mean(losses[-6:]))

    rate = found.recommended
    here = last_loss(rate)
    assert here < last_loss(rate / 100) - 0.05
    assert here < last_loss(rate * 100) - 0.05


def test_it_is_deterministic_and_leaves_nothing(found, recipe, shapes_pack, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    again = lr_find(recipe, shapes_pack, device="cpu", steps=120)
    assert again == found
    assert list(tmp_path.iterdir()) == []


def test_the_rest_of_the_recipe_stays(recipe):
    muon = changed(recipe, ["optimizer.name=muon", "optimizer.rest_lr=0.001", "schedule.accumulate=2"])
    climbing = climbing_recipe(muon, 1e-5, 1, 50)
    assert climbing.optimizer.rest_lr == pytest.approx(0.02)  # a fiftieth of the other, as before
    assert climbing.augment == muon.augment
    assert (climbing.schedule.batch_size, climbing.schedule.accumulate) == (16, 2)
    assert climbing.data.image_sizes == (32,)
    losses = fall_and_rise(1e-3, bottom=0.1).tolist()
    assert [a.split("=")[0] for a in concluded(muon, 32, RATES.tolist(), losses, "rose").assignments] == [
        "optimizer.peak_lr",
        "optimizer.rest_lr",
    ]
    assert Recipe.model_validate(climbing.model_dump()) == climbing


@pytest.mark.parametrize(
    ("low", "high", "steps", "words"),
    [
        (1e-3, 1e-5, 100, "--from"),
        (0.0, 1.0, 100, "--from"),
        (1e-3, math.inf, 100, "--to"),
        (math.nan, 1.0, 100, "--from"),
        (1e-5, 1.0, 5, "--steps 20"),
    ],
)
def test_a_bad_range_is_refused(recipe, shapes_pack, low, high, steps, words):
    with pytest.raises(TinlabError, match=words):
        lr_find(recipe, shapes_pack, low=low, high=high, steps=steps)


def test_rates_that_only_break_it_are_said(recipe, shapes_pack):
    with pytest.raises(TinlabError, match="lower --from"):
        lr_find(recipe, shapes_pack, low=1e30, high=1e35, steps=20, device="cpu")


def test_the_chart_says_in_words_what_it_shows(found, tmp_path):
    import PIL.Image

    save_png(range_chart(found), tmp_path / "chart.png", found.summary())
    with PIL.Image.open(tmp_path / "chart.png") as picture:
        assert picture.size[0] == 1280
        assert f"{found.recommended:.2g} is recommended" in picture.text["Description"]
    with pytest.raises(TinlabError, match="cannot be written"):
        save_png(range_chart(found), tmp_path / "chart.png" / "x.png", "")


def test_a_stopped_check_does_not_name_a_run_that_is_gone(tmp_path):
    stopped = endings.TrainingStopped(tmp_path, 3, 9, 15)
    with pytest.raises(CheckStopped, match="nothing of it is kept") as error, scratch("the check"):
        raise stopped
    assert error.value.exit_code == 143
