"""Inputs that a stranger made: whatever they hold, a valid result or one clear sentence.

    python trials/inputs.py                          every part, 10,000 inputs each
    python trials/inputs.py --record                 and a row for each in the ledger
    python trials/inputs.py zip png --inputs 500     some parts
    python trials/inputs.py zip --seed 3 --only 17   one input again, with its traceback
    python trials/inputs.py zip --coverage 600       guided by coverage, for ten minutes, where atheris is

An input is a valid one that was changed: in its bytes, or in what these mean (a field of a zip's table, a
chunk of a PNG, a value of a JSON), so that the change gets past the first checks. What is asked of every
input stands in strange/sandbox.py; what was found is a test of its own in tests/reliability/test_inputs.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import ledger
from strange import binary, data_sets, records
from strange.sandbox import MEMORY_MIB, Part, Tally, drawn, try_all, try_one, write_files

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore", "Duplicate name")  # in archives, which is what is wanted

PARTS: dict[str, Part] = {part.name: part for part in (*data_sets.PARTS, *records.PARTS, *binary.PARTS)}

_TEST = "tests/reliability/test_inputs.py::test_inputs_get_a_result_or_a_sentence"


def _promise(part: str, what: str) -> ledger.Promise:
    return ledger.Promise(
        f"inputs.{part}",
        f"{what}: whatever they hold, a valid result or one clear sentence and exit code 2; never a"
        f" traceback, a hang, more than {MEMORY_MIB} MiB of memory, or a write outside the target folder.",
        f"{_TEST}[{part}]",
        f"python trials/inputs.py {part} --inputs 10000 --record",
    )


PROMISES: tuple[ledger.Promise, ...] = (
    _promise("zip", "Zip archives"),
    _promise("folder", "Class folders with links, pipes and odd names in them"),
    _promise("lists", "wnids.txt, words.txt and val_annotations.txt"),
    _promise("jpeg", "JPEG images"),
    _promise("png", "PNG images"),
    _promise("image", "Images of every other format"),
    _promise("parquet", "Parquet files"),
    _promise("recipe", "Recipe and study files"),
    _promise("set", "Values of --set, --space and --seeds"),
    _promise("results", "Result files: result.json, metrics.jsonl, predictions, results.csv, measures.csv"),
    _promise("report", "Run folders that a report is made of"),
    _promise("study", "Study folders"),
    _promise("answers", "Files of answers and of ensembles"),
    _promise("pack", "Packs, their pack.json and their data"),
    _promise("checkpoint", "Checkpoints: safetensors and state.json"),
    _promise("weights", "Files of weights from elsewhere"),
)


def guided(part: Part, seconds: int, folder: Path) -> None:
    """Let atheris look for inputs whose bytes reach new lines. It ends the process."""
    import atheris

    kept = (
        "tinlab.errors",
        "tinlab.files",
        "tinlab.terminal",
    )  # whose classes and functions are in use already
    for module in [name for name in sys.modules if name.startswith("tinlab.") and name not in kept]:
        del sys.modules[module]
    with atheris.instrument_imports(include=["tinlab"]):
        warm_up(part, 0)
    files = {name: node for name, node in drawn(part, 0, 0).items() if isinstance(node, bytes)}
    name = max(files, key=lambda one: len(files[one]))
    seeds = folder / "seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    for number in range(200):
        made = drawn(part, 0, number).get(name)
        if isinstance(made, bytes):
            (seeds / str(number)).write_bytes(made)

    def try_bytes(data: bytes) -> None:
        try_one(part, {**files, name: data}, folder / "sandbox")

    limits = [f"-max_total_time={seconds}", "-rss_limit_mb=4096", "-max_len=65536", "-timeout=0"]
    arguments = [sys.argv[0], str(seeds), f"-artifact_prefix={folder}/", "-print_final_stats=1", *limits]
    atheris.Setup(arguments, try_bytes)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--inputs", type=int, default=10_000, help="how many of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this input again, in this process")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "tinlab-inputs")
    parser.add_argument("--record", action="store_true", help="write a row for each part into the ledger")
    parser.add_argument("--coverage", type=int, metavar="SECONDS", help="guided by coverage, with atheris")
    given = parser.parse_args()
    unknown = [name for name in given.parts if name not in PARTS]
    if unknown:
        parser.error(f"there is no part '{unknown[0]}'; there are: {', '.join(PARTS)}")
    chosen = [PARTS[name] for name in given.parts or PARTS]
    if given.coverage:
        guided(chosen[0], given.coverage, given.keep / f"coverage-{chosen[0].name}")
        return 0
    if given.only is not None:
        warm_up(chosen[0], given.seed)
        with tempfile.TemporaryDirectory() as folder:
            refusal = try_one(chosen[0], drawn(chosen[0], given.seed, given.only), Path(folder) / "sandbox")
        print("accepted" if refusal is None else refusal)
        return 0
    failed = 0
    for part in chosen:
        warm_up(part, given.seed)
        begun = time.monotonic()
        tally = try_all(part, range(given.inputs), given.seed, keep=given.keep)
        seconds = time.monotonic() - begun
        failed += tally.faults.total()
        show(part, tally, seconds)
        if given.record:
            promise = next(one for one in PROMISES if one.id == f"inputs.{part.name}")
            note = (
                f"{tally.accepted:,} accepted, {tally.refused:,} refused; "
                f"slowest {tally.slowest_seconds:.1f} s; {tally.memory_mib:.0f} MiB more than at the start; "
                f"seed {given.seed}"
            )
            ledger.record(promise, tally.tried, "inputs", tally.faults.total(), seconds, note)
    return 1 if failed else 0


def warm_up(part: Part, seed: int) -> None:
    """Make the seeds and import what the part needs here, once, and not in every process that is begun."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.suppress(Exception),
    ):  # what is wrong is found again, and counted, in the process that tries it
        place, out = Path(folder) / "in", Path(folder) / "out"
        place.mkdir()
        out.mkdir()
        write_files(
            place, {name: node for name, node in drawn(part, seed, 0).items() if isinstance(node, bytes)}
        )
        part.attempt(place, out)


def show(part: Part, tally: Tally, seconds: float) -> None:
    print(
        f"{part.name}: {tally.tried:,} inputs, {tally.accepted:,} accepted, {tally.refused:,} refused, "
        f"{tally.faults.total():,} faults; slowest {tally.slowest_seconds:.2f} s, "
        f"{tally.memory_mib:.0f} MiB, {seconds:.0f} s in all",
        flush=True,
    )
    for fault, often in tally.faults.most_common():
        print(f"  {often} x {fault}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
