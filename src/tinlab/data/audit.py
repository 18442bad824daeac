"""What is wrong with a pack's images and labels: duplicates, conflicting labels, leaks, odd images.

A group of duplicates has a place, the files that its images lie in: `train` (duplicates inside train), `train
& val` (a leak from one into the other), and so on. `tune` is held out of train and lies in its file, so it
counts as train there; `Group.crosses_tune` tells the groups with images in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinlab.data.pack import UNLABELLED, Pack, Split

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of its steps are done, and how many there are."""

_CHUNK = 2048  # images read at once: 25 MB of 64x64


@dataclass(frozen=True)
class Member:
    """One image of a group. `label` is the class's number, -1 where none was published."""

    split: str
    file: str
    row: int
    name: str
    label: int


@dataclass(frozen=True)
class Group:
    """Images that are the same. `score` is 1 for identical pixels, else the lowest correlation of details
    among the pairs that joined the group (see tinlab.data.similar); `mirrored` tells whether one of these
    pairs was mirrored."""

    members: tuple[Member, ...]
    score: float = 1.0
    mirrored: bool = False

    @property
    def place(self) -> str:
        """The files that hold the images, in the pack's order: `train`, `train & val`, ..."""
        return " & ".join(dict.fromkeys(member.file for member in self.members))

    @property
    def leak(self) -> bool:
        """Whether two files hold the image."""
        return len({member.file for member in self.members}) > 1

    @property
    def conflicting(self) -> bool:
        """Whether the images have two or more labels; a missing label conflicts with none."""
        return len({member.label for member in self.members} - {UNLABELLED}) > 1

    @property
    def crosses_tune(self) -> bool:
        """Whether the image is in both train and tune."""
        return {"train", "tune"} <= {member.split for member in self.members}


@dataclass(frozen=True)
class SplitAudit:
    """One split.

    `greyscale` counts images whose red, green and blue are equal in every pixel: those of one component in
    their JPEG, and grey ones stored as RGB. `one_colour` and `label_out_of_range` hold names of images.
    `class_median` is the median number of images over the classes that have any; `undersized` gives, for the
    id of each class that has fewer than half of it but some, how many it has; `missing` are the ids of
    classes that have none. A split without labels has a median of 0 and no undersized or missing classes.
    """

    images: int
    unlabelled: int
    greyscale: int
    one_colour: tuple[str, ...]
    label_out_of_range: tuple[str, ...]
    class_median: float
    undersized: dict[str, int]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """What `audit` found in a pack; `classes` are pairs of id and words.

    `near` is None where it was not asked for; `near_bar` is the likeness that a pair needed to be looked at
    closely: above tinlab.data.similar.CANDIDATE_BAR where too many pairs were alike.
    """

    pack: str
    classes: tuple[tuple[str, str], ...]
    splits: dict[str, SplitAudit]
    identical: tuple[Group, ...]
    near: tuple[Group, ...] | None
    near_bar: float | None

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values; groups carry their place, leak, conflicting and crosses_tune."""
        return {
            "pack": self.pack,
            "verdict": self.verdict(),
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "identical": [self._group_json(group) for group in self.identical],
            "near": None if self.near is None else [self._group_json(group) for group in self.near],
            "near_bar": self.near_bar,
        }

    def verdict(self) -> str:
        """The most important finding in one sentence."""
        parts = [_count_of_groups(self.identical, "identical")]
        if self.near is not None:
            parts.append(_count_of_groups(self.near, "nearly identical"))
        wrong = sum(len(split.label_out_of_range) for split in self.splits.values())
        blank = sum(len(split.one_colour) for split in self.splits.values())
        small = sum(len(split.undersized) + len(split.missing) for split in self.splits.values())
        for count, what in (
            (wrong, "labels out of range"),
            (blank, "images of one colour"),
            (small, "undersized or missing classes"),
        ):
            if count:
                parts.append(f"{count} {what}")
        return "; ".join(parts)

    def lines(self, first: int = 5) -> list[str]:
        """For a person: the verdict, what and how many, and the `first` groups of each kind (0: none)."""
        text = [self.verdict(), ""]
        columns = (
            "split",
            "images",
            "unlabelled",
            "greyscale",
            "one colour",
            "bad label",
            "undersized",
            "missing",
        )
        rows = [
            (name, s.images, s.unlabelled, s.greyscale, len(s.one_colour), len(s.label_out_of_range),
             len(s.undersized), len(s.missing))
            for name, s in self.splits.items()
        ]  # fmt: skip
        text += _table(columns, rows)
        kinds = [("identical", self.identical), ("nearly identical", self.near or ())]
        rows_of_groups = []
        for kind, groups in kinds:
            for place in dict.fromkeys(group.place for group in groups):
                here = [group for group in groups if group.place == place]
                rows_of_groups.append(
                    (
                        kind,
                        place,
                        len(here),
                        sum(group.conflicting for group in here),
                        sum(group.crosses_tune for group in here),
                    )
                )
        if rows_of_groups:
            text += ["", *_table(("groups", "in", "count", "two labels", "train & tune"), rows_of_groups)]
        for kind, groups in kinds:
            if not groups or first < 1:
                continue
            shown = groups[:first]
            text += ["", f"{kind}, {f'the first {first} of ' if len(groups) > first else ''}{len(groups)}:"]
            text += [f"  {self._describe(group)}" for group in shown]
        for name, split in self.splits.items():
            for what, names in (
                ("images of one colour", split.one_colour),
                ("labels out of range", split.label_out_of_range),
                ("undersized classes", tuple(f"{k} ({n})" for k, n in split.undersized.items())),
                ("missing classes", split.missing),
            ):
                if names and first > 0:
                    more = f" and {len(names) - first} more" if len(names) > first else ""
                    text += ["", f"{name}, {what}: {', '.join(names[:first])}{more}"]
        return text

    def _describe(self, group: Group) -> str:
        members = [f"{m.name} [{m.split}: {self._words(m.label)}]" for m in group.members]
        marks = [f"{group.score:.2f}"] if group.score < 1 else []
        marks += [
            mark
            for mark, holds in (
                ("mirrored", group.mirrored),
                ("two labels", group.conflicting),
                ("leak", group.leak),
            )
            if holds
        ]
        return " = ".join(members) + (f"  ({', '.join(marks)})" if marks else "")

    def _words(self, label: int) -> str:
        if label == UNLABELLED:
            return "no label"
        if not 0 <= label < len(self.classes):
            return f"label {label}"
        identifier, words = self.classes[label]
        return words.split(",")[0] or identifier

    def _group_json(self, group: Group) -> dict[str, Any]:
        return {
            "place": group.place,
            "leak": group.leak,
            "conflicting": group.conflicting,
            "crosses_tune": group.crosses_tune,
            "score": round(group.score, 4),
            "mirrored": group.mirrored,
            "members": [{**asdict(member), "class": self._words(member.label)} for member in group.members],
        }


def audit(pack: Pack, *, near_duplicates: bool = True, progress: Progress | None = None) -> Audit:
    """Look at every image and label of `pack`. Raises TinlabError where the pack is damaged.

    Reads in chunks. Measured on Tiny ImageNet (120,000 images) on two cores: 3 s and 0.1 GB of memory without
    the search for nearly identical images (`near_duplicates`), 22 s and 0.8 GB with it (49 s while others
    used the cores too); its time grows with the square of the number of images. tinlab.data.similar says what
    counts as nearly identical, and how that was chosen.
    """
    from tinlab.data.similar import shrink

    splits = [pack.split(name, any_label=True) for name in pack.splits]
    total = sum(len(split) for split in splits)
    digests: dict[bytes, list[int]] = {}
    smalls: list[np.ndarray] = []
    audits: dict[str, SplitAudit] = {}
    done = 0
    for split in splits:
        greyscale, blank = 0, []
        for start in range(0, len(split), _CHUNK):
            images = np.ascontiguousarray(split.images[start : start + _CHUNK])  # (n, size, size, 3)
            for offset, digest in enumerate(_digests(images)):
                digests.setdefault(digest, []).append(done + offset)
            red, green, blue = np.moveaxis(images, 3, 0)
            greyscale += int(((red == green) & (green == blue)).all((1, 2)).sum())
            blank += (start + np.flatnonzero((images == images[:, :1, :1]).all((1, 2, 3)))).tolist()
            if near_duplicates:
                smalls.append(shrink(images))
            done += len(images)
            if progress is not None:
                progress("reading", done, total)
        audits[split.name] = _audit_split(pack, split, greyscale, blank)
    sets = [indices for indices in digests.values() if len(indices) > 1]
    near: tuple[Group, ...] | None = None
    bar = None
    if near_duplicates:
        near, bar = _near(splits, list(digests.values()), smalls, progress)
    return Audit(
        pack=pack.info.name,
        classes=tuple((c.id, c.words) for c in pack.info.classes),
        splits=audits,
        identical=_sorted(Group(_members(splits, indices)) for indices in sets),
        near=near,
        near_bar=bar,
    )


def _digests(images: np.ndarray) -> Iterable[bytes]:
    import xxhash

    return (xxhash.xxh3_128_digest(image) for image in images)


def _audit_split(pack: Pack, split: Split, greyscale: int, blank: list[int]) -> SplitAudit:
    classes = pack.info.classes
    labelled = split.labels != UNLABELLED
    good = (split.labels >= 0) & (split.labels < len(classes))
    counts = np.bincount(split.labels[good], minlength=len(classes))
    present = counts[counts > 0]
    median = float(np.median(present)) if len(present) else 0.0
    bad = np.flatnonzero(labelled & ~good).tolist()
    return SplitAudit(
        images=len(split),
        unlabelled=int((~labelled).sum()),
        greyscale=greyscale,
        one_colour=tuple(split.names[row] for row in blank),
        label_out_of_range=tuple(split.names[row] for row in bad),
        class_median=median,
        undersized={classes[c].id: int(n) for c, n in enumerate(counts) if 0 < n < median / 2},
        missing=tuple(classes[c].id for c, n in enumerate(counts) if n == 0) if len(present) else (),
    )


def _near(
    splits: list[Split], sets: list[list[int]], smalls: list[np.ndarray], progress: Progress | None
) -> tuple[tuple[Group, ...], float]:
    """Groups of at least two different images; `sets` has the indices of each different image's copies."""
    from tinlab.data.similar import similar_pairs

    firsts = np.array([indices[0] for indices in sets], np.int64)
    small = np.concatenate(smalls)[firsts] if smalls else np.empty((0, 32, 32), np.uint8)

    def fetch(indices: np.ndarray) -> np.ndarray:
        return np.stack([splits[s].images[row] for s, row in (_at(splits, firsts[i]) for i in indices)])

    pairs = similar_pairs(
        small, fetch, None if progress is None else lambda done, of: progress("comparing", done, of)
    )
    parent = list(range(len(sets)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    joins = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    for first, second in joins:
        parent[root(second)] = root(first)
    indices: dict[int, list[int]] = {}
    scores: dict[int, float] = {}
    mirrored: dict[int, bool] = {}
    for index in sorted({index for join in joins for index in join}):
        indices.setdefault(root(index), []).extend(sets[index])
    for (first, _), score, turned in zip(joins, pairs.score, pairs.mirrored, strict=True):
        key = root(first)
        scores[key] = min(scores.get(key, 1.0), float(score))
        mirrored[key] = mirrored.get(key, False) or bool(turned)
    groups = (Group(_members(splits, rows), scores[key], mirrored[key]) for key, rows in indices.items())
    return _sorted(groups), pairs.candidate_bar


def _sorted(groups: Iterable[Group]) -> tuple[Group, ...]:
    """Leaks first, then conflicting labels, then by place and name."""
    return tuple(sorted(groups, key=lambda g: (not g.leak, not g.conflicting, g.place, g.members[0].name)))


def _members(splits: list[Split], indices: list[int]) -> tuple[Member, ...]:
    members = []
    for index in sorted(indices):
        which, row = _at(splits, index)
        split = splits[which]
        members.append(Member(split.name, split.file, row, split.names[row], int(split.labels[row])))
    return tuple(members)


def _at(splits: list[Split], index: int) -> tuple[int, int]:
    """Which split, and which of its rows, holds image `index` of all splits one after the other."""
    for which, split in enumerate(splits):
        if index < len(split):
            return which, int(index)
        index -= len(split)
    raise IndexError(index)


def _count_of_groups(groups: tuple[Group, ...], what: str) -> str:
    if not groups:
        return f"no {what} images"
    conflicting, leaks = sum(g.conflicting for g in groups), sum(g.leak for g in groups)
    plural = "s" if len(groups) > 1 else ""
    return (
        f"{len(groups)} group{plural} of {what} images, {conflicting} with conflicting labels, "
        f"{leaks} leaking between splits"
    )


def _table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    """Aligned columns: words to the left, numbers to the right."""
    cells = [columns, *(tuple(f"{v:,}" if isinstance(v, int) else str(v) for v in row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    right = [bool(rows) and isinstance(rows[0][i], int) for i in range(len(columns))]
    return [
        "  ".join(
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
