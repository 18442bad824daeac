"""Several networks' logits made into one answer: pure functions on numpy arrays.

`logits` is (M, N, C): M members, N images, C classes; `labels` int64 (N,). A rule ends as a `Combination`, a
small value that `combine` carries out, whether it was stated (vote, means) or fitted. What is fitted is
fitted to the logits and labels that it is given; that those images are held out is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tinlab.errors import TinlabError
from tinlab.evaluation.pairs import paired_interval_points

Pool = Literal["vote", "probabilities", "logits"]
GREEDY_ROUNDS = 25
"""Picks of the greedy selections, so that a weight is a multiple of at least 1/25."""
LARGEST_FACTOR = 100.0
"""Bound on what a member's logits are multiplied with, which separable images would drive to infinity."""
ROWS_AT_ONCE = 1024
"""Images taken to float64 at once."""


@dataclass(frozen=True)
class Combination:
    """How the members' logits become one answer.

    `pool`: `vote`, the class that most members put first; `probabilities`, the weighted mean of the softmax
    probabilities; `logits`, the softmax of the weighted mean of the logits, divided by `temperature`.
    `weights` (M,) are not negative and sum to 1; a vote has equal ones. `order` names all M members, the one
    that decides ties foremost: among the classes with the most votes, the one that the foremost of their
    voters chose. With three members and three classes this is the tie-break of Shcherbina, "Tiny ImageNet
    Challenge", 2.2.5, if the best member stands foremost.
    """

    pool: Pool
    weights: tuple[float, ...]
    order: tuple[int, ...]
    temperature: float = 1.0


@dataclass(frozen=True)
class Rule:
    """A way to a `Combination`. `fit` is None where nothing is fitted, and otherwise takes logits (M, N, C),
    labels (N,) and the order of the members, and may raise TinlabError where there is nothing to be had."""

    summary: str
    pool: Pool
    fit: Callable[[np.ndarray, np.ndarray, tuple[int, ...]], Combination] | None = None


def stated(pool: Pool, members: int, order: Sequence[int] | None = None) -> Combination:
    """The combination with equal weights; `order` is by default that of the members."""
    return Combination(pool, (1 / members,) * members, tuple(order or range(members)))


def combine(logits: np.ndarray, how: Combination) -> np.ndarray:
    """Scores float64 (N, C), the best class highest.

    They are log-probabilities, but of a vote: shares of the votes, with at most 1e-6 on top that orders
    equal ones by the tie-break. Raises TinlabError where the number of members is another one.
    """
    members, count, classes = logits.shape
    if len(how.weights) != members or sorted(how.order) != list(range(members)):
        raise TinlabError(f"a combination of {len(how.weights)} members was given the logits of {members}")
    if how.pool == "vote":
        return _votes(logits.argmax(axis=2), how.order, classes)
    scores = np.empty((count, classes))
    weights = np.array(how.weights)
    kept = np.flatnonzero(weights)
    for start in range(0, count, ROWS_AT_ONCE):
        block = logits[kept, start : start + ROWS_AT_ONCE].astype(np.float64)  # (kept, B, C)
        rows = slice(start, start + block.shape[1])
        if how.pool == "logits":
            scores[rows] = log_softmax(np.tensordot(weights[kept], block, axes=1) / how.temperature)
        else:
            scores[rows] = np.logaddexp.reduce(log_softmax(block) + np.log(weights[kept])[:, None, None])
    return scores


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities float64 over the last axis."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _votes(chosen: np.ndarray, order: Sequence[int], classes: int) -> np.ndarray:
    """Scores (N, C) of the classes `chosen` (M, N)."""
    members, count = chosen.shape
    shares, bonus = np.zeros((count, classes)), np.zeros((count, classes))
    rows = np.arange(count)
    for place in reversed(range(members)):  # the foremost writes last
        votes = chosen[order[place]]
        shares[rows, votes] += 1 / members
        bonus[rows, votes] = 1e-6 * (members - place) / members
    return shares + bonus


def fit_probabilities(logits: np.ndarray, labels: np.ndarray, order: tuple[int, ...]) -> Combination:
    """Weights of the members' probabilities with the lowest mean cross-entropy.

    The loss is convex in the weights, so that the minimum found (SLSQP) is the only one.
    """
    from scipy.optimize import minimize

    true = _log_of_true(logits, labels)  # (M, N)
    scaled = np.exp(true - true.max(axis=0))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(weights @ scaled, 1e-300)  # (N,)
        return -float(np.log(mixed).mean()), -(scaled / mixed).mean(axis=1)

    members = len(logits)
    found = minimize(
        loss,
        np.full(members, 1 / members),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * members,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    return Combination("probabilities", _normalised(found.x), order)


def fit_logits(logits: np.ndarray, labels: np.ndarray, order: tuple[int, ...]) -> Combination:
    """Weights of the members' logits, and one temperature, with the lowest mean cross-entropy.

    What is sought is a factor a member, not negative: the weights are the factors' shares, and the
    temperature is 1 over their sum. The loss is convex in the factors (L-BFGS-B). Raises TinlabError where no
    factors do better than to take all classes as equally likely.
    """
    from scipy.optimize import minimize

    members, count, _ = logits.shape
    of_true = np.take_along_axis(logits, labels[None, :, None], axis=2)[..., 0].astype(np.float64)  # (M, N)

    def loss(factors: np.ndarray) -> tuple[float, np.ndarray]:
        total, slope = 0.0, np.zeros(members)
        for start in range(0, count, ROWS_AT_ONCE):
            block = logits[:, start : start + ROWS_AT_ONCE].astype(np.float64)  # (M, B, C)
            log_p = log_softmax(np.tensordot(factors, block, axes=1))  # (B, C)
            rows = slice(start, start + len(log_p))
            total -= log_p[np.arange(len(log_p)), labels[rows]].sum()
            slope += np.tensordot(block, np.exp(log_p), axes=2) - of_true[:, rows].sum(axis=1)
        return total / count, slope / count

    found = minimize(
        loss,
        np.full(members, 1 / members),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, LARGEST_FACTOR)] * members,
        options={"ftol": 1e-12, "gtol": 1e-7, "maxiter": 500},
    )
    total = float(found.x.sum())
    if total < 1e-6:
        raise TinlabError("no weights of these logits do better than to call all classes equally likely")
    return Combination("logits", _normalised(found.x), order, temperature=1 / total)


def select_by_loss(logits: np.ndarray, labels: np.ndarray, order: tuple[int, ...]) -> Combination:
    """`greedy` by the mean cross-entropy of the mean probabilities."""
    true = np.exp(_log_of_true(logits, labels))  # (M, N)

    def judge(member: int, so_far: np.ndarray, picks: int) -> tuple[float, ...]:
        summed = so_far + true[member]
        return (float(np.log(np.maximum(summed / picks, 1e-300)).mean()),)

    return greedy(true, judge, order)


def select_by_top1(logits: np.ndarray, labels: np.ndarray, order: tuple[int, ...]) -> Combination:
    """`greedy` by the top-1 of the mean probabilities; equal ones by their cross-entropy."""
    probabilities = np.exp(log_softmax(logits)).astype(np.float32)  # (M, N, C)
    rows = np.arange(len(labels))

    def judge(member: int, so_far: np.ndarray, picks: int) -> tuple[float, ...]:
        summed = so_far + probabilities[member]
        loss = np.log(np.maximum(summed[rows, labels] / picks, 1e-30)).mean()
        return float((summed.argmax(axis=1) == labels).mean()), float(loss)

    return greedy(probabilities, judge, order)


def greedy(
    parts: np.ndarray,
    judge: Callable[[int, np.ndarray, int], tuple[float, ...]],
    order: tuple[int, ...],
    rounds: int = GREEDY_ROUNDS,
) -> Combination:
    """Forward selection with replacement (Caruana et al. 2004, "Ensemble Selection from Libraries of
    Models").

    Each round adds the member, which may have been added before, that makes the mean best; kept are the picks
    up to the best round, and a member's weight is its share of them. `parts` (M, …) are what is summed;
    `judge(member, sum so far, picks)` says how good the sum with the member is, more being better.
    """
    so_far = np.zeros_like(parts[0])
    picked: list[int] = []
    best: tuple[tuple[float, ...], int] | None = None
    for picks in range(1, rounds + 1):
        scores = {member: judge(member, so_far, picks) for member in order}
        member = max(scores, key=lambda m: scores[m])  # the foremost of equals
        so_far = so_far + parts[member]
        picked.append(member)
        if best is None or scores[member] > best[0]:
            best = scores[member], picks
    assert best is not None
    counts = np.bincount(picked[: best[1]], minlength=len(parts))
    return Combination("probabilities", _normalised(counts), order)


def _log_of_true(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each member's log-probability of the true class, float64 (M, N)."""
    rows = np.arange(len(labels))
    return np.stack([log_softmax(member)[rows, labels] for member in logits])


def _normalised(weights: np.ndarray) -> tuple[float, ...]:
    """Weights that sum to 1, those below one in a million taken as 0."""
    weights = np.asarray(weights, np.float64)
    weights = np.where(weights < 1e-6 * weights.sum(), 0, weights)
    return tuple((weights / weights.sum()).tolist())


RULES: dict[str, Rule] = {
    "vote": Rule("majority vote", "vote"),
    "probabilities": Rule("mean of the probabilities", "probabilities"),
    "logits": Rule("mean of the logits", "logits"),
    "weighted_probabilities": Rule(
        "weights of the probabilities with the lowest loss", "probabilities", fit_probabilities
    ),
    "weighted_logits": Rule("weights of the logits, and a temperature, likewise", "logits", fit_logits),
    "greedy_loss": Rule(
        "greedy selection by loss, mean of the probabilities", "probabilities", select_by_loss
    ),
    "greedy_top1": Rule("greedy selection by top-1, likewise", "probabilities", select_by_top1),
}


def pairwise_correlation(values: np.ndarray) -> np.ndarray:
    """Pearson's correlation (M, M) of the rows of `values` (M, N); NaN where a row is constant."""
    centred = values - values.mean(axis=1, keepdims=True)
    # The mean of equal values may be a rounding away from them.
    length = np.where(np.ptp(values, axis=1) > 0, np.sqrt((centred**2).sum(axis=1)), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = centred @ centred.T / np.outer(length, length)
    return np.clip(found, -1, 1)


def class_error_rates(wrong: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Error rate of each member on each class that has images, (M, classes with images); `wrong` (M, N)."""
    images = np.bincount(labels)
    there = images > 0
    return np.stack([np.bincount(labels, weights=row)[there] / images[there] for row in wrong])


def gain_interval(correct: np.ndarray, reference: np.ndarray, *, seed: int = 0) -> tuple[float, float, float]:
    """Top-1 of `correct` minus that of `reference`, bool (N,) on the same images, in percentage points, and
    its 95% interval, as `pairs.paired_interval_points` gives it."""
    gain = 100 * float((correct.astype(int) - reference.astype(int)).mean())
    return gain, *paired_interval_points(correct, reference, seed=seed)
