"""What tests of many rooms need."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tinlab.data.pack import Pack
from tinlab.data.packing import pack

SHARED = Path(__file__).resolve().parents[2] / "shared" / "tiny-imagenet-200"
NAME = "tiny-imagenet-200.zip"


@pytest.fixture(scope="session")
def real_zip() -> Path:
    """The real Tiny ImageNet as a zip: from $TINLAB_DATA, or built once from ../shared; else skips."""
    stated = os.environ.get("TINLAB_DATA")
    if stated:
        path = Path(stated)
        for candidate in (path, path / NAME, path.parent / NAME):
            if candidate.is_file() and candidate.suffix == ".zip":
                return candidate
        pytest.skip(f"$TINLAB_DATA ({stated}) is no zip and holds no {NAME}")
    if not (SHARED / "unpack").is_file():
        pytest.skip("needs the real Tiny ImageNet: set TINLAB_DATA")
    kept = Path(tempfile.gettempdir()) / f"tinlab-tests-{os.getuid()}"
    kept.mkdir(mode=0o700, exist_ok=True)
    if kept.stat().st_uid != os.getuid():
        pytest.skip(f"{kept} belongs to somebody else: set TINLAB_DATA")
    if not (kept / NAME).is_file():
        with tempfile.TemporaryDirectory(dir=kept) as building:
            subprocess.run([sys.executable, str(SHARED / "unpack"), building, "--zip"], check=True)
            (Path(building) / NAME).replace(kept / NAME)
    return kept / NAME


@pytest.fixture(scope="session")
def real_pack(real_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """The real Tiny ImageNet, packed once for all tests."""
    return pack(real_zip, tmp_path_factory.mktemp("real") / "pack")
