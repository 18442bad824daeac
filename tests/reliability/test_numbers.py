"""Short runs of trials/numerics.py and trials/alike.py, and what those found in the numbers, by hand."""

from __future__ import annotations

import random
from pathlib import Path

import alike
import numerics
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinlab.evaluation import ensemble, pairs
from tinlab.evaluation.metrics import calibration
from tinlab.training import loop


@pytest.mark.parametrize("name", numerics.CHECKS)
def test_drawn(name: str) -> None:
    assert numerics.tried(name, 25, seed=7) >= 25


def test_end_to_end(tmp_path: Path) -> None:
    assert alike.end_to_end(tmp_path, seed=1) > 500


def test_processes(tmp_path: Path) -> None:
    """The command, in other surroundings, against the function here."""
    recipe, on = alike.recipe_of(random.Random(2)), alike.small_pack(tmp_path, seed=2)
    assert torch.get_num_threads() == 1
    here = loop.train(recipe, on, tmp_path / "here", seed=5, device="cpu").path
    assert alike.same_bits(here, alike.process(recipe, on, tmp_path / "there", 5, differs=True)) > 50


def test_threads(tmp_path: Path) -> None:
    assert alike.threads(tmp_path, seed=3, counts=(1, 2), steps=6) == 6


def test_resume(tmp_path: Path) -> None:
    assert alike.resume(tmp_path, seed=1) > 50


def test_what_is_not_alike_is_found(tmp_path: Path) -> None:
    """The comparison itself: another seed, and one bit of one weight."""
    recipe, on = alike.recipe_of(random.Random(2), steps=3), alike.small_pack(tmp_path, seed=2)
    one, other = (loop.train(recipe, on, tmp_path / str(s), seed=s, device="cpu").path for s in (0, 1))
    with pytest.raises(AssertionError):
        alike.same_bits(one, other)
    assert alike.same_bits(one, one) > 50


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e9, 1e9, allow_subnormal=False), st.integers(1, 30), st.integers(0, 99))
def test_equal_values_have_no_correlation(value: float, count: int, seed: int) -> None:
    """The mean of seven times 0.1 is not 0.1, but they do not vary."""
    others = np.random.default_rng(seed).normal(size=count)
    assert pairs.correlation(np.full(count, value), others) is None
    table = np.stack([np.full(count, value), others])
    assert np.isnan(ensemble.pairwise_correlation(table)[0]).all()


def test_a_calibration_error_by_hand() -> None:
    """Four images, two in the bin up to 0.6 and two in the one up to 0.8, of five bins of equal width."""
    confidence = np.array([0.5, 0.6, 0.7, 0.8])
    found, bins = calibration(confidence, np.array([True, False, True, True]), bins=5)
    # |1/2 - 0.55| = 0.05 and |1 - 0.75| = 0.25, half of the images each.
    assert found == pytest.approx(100 * (0.05 + 0.25) / 2)
    assert [one.images for one in bins] == [0, 0, 2, 2, 0]


def test_an_exact_p_by_hand() -> None:
    """Of five images that only one gets right, four by the first: 2 (1 + 5) of 32 ways are as uneven."""
    assert pairs.mcnemar_p(4, 1) == pytest.approx(12 / 32)
    assert numerics.exact_mcnemar(4, 1) == numerics.Fraction(12, 32)
    assert numerics.exact_mcnemar(3, 3) == 1


def test_a_paired_interval_by_hand() -> None:
    """Ten images of which one is won: the sum of a resample is binomial(10, 1/10). Less than 2.5% of it lies
    beyond 3 (1.3%), 7.0% beyond 2: so the interval goes from 0 to 30 points."""
    won = np.arange(10) == 0
    assert pairs.paired_interval_points(won, np.zeros(10, bool)) == (0, 30)
    assert pairs.paired_interval_points(np.zeros(10, bool), won) == (-30, 0)


def test_an_ensemble_by_hand() -> None:
    """Sure of 0 with 3/4, and of 1 with 2/3 and with 3/5: the mean of the probabilities is 0.4944 for class
    0, the vote says 1; and the logits, ln 3, -ln 2 and -ln 1.5, add up to 0."""
    odds = np.array([[3.0, 1], [1, 2], [2, 3]])
    logits = np.log(odds)[:, None, :]
    mean = np.exp(ensemble.combine(logits, ensemble.stated("probabilities", 3)))
    assert mean[0] == pytest.approx([(3 / 4 + 1 / 3 + 2 / 5) / 3, (1 / 4 + 2 / 3 + 3 / 5) / 3])
    assert np.exp(ensemble.combine(logits, ensemble.stated("logits", 3)))[0] == pytest.approx([0.5, 0.5])
    assert ensemble.combine(logits, ensemble.stated("vote", 3))[0] == pytest.approx([1 / 3, 2 / 3], abs=1e-6)
