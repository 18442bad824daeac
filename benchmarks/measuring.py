"""What the benchmarks share: images, rounds in turn, and rows of ours beside a peer's.

Every benchmark prints a table of rows, or with `--json` a list of objects

    {"what", "ours", "peer", "unit", "ratio", "rounds", "peer_name", "spread"}

where `ours` and `peer` are medians over the rounds, `ratio` is ours over the peer's, and `spread` holds the
smallest and the largest ratio of one round: both sides of a round met the same machine.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

Found = TypeVar("Found")
Record = TypeVar("Record", bound=Any)
FORMS = "forms.json"
"""The file by which a folder that `forms_of` filled is known."""


@dataclass(frozen=True)
class Row:
    """One comparison, as the module's docstring says."""

    what: str
    ours: float
    peer: float
    unit: str
    ratio: float
    rounds: int
    peer_name: str
    spread: tuple[float, float] | None = None


def compare(what: str, ours: Sequence[float], peer: Sequence[float], unit: str, peer_name: str) -> Row:
    """The row of what was measured on both sides, a value a round."""
    of_rounds = [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]
    mine, theirs = statistics.median(ours), statistics.median(peer)
    return Row(
        what=what,
        ours=significant(mine),
        peer=significant(theirs),
        unit=unit,
        ratio=significant(mine / theirs),
        rounds=len(of_rounds),
        peer_name=peer_name,
        spread=(significant(min(of_rounds)), significant(max(of_rounds))),
    )


def significant(value: float, digits: int = 4) -> float:
    """`value` with this many significant digits."""
    return float(f"{value:.{digits}g}")


def options(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=at_least(1), default=rounds, help=f"default: {rounds}")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """A type of option: a whole number, `least` or more."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too few; give {least} or more")
        return value

    number.__name__ = "whole number"
    return number


def report(rows: Iterable[Row], heading: str, *, as_json: bool) -> None:
    """Print the rows."""
    rows = list(rows)
    print(json.dumps([asdict(row) for row in rows], indent=2) if as_json else f"{heading}\n{table(rows)}")


def table(rows: Sequence[Row]) -> str:
    """The rows for the terminal."""
    wide = max(len(row.what) for row in rows)
    lines = [f"{'':{wide}}  {'tinlab':>10} {'peer':>10} {'':8} {'ratio':>6}  {'of a round':16} peer"]
    for row in rows:
        lines.append(
            f"{row.what:{wide}}  {number(row.ours):>10} {number(row.peer):>10} {row.unit:8} "
            f"{row.ratio:6.2f}  {spread(row.spread):16} {row.peer_name}"
        )
    return "\n".join(lines)


def number(value: float) -> str:
    """`value` for people: 8,708 or 35.1 or 0.45."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(bounds: tuple[float, float] | None) -> str:
    """`1.31 to 1.42`."""
    return "" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"


def rows_from(text: str) -> list[Row]:
    """The rows that a benchmark printed with `--json`. Raises ValueError where they are none."""
    try:
        return [
            Row(**{**row, "spread": tuple(row["spread"]) if row.get("spread") else None})
            for row in json.loads(text)
        ]
    except (TypeError, KeyError) as error:
        raise ValueError(f"no list of rows ({error})") from error


def provenance() -> dict[str, str]:
    """Where and with what something was measured, for the last columns of a file of results."""
    import torch

    from tinlab import __version__
    from tinlab.environment import commit, cpu_name

    return {
        "hardware": f"{cpu_name()}, {os.cpu_count()} cores",
        "versions": f"tinlab {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "commit": commit() or "",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def read_csv(path: Path, kind: type[Record]) -> list[Record]:
    """The rows of `path`, which `write_csv` wrote; none where there is no file. Raises TinlabError where it
    has other columns."""
    from tinlab.errors import TinlabError

    if not path.is_file():
        return []
    kinds = {field.name: {"float": float, "int": int}.get(str(field.type), str) for field in fields(kind)}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if list(rows.fieldnames or ()) != list(kinds):
            raise TinlabError(f"{path} has other columns than this benchmark writes; move it aside")
        return [kind(**{name: kinds[name](value) for name, value in row.items()}) for row in rows]


def write_csv(path: Path, rows: Iterable[Record], kind: type[Record]) -> None:
    """Write dataclasses of one kind, a column a field, atomically."""
    from tinlab.files import write_text

    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, text.getvalue())


def kept_in(stated: Path | None, published: Path, forms: Forms) -> Path | None:
    """The file that rows go to: the stated one, or else the project's own, which is of real images alone."""
    if stated is not None or not forms.rendered:
        return stated or published
    print(f"on rendered images, so {published.name} stays as it is", file=sys.stderr, flush=True)
    return None


def in_turn(names: Iterable[str], measure: Callable[[str], Found], rounds: int) -> dict[str, list[Found]]:
    """What `measure` gives for each name, `rounds` times, the names taken in turn."""
    found: dict[str, list[Found]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, values in found.items():
            values.append(measure(name))
    return found


def child(*words: object, environment: Mapping[str, str] | None = None) -> Any:
    """The JSON of the last line that a Python script prints, given its path and its arguments; `environment`
    is added to this process'. Ends this process, with the child's last words, where it fails."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        sys.exit(f"{' '.join(command[1:3])} failed: {said[-1] if said else f'exit {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards, in memory where there is a tmpfs."""
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="tinlab-bench-", dir=place) as name:
        yield Path(name)


@dataclass(frozen=True)
class Forms:
    """A data set as each side takes it: `source` as it was named, `train` and `val` as class folders for
    torchvision (`val` is None where the set has none), and packed."""

    source: Path
    rendered: bool
    train: Path
    val: Path | None
    pack: Path

    @property
    def described(self) -> str:
        return "rendered images" if self.rendered else self.source.name


def forms_of(stated: str | Path | None, folder: Path) -> Forms:
    """The data set `stated`, or the one that `tinlab train` would find, in all its forms, made in `folder`.

    Where there is none, images are rendered. A folder that an earlier call filled is taken as it is, and none
    is made before the data set is found.
    """
    from tinlab.data.packing import pack
    from tinlab.data.places import find_source
    from tinlab.data.shapes import MARKER, render
    from tinlab.errors import TinlabError

    source = find_source(stated)
    if source is not None and (source / FORMS).is_file():
        kept = json.loads((source / FORMS).read_text("utf-8"))
        paths = {name: value and Path(value) for name, value in kept.items() if name != "rendered"}
        return Forms(rendered=kept["rendered"], **paths)
    if stated and source is not None and (source / "pack.json").is_file():
        raise TinlabError(
            f"{source} is a pack; name the data set that it was made from, which peers can read"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if source is None or (source / "pack.json").is_file():
        source = render(folder / "rendered")
    rendered = (source / MARKER).is_file()
    folders = _folders(source, folder)
    forms = Forms(
        source=source.resolve(),
        rendered=rendered,
        train=folders / "train" if (folders / "train").is_dir() else folders,
        val=val_by_class(folders, folder / "val"),
        pack=pack(source, folder / "pack").path,
    )
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(forms).items()}
    (folder / FORMS).write_text(json.dumps(values, indent=2), "utf-8")
    return forms


def _folders(source: Path, folder: Path) -> Path:
    """The folder that `source` is, or that is inside a zip of it."""
    from tinlab.errors import TinlabError

    if source.is_dir():
        return source
    if not zipfile.is_zipfile(source):
        raise TinlabError(f"{source} is neither a folder nor a zip; the peers read nothing else")
    with zipfile.ZipFile(source) as archive:
        wanted = [name for name in archive.namelist() if "/test/" not in name]
        archive.extractall(folder / "unzipped", wanted)
    (inside,) = [path for path in (folder / "unzipped").iterdir() if path.is_dir()]
    return inside


def val_by_class(folders: Path, place: Path) -> Path | None:
    """The images of val as class folders, which the official set has only for train: links in `place`."""
    annotations = folders / "val" / "val_annotations.txt"
    if not annotations.is_file():
        return folders / "val" if (folders / "val").is_dir() else None
    for line in annotations.read_text("utf-8").splitlines():
        name, wnid = line.split("\t")[:2]
        (place / wnid).mkdir(parents=True, exist_ok=True)
        (place / wnid / name).symlink_to((folders / "val" / "images" / name).resolve())
    return place


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; what a person can mend is said in one sentence, with exit code 2."""
    from tinlab.errors import TinlabError

    try:
        main()
    except TinlabError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)


def unzip() -> str:
    """The path of `unzip`, or the end of this process."""
    found = shutil.which("unzip")
    if found is None:
        sys.exit("this benchmark compares with unzip, which is not installed; install it and run again")
    return found
