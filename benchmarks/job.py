"""How long a whole job takes, from the data set as it was downloaded to a measured network, in one run.

Both sides train ResNet-18 (7x7/2 stem) for `--steps` steps of 128 images and measure it on val, as commands
that a person types, start-up of Python included, and are taken in turn:

    tinlab    `tinlab train RECIPE --data DATA`: pack, train, measure
    peer      `unzip -q` where DATA is a zip, sort val into class folders, benchmarks/peer.py --best --val

    python benchmarks/job.py [--data DATA] [--steps 30] [--rounds 2] [--json]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import measuring

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = measuring.options(__doc__, rounds=2)
    parser.add_argument("--data", help="the official data set as a zip or a folder")
    parser.add_argument("--steps", type=measuring.at_least(1), default=30)
    args = parser.parse_args()
    from tinlab.errors import TinlabError

    with measuring.scratch() as folder:
        forms = measuring.forms_of(args.data, folder)
        if forms.val is None:
            raise TinlabError(f"{forms.source} has no val, which a whole job is measured on")
        source = forms.source
        if source.is_file():
            source = Path(shutil.copyfile(source, folder / "data.zip"))
        recipe = folder / "job.json"
        recipe.write_text(training(args.steps), "utf-8")
        work = folder / "work"

        def whole_job(side: str) -> float:
            if side == "tinlab":
                return timed(tinlab_commands(source, recipe, work), work)
            return peer_seconds(source, args.steps, work)

        seconds = measuring.in_turn(("tinlab", "peer"), whole_job, args.rounds)
    kind = "zip" if source.is_file() else "folder"
    row = measuring.compare(
        f"whole job: {kind}, {args.steps} steps of ResNet-18, val", seconds["tinlab"], seconds["peer"], "s",
        "a plain script in bf16, channels-last",
    )  # fmt: skip
    measuring.report([row], f"{forms.described}, {os.cpu_count()} CPUs", as_json=args.json)


def training(steps: int) -> str:
    """The peer's training as a recipe."""
    import loop

    from tinlab.recipe import changed

    return changed(loop.recipe(1), [f"schedule.steps={steps}"]).model_dump_json()


def tinlab_commands(source: Path, recipe: Path, work: Path) -> list[list[str]]:
    out = ["--data", str(source), "--out", str(work / "runs"), "--device", "cpu"]
    return [[sys.executable, "-m", "tinlab", "train", str(recipe), *out]]


def peer_seconds(source: Path, steps: int, work: Path) -> float:
    began = time.perf_counter()
    folders = source
    if source.is_file():
        timed([[measuring.unzip(), "-q", str(source), "-d", str(work / "set")]], work, keep=True)
        (folders,) = (work / "set").iterdir()
    val = measuring.val_by_class(folders, work / "val")
    command = [sys.executable, str(HERE / "peer.py"), str(folders / "train"), "--val", str(val), "--best"]
    timed([[*command, "--steps", str(steps), "--warmup", "0"]], work)
    return time.perf_counter() - began


def timed(commands: list[list[str]], work: Path, *, keep: bool = False) -> float:
    """Wall seconds of the commands; what they left in `work` is removed afterwards."""
    work.mkdir(exist_ok=True)
    environment = {**os.environ, "TINLAB_CACHE": str(work / "cache")}
    began = time.perf_counter()
    for command in commands:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or "no word").splitlines()[-1]
            sys.exit(f"{' '.join(command[:4])} failed: {said}")
    seconds = time.perf_counter() - began
    if not keep:
        shutil.rmtree(work)
    return seconds


if __name__ == "__main__":
    measuring.run(main)
