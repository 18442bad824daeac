"""Who may ask: the Host and Origin of a request, and the headers of every answer.

A server on this machine can be reached by every page that its user has open. A page of another site may not
post to it (Origin), and a name that a stranger has pointed at this machine is not answered to (Host), so that
no page can read from it either.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
SECURITY_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
HEADER_BYTES = 16 << 10
"""Bytes of a request's head: its target and its headers."""
_HOST = re.compile(
    r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[\w.-]*\w)\.?)(?::(?P<port>\d{0,5}))?", re.ASCII
)
"""A Host header. Strictly: urllib takes `[::1]evil` and `localhost?` for names of this machine."""
LOCAL = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")


class Guard:
    """ASGI middleware. `host` is what the server is bound to, `allow_hosts` what else it may be called.

    Bound to every address of the machine, any address written in numbers is answered to as well: only a name
    can be pointed elsewhere.
    """

    def __init__(self, app: ASGIApp, host: str, allow_hosts: Iterable[str] = ()) -> None:
        self.app = app
        self.names = {name.lower().strip("[]") for name in (*LOCAL, host, *allow_hosts)} - set(EVERYWHERE)
        self.any_address = host in EVERYWHERE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        # The protocol limits a head that is not yet complete; one that comes all at once may be longer.
        head = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if head + sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
            await _refuse(431, f"The head of a request may have at most {HEADER_BYTES:,} bytes.", secured)
            return
        if refusal := self.refusal(scope["method"], Headers(scope=scope)):
            await _refuse(*refusal, secured)
            return
        await self.app(scope, receive, secured)

    def refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        """Status and sentence, where a request with these `headers` is not answered."""
        hosts = headers.getlist("host")
        name = host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None:
            return 400, "The Host header is missing or cannot be read."
        if name not in self.names and not (self.any_address and _is_address(name)):
            return 421, (
                "This server is not known by the name in the Host header; start it with --allow-host NAME."
            )
        if method in ("GET", "HEAD", "OPTIONS"):
            return None
        origins = headers.getlist("origin")
        foreign = any(origin_host(origin) != hosts[0].lower() for origin in origins)
        if foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "Pages of other sites may not post to this server."
        return None


def host_name(header: str) -> str | None:
    """The name in a Host header, lower case, without port and brackets; None for what is no host."""
    found = _HOST.fullmatch(header)
    if found is None or int(found["port"] or 0) > 0xFFFF:
        return None
    return (found["address"] or found["name"]).lower()


def origin_host(origin: str) -> str | None:
    """Host and port of an origin, lower case; None for `null` and what is no origin."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") and parts.netloc else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _refuse(status: int, sentence: str, send: Send) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # The body of the request is not read, so the connection cannot be used again.
    await send(
        {"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]}
    )
    await send({"type": "http.response.body", "body": body})
