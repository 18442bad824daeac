"""What strangers send to a server, made of numbers; how it is sent; and what an answer must not be.

`made_input(n)` is always the same bytes, so an input that fails can be sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import random
import re
import time
from dataclasses import dataclass

Place = tuple[str, int]
"""Host and port."""
STATUSES = {200, 400, 403, 404, 405, 408, 413, 415, 421, 422, 431, 503, 504}
"""What may be answered: what the API documents but 500, and 404 and 405 for what is not there."""
SECRETS = re.compile(rb"Traceback|site-packages|\.py\b|/home/|/root/|/tmp/|/usr/|File \"")
"""What no answer may hold, outside the page's own files."""
MARK = "zq7strangers"
"""In every name that a made request holds, so that a path that was made of one would be known."""


def encoded(seed: int, format: str, side: int = 64) -> bytes:
    """A picture of noise as a file."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def multipart(*parts: tuple[str, str | None, bytes], boundary: str = "x") -> bytes:
    """A multipart body of (name, file name or None, data)."""
    body = b""
    for name, file, data in parts:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'
        head += "" if file is None else f'; filename="{file}"\r\nContent-Type: image/png'
        body += head.encode("utf-8", "surrogateescape") + b"\r\n\r\n" + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def request(
    method: str = "GET",
    target: str = "/health",
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    *,
    close: bool = True,
) -> bytes:
    """An HTTP request; of a body, its length and kind are said where `headers` do not."""
    lines = {"Host": "localhost"}
    if body:
        lines |= {
            "Content-Length": str(len(body)),
            "Content-Type": "multipart/form-data; boundary=x",
        }
    lines |= {"Connection": "close"} if close else {}
    lines |= headers or {}
    head = f"{method} {target} HTTP/1.1\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in lines.items()
    )
    return head.encode("utf-8", "surrogateescape") + b"\r\n" + body


def classify(*files: bytes, close: bool = True, **fields: str) -> bytes:
    parts: list[tuple[str, str | None, bytes]]
    parts = [("images", f"{i}.png", data) for i, data in enumerate(files)]
    parts += [(name, None, value.encode()) for name, value in fields.items()]
    return request("POST", "/classify", multipart(*parts), close=close)


@dataclass
class Answer:
    """What came back: `status` None where nothing did before the connection closed."""

    status: int | None
    head: bytes
    body: bytes
    seconds: float
    cut: bool = False
    """Nothing more was to come: the client ended its side, having waited."""

    def header(self, name: str) -> str | None:
        found = re.search(rb"(?im)^" + name.encode() + rb":[ \t]*([^\r\n]*)", self.head)
        return found[1].decode("latin-1").strip() if found else None


def parsed(data: bytes, seconds: float, cut: bool = False) -> Answer:
    """The first final answer in `data`."""
    while re.match(rb"HTTP/1\.1 1\d\d ", data):
        data = data.partition(b"\r\n\r\n")[2]
    head, _, body = data.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
    return Answer(int(status[1]) if status else None, head, body, seconds, cut)


async def ask(place: Place, data: bytes, *, patience: float = 30.0, linger: float | None = None) -> Answer:
    """Send `data`, and read until the server closes the connection.

    Where `linger` seconds pass without a byte, the client closes its own side, as one that sent half a
    request would; the server then has `patience` seconds to close. Raises TimeoutError where it does not.
    """
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(*place)
    got, cut = b"", False

    async def send() -> None:
        with contextlib.suppress(OSError):
            writer.write(data)
            await writer.drain()

    sending = asyncio.create_task(send())
    try:
        while True:
            try:
                piece = await asyncio.wait_for(
                    reader.read(1 << 16), patience if cut or linger is None else linger
                )
            except TimeoutError:
                if cut or linger is None:
                    raise
                cut = True
                with contextlib.suppress(OSError):
                    writer.write_eof()
                continue
            except OSError:
                break
            if not piece:
                break
            got += piece
    finally:
        sending.cancel()
        writer.transport.abort()
    return parsed(got, time.monotonic() - began, cut)


# Any bytes

TARGETS = [
    "/", "/page.js", "/models", "/health", "/samples", "/samples?count=3&seed=5", "/samples/0",
    "/openapi.json", "/samples/../api.py", "/samples/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "//etc/passwd",
    "/..%2f..%2fetc/passwd", "/page.css/../../../../etc/passwd", "file:///etc/passwd",
    "http://evil.example/", "*", "/%00", "/samples/%00", f"/{MARK}", f"/samples/{MARK}",
    f"/../../{MARK}.txt", "/samples/" + "9" * 5000, "/samples/-1", "/samples/1e3", "/samples?count=-1",
    "/samples?count=" + "9" * 4500, "/samples?seed=%ff%fe", "/samples?count[]=1", "/docs", "/classify",
    "/explain", "/\\..\\..\\windows\\win.ini", "/page.html", "/server.py", "/" + "a/" * 3000,
]  # fmt: skip
METHODS = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "get",
    "PROPFIND",
    "X" * 99,
]
NAMES = [
    f"../../../../tmp/{MARK}", f"/etc/{MARK}", f"C:\\{MARK}\\a.png", f"{MARK}\x00.png",
    f"{MARK}\r\nX-Evil: 1", "", ".", "..", f"{MARK}" * 200, f"{MARK}\u202egnp.exe",
    f"<script>{MARK}</script>", f"\udcff{MARK}", f'{MARK}".png', f"{MARK};type=a", f"file:///{MARK}",
    f"\\\\host\\{MARK}", f"{MARK}\x1b[31m", "~root/" + MARK,
]  # fmt: skip
HEADERS = [
    ("Host", "evil.example"), ("Host", ""), ("Host", "localhost:0x50"), ("Host", "localhost/" + MARK),
    ("Content-Length", "-1"), ("Content-Length", "9" * 30), ("Content-Length", "1, 2"),
    ("Content-Length", "+5"), ("Content-Length", "0x10"), ("Content-Length", "99999999"),
    ("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "gzip, chunked"),
    ("Transfer-Encoding", "chunked, identity"), ("Expect", "100-continue"), ("Expect", MARK),
    ("Origin", "http://evil.example"), ("Origin", "null"), ("Sec-Fetch-Site", "cross-site"),
    ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Connection", "keep-alive, upgrade"),
    ("Range", "bytes=0-"), ("If-Modified-Since", MARK), ("If-None-Match", "*"),
    ("X-Forwarded-Host", "evil.example"), ("X-Original-URL", "/etc/" + MARK), ("Cookie", "a=" + "b" * 4000),
    ("X-Long", "y" * 20_000), ("Content-Type", "multipart/form-data"),
    ("Content-Type", "multipart/form-data; boundary="),
    ("Content-Type", 'multipart/form-data; boundary="x'),
    ("Content-Type", "multipart/form-data; boundary=" + "y" * 99),
    ("Content-Type", "multipart/form-data; boundary=x; charset=utf-16"),
    ("Content-Type", "application/json"), ("Content-Type", "application/x-www-form-urlencoded"),
    ("Content-Encoding", "gzip"), ("Te", "trailers"), ("Accept", "\udcff\udcfe"), ("X-Null", "a\x00b"),
    ("X-Fold", "a\r\n b"), ("Range", "bytes=5-1,0-0,9-"),
]  # fmt: skip
VALUES = [
    b"", b"0", b"-1", b"5", b"20", b"1e9", b"9" * 900, b"\xff\xfe", b"\x00", b"saliency", b"grad_cam",
    b"json", b"png", MARK.encode(), b"n00000000", b"<b>" + MARK.encode(), "\u0663".encode(), b"x" * 1001,
    b" 5 ", b"5\r\n5",
]  # fmt: skip
FIELDS = [
    "models",
    "model",
    "top",
    "target",
    "method",
    "answer",
    MARK,
    "",
    "images",
    "image",
    "__proto__",
    "top[]",
]


@functools.cache
def pictures() -> tuple[bytes, ...]:
    return tuple(encoded(seed, format) for seed, format in enumerate(("PNG", "JPEG", "GIF", "BMP", "WEBP")))


def mutated(draw: random.Random, data: bytes, most: int = 8) -> bytes:
    """`data` with up to `most` changes: bytes turned, cut out, repeated, put in, or all after one cut off."""
    out = bytearray(data)
    for _ in range(draw.randint(1, most)):
        if not out:
            break
        at = draw.randrange(len(out))
        size = draw.choice((1, 1, 2, 4, 16, 64))
        kind = draw.randrange(6)
        if kind == 0:
            out[at] = draw.randrange(256)
        elif kind == 1:
            del out[at : at + size]
        elif kind == 2:
            out[at:at] = out[at : at + size]
        elif kind == 3:
            out[at:at] = draw.randbytes(size)
        elif kind == 4:
            out[at:at] = draw.choice(
                (b"\r\n", b"\x00", b"\r\n\r\n", b": ", b"%", b'"', b"--x", b"\xff", b"9" * 20)
            )
        elif draw.random() < 0.2:
            del out[at:]
    return bytes(out)


def form(draw: random.Random) -> bytes:
    """A form of parts that fit, that do not, and pictures that are damaged."""
    parts: list[tuple[str, str | None, bytes]] = []
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8, 70))):
        picture = draw.choice(pictures())
        if draw.random() < 0.5:
            picture = mutated(draw, picture, 20)
        if draw.random() < 0.6:
            file = draw.choice(NAMES) if draw.random() < 0.5 else "a.png"
            parts.append((draw.choice(("images", "image", "images", *FIELDS)), file, picture))
        else:
            parts.append((draw.choice(FIELDS), None, draw.choice(VALUES)))
    return multipart(*parts, boundary=draw.choice(("x", "x", "x", "y")))


def chunked(draw: random.Random, body: bytes) -> bytes:
    """`body` in chunks, some of a wrong length."""
    out = b""
    while body:
        size = draw.choice((1, 100, 5000))
        stated = size if draw.random() < 0.95 else draw.choice((0, size + 1, 1 << 40))
        piece, body = body[:size], body[size:]
        out += f"{min(stated, len(piece)) if stated == size else stated:x}\r\n".encode() + piece + b"\r\n"
    return out + draw.choice(
        (b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"", b"0\r\n" + b"T: t\r\n" * 2000 + b"\r\n")
    )


def made_input(seed: int) -> bytes:
    """Input number `seed`: the same bytes for the same number."""
    draw = random.Random(seed)
    kind = seed % 6
    if kind == 0:
        return draw.randbytes(draw.choice((1, 10, 300, 20_000)))
    if kind == 1:  # lines that are nearly a request
        method, target = draw.choice(METHODS), draw.choice(TARGETS)
        headers = dict(draw.sample(HEADERS, draw.randint(0, 4)))
        return request(method, target, b"" if draw.random() < 0.6 else form(draw), headers)
    if kind == 2:  # forms
        path = draw.choice(("/classify", "/explain"))
        return request("POST", path, form(draw))
    if kind == 3:  # a form in chunks
        body = chunked(draw, form(draw))
        headers = {"Transfer-Encoding": "chunked", "Content-Type": "multipart/form-data; boundary=x"}
        return request("POST", "/classify", b"", headers) + body
    if kind == 4:  # something sound, damaged
        sound = (
            request(target="/"), request(target="/samples?count=5"), classify(pictures()[0], top="3"),
            request("POST", "/explain", multipart(("image", "a.png", pictures()[1]))),
        )  # fmt: skip
        return mutated(draw, draw.choice(sound))
    # a sound form whose picture or framing may be damaged
    picture = draw.choice(pictures())
    picture = picture if draw.random() < 0.4 else mutated(draw, picture, 30)
    path, part = draw.choice((("/classify", "images"), ("/classify", "images"), ("/explain", "image")))
    damaged = multipart((part, draw.choice(NAMES), picture))
    return request("POST", path, damaged if draw.random() < 0.8 else mutated(draw, damaged))


def is_whole(data: bytes) -> bool:
    """Whether an answer to `data` may be waited for: a head, and a body of the length that it states."""
    head, end, body = data.partition(b"\r\n\r\n")
    lengths = re.findall(rb"(?im)^content-length:[ \t]*(\d{1,9})\r?$", head)
    stated = int(lengths[0]) if lengths else 0
    return bool(end) and len(lengths) < 2 and b"chunked" not in head.lower() and stated == len(body)


def faults(answer: Answer, sent: bytes) -> list[str]:
    """What is wrong with an answer to a stranger; none where nothing is."""
    if answer.status is None:
        # Closing without a word is for what never became a request.
        return ["bytes that are no HTTP"] if answer.head else []
    wrong = []
    if answer.status not in STATUSES:
        wrong.append(f"status {answer.status}")
    for name, value in (("x-content-type-options", "nosniff"), ("x-frame-options", "DENY")):
        if answer.header(name) != value:
            wrong.append(f"no {name}")
    if answer.header("access-control-allow-origin") is not None:
        wrong.append("open to other sites")
    if answer.header("x-evil") is not None:
        wrong.append("a header that the client put in")
    own = answer.status == 200 and (answer.header("content-type") or "").startswith(("text/", "image/"))
    if not own and SECRETS.search(answer.body) and not SECRETS.search(sent):
        wrong.append("it tells of the machine")
    if answer.status >= 400 and not sent.startswith(b"HEAD"):
        try:
            sentence = json.loads(_unframed(answer))["detail"]
            if not isinstance(sentence, str) or not sentence:
                wrong.append("no sentence")
        except (ValueError, KeyError, TypeError):
            wrong.append(f"{answer.status} without a sentence")
    if answer.status == 503 and answer.header("retry-after") is None:
        wrong.append("503 without Retry-After")
    return wrong


def _unframed(answer: Answer) -> bytes:
    length = answer.header("content-length")
    return answer.body[: int(length)] if length else answer.body
