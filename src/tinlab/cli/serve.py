"""The command that serves trained networks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tinlab import terminal
from tinlab.cli.common import AsJson, Device, app


@app.command()
def serve(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders.")],
    host: Annotated[str, typer.Option(help="The address to be reached at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Whose val to try images of. Default: the first run's own pack."),
    ] = None,
    device: Device = "auto",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name that the server is called by; repeatable."),
    ] = None,
    max_bytes: Annotated[int, typer.Option(help="Bytes of a request.")] = 16 << 20,
    max_pixels: Annotated[int, typer.Option(help="Pixels of an image.")] = 25_000_000,
    max_files: Annotated[int, typer.Option(help="Images of a request.")] = 64,
    max_batch: Annotated[int, typer.Option(help="Images of a forward pass; 1 turns batching off.")] = 32,
    max_wait_ms: Annotated[float, typer.Option(help="How long a batch waits for more images.")] = 5.0,
    max_queue: Annotated[int, typer.Option(help="Images that may wait; beyond it, 503.")] = 512,
    max_connections: Annotated[int, typer.Option(help="Connections that may be open.")] = 256,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 30.0,
    json: AsJson = False,
) -> None:
    """Serve runs: a page to drop images on, and an API."""
    from tinlab.serve import Limits
    from tinlab.serve import serve as serve_runs

    limits = Limits(
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        max_files=max_files,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        max_queue=max_queue,
        max_connections=max_connections,
        timeout_seconds=timeout,
    )
    if host not in ("127.0.0.1", "::1", "localhost"):
        terminal.say(
            f"WARNING: --host {host} lets every machine that reaches this one send images to it. There is no "
            "password and no encryption; put a proxy that has both in front of it."
        )

    def ready(address: str) -> None:
        if json:
            terminal.show_json({"address": address, "runs": [str(run) for run in runs]})
        else:
            terminal.show(f"serving {address} (Ctrl-C stops)")
        sys.stdout.flush()

    serve_runs(
        runs,
        host=host,
        port=port,
        limits=limits,
        device=device,
        data=data,
        allow_hosts=allow_host or (),
        ready=ready,
    )
