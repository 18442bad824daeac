"""Short runs of trials/memory.py, and what a program start brings along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import memory
import pytest

from tinlab.cli import app

HEAVY = (
    "torch", "numpy", "timm", "torchvision", "matplotlib", "pydantic", "scipy", "sklearn", "PIL", "kornia",
    "pyarrow", "safetensors", "simplejpeg", "fastapi", "starlette", "uvicorn", "jinja2", "ray", "optuna",
    "captum", "onnx", "onnxruntime", "torch_pruning", "asyncio", "multiprocessing",
)  # fmt: skip
"""None of these is needed to show what there is."""

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")


@needs_proc
@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_packing(kind: str, tmp_path: Path) -> None:
    """From few images to more: buffers fill up as well, so that the limit is not that of the trial. (Those of
    parquet files are full at some 50,000 images alone.)"""
    found = [memory.packed(kind, images, tmp_path, workers=1) for images in (1000, 9000)]
    # Lists of strings took 1,100 bytes an image of a zip, and images of another size lost 4,300.
    assert memory.bytes_an_image(found) < 1000, found


@needs_proc
def test_training(tmp_path: Path) -> None:
    found = memory.trained(16, tmp_path)
    assert found.grown_bytes < 2 << 20, found


def commands() -> list[str]:
    """Every command and subcommand, as it is typed."""
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    groups[""] = app
    return [*filter(None, groups), *(
        f"{group} {command.name or command.callback.__name__.replace('_', '-')}".strip()
        for group, of in groups.items() for command in of.registered_commands
    )]  # fmt: skip


def test_help_loads_no_large_library() -> None:
    """The program's own help, and that of all commands, in one process: what is loaded then was loaded by one
    of them. typer itself takes pydantic for what belongs to a command."""
    code = (
        "import sys\nfrom tinlab.cli import app\n"
        f"loaded = lambda: print('LOADED', *[name for name in {HEAVY} if name in sys.modules])\n"
        "for words in map(str.split, ['', *sys.argv[1].splitlines()]):\n"
        "    app([*words, '--help'], standalone_mode=False)\n"
        "    words or loaded()\n"
        "loaded()"
    )
    every = commands()
    assert len(every) > 25
    assert {"data", "data pack", "lr-find", "results add"} <= set(every)
    done = subprocess.run(
        [sys.executable, "-c", code, "\n".join(every)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, last = (line for line in done.stdout.splitlines() if line.startswith("LOADED"))
    assert first == "LOADED"
    assert last in ("LOADED", "LOADED pydantic")
    assert done.stdout.count("Usage:") == 1 + len(every)
