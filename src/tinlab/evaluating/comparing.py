"""Two or more runs on the same images: which is better, and do they err alike?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinlab import runs
from tinlab.data.pack import ClassInfo, Pack
from tinlab.data.words import short_names
from tinlab.errors import TinlabError
from tinlab.evaluating.evaluation import notes
from tinlab.evaluating.saved import predictions_of
from tinlab.evaluation.metrics import Judged, judge
from tinlab.evaluation.pairs import Pair, pair
from tinlab.evaluation.scores import Scores, scores
from tinlab.runs import Run

if TYPE_CHECKING:
    from PIL import Image

Watch = Callable[[str, int, int], None]
"""Told which run is being predicted, images done, and images in all."""


@dataclass(frozen=True)
class Member:
    """One of the compared runs. `letter` stands for it in tables and pictures; `name` is the run folder's
    name, or its path where two have the same name."""

    letter: str
    name: str
    run: str
    recipe: str
    seed: int
    scores: Scores
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "letter": self.letter,
            "name": self.name,
            "run": self.run,
            "recipe": self.recipe,
            "seed": self.seed,
            **self.scores.to_json(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Comparison:
    """Runs on the same images of one split: `members` in the order given, and every pair of them, each with
    the places of its first and its second member."""

    split: str
    pack_digest: str
    images: int
    members: tuple[Member, ...]
    pairs: tuple[tuple[int, int, Pair], ...]
    classes: tuple[ClassInfo, ...]
    judged: tuple[Judged, ...]
    indices: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """JSON values: `runs`, and `pairs` with the rows that only one of two gets right."""
        return {
            "split": self.split,
            "pack_digest": self.pack_digest,
            "images": self.images,
            "runs": [member.to_json() for member in self.members],
            "pairs": [
                {"first": self.members[a].name, "second": self.members[b].name, **found.to_json()}
                for a, b, found in self.pairs
            ],
        }


def compare(
    paths: Sequence[str | Path],
    *,
    split: str = "val",
    pack: Pack | None = None,
    device: str = "auto",
    watch: Watch | None = None,
) -> Comparison:
    """Compare the runs in folders `paths`, two or more, on a labelled split.

    `pack` is by default the one that they were all trained on. Raises TinlabError for fewer than two, the
    same run twice, runs of different packs or classes, and as `predictions_of` does.
    """
    if len(paths) < 2:
        raise TinlabError(f"there is {len(paths)} run to compare; give two or more")
    opened = [runs.open_run(path) for path in paths]
    _refuse_twice(opened)
    for run in opened[1:]:
        _same_ground(opened[0], run, pack)
    names = _names(opened)
    judged: list[Judged] = []
    first = None
    for run, name in zip(opened, names, strict=True):
        progress = None if watch is None else partial(watch, name)
        found = predictions_of(run.path, split=split, pack=pack, device=device, progress=progress)
        if (found.labels < 0).any():
            raise TinlabError(
                f"the labels of '{split}' were never published, so nothing can be compared on it"
            )
        if first is None:
            first = found
        elif not (
            np.array_equal(found.indices, first.indices) and np.array_equal(found.labels, first.labels)
        ):
            raise TinlabError(
                f"{run.path} and {opened[0].path} have predictions of different images of {split}; "
                "remove their predictions folders and compare again"
            )
        judged.append(judge(found.logits, found.labels))
    assert first is not None
    return Comparison(
        split=split,
        pack_digest=first.about["pack_digest"],
        images=len(first.labels),
        members=tuple(
            Member(
                letter=letter(place),
                name=name,
                run=str(run.path),
                recipe=run.recipe.name,
                seed=run.seed,
                scores=scores(of),
                notes=notes(run, split, pack),
            )
            for place, (run, name, of) in enumerate(zip(opened, names, judged, strict=True))
        ),
        pairs=tuple(
            (a, b, pair(judged[a], judged[b], first.indices)) for a, b in combinations(range(len(opened)), 2)
        ),
        classes=opened[0].classes,
        judged=tuple(judged),
        indices=first.indices,
    )


def disagreements(comparison: Comparison, pack: Pack, *, each: int = 8, scale: int = 2) -> Image.Image:
    """A picture of images that only one of two runs gets right: a row for either side of each pair.

    Beneath each image stand its class, which one run found, and what the other took it for. The images are
    spread evenly over all there are. Raises TinlabError where `pack` is not the one that was measured, or is
    damaged, or there is no such image.
    """
    from tinlab.data.grid import grid

    if pack.digest != comparison.pack_digest:
        raise TinlabError(f"{pack.path} is not the pack that the runs were compared on")
    split = pack.split(comparison.split)
    split.verify_once()
    images = split.images
    place = {int(index): row for row, index in enumerate(comparison.indices)}
    words = short_names(comparison.classes)
    tiles, captions = [], []
    blank = np.full_like(images[0], 255)
    for a, b, found in comparison.pairs:
        for rows, wrong, right in ((found.only_first, b, a), (found.only_second, a, b)):
            if not rows:
                continue
            chosen = [
                rows[i] for i in np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int)
            ]
            finder, other = comparison.members[right].letter, comparison.members[wrong].letter
            for index in chosen:
                row = place[index]
                true = words[comparison.judged[right].labels[row]]
                taken = words[comparison.judged[wrong].predicted[row]]
                tiles.append(np.asarray(images[index]))
                captions.append(f"{finder}: {true}; {other}: {taken}")
            tiles += [blank] * (each - len(chosen))
            captions += [""] * (each - len(chosen))
    if not tiles:
        raise TinlabError("the runs are right on the very same images, so there is nothing to picture")
    names = " · ".join(f"{member.letter} {member.name}" for member in comparison.members)
    title = f"{comparison.split}, right by only one of two · {names}"
    return grid(np.stack(tiles), captions, columns=each, scale=scale, title=title, caption_lines=5)


def letter(place: int) -> str:
    """What stands for the run in this place: A, B, …, Z, A2, B2, …"""
    turn, letter = divmod(place, 26)
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[letter] + (str(turn + 1) if turn else "")


def _refuse_twice(opened: Sequence[Run]) -> None:
    seen: set[Path] = set()
    for run in opened:
        if run.path.resolve() in seen:
            raise TinlabError(f"{run.path} is named twice; give different runs")
        seen.add(run.path.resolve())


def _same_ground(first: Run, other: Run, pack: Pack | None) -> None:
    if pack is None and other.pack_digest != first.pack_digest:
        raise TinlabError(
            f"{other.path} was trained on another pack than {first.path} ({other.pack_digest[:12]}, not "
            f"{first.pack_digest[:12]}); name one with --data to measure both on it"
        )
    if [c.id for c in other.classes] != [c.id for c in first.classes]:
        raise TinlabError(f"{other.path} has other classes than {first.path}, so they cannot be compared")


def _names(opened: Sequence[Run]) -> list[str]:
    short = [run.path.resolve().name for run in opened]
    return [
        name if short.count(name) == 1 else str(run.path) for name, run in zip(short, opened, strict=True)
    ]
