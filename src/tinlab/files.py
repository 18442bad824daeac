"""Files that are either the old ones or the new ones, never half of each; and files that a stranger made.

Everything that must survive a kill or a full disk is written beside its place, flushed to the disk, and
renamed into it. A writer holds a lock (flock) on its temporary file. The operating system drops it when the
process ends, however it ends, so a temporary file without a lock belongs to nobody and can be removed.

What is read may come from anywhere: only regular files are opened (a pipe would be waited for, and a device
has no end), of a bounded size, and JSON is read as strictly as it is written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from tinlab.errors import TinlabError

try:
    import fcntl
except ImportError:  # not a POSIX system: leftovers stay until somebody removes them
    fcntl = None  # type: ignore[assignment]

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY,
    errno.ENOENT, errno.ENAMETOOLONG, errno.EBUSY, errno.EIO, errno.EFBIG,
)  # fmt: skip
"""What a disk says that a person can mend: it is full, or the place is not one to write to."""

MOST_TEXT_BYTES = 512 << 20
"""The largest text that is read as a whole: names of ten million images, and more."""

MOST_LEVELS = 64
"""How deeply a JSON value is nested at most. A recipe has ten levels."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary path beside `path`, flush the result to the disk, and rename it to `path`.

    What killed writers of `path` left is removed. Raises whatever `write` raises, where it is an OSError with
    `path` as its filename; `path` is then untouched and the temporary file is gone.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        # The name comes first: a signal may come before a call that makes the file returns.
        temporary = unused_name(path, ".partial")
        lock = None
        try:
            lock = made_and_held(temporary, lambda path: path.touch(0o600, exist_ok=False))
            write(temporary)
            flush(temporary)
            temporary.chmod(0o666 & ~current_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            let_go(lock)
        flush_folder(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files in `folder` of writers that were killed: of the file `name`, or of all.

    Those of living writers stay. Raises OSError where `folder` cannot be read.
    """
    ours = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.[a-z0-9_]{{8}}\.partial")
    for entry in os.scandir(folder):
        if not (ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)):
            continue
        remove_if_dead(Path(entry.path))


def hold(path: Path) -> int | None:
    """Lock the file or folder `path` for as long as this process lives, or until `let_go` of what is given.

    None where it is gone, or the operating system has no such locks.
    """
    if fcntl is None:
        return None
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # a file system without locks: then nobody can take it for dead either
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def let_go(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def remove_if_dead(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, which no living process holds."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):  # its owner lives, or it went away by itself
        lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        finally:
            os.close(lock)


def unused_name(path: Path, suffix: str) -> Path:
    """A hidden name beside `path` that nothing has."""
    while os.path.lexists(found := path.with_name(f".{path.name}.{secrets.token_hex(4)}{suffix}")):
        pass
    return found


def made_and_held(path: Path, make: Callable[[Path], None]) -> int | None:
    """Call `make`, which makes the file or folder `path`, and `hold` it."""
    while True:
        make(path)
        lock = hold(path)
        if os.path.lexists(path):  # else another process removed it in the instant before the lock
            return lock
        let_go(lock)


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
    """Write `text` to `path` as UTF-8, atomically. A lone surrogate, which a file's name may hold and UTF-8
    does not have, becomes \\udcff or the like, which in JSON stands for itself."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically. NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def is_file(path: Path) -> bool:
    """Whether `path` is a regular file; not where it is a name that no file can have."""
    try:
        return path.is_file()
    except OSError:  # too long
        return False


def check_regular(path: Path) -> None:
    """Raise OSError unless `path` is a regular file, or a link to one; it is not opened."""
    kind = path.stat().st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
    if not stat.S_ISREG(kind):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a regular file", str(path))


def read_text(path: Path) -> str:
    """The text of regular file `path`, UTF-8, with or without a byte order mark.

    Raises OSError where it is something else or holds more than MOST_TEXT_BYTES, and ValueError where it is
    not UTF-8.
    """
    check_regular(path)
    with path.open("rb") as file:
        data = file.read(MOST_TEXT_BYTES + 1)
    if len(data) > MOST_TEXT_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MOST_TEXT_BYTES >> 20} MiB", str(path))
    return data.decode("utf-8-sig")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. NaN, infinity and a key that stands twice in an object are refused. Raises
    OSError or ValueError."""
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """The JSON value in `text`, as strictly as `read_json`. Raises ValueError."""
    try:
        value = json.loads(text, parse_constant=_no_number, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level, depth = [value], 0
    while level := [
        item
        for group in level
        if isinstance(group, dict | list)
        for item in (group.values() if isinstance(group, dict) else group)
    ]:
        depth += 1
        if depth > MOST_LEVELS:  # of which whatever walks through a value may need several calls each
            raise ValueError("it is nested too deeply")
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is no number in JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has '{twice[:80]}' twice in one object")
    return found


def read_given_json(path: Path) -> Any:
    """The JSON value in `path`, which a person wrote or named. Raises TinlabError that says what is wrong.

    A lone surrogate is refused too: no text that a person wrote has one, and pydantic fails over it.
    """
    try:
        value = read_json(path)
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except OSError as error:
        raise TinlabError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeEncodeError as error:
        raise TinlabError(f"{path} is not JSON: half of a character stands alone in it") from error
    except ValueError as error:
        raise TinlabError(f"{path} is not JSON: {error}") from error


def plain(text: str) -> str:
    """`text` with U+FFFD for what is not seen but acts: names and words come from strangers' files."""
    return text if text.isprintable() else "".join(c if harmless(c) else "\ufffd" for c in text)


def harmless(character: str) -> bool:
    """Whether it neither drives a terminal nor turns text around: no control character but a line break and a
    tabulator, no format character but the joiners that scripts are written with, and no lone surrogate."""
    if character.isprintable() or character in "\n\t\u200c\u200d":
        return True
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


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
