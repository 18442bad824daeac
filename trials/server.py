"""Requests from strangers, many of them, to `tinlab serve` on this machine.

    python trials/server.py fuzz --inputs 10000       # any bytes; and what reaches the disk
    python trials/server.py hosts --inputs 10000      # Host and Origin headers
    python trials/server.py api --requests 10000      # schemathesis, on the server's own description
    python trials/server.py overload --seconds 60
    python trials/server.py slow --clients 80
    python trials/server.py connections --count 2000
    python trials/server.py soak --minutes 10

A tiny network on rendered images is trained first, in seconds; `--run RUN` serves another. schemathesis is no
dependency: it is looked for beside this Python and on PATH, or named with `--schemathesis`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))

from crowds import connections, overload, slow, soak
from ledger import Promise, record
from served import Tally, added, allow_files, as_process, in_thread, tiny_run
from strangers import (
    MARK,
    Answer,
    Place,
    ask,
    classify,
    faults,
    is_whole,
    made_input,
    mutated,
    pictures,
    request,
)

TEST = "tests/reliability/test_server_limits.py"
PROMISES: tuple[Promise, ...] = (
    Promise(
        "server.bytes",
        "Whatever bytes arrive, the server answers with a status that it documents and a sentence, or closes "
        "the connection; no answer says that it failed, holds a traceback or a path of the disk, or is late.",
        f"{TEST}::test_any_bytes_are_answered_or_refused",
        "python trials/server.py fuzz --inputs 10000",
    ),
    Promise(
        "server.disk",
        "No request makes the server write a file, or open one but for Python code that is imported late.",
        f"{TEST}::test_no_request_reaches_the_disk",
        "python trials/server.py fuzz --inputs 10000",
    ),
    Promise(
        "server.api",
        "Every answer is as the server's own OpenAPI document says, to requests that follow it and others.",
        f"{TEST}::test_answers_are_those_that_are_documented",
        "python trials/server.py api --requests 10000",
    ),
    Promise(
        "server.hosts",
        "A name that a stranger points at this machine gets no answer, and no other site's page may post.",
        f"{TEST}::test_only_own_names_and_own_pages",
        "python trials/server.py hosts --inputs 10000",
    ),
    Promise(
        "server.overload",
        "Asked for more than it can do, the server says 503 with Retry-After at once, answers what it took "
        "on, and goes on.",
        f"{TEST}::test_overload_is_refused_and_passes",
        "python trials/server.py overload --seconds 60",
    ),
    Promise(
        "server.slow",
        "Clients that send a head or a body drop by drop, or do not read what they asked for, are cut off in "
        "time, and others are answered meanwhile.",
        f"{TEST}::test_slow_clients_are_cut_off",
        "python trials/server.py slow --clients 80",
    ),
    Promise(
        "server.connections",
        "Thousands of silent connections do not keep others from being answered.",
        f"{TEST}::test_silent_connections_make_room",
        "python trials/server.py connections --count 2000",
    ),
    Promise(
        "server.soak",
        "Under steady load the server's memory stays flat.",
        f"{TEST}::test_nothing_of_a_request_is_kept",
        "python trials/server.py soak --minutes 10",
    ),
)
PROMISED = {promise.id: promise for promise in PROMISES}


class Heard(logging.Handler):
    """What the program logs as errors while this is entered."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage().partition("\n")[0])

    def __enter__(self) -> Heard:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


async def _fuzz(place: Place, seeds: Sequence[int], at_once: int, linger: float) -> Tally:
    tally, left = Tally(), iter(seeds)

    async def client() -> None:
        for seed in left:
            data = made_input(seed)
            try:
                answer = await ask(place, data, linger=None if is_whole(data) else linger)
            except TimeoutError:
                tally.fail(f"input {seed}: the connection is not closed")
                answer = Answer(None, b"", b"", 0)
            tally.tried += 1
            tally.statuses[answer.status] += 1
            if wrong := faults(answer, data):
                tally.fail(f"input {seed}: {', '.join(wrong)}")

    async def others() -> None:
        """Somebody who asks for nothing special is answered meanwhile."""
        while True:
            sound = await ask(place, request())
            if sound.status != 200:
                tally.fail(f"others get {sound.status}")
            await asyncio.sleep(0.5)

    beside = asyncio.create_task(others())
    await asyncio.gather(*(client() for _ in range(at_once)))
    if beside.done():
        tally.fail(f"others are not answered: {beside.exception()!r}")
    beside.cancel()
    after = await ask(place, classify(pictures()[0]))
    if after.status != 200:
        tally.fail(f"afterwards a sound request gets {after.status}")
    return tally


def fuzz(place: Place, seeds: Sequence[int], *, at_once: int = 16, linger: float = 0.3) -> Tally:
    """Send the inputs of numbers `seeds`; each must be answered as `faults` wants, or closed."""
    began = time.monotonic()
    with Heard() as heard:  # of a server in this process
        tally = asyncio.run(_fuzz(place, seeds, at_once, linger))
    for line in heard.said:
        tally.fail(f"the log says: {line}")
    tally.seconds = time.monotonic() - began
    return tally


class Opened:
    """What this process opened, by Python's own audit events, while `watching`."""

    def __init__(self) -> None:
        self.watching = False
        self.read: set[str] = set()
        self.written: set[str] = set()
        sys.addaudithook(self._hear)  # it cannot be taken away again

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event == "open" and isinstance(given[0], str | bytes):
            path, mode, flags = given
            writes = bool(set(mode or "") & set("wax+")) or bool(
                (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            (self.written if writes else self.read).add(os.fsdecode(path))
        elif event in (
            "os.mkdir",
            "os.rename",
            "os.remove",
            "os.rmdir",
            "os.symlink",
            "os.link",
            "os.truncate",
        ):
            self.written.add(os.fsdecode(given[0]))
        elif event in ("os.listdir", "os.scandir", "os.chdir") and isinstance(given[0], str | bytes):
            self.read.add(os.fsdecode(given[0]))

    @contextlib.contextmanager
    def during(self) -> Iterator[None]:
        self.read, self.written = set(), set()
        self.watching = True
        try:
            yield
        finally:
            self.watching = False

    def strange(self) -> list[str]:
        """What was written, and what was read besides Python's own code, which is imported when needed."""
        code = (sys.prefix, sys.base_prefix)
        strange = {path for path in self.read if MARK in path or not _is_own(path, code)}
        return sorted(f"read {path}" for path in strange) + sorted(f"wrote {path}" for path in self.written)


def _is_own(path: str, code: tuple[str, ...]) -> bool:
    place = os.path.realpath(path)
    roots = [os.path.realpath(root) for root in code] + [os.path.realpath(root) for root in sys.path if root]
    inside = any(place == root or place.startswith(root + os.sep) for root in roots)
    return inside and (Path(place).is_dir() or place.endswith((".py", ".pyc", ".so")))


# Names and origins

FOREIGN = [
    "evil.example", "10.0.0.1", "LOCALHOST", "0.0.0.0", "[::]", "localhost.evil.example",
    "127.0.0.1.evil.example", "127.1", "2130706433", "0x7f.1", "evil.example#localhost",
    "localhost@evil.example", "evil.example\\@localhost", "[::1]evil", "localhost,evil",
]  # fmt: skip


def hosts(seeds: Sequence[int]) -> Tally:
    """Host and Origin headers, to the guard of a server on 127.0.0.1: only its own names pass, and only its
    own pages post. What a name is, is worked out here by other means than the guard's."""
    from starlette.datastructures import Headers

    from tinlab.serve.guard import Guard

    async def nothing(*_: Any) -> None: ...

    guard, tally, began = Guard(nothing, "127.0.0.1"), Tally(), time.monotonic()
    own = ("localhost", "127.0.0.1", "[::1]")
    for seed in seeds:
        draw = random.Random(seed)
        name = draw.choice((*own, *FOREIGN))
        host = name + draw.choice(("", ":8000", ":80", ":", ".", ":99999", ":x", "/", "?", "#"))
        if draw.random() < 0.3:
            host = mutated(draw, host.encode(), 2).decode("latin-1")
        origins = (f"http://{host}", f"https://{host}", f"http://{host}.evil.example", f"ftp://{host}")
        origin = draw.choice((None, "null", "", "http://evil.example", "http://localhost:1", *origins))
        site = draw.choice((None, None, "same-origin", "cross-site", "same-site", "none"))
        method = draw.choice(("GET", "POST", "PUT", "HEAD"))
        headers = {"host": host} | ({} if origin is None else {"origin": origin})
        headers |= {} if site is None else {"sec-fetch-site": site}
        refused = guard.refusal(method, Headers(headers))
        known = re.fullmatch(r"(?i)(localhost|127\.0\.0\.1)\.?(:\d{0,5})?|\[::1\](:\d{0,5})?", host)
        same = origin is None or origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())
        allowed = bool(known) and (
            method in ("GET", "HEAD") or (same and site in (None, "same-origin", "none"))
        )
        if refused is None and not allowed:
            tally.fail(f"{method} to {host!r} from {origin!r} ({site}) is answered")
        tally.tried += 1
        tally.statuses[refused[0] if refused else 200] += 1
    # What must pass, passes.
    for name in own:
        for port in ("", ":8000"):
            given = Headers(
                {"host": name + port, "origin": f"http://{name}{port}", "sec-fetch-site": "same-origin"}
            )
            tally.tried += 1
            if guard.refusal("POST", given):
                tally.fail(f"its own page at {name}{port} is refused")
    tally.seconds = time.monotonic() - began
    return tally


# schemathesis


def find_schemathesis(stated: str | None) -> str:
    """The command; ends the process with a sentence where there is none."""
    beside = Path(sys.executable).parent / "schemathesis"
    found = stated or (str(beside) if beside.is_file() else shutil.which("schemathesis"))
    if not found:
        sys.exit("schemathesis is not installed; install it into an environment of its own, and name it with "
                 "--schemathesis PATH")  # fmt: skip
    return found


def api(place: Place, command: str, requests: int, folder: Path) -> Tally:
    """schemathesis makes `requests` requests or more, sound and unsound, of the server's description."""
    report, tally, began = folder / "report.json", Tally(), time.monotonic()
    here = str(Path(__file__).resolve().parent)
    environment = {**os.environ, "PYTHONPATH": here, "SCHEMATHESIS_HOOKS": "api_hooks"}
    for seed in itertools.count(1):
        # `positive_data_acceptance` is left out: a schema cannot say what a picture is.
        words = [
            command, "run", f"http://{place[0]}:{place[1]}/openapi.json", "--seed", seed, "--no-color",
            "--phases", "examples,coverage,fuzzing", "--exclude-checks", "positive_data_acceptance",
            "--continue-on-failure", "--max-examples", min(500, max(1, (requests - tally.tried) // 4)),
            "--report-json-path", report, "--generation-database", "none", "--suppress-health-check", "all",
            "--request-timeout", 60,
        ]  # fmt: skip
        done = subprocess.run(
            list(map(str, words)),
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env=environment,
        )
        if not report.is_file():
            sys.exit(f"schemathesis does not run: {done.stdout[-2000:]} {done.stderr[-2000:]}")
        told = json.loads(report.read_text())
        report.unlink()
        cases = told["test_cases"]
        tally.tried += cases["generated"]
        tally.failed += cases["with_failures"] + cases["errored"]
        for failure in told["failures"]:
            tally.wrong[f"{failure['title']}: {', '.join(failure['operations'])}"] += failure["count"]
        accepted = sum(p["accepted"] for rates in told["valid_rates"].values() for p in rates.values())
        tally.statuses[200] += accepted
        if cases["with_failures"] or cases["errored"] or not told["complete"]:
            lines = (line[:200] for line in done.stdout.splitlines())
            print(*("".join(c for c in line if c.isprintable()) for line in lines), sep="\n")
        print(f"seed {seed}: {cases['generated']:,} requests, {cases['with_failures']} failed", flush=True)
        if tally.tried >= requests or not cases["generated"]:
            break
    tally.note = f"schemathesis {told['schemathesis_version']}; accepted of those that its schema allows:"
    tally.seconds = time.monotonic() - began
    return tally


# Command line


def _finish(id: str, tally: Tally, unit: str, note: str = "") -> bool:
    statuses = ", ".join(
        f"{count:,} x {status or 'closed'}" for status, count in tally.statuses.most_common()
    )
    for what, times in tally.wrong.most_common(20):
        print(f"  {times} x {what}")
    words = " ".join(filter(None, (tally.note, note, f"{statuses}." if statuses else "")))
    record(PROMISED[id], tally.tried, unit, tally.failed, tally.seconds, words)
    return tally.failed == 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Requests from strangers, many of them.")
    parser.add_argument("part", choices=["fuzz", "hosts", "api", "overload", "slow", "connections", "soak"])
    parser.add_argument("--run", type=Path, help="a run folder to serve, instead of a tiny one")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=80)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--schemathesis", metavar="PATH")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server that was started is ended
    allow_files(8192)
    with contextlib.ExitStack() as stack:
        numbers = range(given.first, given.first + given.inputs)
        if given.part == "hosts":
            sys.exit(not _finish("server.hosts", hosts(numbers), "headers"))
        schemathesis = find_schemathesis(given.schemathesis) if given.part == "api" else ""
        run = given.run or stack.enter_context(tiny_run())
        if given.part == "fuzz":
            sys.exit(not _main_fuzz(run, numbers))
        options: list[object] = ["--max-queue", 64] if given.part == "overload" else []
        place, process, errors = stack.enter_context(as_process(run, "--max-bytes", 1 << 20, *options))
        if given.part == "api":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            tally, unit = api(place, schemathesis, given.requests, folder), "requests"
        elif given.part == "overload":
            tally, unit = overload(place, seconds=given.seconds), "requests"
        elif given.part == "slow":
            # 10 s for a head, 30 s for a body or to read; with room for a busy machine.
            tally, unit = slow(place, clients=given.clients, within=50), "clients"
        elif given.part == "connections":
            tally, unit = connections(place, count=given.count), "connections"
            # And where all of them may stay.
            more = stack.enter_context(as_process(run, "--max-connections", given.count + 100))[0]
            tally = added(tally, connections(more, count=given.count))
        else:
            tally, unit = soak(place, lambda: _resident(process), seconds=60 * given.minutes), "requests"
        said = errors.read_text()
        if "Traceback" in said:
            tally.fail(f"the server's log has a traceback: {said[-2000:]}")
        sys.exit(not _finish(f"server.{given.part}", tally, unit))


def _main_fuzz(run: Path, numbers: Sequence[int]) -> bool:
    from tinlab.serve import Limits
    from tinlab.serve.samples import find_samples
    from tinlab.serve.service import Service, load

    models = load([run], device="cpu")
    service = Service(models, Limits(max_bytes=1 << 20))
    opened = Opened()
    with in_thread(service, find_samples(models.values())) as place:
        fuzz(place, range(-60, 0))  # what is imported late, is imported
        with opened.during():
            tally = fuzz(place, numbers, at_once=32, linger=1.0)
    fine = _finish("server.bytes", tally, "inputs")
    disk = Tally(tally.tried, seconds=tally.seconds)
    for path in opened.strange():
        disk.fail(path)
    note = f"Files read, all of Python code: {len(opened.read)}; written: {len(opened.written)}."
    return _finish("server.disk", disk, "inputs", note) and fine


def _resident(process: int) -> int:
    import psutil

    return psutil.Process(process).memory_info().rss


if __name__ == "__main__":
    main()
