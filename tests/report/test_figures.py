"""The charts' arithmetic: round ticks, thinned curves, the axis of time."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinlab.recipe import changed
from tinlab.recipes import find
from tinlab.report.figures import POINTS_DRAWN, Series, line_chart, sorted_bars, thinned, ticks
from tinlab.report.knobs import knob_groups, shown, with_own_values
from tinlab.report.phrases import count, duration


@pytest.mark.parametrize(
    ("low", "high", "inside", "expected"),
    [
        (0, 5.4, False, [0, 2, 4, 6]),
        (0, 88, False, [0, 20, 40, 60, 80, 100]),
        (1.7, 3.9, False, [1.5, 2, 2.5, 3, 3.5, 4]),
        (0, 30, True, [0, 10, 20, 30]),
        (0, 12.17, True, [0, 5, 10]),
        (0, 0.1, False, [0, 0.02, 0.04, 0.06, 0.08, 0.1]),
    ],
)
def test_ticks_are_round(low: float, high: float, inside: bool, expected: list[float]) -> None:
    assert ticks(low, high, about=5, inside=inside) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.booleans())
@example(0.0, 5e-324, False)
@example(0.0, -111.6, False)  # a speed that a damaged run states
@example(1e300, 0.0, False)
@example(1e6, 1e-9, True)
def test_ticks_cover_or_stay_inside(low: float, width: float, inside: bool) -> None:
    high = low + width
    found = ticks(low, high, about=5, inside=inside)
    assert len(found) <= 9
    if width > 1e-3 * abs(low) + 1e-6:
        slack = 1e-6 * max(abs(low), abs(high), 1e-9)
        if inside:
            assert all(low - slack <= value <= high + slack for value in found)
        else:
            assert found[0] <= low + slack
            assert found[-1] >= high - slack


def test_thinning_keeps_the_mean_and_short_curves() -> None:
    x = np.arange(POINTS_DRAWN * 7.0)
    thin_x, thin_y = thinned(x, np.sin(x))
    assert len(thin_x) == len(thin_y) == POINTS_DRAWN
    assert np.mean(thin_y) == pytest.approx(np.sin(x).mean())
    assert thinned([1, 2], [3, 4]) == ([1, 2], [3, 4])


def test_minutes_stand_where_they_passed() -> None:
    # The first of two epochs took one minute, the second three.
    chart = line_chart(
        [Series("<train>", [0, 2], [1, 0], "train")],
        x_high=2,
        label="a < b",
        clock=([1.0, 2.0], [60.0, 240.0]),
    )
    assert "a &lt; b" in chart.svg
    times = {t: float(x) for x, t in re.findall(r'<text x="([\d.]+)"[^>]*>(\d min)</text>', chart.svg)}
    left, right = chart.pixels
    assert times["1 min"] == pytest.approx((left + right) / 2, abs=0.1)
    assert times["4 min"] == pytest.approx(right, abs=0.1)


def test_bars_come_best_first() -> None:
    heights = re.findall(r'height="([\d.]+)"', sorted_bars([20.0, 90.0, 0.0], label="classes"))
    assert heights == ["90.0", "20.0", "0.0"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "1 second"),
        (3.24, "3.2 seconds"),
        (89, "89 seconds"),
        (90, "1.5 minutes"),
        (2520, "42 minutes"),
        (9000, "2.5 hours"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_words_for_values() -> None:
    assert [shown(v) for v in (None, True, 1e-4, [1, 2.5], [], {"a_b": False})] == [
        "none", "yes", "0.0001", "1, 2.5", "none", "a b no",
    ]  # fmt: skip
    assert count(1, "epoch") == "1 epoch"
    assert count(1234.5, "image") == "1,234.5 images"


def test_a_recipe_becomes_groups_with_their_sources() -> None:
    groups = knob_groups(
        {
            "name": "x",
            "seed_count": 3,
            "optimizer": {"peak_lr": 0.1, "inner": {"beta": 0.9}},
            "augment": [{"kind": "flip", "probability": 0.5}],
            "provenance": {
                "optimizer.inner.beta": {"kind": "assumed", "why": "w"},
                "augment": {"kind": "stated", "why": ""},
            },
        }
    )
    assert [group.name for group in groups] == ["optimizer", "augment", "other"]
    assert [(row.label, row.value, row.kind) for row in groups[0].rows] == [
        ("peak lr", "0.1", ""),
        ("inner › beta", "0.9", "assumed"),
    ]
    assert (groups[1].kind, groups[1].rows[0].label, groups[1].rows[0].value) == (
        "stated",
        "1. flip",
        "probability 0.5",
    )


def test_a_recipe_is_shown_with_what_its_defaults_stand_for() -> None:
    recipe = changed(find("demo"), ["augment=sun_heavy"]).model_dump(mode="json")
    groups = {group.name: group.rows for group in knob_groups(with_own_values(recipe))}
    model = {row.label: row.value for row in groups["model"]}
    assert (model["block order"], model["activation"]) == ("a", "relu")
    assert "first kernel" not in model
    assert groups["augment"][0].label == "1. 2 to 5 of these 12:"
    assert (groups["augment"][5].label, groups["augment"][5].value) == ("6. rotate", "degrees -20 to 20")
    strange = {"model": {"name": "of tomorrow"}}
    assert with_own_values(strange) == strange
