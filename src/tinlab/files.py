"""Files that are either the old ones or the new ones, never half of each.

Everything that must survive a kill or a full disk is written beside its place, flushed to the disk, and
renamed into it. A writer holds a lock (flock) on its temporary file. The operating system drops it when the
process ends, however it ends, so a temporary file without a lock belongs to nobody and can be removed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tinlab.errors import TinlabError

try:
    import fcntl
except ImportError:  # not a POSIX system: leftovers stay until somebody removes them
    fcntl = None  # type: ignore[assignment]

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOENT, errno.EIO, errno.EFBIG)
"""What a disk says that a person can mend: it is full, or the place is not one to write to."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary path beside `path`, flush the result to the disk, and rename it to `path`.

    What killed writers of `path` left is removed. Raises whatever `write` raises, where it is an OSError with
    `path` as its filename; `path` is then untouched and the temporary file is gone.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        temporary, lock = _temporary_file(path)
        try:
            write(temporary)
            flush(temporary)
            temporary.chmod(0o666 & ~current_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            _let_go(lock)
        flush_folder(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files in `folder` of writers that were killed: of the file `name`, or of all.

    Those of living writers stay. Raises OSError where `folder` cannot be read.
    """
    if fcntl is None:
        return
    ours = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.[a-z0-9_]{{8}}\.partial")
    for entry in os.scandir(folder):
        if not (ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)):
            continue
        with contextlib.suppress(OSError):  # its owner lives, or it went away by itself
            handle = os.open(entry.path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                Path(entry.path).unlink()
            finally:
                os.close(handle)


def _temporary_file(path: Path) -> tuple[Path, int | None]:
    """A new file beside `path`, and the handle whose lock says that it is in use."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        if fcntl is None:
            os.close(handle)
            return Path(name), None
        with contextlib.suppress(OSError):  # a file system without locks: then nobody can remove it either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.lexists(name):  # else another process found it in the instant before the lock
            return Path(name), handle
        os.close(handle)


def _let_go(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Let one process at a time change the files of `folder`; the others wait. A lock on the folder itself,
    which dies with its holder. Raises OSError where there is no such folder."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):  # closing would not do where a process was forked meanwhile
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def refused(error: OSError, place: str | Path | None = None) -> str | None:
    """What to tell a person of a disk that is full or not to be written to: a sentence and how to mend it.

    None for an error of another kind. `place` is by default the file that `error` names.
    """
    where = place if place is not None else error.filename
    if error.errno in FULL:
        where = "a file" if where is None else where
        return f"{where} cannot be written: the disk is full; make room and give the command again"
    if error.errno not in REFUSED or where is None:
        return None
    why = (error.strerror or str(error)).lower()
    return f"{where} cannot be used ({why}); check the place and its permissions, or name another"


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically. NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises OSError or ValueError."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_given_json(path: Path) -> Any:
    """The JSON value in `path`, which a person wrote or named. Raises TinlabError that says what is wrong."""
    try:
        return read_json(path)
    except OSError as error:
        raise TinlabError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TinlabError(f"{path} is not JSON: {error}") from error


def write_flushed(path: Path, content: bytes) -> None:
    """Write `content` to `path` in place, to the disk itself: for a folder that is not in use yet."""
    path.write_bytes(content)
    flush(path)


def flush(path: Path) -> None:
    """Bring what was written to `path`, by whatever process, to the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable, where the operating system has a call for it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def current_umask() -> int:
    """The process's umask (there is no way to read it but to set it)."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
