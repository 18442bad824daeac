"""Runs measured from end to end: tiny networks on rendered images."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import tinlab
from tinlab import cli, evaluating
from tinlab.data.packing import pack as make_pack
from tinlab.data.shapes import render
from tinlab.errors import TinlabError
from tinlab.evaluating import (
    compare,
    evaluate,
    predictions_of,
    robustness,
    saved_predictions,
    saved_robustness,
)
from tinlab.evaluating.comparing import disagreements
from tinlab.evaluating.ensemble import compare_rules
from tinlab.evaluation.corruptions import CORRUPTIONS, corrupt
from tinlab.evaluation.logits import Predictions
from tinlab.evaluation.predict import BATCH_SIZE, logits_of
from tinlab.evaluation.tta import TTA, view
from tinlab.explain.errors import label_errors_sheet
from tinlab.files import read_json, write_json
from tinlab.recipe import changed
from tinlab.runs import seen_in_training
from tinlab.training import loop


@pytest.fixture(scope="module")
def trained(tiny_recipe, shapes_pack, tmp_path_factory) -> dict[str, Path]:
    """Two runs that held tune out, and one that was trained on it."""
    recipe = changed(tiny_recipe, ["schedule.steps=30", "compute.precision=fp32"])
    out = tmp_path_factory.mktemp("runs")
    made = {}
    for name, seed, split in (("first", 0, "train"), ("second", 1, "train"), ("both", 0, "train+tune")):
        run = loop.train(
            changed(recipe, [f"data.train_split={split}"]), shapes_pack, out, seed=seed, device="cpu"
        )
        made[name] = run.path
    return made


@pytest.fixture
def runs(trained, tmp_path) -> dict[str, Path]:
    """Copies that a test may change."""
    return {name: shutil.copytree(path, tmp_path / path.name) for name, path in trained.items()}


def test_without_options_nothing_is_predicted(runs, monkeypatch):
    monkeypatch.setattr("tinlab.evaluating.saved.load", _forbidden)
    monkeypatch.setattr("tinlab.evaluating.corrupted.load", _forbidden)
    found = evaluate(runs["first"])
    assert found.tta == {}
    assert found.temperature is None
    assert "not asked for" in found.temperature_note
    assert found.robustness is None
    assert found.scores.images == 40
    assert found.scores.top1_percent == found.metrics.top1_percent == found.calibration.top1_percent
    assert found.scores.top1_interval_percent == found.metrics.top1_interval_percent
    assert found.scores.loss == pytest.approx(found.calibration.loss)
    assert [len(found.classes), found.step, found.seed] == [4, 30, 0]
    assert found.notes == ()


def _forbidden(*_, **__):
    raise AssertionError("a network was loaded")


def test_what_was_asked_for_once_is_there_afterwards(runs, monkeypatch):
    seen = []
    full = evaluate(
        runs["first"],
        tta=True,
        calibrate=True,
        corruptions=True,
        images=8,
        device="cpu",
        watch=lambda *progress: seen.append(progress),
    )
    assert [*full.tta] == ["flip", "shift"]
    assert full.temperature.fitted_on == "tune"
    assert full.temperature.after.loss <= full.temperature.before.loss + 0.5
    assert full.robustness.images == 8
    assert {what for what, _, _ in seen} == {"val, flip", "val, shift", "tune", "val, corrupted"}
    corrupted = [done for what, done, total in seen if what == "val, corrupted" and total == 75 * 8]
    assert corrupted == [8 * n for n in range(1, 76)]
    monkeypatch.setattr("tinlab.evaluating.saved.load", _forbidden)
    monkeypatch.setattr("tinlab.evaluating.corrupted.load", _forbidden)
    again = evaluate(runs["first"])
    assert again == full
    plain = evaluate(runs["first"], tta=False, calibrate=False, corruptions=False)
    assert (plain.tta, plain.temperature, plain.robustness) == ({}, None, None)
    assert plain.scores == full.scores


def test_views_are_averaged_over_the_saved_network(runs, shapes_pack):
    """The mirrored probabilities, by the classifier that a person loads."""
    images = np.array(shapes_pack.split("val").images)
    classifier = tinlab.load(runs["first"], device="cpu")
    for name, seen in TTA.items():
        saved = predictions_of(runs["first"], tta=name, device="cpu")
        assert saved.about["tta"] == name
        pictures = (view(torch.from_numpy(images), one).contiguous().numpy() for one in seen)
        expected = np.mean([classifier.probabilities(list(some)) for some in pictures], axis=0)
        assert np.exp(saved.logits) == pytest.approx(expected, abs=1e-5)
        assert (runs["first"] / "predictions" / name / "val.safetensors").is_file()
    assert saved_predictions(runs["first"]).about.keys() == {"split", "pack_digest", "step"}


def test_predictions_of_an_older_step_are_not_taken(runs):
    place = runs["first"] / "predictions" / "flip" / "val.safetensors"
    predictions_of(runs["first"], tta="flip", device="cpu")
    saved = Predictions.load(place)
    Predictions(saved.logits, saved.labels, saved.indices, {**saved.about, "step": "7"}).save(place)
    assert saved_predictions(runs["first"], tta="flip") is None
    assert evaluate(runs["first"]).tta == {}


def test_a_network_that_saw_tune_has_no_temperature(runs):
    found = evaluate(runs["both"], calibrate=True, device="cpu")
    assert found.temperature is None
    assert "trained on tune too" in found.temperature_note
    assert not (runs["both"] / "predictions" / "tune.safetensors").exists()
    on_tune = evaluate(runs["first"], split="tune", calibrate=True, device="cpu")
    assert on_tune.temperature is None
    assert "tune itself" in on_tune.temperature_note
    assert on_tune.notes == ()
    assert "trained on images of tune" in evaluate(runs["both"], split="tune", device="cpu").notes[0]
    assert "trained on images of train" in evaluate(runs["first"], split="train", device="cpu").notes[0]


def seen(path, split):
    return seen_in_training(tinlab.runs.open_run(path), split)


def test_a_run_knows_what_it_was_trained_on(runs):
    assert [seen(runs["first"], split) for split in ("train", "tune", "train+tune", "val")] == [
        True, False, True, False,
    ]  # fmt: skip
    assert seen(runs["both"], "tune")


@pytest.mark.parametrize("place", ["", "checkpoints", "~"])
def test_weights_from_a_run_that_saw_tune_saw_it(runs, place, monkeypatch):
    path = runs["both"] / place if place != "~" else f"~/{runs['both'].name}"
    monkeypatch.setenv("HOME", str(runs["both"].parent))
    recipe = read_json(runs["first"] / "recipe.json")
    write_json(runs["first"] / "recipe.json", {**recipe, "model": {**recipe["model"], "weights": str(path)}})
    _as_before_it_was_recorded(runs["first"])
    assert seen(runs["first"], "tune")
    assert not seen(runs["second"], "tune")
    assert (
        "trained on tune (by the run that model.weights names)"
        in compare_rules([runs["first"], runs["second"]], device="cpu").why_not_fitted
    )


def _as_before_it_was_recorded(run):
    about = read_json(run / "run.json")
    assert about.pop("weights_trained_on") == []
    write_json(run / "run.json", about)


def test_what_weights_were_trained_on_is_known_without_their_run(
    runs, tiny_recipe, shapes_pack, tmp_path, monkeypatch
):
    """Not where the command is typed, nor whether the first run is still there, decides it."""
    monkeypatch.chdir(tmp_path)
    short = changed(tiny_recipe, ["schedule.steps=1", "compute.precision=fp32"])
    second = loop.train(
        changed(short, [f"model.weights={runs['both'].name}"]), shapes_pack, tmp_path, device="cpu"
    )
    monkeypatch.chdir(second.path / "checkpoints")
    third = loop.train(
        changed(short, [f"model.weights={next(Path().glob('step-*'))}"]), shapes_pack, tmp_path, device="cpu"
    )
    shutil.rmtree(runs["both"])
    for run in (second, third):
        assert [seen(run.path, split) for split in ("tune", "val")] == [True, False]
    assert "trained on tune too" in evaluate(third.path, calibrate=True, device="cpu").temperature_note


def test_weights_of_a_run_that_is_gone_may_have_seen_anything(runs):
    recipe = read_json(runs["first"] / "recipe.json")
    write_json(runs["first"] / "recipe.json", {**recipe, "model": {**recipe["model"], "weights": "gone/run"}})
    _as_before_it_was_recorded(runs["first"])
    assert seen(runs["first"], "tune")
    found = evaluate(runs["first"], calibrate=True, device="cpu")
    assert found.temperature is None
    assert "not known what the weights" in found.temperature_note
    assert "(gone/run)" in found.notes[0]
    pair = [runs["first"], runs["second"]]
    assert "it is not known whether" in compare_rules(pair, device="cpu").why_not_fitted
    _, listed = label_errors_sheet(runs["first"], device="cpu")
    assert listed


def test_another_packs_tune_is_not_fitted_on(runs, shapes_folder, tmp_path):
    other = make_pack(shapes_folder, tmp_path / "other", tune_fraction=0.3)
    found = evaluate(runs["first"], pack=other, calibrate=True, device="cpu")
    assert "another pack" in found.temperature_note


def test_training_images_in_another_packs_splits_are_counted(runs, shapes_folder, tmp_path):
    """The validation images are the source's own, and tune is drawn anew."""
    other = make_pack(shapes_folder, tmp_path / "other", tune_fraction=0.3)
    own = tinlab.runs.pack_of(tinlab.runs.open_run(runs["first"]))
    both = len(set(other.split("tune").names) & set(own.split("train").names))
    assert 0 < both < len(other.split("tune"))
    note = f"{both} of the {len(other.split('tune'))} images of tune are among the training images of another"
    assert evaluate(runs["first"], split="tune", pack=other, device="cpu").notes[0].startswith(note)
    pair = [runs["first"], runs["second"]]
    for member in compare(pair, split="tune", pack=other, device="cpu").members:
        assert member.notes[0].startswith(note)
    assert evaluate(runs["first"], pack=other, device="cpu").notes == ()


def test_another_pack_without_the_own_one_is_noted(runs, shapes_folder, tmp_path):
    other = make_pack(shapes_folder, tmp_path / "other", tune_fraction=0.3)
    about = read_json(runs["first"] / "run.json")
    write_json(runs["first"] / "run.json", {**about, "pack": str(tmp_path / "gone")})
    (note,) = evaluate(runs["first"], pack=other, device="cpu").notes
    assert note.endswith("cannot be opened: some of the images of val may have been trained on")
    strange = render(
        tmp_path / "strange", classes=4, train_per_class=4, val_per_class=2, test_images=0, seed=1
    )
    strange_pack = make_pack(strange, tmp_path / "strange-pack")
    (note,) = evaluate(runs["first"], pack=strange_pack, device="cpu").notes
    assert note == "this is another data set than the network was trained on"


def test_corruptions_are_measured_as_a_loop_would(runs, shapes_pack):
    found = robustness(runs["first"], device="cpu")
    val = shapes_pack.split("val")
    images, labels = torch.from_numpy(np.array(val.images)), val.labels
    classifier = tinlab.load(runs["first"], device="cpu")
    for row in found.corruptions[::4]:
        for strength in (1, 5):
            made = corrupt(images, row.name, strength, torch.arange(40))
            right = classifier.logits(made).argmax(1).numpy() == labels
            # A blur's sums may differ by a level in another batch, and so one image's answer.
            assert row.top1_percent[strength - 1] == pytest.approx(100 * right.mean(), abs=2.5)
    every = [value for row in found.corruptions for value in row.top1_percent]
    assert found.mean_top1_percent == pytest.approx(np.mean(every))
    assert found.clean_top1_percent == evaluate(runs["first"]).scores.top1_percent
    assert found.drop_points == pytest.approx(found.clean_top1_percent - found.mean_top1_percent)
    low, high = found.drop_interval_points
    assert low <= found.drop_points <= high
    blurs = [row.mean_top1_percent for row in found.corruptions if row.group == "blur"]
    assert found.group_top1_percent["blur"] == pytest.approx(np.mean(blurs))
    assert (found.images, found.of_images) == (40, 40)


def test_an_interrupted_measuring_goes_on(runs, monkeypatch):
    whole = robustness(runs["first"], images=8, device="cpu")
    place = runs["first"] / "predictions" / "corruptions" / "val-of-8.json"
    kept = read_json(place)
    missing = list(CORRUPTIONS)[-2:]
    write_json(place, {**kept, "right": {n: v for n, v in kept["right"].items() if n not in missing}})
    assert saved_robustness(runs["first"]) is None
    measured = []
    real = corrupt

    def counted(images, name, *rest):
        measured.append(name)
        return real(images, name, *rest)

    monkeypatch.setattr("tinlab.evaluating.corrupted.corrupt", counted)
    assert robustness(runs["first"], images=8, device="cpu") == whole
    assert sorted(set(measured)) == sorted(missing)


def test_some_images_are_as_many_of_every_class(runs, shapes_pack):
    robustness(runs["first"], images=8, device="cpu")
    robustness(runs["first"], images=12, device="cpu")
    place = runs["first"] / "predictions" / "corruptions" / "val-of-8.json"
    labels = shapes_pack.split("val").labels[read_json(place)["indices"]]
    assert np.bincount(labels).tolist() == [2, 2, 2, 2]
    assert saved_robustness(runs["first"]).images == 12
    with pytest.raises(TinlabError, match="images is 0"):
        robustness(runs["first"], images=0)
    with pytest.raises(TinlabError, match="without them"):
        evaluate(runs["first"], images=8)


def test_other_strengths_or_a_damaged_file_are_noticed(runs, monkeypatch):
    robustness(runs["first"], images=4, device="cpu")
    monkeypatch.setattr("tinlab.evaluating.corrupted.table_digest", lambda: "other")
    assert saved_robustness(runs["first"]) is None
    monkeypatch.undo()
    place = runs["first"] / "predictions" / "corruptions" / "val-of-4.json"
    kept = read_json(place)
    kept["right"]["fog"][2] = "01"
    write_json(place, kept)
    with pytest.raises(TinlabError, match=r"val-of-4\.json is damaged"):
        evaluate(runs["first"])
    place.write_text("{")
    with pytest.raises(TinlabError, match=r"val-of-4\.json cannot be read"):
        evaluate(runs["first"])


def test_batches_and_rows(shapes_pack):
    split, seen, told = shapes_pack.split("train"), [], []

    def classify(images, rows):
        seen.extend(rows.tolist())
        return images[:, 0, 0].float()

    rows = np.arange(1, len(split), 2)
    found = logits_of(
        classify, split, torch.device("cpu"), rows=rows, progress=lambda *count: told.append(count)
    )
    assert np.array_equal(found, split.images[rows][:, 0, 0])
    assert seen == rows.tolist()
    assert told == [(len(rows), len(rows))]
    assert len(rows) < BATCH_SIZE


def test_json_can_be_written_and_holds_the_words(runs, shapes_pack):
    full = evaluate(runs["first"], tta=True, calibrate=True, corruptions=True, images=4, device="cpu")
    value = json.loads(json.dumps(full.to_json(), allow_nan=False))
    words = {c.id: c.words for c in shapes_pack.info.classes}
    assert {row["id"]: row["words"] for row in value["classes_by_accuracy"]} == words
    assert all(row["true_words"] in words.values() for row in value["confusions"])
    assert value["top1_interval_percent"] == list(full.scores.top1_interval_percent)
    assert value["tta"]["flip"]["images"] == 40
    assert value["temperature"]["after"]["reliability"][0]["low"] == 0
    assert len(value["robustness"]["corruptions"]) == 15


def test_runs_are_compared(runs):
    found = compare([runs["first"], runs["second"], runs["both"]], device="cpu")
    assert [(a, b) for a, b, _ in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert [member.letter for member in found.members] == ["A", "B", "C"]
    one, two = (predictions_of(runs[name]) for name in ("first", "second"))
    right = [p.logits.argmax(1) == p.labels for p in (one, two)]
    pair = found.pairs[0][2]
    assert pair.only_first == tuple(np.flatnonzero(right[0] & ~right[1]))
    assert pair.only_second == tuple(np.flatnonzero(~right[0] & right[1]))
    assert pair.difference_points == pytest.approx(
        found.members[1].scores.top1_percent - found.members[0].scores.top1_percent
    )
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [run["run"] for run in value["runs"]] == [str(runs[name]) for name in ("first", "second", "both")]
    assert value["pairs"][0]["only_first_images"] == len(pair.only_first)


def test_the_picture_shows_what_only_one_gets_right(runs, shapes_pack, tmp_path):
    found = compare([runs["first"], runs["second"]], device="cpu")
    picture = disagreements(found, shapes_pack, each=3)
    rows = sum(bool(side) for side in (found.pairs[0][2].only_first, found.pairs[0][2].only_second))
    assert picture.width > 3 * 128
    assert rows * 128 < picture.height < rows * 300
    same = shutil.copytree(runs["first"], tmp_path / "again")
    with pytest.raises(TinlabError, match="nothing to picture"):
        disagreements(compare([runs["first"], same], device="cpu"), shapes_pack)


def test_what_cannot_be_compared_is_refused(runs, shapes_folder, tmp_path):
    with pytest.raises(TinlabError, match="two or more"):
        compare([runs["first"]])
    with pytest.raises(TinlabError, match="named twice"):
        compare([runs["first"], runs["first"].parent / "." / runs["first"].name])
    with pytest.raises(TinlabError, match="never published"):
        compare([runs["first"], runs["second"]], split="test", device="cpu")
    place = runs["second"] / "predictions" / "val.safetensors"
    saved = Predictions.load(place)
    Predictions(saved.logits[::-1].copy(), saved.labels[::-1].copy(), saved.indices, saved.about).save(place)
    with pytest.raises(TinlabError, match="different images of val"):
        compare([runs["first"], runs["second"]])
    about = read_json(runs["second"] / "run.json")
    write_json(runs["second"] / "run.json", {**about, "pack_digest": "0" * 32})
    with pytest.raises(TinlabError, match="another pack"):
        compare([runs["first"], runs["second"]])
    # On a pack that is named, both are measured anew.
    other = make_pack(shapes_folder, tmp_path / "other", tune_fraction=0.3)
    assert compare([runs["first"], runs["second"]], pack=other, device="cpu").pack_digest == other.digest
    classes = read_json(runs["both"] / "classes.json")
    write_json(runs["both"] / "classes.json", [{**classes[0], "id": "n0"}, *classes[1:]])
    with pytest.raises(TinlabError, match="other classes"):
        compare([runs["first"], runs["both"]])


def _typed(words, monkeypatch) -> int:
    """The command line inside this process; the exit code."""
    monkeypatch.setattr(sys, "argv", ["tinlab", *map(str, words)])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    return ended.value.code or 0


def test_evaluate_as_a_person_sees_it(runs, tmp_path, monkeypatch, capsys):
    gallery = tmp_path / "gallery.png"
    words = [
        "--tta",
        "--calibrate",
        "--corruptions",
        "--images",
        "4",
        "--gallery",
        gallery,
        "--device",
        "cpu",
    ]
    assert _typed(["evaluate", runs["first"], *words], monkeypatch) == 0
    shown = capsys.readouterr().out
    parts = ("95% bootstrap", "flip and shift, mean of 10", "(ECE)", "Brier", "logits / ", "most confused")
    for part in parts:
        assert part in shown
    assert all(name.replace("_", " ") in shown for name in CORRUPTIONS)
    assert "not to be compared with ImageNet-C" in shown
    assert gallery.read_bytes()[:4] == b"\x89PNG"
    assert _typed(["evaluate", runs["first"], "--json"], monkeypatch) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["robustness"]["images"] == 4
    assert value["top1_percent"] == evaluating.evaluate(runs["first"]).scores.top1_percent


def test_compare_as_a_person_sees_it(runs, tmp_path, monkeypatch, capsys):
    picture = tmp_path / "only.png"
    pair = [runs["first"], runs["second"]]
    assert _typed(["compare", *pair, "--out", picture], monkeypatch) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("B - A", "McNemar", "image by image", runs["second"].name))
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert _typed(["compare", *pair, "--json"], monkeypatch) == 0
    assert len(json.loads(capsys.readouterr().out)["pairs"]) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluate", "{first}", "--images", "5"], "--images goes with --corruptions"),
        (["evaluate", "{first}", "--gallery", "x.png"], "--gallery goes with --corruptions"),
        (["evaluate", "{first}", "--split", "nowhere"], "no split 'nowhere'"),
        (["evaluate", "{first}", "--split", "test", "--device", "cpu"], "never published"),
        (["evaluate", "nowhere"], "not a run folder"),
        (["compare", "{first}"], "two or more"),
        (["compare", "{first}", "nowhere"], "not a run folder"),
        (["compare", "{first}", "{second}", "--out", "/proc/nowhere/x.png"], "cannot be written"),
        (["compare", "{first}", "{second}", "--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(words, expected, runs, monkeypatch, capsys):
    assert _typed([word.format(**runs) for word in words], monkeypatch) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("tinlab: ")
    assert expected in said


def _moves_on(run, monkeypatch, after):
    """As if a training that goes on saved a newer checkpoint once `after` predictions were made."""
    made = []
    real = evaluating.saved.predict_split

    def predict_split(*args, **more):
        found = real(*args, **more)
        made.append(found)
        if len(made) == after:
            shutil.copytree(run / "checkpoints" / "step-00000030", run / "checkpoints" / "step-00000031")
        return found

    monkeypatch.setattr("tinlab.evaluating.saved.predict_split", predict_split)


def _forget(*runs):
    for run in runs:
        shutil.rmtree(run / "predictions", ignore_errors=True)


def test_what_is_measured_together_is_of_one_step(runs, monkeypatch):
    first = runs["first"]
    _forget(first)
    _moves_on(first, monkeypatch, 1)
    with pytest.raises(TinlabError, match="went on meanwhile, from step 30 to 31"):
        evaluate(first, tta=True, device="cpu")
    monkeypatch.undo()
    assert evaluate(first, tta=True, device="cpu").step == 31  # given again, it is
    assert {p.about["step"] for p in (saved_predictions(first), saved_predictions(first, tta="flip"))} == {
        "31"
    }


def test_corruptions_are_measured_beside_the_same_steps_predictions(runs, monkeypatch):
    _forget(runs["first"])
    _moves_on(runs["first"], monkeypatch, 1)
    with pytest.raises(TinlabError, match="went on meanwhile"):
        robustness(runs["first"], images=4, device="cpu")


def test_members_are_fitted_on_the_step_that_they_are_measured_at(runs, monkeypatch):
    pair = [runs["first"], runs["second"]]
    _forget(*pair)
    _moves_on(runs["first"], monkeypatch, 2)
    with pytest.raises(TinlabError, match="went on meanwhile"):
        compare_rules(pair, device="cpu")
    monkeypatch.undo()
    assert [member.step for member in compare_rules(pair, device="cpu").members] == [31, 30]


def test_predictions_say_the_step_of_the_weights_that_made_them(runs, monkeypatch):
    first = runs["first"]
    _forget(first)
    real = evaluating.saved.load

    def load(path, device):
        shutil.copytree(first / "checkpoints" / "step-00000030", first / "checkpoints" / "step-00000031")
        return real(path, device)

    monkeypatch.setattr("tinlab.evaluating.saved.load", load)
    assert predictions_of(first, device="cpu").about["step"] == "31"


def test_weights_that_were_copied_out_of_a_run_may_have_seen_anything(
    runs, tiny_recipe, shapes_pack, tmp_path
):
    (weights,) = runs["both"].glob("checkpoints/*/model.safetensors")
    copied = shutil.copy(weights, tmp_path / "weights.safetensors")
    short = changed(tiny_recipe, ["schedule.steps=1", f"model.weights={copied}"])
    run = loop.train(short, shapes_pack, tmp_path / "from", device="cpu")
    assert run.weights_path == str(copied)
    found = evaluate(run.path, calibrate=True, device="cpu")
    assert found.temperature is None
    assert "not known what the weights" in found.notes[0]


def test_images_that_a_grown_source_still_has_are_counted(runs, tiny_recipe, tmp_path):
    source = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (source / name).mkdir(parents=True)
        for number in range(30):
            picture = PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            picture.save(source / name / f"{number}.png")
    before = make_pack(source, tmp_path / "before", image_size=32)
    run = loop.train(changed(tiny_recipe, ["schedule.steps=1"]), before, tmp_path / "on", device="cpu")
    PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(source / "cat" / "30.png")
    after = make_pack(source, tmp_path / "after", image_size=32, seed=7)
    trained = {image.tobytes() for image in before.split("train").images}
    both = sum(image.tobytes() in trained for image in after.split("val").images)
    assert both > 0
    notes = evaluate(run.path, pack=after, device="cpu").notes
    assert notes[0].startswith(
        f"{both} of the {len(after.split('val'))} images of val are among the training"
    )
    assert "another data set" in notes[1]
