"""Every dependency is pinned, and its licence is one that may be passed on with the MIT licence."""

from __future__ import annotations

import re
from importlib import metadata

import licences
import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version

PINNED = licences.pinned()
ROWS = {
    row[0]: row[1:]
    for line in licences.PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ")
    and (row := [cell.strip() for cell in line.strip("|").split("|")])[0] != "package"
}
"""The table of docs/licences.md: package -> version, licence, use."""
INSTALLERS = {"pip", "setuptools", "wheel"}


def test_every_line_is_one_exact_version():
    lines = (licences.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), line
    assert len(PINNED) == len(lines)


@pytest.mark.parametrize("group", licences.declared())
def test_all_that_is_needed_is_pinned_and_allowed(group):
    """What pyproject.toml names, at a version that it allows, and all that this needs in its turn."""
    requirements = licences.declared()[group]
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        assert name in PINNED
        assert requirement.specifier.contains(PINNED[name]), requirement
        assert name in licences.USES
        assert name in ROWS
    try:
        needed = licences.closure(requirements)
    except metadata.PackageNotFoundError as error:
        pytest.skip(f"{error} is not installed")
    # What torch brings for a GPU differs from one build of it to the other.
    brought = {name for name in needed if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert set(needed) - brought - INSTALLERS <= set(PINNED)


def test_every_pinned_package_is_listed_under_an_accepted_licence():
    assert {name: version for name, (version, *_) in ROWS.items()} == PINNED
    assert [name for name, (_, licence, _) in ROWS.items() if not licences.accepted(licence)] == []


def test_the_listed_licences_are_the_packages_own():
    compared = 0
    for name, (version, licence, _) in ROWS.items():
        try:
            if Version(metadata.version(name)).public != version:
                continue
        except metadata.PackageNotFoundError:
            continue
        assert licences.licence(name) == licence
        compared += 1
    assert compared > 20  # those that tinlab cannot do without


@pytest.mark.parametrize(
    ("expression", "fine"),
    [
        ("MIT", True), ("MIT AND Zlib", True), ("GPL-3.0-only OR MIT", True), ("MPL-2.0 AND MIT", True),
        ("GPL-3.0-only", False), ("MIT AND GPL-3.0-only", False), ("AGPL-3.0-or-later", False), ("", False),
        ("LGPL-2.1", False), ("unknown", False), ("MIT AND (GPL-2.0-only OR MIT)", False),
        ("SSPL-1.0", False),
    ],
)  # fmt: skip
def test_which_licences_are_accepted(expression, fine):
    assert licences.accepted(expression) is fine
