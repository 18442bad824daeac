"""A process that decodes images for another one, `tinlab.data.crew`, until its standard input ends.

It is a program of its own, not a fork: forking is unsafe beside the threads of others, and an import of the
parent's main module, as multiprocessing does it, runs scripts twice. Parent and worker exchange frames: the
lengths of a JSON header and of a blob, and these two. First comes a frame that says what to read and where to
write, then one a task.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from tinlab.data.blocks import BlockDecoder, Decoded, Output
from tinlab.errors import TinlabError

_LENGTHS = struct.Struct("<2L")
_SUMS_BYTES = 2 * 2 * 3 * 8
_BLOCK_DIGEST_BYTES = 16

Unpack = Callable[[bytes], Iterator[bytes | bytearray]]
"""Turns the parcel that a store made of some rows into the bytes of these rows."""


def send(stream: IO[bytes], header: dict[str, Any], *blobs: bytes) -> None:
    """Write one frame. Raises OSError."""
    text = json.dumps(header).encode()
    stream.write(b"".join((_LENGTHS.pack(len(text), sum(map(len, blobs))), text, *blobs)))
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Read one frame; None where the other side has gone."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    header_bytes, blob_bytes = _LENGTHS.unpack(lengths)
    text, blob = stream.read(header_bytes), stream.read(blob_bytes)
    if len(text) < header_bytes or len(blob) < blob_bytes:
        return None
    return json.loads(text), blob


def decoded_from(header: dict[str, Any], blob: bytes) -> Decoded:
    """The result in a worker's frame."""
    files_at = _SUMS_BYTES + header["blocks"] * _BLOCK_DIGEST_BYTES
    return Decoded(
        sums=np.frombuffer(blob[:_SUMS_BYTES]).reshape(2, 2, 3),
        blocks=blob[_SUMS_BYTES:files_at],
        files=blob[files_at:],
        faults=[(place, reason) for place, reason in header["faults"]],
    )


def opened(reopening: dict[str, Any]) -> Unpack:
    """Open, once more, the store that gave `reopening`. Raises TinlabError."""
    if reopening["kind"] == "zip":
        from tinlab.data.members import reopened

        return reopened(reopening)
    if reopening["kind"] == "folder":
        from tinlab.data.folder import contents

        return lambda parcel: contents(reopening["path"], json.loads(parcel))
    return unjoined


def joined(contents: list[bytes]) -> bytes:
    """One parcel of the bytes of some rows."""
    lengths = np.array([len(contents), *map(len, contents)], dtype=np.int64)
    return b"".join((lengths.tobytes(), *contents))


def unjoined(parcel: bytes) -> Iterator[bytes]:
    """The bytes that `joined` put together."""
    count = int(np.frombuffer(parcel, np.int64, 1)[0])
    at = 8 * (1 + count)
    for length in np.frombuffer(parcel, np.int64, count, 8).tolist():
        yield parcel[at : at + length]
        at += length


def main() -> None:
    """Serve the frames on standard input."""
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library may print must not get between the frames
    order = receive(requests)
    if order is None:
        return
    header, _ = order
    size = header["size"]
    decoder = BlockDecoder(size, header["hashing"])
    with contextlib.ExitStack() as stack:
        outputs: list[Output] = []
        unpack: Unpack | None = None
        send(replies, {"ready": True})
        while (task := receive(requests)) is not None:
            header_of_task, parcel = task
            try:
                if unpack is None:
                    unpack = opened(header["source"])
                    outputs = [stack.enter_context(Output(Path(path), size)) for path in header["outputs"]]
                reply, blob = _serve(decoder, outputs, header_of_task, unpack(parcel))
            except TinlabError as error:
                reply, blob = {"refused": str(error)}, b""
            except OSError as error:
                reply, blob = {"errno": error.errno, "strerror": error.strerror}, b""
            except Exception as error:  # a fault of the program itself: the parent raises it
                reply, blob = {"broken": f"{type(error).__name__}: {error}"}, b""
            send(replies, reply, blob)


def _serve(
    decoder: BlockDecoder, outputs: list[Output], task: dict[str, Any], contents: Iterator[bytes | bytearray]
) -> tuple[dict[str, Any], bytes]:
    done = decoder.decode(contents, task["count"], task["cut"], outputs[task["file"]], task["first"])
    reply = {"faults": done.faults, "blocks": len(done.blocks) // _BLOCK_DIGEST_BYTES}
    return reply, b"".join((done.sums.tobytes(), done.blocks, done.files))
