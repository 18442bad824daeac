import csv
import shutil
import threading

import pytest

from tinlab.data.digests import OFFICIAL_DIGEST
from tinlab.errors import TinlabError
from tinlab.files import only_one, read_json, write_json
from tinlab.recipes import shortened
from tinlab.results import (
    ADDED,
    COLUMNS,
    TINY_IMAGENET,
    curve_file,
    mean_top1_percent,
    of_tiny_imagenet,
    read_results,
    record,
    recorded,
    results_file,
    row_of,
    write_table,
)
from tinlab.training import loop


@pytest.fixture(scope="module")
def run(tiny_recipe, shapes_pack, tmp_path_factory):
    """A finished run that claims to have been trained on a folder of real images."""
    run = loop.train(tiny_recipe, shapes_pack, tmp_path_factory.mktemp("runs"), device="cpu")
    environment = read_json(run.path / "environment.json")
    environment["pack"]["source_kind"] = "class_folders"
    write_json(run.path / "environment.json", environment)
    return run


def test_a_row_holds_what_makes_its_number_a_number(run, tmp_path):
    path = tmp_path / "results" / "results.csv"
    row = record(run.path, path)
    (saved,) = read_results(path)
    assert list(saved) == list(COLUMNS)
    assert {name: "" if value is None else str(value) for name, value in row.items()} == saved
    assert float(saved["top1_percent"]) == run.result["top1_percent"]
    assert (
        float(saved["top1_low_percent"]) <= float(saved["top1_percent"]) <= float(saved["top1_high_percent"])
    )
    assert saved["recipe_digest"] == run.recipe.digest
    assert (saved["budget"], saved["classes"]) == ("", "4")
    assert saved["hardware"]
    assert [saved[name] for name in ("image_size", "tune_fraction", "pack_seed", "weights")] == [
        "64", "0.1", "0", "",
    ]  # fmt: skip
    assert not of_tiny_imagenet(saved)
    other = {**saved, "finished_at": "1", "content_digest": OFFICIAL_DIGEST, "classes": "200"}
    newer = {**other, "finished_at": "2", "top1_percent": "30"}
    third = {**newer, "seed": "1", "top1_percent": "50"}
    write_table(path, COLUMNS, [saved, newer, other, third])
    assert mean_top1_percent(path) == {run.recipe.digest: 40}


@pytest.mark.parametrize("of", [{"image_size": "32"}, {"tune_fraction": "0.5"}, {"pack_seed": "1"}])
def test_a_row_of_another_pack_of_the_official_files_is_told_apart(of, run, tmp_path):
    row = record(run.path, tmp_path / "r.csv") | TINY_IMAGENET
    assert of_tiny_imagenet(row)
    older = row | dict.fromkeys(ADDED, "")  # of which there is nothing to say otherwise
    write_table(tmp_path / "r.csv", COLUMNS, [older, row | of | {"seed": "1"}])
    digest = run.recipe.digest
    assert list(recorded(tmp_path / "r.csv")) == [(digest, 0)]
    assert list(recorded(tmp_path / "r.csv", TINY_IMAGENET | of)) == [(digest, 1)]
    assert not of_tiny_imagenet(row | of)


def test_a_row_says_which_weights_its_run_began_from(run, tmp_path):
    path = shutil.copytree(run.path, tmp_path / "run")
    recipe = read_json(path / "recipe.json")
    for named, expected in (("imagenet", "imagenet"), ("mine.safetensors", "0123456789ab")):
        write_json(path / "recipe.json", {**recipe, "model": {**recipe["model"], "weights": named}})
        environment = read_json(path / "environment.json")
        write_json(path / "environment.json", {**environment, "weights": {"sha256": "0123456789abcdef"}})
        assert row_of(path)["weights"] == expected
    write_json(path / "environment.json", {n: v for n, v in environment.items() if n != "weights"})
    with pytest.raises(TinlabError, match=r"environment.json is damaged"):
        row_of(path)


def test_a_row_is_added_to_an_older_file(run, tmp_path):
    path = tmp_path / "r.csv"
    old = record(run.path, path) | {"seed": 1}
    write_table(path, tuple(name for name in COLUMNS if name not in ADDED[2:]), [old])
    record(run.path, path)
    before, added = read_results(path)
    assert (before["classes"], before["image_size"]) == ("4", "")
    assert added["image_size"] == "64"


def test_a_row_of_a_resumed_run_has_all_that_it_was_trained_on(run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(run.path, path)
    first = read_json(path / "environment.json")
    later = {**first, "threads": first["threads"] + 1, "commit": "0123456789ab"}
    write_json(path / "environment.json", {**first, "resumed": [first, later, later]})
    row = row_of(path)
    assert row["threads"] == f"{first['threads']} then {first['threads'] + 1}"
    assert row["commit"] == f"{first['commit']} then 0123456789ab"
    assert row["hardware"] == row_of(run.path)["hardware"]
    write_json(path / "environment.json", {**first, "commit": None, "resumed": [later]})
    assert row_of(path)["commit"] == "none then 0123456789ab"
    write_json(path / "environment.json", {**first, "resumed": [{"threads": 1}]})
    with pytest.raises(TinlabError, match=r"environment.json is damaged"):
        row_of(path)


def test_a_row_without_a_number_is_named(run, tmp_path):
    path = tmp_path / "results.csv"
    row = record(run.path, path)
    for broken in ({"seed": "x"}, {"seed": "0.5"}, {"top1_percent": "101"}, {"top1_low_percent": ""}):
        write_table(path, COLUMNS, [row, {**row, **broken}])
        with pytest.raises(TinlabError, match=rf"results.csv, line 3: {next(iter(broken))} is"):
            read_results(path)


def test_a_shortened_recipes_row_says_so_and_has_a_curve_of_its_own(tiny_recipe, shapes_pack, tmp_path):
    short = shortened(tiny_recipe, 0.25)
    run = loop.train(short, shapes_pack, tmp_path / "runs", device="cpu")
    environment = read_json(run.path / "environment.json")
    environment["pack"]["source_kind"] = "class_folders"
    write_json(run.path / "environment.json", environment)
    row = record(run.path, tmp_path / "results" / "r.csv")
    assert row["budget"] == f"{run.result['epochs']:.3g} of {4 * run.result['epochs']:.3g} epochs"
    curve = tmp_path / "results" / "curves" / f"tiny-budget-0.25-{short.digest}-s0.csv"
    assert curve.is_file()


def test_a_run_is_recorded_once(run, tmp_path):
    record(run.path, tmp_path / "r.csv")
    with pytest.raises(TinlabError, match="already"):
        record(run.path, tmp_path / "r.csv")
    assert len(read_results(tmp_path / "r.csv")) == 1


def test_each_row_keeps_a_curve_of_its_own(run, tmp_path):
    path = tmp_path / "r.csv"
    first = record(run.path, path)
    plain = tmp_path / "curves" / f"tiny-{run.recipe.digest}-s0.csv"
    before = plain.read_bytes()
    later = shutil.copytree(run.path, tmp_path / "run")
    result = read_json(later / "result.json") | {"finished_at": "2030-01-02T03:04:05+00:00"}
    write_json(later / "result.json", result)
    points = (later / "metrics.jsonl").read_text().splitlines(keepends=True)
    (later / "metrics.jsonl").write_text("".join(points[1:]))
    second = record(later, path)
    assert curve_file(path, first) == plain
    assert plain.read_bytes() == before
    assert curve_file(path, second) == plain.with_stem(f"{plain.stem}-20300102030405")
    assert len(curve_file(path, second).read_text().splitlines()) == len(points)
    # Nor is it taken by a row of another file in the folder; the same run's is written again.
    record(later, tmp_path / "other.csv")
    record(run.path, tmp_path / "third.csv")
    assert plain.read_bytes() == before
    assert len(list(plain.parent.iterdir())) == 2


def test_who_adds_rows_at_the_same_time_waits(run, tmp_path):
    path = tmp_path / "r.csv"
    other = threading.Thread(target=record, args=(run.path, path))
    with only_one(tmp_path):
        other.start()
        other.join(0.5)
        assert other.is_alive()
        assert not path.exists()
    other.join(20)
    assert len(read_results(path)) == 1


def test_rendered_images_and_unfinished_runs_are_refused(run, shapes_pack, tiny_recipe, tmp_path):
    rendered = loop.train(tiny_recipe, shapes_pack, tmp_path / "runs", device="cpu")
    with pytest.raises(TinlabError, match="rendered"):
        record(rendered.path, tmp_path / "r.csv")
    (rendered.path / "result.json").unlink()
    with pytest.raises(TinlabError, match="not finished"):
        record(rendered.path, tmp_path / "r.csv")
    assert not (tmp_path / "r.csv").exists()


def test_a_folder_is_no_file_of_results(run, tmp_path):
    (tmp_path / "here").mkdir()
    with pytest.raises(TinlabError, match="is a folder; name a CSV file"):
        record(run.path, tmp_path / "here")
    assert list(tmp_path.rglob("*.csv")) == []


def test_a_run_whose_seed_has_anothers_draws_is_refused(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "run")
    for name in ("run.json", "result.json"):
        write_json(copy / name, {**read_json(copy / name), "seed": -1})
    with pytest.raises(TinlabError, match="its seed is -1"):
        record(copy, tmp_path / "r.csv")
    assert not (tmp_path / "r.csv").exists()


def test_a_foreign_file_is_left_alone(run, tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(TinlabError, match="other columns"):
        record(run.path, path)
    assert path.read_text() == "a,b\n1,2\n"


def test_the_projects_own_results_are_readable():
    with results_file().open(newline="") as file:
        names = next(csv.reader(file))
    assert [name for name in COLUMNS if name in names] == names
    assert set(COLUMNS) - set(names) <= set(ADDED)
    for row in read_results(results_file()):
        assert 0 < float(row["top1_percent"]) < 100
        assert row["source_kind"] != "rendered"
        assert row["commit"]
        assert row["image_size"]
        assert row["tune_fraction"]
