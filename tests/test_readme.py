"""The README is true: its tree is the disk's, its commands exist, its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from test_cli import tinlab

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def tree() -> list[str]:
    """The paths that the README's tree names."""
    (block,) = (text for language, text in BLOCKS if not language and text.startswith("Makefile"))
    found, parents = [], {0: ""}
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        path = parents[depth] + line.split()[0]
        parents[depth + 1] = path
        found.append(path)
    return found


def test_what_the_tree_names_is_there():
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_what_is_there_is_in_the_tree():
    places = [
        *(ROOT / "src/tinlab").rglob("*"),
        *(ROOT / "benchmarks").rglob("*.*"),
        *(ROOT / "trials").rglob("*.py"),
    ]
    files = {
        str(path.relative_to(ROOT))
        for path in places
        if path.suffix in (".py", ".sh", ".html", ".css", ".js") and not path.name.startswith("__")
    }
    assert files - set(tree()) == set()


def commands() -> list[str]:
    lines = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]
    return [line.split("#")[0].strip() for line in lines if "tinlab" in line.split("#")[0]]


@pytest.mark.parametrize("line", commands())
def test_a_command_and_its_options_exist(line):
    words = shlex.split(line)
    words = words[words.index("tinlab") + 1 :] if "-m" in words else words[1:]
    name = words[:2] if words[0] in ("data", "results") else words[:1]
    shown = tinlab(*name, "--help")
    assert shown.returncode == 0, line
    for word in words:
        if word.startswith("--"):
            assert word in shown.stdout


def test_speeds_are_those_of_the_page_that_the_benchmarks_write():
    table = README.split("## How fast")[1].split("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "what" not in line]
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8").splitlines()
    assert rows
    assert [row for row in rows if not any(line.startswith(row) for line in page)] == []


def test_make_knows_the_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", README + (ROOT / "CONTRIBUTING.md").read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_recipe_is_one():
    (source,) = (text for language, text in BLOCKS if language == "python" and "def mine" in text)
    names: dict[str, object] = {}
    exec(compile(source, "README.md", "exec"), names)
    assert names["mine"]().name == "mine"  # type: ignore[operator]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_prediction_runs_as_shown(shapes_pack, tiny_recipe, tmp_path, monkeypatch, capsys):
    from PIL import Image

    from tinlab.training import loop

    run = loop.train(tiny_recipe, shapes_pack, tmp_path / "runs", device="cpu")
    Image.fromarray(shapes_pack.split("val").images[0]).save(tmp_path / "goldfish.jpg")
    monkeypatch.chdir(tmp_path)
    (source,) = (text for language, text in BLOCKS if language == "python" and "tinlab.load" in text)
    shown = re.search(r'load\("([^"]+)"\)', source)[1]
    exec(compile(source.replace(shown, str(run.path)), "README.md", "exec"), {})
    assert "%" in capsys.readouterr().out
