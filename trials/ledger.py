"""Where a trial writes what it tried: a row of results/trials.csv for each promise, the newest alone.

A trial is a long run of something that the tests run briefly: the same functions, with more cases. Each
file of this folder with PROMISES is a trial with a command line of its own; page.py writes the page
docs/reliability.md from the promises and the rows.
"""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from tinlab.environment import commit
from tinlab.files import only_one
from tinlab.results import write_table

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "results" / "trials.csv"


@dataclass(frozen=True)
class Promise:
    """What is promised, in one sentence, and the test that shows it in every run of the tests."""

    id: str
    """Part and subject: `faults.training`, `inputs.recipe`, `server.overload`, `numbers.top1`."""
    sentence: str
    test: str
    """tests/file.py::name of the short run."""
    trial: str
    """The command of the long run, from the root: `python trials/faults.py training --kills 200`."""


@dataclass(frozen=True)
class Tried:
    """One row: what one run of a trial did."""

    promise: str
    tried: int
    unit: str
    """What was counted: kills, inputs, requests, comparisons."""
    failed: int
    minutes: float
    note: str
    """Further numbers that the trial printed, in words."""
    commit: str
    date: str


def record(promise: Promise, tried: int, unit: str, failed: int, seconds: float, note: str = "") -> Tried:
    """Write the row of `promise`, in place of an older one; a failure is recorded as well."""
    row = Tried(
        promise.id, tried, unit, failed, round(seconds / 60, 1), note, commit() or "",
        f"{datetime.now(UTC):%Y-%m-%d}",
    )  # fmt: skip
    with only_one(LEDGER.parent):  # another trial may end at the same time
        rows = [other for other in read() if other.promise != promise.id] + [row]
        columns = tuple(item.name for item in fields(Tried))
        write_table(LEDGER, columns, [asdict(one) for one in sorted(rows, key=lambda one: one.promise)])
    print(f"{row.promise}: {row.tried:,} {row.unit}, {row.failed} failed, {row.minutes} minutes. {row.note}")
    return row


def read() -> list[Tried]:
    """The rows of the ledger; none where there is no ledger yet."""
    if not LEDGER.exists():
        return []
    with LEDGER.open(newline="") as file:
        numbers = {"tried": int, "failed": int, "minutes": float}
        return [
            Tried(**{name: numbers.get(name, str)(value) for name, value in row.items()})
            for row in csv.DictReader(file)
        ]
