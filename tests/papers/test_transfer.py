import json

import pytest

from tinlab.errors import TinlabError
from tinlab.papers.transfer import on_b, transfer
from tinlab.training import loop


@pytest.fixture(scope="module")
def small(tiny_recipe):
    data = tiny_recipe.data.model_copy(update={"image_sizes": (64,)})
    schedule = tiny_recipe.schedule.model_copy(update={"steps": 4, "batch_size": 8})
    return tiny_recipe.model_copy(update={"data": data, "schedule": schedule})


def test_both_ways_are_measured_on_half_b_and_nothing_is_trained_twice(
    small, shapes_pack, tmp_path, monkeypatch
):
    said: list[str] = []
    how = {"images_per_class": (2, 4), "fraction": 0.01, "device": "cpu", "say": said.append}
    lines = transfer(small, shapes_pack, tmp_path / "t", **how)
    assert [line.images_per_class for line in lines] == [2, 4]
    assert all(0 <= v <= 100 for line in lines for v in (*line.from_a.values(), *line.from_scratch.values()))
    assert json.loads((tmp_path / "t" / "transfer.json").read_text())[0]["images_per_class"] == 2
    # One network on A, and two on B for each number of images.
    assert len(list((tmp_path / "t" / "runs").glob("*/result.json"))) == 5
    monkeypatch.setattr(loop, "train", lambda *a, **k: pytest.fail("trained again"))
    assert transfer(small, shapes_pack, tmp_path / "t", **how) == lines


def test_both_ways_have_the_same_images_and_steps(small, shapes_pack):
    tuned, scratch = (on_b(small, 5, weights, 1.0, shapes_pack) for weights in ("runs/a", None))
    assert sum(phase.schedule.steps for phase in tuned.phases) == scratch.schedule.steps
    assert {phase.data.images_per_class for phase in (*tuned.phases, scratch)} == {5}
    assert [rate.factor for rate in tuned.phases[0].optimizer.layer_rates] == [1, 0]
    assert tuned.phases[1].optimizer.layer_rates == ()
    assert scratch.model.weights is None


def test_no_images_are_refused(small, shapes_pack, tmp_path):
    with pytest.raises(TinlabError, match="1 or more"):
        transfer(small, shapes_pack, tmp_path, images_per_class=(0,))
