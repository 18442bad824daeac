"""docs/licences.md: each package of constraints.txt, its licence by its own metadata, and what it is for.

.venv/bin/python trials/licences.py            # write it, from the installed packages
.venv/bin/python trials/licences.py --check    # exit code 1 where it is not what would be written
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tinlab.files import write_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"

PERMISSIVE = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0",
    "CC0-1.0", "ISC", "MIT", "MIT-CMU", "PSF", "PSF-2.0", "Zlib",
}  # fmt: skip
"""May be used, changed and passed on with a work under the MIT licence, as long as their notices are kept."""

BY_FILE = {"MPL-2.0"}
"""Copyleft for the files under it alone: a work that uses them unchanged is not bound."""

NAMES = {
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "BSD 3-Clause License": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF",
}
"""What metadata call licences -> SPDX's name. `BSD` and `PSF` are those whose metadata say no more."""

TEXT = """\
# Licences

This page is written by `python trials/licences.py` from the installed packages' metadata; do not edit it.

tinlab is under the [MIT licence](../LICENSE) and contains no code of the packages below: they are installed
beside it, unchanged. A test accepts permissive licences, and one that binds only the files that are under it,
and refuses every other:

- permissive: {permissive}
- by file: {by_file}

The packages are those of [constraints.txt](../constraints.txt). On Linux, PyPI's torch also brings NVIDIA's
CUDA libraries, which are under NVIDIA's own terms; torch's builds for the CPU bring none.

| package | version | licence | used for |
|---|---|---|---|
"""

USES = {
    "captum": "attribution methods",
    "deflate": "unpacking zips",
    "fastapi": "the API of `serve`",
    "httpx": "tests of the API",
    "hypothesis": "tests with made inputs",
    "jinja2": "reports",
    "kornia": "the peer of a benchmark",
    "matplotlib": "figures",
    "mypy": "checking types",
    "numpy": "arrays, packs",
    "onnx": "the exported file",
    "onnxruntime": "running the exported file",
    "onnxscript": "exporting",
    "optuna": "`search`",
    "pillow": "decoding images",
    "platformdirs": "the cache folder",
    "playwright": "tests of pages in a browser",
    "psutil": "memory and processes",
    "pyarrow": "parquet",
    "pydantic": "recipes, the API's answers",
    "pytest": "tests",
    "pytest-timeout": "tests",
    "pytest-xdist": "tests",
    "python-multipart": "the forms of `serve`",
    "ray": "studies on a cluster",
    "rich": "the terminal",
    "ruff": "formatting and rules",
    "safetensors": "checkpoints",
    "scikit-learn": "tests of metrics",
    "scipy": "statistics",
    "simplejpeg": "decoding JPEGs",
    "tensorboard": "curves",
    "timm": "networks",
    "torch": "networks and training",
    "torch-pruning": "pruning channels",
    "torchvision": "networks",
    "typer": "the command line",
    "uvicorn": "the server of `serve`",
    "xxhash": "digests",
}
"""What each package that pyproject.toml names is for."""


def declared() -> dict[str, list[Requirement]]:
    """The requirements of pyproject.toml: `required`, and those of each extra under its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"required": project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(line) for line in lines] for name, lines in groups.items()}


def pinned() -> dict[str, str]:
    """constraints.txt: canonical name -> version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def closure(requirements: Iterable[Requirement]) -> dict[str, set[str]]:
    """All that `requirements` need here, installed: canonical name -> the names that need it directly.

    Raises PackageNotFoundError.
    """
    found: dict[str, set[str]] = {}
    left = [(requirement, "") for requirement in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while left:
        requirement, parent = left.pop()
        name = canonicalize_name(requirement.name)
        found.setdefault(name, set()).update({parent} - {""})
        key = (name, frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        for line in metadata.requires(name) or []:
            further = Requirement(line)
            marker = further.marker
            if marker is None or any(
                marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            ):
                left.append((further, name))
    return found


def licence(name: str) -> str:
    """The licence of the installed package `name`, by its metadata, in SPDX's words where those are clear."""
    found = metadata.metadata(name)
    if expressions := found.get_all("License-Expression"):
        return str(expressions[0])
    stated = str((found.get_all("License") or [""])[0]).strip()
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in found.get_all("Classifier") or []
        if line.startswith("License :: ") and "DFSG" not in line
    ]
    # The field often holds the whole text; then the classifier says which it is.
    if stated and "\n" not in stated and (stated in NAMES or accepted(stated)):
        return NAMES.get(stated, stated)
    return " AND ".join(NAMES.get(line, line) for line in classifiers) or stated.split("\n")[0] or "unknown"


def accepted(expression: str) -> bool:
    """Whether an SPDX expression, of AND and OR without brackets, holds nothing but what is accepted."""
    fine = PERMISSIVE | BY_FILE
    return all(
        any(choice.strip() in fine for choice in re.split(r"\sOR\s", part))
        for part in re.split(r"\sAND\s", expression)
    )


def text() -> str:
    """The page, as Markdown."""
    groups = declared()
    direct = {canonicalize_name(item.name) for items in groups.values() for item in items}
    needs = {name: closure(items) for name, items in groups.items()}
    rows = []
    for name, version in sorted(pinned().items()):
        use = USES.get(name) if name in direct else None
        parents = sorted(set().union(*(found.get(name, set()) for found in needs.values())))
        if use is None:
            more = f" and {len(parents) - 3} others" * (len(parents) > 3)
            use = f"needed by {', '.join(parents[:3])}{more}" if parents else "needed on other systems"
        where = next((group for group, found in needs.items() if name in found), "dev")
        place = "" if where == "required" else f" (extra `{where}`)"
        rows.append(f"| {name} | {version} | {licence(name)} | {use}{place} |\n")
    said = TEXT.format(permissive=", ".join(sorted(PERMISSIVE)), by_file=", ".join(sorted(BY_FILE)))
    return said + "".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/licences.md from the installed packages.")
    parser.add_argument("--check", action="store_true", help="only say whether it is what would be written")
    said = text()
    if parser.parse_args().check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != said:
            sys.exit(
                "docs/licences.md is not what the packages say; write it with: python trials/licences.py"
            )
        return
    write_text(PAGE, said)
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
