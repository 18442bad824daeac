"""Blocks of images: the unit in which a pack is decoded, summed, written and digested."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import xxhash

from tinlab.data.decode import ImageError, decode_into
from tinlab.data.moments import PixelSums
from tinlab.data.pack import HEADER_BYTES, block_rows


@dataclass(frozen=True)
class Decoded:
    """What is to be remembered of some decoded images, whose pixels were written already.

    `sums` is float64 (2, 2, 3): sums and sums of squares a channel, of the images before a cut and of those
    behind it. `blocks` holds the xxh3_128 of each block, `files` the SHA-256 of each image file where it was
    asked for, both as raw bytes. `faults` are pairs of a place among the images and what is wrong there.
    """

    sums: np.ndarray
    blocks: bytes
    files: bytes
    faults: list[tuple[int, str]]


class Output:
    """An existing .npy of images of `size` pixels a side, written to at any row; for a `with`."""

    def __init__(self, path: Path, size: int) -> None:
        self._row_bytes = 3 * size**2
        self._file = path.open("r+b", buffering=0)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        self._file.close()

    def write(self, row: int, images: np.ndarray) -> None:
        """Write `images`, uint8 (N, size, size, 3), from `row` on. Raises OSError."""
        self._file.seek(HEADER_BYTES + row * self._row_bytes)
        left = images.reshape(-1).data
        while left:
            left = left[os.write(self._file.fileno(), left) :]


class BlockDecoder:
    """Decodes image files block by block into one buffer. `hashing` says whether to digest the files."""

    def __init__(self, size: int, hashing: bool) -> None:
        self._block = np.zeros((block_rows(size), size, size, 3), dtype=np.uint8)
        self._rows = list(self._block)
        self._sums = PixelSums(size)
        self._hashing = hashing

    def decode(
        self, contents: Iterator[bytes | bytearray], count: int, cut: int, output: Output, first: int
    ) -> Decoded:
        """Decode the `count` files of `contents` and write them to `output` from row `first` on.

        `first` must be where a block begins, and `count` may end inside of a block only where the file ends.
        The images from `cut` on are summed apart from those before it. Raises OSError.
        """
        sums = np.zeros((2, 2, 3))
        blocks, files = [], []
        faults: list[tuple[int, str]] = []
        sha256, hashing = hashlib.sha256, self._hashing
        for start in range(0, count, len(self._rows)):
            block = self._block[: count - start]
            for place, (row, content) in enumerate(zip(self._rows[: len(block)], contents, strict=False)):
                if hashing:
                    files.append(sha256(content).digest())
                try:
                    decode_into(content, row)
                except ImageError as error:
                    faults.append((start + place, str(error)))
            inner = min(max(cut - start, 0), len(block))
            for part, images in enumerate((block[:inner], block[inner:])):
                if len(images):
                    sums[part] += self._sums.of(images)
            blocks.append(xxhash.xxh3_128_digest(block.data))
            output.write(first + start, block)
        return Decoded(sums, b"".join(blocks), b"".join(files), faults)
