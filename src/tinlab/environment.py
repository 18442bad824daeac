"""What a run is trained on: hardware, versions, and the commit of the tree that runs."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinlab import __version__
from tinlab.data.pack import Pack


def describe_environment(pack: Pack, device: str, ranks: int = 1) -> dict[str, Any]:
    """Hardware, versions, commit and pack: what environment.json holds."""
    import numpy as np
    import torch

    cuda = device.startswith("cuda")
    return {
        "tinlab": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": device,
        "ranks": ranks,
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "commit": commit(),
        "command": command(),
        "recorded_at": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "pack": describe_pack(pack),
    }


def describe_pack(pack: Pack) -> dict[str, Any]:
    """What environment.json holds of a pack. `seed` decided which images were held out as `tune`; None where
    the pack does not say."""
    settings = pack.info.source.get("settings")
    return {
        "name": pack.info.name,
        "digest": pack.digest,
        "source_kind": pack.info.source.get("kind"),
        "content_digest": pack.info.source.get("content_digest"),
        "image_size": pack.info.image_size,
        "seed": settings.get("seed") if isinstance(settings, dict) else None,
        "classes": len(pack.info.classes),
        "counts": {name: split.count for name, split in pack.info.splits.items()},
    }


def command() -> str:
    """What was typed to run this process, quoted for a shell; `tinlab` where that was `python -m tinlab`."""
    name = Path(sys.argv[0]).name
    return shlex.join(["tinlab" if name == "__main__.py" else name, *sys.argv[1:]])


def sittings(environment: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a run was trained on, first to last: one when it began, one for each time it was resumed."""
    again = environment.get("resumed")
    later = again if isinstance(again, list) else []
    return [environment, *(one for one in later if isinstance(one, dict))]


def cpu_name() -> str:
    """The processor's name as the operating system gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


WRITTEN = (
    "results", "RESULTS.md", "docs/what-helps.md", "docs/papers.md", "docs/performance.md",
    "docs/performance.png", "docs/race.png", "docs/reliability.md",
)  # fmt: skip
"""What `tinlab results`, the benchmarks and the trials write into a checkout."""


def commit() -> str | None:
    """The commit of the source tree that runs, with a + where it has changes; None outside a checkout.

    Results and the pages that are written from them are no change: rows are added while other runs go on.
    $TINLAB_COMMIT says the commit of a tree that was brought somewhere without its history.
    """
    if stated := os.environ.get("TINLAB_COMMIT"):
        return stated
    folder = Path(__file__).parent
    try:
        # A copy installed into somebody else's checkout is not that checkout's code.
        _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        outside = [f":(top,exclude){path}" for path in WRITTEN]
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", *outside)
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changes else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
