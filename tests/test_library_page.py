"""docs/library.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "library.md"


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 8
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
        assert capsys.readouterr().out.strip(), block
    assert len((tmp_path / "submission.txt").read_text().splitlines()) == 12
    assert (tmp_path / "explained.png").stat().st_size > 1000
