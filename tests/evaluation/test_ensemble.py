"""Ensembles against SciPy, scikit-learn, an independent fit and votes counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.ensemble
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from tinlab.errors import TinlabError
from tinlab.evaluation.ensemble import (
    RULES,
    Combination,
    class_error_rates,
    combine,
    fit_logits,
    fit_probabilities,
    gain_interval,
    pairwise_correlation,
    select_by_loss,
    select_by_top1,
    stated,
)


def made(members: int = 3, images: int = 300, classes: int = 5, seed: int = 0):
    """Members of falling skill, whose errors have a part in common."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    common = rng.normal(size=(images, classes))
    logits = np.stack([common + rng.normal(size=(images, classes)) * (1 + m) for m in range(members)])
    logits[:, np.arange(images), labels] += np.linspace(2, 1, members)[:, None]
    return logits.astype(np.float32), labels


def votes(*classes: int, of: int = 4) -> np.ndarray:
    """Logits of one image in which member m puts `classes[m]` first."""
    return np.eye(of, dtype=np.float32)[list(classes)][:, None, :]


@pytest.mark.parametrize(
    ("chosen", "order", "winner"),
    [
        ((1, 1, 2), (2, 0, 1), 1),  # a majority needs no tie-break
        ((0, 1, 2), (1, 0, 2), 1),  # all disagree: the best member
        ((0, 1, 2), (2, 1, 0), 2),
        ((3, 0, 0, 1, 1), (0, 3, 1, 2, 4), 1),  # the best member's class is not among the tied ones
        ((3, 0, 0, 1, 1), (0, 2, 1, 3, 4), 0),
        ((2, 2, 1, 1), (3, 0, 1, 2), 1),
        ((2, 2, 1, 1), (0, 3, 1, 2), 2),
    ],
)
def test_votes_and_their_ties(chosen, order, winner):
    scores = combine(votes(*chosen), Combination("vote", (1 / len(chosen),) * len(chosen), order))
    assert scores.argmax() == winner
    shares = np.bincount(chosen, minlength=4) / len(chosen)
    assert np.allclose(scores, shares, atol=1.1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=7), st.randoms(use_true_random=False))
def test_a_vote_counted_by_hand(chosen, random):
    order = list(range(len(chosen)))
    random.shuffle(order)
    most = max(chosen.count(c) for c in chosen)
    expected = next(chosen[m] for m in order if chosen.count(chosen[m]) == most)
    assert combine(votes(*chosen), stated("vote", len(chosen), order)).argmax() == expected


def test_means_are_scipys():
    logits, _ = made(images=1500)  # more than one block
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=2)
    assert np.allclose(np.exp(combine(logits, stated("probabilities", 3))), probabilities.mean(0), atol=1e-12)
    expected = scipy.special.log_softmax(logits.astype(np.float64).mean(0), axis=1)
    assert np.allclose(combine(logits, stated("logits", 3)), expected, atol=1e-12)
    weights = (0.5, 0.0, 0.5)
    found = combine(logits, Combination("probabilities", weights, (0, 1, 2)))
    assert np.allclose(np.exp(found), (probabilities[0] + probabilities[2]) / 2, atol=1e-12)
    found = combine(logits, Combination("logits", weights, (0, 1, 2), temperature=2.0))
    expected = scipy.special.log_softmax((logits[0] + logits[2]).astype(np.float64) / 4, axis=1)
    assert np.allclose(found, expected, atol=1e-12)


def test_huge_logits_stay_finite():
    logits = np.array([[[3000.0, 0.0]], [[0.0, 3000.0]]], np.float32)
    for pool in ("probabilities", "logits", "vote"):
        scores = combine(logits, stated(pool, 2))
        assert np.isfinite(scores).all()
    assert np.allclose(combine(logits, stated("probabilities", 2)), np.log(0.5))


def test_soft_votes_are_scikit_learns():
    """VotingClassifier(voting="soft") over members that say what we say."""

    class Says(sklearn.base.ClassifierMixin, sklearn.base.BaseEstimator):
        def __init__(self, rows=None):
            self.rows = rows

        def fit(self, x, y):
            self.classes_ = np.unique(y)
            return self

        def predict_proba(self, x):
            return scipy.special.softmax(self.rows.astype(np.float64), axis=1)

    logits, labels = made()
    vote = sklearn.ensemble.VotingClassifier(
        [(str(m), Says(rows)) for m, rows in enumerate(logits)], voting="soft", weights=[0.2, 0.3, 0.5]
    ).fit(np.zeros((len(labels), 1)), labels)
    found = combine(logits, Combination("probabilities", (0.2, 0.3, 0.5), (0, 1, 2)))
    assert np.allclose(np.exp(found), vote.predict_proba(np.zeros((len(labels), 1))), atol=1e-12)


def test_fitted_weights_are_those_of_expectation_maximisation():
    logits, labels = made(4, 800)
    how = fit_probabilities(logits, labels, (0, 1, 2, 3))
    true = scipy.special.softmax(logits.astype(np.float64), axis=2)[:, np.arange(len(labels)), labels]
    weights = np.full(4, 1 / 4)
    for _ in range(5000):
        weights = (weights[:, None] * true / (weights @ true)).mean(axis=1)
    assert np.allclose(how.weights, weights, atol=1e-3)
    assert sum(how.weights) == pytest.approx(1)
    assert min(how.weights) >= 0
    assert loss(logits, labels, how) == pytest.approx(-np.log(weights @ true).mean(), abs=1e-7)


def loss(logits, labels, how):
    return sklearn.metrics.log_loss(labels, np.exp(combine(logits, how)), labels=list(range(logits.shape[2])))


def test_logit_weights_are_a_minimum():
    """One member: the temperature alone, which a scan finds too. More: no step lowers the loss."""
    logits, labels = made(1, 500)
    how = fit_logits(3 * logits, labels, (0,))
    scan = np.linspace(0.5, 8, 3001)
    losses = [loss(3 * logits, labels, Combination("logits", (1.0,), (0,), t)) for t in scan[::100]]
    best = loss(3 * logits, labels, how)
    assert best <= min(losses)
    assert how.temperature == pytest.approx(scan[::100][int(np.argmin(losses))], abs=0.3)

    logits, labels = made(3, 800)
    how = fit_logits(logits, labels, (0, 1, 2))
    best, rng = loss(logits, labels, how), np.random.default_rng(1)
    for _ in range(20):
        factors = np.maximum(np.array(how.weights) / how.temperature + rng.normal(size=3) * 0.02, 0)
        other = Combination("logits", tuple(factors / factors.sum()), (0, 1, 2), 1 / factors.sum())
        assert loss(logits, labels, other) >= best - 1e-9


def test_a_useless_member_gets_no_weight():
    logits, labels = made(3, 800)
    logits[2] = np.random.default_rng(5).normal(size=logits[2].shape) * 5
    for fit in (fit_probabilities, fit_logits, select_by_loss):
        assert fit(logits, labels, (0, 1, 2)).weights[2] < 0.03
    logits = -logits[:2]
    with pytest.raises(TinlabError, match="equally likely"):
        fit_logits(logits, labels, (0, 1))


def test_greedy_selection_by_hand():
    """Every multiset of picks up to three, tried: the greedy one is found by following the same road."""
    logits, labels = made(3, 200)
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=2)

    def top1(picks):
        return (probabilities[list(picks)].mean(0).argmax(1) == labels).mean()

    def nll(picks):
        return -np.log(probabilities[list(picks)].mean(0)[np.arange(len(labels)), labels]).mean()

    for select, key in (
        (select_by_loss, lambda picks: (-nll(picks),)),
        (select_by_top1, lambda picks: (top1(picks), -nll(picks))),
    ):
        picks: list[int] = []
        road = []
        for _ in range(25):
            picks = max(([*picks, m] for m in range(3)), key=key)
            road.append(picks)
        best = max(road, key=key)
        expected = np.bincount(best, minlength=3) / len(best)
        assert np.allclose(select(logits, labels, (0, 1, 2)).weights, expected, atol=1e-9)


def test_fitting_is_never_worse_on_what_it_was_fitted_to():
    logits, labels = made(4, 400, seed=3)
    order = (0, 1, 2, 3)
    mean = loss(logits, labels, stated("probabilities", 4))
    assert loss(logits, labels, fit_probabilities(logits, labels, order)) <= mean + 1e-9
    single = min(loss(logits[m : m + 1], labels, stated("probabilities", 1)) for m in range(4))
    assert loss(logits, labels, select_by_loss(logits, labels, order)) <= single + 1e-9
    for rule in RULES.values():
        how = rule.fit(logits, labels, order) if rule.fit else stated(rule.pool, 4)
        assert how.pool == rule.pool
        assert sum(how.weights) == pytest.approx(1)


def test_correlations_are_scipys():
    rng = np.random.default_rng(0)
    wrong = (rng.random((3, 400)) < 0.4).astype(float)
    wrong[1, :300] = wrong[0, :300]
    labels = rng.integers(0, 20, 400)
    found = pairwise_correlation(wrong)
    rates = class_error_rates(wrong, labels)
    by_class = pairwise_correlation(rates)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert found[i, j] == pytest.approx(scipy.stats.pearsonr(wrong[i], wrong[j]).statistic)
        expected = [[wrong[m][labels == c].mean() for c in range(20)] for m in (i, j)]
        assert by_class[i, j] == pytest.approx(scipy.stats.pearsonr(*expected).statistic)
    assert np.isnan(pairwise_correlation(np.array([[1.0, 1.0], [0.0, 1.0]]))[0, 1])


def test_gains_interval_is_scipys_bootstrap():
    rng = np.random.default_rng(0)
    one, other = rng.random(2000) < 0.6, rng.random(2000) < 0.5
    gain, low, high = gain_interval(one, other)
    assert gain == pytest.approx(100 * (one.mean() - other.mean()))
    found = scipy.stats.bootstrap(
        (one.astype(float) - other,), np.mean, method="percentile", n_resamples=2000, batch=200, rng=1
    ).confidence_interval
    assert low == pytest.approx(100 * found.low, abs=0.25)
    assert high == pytest.approx(100 * found.high, abs=0.25)
    assert gain_interval(one, one) == (0, 0, 0)


def test_another_number_of_members_is_refused():
    with pytest.raises(TinlabError, match="members"):
        combine(made()[0], stated("logits", 2))
