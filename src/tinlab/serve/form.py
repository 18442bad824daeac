"""A multipart body, read within its limits and kept in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import HTTPException, Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from tinlab.serve.limits import Limits

MAX_FIELDS = 64
MAX_FIELD_BYTES = 1000
MAX_NAME = 80
"""Characters of a file's name that are said back."""
BUSY = "The server is busy; try again in a second."


@dataclass(frozen=True)
class Upload:
    """A file of a request; `name` is cleaned, and only to be shown."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Form:
    """`files` and `fields` by the name of their part, each in the order sent."""

    files: dict[str, list[Upload]]
    fields: dict[str, list[str]]


class Held:
    """The bytes of all bodies that are in memory now."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = 0


@asynccontextmanager
async def read_form(request: Request, held: Held, *, max_files: int | None = None) -> AsyncIterator[Form]:
    """The form that `request` sends; its bytes count as held until this is left.

    Raises HTTPException: 408 where it comes too slowly, 413 where it is too large or has too many files, 415
    where it is no form, 400 where it is a broken one, 503 where too much is held already.
    """
    limits = held.limits
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise HTTPException(415, "Send the images as multipart/form-data.")
    mine = [0]
    try:
        files = limits.max_files if max_files is None else max_files
        stream = _limited(request, held, mine)
        parser = _InMemory(
            request.headers, stream, max_files=files, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
        )
        try:
            async with asyncio.timeout(limits.timeout_seconds):
                parts = await parser.parse()
        except TimeoutError:
            raise _closing(
                408, f"The request did not arrive within {limits.timeout_seconds:g} seconds."
            ) from None
        except UnicodeError as error:
            raise _closing(400, "The form cannot be read: text in it is not in its charset.") from error
        except MultiPartException as error:
            if "Too many files" in error.message:
                raise _closing(413, f"At most {files} image{'s' * (files > 1)} a request.") from error
            if "maximum size" in error.message:
                sentence = f"A field may have at most {MAX_FIELD_BYTES:,} bytes; send images as files."
                raise _closing(400, sentence) from error
            raise _closing(400, f"The form cannot be read: {error.message.rstrip('.')}.") from error
        yield await _form(parts)
    finally:
        held.bytes -= mine[0]


class _InMemory(MultiPartParser):
    spool_max_size = 1 << 40  # never into a file: the body's own limit is what keeps it small


async def _limited(request: Request, held: Held, mine: list[int]) -> AsyncGenerator[bytes, None]:
    """The body in chunks, counted as it comes: Content-Length is believed only where it is too large."""
    limits = held.limits
    too_large = f"A request may have at most {limits.max_bytes:,} bytes."
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_bytes:
        raise _closing(413, too_large)
    async for chunk in request.stream():
        mine[0] += len(chunk)
        held.bytes += len(chunk)
        if mine[0] > limits.max_bytes:
            raise _closing(413, too_large)
        if held.bytes > max(limits.max_held_bytes, mine[0]):  # one alone may be as large as it is
            raise busy(Connection="close")
        yield chunk


def busy(**headers: str) -> HTTPException:
    """What is said where more is asked than can be done."""
    return HTTPException(503, BUSY, headers={"Retry-After": "1", **headers})


def _closing(status: int, sentence: str) -> HTTPException:
    # What is left of the body must not be taken for the next request.
    return HTTPException(status, sentence, headers={"Connection": "close"})


async def _form(parts: FormData) -> Form:
    files: dict[str, list[Upload]] = {}
    fields: dict[str, list[str]] = {}
    for name, part in parts.multi_items():
        if isinstance(part, UploadFile):
            files.setdefault(name, []).append(Upload(clean_name(part.filename or ""), await part.read()))
            await part.close()
        else:
            fields.setdefault(name, []).append(part)
    return Form(files, fields)


def clean_name(name: str) -> str:
    """A file's name to be shown: without folders and control characters, and not too long."""
    name = name.replace("\\", "/").rpartition("/")[2]
    name = "".join(c if c.isprintable() else "\ufffd" for c in name).strip()
    return (name[: MAX_NAME - 1] + "…" if len(name) > MAX_NAME else name) or "image"
