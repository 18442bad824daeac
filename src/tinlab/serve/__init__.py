"""A page and an API for trained networks: images in, words and saliency maps out.

limits.py     what a request may ask for
images.py     bytes from a stranger -> pixels; maps -> PNG
batcher.py    the queue, and the one thread that runs networks
service.py    networks by name, behind that queue
samples.py    images of val to try
guard.py      who may ask: Host, Origin, and the headers of every answer
form.py       a multipart body, read within its limits
schemas.py    what the API answers
api.py        the routes
server.py     the socket, slow clients, signals
page.html     the page, with page.css and page.js
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from tinlab.errors import TinlabError
from tinlab.serve.limits import Limits

__all__ = ["Limits", "serve"]


def serve(
    runs: Sequence[str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    device: str = "auto",
    data: str | Path | None = None,
    allow_hosts: Sequence[str] = (),
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve run folders `runs` until SIGINT or SIGTERM, which is raised again after a clean end.

    `port` 0 takes a free one; `ready` is told the address once it answers. `data` is the pack or data set
    whose val the page offers; by default the first run's own pack. `allow_hosts` are further names by which
    the server may be called, besides `host` and this machine's own.

    Raises TinlabError where the extra `serve` is not installed, a run cannot be loaded, or the address is
    not to be had.
    """
    for module in ("fastapi", "uvicorn", "python_multipart"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise TinlabError(
                f"serving needs {module}, which is not installed; pip install 'tinlab[serve]'"
            ) from error
    from tinlab.serve import server

    server.run(
        runs,
        host=host,
        port=port,
        limits=limits or Limits(),
        device=device,
        data=data,
        allow_hosts=allow_hosts,
        ready=ready,
    )
