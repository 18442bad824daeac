"""Answers that arrive although their request was not read to its end.

A connection that is closed while the client still sends is reset, and what the client has not yet read of the
answer can be lost with it. So the answer goes out, and what the client goes on to send is read and dropped.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_SECONDS = 1.0
"""How long the rest of a request that is answered already is read and dropped."""


class Lingering:
    """ASGI middleware: where `app` answers before it has read the body, the answer is sent whole, and is
    only ended once the rest of the body has come, or LINGER_SECONDS have passed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        more = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])

        async def heard() -> Message:
            nonlocal more
            message = await receive()
            more = more and message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def said(message: Message) -> None:
            if more and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_SECONDS):
                        while more:
                            await heard()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self.app(scope, heard, said)
