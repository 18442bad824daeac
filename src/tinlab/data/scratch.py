"""A temporary folder beside its final place, which the next process removes if this one dies.

Its owner holds a lock (flock) on the folder itself. The operating system drops the lock when the process
ends, however it ends, so a folder without a lock belongs to nobody and can be removed.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tinlab.files import current_umask, hold, let_go, remove_if_dead, unused_name

SUFFIX = ".partial"


@contextlib.contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A new, empty folder beside `place`, removed at the end unless it was renamed away by then.

    Raises OSError where it cannot be made.
    """
    folder = unused_name(place, SUFFIX)
    lock = None
    try:
        lock = _made_folder(folder)
        folder.chmod(0o777 & ~current_umask())
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        let_go(lock)


def _made_folder(path: Path) -> int | None:
    """Make the new folder `path`, and return the handle whose lock says that it is in use."""
    while True:
        path.mkdir(0o700)
        lock = hold(path)
        if path.exists():  # else another process found it in the instant before the lock, and removed it
            return lock
        let_go(lock)


def remove_leftovers(place: Path) -> None:
    """Remove the scratch folders of `place` whose owners are dead; leave those of living processes."""
    if not place.parent.is_dir():
        return
    prefix = f".{place.name}."
    for folder in place.parent.iterdir():
        if folder.name.startswith(prefix) and folder.name.endswith(SUFFIX) and folder.is_dir():
            remove_if_dead(folder)
