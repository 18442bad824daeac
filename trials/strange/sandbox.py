"""Where inputs are tried: a folder, a guard that looks on, and a process that may be lost.

An input is files, `{path: content}`, or what stands for one: a `Link`, a `Fifo`, a `Folder`. It is a function
of (seed, part, number), so that any of them can be made again. The code under trial is given the folder that
holds the input and one that it may write to. Nothing is written anywhere else, no program is started, no
address is called, and nothing is unpickled.
"""

from __future__ import annotations

import mmap
import os
import random
import resource
import select
import shutil
import signal
import stat
import struct
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinlab.errors import TinlabError
from tinlab.terminal import one_line

INPUT_SECONDS = 20
"""An input that takes longer hangs. The slowest honest ones take a second on a busy machine."""
LOST_SECONDS = 60
"""A process that stays with one input for so long, and takes no signal, is killed."""
MEMORY_MIB = 600
"""What inputs may add to the most memory that the process held; an image of 50 million pixels takes 400."""
ADDRESS_SPACE_MIB = 6 * 1024
"""What inputs may reserve."""
KEPT = 3
"""Inputs that are kept of each fault."""


class Fault(AssertionError):
    """An input got what it should not."""


class Hung(BaseException):
    """No Exception, so that code which catches those does not go on."""


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Fifo:
    """A named pipe that nobody writes to."""


@dataclass(frozen=True)
class Socket:
    """A socket that nobody listens at."""


@dataclass(frozen=True)
class Folder:
    """An empty folder, or one where a file is expected."""


Node = bytes | Link | Fifo | Socket | Folder
Files = Mapping[str, Node]


@dataclass(frozen=True)
class Part:
    """One kind of input. `make` draws one; `attempt(place, out)` uses the one in `place`, may write to `out`,
    and raises TinlabError where it refuses it."""

    name: str
    make: Callable[[random.Random], Files]
    attempt: Callable[[Path, Path], None]


@dataclass
class Tally:
    """What became of the inputs of one part. `faults`: where and what -> how often."""

    accepted: int = 0
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    memory_mib: float = 0.0
    """By how much the process grew beyond what it held before the first input."""
    sentences: Counter[str] = field(default_factory=Counter)
    """The first words of what was said of the refused."""

    @property
    def tried(self) -> int:
        return self.accepted + self.refused + self.faults.total()


def drawn(part: Part, seed: int, number: int) -> Files:
    """Input `number`."""
    return part.make(random.Random(f"{seed} {part.name} {number}"))


def write_files(place: Path, files: Files) -> None:
    """Make the input in the empty folder `place`."""
    for name, node in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(node, bytes):
            path.write_bytes(node)
        elif isinstance(node, Link):
            path.symlink_to(node.target)
        elif isinstance(node, Fifo):
            os.mkfifo(path)
        elif isinstance(node, Socket):
            os.mknod(path, stat.S_IFSOCK | 0o600)
        else:
            path.mkdir(exist_ok=True)


def tree(place: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below `place`: path -> kind, bytes and time of change."""
    found = {}
    waiting = [place]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                found[entry.path] = (
                    status.st_mode,
                    status.st_size if entry.is_file(follow_symlinks=False) else 0,
                    status.st_mtime_ns,
                )
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
    return found


class Guard:
    """Notes what the process does beyond reading and computing. An audit hook stays, so there is one."""

    STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile")
    CHANGES = ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate",
               "os.chmod", "os.chown", "shutil.rmtree", "shutil.move", "shutil.copyfile")  # fmt: skip
    CALLS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "pickle.find_class")

    def __init__(self) -> None:
        self.allowed: str | None = None
        self.seen: list[str] = []
        self._hooked = False

    @contextmanager
    def watching(self, allowed: Path) -> Iterator[None]:
        """Raise Fault at the end where anything outside of `allowed` was written to."""
        if not self._hooked:
            sys.addaudithook(self._hook)
            self._hooked = True
        self.seen.clear()
        self.allowed = str(allowed)
        try:
            yield
        finally:
            self.allowed = None
        if self.seen:
            raise Fault(f"it did what it should not: {self.seen[0]}")

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes and not isinstance(path, int):
                self._note(event, path)
        elif event in self.CHANGES:
            paths = arguments[:2] if event in ("os.rename", "os.link", "shutil.move") else arguments[:1]
            paths = arguments[1:2] if event == "os.symlink" else paths
            # The last arguments are open folders that relative paths are counted from, or -1.
            counted = event.startswith("os.") and event != "os.truncate"
            folders = arguments[-len(paths) :] if counted else (-1, -1)
            for path, folder in zip(paths, folders, strict=False):
                if not isinstance(path, int):
                    self._note(event, path, folder if isinstance(folder, int) else -1)
        elif event in self.STARTS or event in self.CALLS:
            self.seen.append(f"{event} {arguments!r}"[:300])

    def _note(self, event: str, path: Any, folder: int = -1) -> None:
        try:
            base = os.getcwd() if folder < 0 else os.readlink(f"/proc/self/fd/{folder}")  # noqa: PTH109, PTH115
            text = os.path.normpath(os.path.join(base, os.fsdecode(path)))  # noqa: PTH118 (no Path in a hook)
        except (TypeError, ValueError, OSError):
            text = repr(path)
        inside = text == self.allowed or text.startswith(f"{self.allowed}/")
        if not inside and text != os.devnull and "__pycache__" not in text:
            self.seen.append(f"{event} {text}"[:300])


GUARD = Guard()


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Hung(f"it took more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def try_one(part: Part, files: Files, sandbox: Path, seconds: float = INPUT_SECONDS) -> str | None:
    """Give `files` to the part in the folder `sandbox`, which is emptied.

    Returns None where they were accepted, and what was said where they were refused. Raises Fault otherwise.
    """
    shutil.rmtree(sandbox, ignore_errors=True)
    place, out = sandbox / "in", sandbox / "out"
    place.mkdir(parents=True)
    out.mkdir()
    write_files(place, files)
    before = tree(place)
    refusal: str | None = None
    try:
        with warnings.catch_warnings(), _alarm(seconds), GUARD.watching(out):
            warnings.simplefilter("ignore")
            try:
                part.attempt(place, out)
            except TinlabError as error:
                refusal = said(error)
    except Fault:
        raise
    except (Exception, Hung) as error:
        raise Fault(where(error)) from error
    if tree(place) != before:
        raise Fault("it changed the input")
    return refusal


def said(error: TinlabError) -> str:
    """The line that the command line prints of `error`. Raises Fault where that is no clear sentence."""
    line = one_line(str(error))
    if error.exit_code != 2:
        raise Fault(f"exit code {error.exit_code}: {line[:200]}")
    acting = any(
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\u202e\u2066\ufeff" for c in line
    )
    if len(line) < 10 or "Traceback" in line or acting:
        raise Fault(f"no sentence: {line!r}")
    line.encode()  # as a terminal is given it
    return line


def where(error: BaseException) -> str:
    """The error's type, the innermost line of tinlab that it passed, and its words."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tinlab/" in frame.filename]
    frames = frames or traceback.extract_tb(error.__traceback__)
    line = f"{frames[-1].filename.rpartition('/tinlab/')[2]}:{frames[-1].lineno}" if frames else "?"
    words = one_line(str(error)[:2000])
    return f"{type(error).__name__} at {line}: {words[:160]}"


def memory_mib() -> float:
    """The most memory that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def try_all(
    part: Part,
    numbers: range,
    seed: int,
    *,
    keep: Path,
    say: Callable[[str], None] = print,
    slow: float = INPUT_SECONDS,
) -> Tally:
    """Try the inputs `numbers`, in a process of its own that is begun anew where an input ends it.

    Inputs with faults are kept below `keep`, a folder each, with what went wrong.
    """
    tally = Tally()
    at = mmap.mmap(-1, 8)
    first = numbers.start
    while first < numbers.stop:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _child(part, range(first, numbers.stop), seed, at, writing, slow)
        os.close(writing)
        ended, first = _attend(part, seed, child, reading, at, tally, keep, say), numbers.stop
        if ended is not None:
            number = struct.unpack("<q", at[:8])[0]
            _keep(tally, keep, part, seed, number, ended, say)
            first = number + 1
    return tally


def _child(part: Part, numbers: range, seed: int, at: mmap.mmap, writing: int, slow: float) -> None:
    """Try `numbers`, and write a line for each that is worth one. Does not return."""
    try:
        sandbox = Path(tempfile.mkdtemp(prefix="tinlab-inputs-", dir=_quick_folder()))
        with os.fdopen(writing, "w", buffering=1) as tell:
            held = memory_mib()
            reserved = _reserved_bytes()
            limit = reserved + ADDRESS_SPACE_MIB * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            for number in numbers:
                at[:8] = struct.pack("<q", number)
                files = drawn(part, seed, number)
                begun = time.perf_counter()
                try:
                    refusal = try_one(part, files, sandbox, slow)
                    line = "accepted\t" if refusal is None else f"refused\t{refusal[:60]}"
                except Fault as fault:
                    line = f"fault\t{str(fault)[:400]}"
                took, grown = time.perf_counter() - begun, memory_mib() - held
                if grown > MEMORY_MIB:
                    line = f"fault\tMemory: it took {grown:,.0f} MiB"
                    held += grown
                tell.write(f"{number}\t{took:.3f}\t{grown:.0f}\t{' '.join(line.split(chr(10)))}\n")
        shutil.rmtree(sandbox, ignore_errors=True)
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def _attend(
    part: Part,
    seed: int,
    child: int,
    reading: int,
    at: mmap.mmap,
    tally: Tally,
    keep: Path,
    say: Callable[[str], None],
) -> str | None:
    """Count what the child tells. How it was lost, or None where it came to its end."""
    heard, last, rest = time.monotonic(), -1, b""
    try:
        while True:
            ready, _, _ = select.select([reading], [], [], 1.0)
            now = struct.unpack("<q", at[:8])[0]
            if now != last:
                heard, last = time.monotonic(), now
            if not ready:
                if time.monotonic() - heard > LOST_SECONDS:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    return f"Hung: it stayed with one input for more than {LOST_SECONDS} seconds"
                continue
            read = os.read(reading, 1 << 16)
            if not read:
                break
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                number, took, grown, verdict, words = line.decode(errors="replace").split("\t", 4)
                tally.slowest_seconds = max(tally.slowest_seconds, float(took))
                tally.memory_mib = max(tally.memory_mib, float(grown))
                if verdict == "accepted":
                    tally.accepted += 1
                elif verdict == "refused":
                    tally.refused += 1
                    tally.sentences[words] += 1
                else:
                    _keep(tally, keep, part, seed, int(number), words, say)
    finally:
        os.close(reading)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return None
    return f"Lost: the process ended with {code if code > 0 else signal.Signals(-code).name}"


def _keep(
    tally: Tally, keep: Path, part: Part, seed: int, number: int, why: str, say: Callable[[str], None]
) -> None:
    """Count a fault, and put the first inputs of its kind below `keep`."""
    kind = why.partition(": ")[0] if " at " in why.partition(": ")[0] else why[:80]
    tally.faults[kind] += 1
    if tally.faults[kind] > KEPT:
        return
    folder = keep / f"{part.name}-{seed}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    write_files(folder / "in", drawn(part, seed, number))
    (folder / "why.txt").write_text(why + "\n", encoding="utf-8", errors="backslashreplace")
    say(f"{part.name} {number}: {why}\n  kept in {folder}")
    say(f"  again: python trials/inputs.py {part.name} --seed {seed} --only {number}")


def _quick_folder() -> str | None:
    """Memory, where there is such a folder: flushing to a disk is not what is tried."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _reserved_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()
