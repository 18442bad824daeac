"""Is every number that tinlab measures the one that scikit-learn, SciPy or plain counting gives?

    python trials/numerics.py [CHECK ...] [--cases 10000] [--seed 0]

Checks: metrics, calibration, pairs, intervals, ensembles, relations; by default all of them.

Each case is drawn by hypothesis: few or one image, classes without images, equal logits, logits of 3e38,
logits that differ by one rounding, in half, single and double precision. A check compares everything it can
with an independent computation. Where one fails, hypothesis looks for the smallest case, which is printed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import hypothesis
import numpy as np
import scipy.special
import scipy.stats
import sklearn.metrics
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from ledger import Promise, record

from tinlab.data.pack import ClassInfo
from tinlab.errors import TinlabError
from tinlab.evaluation import ensemble, intervals, pairs
from tinlab.evaluation.calibration import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    calibrated,
    fit_temperature,
)
from tinlab.evaluation.classes import class_accuracies, confused_pairs
from tinlab.evaluation.metrics import (
    ReliabilityBin,
    bootstrap_interval_percent,
    confusion_pairs,
    judge,
    measure,
    top_k_percent,
)
from tinlab.evaluation.scores import scores
from tinlab.study.comparison import over_seeds, spread

TESTS = "tests/reliability/test_numbers.py::test_drawn"
PROMISES = tuple(
    Promise(f"numbers.{name}", sentence, f"{TESTS}[{name}]", f"python trials/numerics.py {name}")
    for name, sentence in {
        "metrics": "Top-k accuracy, cross-entropy, recall and the confusions of classes are those of"
        " scikit-learn, with ties, absent classes and extreme logits.",
        "calibration": "Calibration errors, their bins, the Brier score and the fitted temperature are those"
        " of scikit-learn and of counting by hand.",
        "pairs": "McNemar's p is exact to the last throw of the coin, and agreement and correlations of two"
        " networks are those of SciPy and scikit-learn.",
        "intervals": "Bootstrap intervals are the quantiles of the distribution that they are drawn from, and"
        " t intervals those of SciPy.",
        "ensembles": "Votes and means are those counted by hand and by SciPy, and no fitted weight can be"
        " moved for a lower loss.",
        "relations": "Renaming classes, shuffling or repeating images and shifting logits change what they"
        " must and nothing else; a network differs from itself by 0 with p = 1, and an ensemble of it is it.",
    }.items()
)

PLAIN, TIED, EXTREME, EQUAL, SURE, NEAR, GRID = "plain", "tied", "extreme", "equal", "sure", "near", "grid"
POOLS: tuple[ensemble.Pool, ...] = ("vote", "probabilities", "logits")
EXTREMES = (3e38, -3e38, 1e30, -1e30, 1e5, 88.8, 1.0, 1e-30, 0.0, -104.0)


@dataclass(frozen=True)
class Case:
    """`logits` (N, C) and `labels` int64 (N,); `rng` draws whatever else a check needs."""

    logits: np.ndarray
    labels: np.ndarray
    kind: str
    rng: np.random.Generator

    @property
    def classes(self) -> int:
        return self.logits.shape[1]


@st.composite
def cases(draw: st.DrawFn, kinds: tuple[str, ...] = (PLAIN, TIED, EXTREME, EQUAL, SURE, NEAR, GRID)) -> Case:
    """A case of one of `kinds`."""
    kind = draw(st.sampled_from(kinds))
    images, classes = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (images, classes)
    logits = {
        PLAIN: lambda: 2 * rng.normal(size=shape),
        TIED: lambda: rng.integers(-2, 3, shape).astype(float),
        EXTREME: lambda: rng.choice(EXTREMES, shape),
        EQUAL: lambda: np.full(shape, rng.choice([0.0, 5.0, -1e30])),
        SURE: lambda: 50.0 * (np.arange(classes) == rng.integers(0, classes, (images, 1))),
        NEAR: lambda: 1 + 2.0**-23 * rng.integers(-1, 2, shape),  # one rounding of float32 apart
        GRID: lambda: rng.integers(-4096, 4096, shape) / 1024.0,  # sums of these are exact
    }[kind]()
    types = [np.float32, np.float64] + ([np.float16] if kind in (PLAIN, TIED, SURE) else [])
    # All classes, or some: the others have no images.
    held = rng.permutation(classes)[: draw(st.integers(1, classes))]
    labels = rng.choice(held, images)
    if kind in (PLAIN, GRID) and draw(st.booleans()):
        logits[np.arange(images), labels] += 2
    return Case(logits.astype(draw(st.sampled_from(types))), labels, kind, rng)


def close(found: object, expected: object, relative: float = 1e-9, absolute: float = 1e-9) -> None:
    """Equal within rounding; None only where None is expected."""
    if found is None or expected is None:
        assert found is expected, (found, expected)
        return
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(expected, float), relative, absolute)


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    return scipy.special.log_softmax(logits.astype(np.float64), axis=-1)


def check_metrics(case: Case) -> None:
    logits, labels, classes = case.logits, case.labels, case.classes
    every, found, judged = np.arange(classes), measure(logits, labels), judge(logits, labels)
    predicted = logits.argmax(axis=1)
    close(found.top1_percent, 100 * sklearn.metrics.accuracy_score(labels, predicted))
    # Of equals, scikit-learn puts the class with the higher index first; so it is given all in reverse. It
    # wants three classes or more: three that are never chosen go in front.
    wide = np.concatenate([np.full((len(labels), 3), -1e40), logits[:, ::-1].astype(np.float64)], axis=1)
    turned = 3 + classes - 1 - labels
    for k in {1, min(2, classes), min(5, classes), classes}:
        expected = sklearn.metrics.top_k_accuracy_score(turned, wide, k=k, labels=range(classes + 3))
        close(top_k_percent(judged, k), 100 * expected)
    close(found.top5_percent, top_k_percent(judged, min(5, classes)))
    logs = log_probabilities(logits)
    close(judged.loss, -logs[np.arange(len(labels)), labels])
    close(found.loss, math.fsum(judged.loss) / len(labels))
    if classes > 1 and logs.min() > -30:  # scikit-learn clips what is smaller
        close(found.loss, sklearn.metrics.log_loss(labels, np.exp(logs), labels=every), 1e-6)
    close(found.mean_confidence_percent, 100 * np.exp(logs).max(axis=1).mean())
    matrix = sklearn.metrics.confusion_matrix(labels, predicted, labels=every)
    recall = sklearn.metrics.recall_score(labels, predicted, labels=every, average=None, zero_division=np.nan)
    close([np.nan if r is None else r for r in found.per_class_percent], 100 * recall)
    assert found.per_class_images == tuple(matrix.sum(axis=1).tolist())
    ours = np.diag(np.bincount(labels[judged.correct], minlength=classes))
    wrong = confusion_pairs(judged)
    for one in wrong:
        ours[one.true, one.predicted] = one.images
    np.testing.assert_array_equal(ours, matrix)
    assert [w.images for w in wrong] == sorted((w.images for w in wrong), reverse=True)
    assert found.confusions == wrong[:100]
    about = tuple(ClassInfo(f"n{label}", f"class {label}") for label in every)
    rows = class_accuracies(judged, np.arange(len(labels)), about)
    assert {row.label for row in rows} == set(labels.tolist())
    off = matrix - np.diag(np.diag(matrix))
    for row in rows:
        assert (row.right, row.images) == (matrix[row.label, row.label], matrix[row.label].sum())
        assert row.taken_images == off[row.label].max()
        assert (
            row.taken_for is None
            if not row.taken_images
            else off[row.label, row.taken_for] == row.taken_images
        )
    for other in confused_pairs(judged, np.arange(len(labels)), about, limit=None):
        assert (other.images, other.images_back) == (
            matrix[other.true, other.predicted],
            matrix[other.predicted, other.true],
        )


def by_hand(bins: tuple[ReliabilityBin, ...], confidence: np.ndarray, correct: np.ndarray) -> float:
    """The calibration error in percent, by counting what lies in each bin; and checks what the bins say."""
    total = 0.0
    for one in bins:
        inside = [
            i for i, sure in enumerate(confidence) if one.low < sure <= one.high or sure == one.low == 0
        ]
        assert one.images == len(inside)
        if not inside:
            assert one.confidence_percent is None
            assert one.accuracy_percent is None
            continue
        sure = math.fsum(confidence[i] for i in inside) / len(inside)
        right = sum(bool(correct[i]) for i in inside) / len(inside)
        close(one.confidence_percent, 100 * sure)
        close(one.accuracy_percent, 100 * right)
        total += len(inside) / len(confidence) * abs(sure - right)
    return 100 * total


def check_calibration(case: Case) -> None:
    logits, labels = case.logits, case.labels
    judged, found = judge(logits, labels), calibrated(case.logits, case.labels)
    close([one.low for one in found.reliability], np.arange(15) / 15)
    close([one.high for one in found.reliability], np.arange(1, 16) / 15)
    close(found.error_percent, by_hand(found.reliability, judged.confidence, judged.correct))
    adaptive = found.adaptive_reliability
    close(found.adaptive_error_percent, by_hand(adaptive, judged.confidence, judged.correct))
    assert sum(one.images for one in adaptive) == len(labels)
    if len(labels) >= 15 and len(np.unique(judged.confidence)) == len(labels):
        assert {one.images for one in adaptive} <= {len(labels) // 15, -(-len(labels) // 15)}
    probability = np.exp(log_probabilities(logits))
    if case.classes > 1:
        one_hot = np.eye(case.classes)[labels]
        each = [sklearn.metrics.brier_score_loss(one_hot[:, k], probability[:, k], pos_label=1)
                for k in range(case.classes)]  # fmt: skip
        close(found.brier, math.fsum(each))
    else:
        assert found.brier == 0
    close(found.loss, judged.loss.mean())
    close(found.top1_percent, 100 * (logits.argmax(axis=1) == labels).mean())

    # No temperature of a fine grid does better than the one that was fitted.
    wide = logits.astype(np.float64)

    def loss(temperature: float) -> float:
        return -float(log_probabilities(wide / temperature)[np.arange(len(labels)), labels].mean())

    fitted = fit_temperature(logits, labels)
    assert LOWEST_TEMPERATURE <= fitted <= HIGHEST_TEMPERATURE
    least = min(map(loss, np.geomspace(LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE, 121)))
    assert loss(fitted) <= least + 1e-6 * (1 + abs(least)), (fitted, loss(fitted), least)


def exact_mcnemar(first: int, second: int) -> Fraction:
    """The share of all 2^n ways in which n throws are at least as uneven."""
    n, fewer = first + second, min(first, second)
    as_uneven = sum(math.comb(n, k) for k in range(n + 1) if min(k, n - k) <= fewer)
    return Fraction(as_uneven, 2**n)


def check_pairs(case: Case) -> None:
    labels, rng, images = case.labels, case.rng, len(case.labels)
    first = judge(case.logits, labels)
    # The second errs on some of the same images.
    other = case.logits.astype(np.float64)
    swapped = rng.uniform(size=images) < rng.uniform()
    other[swapped] = other[swapped][:, rng.permutation(case.classes)]
    second = judge(other, labels)
    a, b = (logits.argmax(axis=1) for logits in (case.logits, other))
    rows = rng.permutation(1000)[:images]
    found = pairs.pair(first, second, rows)
    right_a, right_b = a == labels, b == labels
    close(found.difference_points, 100 * (right_b.sum() - right_a.sum()) / images)
    assert found.only_first == tuple(rows[right_a & ~right_b].tolist())
    assert found.only_second == tuple(rows[~right_a & right_b].tolist())
    close(found.mcnemar_p, float(exact_mcnemar(len(found.only_first), len(found.only_second))))
    for value, expected in (
        (found.same_answer_percent, a == b),
        (found.both_right_percent, right_a & right_b),
        (found.both_wrong_percent, ~right_a & ~right_b),
        (found.both_wrong_same_percent, ~right_a & ~right_b & (a == b)),
    ):
        close(value, 100 * np.count_nonzero(expected) / images)
    varies = 0 < right_a.sum() < images and 0 < right_b.sum() < images
    phi = sklearn.metrics.matthews_corrcoef(right_a, right_b) if varies else None
    close(found.error_correlation_images, phi)
    held = np.unique(labels)
    rates = [[Fraction(int((~right)[labels == k].sum()), int((labels == k).sum())) for k in held]
             for right in (right_a, right_b)]  # fmt: skip
    varies = all(len(set(rate)) > 1 for rate in rates)
    expected = scipy.stats.pearsonr(*(list(map(float, rate)) for rate in rates)).statistic if varies else None
    close(found.error_correlation_classes, expected, 1e-7)
    # Larger counts than images of a case give.
    one, two = (int(n) for n in rng.integers(0, 300, 2))
    close(pairs.mcnemar_p(one, two), float(exact_mcnemar(one, two)), 1e-9, 1e-300)
    value = float(rng.choice([0.1, 1 / 3, 0.7, 1e-9, 12345.678]))
    assert pairs.correlation(np.full(images, value), rng.normal(size=images)) is None


DRAWS_ERROR = 6 * math.sqrt(0.025 * 0.975 / 10_000)
"""Six standard errors of a share of 2.5% among 10,000 draws: once in a billion."""


def quantile(edge: float, distribution: Callable[[float], float], unit: float, tail: float) -> None:
    """`edge`, a multiple of `unit` or a value between two, cuts `tail` off the distribution function."""
    below = distribution(math.ceil(round(edge / unit, 6)) - 1) if tail < 0.5 else distribution(
        math.floor(round(edge / unit, 6)) - 1
    )  # fmt: skip
    up_to = distribution(math.ceil(round(edge / unit, 6)))
    assert below <= tail + DRAWS_ERROR, (edge, below, tail)
    assert up_to >= tail - DRAWS_ERROR, (edge, up_to, tail)


def check_intervals(case: Case) -> None:
    labels, rng, images = case.labels, case.rng, len(case.labels)
    judged = judge(case.logits, labels)
    found = scores(judged, seed=int(rng.integers(2**31)))
    for k, interval in ((1, found.top1_interval_percent), (5, found.top5_interval_percent)):
        share = float((judged.rank < k).mean())
        for edge, tail in zip(interval, (0.025, 0.975), strict=True):
            quantile(edge, scipy.stats.binom(images, share).cdf, 100 / images, tail)
    many, right = int(rng.integers(1, 20_000)), float(rng.uniform())
    low, high = bootstrap_interval_percent(round(right * many), many, seed=int(rng.integers(2**31)))
    for edge, tail in ((low, 0.025), (high, 0.975)):
        quantile(edge, scipy.stats.binom(many, round(right * many) / many).cdf, 100 / many, tail)
    # Of the paired difference: the sum of `images` draws of +1, 0 or -1.
    a, b = judged.correct, rng.permutation(judged.correct) ^ (rng.uniform(size=images) < 0.2)
    steps = b.astype(int) - a.astype(int)
    shares = [float((steps == value).mean()) for value in (-1, 0, 1)]
    sums = np.array([1.0])
    for _ in range(images):
        sums = np.convolve(sums, shares)  # probabilities of -images .. images
    total = np.cumsum(sums)
    for edge, tail in zip(
        pairs.paired_interval_points(b, a, seed=int(rng.integers(2**31))), (0.025, 0.975), strict=True
    ):
        at = lambda n: float(total[int(n) + images]) if n >= -images else 0.0  # noqa: E731
        quantile(edge, at, 100 / images, tail)
    # Of a mean of anything: the resampled means have the mean and variance that theory gives them.
    drawn = rng.exponential(size=images)
    means = intervals.resampled_means(drawn, draws=2000, seed=int(rng.integers(2**31)))
    error = drawn.std() / math.sqrt(images)
    assert abs(means.mean() - drawn.mean()) <= 6 * error / math.sqrt(2000) + 1e-12
    if images > 5:
        assert abs(means.std() / error - 1) < 0.2
    assert intervals.percentile_interval(means) == tuple(np.quantile(means, [0.025, 0.975]))
    # Over seeds.
    seeds = dict(enumerate(rng.normal(50, rng.uniform(0.01, 5), int(rng.integers(2, 8))).tolist()))
    values = list(seeds.values())
    over = spread(values)
    close((over.mean, over.deviation), (statistics.fmean(values), statistics.stdev(values)))
    close(
        (over.low, over.high),
        scipy.stats.t.interval(0.95, len(values) - 1, over.mean, scipy.stats.sem(values)),
    )
    reference = {seed: value + float(rng.normal()) for seed, value in seeds.items()}
    difference = over_seeds(seeds, reference)
    test = scipy.stats.ttest_rel(values, list(reference.values()))
    between = test.confidence_interval(0.95)
    assert difference is not None
    close((difference.low, difference.high), (between.low, between.high), 1e-7, 1e-7)
    assert difference.clear == (test.pvalue < 0.05)


def check_ensembles(case: Case) -> None:
    labels, rng, images, classes = case.labels, case.rng, len(case.labels), case.classes
    members = int(rng.integers(1, 6))
    logits = np.stack([case.logits.astype(np.float64)[:, rng.permutation(classes)] for _ in range(members)])
    logits[0] = case.logits
    order = tuple(rng.permutation(members).tolist())
    chosen = logits.argmax(axis=2)
    votes = ensemble.combine(logits, ensemble.stated("vote", members, order))
    for image in range(images):
        counted = Counter(chosen[:, image].tolist())
        most = max(counted.values())
        winner = next(chosen[m, image] for m in order if counted[chosen[m, image]] == most)
        assert votes[image].argmax() == winner
        close(votes[image], [counted[c] / members for c in range(classes)], 0, 1.1e-6)
    weights = rng.dirichlet(np.ones(members))
    weights[rng.uniform(size=members) < 0.2] = 0
    weights = weights / weights.sum() if weights.sum() else np.full(members, 1 / members)
    how = ensemble.Combination("probabilities", tuple(weights.tolist()), order)
    logs = log_probabilities(logits)
    with np.errstate(divide="ignore"):
        mean = scipy.special.logsumexp(logs, axis=0, b=weights[:, None, None])
    close(ensemble.combine(logits, how), mean, 1e-9, 1e-9)
    temperature = float(rng.uniform(0.2, 5))
    how = ensemble.Combination("logits", tuple(weights.tolist()), order, temperature)
    mixed = sum(w * member / temperature for w, member in zip(weights, logits, strict=True))
    gap = 1e-12 * float(np.abs(logits).max())  # other orders of adding up
    close(ensemble.combine(logits, how), log_probabilities(np.asarray(mixed)), 1e-9, 1e-9 + gap)
    wrong = chosen != labels
    rates = ensemble.class_error_rates(wrong.astype(float), labels)
    for member in range(members):
        recall = sklearn.metrics.recall_score(labels, chosen[member], labels=np.unique(labels), average=None)
        close(rates[member], 1 - recall)
    for table in (wrong.astype(float), rates):
        found = ensemble.pairwise_correlation(table)
        for i in range(members):
            for j in range(members):
                varies = len(np.unique(table[i].round(12))) > 1 and len(np.unique(table[j].round(12))) > 1
                expected = scipy.stats.pearsonr(table[i], table[j]).statistic if varies else np.nan
                close(found[i, j], expected, 1e-7, 1e-9)
    if case.kind in (EXTREME, EQUAL) or classes == 1:
        return
    # Weights that are fitted with a convex loss: at its minimum no slope leads further down.
    fitted = np.array(ensemble.fit_probabilities(logits, labels, order).weights)
    rows = np.arange(images)
    true = np.exp(logs[:, rows, labels])  # (M, N)
    if (fitted @ true).min() > 1e-9:
        slope = -(true / (fitted @ true)).mean(
            axis=1
        )  # of the loss, by weight; -1 in the mean at any weights
        assert slope.min() > -1 - 1e-3, slope
        close(slope[fitted > 1e-3], -1, 0, 2e-2)
    try:
        combination = ensemble.fit_logits(logits, labels, order)
    except TinlabError:
        return

    def loss(factors: np.ndarray) -> float:
        return -float(log_probabilities(np.tensordot(factors, logits, axes=1))[rows, labels].mean())

    factors = np.array(combination.weights) / combination.temperature
    reached = loss(factors)
    for _ in range(10):
        moved = np.clip(factors + rng.normal(scale=0.05, size=members), 0, ensemble.LARGEST_FACTOR)
        assert reached <= loss(moved) + 1e-4, (factors, moved)


def check_relations(case: Case) -> None:
    logits, labels, rng = case.logits.astype(np.float64), case.labels, case.rng
    images, classes = logits.shape
    judged, plain = judge(logits, labels), calibrated(logits, labels)
    first = scores(judged)
    numbers = ("images", "top1_percent", "top5_percent", "loss")
    ours = (
        "error_percent",
        "adaptive_error_percent",
        "brier",
        "loss",
        "mean_confidence_percent",
        "top1_percent",
    )

    def same(changed: np.ndarray, as_labels: np.ndarray, ranks: bool = True) -> None:
        found, other = scores(judge(changed, as_labels)), calibrated(changed, as_labels)
        for name in numbers[1:] if ranks else ("loss",):
            close(getattr(found, name), getattr(first, name))
        for name in ours if ranks else ("brier", "loss", "mean_confidence_percent"):
            close(getattr(other, name), getattr(plain, name))

    # Shuffled images.
    shuffled = rng.permutation(images)
    same(logits[shuffled], labels[shuffled])
    # Every image twice: the same rates, and intervals that shrink by the root of two.
    same(np.repeat(logits, 2, axis=0), np.repeat(labels, 2))
    twice = judge(np.repeat(logits, 2, axis=0), np.repeat(labels, 2))
    one, two = (intervals.resampled_means(of.loss, draws=2000).var() for of in (judged, twice))
    if images > 5 and judged.loss.std() > 1e-9 * (1 + judged.loss.max()):
        assert 0.4 < two / one < 0.63, (one, two)
    # Renamed classes; of equals the lower index goes first, so they must not be equal.
    names = rng.permutation(classes)
    renamed = np.empty_like(logits)
    renamed[:, names] = logits
    distinct = all(len(np.unique(row)) == classes for row in logits)
    same(renamed, names[labels], ranks=distinct)
    if distinct:
        other = judge(renamed, names[labels])
        np.testing.assert_array_equal(names[judged.predicted], other.predicted)
        before = {(names[p.true], names[p.predicted]): p.images for p in confusion_pairs(judged)}
        assert before == {(p.true, p.predicted): p.images for p in confusion_pairs(other)}
        recalls = measure(logits, labels).per_class_percent
        assert [measure(renamed, names[labels]).per_class_percent[names[k]] for k in range(classes)] == list(
            recalls
        )
    # A constant added to an image's logits; sums on the grid are exact, and so is all that follows.
    if case.kind in (GRID, TIED):
        moved = judge(logits + rng.integers(-1000, 1000, (images, 1)), labels)
        for name in ("rank", "predicted", "confidence", "loss"):
            np.testing.assert_array_equal(getattr(moved, name), getattr(judged, name))
    # The temperature goes with the scale of the logits, and leaves the answers.
    if case.kind in (PLAIN, GRID):
        fitted, scale = fit_temperature(logits, labels), 2.0 ** int(rng.integers(-1, 2))
        if 0.05 < fitted < 20:
            close(fit_temperature(scale * logits, labels) / scale, fitted, 2e-3)
        np.testing.assert_array_equal(judge(logits / fitted, labels).rank, judged.rank)
    # A network and itself.
    alike = pairs.pair(judged, judged, np.arange(images))
    assert (alike.difference_points, alike.difference_interval_points, alike.mcnemar_p) == (0, (0, 0), 1)
    assert (alike.same_answer_percent, alike.only_first, alike.only_second) == (100, (), ())
    close(alike.error_correlation_images, 1 if 0 < judged.correct.sum() < images else None)
    members = int(rng.integers(2, 5))
    several = np.stack([logits] * members)
    for pool in POOLS:
        combined = ensemble.combine(several, ensemble.stated(pool, members))
        # 0 and 1e-30 have the same probability in double precision: first, or beside the first by a rounding.
        chosen, best = combined[np.arange(images), judged.predicted], combined.max(axis=1)
        close(chosen, best, 1e-12, 1e-12)
        if pool != "vote" and case.kind != EXTREME:
            close(combined, log_probabilities(logits), 1e-9, 1e-9)
    # Members in another order are the same ensemble.
    members_logits = np.stack([logits, logits[:, ::-1], np.roll(logits, 1, axis=1)])
    turned = rng.permutation(3)
    for pool in POOLS[1:]:
        close(
            ensemble.combine(members_logits[turned], ensemble.stated(pool, 3)),
            ensemble.combine(members_logits, ensemble.stated(pool, 3)),
            1e-9,
            1e-9 + 1e-12 * float(np.abs(logits).max()),
        )


CHECKS: dict[str, tuple[Callable[[Case], None], tuple[str, ...]]] = {
    "metrics": (check_metrics, (PLAIN, TIED, EXTREME, EQUAL, SURE, NEAR, GRID)),
    "calibration": (check_calibration, (PLAIN, TIED, EXTREME, EQUAL, SURE, NEAR, GRID)),
    "pairs": (check_pairs, (PLAIN, TIED, SURE, GRID)),
    "intervals": (check_intervals, (PLAIN, TIED, SURE)),
    "ensembles": (check_ensembles, (PLAIN, TIED, EXTREME, EQUAL, SURE, GRID)),
    "relations": (check_relations, (PLAIN, TIED, EXTREME, SURE, NEAR, GRID)),
}


def tried(name: str, count: int, seed: int = 0) -> int:
    """Run a check on `count` drawn cases, and tell how many there were. Raises what the smallest one that
    fails does."""
    check, kinds = CHECKS[name]
    ran = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    @hypothesis.given(cases(kinds))
    def run(case: Case) -> None:
        nonlocal ran
        ran += 1
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # scikit-learn and SciPy speak of absent classes and constant values
            check(case)

    run()
    return ran


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=", ".join(CHECKS))
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if unknown := set(args.checks) - set(CHECKS):
        parser.error(f"there is no check {unknown.pop()}; there are {', '.join(CHECKS)}")
    failed = 0
    for name in args.checks or CHECKS:
        promise = next(p for p in PROMISES if p.id == f"numbers.{name}")
        began, count, wrong = time.perf_counter(), args.cases, 0
        try:
            count = tried(name, args.cases, args.seed)
        except Exception:
            traceback.print_exc()
            wrong = 1
        failed += wrong
        record(promise, count, "cases", wrong, time.perf_counter() - began, f"seed {args.seed}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
