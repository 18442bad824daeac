"""What batching is worth to a server, as a ratio in one run.

Two servers of one run are started on 127.0.0.1 and taken in turn, `--rounds` times, `--seconds` each: one
that batches, and one whose forward passes take one image (max_batch=1). `--clients` threads post one image of
val at a time, over connections that stay open, each as soon as its last answer is there.

    python benchmarks/serve.py RUN [--data DATA] [--clients 32] [--seconds 10] [--rounds 2] [--max-batch 32]
"""

from __future__ import annotations

import argparse
import http.client
import io
import itertools
import json
import math
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

MAX_REQUESTS = 50_000
"""Of one round, however long it is."""
IMAGES = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--data", help="a pack or data set; by default the run's own pack")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    bodies = requests(args.run, args.data)
    own = ["--device", args.device, "--max-queue", str(max(512, args.clients))]
    found: dict[str, dict[str, list[float]]] = {}
    servers = {
        "batched": Server(args.run, *own, "--max-batch", str(args.max_batch)),
        "one by one": Server(args.run, *own, "--max-batch", "1"),
    }
    try:
        for server in servers.values():
            load(server.port, bodies, args.clients, min(2.0, args.seconds))  # warm
        for _ in range(args.rounds):
            for name, server in servers.items():
                measured = load(server.port, bodies, args.clients, args.seconds)
                for what, value in measured.items():
                    found.setdefault(name, {}).setdefault(what, []).append(value)
    finally:
        for server in servers.values():
            server.stop()

    medians = {
        name: {what: statistics.median(values) for what, values in rounds.items()}
        for name, rounds in found.items()
    }
    with_, without = medians["batched"], medians["one by one"]
    ratios = {what: with_[what] / without[what] for what in with_}
    if args.json:
        print(json.dumps({"clients": args.clients, **medians, "batched / one by one": ratios}, indent=2))
        return
    print(f"{args.clients} clients, {args.rounds} x {args.seconds:g} s each, medians")
    for name, row in (*medians.items(), ("batched / one by one", ratios)):
        shown = "  ".join(f"{what} {value:9.2f}" for what, value in row.items())
        print(f"  {name:<22}{shown}")


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


def requests(run: Path, data: str | None) -> list[bytes]:
    """Bodies of requests, each with one image of val as a JPEG file."""
    from PIL import Image

    from tinlab.data.pack import Pack
    from tinlab.data.places import open_data
    from tinlab.runs import open_run

    pack = open_data(data) if data else Pack.open(open_run(run).pack)
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
        "requests/s": len(ordered) / (time.monotonic() - began),
        "p50 ms": ordered[len(ordered) // 2],
        "p99 ms": ordered[math.ceil(0.99 * len(ordered)) - 1],
    }


if __name__ == "__main__":
    main()
