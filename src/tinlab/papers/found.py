"""What results.csv has of a recipe: its lines at full length, and at each fraction of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinlab.recipe import Recipe
from tinlab.recipes import BUDGET, shortened
from tinlab.results import of_tiny_imagenet
from tinlab.study.comparison import Spread, over_seeds, spread
from tinlab.study.studies import WITH

Line = Mapping[str, str]
"""A row of results.csv."""


@dataclass(frozen=True)
class Found:
    """The lines of one recipe at one length, one a seed, the newest of each; `budget` says which share of the
    recipe's length that was, or is empty for all of it, and `share` is that share."""

    budget: str
    lines: tuple[Line, ...]
    share: float = 1.0

    def values(self, column: str = "top1_percent") -> dict[int, float]:
        """Seed -> the value of a column."""
        return {int(line["seed"]): float(line[column]) for line in self.lines}

    def mean(self, column: str = "top1_percent") -> float:
        """The mean of a column over the seeds."""
        return sum(self.values(column).values()) / len(self.lines)

    @property
    def spread(self) -> Spread:
        """Top-1 in percent over the seeds."""
        return spread(list(self.values().values()))

    @property
    def interval(self) -> tuple[float, float]:
        """95% bounds of top-1 in percent: over the images for one seed, and over the seeds for more."""
        found = self.spread
        if found.low is not None and found.high is not None:
            return found.low, found.high
        (line,) = self.lines
        return float(line["top1_low_percent"]), float(line["top1_high_percent"])


def found_of(recipe: Recipe, lines: Sequence[Line]) -> list[Found]:
    """What `lines` have of `recipe` on Tiny ImageNet's val: at its full length, and at each fraction of it,
    the longest first."""
    found = []
    lines = [line for line in lines if line["split"] == "val" and of_tiny_imagenet(line)]
    digest = recipe.digest
    full = [line for line in lines if line["recipe_digest"] == digest]
    if full:
        found.append(Found("", _newest(full)))
    shorter: dict[float, list[Line]] = {}
    digests: dict[float, str] = {}
    for line in lines:
        named = BUDGET.search(line["recipe"])
        if named is None or line["recipe_digest"] == digest:
            continue
        if not recipe.name.startswith(line["recipe"][: named.start()]):
            continue
        share = float(named[1])
        if share not in digests:
            digests[share] = shortened(recipe, share).digest
        if digests[share] == line["recipe_digest"]:
            shorter.setdefault(share, []).append(line)
    for share in sorted(shorter, reverse=True):
        group = _newest(shorter[share])
        found.append(Found(group[-1]["budget"], group, share))
    return found


def of_the_rest(lines: Sequence[Line], known: set[str]) -> list[Found]:
    """The recipes in results.csv that no row stands for, in the file's order."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        if line["recipe_digest"] not in known and line["split"] == "val" and of_tiny_imagenet(line):
            groups.setdefault(line["recipe_digest"], []).append(line)
    return [Found(group[0]["budget"], _newest(group)) for group in groups.values()]


def _newest(lines: Sequence[Line]) -> tuple[Line, ...]:
    """One line a seed: a study may train again what a row of its own has trained."""
    of_seed: dict[int, Line] = {}
    for line in sorted(lines, key=lambda one: one["finished_at"]):
        of_seed[int(line["seed"])] = line
    return tuple(of_seed[seed] for seed in sorted(of_seed))


@dataclass(frozen=True)
class Gain:
    """How far one recipe's top-1 is above another's, in percentage points, with 95% bounds."""

    mean: float
    low: float
    high: float
    over: str
    """`seeds` or `images`: what the interval is over."""

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def gain(one: Found, other: Found) -> Gain:
    """How far the top-1 of `one` is above that of `other`.

    The interval is over the seeds that both have where these are two or more: seed by seed, Student's t.
    Otherwise it is over the images, as if both had been measured on different ones, which makes it too wide
    rather than too narrow: networks err on the same images.
    """
    found = over_seeds(one.values(), other.values())
    if found is not None:
        return Gain(found.mean, found.low, found.high, "seeds")
    mean = one.mean() - other.mean()
    reach = sum(_half_width(side) ** 2 for side in (one, other)) ** 0.5
    # To two digits, as the bounds are that it is made of; and no -0.00.
    low, high = (round(end, 2) + 0.0 for end in (mean - reach, mean + reach))
    return Gain(mean, low, high, "images")


def _half_width(found: Found) -> float:
    """Of the 95% interval over the images, the mean over the seeds."""
    widths = [float(line["top1_high_percent"]) - float(line["top1_low_percent"]) for line in found.lines]
    return sum(widths) / len(widths) / 2


def longest(recipe: Recipe, lines: Sequence[Line]) -> Found | None:
    """What there is of `recipe` at the largest share of its length; None where it was not measured."""
    return next(iter(found_of(recipe, lines)), None)


def words(recipe: Recipe) -> str:
    """What sets a recipe of a study apart from the others: `elu, lsuv`, `peak_lr=0.1`, or its remedy."""
    text = recipe.summary.partition(WITH)[2] or recipe.summary
    if "=" not in text:
        return text
    text = re.sub(r'\{"kind": "(\w+)", "(\w+)": ([^}]+)\}', r"\1 of \2 \3", text)
    parts = []
    for part in text.split(", "):
        path, _, value = part.partition("=")
        parts.append(value if value[:1].isalpha() else f"{path.rpartition('.')[2]}={value}")
    return ", ".join(parts)
