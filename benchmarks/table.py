"""`make bench`: the short benchmarks one after another, and a table of them.

    python benchmarks/table.py [--data DATA] [--only PART …] [--out results/bench.csv] [--quick] [--json]

Each part is a script of this folder in a process of its own, and is ended where it takes longer than its
limit. All take the same images: DATA, a data set, or what `tinlab train` would find, or rendered ones, which
leave results/bench.csv as it is. The numbers mean something on a machine that does nothing else. A part that
is measured anew replaces its rows in the file; the others stay. `--quick` proves the path in a few minutes,
with numbers that say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import measuring

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "bench.csv"
BUSY = 0.5
"""Load average above which the numbers are of a machine that does something else as well."""


@dataclass(frozen=True)
class Part:
    """A script with the arguments of its short run, and of one that only proves the path."""

    script: str
    words: str
    quick: str
    limit_seconds: int
    takes: str = "--data"
    """`--data`: the set in all its forms; `zip`: the set where it is a zip; empty: no images."""


PARTS = {
    "packing": Part("pack.py", "--rounds 3", "--rounds 1", 180, "zip"),
    "input": Part("input.py", "--steps 60 --rounds 3", "--steps 2 --rounds 1", 120),
    "augmentation": Part("augment.py", "--steps 10 --rounds 3", "--steps 1 --rounds 1", 240),
    "step": Part("step.py", "--steps 10 --rounds 3", "--steps 1 --rounds 1", 240, ""),
    "tuning": Part("tuning.py", "--steps 10 --rounds 3", "--steps 1 --rounds 1", 180, ""),
    "layers": Part("layers.py", "--steps 4 --rounds 9", "--steps 1 --rounds 1", 720, ""),
    "depth": Part("depth.py", "--steps 4 --rounds 3", "--steps 1 --rounds 1 --model resnet18", 180, ""),
    "loop": Part("loop.py", "--steps 15 --rounds 2", "--steps 1 --rounds 1", 300),
    "whole job": Part("job.py", "--steps 20 --rounds 2", "--steps 1 --rounds 1", 300),
    "inference": Part(
        "inference.py", "--compile --rounds 3 --seconds 0.5", "--rounds 1 --seconds 0.01 --batch-sizes 1",
        360, "",
    ),
    "start-up": Part("startup.py", "", "--rounds 1", 180, ""),
    "serving": Part("serve.py", "--seconds 5 --rounds 2", "--seconds 0.3 --rounds 1 --clients 2", 180),
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A row of bench.csv: a comparison, and where it was measured. The ratio is ours over the peer's; the
    spread is the smallest and the largest of one round."""

    part: str
    what: str
    ours: float
    peer: float
    unit: str
    ratio: float
    spread: str
    rounds: int
    peer_name: str
    data: str
    hardware: str
    versions: str
    commit: str
    date: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="a data set: official zip or folder, or class folders")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--out", type=Path, help="default: results/bench.csv")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    args = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    load = os.getloadavg()[0]
    if load > BUSY:
        say(f"the load average is {load:.1f}: something else runs here, and the numbers are of both")
    found: list[Line] = []
    failed: list[str] = []
    with measuring.scratch() as folder:
        began = time.monotonic()
        forms = measuring.forms_of(args.data, folder)
        say(f"{forms.described}: prepared in {time.monotonic() - began:.0f} s")
        for name in args.only:
            began = time.monotonic()
            try:
                rows = measured(PARTS[name], forms, folder, quick=args.quick)
            except RuntimeError as error:
                failed.append(name)
                say(f"{name}: {error}")
                continue
            say(f"{name}: {time.monotonic() - began:.0f} s")
            found += lines(name, rows, forms.described if PARTS[name].takes else "")
    out = measuring.kept_in(args.out, RESULTS, forms)
    if found and out is not None:
        measuring.write_csv(out, merged(measuring.read_csv(out, Line), found), Line)
    print(json.dumps([asdict(line) for line in found], indent=2) if args.json else shown(found))
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def measured(part: Part, forms: measuring.Forms, folder: Path, *, quick: bool) -> list[measuring.Row]:
    """The rows of one part. Raises RuntimeError, with its last words, where it fails or takes too long."""
    command = [
        sys.executable,
        str(HERE / part.script),
        "--json",
        *(part.quick if quick else part.words).split(),
    ]
    if part.takes == "--data":
        command += ["--data", str(folder)]
    elif part.takes == "zip" and forms.source.is_file():
        command += ["--data", str(forms.source)]
    environment = {name: value for name, value in os.environ.items() if name != "TINLAB_DATA"}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        printed, said = child.communicate(timeout=part.limit_seconds)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"ended after {part.limit_seconds} s, its limit") from None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # with the children that it measures
            child.communicate()
    if child.returncode:
        raise RuntimeError(said.strip().splitlines()[-1] if said.strip() else f"exit {child.returncode}")
    try:
        return measuring.rows_from(printed)
    except ValueError as error:
        raise RuntimeError(f"{part.script} --json printed {error}") from error


def lines(part: str, rows: Iterable[measuring.Row], data: str) -> Iterator[Line]:
    """The rows with where they were measured."""
    where = measuring.provenance()
    for row in rows:
        yield Line(
            part=part,
            what=row.what,
            ours=row.ours,
            peer=row.peer,
            unit=row.unit,
            ratio=row.ratio,
            spread=measuring.spread(row.spread),
            rounds=row.rounds,
            peer_name=row.peer_name,
            data=data,
            **where,
        )


def merged(old: Sequence[Line], new: Sequence[Line]) -> list[Line]:
    """The old lines of parts that were not measured anew, and the new ones, in the order of PARTS."""
    parts = {line.part for line in new}
    order = list(PARTS)
    kept = [line for line in old if line.part not in parts and line.part in PARTS]
    return sorted([*kept, *new], key=lambda line: order.index(line.part))


def shown(found: Sequence[Line]) -> str:
    """The lines for the terminal, a block a part."""
    blocks = []
    for part in dict.fromkeys(line.part for line in found):
        rows = [
            measuring.Row(
                what=line.what, ours=line.ours, peer=line.peer, unit=line.unit, ratio=line.ratio,
                rounds=line.rounds, peer_name=line.peer_name, spread=bounds(line.spread),
            )
            for line in found
            if line.part == part
        ]  # fmt: skip
        blocks.append(f"{part}\n{measuring.table(rows)}")
    return "\n\n".join(blocks)


def bounds(text: str) -> tuple[float, float] | None:
    """What `measuring.spread` wrote."""
    low, _, high = text.partition(" to ")
    return (float(low), float(high)) if high else None


if __name__ == "__main__":
    measuring.run(main)
