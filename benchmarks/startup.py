"""How long the program takes to start, beside Python itself and the library that it must not wait for.

Child processes are taken in turn, `--rounds` times; shown are medians in milliseconds:

    python           python -c pass
    help             python -m tinlab --help, which must stay under half a second
    torch            python -c "import torch"
    each command     its --help, with --commands

    python benchmarks/startup.py [--rounds 11] [--commands] [--json]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import measuring

LIMIT_MS = 500
BASES = {"python": ["-c", "pass"], "help": ["-m", "tinlab", "--help"], "torch": ["-c", "import torch"]}


def main() -> None:
    parser = measuring.options(__doc__, rounds=11)
    parser.add_argument("--commands", action="store_true", help="also the help of every command")
    args = parser.parse_args()
    children = BASES | (
        {name: ["-m", "tinlab", *name.split(), "--help"] for name in commands()} if args.commands else {}
    )
    for words in children.values():
        milliseconds(words)  # the first one compiles and fills the cache of files
    taken = measuring.in_turn(children, lambda name: milliseconds(children[name]), args.rounds)
    python, torch, started = taken.pop("python"), taken.pop("torch"), taken.pop("help")
    rows = [
        measuring.compare("tinlab --help", started, python, "ms", "python -c pass"),
        measuring.compare("tinlab --help", started, torch, "ms", "import torch"),
        *(measuring.compare(f"tinlab {n} --help", t, torch, "ms", "import torch") for n, t in taken.items()),
    ]
    heading = f"{os.cpu_count()} CPUs; tinlab --help must take less than {LIMIT_MS} ms"
    measuring.report(rows, heading, as_json=args.json)


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
    measuring.run(main)
