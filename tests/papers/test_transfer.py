import json

import pytest

from tinlab import recipes
from tinlab.data.digests import OFFICIAL_DIGEST
from tinlab.data.subset import half, subset_pack
from tinlab.environment import describe_pack
from tinlab.errors import TinlabError
from tinlab.files import write_json
from tinlab.papers import transfer as module
from tinlab.papers.length import IMAGES_PER_SECOND
from tinlab.papers.page import results_page
from tinlab.papers.transfer import (
    TABLE_COLUMNS,
    Trained,
    drawn_points,
    on_a,
    on_b,
    read_transfer,
    record_transfer,
    recorded_transfer,
    transfer,
    transfer_minutes,
)
from tinlab.papers.write import write_pages
from tinlab.recipe import changed
from tinlab.results import ADDED, images_of, write_table
from tinlab.study.trial import training_alone
from tinlab.training import loop
from tinlab.training.stages import spans


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


def test_what_has_a_row_is_not_trained_again(small, shapes_pack, tmp_path):
    told: list[tuple[int, str]] = []
    how = {
        "images_per_class": (2,),
        "fraction": 0.01,
        "device": "cpu",
        "say": lambda text: None,
        "finished": lambda one: told.append((one.images_per_class, one.start)),
    }
    (line,) = transfer(small, shapes_pack, tmp_path / "t", recorded={(2, "from A", 0): 33.0}, **how)
    assert told == [(2, "from scratch")]  # nor is the network on A, which nothing needs
    assert line.from_a == {0: 33.0}

    row = dict.fromkeys(TABLE_COLUMNS, "1") | {"recipe_digest": small.digest, "start": "from A", "seed": "0"}
    row |= {"images_per_class": "2", "share": "0.01", "top1_percent": "33"}
    images = images_of(describe_pack(shapes_pack))
    row |= images | {"classes": str(len(shapes_pack.info.classes) // 2)}
    rows = [row, row | {"start": "from scratch", "classes": "77"}, row | {"share": "1", "seed": "2"}]
    rows += [row | {"seed": "3", "image_size": "32"}]
    for columns in (TABLE_COLUMNS, [name for name in TABLE_COLUMNS if name not in ADDED[2:]]):
        write_table(tmp_path / "transfer.csv", tuple(columns), rows[: 4 if "image_size" in columns else 3])
        found = recorded_transfer(tmp_path / "transfer.csv", small, 0.01, shapes_pack)
        assert found == {(2, "from A", 0): 33.0}


def test_who_trains_the_same_in_the_same_folder_is_refused(small, shapes_pack, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *a, **k: pytest.fail("trained twice"))
    pack = subset_pack(shapes_pack, half(shapes_pack, "A"), tmp_path / "pack-A")
    with (
        training_alone(tmp_path / "runs", on_a(small, 0.01), 0, pack.digest),
        pytest.raises(TinlabError, match=r"transfer-a-tiny.*, seed 0, in .* is being trained by another"),
    ):
        transfer(small, shapes_pack, tmp_path, images_per_class=(2,), fraction=0.01, say=lambda text: None)


def test_both_ways_have_the_same_images_and_steps(small, shapes_pack):
    tuned, scratch = (on_b(small, 5, weights, 1.0, shapes_pack) for weights in ("runs/a", None))
    assert sum(phase.schedule.steps for phase in tuned.phases) == scratch.schedule.steps
    assert {phase.data.images_per_class for phase in (*tuned.phases, scratch)} == {5}
    assert [rate.factor for rate in tuned.phases[0].optimizer.layer_rates] == [1, 0]
    assert tuned.phases[1].optimizer.layer_rates == ()
    assert scratch.model.weights is None
    for count in (1, 5, 10**6):
        epochs = spans(on_b(small, count, None, 1.0, shapes_pack), shapes_pack, 0)[0]
        assert 6 <= epochs.steps / epochs.evaluate_every <= 24


def test_muon_leaves_the_classifier_alone_to_adamw_and_both_rates_fall(small, shapes_pack, tmp_path):
    muon = changed(small, ["optimizer.name=muon", "optimizer.peak_lr=0.02", "optimizer.rest_lr=0.01"])
    classifier, everything = on_b(muon, 5, "runs/a", 1.0, shapes_pack).phases
    assert (classifier.optimizer.peak_lr, classifier.optimizer.rest_lr) == (0.02, 0.01)
    assert everything.optimizer.peak_lr == pytest.approx(0.002)
    assert everything.optimizer.rest_lr == pytest.approx(0.001)
    (line,) = transfer(muon, shapes_pack, tmp_path, images_per_class=(2,), fraction=0.01, device="cpu")
    assert set(line.from_a) == set(line.from_scratch) == {0}


def test_no_images_are_refused(small, shapes_pack, tmp_path):
    with pytest.raises(TinlabError, match="1 or more"):
        transfer(small, shapes_pack, tmp_path, images_per_class=(0,))


def test_more_images_than_b_has_are_refused_before_anything_is_made(small, shapes_pack, tmp_path):
    with pytest.raises(TinlabError, match=r"28 images .* more .* 27 of its smallest class in train;"):
        transfer(small, shapes_pack, tmp_path / "t", images_per_class=(2, 28), fraction=0.01, device="cpu")
    assert not (tmp_path / "t").exists()


def test_a_recipe_that_has_seen_other_images_is_refused(small, shapes_pack, tmp_path):
    with pytest.raises(TinlabError, match="take a recipe from scratch"):
        transfer(changed(small, ["model.weights=imagenet"]), shapes_pack, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_each_training_is_a_row_as_it_ends_and_the_page_shows_them(small, shapes_pack, tmp_path, monkeypatch):
    monkeypatch.setitem(module.HALF, "classes", "2")
    path = tmp_path / "results" / "transfer.csv"
    results = tmp_path / "results" / "results.csv"
    changed: list[bool] = []
    lengths: list[int] = []

    def finished(one):
        environment = one.run.environment
        # Rows of rendered images are refused, and the page shows those of Tiny ImageNet's halves.
        environment["pack"] |= {"source_kind": "official_zip", "content_digest": OFFICIAL_DIGEST}
        environment["pack"] |= {"image_size": 64, "counts": {"train": 90, "tune": 10}, "seed": 0}
        write_json(one.run.path / "environment.json", environment)
        changed.append(record_transfer(one, path))
        lengths.append(len(read_transfer(path)))

    how = {"images_per_class": (2, 4), "fraction": 0.01, "device": "cpu", "say": lambda text: None}
    lines = transfer(small, shapes_pack, tmp_path / "t", finished=finished, **how)
    # A's own row comes first and again before the second number of images.
    assert lengths == [1, 2, 3, 3, 4, 5]
    assert changed == [True, True, True, False, True, True]
    transfer(small, shapes_pack, tmp_path / "t", finished=finished, **how)
    assert changed[6:] == [False] * 6
    rows = read_transfer(path)
    assert {row["share"] for row in rows} == {"0.01"}
    assert [float(row["top1_percent"]) for row in rows if row["start"] == "from A"] == [
        line.from_a[0] for line in lines
    ]
    text = results_page(results).partition("## Transfer")[2].partition("\n## ")[0]
    for line in lines:
        (cells,) = [one for one in text.splitlines() if one.startswith(f"| {line.images_per_class} |")]
        assert f"{line.from_a[0]:.2f} (" in cells
        assert f"{line.from_a[0] - line.from_scratch[0]:+.2f}" in cells
    assert f"`{small.name}` at 0.01 of each length" in text
    (picture,) = [one for one in write_pages(results) if one.name == "transfer.png"]
    assert picture.stat().st_size < 40_000


def row(start, count, seed, top1, share="1", digest="d", finished_at="1"):
    return {
        **dict.fromkeys(TABLE_COLUMNS, ""),
        "network": "net", "recipe_digest": digest, "share": share, "images_per_class": str(count),
        "start": start, "seed": str(seed), "top1_percent": str(top1), "top1_low_percent": str(top1 - 1),
        "top1_high_percent": str(top1 + 2), "finished_at": finished_at,
        "content_digest": OFFICIAL_DIGEST, "classes": "100", "train_minutes": "1",
    }  # fmt: skip


def test_rows_of_other_images_replace_none_and_are_not_shown(monkeypatch, tmp_path):
    path = tmp_path / "results" / "transfer.csv"
    own = row("from A", 5, 0, 20.0)
    tenth = {**row("from A", 5, 0, 90.0), "classes": "10"}
    photos = {**row("from A", 5, 0, 80.0, finished_at="2"), "content_digest": "0" * 64}
    small = {**row("from A", 5, 1, 70.0), "image_size": "32"}
    for one in (own, tenth, photos, small):
        run = type("Run", (), {"path": tmp_path})
        recipe = type("Recipe", (), {"name": "net", "digest": "d"})
        monkeypatch.setattr(module, "row_of", lambda path, one=one: one)
        assert record_transfer(Trained(recipe, 1.0, 5, "from A", run), path)
    assert [one["top1_percent"] for one in read_transfer(path)] == ["20.0", "90.0", "80.0", "70.0"]
    assert drawn_points(read_transfer(path)) == {"from A": [(5, 20.0, 19.0, 22.0)]}
    text = results_page(path.parent / "results.csv").partition("## Transfer")[2].partition("\n## ")[0]
    assert "| 5 | 20.00 (19.00 to 22.00) | not yet run |" in text
    assert "On A's own" not in text


def test_points_are_means_over_seeds_of_the_newest_network_at_its_largest_share():
    rows = [
        row("A itself", 0, 0, 70.0),
        row("from A", 25, 0, 40.0),
        row("from A", 5, 0, 20.0),
        row("from A", 5, 1, 24.0),
        row("from A", 5, 0, 9.0, share="0.1"),
        row("from A", 5, 0, 90.0, digest="older", finished_at="0"),
    ]
    points = drawn_points(rows)
    assert set(points) == {"from A"}
    (five, twenty_five) = points["from A"]
    assert five[:2] == (5, 22.0)
    # Student's t for one degree of freedom: 12.706 standard errors of 2.
    assert five[3] - five[1] == pytest.approx(12.706 * 2, rel=1e-3)
    assert twenty_five == (25, 40.0, 39.0, 42.0)
    assert drawn_points([]) == {}


def test_the_time_is_that_of_all_trainings_of_one_seed():
    recipe = recipes.find("yu_resnet20")
    # Half of the passes on A, and on B two trainings each: 5, 25 and 50 images a class take 400 steps of at
    # most 256, or 12 passes where these are more; 500 take 12 passes of 50,000.
    on_b = 400 * 256 + 400 * 256 + 400 * 256 + 600_000
    images = 250_000 + 2 * on_b
    assert transfer_minutes(recipe) == pytest.approx(images / IMAGES_PER_SECOND["yu_resnet20"] / 60, rel=0.01)
