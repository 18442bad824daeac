"""The socket, slow clients, signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from tinlab.errors import TinlabError
from tinlab.serve.form import BUSY
from tinlab.serve.guard import HEADER_BYTES, SECURITY_HEADERS
from tinlab.serve.limits import Limits
from tinlab.serve.linger import LINGER_SECONDS, Lingering
from tinlab.serve.routes import build
from tinlab.serve.samples import find_samples
from tinlab.serve.service import Service, load

HEADER_SECONDS = 10.0
"""How long a client may take to send the head of a request, or nothing at all."""
READ_SECONDS = 30.0
"""How long a client may leave an answer unread once the operating system takes no more of it."""
YOUNG_SECONDS = 1.0
"""A connection that has been waited for less is not given up for another, unless BACKLOG more are over."""
UNREAD_BYTES = 256 << 10
"""What the operating system may keep of answers for a client that does not read; Linux doubles it."""
BACKLOG = 256
"""Connections that the operating system holds until they are accepted, and that are accepted in one go."""
CHECK_SECONDS = 0.5
SPARE_FILES = 4 * BACKLOG + 256
"""Files that the process may have open besides its connections: those just accepted, packs, libraries."""


class Protocol(H11Protocol):
    """HTTP/1.1, with a limit on how long the server waits for a client, however slowly bytes come.

    uvicorn's own limit counts from the last byte, and neither before the first request nor for answers that
    are not read. `max_connections` limits how many there are: a new one takes the place of the one that the
    server has waited for longest, and is told that the server is busy where it waits for none.
    """

    max_connections = 1 << 30
    since = 0.0
    """When the server began to wait for the client, on the loop's clock."""

    _waits: tuple[str | None, Any] = (None, None)
    _timer: asyncio.TimerHandle | None = None
    _check_at = math.inf
    """When the next check is due, on the loop's clock."""
    _left = False
    """Nothing more is answered on this connection, and what still comes is dropped."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._watch()
        self._check()
        if len(self.connections) > self.max_connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        if self._left:
            return
        crowded = len(self.connections) > self.max_connections
        if crowded:
            at_work = sum(isinstance(c, Protocol) and c._waits[0] is None for c in self.connections)
            crowded = at_work >= self.max_connections
        self.app = _crowded if crowded else self.config.loaded_app
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no HTTP, in the form of every error. The answer that is under way, if any,
        is given up: bytes after it cannot be trusted to be a request."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            # By hand: h11 would hold this to be an answer to the request, and that may be one to HEAD.
            body = json.dumps({"detail": "This is no HTTP request that can be read."})
            headers = {
                "Content-Type": "application/json", "Content-Length": len(body), "Connection": "close",
                **SECURITY_HEADERS,
            }  # fmt: skip
            lines = ["HTTP/1.1 400 Bad Request", *(f"{name}: {value}" for name, value in headers.items())]
            self.transport.write("\r\n".join([*lines, "", body]).encode())
        self._leave()

    def _leave(self) -> None:
        """End the server's side, and the client's as soon as that has sent what it had to."""
        self._left = True
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def waits_for(self) -> str | None:
        """What the client has yet to do: `read` an answer, send a `body` or a `head`; None while it waits."""
        if self.transport.get_write_buffer_size():
            return "read"
        if self.cycle is None or self.cycle.response_complete:
            return "head"
        return "body" if self.cycle.more_body else None

    def _watch(self) -> None:
        """Start the clock anew where the server waits for something else than before."""
        waits = (self.waits_for(), self.cycle)
        if waits != self._waits or not self.since:
            self._waits, self.since = waits, self.loop.time()

    def _check(self) -> None:
        # A check that comes late says that this process stood still, on a busy or a paused machine, and its
        # clients may have stood still with it.
        now = self.loop.time()
        self.since = min(now, self.since + max(0.0, now - self._check_at))
        self._watch()
        # A body that comes too slowly has its own answer: form.py.
        limit = {"head": HEADER_SECONDS, "read": READ_SECONDS}.get(self._waits[0] or "", math.inf)
        left = self.since + limit - now
        if left <= 0:
            self._cut()
        else:
            self._check_at = now + max(0.001, min(left, CHECK_SECONDS))
            self._timer = self.loop.call_at(self._check_at, self._check)

    def _make_room(self) -> None:
        """Cut off those that have been waited for longest, until there are no more than may be."""
        waited_for = [
            other
            for other in self.connections
            if other is not self and isinstance(other, Protocol) and other._waits[0] is not None
        ]
        for other in sorted(waited_for, key=lambda other: other.since):
            over = len(self.connections) - self.max_connections
            # Of many that come at once, the first have not had the time to ask.
            young = self.loop.time() - other.since < YOUNG_SECONDS
            if over <= 0 or (young and over <= BACKLOG):
                break
            self.connections.discard(other)
            other._cut()

    def _cut(self) -> None:
        """End the connection now, without waiting for the client to read."""
        if self.cycle is not None:
            # The operating system would otherwise keep answers that it has not read for it, for minutes.
            connection = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


@Lingering
async def _crowded(scope: Scope, receive: Receive, send: Send) -> None:
    headers = {"Retry-After": "1", "Connection": "close", **SECURITY_HEADERS}
    await JSONResponse({"detail": BUSY}, 503, headers)(scope, receive, send)


class Server(uvicorn.Server):
    """A server that says when it answers, and when it begins to stop."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], stopping: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping()
        await super().shutdown(sockets=sockets)


def run(
    runs: Sequence[str | Path],
    *,
    host: str,
    port: int,
    limits: Limits,
    device: str,
    data: str | Path | None,
    allow_hosts: Sequence[str],
    ready: Callable[[str], None],
) -> None:
    """`tinlab.serve.serve`, where everything is installed."""
    allow_files(limits.max_connections + SPARE_FILES)
    with bound(host, port) as listening:  # before the networks are loaded: a taken port is told at once
        classifiers = load(runs, device=device)
        samples = find_samples(classifiers.values(), data)
        service = Service(classifiers, limits)
        app = build(service, samples, host=host, allow_hosts=allow_hosts)
        server = Server(
            configuration(app, limits),
            ready=lambda: ready(address(listening, host)),
            stopping=service.batcher.hurry,
        )
        server.run(sockets=[listening])


def configuration(app: Any, limits: Limits) -> uvicorn.Config:
    """How uvicorn runs `app`: HTTP/1.1 alone, quiet, and with a limit on everything that a client decides."""
    # A stranger's broken request or picture is no news, and must not fill a log.
    for library in ("python_multipart", "PIL"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    limited = type("Protocol", (Protocol,), {"max_connections": limits.max_connections})
    return uvicorn.Config(
        Lingering(app),
        loop="asyncio",
        http=limited,
        backlog=BACKLOG,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=max(1, round(limits.grace_seconds)),
        h11_max_incomplete_event_size=HEADER_BYTES,
    )


def allow_files(wanted: int) -> None:
    """Let this process have `wanted` files open. Raises TinlabError where the operating system does not."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise TinlabError(
            f"max_connections is {wanted - SPARE_FILES}, which needs {wanted} open files, and this process "
            f"may have {hard}; give at most {max(1, hard - SPARE_FILES)}, or raise the limit with ulimit -n"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def bound(host: str, port: int) -> socket.socket:
    """A TCP socket that listens at `host` and `port`. Raises TinlabError where that is not to be had."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise TinlabError(f"--host {host} is no address of this machine: {error}") from error
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)  # of all its connections
        listening.bind(place)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise TinlabError(
            f"{host}:{port} cannot be served at: {(error.strerror or str(error)).lower()}; "
            "choose another --port (0 takes a free one) or --host"
        ) from error
    return listening


def address(listening: socket.socket, host: str) -> str:
    """The address to open in a browser on this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    port = listening.getsockname()[1]
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
