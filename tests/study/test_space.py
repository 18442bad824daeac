"""What a search may change."""

from __future__ import annotations

import pytest

from tinlab.errors import TinlabError
from tinlab.recipe import changed
from tinlab.study.space import Choice, Range, check_space, fitted, parse_space, with_values


def test_ranges_and_choices():
    assert parse_space(["a.b=0.01:1:log", "c=1:8", "d=x|[1, 2]|null", "e=1:2.5"]) == {
        "a.b": Range(0.01, 1, log=True),
        "c": Range(1, 8),
        "d": Choice(("x", "[1, 2]", "null")),
        "e": Range(1, 2.5),
    }
    assert Range(1, 8).whole
    assert not Range(1, 2.5).whole


def test_a_range_of_fractions_is_none_of_whole_numbers(tiny_recipe):
    check_space(parse_space(["schedule.steps=5:10", "optimizer.peak_lr=1:2.0"]), tiny_recipe)
    with pytest.raises(TinlabError, match=r"schedule\.steps: input should be a valid integer"):
        check_space(parse_space(["schedule.steps=5.0:10.0"]), tiny_recipe)


def test_whole_ends_mean_whole_numbers_only_where_the_field_is_one(tiny_recipe):
    texts = [
        "optimizer.weight_decay=0:1",
        "model.width=1:8:log",
        "augment.0.probability=0:1",
        "model.stem=a|b",
    ]
    found = fitted(parse_space(texts), tiny_recipe)
    assert {path: getattr(one, "whole", None) for path, one in found.items()} == {
        "optimizer.weight_decay": False,
        "model.width": True,
        "augment.0.probability": False,
        "model.stem": None,
    }
    assert found["model.width"] == Range(1, 8, log=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.width", "PATH=LOW:HIGH"),
        ("model.width=3", "PATH=LOW:HIGH"),
        ("model.width=8:4", "not below"),
        ("optimizer.peak_lr=0:1:log", "logarithm"),
        ("optimizer.peak_lr=a:b", "no number"),
        ("optimizer.peak_lr=0:inf", "no number"),
        ("optimizer.peak_lr=0:1" + 400 * "0", "no number"),
        ("model.stem=a||b", "empty"),
        ("model.stem=a|a", "twice"),
    ],
)
def test_a_bad_space_is_refused(text, expected):
    with pytest.raises(TinlabError, match=expected):
        parse_space([text])
    with pytest.raises(TinlabError, match="needs something to change"):
        parse_space([])
    with pytest.raises(TinlabError, match="twice"):
        parse_space(["model.width=1:2", "model.width=3:4"])


def test_a_recipe_must_take_both_ends_and_hold_tune_out(tiny_recipe):
    check_space(parse_space(["optimizer.momentum=0.5:0.99"]), tiny_recipe)
    with pytest.raises(TinlabError, match=r"optimizer\.momentum"):
        check_space(parse_space(["optimizer.momentum=0.5:1.5"]), tiny_recipe)
    with pytest.raises(TinlabError, match="there is no field"):
        check_space(parse_space(["optimizer.lr=0.5:1.5"]), tiny_recipe)
    all_images = changed(tiny_recipe, ["data.train_split=train+tune"])
    with pytest.raises(TinlabError, match="tune"):
        check_space(parse_space(["model.width=2:4"]), all_images)
    with pytest.raises(TinlabError, match="tune"):
        check_space(parse_space(["data.train_split=train|train+tune"]), tiny_recipe)


def test_a_trials_recipe_says_where_its_values_come_from(tiny_recipe):
    values = {"optimizer.peak_lr": 0.2, "model.stem": "small", "data.image_sizes": "[32, 64]"}
    found = with_values(tiny_recipe, values, "tiny-best", "the best", "found")
    assert (found.optimizer.peak_lr, found.model.stem) == (0.2, "small")
    assert found.data.image_sizes == (32, 64)
    assert {p: found.provenance[p].kind for p in values} == dict.fromkeys(values, "changed")
