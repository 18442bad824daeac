"""docs/reliability.md: what is promised, the test that shows it, and what the newest long run tried.

python trials/page.py            # write it
python trials/page.py --check    # exit code 1 where it is not what would be written
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

sys.path.append(str(Path(__file__).resolve().parent))

from ledger import ROOT, Promise, Tried, read

from tinlab.files import write_text

PAGE = ROOT / "docs" / "reliability.md"

PARTS = {
    "faults": ("Faults", "Kills, full and vanished disks, changed files, lost processes."),
    "inputs": ("Inputs", "Files and options from strangers: damaged, hostile, or far too large."),
    "server": ("The server", "Requests from strangers to `tinlab serve`."),
    "numbers": ("Numbers", "What is measured, beside other libraries and cases worked out by hand."),
    "memory": ("Memory and time", "What packing and training hold, and how soon the program answers."),
}
"""Title and subject of each part, in the page's order; a part is what stands before the dot of an id."""

TEXT = """\
# What is promised

This page is written by `python trials/page.py`; do not edit it.

Each row is a promise. The test in the second column shows it whenever `make test` runs, with few cases. The
third column says what the newest long run of the same functions tried, how much of that failed, how long it
took, and at which commit; a `+` behind the commit says that the tree had changes beside it. Rows come from
[results/trials.csv](../results/trials.csv), which the trials write themselves, failures included. A count
is what was tried and no more: it bounds how often a promise breaks, and does not prove that it never does.

What an attacker is assumed to be able to do, and what is not promised, stands in
[SECURITY.md](../SECURITY.md).
"""


def promises(folder: Path | None = None) -> list[Promise]:
    """The promises of all trials in `folder`, in the order of their files' names and then their own."""
    found: list[Promise] = []
    for file in sorted((folder or ROOT / "trials").glob("*.py")):
        if _assigns(file, "PROMISES"):
            found += _module(file).PROMISES
    return found


def _assigns(file: Path, name: str) -> bool:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == name:
            return True
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == name for target in node.targets):
            return True
    return False


def _module(file: Path) -> ModuleType:
    """The module of a trial, under a name of its own: a trial may be called like a module of Python's."""
    name = f"trials_{file.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[name]


def text(promised: Sequence[Promise], tried: Iterable[Tried]) -> str:
    """The page, as Markdown."""
    newest = {row.promise: row for row in tried}
    of_part: dict[str, list[Promise]] = {part: [] for part in PARTS}
    for promise in promised:
        of_part.setdefault(promise.id.partition(".")[0], []).append(promise)
    pieces = [TEXT]
    for part, those in of_part.items():
        if not those:
            continue
        title, subject = PARTS.get(part, (part.capitalize(), ""))
        pieces.append(f"## {title}\n\n" + (f"{subject}\n\n" if subject else ""))
        pieces[-1] += "| promise | shown by | the newest long run |\n|---|---|---|\n"
        for promise in those:
            cells = (_cell(promise.sentence), _test(promise.test), _run(promise, newest.get(promise.id)))
            pieces[-1] += f"| {' | '.join(cells)} |\n"
    return "\n".join(pieces)


def _test(test: str) -> str:
    file, _, name = test.partition("::")
    return f"[{file.removeprefix('tests/')}::{_cell(name)}](../{file})"


def _run(promise: Promise, row: Tried | None) -> str:
    if row is None:
        return f"not yet run: `{_cell(promise.trial)}`"
    minutes = f"{row.minutes:g} minute{'s' * (row.minutes != 1)}"
    said = f"**{row.tried:,} {row.unit}, {row.failed:,} failed**, {minutes}, {row.commit}, {row.date}."
    return _cell(f"{said} {row.note}".rstrip())


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")


def run(promised: Iterable[Promise]) -> bool:
    """Run the trials of the promises, each once; whether all of them held."""
    failed = []
    for command in dict.fromkeys(promise.trial for promise in promised):
        print(f"$ {command}", flush=True)
        words = [sys.executable, *shlex.split(command)[1:]]
        if subprocess.run(words, cwd=ROOT, check=False).returncode:
            failed.append(command)
    for command in failed:
        print(f"failed: {command}")
    return not failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write docs/reliability.md from the promises and the ledger."
    )
    parser.add_argument("--check", action="store_true", help="only say whether it is what would be written")
    parser.add_argument("--run", action="store_true", help="first run all trials, which takes hours")
    given = parser.parse_args()
    fine = run(promises()) if given.run else True
    said = text(promises(), read())
    if given.check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != said:
            sys.exit("docs/reliability.md is not what its sources say; write it with: python trials/page.py")
        return
    write_text(PAGE, said)
    print(PAGE.relative_to(ROOT))
    sys.exit(not fine)


if __name__ == "__main__":
    main()
