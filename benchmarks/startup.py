"""How long the program takes to start, beside Python itself and the library that it must not wait for.

Child processes are taken in turn, `--rounds` times; shown are medians in milliseconds:

    python           python -c pass
    help             python -m tinlab --help, which must stay under half a second
    torch            python -c "import torch"
    each command     its --help, with --commands

    python benchmarks/startup.py [--rounds 11] [--commands] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

LIMIT_MS = 500
BASES = {"python": ["-c", "pass"], "help": ["-m", "tinlab", "--help"], "torch": ["-c", "import torch"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--commands", action="store_true", help="Also the help of every command.")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    children = BASES | (
        {name: ["-m", "tinlab", *name.split(), "--help"] for name in commands()} if args.commands else {}
    )
    taken: dict[str, list[float]] = {name: [] for name in children}
    for turn in range(args.rounds + 1):
        for name, words in children.items():
            spent = milliseconds(words)
            if turn:  # the first one compiles and fills the cache of files
                taken[name].append(spent)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    figures = {
        "help / python": medians["help"] / medians["python"],
        "help / torch": medians["help"] / medians["torch"],
    }
    if args.json:
        report = {"rounds": args.rounds, "cpus": os.cpu_count(), "milliseconds": taken, "figures": figures}
        print(json.dumps(report, indent=2))
        return
    for name, values in taken.items():
        print(f"{name:24}{medians[name]:8.0f} ms   ({min(values):.0f} to {max(values):.0f})")
    print("; ".join(f"{name} {figure:.2f}" for name, figure in figures.items()))
    print(f"help is {'under' if medians['help'] < LIMIT_MS else 'NOT under'} {LIMIT_MS} ms")


def milliseconds(words: list[str]) -> float:
    """What one start takes, from before to after."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    return 1000 * (time.perf_counter() - began)


def commands() -> list[str]:
    """Every command, as it is typed."""
    from tinlab.cli import app

    groups = {"": app, **{group.name or "": group.typer_instance for group in app.registered_groups}}
    return [
        f"{group} {command.name or getattr(command.callback, '__name__', '').replace('_', '-')}".strip()
        for group, of in groups.items()
        if of is not None
        for command in of.registered_commands
    ]


if __name__ == "__main__":
    main()
