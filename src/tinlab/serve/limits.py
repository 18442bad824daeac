"""What a request may ask for, and how long it may take."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from tinlab.errors import TinlabError

MOST_PIXELS = 1024**3 // 12
"""`PIL.Image.MAX_IMAGE_PIXELS`, above which Pillow takes an image for a decompression bomb."""


@dataclass(frozen=True)
class Limits:
    """Raises TinlabError, naming the field, for a value below what makes sense."""

    max_bytes: int = 16 << 20
    """Bytes of one request's body."""
    max_held_bytes: int = 256 << 20
    """Bytes of the bodies of all requests together; beyond it the server is busy."""
    max_pixels: int = 25_000_000
    """Pixels of one image, by its header: at most MOST_PIXELS."""
    max_request_pixels: int = 200_000_000
    """Pixels of all images of one request together, by their headers: a bomb has few bytes."""
    max_files: int = 64
    """Images of one request."""
    max_batch: int = 32
    """Images of one forward pass."""
    max_wait_ms: float = 5.0
    """How long a batch that is not full waits for more images, in milliseconds."""
    max_queue: int = 512
    """Images that may wait or be decoded, over all networks; beyond it the server is busy."""
    max_connections: int = 256
    """Connections that may be open; a further one replaces the one whose client is waited for longest."""
    timeout_seconds: float = 30.0
    """How long a request may take to arrive, and then again to be answered."""
    grace_seconds: float = 10.0
    """How long requests in flight may take once the server is told to stop."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            lowest = {"max_wait_ms": 0.0, "grace_seconds": 0.0, "timeout_seconds": 0.001}.get(field.name, 1)
            if not math.isfinite(value) or value < lowest:
                raise TinlabError(f"{field.name} is {value}; give at least {lowest}")
        if self.max_pixels > MOST_PIXELS:
            raise TinlabError(f"max_pixels is {self.max_pixels}; Pillow decodes at most {MOST_PIXELS:,}")
