"""Ensembles of trained runs: what may be fitted, what is kept, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from typer.testing import CliRunner

from tinlab.cli import app
from tinlab.data.packing import pack
from tinlab.errors import TinlabError
from tinlab.evaluating import evaluate, predictions_of
from tinlab.evaluating.ensemble import compare_rules, load_ensemble, open_ensemble, save_ensemble
from tinlab.evaluation.ensemble import RULES, combine


@pytest.fixture(scope="module")
def found(honest_runs):
    return compare_rules(honest_runs, device="cpu")


def test_members_and_rules_on_val(found, honest_runs):
    labels = predictions_of(honest_runs[0]).labels
    logits = np.stack([predictions_of(run).logits for run in honest_runs])
    for member, run in zip(found.members, honest_runs, strict=True):
        assert member.top1_percent == pytest.approx(evaluate(run).metrics.top1_percent)
        assert member.tune_top1_percent == pytest.approx(evaluate(run, split="tune").metrics.top1_percent)
    assert [row.rule for row in found.rows] == list(RULES)
    for row in found.rows:
        scores = combine(logits, row.combination)
        assert row.top1_percent == pytest.approx(
            100 * sklearn.metrics.accuracy_score(labels, scores.argmax(1))
        )
        assert row.gain == pytest.approx(row.top1_percent - found.members[found.best].top1_percent)
        assert row.gain_low <= row.gain <= row.gain_high
        if row.rule == "vote":
            assert (row.top5_percent, row.loss) == (None, None)
        else:
            assert row.loss == pytest.approx(sklearn.metrics.log_loss(labels, np.exp(scores)))
    json.dumps(found.to_json(), allow_nan=False)
    wrong = (logits.argmax(2) != labels).astype(float)
    expected = np.corrcoef(wrong)[np.triu_indices(3, 1)].mean()
    assert found.to_json()["mean_error_correlation"] == pytest.approx(expected)


def test_tune_alone_decides(found, honest_runs, monkeypatch):
    """Other labels on val change what is measured, and nothing that was fitted or chosen."""
    tuned = [member.tune_top1_percent for member in found.members]
    assert found.best_by == "tune"
    assert found.best == tuned.index(max(tuned))
    assert found.order[0] == found.best
    rng = np.random.default_rng(0)
    original = predictions_of

    def shuffled(path, *, split="val", **where):
        predictions = original(path, split=split, **where)
        if split == "val":
            object.__setattr__(predictions, "labels", rng.permutation(predictions.labels))
        return predictions

    monkeypatch.setattr("tinlab.evaluating.ensemble.predictions_of", shuffled)
    other = compare_rules(honest_runs, device="cpu")
    assert [row.combination for row in other.rows] == [row.combination for row in found.rows]
    assert other.best == found.best


def test_nothing_is_fitted_on_what_a_member_was_trained_on(honest_runs, run_on_tune):
    found = compare_rules([run_on_tune, *honest_runs[:2]], device="cpu")
    for row in found.rows:
        if RULES[row.rule].fit:
            assert row.top1_percent is None
            assert row.note == (
                f"not fitted: {run_on_tune.name} was trained on tune (data.train_split is train+tune)"
            )
        else:
            assert row.top1_percent is not None
            assert row.combination.weights == (1 / 3,) * 3
    assert found.order == (0, 1, 2)
    assert found.best_by == "val"
    assert all(member.tune_top1_percent is None for member in found.members)
    with pytest.raises(TinlabError, match="trained on tune"):
        save_ensemble(found, run_on_tune / "never.json", "weighted_logits")
    assert not (run_on_tune / "never.json").exists()


def test_what_members_were_trained_on_is_said(found, honest_runs, run_on_tune):
    assert found.notes == ()
    both = [run_on_tune, honest_runs[0]]
    (note,) = compare_rules(both, split="tune", rules=["vote"], device="cpu").notes
    assert note.startswith(f"{run_on_tune.name}: the network was trained on images of tune")
    (note,) = compare_rules(both, split="train", rules=["vote"], device="cpu").notes
    assert note.startswith("every member: the network was trained on images of train")
    shown = CliRunner().invoke(app, ["ensemble", *map(str, both), "--split", "train", "--device", "cpu"])
    assert f"note: {note}" in shown.output


def test_measuring_what_was_fitted_on_is_said(honest_runs):
    found = compare_rules(honest_runs, split="tune", rules=["logits", "weighted_logits"], device="cpu")
    assert [row.note for row in found.rows] == [None, "measured on what it was fitted on"]


@pytest.mark.parametrize("rule", RULES)
def test_kept_ensembles_answer_as_measured(found, rule, tmp_path, shapes_pack):
    path = tmp_path / "kept" / "ensemble.json"
    save_ensemble(found, path, rule)
    opened = open_ensemble(path)
    row = next(row for row in found.rows if row.rule == rule)
    assert opened.saved.combination == row.combination
    predictions = opened.predictions(device="cpu")
    right = predictions.logits.argmax(1) == predictions.labels
    assert 100 * right.mean() == pytest.approx(row.top1_percent)
    classifier = load_ensemble(path, device="cpu")
    images = list(shapes_pack.split("val").images)
    guesses = classifier.predict(images, top=1)
    ids = [c.id for c in classifier.classes]
    guessed = np.array([ids.index(guess[0].id) for guess in guesses])
    assert (guessed == predictions.labels).mean() == pytest.approx(right.mean())
    assert classifier.probabilities(images).sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert classifier.predict([]) == []


def test_the_file_moves_with_its_runs(found, honest_runs, tmp_path):
    for run in honest_runs:
        shutil.copytree(run, tmp_path / "a" / "runs" / run.name)
    save_ensemble(
        compare_rules(sorted((tmp_path / "a" / "runs").iterdir()), device="cpu"), tmp_path / "a" / "e.json"
    )
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(open_ensemble(tmp_path / "b" / "e.json").runs) == 3
    members = json.loads((tmp_path / "b" / "e.json").read_text())["members"]
    assert not any(Path(member["run"]).is_absolute() for member in members)


def change(path: Path, **fields) -> Path:
    value = json.loads(path.read_text())
    value.update(fields)
    path.write_text(json.dumps(value))
    return path


def test_a_bad_file_is_refused(found, tmp_path):
    path = tmp_path / "e.json"
    save_ensemble(found, path, "probabilities")
    members = json.loads(path.read_text())["members"]
    for fields, words in (
        ({"format": "other"}, "no ensemble"),
        ({"order": [0, 0, 1]}, "order"),
        ({"members": [{**m, "weight": 0.9} for m in members]}, "sum to 1"),
        ({"members": members[:1]}, "members"),
        ({"members": [{**m, "step": 3} for m in members]}, "no longer"),
        ({"members": [{**m, "run": "nowhere"} for m in members]}, "different runs"),
        ({"members": [{**members[0], "run": "nowhere"}, *members[1:]]}, "not a run folder"),
        ({"extra": 1}, "extra"),
        ({"temperature": 0}, "temperature"),
    ):
        save_ensemble(found, path, "probabilities")
        with pytest.raises(TinlabError, match=words):
            open_ensemble(change(path, **fields))
    path.write_text("[1]")
    with pytest.raises(TinlabError, match="no ensemble"):
        open_ensemble(path)
    with pytest.raises(TinlabError, match="cannot be read"):
        open_ensemble(tmp_path / "none.json")


def test_runs_that_do_not_fit_together_are_refused(honest_runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(honest_runs[0], other)
    change(other / "run.json", pack_digest="0" * 32)
    with pytest.raises(TinlabError, match="another pack"):
        compare_rules([honest_runs[1], other])
    classes = json.loads((other / "classes.json").read_text())
    (other / "classes.json").write_text(json.dumps(classes[::-1]))
    with pytest.raises(TinlabError, match="other classes"):
        compare_rules([honest_runs[1], other])
    for paths in ([honest_runs[0]], [honest_runs[0], honest_runs[0]], []):
        with pytest.raises(TinlabError, match="two or more different runs"):
            compare_rules(paths)
    with pytest.raises(TinlabError, match="no rule 'best'"):
        compare_rules(honest_runs, rules=["best"])
    with pytest.raises(TinlabError, match="never published"):
        compare_rules(honest_runs, split="test", device="cpu")


def test_another_pack_and_one_without_tune(honest_runs, shapes_folder, tmp_path):
    other = pack(shapes_folder, tmp_path / "other", tune_fraction=0.3)
    found = compare_rules(honest_runs, pack=other, rules=["vote", "greedy_loss"], device="cpu")
    assert "another pack" in found.rows[1].note
    assert found.rows[0].top1_percent is not None


def test_the_command(honest_runs, run_on_tune, tmp_path):
    out = tmp_path / "e.json"
    runs = [str(run) for run in honest_runs]
    done = CliRunner().invoke(app, ["ensemble", *runs, "--rule", "greedy_loss", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.exception
    shown = json.loads(done.stdout)
    assert shown["ensemble"] == str(out)
    assert [member["run"] for member in shown["members"]] == runs
    assert json.loads(out.read_text())["rule"] == "greedy_loss"
    for words, message in (
        (["ensemble", *runs, "--rule", "vote"], "--out"),
        (["ensemble", *runs, "--rule", "x", "--out", str(out)], "no rule 'x'"),
        (["ensemble", *runs, "--out", str(tmp_path)], "is a folder"),
        (["ensemble", *runs, "--split", "nowhere"], "no split 'nowhere'"),
        (["ensemble", runs[0]], "two or more"),
    ):
        done = CliRunner().invoke(app, words)
        assert isinstance(done.exception, TinlabError)
        assert message in str(done.exception)


def test_what_the_command_says(honest_runs, run_on_tune, capsys):
    done = CliRunner().invoke(app, ["ensemble", *map(str, honest_runs[:2]), str(run_on_tune)])
    assert done.exit_code == 0, done.exception
    from tinlab.cli.ensembling import explain

    honest = " ".join(explain(compare_rules(honest_runs, rules=["vote"])))
    assert "best member on tune is member" in honest
    dishonest = " ".join(explain(compare_rules([run_on_tune, honest_runs[0]], rules=["vote"])))
    assert "for comparison alone" in dishonest
    assert "order in which the members were named" in dishonest
    assert "errors correlate by" in dishonest
