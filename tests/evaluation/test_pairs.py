"""Two networks on the same images, against scipy and cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from tinlab.errors import TinlabError
from tinlab.evaluation.metrics import Judged, judge
from tinlab.evaluation.pairs import correlation, mcnemar_p, pair, paired_interval_points


def _judged(predicted: list[int] | np.ndarray, labels: list[int] | np.ndarray, classes: int = 4) -> Judged:
    return judge(np.eye(classes)[np.asarray(predicted)], np.asarray(labels))


def test_a_case_counted_by_hand() -> None:
    labels = [0, 0, 1, 1, 2, 2, 3, 3]
    first = _judged([0, 0, 1, 2, 2, 0, 1, 0], labels)  # right: 0 1 2 4
    second = _judged([0, 1, 1, 1, 0, 0, 1, 2], labels)  # right: 0 2 3
    found = pair(first, second, np.arange(8) + 10)
    assert found.difference_points == pytest.approx(-12.5)
    assert found.only_first == (11, 14)
    assert found.only_second == (13,)
    assert found.both_right_percent == 25
    assert found.both_wrong_percent == 37.5
    assert found.both_wrong_same_percent == 25  # 5 and 6
    assert found.same_answer_percent == 50  # 0, 2, 5, 6
    assert found.mcnemar_p == 1  # two against one
    # Class errors are 0, 1/2, 1/2, 1 and 1/2, 0, 1, 1.
    assert found.error_correlation_classes == pytest.approx(
        scipy.stats.pearsonr([0, 0.5, 0.5, 1], [0.5, 0, 1, 1]).statistic
    )
    assert found.to_json()["only_first_images"] == 2


def test_mcnemars_test_is_the_binomial() -> None:
    assert mcnemar_p(0, 0) == 1
    assert mcnemar_p(5, 5) == 1
    assert mcnemar_p(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar_p(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar_p(9, 1) == mcnemar_p(1, 9)
    # For many images the exact test meets the chi squared one, corrected for continuity.
    chi = (abs(260 - 210) - 1) ** 2 / (260 + 210)
    assert mcnemar_p(260, 210) == pytest.approx(scipy.stats.chi2.sf(chi, 1), rel=0.02)


def test_correlations_agree_with_scikit_learn_and_scipy() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    hard = rng.uniform(size=400)
    wrong = [rng.uniform(size=400) < 0.6 * hard, rng.uniform(size=400) < 0.9 * hard]
    first, second = (_judged(np.where(w, (labels + 1) % 4, labels), labels) for w in wrong)
    found = pair(first, second, np.arange(400))
    assert found.error_correlation_images == pytest.approx(sklearn.metrics.matthews_corrcoef(*wrong))
    rates = [[w[labels == k].mean() for k in range(4)] for w in wrong]
    assert found.error_correlation_classes == pytest.approx(scipy.stats.pearsonr(*rates).statistic)


def test_what_never_varies_has_no_correlation() -> None:
    assert correlation(np.ones(5), np.arange(5)) is None
    labels = [0, 1, 2, 3]
    found = pair(_judged(labels, labels), _judged([0, 1, 2, 0], labels), np.arange(4))
    assert found.error_correlation_images is None
    assert found.error_correlation_classes is None


def test_the_interval_is_that_of_resampling_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(2, 500)) < [[0.6], [0.65]]
    expected = scipy.stats.bootstrap(
        (b.astype(float) - a,), np.mean, n_resamples=5000, method="percentile", rng=rng
    ).confidence_interval
    # A Monte Carlo error of about 0.15 points, and steps of 0.2 points an image.
    assert paired_interval_points(b, a) == pytest.approx((100 * expected.low, 100 * expected.high), abs=0.6)


def test_a_network_and_itself() -> None:
    labels = np.arange(40) % 4
    one = _judged((labels + (np.arange(40) % 3 == 0)) % 4, labels)
    found = pair(one, one, np.arange(40))
    assert found.difference_points == 0
    assert found.difference_interval_points == (0, 0)
    assert (found.mcnemar_p, found.same_answer_percent) == (1, 100)
    assert found.error_correlation_images == pytest.approx(1)
    assert found.only_first == found.only_second == ()


def test_turning_a_pair_round_turns_its_signs() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 4, 300)
    a, b = (_judged(np.where(rng.uniform(size=300) < p, labels, 0), labels) for p in (0.5, 0.8))
    there, back = pair(a, b, np.arange(300)), pair(b, a, np.arange(300))
    assert back.difference_points == pytest.approx(-there.difference_points)
    assert back.mcnemar_p == there.mcnemar_p
    assert (back.only_first, back.only_second) == (there.only_second, there.only_first)
    assert back.error_correlation_images == pytest.approx(there.error_correlation_images)


def test_other_images_are_refused() -> None:
    with pytest.raises(TinlabError, match="different images"):
        pair(_judged([0, 1], [0, 1]), _judged([0, 1], [1, 0]), np.arange(2))
    with pytest.raises(TinlabError, match="different images"):
        pair(_judged([0, 1], [0, 1]), _judged([0, 1], [0, 1], classes=5), np.arange(2))
