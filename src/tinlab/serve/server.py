"""The socket, slow clients, signals."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tinlab.errors import TinlabError
from tinlab.serve.api import build
from tinlab.serve.limits import Limits
from tinlab.serve.samples import find_samples
from tinlab.serve.service import Service, load

HEADER_SECONDS = 10.0
"""How long a client may take to send the head of a request, or nothing at all."""
HEADER_BYTES = 16 << 10
BACKLOG = 128


class Protocol(H11Protocol):
    """HTTP/1.1, with a limit on the time between requests however slowly bytes come.

    uvicorn's own limit counts from the last byte, and not before the first request.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the clock where no request is being answered, unless it runs; stop it where one is."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif not answering and self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._late)

    def _late(self) -> None:
        self._timer = None
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering and not self.transport.is_closing():
            if self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE:
                self.conn.send(h11.ConnectionClosed())
            self.transport.close()


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
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.max_connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=max(1, round(limits.grace_seconds)),
        h11_max_incomplete_event_size=HEADER_BYTES,
    )


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
