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
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))

from ledger import Promise, record
from strangers import (
    MARK,
    Answer,
    Place,
    ask,
    classify,
    encoded,
    faults,
    is_whole,
    made_input,
    multipart,
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
        "No request makes the server open a file, or write one.",
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


# Servers to try


@contextlib.contextmanager
def in_thread(service: Any, samples: Any) -> Iterator[Place]:
    """A server of `service` in a thread of this process; gives its host and port."""
    from tinlab.serve import server
    from tinlab.serve.api import build

    listening = server.bound("127.0.0.1", 0)
    ready = threading.Event()
    config = server.configuration(build(service, samples), service.limits)
    running = server.Server(config, ready.set, service.batcher.hurry)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        if not ready.wait(60):
            raise RuntimeError("the server did not start")
        yield listening.getsockname()[:2]
    finally:
        running.should_exit = True
        thread.join(60)


@contextlib.contextmanager
def as_process(run: Path, *options: object) -> Iterator[tuple[Place, int, Path]]:
    """`tinlab serve RUN` as a person starts it; gives its place, its process and the file of its errors."""
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors"
        environment = {**os.environ, "TINLAB_CACHE": str(Path(folder) / "cache"), "TINLAB_DATA": ""}
        words = [sys.executable, "-m", "tinlab", "serve", run, "--port", 0, "--json", *options]
        with errors.open("w") as log:
            process = subprocess.Popen(
                list(map(str, words)), stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        try:
            text = ""
            assert process.stdout is not None
            while not text.endswith("}\n"):
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"the server did not start: {errors.read_text()}")
                text += line
            port = int(json.loads(text)["address"].rpartition(":")[2])
            yield ("127.0.0.1", port), process.pid, errors
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextlib.contextmanager
def tiny_run() -> Iterator[Path]:
    """A network of some thousand weights on rendered images, trained in seconds."""
    from tinlab.data.packing import pack
    from tinlab.data.shapes import render
    from tinlab.recipe import changed
    from tinlab.recipes import find
    from tinlab.training import loop

    with tempfile.TemporaryDirectory() as folder:
        images = render(
            Path(folder) / "images", classes=4, train_per_class=30, val_per_class=10, test_images=4
        )
        packed = pack(images, Path(folder) / "pack")
        recipe = changed(find("demo"), ["schedule.steps=10", "model.width=4", "schedule.batch_size=16"])
        yield loop.train(recipe, packed, Path(folder) / "runs", device="cpu").path


def allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


@dataclass
class Tally:
    """What a trial did: `wrong` names each failure once, with how often."""

    tried: int = 0
    failed: int = 0
    seconds: float = 0.0
    statuses: Counter[int | None] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    note: str = ""

    def fail(self, what: str) -> None:
        self.failed += 1
        self.wrong[what] += 1


def added(one: Tally, other: Tally) -> Tally:
    """Both together."""
    return Tally(
        one.tried + other.tried,
        one.failed + other.failed,
        one.seconds + other.seconds,
        one.statuses + other.statuses,
        one.wrong + other.wrong,
        f"{one.note} Then: {other.note}",
    )


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


# Too much


async def _overload(place: Place, seconds: float, clients: int, images: int) -> Tally:
    tally, refusals, healthy = Tally(), [], []
    data = classify(*(encoded(seed, "JPEG") for seed in range(images)))
    end = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end:
            answer = await ask(place, data)
            tally.tried += 1
            tally.statuses[answer.status] += 1
            if answer.status == 503:
                refusals.append(answer.seconds)
            if answer.status not in (200, 503) or faults(answer, data):
                tally.fail(f"{answer.status} {faults(answer, data)}")

    async def others() -> None:
        while time.monotonic() < end:
            answer = await ask(place, request())
            healthy.append(answer.seconds)
            if answer.status != 200:
                tally.fail(f"/health: {answer.status}")
            await asyncio.sleep(0.2)

    await asyncio.gather(others(), *(client() for _ in range(clients)))
    after = await ask(place, classify(encoded(0, "JPEG")))
    if after.status != 200:
        tally.fail(f"afterwards: {after.status}")
    if not refusals:
        tally.fail("it was never overloaded")
    else:
        tally.note = (
            f"{tally.statuses[200]:,} answered; 503 after {statistics.median(refusals) * 1e3:.0f} ms in the "
            f"median and {max(refusals):.1f} s at most, /health after {max(healthy):.1f} s at most."
        )
    return tally


def overload(place: Place, *, seconds: float, clients: int = 64, images: int = 16) -> Tally:
    """`clients` that ask again at once, each for `images` images."""
    began = time.monotonic()
    tally = asyncio.run(_overload(place, seconds, clients, images))
    tally.seconds = time.monotonic() - began
    return tally


# Slow clients


async def _slow_head(place: Place) -> None:
    reader, writer = await asyncio.open_connection(*place)
    for letter in itertools.chain(
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", itertools.repeat(121)
    ):
        writer.write(bytes([letter]))
        await writer.drain()
        if reader.at_eof() or writer.transport.is_closing():
            break
        with contextlib.suppress(TimeoutError):
            if not await asyncio.wait_for(reader.read(100), 0.05):
                break
    writer.transport.abort()


async def _slow_body(place: Place) -> None:
    reader, writer = await asyncio.open_connection(*place)
    data = classify(b"x" * 1_000_000)
    writer.write(data[:400])  # up to the picture's first bytes
    while True:
        writer.write(b"x")
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            if not await asyncio.wait_for(reader.read(1000), 0.05):
                break
    writer.transport.abort()


async def _no_reader(place: Place) -> None:
    """Asks for far more than the operating system buffers, and reads nothing."""
    loop = asyncio.get_running_loop()
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.setblocking(False)
        await loop.sock_connect(one, place)
        asked = request(target="/page.js", close=False)
        while not one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            # Where the server takes no more, it is its turn.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await loop.sock_sendall(one, asked * 50)


SLOW = {"heads": _slow_head, "bodies": _slow_body, "no readers": _no_reader}


async def _slow(place: Place, clients: int, within: float) -> Tally:
    tally, took, healthy = Tally(), {kind: [] for kind in SLOW}, []  # type: ignore[var-annotated]

    async def client(kind: str) -> None:
        began = time.monotonic()
        tally.tried += 1
        try:
            async with asyncio.timeout(within):
                with contextlib.suppress(ConnectionError):
                    await SLOW[kind](place)
            took[kind].append(time.monotonic() - began)
        except TimeoutError:
            tally.fail(f"{kind}: still there after {within:g} s")

    async def others() -> None:
        while True:
            answer = await ask(place, request())
            healthy.append(answer.seconds)
            if answer.status != 200:
                tally.fail(f"others get {answer.status}")
            await asyncio.sleep(0.1)

    beside = asyncio.create_task(others())
    await asyncio.gather(*(client(kind) for kind in SLOW for _ in range(clients)))
    if beside.done():
        tally.fail(f"others are not answered: {beside.exception()!r}")
    beside.cancel()
    longest = ", ".join(f"{kind} {max(times):.1f} s" for kind, times in took.items() if times)
    tally.note = f"Cut off at the latest after: {longest}; others waited {max(healthy):.1f} s at most."
    return tally


def slow(place: Place, *, clients: int, within: float) -> Tally:
    """`clients` of each kind of SLOW; each must be cut off `within` seconds."""
    began = time.monotonic()
    tally = asyncio.run(_slow(place, clients, within))
    tally.seconds = time.monotonic() - began
    return tally


# Many connections


async def _connections(place: Place, count: int, asked: int) -> Tally:
    tally, healthy, held = Tally(), [], []
    picture = classify(encoded(0, "PNG"))

    async def connect() -> None:
        try:
            held.append(await asyncio.wait_for(asyncio.open_connection(*place), 30))
        except ConnectionResetError:
            pass  # it has already made room for another
        except (OSError, TimeoutError) as error:
            tally.fail(f"not connected: {error!r}")

    for _ in range(0, count, 100):
        await asyncio.gather(*(connect() for _ in range(min(100, count - len(held)))))
        answer = await ask(place, request())
        healthy.append(answer.seconds)
        if answer.status != 200:
            tally.fail(f"others get {answer.status}")
    await asyncio.sleep(0.1)
    kept = sum(not reader.at_eof() and not writer.transport.is_closing() for reader, writer in held)
    for _ in range(asked):
        answer = await ask(place, picture)
        healthy.append(answer.seconds)
        if answer.status != 200:
            tally.fail(f"others get {answer.status}")
    tally.tried = count
    tally.note = (
        f"{kept:,} of them kept; {len(healthy)} requests beside them waited {max(healthy):.2f} s at most."
    )
    for _, writer in held:
        writer.transport.abort()
    return tally


def connections(place: Place, *, count: int, asked: int = 20) -> Tally:
    """Open `count` connections that say nothing, and ask beside them."""
    allow_files(count + 500)
    began = time.monotonic()
    tally = asyncio.run(_connections(place, count, asked))
    tally.seconds = time.monotonic() - began
    return tally


# Steady load


def steady(seed: int) -> tuple[bytes, set[int | None]]:
    """Request number `seed` of an ordinary day, and what it may be answered."""
    draw = random.Random(seed)
    kind = draw.randrange(10)
    if kind < 4:
        files = [draw.choice(pictures()) for _ in range(draw.choice((1, 1, 4, 12)))]
        return classify(*files, top="3"), {200}
    if kind == 4:
        return classify(encoded(seed % 50, "JPEG", draw.choice((100, 400, 900)))), {200}
    if kind == 5:
        image = multipart(("image", "a.png", draw.choice(pictures())))
        return request("POST", "/explain", image), {200}
    if kind == 6:
        return request(target=draw.choice(("/", "/page.js", "/samples?count=12", "/samples/3", "/models"))), {
            200
        }
    if kind == 7:
        return classify(mutated(draw, draw.choice(pictures()), 30)), {200, 413, 422}  # 413: by its header
    if kind == 8:
        return request("POST", "/classify", b"x" * draw.choice((10, 100_000, 3_000_000))), {400, 413}
    return classify(draw.choice(pictures()))[: draw.randrange(200, 2000)], {None}  # goes away half-way


async def _soak(
    place: Place, seconds: float, per_second: float, memory: Callable[[], int]
) -> tuple[Tally, list[int]]:
    tally, sizes = Tally(), []
    numbers = itertools.count()

    async def one() -> None:
        data, expected = steady(next(numbers))
        answer = await ask(place, data, linger=5.0 if None not in expected else 0.05)
        tally.tried += 1
        tally.statuses[answer.status] += 1
        if answer.status not in expected:
            tally.fail(f"{sorted(map(str, expected))} expected, {answer.status} given")

    async def warm_up() -> None:
        while tally.tried < WARM_REQUESTS:
            await one()

    await asyncio.gather(*(warm_up() for _ in range(CLIENTS)))
    end = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end:
            await one()
            await asyncio.sleep(CLIENTS / per_second)

    async def watch() -> None:
        while time.monotonic() < end:
            sizes.append(memory())
            await asyncio.sleep(seconds / 120)

    await asyncio.gather(watch(), *(client() for _ in range(CLIENTS)))
    return tally, sizes


CLIENTS = 4
WARM_REQUESTS = 2000
"""After so many, each kind has come in each size; libraries and the allocator hold what they will hold."""
GROWTH_ALLOWED = 0.02
"""Of the memory in the first tenth of the time after that, in medians of a tenth."""


def soak(place: Place, memory: Callable[[], int], *, seconds: float, per_second: float = 20.0) -> Tally:
    """A steady, mixed load; `memory` gives the server's resident bytes."""
    began = time.monotonic()
    tally, sizes = asyncio.run(_soak(place, seconds, per_second, memory))
    tally.seconds = time.monotonic() - began
    tenth = max(1, len(sizes) // 10)
    warm = statistics.median(sizes[:tenth])
    last = statistics.median(sizes[-tenth:])
    if last > warm * (1 + GROWTH_ALLOWED):
        tally.fail(f"memory grew from {warm / 2**20:.1f} to {last / 2**20:.1f} MiB")
    tenths = [statistics.median(sizes[at : at + tenth]) / 2**20 for at in range(0, len(sizes), tenth)]
    print("MiB, by tenths of the time:", *(f"{size:.1f}" for size in tenths))
    tally.note = (
        f"Resident memory {warm / 2**20:.1f} MiB after {WARM_REQUESTS:,} requests to warm up and "
        f"{last / 2**20:.1f} MiB at the end, {max(sizes) / 2**20:.1f} MiB at most."
    )
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
    note = f"{len(opened.read)} files were read, all of Python code; {len(opened.written)} written."
    return _finish("server.disk", disk, "inputs", note) and fine


def _resident(process: int) -> int:
    import psutil

    return psutil.Process(process).memory_info().rss


if __name__ == "__main__":
    main()
