"""What the report's sections say, against small cases worked out by hand."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_run import made_pack, made_run, write
from safetensors.numpy import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from tinlab import recipes
from tinlab.cli import app
from tinlab.errors import TinlabError
from tinlab.evaluation.metrics import judge
from tinlab.recipe import Recipe
from tinlab.report import against, phrases, wording
from tinlab.report.curves import charts_together, run_charts, stage_bands
from tinlab.report.figures import Band
from tinlab.report.knobs import differing, knob_groups, provenance_counts, with_edits
from tinlab.report.network import IMAGES, _zero_weights, picked
from tinlab.report.page import write_report
from tinlab.report.record import read_run
from tinlab.report.sections import repeat_command
from tinlab.report.versus import fields_apart
from tinlab.study.page import read_study


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made_run(tmp_path / "run", epochs=4)


def _with_stages(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["stage"] = "dense" if line["epoch"] <= 3 else "<pruned>"
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_stages_are_bands(run: Path) -> None:
    assert stage_bands(read_run(run)) == []
    _with_stages(run)
    record = read_run(run)
    assert stage_bands(record) == [Band("dense", 0.0, 3.0), Band("<pruned>", 3.0, 4.0)]
    loss, _, rate, speed = run_charts(record)
    assert loss.svg.count('class="band') == rate.svg.count('class="band') == 2
    assert "stage &lt;pruned&gt;" in loss.svg
    assert "Stages: dense, &lt;pruned&gt;" in loss.svg
    assert "band" not in speed.svg


def test_charts_of_several_runs_end_at_their_own_times(tmp_path: Path) -> None:
    short = read_run(made_run(tmp_path / "short", epochs=2))
    long = read_run(made_run(tmp_path / "long", epochs=5))
    named = [("A short", short), ("B long", long)]
    for minutes, ends in ((False, [2, 5]), (True, [2 * 84 / 60, 5 * 84 / 60])):
        accuracy = charts_together(named, minutes=minutes)[0]
        data = json.loads(accuracy.data)
        assert [series["x"][-1] for series in data["series"]] == pytest.approx(ends)
        assert data["values"] == [0.0, pytest.approx(max(ends), abs=0.1)]
        assert [key.name for key in accuracy.keys] == ["A short", "B long"]
        assert [key.style for key in accuracy.keys] == ["several c0 d0", "several c1 d1"]


def _watched_on_tune(run: Path) -> None:
    """What was measured on val was so on tune, but at the end, where val was measured too."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held_out = [{**line, "split": "tune"} for line in lines if line["kind"] == "eval"]
    for loss, line in zip((3.0, 2.0, 2.5, 3.5), held_out, strict=True):
        line["loss"] = loss
    last = {**held_out[-1], "split": "val", "loss": 4.0}
    others = [line for line in lines if line["kind"] != "eval"]
    (run / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(line)}\n" for line in [*others, *held_out, last])
    )


def test_overfitting_is_seen_on_the_images_that_were_watched(run: Path) -> None:
    _watched_on_tune(run)
    record = read_run(run)
    assert record.most_measured == "tune"
    said = wording.gap_sentence(record)
    assert "of the validation images" in said
    assert "lowest at epoch 2 (2.000) and has risen to 3.500 since: the network overfits." in said
    accuracy, _ = charts_together([("A", record)], minutes=False)
    held = next(s for s in json.loads(accuracy.data)["series"] if len(s["x"]) == 4)
    assert held["x"] == pytest.approx([1, 2, 3, 4])


def test_no_two_of_many_curves_look_alike_nor_neighbours_without_their_colours(tmp_path: Path) -> None:
    record = read_run(made_run(tmp_path / "one", epochs=2))
    chart = charts_together([(str(n), record) for n in range(32)], minutes=False)[0]
    styles = [key.style for key in chart.keys]
    assert len(set(styles)) == 32
    assert all(a.split()[2] != b.split()[2] for a, b in itertools.pairwise(styles[:8]))


def test_training_accuracy_is_weighed_by_its_steps_and_augmented_where_it_was(run: Path) -> None:
    lines = [
        {"kind": "train", "step": 90, "epoch": 0.9, "top1_percent": 50.0, "loss": 1.0},
        {"kind": "train", "step": 100, "epoch": 1.0, "top1_percent": 100.0, "loss": 1.0},
        {"kind": "eval", "split": "val", "step": 100, "epoch": 1.0, "top1_percent": 40.0, "loss": 1.0},
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    recipe = json.loads((run / "recipe.json").read_text())
    for changes, told in (
        ({"augment": [], "stages": []}, "as it saw them, and after"),
        ({"augment": [{"kind": "flip"}], "stages": []}, "as it saw them (augmented), and after"),
        ({"augment": [], "stages": [{"name": "a", "changes": {"augment": "sun_light"}}]}, "(augmented)"),
    ):
        (run / "recipe.json").write_text(json.dumps({**recipe, **changes}))
        said = wording.gap_sentence(read_run(run))
        assert "had 55.0% of the training images" in said
        assert told in said


@pytest.mark.parametrize(
    ("right", "words"),
    [(40, "; that is no better than guessing (5%)"), (0, "; that is worse than guessing (5%)")],
)
def test_an_accuracy_is_held_against_chance(run: Path, right: int, words: str) -> None:
    place = run / "predictions" / "val.safetensors"
    tensors = load_file(place)
    labels = tensors["labels"]
    said = (labels + 1) % 20
    said[:right] = labels[:right]
    tensors["logits"] = np.eye(20, dtype=np.float32)[said]
    save_file(tensors, place)
    assert words in write_report(run).read_text("utf-8")


def test_a_field_set_by_hand_is_named_beside_the_paper(run: Path) -> None:
    record = read_run(run)
    assert against.changed_fields(record) == ["model.width"]
    assert "1 field is not as in the paper’s recipe (model.width)" in against.paper_sentence(record, None)


def test_an_edited_file_of_a_known_recipe_is_not_the_papers_experiment(run: Path) -> None:
    def told(recipe: Recipe, **edits: Any) -> list[str]:
        write(run / "recipe.json", {**recipe.model_dump(mode="json"), **edits})
        return against.changed_fields(read_run(run))

    whole = recipes.find("yu_baseline")
    ours = told(whole)
    optimizer = {**whole.optimizer.model_dump(mode="json"), "peak_lr": 0.5}
    assert told(whole, optimizer=optimizer) == [*ours, "optimizer.peak_lr"]
    assert told(whole, optimizer=optimizer, name="mine") == ours
    short = recipes.find("yu_baseline-budget-0.1")
    fewer = told(short)
    assert told(short, optimizer=optimizer) == [*fewer, "optimizer.peak_lr"]


def test_an_edited_field_loses_the_source_that_it_had() -> None:
    whole = recipes.find("yu_baseline").model_dump(mode="json")
    optimizer = {**whole["optimizer"], "peak_lr": 0.5}
    edited = with_edits({**whole, "optimizer": optimizer, "augment": [{"kind": "flip"}]})
    groups = {group.name: group for group in knob_groups(edited)}
    rate = next(row for row in groups["optimizer"].rows if row.label == "peak lr")
    was = next(g for g in knob_groups(whole) if g.name == "optimizer")
    before = next(row for row in was.rows if row.label == "peak lr")
    assert (rate.value, rate.kind) == ("0.5", "changed")
    assert rate.why == f"tinlab's own yu_baseline has {before.value}"
    assert before.kind != "changed"
    assert (groups["augment"].kind, groups["augment"].why) == (
        "changed",
        "tinlab's own yu_baseline has none",
    )
    assert provenance_counts(edited)["changed"] == provenance_counts(whole).get("changed", 0) + 2
    assert with_edits(whole) == whole
    assert with_edits({"name": 3}) == {"name": 3}


@pytest.mark.parametrize(
    ("pack", "why"),
    [
        ({"content_digest": "0" * 64}, "is on other images"),
        ({"classes": 100}, "is on other images"),
        ({"image_size": 32}, "is on other images"),
        (None, "does not say what its images are"),
    ],
)
def test_only_runs_on_the_papers_images_are_held_against_it(
    run: Path, pack: dict[str, Any] | None, why: str
) -> None:
    assert "points" in against.paper_sentence(read_run(run), None)
    environment = json.loads((run / "environment.json").read_text())
    write(run / "environment.json", {**environment, "pack": pack and {**environment["pack"], **pack}})
    record = read_run(run)
    assert why in against.paper_sentence(record, None)
    verdict = wording.verdict(record, None)
    assert "paper" not in verdict.sentence
    assert any("held against the paper’s" in notice for notice in verdict.notices) == (pack is not None)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (10**400, "(tune_fraction 0.5)"),
        (-5, "(tune_fraction -5)"),
        ("many", "is on other images"),
        (None, "is on other images"),
        ([3], "is on other images"),
    ],
)
def test_counts_that_cannot_be_end_no_report(run: Path, count: object, words: str) -> None:
    environment = json.loads((run / "environment.json").read_text())
    counts = {"train": count, "tune": count, "val": 10_000}
    write(run / "environment.json", {**environment, "pack": {**environment["pack"], "counts": counts}})
    assert words in against.paper_sentence(read_run(run), None)
    assert words in write_report(run).read_text("utf-8")


def test_a_pack_that_holds_back_other_images_is_said_beside_the_papers_number(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text())
    counts = {**environment["pack"]["counts"], "train": 80_000, "tune": 20_000}
    assert "holds other training images back" not in against.paper_sentence(read_run(run), None)
    write(
        run / "environment.json",
        {**environment, "pack": {**environment["pack"], "counts": counts, "seed": 7}},
    )
    said = against.paper_sentence(read_run(run), None)
    assert "points" in said
    assert "than a pack does by default (tune_fraction 0.2, seed 7)." in said


def test_the_sizes_that_val_was_measured_at_are_told(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert wording.sizes_sentence(read_run(run)) == ""
    held_out = [line for line in lines if line["kind"] == "eval"]
    for place, line in enumerate(held_out):
        line["image_size"] = 32 if place < 2 else 64
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert wording.sizes_sentence(read_run(run)).endswith("with them: measured at 32 and 64 pixels.")
    assert "32 and 64 pixels. Point at a chart" in write_report(run).read_text("utf-8")


@pytest.mark.parametrize(
    ("suspects", "above", "seen", "words"),
    [
        (0, 0, False, "No label of the 1,000 images is suspect"),
        (50, 24, False, "The 24 errors above are among them"),
        (50, 3, False, "3 of the errors above, marked, are among them"),
        (500, 0, False, "So many say more of the network than of the labels"),
        (50, 0, True, "It was trained on images of val"),
        (50, 0, None, "It may have been trained on images of val"),
    ],
)
def test_suspect_labels_are_put_in_proportion(
    suspects: int, above: int, seen: bool | None, words: str
) -> None:
    assert words in wording.labels_sentence(1000, suspects, above, 24, "val", seen)


def test_a_run_is_repeated_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_run(tmp_path / "my runs" / "run", epochs=2)
    monkeypatch.chdir(tmp_path)
    place = tmp_path.resolve() / "my runs" / "run" / "recipe.json"
    said = repeat_command(read_run(Path("my runs/run")))
    assert shlex.split(said) == ["tinlab", "train", str(place), "--seed", "0"]
    write(run / "recipe.json", recipes.find("yu_baseline").model_dump(mode="json"))
    shown = {"image_size": 64, "mean": [0, 0, 0], "std": [1, 1, 1]}
    about = {"seed": 7, "pack": "/my pack", "pack_digest": "0", "preprocessing": shown, "started_at": "now"}
    write(run / "run.json", about)
    said = repeat_command(read_run(Path("my runs/run")))
    assert shlex.split(said) == ["tinlab", "train", str(place), "--data", "/my pack", "--seed", "7"]
    write(run / "run.json", {**about, "weights_path": "/my weights"})
    said = repeat_command(read_run(Path("my runs/run")))
    assert shlex.split(said)[5:] == ["--set", "model.weights=/my weights", "--seed", "7"]


def test_lists_of_words() -> None:
    assert phrases.listed(["a"], 3) == "a"
    assert phrases.listed(["a", "b"], 3) == "a and b"
    assert phrases.listed(["a", "b", "c", "d"], 3) == "a, b and 2 others"


def test_only_what_differs_is_listed() -> None:
    one = {"name": "x", "model": {"width": 8, "stem": "patch"}, "seed": 1}
    other = {"name": "y", "model": {"width": 16, "stem": "patch"}}
    assert differing([one, other]) == [("model.width", [8, 16]), ("seed", [1, None])]
    assert fields_apart([one, other]) == [("model.width", ["8", "16"]), ("seed", ["1", "–"])]


def test_weights_set_to_zero_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(10, 2))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.fill_(1)
        model[0].weight[0] = 0  # 27 of 108
    found = _zero_weights(model)
    assert (found.of, found.before, found.after, found.all_layers) == ("weights", 128, 101, 2)
    assert [(layer.name, layer.after, layer.gone_percent) for layer in found.layers] == [("0", 81, 25.0)]
    assert (found.parameters_before, found.parameters) == (138, 111)
    assert "21.1% of the weights" in wording.pruning_sentence(found)


def test_images_to_explain_are_of_different_classes(tmp_path: Path) -> None:
    split = made_pack(tmp_path / "pack").split("val")
    tensors = load_file(made_run(tmp_path / "run") / "predictions" / "val.safetensors")
    judged = judge(tensors["logits"], tensors["labels"])
    found = picked(split, tensors["indices"], judged)
    assert len(found) == IMAGES
    rows = [int(one.name.split()[1]) for one, _ in found]
    assert judged.correct[rows[:2]].all()
    assert not judged.correct[rows[2:4]].any()
    assert len({one.true.id for one, _ in found}) == IMAGES
    assert judged.confidence[rows[0]] == judged.confidence[judged.correct].max()


def test_runs_that_cannot_be_compared_still_stand_together(tmp_path: Path) -> None:
    first = made_run(tmp_path / "first", epochs=2)
    second = made_run(tmp_path / "second", epochs=3)
    evil = "<b>second</b>"
    recipe = json.loads((second / "recipe.json").read_text())
    write(second / "recipe.json", {**recipe, "name": evil})
    text = write_report([first, second], out=tmp_path / "page.html").read_text("utf-8")
    assert "The runs cannot be compared image by image" in text
    assert 'id="run-B"' in text
    assert "&lt;b&gt;second&lt;/b&gt;" in text
    assert evil not in text


def test_bad_input_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(TinlabError, match="named twice"):
        write_report([run, run], out=tmp_path / "page.html")
    with pytest.raises(TinlabError, match="no run to report on"):
        write_report([])
    with pytest.raises(TinlabError, match=r"not a study's folder \(no study.json\)"):
        read_study(tmp_path)
    for arguments in (["report"], ["report", "--study", str(tmp_path)], ["report", str(tmp_path / "no")]):
        found = CliRunner().invoke(app, arguments)
        assert isinstance(found.exception, TinlabError)


def test_a_loss_at_another_size_or_of_another_stage_is_not_overfitting(run: Path) -> None:
    """The loss is lowest in epoch 2; what follows is of larger images, or of a smaller network."""
    _watched_on_tune(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for field, values in (("image_size", (32, 64)), ("stage", ("dense", "pruned"))):
        apart = [{**line, field: values[line["epoch"] > 2]} for line in lines]
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in apart))
        said = wording.gap_sentence(read_run(run))
        assert "held-out accuracy" in said
        assert "overfits" not in said


def test_training_images_are_those_that_were_counted(run: Path) -> None:
    """Of classes of 10, 10 and 324 images fifty each are 70; fixed copies are no images of their own."""
    recipe, result = (json.loads((run / file).read_text()) for file in ("recipe.json", "result.json"))
    recipe["data"]["images_per_class"] = 50
    write(run / "recipe.json", recipe)
    write(run / "result.json", {**result, "train_images": 70})
    assert wording.training_images(read_run(run)) == 70
    (run / "result.json").unlink()
    assert wording.training_images(read_run(run)) is None
    recipe["data"]["images_per_class"] = None
    write(run / "recipe.json", {**recipe, "augment": [{"kind": "fixed_copies"}]})
    write(run / "result.json", {**result, "train_images": 26000})
    assert wording.training_images(read_run(run)) == 10_000


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "3"),
        (2.5, "2.5"),
        (4.994, "4.99"),
        (1_231_167, "1,231,167"),
        (100, "100"),
        (0, "0"),
        (-0.001, "0"),
    ],
)
def test_decimals(value: float, said: str) -> None:
    assert phrases.decimal(value) == said


def test_an_unfinished_run_shows_the_predictions_of_its_last_checkpoint_on_its_own_pack(run: Path) -> None:
    (run / "result.json").unlink()
    folder = run / "predictions"
    saved = load_file(folder / "val.safetensors")

    def keep(name: str, **about: str) -> None:
        save_file(saved, folder / f"{name}.safetensors", about)

    (run / "checkpoints" / "step-00000020").mkdir(parents=True)
    keep("val", step="10", split="val", pack_digest="0")
    assert read_run(run).predictions is None
    (folder / "val.safetensors").unlink()
    keep("val-0123456789ab", step="20", split="val", pack_digest="0123456789ab")
    assert read_run(run).predictions is None
    keep("tune", step="20", split="tune", pack_digest="0")
    assert read_run(run).predictions.split == "tune"
    keep("val", step="20", split="val", pack_digest="0")
    assert read_run(run).predictions.split == "val"
