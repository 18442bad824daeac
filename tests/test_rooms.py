"""The way of the data is the way of the imports: a room imports only what stands before it."""

from __future__ import annotations

import ast
from pathlib import Path

import tinlab

SOURCES = Path(tinlab.__file__).parent
ORDER = [
    "errors", "files", "drawing", "tuning", "recipe",
    "data", "augment", "models", "recipes",
    "compute", "ranks", "environment", "runs", "evaluation", "training", "networks",
    "classifier", "evaluating", "explain", "checks", "export",
    "results", "report", "study", "papers", "serve", "demo", "terminal", "cli", "__main__",
]  # fmt: skip
"""source -> pack -> batches -> augment -> model -> predict -> metrics -> step -> checkpoint -> report."""


def rooms_imported(path: Path) -> set[str]:
    """The rooms of tinlab that the file imports, inside functions too, but not for types alone."""
    found = set()
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text()))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "tinlab":
            names = [f"tinlab.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found |= {name.split(".")[1] for name in names if name.startswith("tinlab.")}
    return found - {"__version__"}


def _without_type_checking(tree: ast.Module) -> ast.Module:
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING")
    ]
    return tree


def room_of(path: Path) -> str:
    return path.relative_to(SOURCES).parts[0].removesuffix(".py")


def test_every_file_has_a_place_in_the_order():
    assert {room_of(path) for path in SOURCES.rglob("*.py")} - {"__init__"} == set(ORDER)


def test_imports_point_backwards():
    wrong = []
    for path in SOURCES.rglob("*.py"):
        room = room_of(path)
        if room == "__init__":
            continue
        for other in rooms_imported(path):
            if ORDER.index(other) > ORDER.index(room):
                wrong.append(f"{path.relative_to(SOURCES)} imports {other}")
    assert wrong == []


def test_nothing_unpickles_or_evaluates():
    """What a stranger hands over is JSON, safetensors, images or arrays: none of it can run code."""
    forbidden = ("pickle", "torch.load", "allow_pickle=True", "eval(", "exec(", "yaml.load", "shell=True")
    for path in SOURCES.rglob("*.py"):
        text = path.read_text().replace("model.eval()", "").replace("allow_pickle=False", "")
        # torch's reader for tensors alone, which refuses all that code would have to make.
        text = text.replace("torch.load(path, weights_only=True,", "")
        for word in forbidden:
            assert word not in text, f"{path.relative_to(SOURCES)}: {word}"
