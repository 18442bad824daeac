"""Many clients at once: more than a server can answer, slow ones, idle connections, and an ordinary day."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import statistics
import time
from collections.abc import Callable

from served import Tally, allow_files
from strangers import Place, ask, classify, encoded, faults, multipart, mutated, pictures, request

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
