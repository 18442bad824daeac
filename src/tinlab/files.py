"""Files that are either the old ones or the new ones, never half of each.

Everything that must survive a kill or a full disk is written beside its place, flushed to the disk, and
renamed into it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinlab.errors import TinlabError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary path beside `path`, flush the result to the disk, and rename it to `path`.

    Raises whatever `write` raises; `path` is then untouched and the temporary file is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~current_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


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
