"""measures.csv: what the commands among the rows answered, a line a number, beside results.csv."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

from tinlab import __version__
from tinlab.environment import commit, cpu_name
from tinlab.errors import TinlabError
from tinlab.files import only_one, read_text, write_text
from tinlab.papers.registry import Row

COLUMNS = (
    "row", "measure", "value", "of", "hardware", "threads", "torch", "tinlab", "commit", "finished_at",
    "share",
)  # fmt: skip
"""`of` are the digests of the recipes whose runs the command looked at, and `share` is the share of their
length that these runs had, 1 for all of it."""
_BEFORE_SHARES = COLUMNS[:-1]
"""The columns of an older file, which is of whole lengths alone."""
PICTURE = "pictures"
"""The measure of a command that draws: how many pictures it made."""


def measures_file(results: Path) -> Path:
    """measures.csv beside results.csv."""
    return results.parent / "measures.csv"


def read_measures(path: Path) -> dict[str, list[dict[str, str]]]:
    """Row id -> its lines in `path`; none where there is no file. Raises TinlabError for other columns."""
    if not path.is_file():
        return {}
    found: dict[str, list[dict[str, str]]] = {}
    try:
        lines = csv.DictReader(io.StringIO(read_text(path), newline=""))
        names, rows = tuple(lines.fieldnames or ()), list(lines)
    except (OSError, ValueError, csv.Error) as error:
        raise TinlabError(f"{path} cannot be read ({error}); move it aside") from error
    if names not in (COLUMNS, _BEFORE_SHARES):
        raise TinlabError(f"{path} has other columns than this tinlab writes; move it aside")
    for line in rows:
        line.setdefault("share", "1")
        try:
            value, share = float(line["value"] or ""), float(line["share"] or "")
        except ValueError:
            value = share = math.nan
        if not math.isfinite(value) or not 0 < share <= 1 or not line["row"] or None in line:
            raise TinlabError(f"{path}: a line of '{str(line['row'])[:80]}' has no number; mend or remove it")
        found.setdefault(line["row"], []).append(line)
    return found


def values_of(row: Row, answer: dict[str, Any]) -> dict[str, float]:
    """Measure -> value, from what the command of `row` answered as JSON. A command that is read for no number
    counts the picture or page that it made. Raises TinlabError where the answer lacks one."""
    if not row.measures:
        if not any(name in answer for name in ("picture", "report")):
            raise TinlabError(f"{row.id}: the command made no picture and no page")
        return {PICTURE: 1}
    if "classes_by_accuracy" in answer:
        answer = answer | {"errors_of": _errors(answer["classes_by_accuracy"])}
    found = {}
    for measure, keys in row.measures.items():
        value: Any = answer
        for key in keys:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                raise TinlabError(
                    f"{row.id}: the command's answer has no {'.'.join(map(str, keys))}"
                ) from None
        found[measure] = round(float(value), 4)
    return found


def _errors(classes: list[dict[str, Any]]) -> dict[str, int]:
    """Class id -> its images that were got wrong."""
    return {one["id"]: one["images"] - one["right"] for one in classes}


def record_measures(
    path: Path, row: Row, values: dict[str, float], of: tuple[str, ...], share: float = 1
) -> None:
    """Put the values of `row` into `path`, in place of those that it had. `share` is as in COLUMNS. Raises
    TinlabError where those that it had are of longer runs, which then stay."""
    import os

    import torch

    share = float(f"{share:g}")  # as it is written
    about = {
        "row": row.id,
        "of": " ".join(of),
        "hardware": f"{cpu_name()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "tinlab": __version__,
        "commit": commit() or "",
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "share": f"{share:g}",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with only_one(path.parent):  # another process may put in another row at the same time
        before = read_measures(path)
        longest = max((float(line["share"]) for line in before.get(row.id, ())), default=0)
        if longest > share:
            raise TinlabError(f"{row.id} was measured already on runs of {longest:g} of their length")
        kept: list[dict[str, Any]] = [
            line for name, lines in before.items() if name != row.id for line in lines
        ]
        kept += [{**about, "measure": measure, "value": f"{value:g}"} for measure, value in values.items()]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        write_text(path, text.getvalue())
