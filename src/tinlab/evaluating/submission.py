"""The challenge's file of answers: a line for each test image, its file name and the id of its class.

    test_0.JPEG n03444034

Tiny ImageNet's server took such a file for the 10,000 test images, whose labels were never published.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from tinlab import runs
from tinlab.data.pack import Pack, Split
from tinlab.errors import TinlabError
from tinlab.evaluating import predictions_of
from tinlab.evaluating.ensemble import notes_of, open_ensemble
from tinlab.evaluating.evaluation import notes
from tinlab.files import read_text, write_atomically


@dataclass(frozen=True)
class Submission:
    """A file of answers that was checked. `classes` int64 (N,): the class index given to each image, in the
    split's order. `top1_percent` is what it scores, None where the labels were never published. `notes` say
    what a reader of that must know, such as that the network was trained on these images."""

    path: Path
    split: str
    images: int
    classes: np.ndarray
    top1_percent: float | None
    notes: tuple[str, ...] = ()


def submit(
    source: str | Path,
    out: str | Path = "submission.txt",
    *,
    split: str = "test",
    pack: Pack | None = None,
    device: str = "auto",
) -> Submission:
    """Write the answers of the run folder, or the ensemble's JSON file, `source` to `out`, checked and whole.

    The lines are in the natural order of the file names: test_2 before test_10. Raises TinlabError where the
    source or its pack cannot be had, where two images have one name and where `out` cannot be written.
    """
    source, out = Path(source), Path(out)
    if source.is_file():
        ensemble = open_ensemble(source)
        pack = pack or _own_pack(ensemble.runs[0].pack, ensemble.pack_digest, source)
        found = ensemble.predictions(split=split, pack=pack, device=device)
        told = notes_of(ensemble.runs, split, pack)
    else:
        run = runs.open_run(source)
        pack = pack or _own_pack(run.pack, run.pack_digest, source)
        found = predictions_of(source, split=split, pack=pack, device=device)
        told = notes(run, split, pack)
    rows = pack.split(split)
    names, ids = file_names(rows), [c.id for c in pack.info.classes]
    answers = found.logits.argmax(axis=1)  # (N,)
    lines = [
        f"{names[i]} {ids[answers[i]]}\n" for i in sorted(range(len(names)), key=lambda i: natural(names[i]))
    ]
    checked: list[Submission] = []

    def write(temporary: Path) -> None:
        temporary.write_text("".join(lines), encoding="utf-8", newline="\n")
        checked.append(check_submission(temporary, pack, split=split))

    try:
        write_atomically(out, write)
    except OSError as error:
        raise TinlabError(f"{out} cannot be written: {error.strerror or error}") from error
    read = checked[0]
    return Submission(out, split, read.images, read.classes, read.top1_percent, told)


def check_submission(path: str | Path, pack: Pack, *, split: str = "test") -> Submission:
    """Read the file of answers `path`, in any order of lines, against a split of the pack.

    Raises TinlabError that names the first line that is wrong: not a file and a class with one space between
    them, a file that the split does not have or that came before, a class that the pack does not have; or a
    file of the split that no line names.
    """
    path, rows = Path(path), pack.split(split)
    row_of = {name: row for row, name in enumerate(file_names(rows))}
    class_of = {c.id: index for index, c in enumerate(pack.info.classes)}
    try:
        lines = read_text(path).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise TinlabError(f"{path} cannot be read: {reason}") from error
    if lines[-1] == "":
        lines.pop()
    answers = np.full(len(rows), -1, np.int64)
    for number, line in enumerate(lines, 1):
        name, space, id = line.rstrip("\r").partition(" ")
        if not space or not name or not id or " " in id:
            raise TinlabError(f"{path}, line {number}: not 'FILE CLASS' with one space, but {line[:80]!r}")
        if name not in row_of:
            raise TinlabError(f"{path}, line {number}: {split} of {pack.path} has no image '{name[:80]}'")
        if id not in class_of:
            raise TinlabError(f"{path}, line {number}: {pack.path} has no class '{id[:80]}'")
        if answers[row_of[name]] >= 0:
            raise TinlabError(f"{path}, line {number}: '{name}' came before; each file has one line")
        answers[row_of[name]] = class_of[id]
    missing = [name for name, row in row_of.items() if answers[row] < 0]
    if missing:
        first = min(missing, key=natural)
        raise TinlabError(f"{path} lacks {len(missing)} of the {len(rows)} files of {split}; first: {first}")
    top1 = 100 * float((answers == rows.labels).mean()) if rows.labelled else None
    return Submission(path, split, len(rows), answers, top1)


def file_names(rows: Split) -> list[str]:
    """The images' file names, without folders, in the split's order.

    Raises TinlabError where a split is empty, or names cannot stand in such a file: two that are equal, or
    one that holds a blank; and likewise for the ids of classes.
    """
    if not len(rows):
        raise TinlabError(f"{rows.pack.path} has no images in {rows.name}")
    names = [PurePosixPath(name).name for name in rows.names]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise TinlabError(
                f"two images of {rows.name} are called {name}, so a line could not say which one it means; "
                "the challenge's layout gives each image of a split a name of its own"
            )
        seen.add(name)
    for text in (*names, *(c.id for c in rows.pack.info.classes)):
        if not text or re.search(r"\s", text):
            raise TinlabError(
                f"'{text}' holds a blank, which parts a line's two words; rename it and pack again"
            )
    return names


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers inside names by their value: test_2 before test_10."""
    return [
        (0, int(part), part) if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]


def _own_pack(place: str, digest: str, source: Path) -> Pack:
    pack = Pack.open(place)
    if pack.digest != digest:
        raise TinlabError(
            f"{pack.path} has changed since {source} was trained on it; name its pack with --data"
        )
    return pack
