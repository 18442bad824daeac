"""What batching is worth to a server, as a ratio in one run.

Two servers of one run are started on 127.0.0.1 and taken in turn, `--rounds` times, `--seconds` each: one
that batches, and one whose forward passes take one image (max_batch=1). `--clients` threads post one image of
val at a time, over connections that stay open, each as soon as its last answer is there.

    python benchmarks/serve.py [RUN] [--data DATA] [--clients 32] [--seconds 10] [--rounds 2] [--max-batch 32]

Without RUN, the network of `fast_cpu` is taken as one training step on DATA leaves it.
"""

from __future__ import annotations

import argparse
import http.client
import io
import itertools
import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import measuring
from PIL import Image

from tinlab.data.pack import Pack
from tinlab.data.places import open_data
from tinlab.runs import open_run

SIDES = ("batched", "one by one")
MAX_REQUESTS = 50_000
"""Of one round, however long it is."""
IMAGES = 64


def main() -> None:
    parser = measuring.options(__doc__, rounds=2)
    parser.add_argument("run", type=Path, nargs="?", help="a run folder")
    parser.add_argument("--data", help="a pack or data set; by default the run's own pack")
    parser.add_argument("--clients", type=measuring.at_least(1), default=32)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--max-batch", type=measuring.at_least(1), default=32)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    with measuring.scratch() as folder:
        if args.run is None:
            pack = Pack.open(measuring.forms_of(args.data, folder).pack)
            run = one_step(pack, folder)
        else:
            run = args.run
            pack = open_data(args.data) if args.data else Pack.open(open_run(run).pack)
        found = measure(run, requests(pack), args)
    without = f"passes of one image, {args.clients} clients"
    rows = [
        measuring.compare(f"serve: {what}", found[SIDES[0]][what], found[SIDES[1]][what], unit, without)
        for what, unit in (("requests", "/s"), ("latency, median", "ms"), ("latency, 99th percentile", "ms"))
    ]
    heading = f"{args.clients} clients, {args.seconds:g} s a round, batches of up to {args.max_batch}"
    measuring.report(rows, heading, as_json=args.json)


def measure(run: Path, bodies: list[bytes], args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Side -> measure -> a value a round."""
    own = ["--device", args.device, "--max-queue", str(max(512, args.clients))]
    found: dict[str, dict[str, list[float]]] = {side: {} for side in SIDES}
    servers: dict[str, Server] = {}
    try:
        for side, size in zip(SIDES, (args.max_batch, 1), strict=True):
            servers[side] = Server(run, *own, "--max-batch", str(size))
        for server in servers.values():
            load(server.port, bodies, args.clients, min(2.0, args.seconds))  # warm
        for _ in range(args.rounds):
            for side, server in servers.items():
                for what, value in load(server.port, bodies, args.clients, args.seconds).items():
                    found[side].setdefault(what, []).append(value)
    finally:
        for server in servers.values():
            server.stop()
    return found


def one_step(pack: Pack, folder: Path) -> Path:
    """A run of one step of `fast_cpu`."""
    from tinlab import recipes
    from tinlab.recipe import changed
    from tinlab.training import loop

    recipe = changed(recipes.find("fast_cpu"), ["schedule.epochs=null", "schedule.steps=1"])
    return loop.train(recipe, pack, folder / "runs", device="cpu", final_split="tune").path


class Server:
    """`tinlab serve` on a free port, in a process of its own."""

    def __init__(self, run: Path, *words: str) -> None:
        command = [sys.executable, "-m", "tinlab", "serve", str(run), "--port", "0", "--json", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = self.process.stdout.readline()
            if not line:
                sys.exit(self.process.wait())
            text += line
        self.port = int(json.loads(text)["address"].rpartition(":")[2])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def requests(pack: Pack) -> list[bytes]:
    """Bodies of requests, each with one image of val as a JPEG file."""
    bodies = []
    for pixels in pack.split("val").images[:IMAGES]:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=90)
        head = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
        bodies.append(head + file.getvalue() + b"\r\n--x--\r\n")
    return bodies


def load(port: int, bodies: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Requests/s and milliseconds of latency under `clients` at once."""
    latencies: list[float] = []
    failures: list[str] = []
    counter = itertools.count()
    end = time.monotonic() + seconds

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        while time.monotonic() < end and not failures and (number := next(counter)) < MAX_REQUESTS:
            began = time.perf_counter()
            connection.request("POST", "/classify", bodies[number % len(bodies)], kind)
            answer = connection.getresponse()
            text: Any = answer.read()
            if answer.status != 200:
                failures.append(f"{answer.status}: {text.decode()}")
                return
            latencies.append(time.perf_counter() - began)

    began = time.monotonic()
    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit(f"a request failed: {failures[0]}")
    ordered = sorted(1000 * latency for latency in latencies)
    return {
        "requests": len(ordered) / (time.monotonic() - began),
        "latency, median": ordered[len(ordered) // 2],
        "latency, 99th percentile": ordered[math.ceil(0.99 * len(ordered)) - 1],
    }


if __name__ == "__main__":
    measuring.run(main)
