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
from tinlab.data.shapes import render
from tinlab.recipe import Data, Flip, Loss, Model, Optimizer, RandomResizedCrop, Recipe, Schedule

# Tests train tiny networks, which one thread does as fast as two; and tests that run side by side must not
# wait for each other's threads. torch, which is not imported yet, reads it; so do child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The trials are functions, which tests run with a few cases. Last: no file of theirs may hide a module.
sys.path.append(str(Path(__file__).resolve().parents[1] / "trials"))

SHARED = Path(__file__).resolve().parents[2] / "shared" / "tiny-imagenet-200"
NAME = "tiny-imagenet-200.zip"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs a CUDA device, and is skipped without one")


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


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered data set of 4 classes with 30 training and 10 validation images each, 8 unlabelled ones."""
    folder = tmp_path_factory.mktemp("shapes") / "shapes"
    return render(folder, classes=4, train_per_class=30, val_per_class=10, test_images=8)


@pytest.fixture(scope="session")
def shapes_pack(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """`shapes_folder`, packed."""
    return pack(shapes_folder, tmp_path_factory.mktemp("pack") / "shapes-pack")


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """A network and a length for tests: a second or two on `shapes_pack`."""
    return Recipe(
        name="tiny",
        data=Data(image_sizes=(16, 32)),
        augment=(Flip(), RandomResizedCrop()),
        model=Model(width=4, stem="patch"),
        optimizer=Optimizer(peak_lr=0.05, nesterov=True),
        schedule=Schedule(steps=12, batch_size=16, shape="linear", warmup_fraction=0.2),
        loss=Loss(label_smoothing=0.1),
    )
