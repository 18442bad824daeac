"""A temporary folder beside its final place, which the next process removes if this one dies.

Its owner holds a lock (flock) on the folder itself. The operating system drops the lock when the process
ends, however it ends, so a folder without a lock belongs to nobody and can be removed.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tinlab.files import current_umask, let_go, made_and_held, remove_if_dead, unused_name

SUFFIX = ".partial"


@contextlib.contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A new, empty folder beside `place`, removed at the end unless it was renamed away by then.

    Raises OSError where it cannot be made.
    """
    folder = unused_name(place, SUFFIX)
    lock = None
    try:
        lock = made_and_held(folder, lambda path: path.mkdir(0o700))
        folder.chmod(0o777 & ~current_umask())
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        let_go(lock)


def remove_leftovers(place: Path) -> None:
    """Remove the scratch folders of `place` whose owners are dead; leave those of living processes."""
    if not place.parent.is_dir():
        return
    prefix = f".{place.name}."
    for folder in place.parent.iterdir():
        if folder.name.startswith(prefix) and folder.name.endswith(SUFFIX) and folder.is_dir():
            remove_if_dead(folder)
