"""docs/reliability.md is what its sources say, and its sources name what there is."""

from __future__ import annotations

import ast
import shlex
from collections import Counter
from pathlib import Path

import page
import pytest
from ledger import ROOT, Promise, Tried, read

PROMISES = page.promises()


def defined(file: Path) -> set[str]:
    """The tests of a file: functions, and methods as Class::method."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return found


def test_the_committed_page_is_the_one_that_is_written():
    assert page.PAGE.read_text(encoding="utf-8") == page.text(PROMISES, read())


def test_ids_are_unique_and_belong_to_a_part():
    assert [id for id, times in Counter(promise.id for promise in PROMISES).items() if times > 1] == []
    assert {promise.id.partition(".")[0] for promise in PROMISES} <= set(page.PARTS)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.id)
def test_what_a_promise_names_is_there(promise):
    file, _, name = promise.test.partition("::")
    assert (ROOT / file).is_file(), file
    assert name.partition("[")[0] in defined(ROOT / file)
    words = shlex.split(promise.trial)
    assert words[0] == "python"
    assert (ROOT / words[1]).is_file()
    assert promise.sentence.endswith(".")


def test_rows_belong_to_promises():
    assert {row.promise for row in read()} <= {promise.id for promise in PROMISES}


def test_a_row_is_shown_with_its_counts_and_a_missing_one_with_its_command():
    promised = [
        Promise("server.a", "A | B holds.", "tests/serve/test_a.py::test_a", "python trials/server.py a"),
        Promise("faults.b", "C holds.", "tests/test_b.py::test_b", "python trials/faults.py b --kills 200"),
    ]
    rows = [Tried("server.a", 12345, "requests", 2, 1.0, "p99 3 ms", "abc123", "2026-01-02")]
    shown = page.text(promised, rows)
    assert shown.index("## Faults") < shown.index("## The server")  # the page's order, not the ids'
    assert (
        "| C holds. | [test_b.py::test_b](../tests/test_b.py) | not yet run: `python trials/faults.py b"
        in shown
    )
    assert "| A \\| B holds. |" in shown
    assert "**12,345 requests, 2 failed**, 1 minute, abc123, 2026-01-02. p99 3 ms |" in shown
    assert "## Inputs" not in shown


def test_only_files_with_promises_are_read(tmp_path):
    (tmp_path / "plain.py").write_text("raise SystemExit('not to be run')\n")
    (tmp_path / "numbers.py").write_text("PROMISES = ('one',)\nimport numbers\nnumbers.Real\n")
    assert page.promises(tmp_path) == ["one"]
