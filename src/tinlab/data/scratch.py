"""A temporary folder beside its final place, which the next process removes if this one dies.

Its owner holds a lock (flock) on the folder itself. The operating system drops the lock when the process
ends, however it ends, so a folder without a lock belongs to nobody and can be removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tinlab.files import current_umask

try:
    import fcntl
except ImportError:  # not a POSIX system: leftovers stay until somebody removes them
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".partial"


@contextlib.contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A new, empty folder beside `place`, removed at the end unless it was renamed away by then.

    Raises OSError where it cannot be made.
    """
    while True:
        folder = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.", suffix=SUFFIX))
        lock = _lock(folder)
        if folder.exists():  # else another process found it in the instant before the lock, and removed it
            break
        _unlock(lock)
    try:
        folder.chmod(0o777 & ~current_umask())
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def remove_leftovers(place: Path) -> None:
    """Remove the scratch folders of `place` whose owners are dead; leave those of living processes."""
    if fcntl is None or not place.parent.is_dir():
        return
    prefix = f".{place.name}."
    for folder in place.parent.iterdir():
        if not (folder.name.startswith(prefix) and folder.name.endswith(SUFFIX) and folder.is_dir()):
            continue
        with contextlib.suppress(OSError):  # its owner lives, or it went away by itself
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _lock(folder: Path) -> int | None:
    if fcntl is None:
        return None
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # a file system without locks: then nobody can take it for dead either
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
