"""Two ways of laying out a data set in files: the official one, and class folders.

Each is a function of the names of the files, so that it serves folders and zips alike.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinlab.data.decode import is_image_name
from tinlab.data.names import Names
from tinlab.data.pack import UNLABELLED, ClassInfo
from tinlab.errors import TinlabError

MOST_WNIDS_CHARACTERS = 2_000_000
"""All of WordNet's nouns have fewer."""
VALIDATION_NAMES = ("val", "validation", "valid")


@dataclass(frozen=True)
class Samples:
    """Some rows of a source: `rows` int64 (N,), and `labels` int64 (N,), -1 where there is none."""

    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def by_class(rows: Sequence[np.ndarray], labels: Sequence[int]) -> Samples:
        """One class after the other: the rows of each, and its label."""
        counts = [len(some) for some in rows]
        every = np.concatenate(rows) if rows else np.empty(0, np.int64)
        return Samples(every, np.repeat(np.array(labels, np.int64), counts))


@dataclass(frozen=True)
class Layout:
    """What a layout found: `others` int64 (M,) are rows that count as content without being images."""

    classes: tuple[ClassInfo, ...]
    splits: dict[str, Samples]
    others: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    notes: tuple[str, ...] = ()


def official(path: Path, names: Names, read_text: Callable[[int], str]) -> Layout:
    """The official layout: classes in the order of wnids.txt, images in the order of their paths.

    `val` is labelled by val/val_annotations.txt, through the names of the classes, or, where somebody has
    sorted its images into class folders, by those. Raises TinlabError, which begins with `path`.
    """
    if names.repeated() is not None:
        raise TinlabError(f"{path} holds two data sets, one inside the other; take one of them out")
    # Of the lists and of val alone, whose labels are stated by name.
    row_of = {n: row for row, n in enumerate(names) if "/" not in n or n.startswith("val/")}
    listed = read_text(row_of["wnids.txt"])
    if len(listed) > MOST_WNIDS_CHARACTERS:
        raise TinlabError(
            f"{path}: wnids.txt has {len(listed):,} characters; it must list the classes, one a line"
        )
    wnids = listed.split()
    if not wnids:
        raise TinlabError(f"{path}: wnids.txt is empty; it must list the classes, one a line")
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    if len(label_of) < len(wnids):
        twice = next(wnid for row, wnid in enumerate(wnids) if label_of[wnid] != row)
        raise TinlabError(f"{path}: wnids.txt lists {twice} twice; remove one of the lines")
    words = _words(read_text(row_of["words.txt"]), label_of) if "words.txt" in row_of else {}

    train = [array("q") for _ in wnids]
    val: list[str] = []
    test = array("q")
    for row, name in enumerate(names):
        if not is_image_name(name):
            continue
        top, _, rest = name.partition("/")
        if top == "train":
            wnid = rest.partition("/")[0]
            if wnid not in label_of:
                raise TinlabError(
                    f"{path}: train/{wnid} is not a class of wnids.txt; add it there or remove it"
                )
            train[label_of[wnid]].append(row)
        elif top == "val":
            val.append(name)
        elif top == "test":
            test.append(row)
    for wnid, held in zip(wnids, train, strict=True):
        if not held:
            raise TinlabError(
                f"{path}: the class {wnid} of wnids.txt has no images in train/{wnid}; add some, or take the"
                " class out of wnids.txt"
            )
    labels = _val_labels(path, sorted(val), row_of, label_of, read_text)
    splits = {
        "train": Samples.by_class([_sorted(names, rows) for rows in train], range(len(wnids))),
        "val": Samples(
            np.array([row_of[name] for name in labels], np.int64), np.array([*labels.values()], np.int64)
        ),
    }
    if test:
        splits["test"] = Samples.by_class([_sorted(names, test)], [UNLABELLED])
    return Layout(
        classes=tuple(class_info(path, wnid, words.get(wnid, wnid)) for wnid in wnids),
        splits=splits,
        others=_others(len(names), splits),
    )


def _words(text: str, wanted: dict[str, int]) -> dict[str, str]:
    """The words of the classes in `wanted`; words.txt glosses all of WordNet."""
    found = {}
    for line in _lines(text):
        wnid, tab, words = line.partition("\t")
        if tab and wnid in wanted and words.strip():
            found[wnid] = words.strip()
    return found


def _lines(text: str) -> Iterator[str]:
    """The lines of `text`, which no other signs part. One at a time: a text that inflates to nothing but line
    breaks would else become a list of millions."""
    return (line.rstrip("\n") for line in io.StringIO(text, newline=None))


def class_info(path: Path, id: str, words: str) -> ClassInfo:
    """The class. Raises TinlabError, which begins with `path`, where it cannot be called so."""
    try:
        return ClassInfo(id, words)
    except ValueError as error:
        raise TinlabError(f"{path}: {error}; rename it") from error


def _val_labels(
    path: Path,
    images: list[str],
    row_of: dict[str, int],
    label_of: dict[str, int],
    read_text: Callable[[int], str],
) -> dict[str, int]:
    """Label by name of every image in val/, in the order of the names."""
    if not images:
        raise TinlabError(f"{path}: val/ holds no images; fetch the whole data set")
    if not any(name.startswith("val/images/") for name in images):
        labels = {}
        for name in images:
            wnid = name.split("/")[1]
            if wnid not in label_of:
                raise TinlabError(f"{path}: {name} is neither in val/images nor in the folder of a class")
            labels[name] = label_of[wnid]
        return labels
    if "val/val_annotations.txt" not in row_of:
        raise TinlabError(f"{path}: val/val_annotations.txt is missing; fetch the data set anew")
    stated: dict[str, int] = {}
    for number, line in enumerate(_lines(read_text(row_of["val/val_annotations.txt"])), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number} of val/val_annotations.txt"
        file, tab, rest = line.partition("\t")
        wnid = rest.partition("\t")[0].strip()
        if not tab or not file or not wnid:
            raise TinlabError(f"{where} is not 'FILE, tab, CLASS, ...'; fetch the data set anew")
        if wnid not in label_of:
            raise TinlabError(f"{where} names {wnid}, which train/ and wnids.txt do not have; mend that line")
        name = f"val/images/{file}"
        if name in stated:
            raise TinlabError(f"{where} names {file} a second time; remove it")
        if name not in row_of:
            raise TinlabError(f"{where} names {file}, which is not in val/images; fetch the data set anew")
        stated[name] = label_of[wnid]
    for name in images:
        if name not in stated:
            raise TinlabError(
                f"{path}: {name} has no line in val/val_annotations.txt; add one or remove the image"
            )
    return {name: stated[name] for name in images}


def class_folders(path: Path, names: Names, folders: Sequence[str], accepted: str) -> Layout:
    """Folders of classes, below train/ (and val/, test/) or at the top; classes in sorted order.

    Images may lie at any depth below the folder of their class. test/ may hold images without classes.
    Raises TinlabError, which begins with `path`.
    """
    folders = [folder for folder in folders if not folder.startswith("__MACOSX")]
    parts = {name.split("/", 1)[0] for name in names if "/" in name} | {f.split("/", 1)[0] for f in folders}
    parts.discard("__MACOSX")  # a Mac's notes in its zips
    tops = {"train": "train/"} if "train" in parts else {"train": ""}
    if "train" in parts:
        validation = [name for name in VALIDATION_NAMES if name in parts]
        if len(validation) > 1:
            raise TinlabError(f"{path} has both {validation[0]}/ and {validation[1]}/; remove one of them")
        tops |= {"val": f"{validation[0]}/"} if validation else {}
        tops |= {"test": "test/"} if "test" in parts else {}
    below = {split: _Below(top, folders) for split, top in tops.items()}
    for row, name in enumerate(names):
        if not name.startswith("__MACOSX/"):
            for of in below.values():
                of.add(name, row)
    found = {split: of.images for split, of in below.items()}
    classes = sorted(below["train"].folders)
    if not classes or not found["train"]:
        raise TinlabError(f"{path} holds no class folders with images in them; {accepted}")
    label_of = {name: label for label, name in enumerate(classes)}
    splits = {}
    notes = []
    for split, top in tops.items():
        stated = below[split].folders
        if split == "test" and not stated:
            splits[split] = Samples.by_class([_sorted(names, below[split].loose)], [UNLABELLED])
            continue
        for name in sorted(stated):
            if name not in label_of:
                raise TinlabError(f"{path}: {top}{name} is a class that train/ lacks; rename or remove it")
            if name not in found[split]:
                raise TinlabError(f"{path}: {top}{name} holds no images; add some or remove the folder")
        missing = [name for name in classes if name not in found[split]]
        if missing:
            notes.append(f"{split} has no images of {len(missing)} classes, {missing[0]} first")
        rows = [_sorted(names, found[split].get(name, array("q"))) for name in classes]
        splits[split] = Samples.by_class(rows, range(len(classes)))
    left_out = len(names) - sum(map(len, splits.values()))
    if left_out:
        notes.append(f"{left_out} files were left out, being no images in class folders by their names")
    return Layout(tuple(class_info(path, name, name) for name in classes), splits, notes=tuple(notes))


class _Below:
    """What lies below the folder `top` ('' or with a slash at its end).

    `folders` are those directly below it, the empty ones that are given included, `images` the rows of the
    images in each of them, and `loose` those of the images beside them.
    """

    def __init__(self, top: str, folders: Sequence[str]) -> None:
        self.top = top
        self.folders = {
            f[len(top) :].partition("/")[0] for f in folders if f.startswith(top) and f != top[:-1]
        }
        self.images: dict[str, array[int]] = {}
        self.loose = array("q")

    def add(self, name: str, row: int) -> None:
        if not name.startswith(self.top):
            return
        folder, slash, _ = name[len(self.top) :].partition("/")
        if slash:
            self.folders.add(folder)
        if is_image_name(name):
            (self.images.setdefault(folder, array("q")) if slash else self.loose).append(row)


def _sorted(names: Names, rows: array[int]) -> np.ndarray:
    """`rows`, int64 (n,), in the order of their names."""
    return names.sort(np.frombuffer(rows, np.int64) if rows else np.empty(0, np.int64))


def _others(count: int, splits: dict[str, Samples]) -> np.ndarray:
    """The rows of 0..count-1 that are in no split."""
    left = np.ones(count, dtype=bool)
    for samples in splits.values():
        left[samples.rows] = False
    return np.flatnonzero(left)
