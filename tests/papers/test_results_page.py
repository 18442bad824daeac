import csv
import re
import shutil
import threading
from pathlib import Path

import pytest

from tinlab import recipes, results
from tinlab.data.digests import OFFICIAL_DIGEST
from tinlab.errors import TinlabError
from tinlab.files import only_one
from tinlab.papers import charts, page
from tinlab.papers.found import found_of
from tinlab.papers.helps import what_helps_page
from tinlab.papers.length import (
    IMAGES_PER_SECOND,
    expected_minutes,
    images_per_second,
    images_seen,
    row_minutes,
    train_images,
)
from tinlab.papers.measures import PICTURE, measures_file, read_measures, record_measures, values_of
from tinlab.papers.registry import CLASS_ERRORS, PAPERS, every_row, recipe_called, row, rows_of, study_recipes
from tinlab.papers.reproduce import status
from tinlab.papers.sources import sources_page
from tinlab.papers.write import PAGES, write_pages
from tinlab.recipe import Model
from tinlab.study.studies import STUDIES

ROOT = Path(__file__).resolve().parents[2]
(RESNET20,) = (ROOT / "results" / "curves").glob("yu_resnet20-????????????-s0.csv")


def line(name, seed=0, top1=50.0, budget=""):
    recipe = recipe_called(name)
    return {
        **dict.fromkeys(results.COLUMNS, ""),
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "seed": str(seed),
        "split": "val",
        "top1_percent": str(top1),
        "top1_low_percent": str(top1 - 1),
        "top1_high_percent": str(top1 + 1),
        "train_top1_percent": "90.0",
        "train_minutes": "12.0",
        "parameters": "1000",
        "hardware": "a machine",
        "commit": "abc",
        "torch": "9.9",
        "tinlab": "0.1",
        "content_digest": OFFICIAL_DIGEST,
        "classes": "200",
        "budget": budget,
    }


def written(folder, lines):
    path = folder / "results" / "results.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, results.COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    return path


def row_of(text, name):
    """The cells of the row called `name`, the last one there is."""
    (*_, found) = [one for one in text.splitlines() if one.startswith(f"| {name} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_projects_pages_are_what_the_command_writes(tmp_path):
    path = results.results_file()
    for place in write_pages(path, tmp_path):
        own = ROOT / place.relative_to(tmp_path)
        if place.suffix == ".md":
            assert own.read_text() == place.read_text(), "run: tinlab results"
        assert place.suffix == ".md" or own.stat().st_size < 40_000, own
    drawn = {p.name for p in (ROOT / "results" / "figures").glob("*.png")}
    assert drawn == {p.name for p in tmp_path.rglob("*.png")}


def test_every_row_has_a_place_in_the_page(tmp_path):
    text = page.results_page(written(tmp_path, []))
    for one in every_row():
        if not one.id.startswith("what_helps"):
            assert "not yet run" in " ".join(row_of(text, one.id))
    assert [one for one in PAPERS if f"## {one.title}" not in text] == []


def test_one_seed_shows_its_interval_and_more_their_spread(tmp_path):
    one = page.results_page(written(tmp_path / "a", [line("sun_vanilla", top1=52.5)]))
    assert row_of(one, "sun_vanilla")[3] == "52.50 (51.50 to 53.50)"
    lines = [line("sun_vanilla", seed, top1) for seed, top1 in enumerate((50.0, 51.0, 52.0))]
    many = page.results_page(written(tmp_path / "b", lines))
    assert row_of(many, "sun_vanilla")[3] == "51.00 ± 1.00 (n = 3)"
    assert row_of(many, "sun_vanilla")[4:6] == ["90.0", "12.0"]
    for made_of in ("a machine", "torch 9.9", "tinlab 0.1", "`abc`", recipes.find("sun_vanilla").digest):
        assert made_of in row_of(many, "sun_vanilla")[6]


def test_a_fraction_says_so_and_the_whole_goes_first(tmp_path):
    short = line("sun_final-budget-0.1", top1=40.0, budget="7 of 70 epochs")
    text = page.results_page(written(tmp_path / "a", [short]))
    assert row_of(text, "sun_final")[3] == "40.00 (39.00 to 41.00); budget: 7 of 70 epochs"
    lines = [short, line("sun_final", top1=65.0)]
    found = found_of(recipes.find("sun_final"), lines)
    assert [one.budget for one in found] == ["", "7 of 70 epochs"]
    both = page.results_page(written(tmp_path / "b", lines))
    assert row_of(both, "sun_final")[3] == "65.00 (64.00 to 66.00)"
    assert "40.00" not in both


def test_a_studys_rows_stand_under_its_name(tmp_path):
    lines = [line("sun_resnet18_c"), line("ma_init-budget-0.5-activation-elu-init-lsuv", budget="x")]
    text = page.results_page(written(tmp_path, lines))
    assert "| sun_variants: resnet18, block (c)" in text
    assert "ma_init-budget" not in text.partition("## Others")[2]
    assert len([one for one in text.splitlines() if one.startswith("| ma_init:")]) == 1


def test_what_saw_imagenet_stands_in_a_table_of_its_own(tmp_path):
    text = page.results_page(written(tmp_path, [line("yu_inception", top1=60.0)]))
    own, leaking = text.split("## Networks that saw ImageNet's weights")
    assert "60.00" not in own
    assert row_of(leaking, "yu_inception")[3].startswith("60.00")
    assert "images of ImageNet" in leaking


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("imagenet", "began from ImageNet's weights"),
        ("0123456789ab", "began from weights of SHA-256 0123456789ab…"),
    ],
)
def test_networks_of_no_paper_that_began_from_weights_stand_apart(weights, said, tmp_path):
    mine = line("yu_vgg") | {"recipe": "mine", "recipe_digest": "0" * 12}
    scratch = mine | {"recipe": "other", "recipe_digest": "1" * 12}
    text = page.results_page(written(tmp_path, [mine | {"weights": weights}, scratch]))
    leaking, others = text.split("## Networks that saw ImageNet's weights")[1].split("## Others")
    assert row_of(leaking, "mine")[1:4] == [said, "", "50.00 (49.00 to 51.00)"]
    assert "| mine |" not in others
    assert row_of(others, "other")[1] == ""


def test_a_changed_recipe_is_not_the_papers(tmp_path):
    changed = line("yu_vgg") | {"recipe_digest": "0" * 12}
    text = page.results_page(written(tmp_path, [changed]))
    assert "not yet run" in row_of(text.partition("## Others")[0], "yu_vgg")[3]
    assert row_of(text, "yu_vgg, changed")[3].startswith("50.00")


@pytest.mark.parametrize("of", [{"classes": "100"}, {"content_digest": "0" * 64}, {"image_size": "32"}])
def test_a_run_on_other_images_is_not_the_papers(tmp_path, of):
    """A half of the classes, or a set of one's own: its accuracy stands beside nothing here."""
    path = written(tmp_path, [line("yu_vgg") | of])
    assert "50.00" not in page.results_page(path)
    assert results.mean_top1_percent(path) == {}


def test_what_helps_shows_the_gain_over_the_same_length(tmp_path):
    name = "sun_vanilla-flips"
    path = written(tmp_path, [line("sun_vanilla", top1=50.0), line(name, top1=53.0)])
    text, small = what_helps_page(path).split("## On 50 images a class")
    # Two intervals of 1 to either side are, together, one of the root of 2.
    gain = "+3.00 (+1.59 to +4.41)"
    assert row_of(text, "flips")[1:] == ["53.00 (52.00 to 54.00)", gain, "90.0", "37.0", "12.0"]
    assert row_of(text, "CutMix")[1] == "not yet run"
    assert row_of(small, "flips")[1] == "not yet run"
    assert "tinlab reproduce what_helps_small --add-results" in small
    short = line(f"{name}-budget-0.1", top1=30.0, budget="1.5 of 15 epochs")
    other = what_helps_page(written(tmp_path / "b", [line("sun_vanilla"), short]))
    assert row_of(other.partition("## On 50")[0], "flips")[2] == ""


def test_what_helps_says_which_minutes_compare(tmp_path):
    flips = line("sun_vanilla-flips")
    one = written(tmp_path / "one", [line("sun_vanilla"), flips])
    assert what_helps_page(one).count("Minutes") == 1
    assert "\nMinutes are of commit `abc` on a machine.\n" in what_helps_page(one)
    seeds = [
        line("sun_vanilla"),
        line("sun_vanilla", 1),
        flips | {"commit": "abd"},
        line("sun_vanilla-cutmix"),
    ]
    assert (
        "\nMinutes compare within one commit and machine alone:\n\n"
        "- commit `abc` on a machine: none; CutMix\n- commit `abd` on a machine: flips\n"
    ) in what_helps_page(written(tmp_path / "two", seeds))
    assert "Minutes" not in what_helps_page(written(tmp_path / "none", []))


def test_a_study_that_is_half_run_says_how_to_run_the_rest(tmp_path):
    text = page.results_page(written(tmp_path, [line("sun_resnet18_c"), line("sun_resnet18_e")]))
    assert row_of(text, "sun_variants")[3].startswith("4 more not yet run: `tinlab reproduce sun_variants`")


def test_her_tables_stand_beside_ours(tmp_path):
    path = written(tmp_path, [line("shcherbina_vgglike", top1=30.0)])
    kept = measures_file(path)
    record_measures(kept, row("shcherbina_classes_scratch"), dict.fromkeys(CLASS_ERRORS, 25), ("0",))
    vgglike = recipes.find("shcherbina_vgglike").digest
    afterwards = {"train_top1_percent": 93.21}
    text = page.results_page(path)
    two = text.partition("### Her table 2")[2]
    cells = ["48.8", "", "90.0", "28.8", "30.00 (29.00 to 31.00)", "23.7"]
    assert row_of(two.partition("###")[0], "shcherbina_vgglike")[1:] == cells
    for digest, cell in (("of another length", ""), (vgglike, "93.2")):
        record_measures(kept, row("shcherbina_train_vgglike"), afterwards, (digest,))
        two = page.results_page(path).partition("### Her table 2")[2].partition("###")[0]
        assert row_of(two, "shcherbina_vgglike")[1:4] == ["48.8", cell, "90.0"]
    three = text.partition("### Her table 3")[2]
    assert row_of(three, "plunger")[1:] == ["42", "25"]
    assert "Her table" not in page.results_page(written(tmp_path / "b", []))


def test_her_tables_say_what_was_shortened_and_leave_out_what_is_not_there(tmp_path):
    path = written(tmp_path, [line("shcherbina_vgglike")])
    kept = measures_file(path)
    numbers = dict.fromkeys(row("shcherbina_ensemble").measures, 18.5)
    record_measures(kept, row("shcherbina_ensemble"), numbers, ("0",), 0.05)
    some = {name: 25 for name in CLASS_ERRORS if name != "plunger_errors"}
    record_measures(kept, row("shcherbina_classes_scratch"), some, ("0",))
    text = page.results_page(path)
    two, _, three = text.partition("### Her table 2")[2].partition("### Her table 3")
    assert row_of(two, "shcherbina_ensemble")[5] == "18.50; of runs of 0.05 of their length"
    assert row_of(three, "plunger")[1:] == ["42", ""]


def test_a_curve_has_a_line_for_each_split_that_was_measured(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "save", lambda figure, place: drawn.append(figure))
    columns = results.CURVE_COLUMNS
    points = [("train", "", 1), ("train", "", 2), ("eval", "tune", 1), ("eval", "tune", 2)]
    for last, told in (
        ([("eval", "val", 2)], {"training, as trained": 2, "tune": 2, "val": 1}),
        ([], {"training, as trained": 2, "tune": 2}),
    ):
        rows = [
            {**dict.fromkeys(columns, 1.0), "kind": kind, "split": split, "epoch": epoch}
            for kind, split, epoch in [*points, *last]
        ]
        results.write_table(tmp_path / "curve.csv", columns, rows)
        charts.training_curves([charts.Training("x", tmp_path / "curve.csv", {})], tmp_path / "x.png")
        lines = drawn[-1].axes[0].get_lines()
        assert {one.get_label(): len(one.get_xdata()) for one in lines} == told


def test_the_sources_of_every_row_are_told():
    text = sources_page()
    for one in (one for paper in PAPERS for one in paper.rows):
        assert f"\n### {one.id}\n" in text
    vanilla = text.partition("### sun_vanilla\n")[2].partition("###")[0]
    assert "Lei Sun, 4. Vanilla Model, figure 5. Reported: val 52, test 51" in vanilla
    assert "*Stated:* `data.train_split` (section 3.1" in vanilla
    assert "*Ours:*" in text.partition("### yu_tuned\n")[2].partition("###")[0]


@pytest.mark.parametrize("study", ["what_helps", "what_helps_small"])
def test_each_remedy_changes_one_thing(study):
    plain, *others = study_recipes(study)
    for recipe in others:
        changed = [
            (group, field)
            for group in ("data", "model", "loss", "optimizer", "schedule", "compute")
            for field, value in getattr(recipe, group)
            if value != getattr(getattr(plain, group), field)
        ]
        assert len(changed) + (recipe.augment != plain.augment) == 1, recipe.name


def test_the_small_study_is_a_tenth_of_the_whole_one():
    full, small = study_recipes("what_helps"), study_recipes("what_helps_small")
    for one, other in zip(full, small, strict=True):
        assert one.name.replace("sun_vanilla", "sun_vanilla_small") == other.name
        assert train_images(other) == train_images(one) / 10 == 10_000
        assert other.schedule.total_steps(1) == one.schedule.total_steps(1) / 10
        assert other.schedule.milestone_steps == (one.schedule.milestone_steps[0] / 10,)


def test_older_files_lack_columns_and_are_read(tmp_path):
    path = tmp_path / "old.csv"
    names = [name for name in results.COLUMNS if name not in results.ADDED]
    path.write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    (found,) = results.read_results(path)
    assert found["budget"] == ""
    assert found["recipe"] == "1"


def test_lengths_are_counted_by_hand():
    on_18, on_34, on_50 = (IMAGES_PER_SECOND[f"resnet{layers}"] for layers in (18, 34, 50))
    assert train_images(recipes.find("shcherbina_convnet9")) == 265_000
    assert images_seen(recipes.find("shcherbina_convnet9")) == pytest.approx(17 * 265_000, rel=1e-4)
    assert images_seen(recipes.find("sun_final")) == 7_000_000
    assert expected_minutes(recipes.find("sun_final")) == pytest.approx(7e6 / on_34 / 60)
    assert images_seen(recipes.find("ma_finetune")) == pytest.approx(125_000, rel=1e-3)
    assert row_minutes(row("sun_variants")) == pytest.approx(
        3 * 2 * sum(2e6 / speed for speed in (on_18, on_34, on_50)) / 60
    )
    assert images_per_second(Model(name="resnet18", width=64)) == on_18
    assert images_per_second(Model(name="resnet18", width=32)) > 3 * on_18
    assert images_per_second(Model(name="timm:x")) is None


def test_rows_are_found_by_name_and_paper():
    ids = [one.id for one in every_row()]
    assert len(set(ids)) == len(ids)
    assert rows_of("yu") == PAPERS[2].rows
    assert rows_of(None) == every_row()
    for one in every_row():
        assert bool(one.recipe) + bool(one.study) + bool(one.command) == 1
        assert one.study is None or one.study in STUDIES
        assert all(row(needed).recipe for needed in one.needs)
    with pytest.raises(TinlabError, match="sun_final"):
        rows_of("sun_finall")


def test_each_papers_recipe_is_a_row():
    shown = {one.recipe for one in every_row()}
    assert {name for name in recipes.RECIPES if recipes.find(name).paper} == shown - {None}


def test_measures_are_read_from_a_commands_answer_and_kept_once(tmp_path):
    one = row("shcherbina_classes")
    counts = {keys[1]: (50, 50 - number) for number, keys in enumerate(one.measures.values())}
    classes = [{"id": wnid, "images": n, "right": right} for wnid, (n, right) in counts.items()]
    values = values_of(one, {"classes_by_accuracy": classes})
    assert list(values.values()) == list(range(10))
    path = measures_file(tmp_path / "results.csv")
    for _ in range(2):
        record_measures(path, one, values, ("0123",))
    assert [float(found["value"]) for found in read_measures(path)[one.id]] == list(range(10))
    text = page.results_page(written(tmp_path / "x", []).rename(tmp_path / "results.csv"))
    assert "plunger errors 9" in row_of(text, one.id)[3]
    with pytest.raises(TinlabError, match="errors_of"):
        values_of(one, {"classes_by_accuracy": []})
    with pytest.raises(TinlabError, match="picture"):
        values_of(row("sun_errors"), {})


def test_measures_of_short_runs_say_so_and_replace_none_of_longer_ones(tmp_path):
    path = written(tmp_path, [])
    kept = measures_file(path)
    counted, drawn = row("shcherbina_classes_scratch"), row("shcherbina_filters_first_convnet9")
    record_measures(kept, counted, dict.fromkeys(CLASS_ERRORS, 44), ("0123",), 0.05)
    record_measures(kept, drawn, {PICTURE: 1}, ("0123",), 0.05)
    text = page.results_page(path)
    assert row_of(text, counted.id)[3].endswith("plunger errors 44; of runs of 0.05 of their length")
    assert row_of(text, drawn.id)[3] == (
        "made; `tinlab reproduce shcherbina_filters_first_convnet9 --budget 0.05`; "
        "of runs of 0.05 of their length"
    )
    assert "| class | hers, VGG-16 | ours, convnet9, 0.05 of its length |" in text
    assert status(drawn, [], read_measures(kept)[drawn.id], tmp_path) == "measured, 0.05 of the length"
    record_measures(kept, counted, dict.fromkeys(CLASS_ERRORS, 30), ("4567",), 0.5)
    for share in (0.05, 0.1):
        with pytest.raises(TinlabError, match=r"measured already on runs of 0\.5 of their length"):
            record_measures(kept, counted, dict.fromkeys(CLASS_ERRORS, 44), ("0123",), share)
    assert {line["value"] for line in read_measures(kept)[counted.id]} == {"30"}
    assert status(counted, [], (), tmp_path) == "not yet run"


def test_measures_of_before_shares_are_of_whole_lengths(tmp_path):
    path = tmp_path / "measures.csv"
    head = "row,measure,value,of,hardware,threads,torch,tinlab,commit,finished_at"
    path.write_text(f"{head}\nsun_depth_cost,mean_blocks,11.9,,a CPU,2,2,0.1.0,abc,2026\n")
    (found,) = read_measures(path)["sun_depth_cost"]
    assert (found["value"], found["share"]) == ("11.9", "1")
    record_measures(path, row("shcherbina_classes_scratch"), dict.fromkeys(CLASS_ERRORS, 44), ("0",), 0.05)
    assert {line["share"] for lines in read_measures(path).values() for line in lines} == {"1", "0.05"}
    for share in ("0", "2", "x", ""):
        path.write_text(f"{head},share\nsun_depth_cost,mean_blocks,1,,a CPU,2,2,0.1.0,abc,2026,{share}\n")
        with pytest.raises(TinlabError, match="has no number"):
            read_measures(path)


def test_the_papers_figures_are_drawn_where_their_runs_are(tmp_path):
    names = ("yu_vgg", "shcherbina_convnet9", "shcherbina_vgglike")
    studied = ("sun_resnet18_c", "sun_resnet18_e", "sun_vanilla_small", "sun_vanilla_small-flips")
    path = written(tmp_path, [line(name) for name in (*names, *studied)])
    curves = path.parent / "curves"
    curves.mkdir()
    for name in names:
        shutil.copyfile(RESNET20, results.curve_file(path, line(name)))
    drawn = [place for place in write_pages(path) if place.suffix == ".png"]
    wanted = {*names, "shcherbina_curves", "sun_variants", "what_helps_small"}
    assert {place.stem for place in drawn} == wanted
    sizes = {place.stem: place.stat().st_size for place in drawn}
    assert all(3_000 < size < 40_000 for size in sizes.values()), sizes
    text = (tmp_path / "RESULTS.md").read_text()
    for name in wanted - {"what_helps_small"}:
        assert re.search(rf"!\[.*\]\(results/figures/{name}.png\)", text)
    helps = (tmp_path / "docs" / "what-helps.md").read_text()
    assert "](../results/figures/what_helps_small.png)" in helps


@pytest.mark.parametrize("name", PAGES)
def test_somebody_elses_page_is_left_alone(name, tmp_path):
    path = written(tmp_path, []).rename(tmp_path / "mine.csv")
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("# Results\n\nof my own\n")
    with pytest.raises(TinlabError, match=rf"{name} is no page that tinlab wrote.*--file"):
        write_pages(path)
    assert own.read_text() == "# Results\n\nof my own\n"
    assert list(tmp_path.rglob("*.md")) == [own]
    own.unlink()
    assert own in write_pages(path)
    assert own in write_pages(path)  # and what it wrote itself is written anew


def test_pages_are_never_older_than_the_rows(tmp_path):
    path = written(tmp_path, [])
    other = threading.Thread(target=write_pages, args=(path,))
    with only_one(path.parent):  # as who adds a row has it
        other.start()
        other.join(0.5)
        assert other.is_alive()
        results.write_table(path, results.COLUMNS, [line("yu_vgg", top1=51.25)])
    other.join(60)
    assert "51.25" in (tmp_path / "RESULTS.md").read_text()


def test_pages_of_a_file_of_ones_own_stand_beside_it(tmp_path):
    path = tmp_path / "mine.csv"
    written(tmp_path, []).rename(path)
    assert write_pages(path)[0] == tmp_path / "RESULTS.md"
