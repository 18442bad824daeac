from __future__ import annotations

import shutil

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from tinlab.data.audit import Audit, Group, Member
from tinlab.errors import TinlabError
from tinlab.evaluating import predictions_of
from tinlab.evaluation.metrics import judge
from tinlab.explain.errors import (
    class_thresholds,
    confident_errors,
    conflicts,
    errors_sheet,
    label_errors,
    label_errors_sheet,
)
from tinlab.files import read_json, write_json


def logits_of(probabilities):
    return np.log(np.asarray(probabilities))


# Six images of three classes; class 2 has none.
PROBABILITIES = np.array(
    [
        [0.80, 0.15, 0.05],  # 0, right
        [0.60, 0.30, 0.10],  # 0, right: the threshold of 0 is (0.8 + 0.6 + 0.1) / 3 = 0.5
        [0.10, 0.85, 0.05],  # labelled 0, and above the threshold of 1: suspect
        [0.05, 0.90, 0.05],  # 1, right
        [0.20, 0.50, 0.30],  # 1, right: the threshold of 1 is (0.9 + 0.5 + 0.46) / 3 = 0.62
        [0.52, 0.46, 0.02],  # labelled 1, and above the threshold of 0: suspect, but barely
    ]
)
LABELS = np.array([0, 0, 0, 1, 1, 1])


def test_thresholds_are_the_mean_probability_of_a_class_over_its_images():
    assert class_thresholds(
        PROBABILITIES[np.arange(len(LABELS)), LABELS], LABELS, 3
    ).tolist() == pytest.approx([0.5, 0.62, np.inf])


def test_label_errors_are_those_worked_out_by_hand():
    worst, second = label_errors(logits_of(PROBABILITIES), LABELS)
    assert (worst.index, worst.label, worst.likely) == (2, 0, 1)
    assert worst.margin == pytest.approx(0.10 - 0.85)
    assert worst.self_confidence == pytest.approx(0.10)
    assert worst.likely_probability == pytest.approx(0.85)
    assert (second.index, second.label, second.likely) == (5, 1, 0)
    assert second.margin == pytest.approx(0.46 - 0.52)
    assert len(label_errors(logits_of(PROBABILITIES), LABELS, most=1)) == 1


def test_the_class_above_its_threshold_counts_and_not_the_likeliest():
    # The second image is likeliest 0, whose threshold is 0.9; the thresholds of 1 and 2 are reached.
    probabilities = np.array([[0.9, 0.05, 0.05], [0.45, 0.40, 0.15], [0.9, 0.08, 0.02], [0.35, 0.38, 0.27]])
    (found,) = label_errors(logits_of(probabilities), np.array([0, 2, 0, 1]))
    assert (found.index, found.label, found.likely) == (1, 2, 1)


def test_the_order_is_by_margin_or_by_self_confidence():
    probabilities = np.array(
        [[0.02, 0.50, 0.48], [0.05, 0.94, 0.01], [0.98, 0.01, 0.01], [0.01, 0.45, 0.54], [0.3, 0.2, 0.5]]
    )
    labels = np.array([0, 0, 0, 1, 2])
    by_margin = [s.index for s in label_errors(logits_of(probabilities), labels)]
    by_own = [s.index for s in label_errors(logits_of(probabilities), labels, by="self_confidence")]
    assert by_margin == [1, 0, 3]
    assert by_own == [0, 1, 3]
    with pytest.raises(TinlabError, match="give margin or self_confidence"):
        label_errors(logits_of(probabilities), labels, by="loss")


def test_planted_label_errors_are_found():
    dice = np.random.default_rng(0)
    truth = dice.integers(0, 10, 2000)
    logits = dice.normal(0, 1, (2000, 10))
    logits[np.arange(2000), truth] += 6
    labels = truth.copy()
    wrong = dice.permutation(2000)[:60]
    labels[wrong] = (truth[wrong] + dice.integers(1, 10, 60)) % 10
    found = label_errors(logits, labels)
    planted = {s.index for s in found} & set(wrong.tolist())
    # One that is taken for its true class less surely than others of it are, on average, is passed over.
    assert len(planted) > 0.75 * len(wrong)
    assert len(planted) > 0.9 * len(found)
    assert all(s.likely == truth[s.index] for s in found[: len(planted) // 2])


def test_bad_input_is_refused():
    with pytest.raises(TinlabError, match="no published label"):
        label_errors(np.zeros((2, 3)), np.array([-1, 0]))


def test_confident_errors_are_the_surest_first():
    judged = judge(logits_of(PROBABILITIES), LABELS)
    assert confident_errors(judged).tolist() == [2, 5]
    assert confident_errors(judged, 1).tolist() == [2]


def member(split, row, label):
    return Member(split, "train" if split == "tune" else split, row, f"{split}_{row}", label)


def test_conflicts_are_those_of_the_audit():
    classes = (("n1", "cat, kitty"), ("n2", "dog"), ("n3", ""))
    found = Audit(
        pack="p",
        classes=classes,
        splits={},
        identical=(
            Group((member("val", 3, 0), member("train", 9, 1), member("test", 1, -1))),
            Group((member("val", 4, 0), member("train", 8, 0))),
        ),
        near=(Group((member("tune", 2, 2), member("val", 3, 0)), score=0.99),),
        near_bar=0.9,
    )
    assert conflicts(found, "val") == {3: ["train 9 is the same image: dog", "tune 2 is the same image: n3"]}
    assert conflicts(found, "train") == {9: ["val 3 is the same image: cat"]}
    assert conflicts(found, "test") == {}


def test_a_sheet_of_errors(run):
    saved = predictions_of(run.path)
    wrong = int((saved.logits.argmax(1) != saved.labels).sum())
    picture, listed = errors_sheet(run.path, most=5, pairs=2)
    assert len(listed) == min(5, wrong)
    assert f"{len(listed)} wrong predictions on val" in picture.alt
    confidences = [entry["confidence_percent"] for entry in listed]
    assert confidences == sorted(confidences, reverse=True)
    for entry in listed:
        row = entry["index"]
        assert entry["true"] != entry["predicted"]
        assert entry["true"].split(" (")[0] in run.classes[saved.labels[row]].words
    table = confusion_matrix(saved.labels, saved.logits.argmax(1))
    np.fill_diagonal(table, 0)
    assert ("confusions" in picture.alt) == bool(table.any())
    with pytest.raises(TinlabError, match="never published"):
        errors_sheet(run.path, split="test")
    with pytest.raises(TinlabError, match="0 images cannot be shown"):
        errors_sheet(run.path, most=0)


def test_images_of_a_pack_that_has_changed_are_not_shown(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    about = read_json(copy / "run.json")
    write_json(copy / "run.json", {**about, "pack_digest": "0" * 32})
    with pytest.raises(TinlabError, match="has changed since"):
        errors_sheet(copy)


def test_a_sheet_of_label_errors_marks_what_the_audit_found(run, shapes_pack):
    saved = predictions_of(run.path)
    suspects = label_errors(saved.logits, saved.labels)
    assert suspects, "the tiny network should suspect something"
    row = suspects[0].index
    other = (suspects[0].label + 1) % 4
    audit = Audit(
        pack="p",
        classes=tuple((c.id, c.words) for c in run.classes),
        splits={},
        identical=(Group((member("val", row, suspects[0].label), member("train", 7, other))),),
        near=None,
        near_bar=None,
    )
    picture, listed = label_errors_sheet(run.path, audit=audit, most=4)
    assert len(listed) == min(4, len(suspects))
    assert listed[0]["index"] == row
    assert listed[0]["conflicts"][0].startswith("train 7 is the same image")
    assert not any(entry["conflicts"] for entry in listed[1:])
    plain, _ = label_errors_sheet(run.path, most=4)
    assert plain.image.height < picture.image.height
