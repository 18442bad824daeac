"""Servers for trials to ask, and a trial's tally."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strangers import Place


@contextlib.contextmanager
def in_thread(service: Any, samples: Any) -> Iterator[Place]:
    """A server of `service` in a thread of this process; gives its host and port."""
    from tinlab.serve import server
    from tinlab.serve.routes import build

    listening = server.bound("127.0.0.1", 0)
    ready = threading.Event()
    config = server.configuration(build(service, samples), service.limits)
    running = server.Server(config, ready.set, service.batcher.hurry)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        if not ready.wait(60):
            raise RuntimeError("the server did not start")
        yield listening.getsockname()[:2]
    finally:
        running.should_exit = True
        thread.join(60)
        if thread.is_alive():
            raise RuntimeError("the server did not stop")


@contextlib.contextmanager
def as_process(run: Path, *options: object) -> Iterator[tuple[Place, int, Path]]:
    """`tinlab serve RUN` as a person starts it; gives its place, its process and the file of its errors."""
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors"
        environment = {**os.environ, "TINLAB_CACHE": str(Path(folder) / "cache"), "TINLAB_DATA": ""}
        words = [sys.executable, "-m", "tinlab", "serve", run, "--port", 0, "--json", *options]
        with errors.open("w") as log:
            process = subprocess.Popen(
                list(map(str, words)), stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        try:
            text = ""
            assert process.stdout is not None
            while not text.endswith("}\n"):
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"the server did not start: {errors.read_text()}")
                text += line
            port = int(json.loads(text)["address"].rpartition(":")[2])
            yield ("127.0.0.1", port), process.pid, errors
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextlib.contextmanager
def tiny_run() -> Iterator[Path]:
    """A network of some thousand weights on rendered images, trained in seconds."""
    from tinlab.data.packing import pack
    from tinlab.data.shapes import render
    from tinlab.recipe import changed
    from tinlab.recipes import find
    from tinlab.training import loop

    with tempfile.TemporaryDirectory() as folder:
        images = render(
            Path(folder) / "images", classes=4, train_per_class=30, val_per_class=10, test_images=4
        )
        packed = pack(images, Path(folder) / "pack")
        recipe = changed(find("demo"), ["schedule.steps=10", "model.width=4", "schedule.batch_size=16"])
        yield loop.train(recipe, packed, Path(folder) / "runs", device="cpu").path


def allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


@dataclass
class Tally:
    """What a trial did: `wrong` names each failure once, with how often."""

    tried: int = 0
    failed: int = 0
    seconds: float = 0.0
    statuses: Counter[int | None] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    note: str = ""

    def fail(self, what: str) -> None:
        self.failed += 1
        self.wrong[what] += 1


def added(one: Tally, other: Tally) -> Tally:
    """Both together."""
    return Tally(
        one.tried + other.tried,
        one.failed + other.failed,
        one.seconds + other.seconds,
        one.statuses + other.statuses,
        one.wrong + other.wrong,
        f"{one.note} Then: {other.note}",
    )
