"""What benchmarks/gpu.sh does: everything that wants a GPU and is still missing, in order of worth.

    python benchmarks/gpu.py PACK OUT [MINUTES] [--jobs NAME,…] [--lanes 3] [--device cuda] [--weights]

The jobs are, in this order: a smoke test (the tests marked `cuda`), what the device and a step on it can do
(benchmarks/device.py), fast_gpu's length by `tune`, then one and then five timed runs of it
(benchmarks/fast.py), the rows of the papers' tables that results/results.csv does not have, best_resnet18 and
best. A job that measures time has the machine for itself; of the papers' trainings, whose small steps leave a
large GPU half idle, some run side by side.

What is finished is not done again: OUT/state.json says how each job stands. A job is started where its
expected time, corrected by how the finished ones kept to theirs, is left of MINUTES. A training that is
longer than all of MINUTES is begun all the same; it saves and stops in time, and goes on in the next call.
best and best_resnet18 are shortened to what is left, and their rows say so (`6 of 300 epochs`). Nothing is
killed half-way without a checkpoint.

In OUT: results.csv and curves/, in the format of results/ (`tinlab results` reads them once they are copied
there), runs/, fast/, logs/, state.json, table.txt, and with --weights the weights of fast_gpu and of the best
networks in half precision, in pieces of at most 16 MiB that `cat` puts together again.

--jobs takes names as the table has them, or how they begin: --jobs smoke,measure,fast. --tiny makes every
training a few steps long, to try the whole list on a CPU: its rows are called NAME-tiny and mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

from planned.driver import Driver, say
from planned.jobs import commands, shrunk, trainings, wanted
from planned.plan import State
from planned.summary import best_runs, table
from planned.work import worker, write_halves

ROOT = Path(__file__).resolve().parent.parent

MODULES = ("torch", "numpy", "pydantic", "safetensors", "simplejpeg", "psutil", "tensorboard")
"""What must be importable for any of it."""


def main() -> int:
    began = time.monotonic()
    if sys.argv[1:] == ["--worker"]:
        return worker()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pack", type=Path, metavar="PACK")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("minutes", type=float, nargs="?", default=9.5, metavar="MINUTES")
    parser.add_argument("--jobs", default="", metavar="NAME,…")
    parser.add_argument("--lanes", type=int, default=3, help="trainings side by side")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--weights", action="store_true")
    args = parser.parse_args()
    if args.lanes < 1:
        parser.error("--lanes are 1 or more")
    check_modules()
    from tinlab.compute import resolve_device
    from tinlab.data.pack import Pack
    from tinlab.errors import TinlabError
    from tinlab.files import read_json
    from tinlab.results import read_results, results_file

    try:
        resolve_device(args.device)
        Pack.open(args.pack)
        args.pack, args.out = args.pack.resolve(), args.out.resolve()
        (args.out / "logs").mkdir(parents=True, exist_ok=True)
        published = [] if args.tiny else read_results(results_file())
        jobs = [*commands(args), *trainings(published)]
    except (TinlabError, OSError) as error:
        sys.exit(f"gpu.py: {error}")
    jobs = shrunk(jobs) if args.tiny else jobs
    names = [name for name in args.jobs.split(",") if name]
    jobs = [job for job in jobs if wanted(job, names)]
    if not jobs:
        sys.exit(f"gpu.py: no job is called {args.jobs}; leave --jobs out for the list")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.lanes)))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(args.out / "compiled"))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    state = State()
    if (args.out / "state.json").is_file():
        state = State(**read_json(args.out / "state.json"))
    driver = Driver(args, jobs, state, began)
    driver.run()
    if args.weights:
        for run in best_runs(args.out, state):
            say(f"weights: {len(write_halves(run, args.out / 'weights'))} files of {run}")
    text = table(jobs, state)
    (args.out / "table.txt").write_text(text + "\n")
    print(text)
    return 128 + driver.stopped if driver.stopped else 0


def check_modules() -> None:
    missing = []
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception:  # one that is there and broken is as bad
            missing.append(name)
    if missing:
        sys.exit(
            f"gpu.py: {', '.join(missing)} cannot be imported by {sys.executable}; put wheels into .whl/ "
            "beside pyproject.toml, or name another Python with PYTHON=…"
        )


if __name__ == "__main__":
    sys.exit(main())
