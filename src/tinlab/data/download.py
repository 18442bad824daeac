"""The official archive, fetched so that a break costs only what had not arrived, and verified by its content.

While it arrives the archive lies in `NAME.partial`, with `NAME.partial.json` beside it, which says what is in
it: the address, the length, and the server's name for this version of the file (ETag or Last-Modified), so
that a file that changed in the meantime is not glued to an old half. It is renamed to NAME only when its
content is right.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tinlab.data.digests import OFFICIAL_DIGEST
from tinlab.data.places import cache_folder
from tinlab.errors import TinlabError
from tinlab.files import read_json, write_json

OFFICIAL_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"

_BLOCK = 1 << 18
_PAUSE_LIMIT_SECONDS = 60.0
_RETRIED = (408, 429, 500, 502, 503, 504)


def download(
    folder: Path | None = None,
    *,
    url: str = OFFICIAL_URL,
    expected: str = OFFICIAL_DIGEST,
    progress: Callable[[int, int | None], None] | None = None,
    retries: int = 5,
    timeout_seconds: float = 30.0,
    pause_seconds: float = 1.0,
) -> Path:
    """Fetch the zip at `url` into `folder` (default: `cache_folder()`) and return its path.

    Continues where an earlier call was interrupted. A file that is there and was verified before is returned
    at once. `expected` is the content digest that the archive must have (`archive_content_digest`): mirrors
    repack the archive, so its own bytes say nothing.

    `progress(done, total)` is called with bytes; `total` is None where the server does not say. A dropped
    connection, a server's error, or `timeout_seconds` without a byte is tried again, up to `retries` times in
    a row without a new byte, after `pause_seconds`, then twice that, and so on up to a minute.

    Raises TinlabError where the address is refused or cannot be reached, where the folder cannot be written
    or the disk is full, where another download to this place is under way, or where the content is wrong; the
    wrong file is then in NAME.wrong, and the next call starts afresh.
    """
    name = _name(url)
    folder = cache_folder() if folder is None else folder
    target = folder / name
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{name}.lock"):
        if _was_verified(target, expected):
            return target
        if target.exists():
            with _writing(folder):
                if _is_right(target, expected):
                    return target
                target.replace(folder / f"{name}.wrong")
        partial = folder / f"{name}.partial"
        _fetch_with_retries(partial, url, progress, retries, timeout_seconds, pause_seconds)
        _accept(partial, target, url, expected)
    return target


def archive_content_digest(path: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """SHA-256 over the sorted lines `SHA256  PATH` of all files in the zip `path`, in hex.

    Paths are as the archive has them, so the official one's begin with `tiny-imagenet-200/`. `progress(done,
    total)` counts files. Takes 5 s for Tiny ImageNet. Raises TinlabError where `path` is not a zip, or a
    broken one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            names = [entry.filename for entry in entries]
            if len(set(names)) < len(names):
                raise TinlabError(f"{path} is not usable: it holds two files of one name; download it again")
            digests: dict[str, str] = {}
            for done, entry in enumerate(entries, 1):
                state = hashlib.sha256()
                with archive.open(entry) as file:
                    while block := file.read(_BLOCK):
                        state.update(block)
                digests[entry.filename] = state.hexdigest()
                if progress is not None and (done % 1000 == 0 or done == len(entries)):
                    progress(done, len(entries))
    # RuntimeError: an encrypted file; NotImplementedError, one of its kind: an unknown compression.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise TinlabError(
            f"{path} is not a whole zip archive ({error}){_beginning(path)}; download it again"
        ) from error
    except OSError as error:
        raise TinlabError(f"{path} cannot be read ({error.strerror or error}); download it again") from error
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


class _BreakError(Exception):
    """The connection gave out in a way that trying again may mend."""


@dataclass(frozen=True)
class _Version:
    """What a partial file is a part of; `total` in bytes, `validator` an ETag or a Last-Modified date."""

    url: str
    validator: str | None
    total: int | None

    @staticmethod
    def read(path: Path) -> _Version | None:
        try:
            value = read_json(path)
            total = value["total"]
            return _Version(str(value["url"]), value["validator"], None if total is None else int(total))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _name(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    name = urllib.parse.unquote(parts.path).rsplit("/", 1)[-1]
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise TinlabError(f"'{url}' is not an http or https address; give one, such as {OFFICIAL_URL}")
    if name in ("", ".", "..") or "\0" in name or "\\" in name:
        raise TinlabError(
            f"'{url}' does not end in a file's name; give one that does, such as {OFFICIAL_URL}"
        )
    return name


def _fetch_with_retries(
    partial: Path,
    url: str,
    progress: Callable[[int, int | None], None] | None,
    retries: int,
    timeout_seconds: float,
    pause_seconds: float,
) -> None:
    failures, furthest = 0, _size(partial)
    while True:
        try:
            _fetch(partial, url, progress, timeout_seconds)
            return
        except _BreakError as error:
            failures += 1
            # Only ground never reached before counts as progress: a server that ignores Range and always
            # breaks in the same place would be asked for ever.
            if _size(partial) > furthest:
                failures, furthest = 1, _size(partial)
            if failures > retries:
                raise TinlabError(
                    f"{url} cannot be fetched ({error}); "
                    "run the same command again to continue where it broke"
                ) from error
        time.sleep(min(pause_seconds * 2 ** (failures - 1), _PAUSE_LIMIT_SECONDS))


def _fetch(
    partial: Path, url: str, progress: Callable[[int, int | None], None] | None, timeout_seconds: float
) -> None:
    """Ask once for what is missing from `partial`. Raises _BreakError where it is worth asking again."""
    sidecar = partial.with_name(f"{partial.name}.json")
    have, version = _size(partial), _Version.read(sidecar)
    if version is None or version.url != url or (version.total is not None and have > version.total):
        have = 0
    elif have == version.total:
        return
    elif version.validator is None:
        have = 0  # nothing could say whether the rest belongs to this half
    headers = {"User-Agent": "tinlab", "Accept-Encoding": "identity"}
    if have and version is not None and version.validator is not None:
        headers |= {"Range": f"bytes={have}-", "If-Range": version.validator}
    with _reading(url):
        try:
            response = _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout_seconds)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and have:
                # The file has become shorter, or ended where ours ends without ever having said its length.
                if error.headers.get("Content-Range") == f"bytes */{have}":
                    return
                _start_over(partial)
                raise _BreakError("the file changed on the server") from error
            if error.code in _RETRIED:
                raise _BreakError(f"the server answered {error.code} {error.reason}") from error
            raise TinlabError(
                f"{url} cannot be fetched (the server answered {error.code} {error.reason}); "
                "check the address, or give a mirror's"
            ) from error
    with response:
        told = _Version(url, _validator(response.headers), _length(response, have))
        if response.status == 206 and version is not None:
            span = response.headers.get("Content-Range", "")
            same = told.validator in (None, version.validator)
            if not same or not span.startswith(f"bytes {have}-"):
                _start_over(partial)
                raise _BreakError("the file changed on the server")
            told = _Version(url, version.validator, told.total if version.total is None else version.total)
        else:
            have = 0
        _receive(response, partial, sidecar, have, told, progress)


def _receive(
    response: http.client.HTTPResponse,
    partial: Path,
    sidecar: Path,
    have: int,
    told: _Version,
    progress: Callable[[int, int | None], None] | None,
) -> None:
    with _writing(partial.parent):
        if told.total is not None:
            missing = told.total - have
            free = shutil.disk_usage(partial.parent).free
            if missing > free:
                raise OSError(errno.ENOSPC, f"{missing:,} bytes are missing and {free:,} are free")
        file = partial.open("ab" if have else "wb")
    with file:
        with _writing(partial.parent):
            write_json(sidecar, asdict(told))
        if progress is not None:
            progress(have, told.total)
        while True:
            with _reading(told.url):
                block = response.read1(_BLOCK)
            if not block:
                break
            with _writing(partial.parent):
                file.write(block)
                # What has arrived is then on the disk when a break or a signal ends this.
                file.flush()
            have += len(block)
            if progress is not None:
                progress(have, told.total)
        with _writing(partial.parent):
            os.fsync(file.fileno())
    if told.total is not None and have < told.total:
        raise _BreakError(f"the connection closed after {have:,} of {told.total:,} bytes")


def _accept(partial: Path, target: Path, url: str, expected: str) -> None:
    """Rename `partial` to `target` if its content is right, else to NAME.wrong, and say so."""
    wrong = target.with_name(f"{target.name}.wrong")
    try:
        digest = archive_content_digest(partial)
        why = "" if digest == expected else f"its content digest is {digest}, and {expected} was expected"
    except TinlabError as error:
        why = str(error).removeprefix(f"{partial} ").removesuffix("; download it again")
    with _writing(target.parent):
        partial.replace(wrong if why else target)
        partial.with_name(f"{partial.name}.json").unlink(missing_ok=True)
        if not why:
            _remember(target, expected)
    if why:
        raise TinlabError(
            f"what {url} sent is not the expected archive ({why}); it was moved to {wrong}, "
            "so try again, or give a mirror's address"
        )


def _is_right(target: Path, expected: str) -> bool:
    try:
        right = archive_content_digest(target) == expected
    except TinlabError:
        return False
    if right:
        _remember(target, expected)
    return right


def _note(target: Path) -> Path:
    return target.with_name(f"{target.name}.verified.json")


def _remember(target: Path, digest: str) -> None:
    state = target.stat()
    write_json(_note(target), {"digest": digest, "size": state.st_size, "mtime_ns": state.st_mtime_ns})


def _was_verified(target: Path, expected: str) -> bool:
    try:
        note, state = read_json(_note(target)), target.stat()
        return bool(note == {"digest": expected, "size": state.st_size, "mtime_ns": state.st_mtime_ns})
    except (OSError, ValueError):
        return False


def _start_over(partial: Path) -> None:
    with _writing(partial.parent):
        partial.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _validator(headers: http.client.HTTPMessage) -> str | None:
    """A strong ETag, else the date of the last change. A weak ETag does not promise the same bytes."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _length(response: http.client.HTTPResponse, have: int) -> int | None:
    """The whole file's length, in bytes, as far as the server says it."""
    if response.status == 206:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isascii() and total.isdigit() else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isascii() and length.isdigit() else None


def _opener() -> urllib.request.OpenerDirector:
    """Follows redirects, but only to http and https: urllib's own opener reads ftp, file and data as well."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


@contextmanager
def _reading(url: str) -> Iterator[None]:
    """Errors of the network become _BreakError."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise _BreakError(str(reason) or type(error).__name__) from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Errors of the disk become a sentence."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        mend = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check its permissions"
        raise TinlabError(f"{folder} cannot be written ({why}); {mend}, or choose another folder") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock `path`. The operating system lets go of it when the process ends, however it ends.

    The file stays: were it removed, two processes could hold locks on two files of this name.
    """
    with _writing(path.parent):
        file = path.open("a")
    with file:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _busy(path) from error
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):  # what Windows says of a lock that is held
                raise _busy(path) from error
            raise TinlabError(
                f"{path} cannot be locked ({error.strerror}); choose a folder on another disk"
            ) from error
        yield


def _busy(path: Path) -> TinlabError:
    return TinlabError(f"another download to {path.parent} is under way; wait until it has ended")


def _beginning(path: Path) -> str:
    """For people, what a file that is no archive begins with, such as a web page."""
    try:
        with path.open("rb") as file:
            head = file.read(40)
    except OSError:
        return ""
    text = head.decode("ascii", "replace").strip()
    return "" if head.startswith(b"PK") or not text else f": it begins with {text!r}"
