"""Where the time of a training step goes, as shares.

tinlab's training loop itself runs under torch.profiler for some steps, for ResNet-18 (7x7/2 stem, 64x64) and
for the network of `fast_cpu` at the smallest and the largest size that it trains on. Every operation's own
time is counted for what it is part of; the time between operations is Python's. The shares add up to the time
of the steps.

    python benchmarks/profile_step.py [--data DATA] [--steps 10] [--out results/profile.csv] [--json]

The profiler itself costs time: the table says how fast the same steps were without it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import measuring

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "profile.csv"
WARMUP = 5
BATCH = 128
SHARES = (
    "input", "augmentation", "convolutions, forward", "convolutions, backward", "batch norm, forward",
    "batch norm, backward", "activations, pooling and the rest, forward",
    "activations, pooling and the rest, backward", "loss and metrics", "optimizer", "Python and bookkeeping",
)  # fmt: skip
LOSS = ("cross_entropy", "log_softmax", "logsoftmax", "nll_loss", "nllloss", "argmax")
COUNTING = ("aten::eq", "aten::sum")
"""What the loop does with logits outside the network: the number of images that are right."""
INPUT, AUGMENTATION, METRICS = "tinlab::input", "tinlab::augmentation", "tinlab::metrics"
RANGES = {INPUT: "input", AUGMENTATION: "augmentation", METRICS: "loss and metrics"}
"""Ranges that are laid around calls of the loop -> what they are counted for."""
BACKWARD = "autograd::engine::evaluate_function"


@dataclass(frozen=True)
class Share:
    """A row of profile.csv: what part of the steps of `network` goes into `what`.

    `milliseconds` are of one step under the profiler; `images_per_second` are those of steps without it.
    """

    network: str
    what: str
    percent: float
    milliseconds: float
    images_per_second: float
    profiled_images_per_second: float
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
    parser.add_argument("--steps", type=measuring.at_least(2), default=10)
    parser.add_argument("--batch-size", type=measuring.at_least(2), default=BATCH)
    parser.add_argument("--out", type=Path, help="default: results/profile.csv")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--pack", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(profile(json.loads(args.child), args.pack, args.steps)))
        return
    found: list[Share] = []
    with measuring.scratch() as folder:
        forms = measuring.forms_of(args.data, folder)
        for name, recipe in networks(args.batch_size).items():
            own = [HERE / "profile_step.py", "--steps", args.steps, "--pack", forms.pack, "--child", recipe]
            found += shares(name, measuring.child(*own), forms.described)
            print(f"{name}: done", file=sys.stderr, flush=True)
    if (out := measuring.kept_in(args.out, RESULTS, forms)) is not None:
        measuring.write_csv(out, found, Share)
    print(json.dumps([asdict(share) for share in found], indent=2) if args.json else shown(found))


def networks(batch_size: int) -> dict[str, str]:
    """What is profiled: its name -> its recipe as JSON, which `profile` gives a length."""
    import loop

    from tinlab import recipes
    from tinlab.recipe import changed

    plain = changed(loop.recipe(1), [f"schedule.batch_size={batch_size}"])
    fast = changed(recipes.find("fast_cpu"), [f"schedule.batch_size={batch_size}"])
    found = {"ResNet-18, 64 pixels": plain.model_dump_json()}
    for size in sorted({min(fast.data.image_sizes), max(fast.data.image_sizes)}):
        at_size = changed(fast, [f"data.image_sizes=[{size}]"])
        found[f"fast_cpu, {size} pixels"] = at_size.model_dump_json()
    return found


def profile(stated: dict[str, Any], place: Path, steps: int) -> dict[str, Any]:
    """Microseconds by share, of `steps` steps of the training loop, and images/s with and without the
    profiler."""
    from tinlab.tuning import tune_process

    tune_process()
    import torch

    from tinlab.data.pack import Pack
    from tinlab.recipe import changed, parse_recipe
    from tinlab.training import loop
    from tinlab.training.progress import Progress

    length = [
        "schedule.epochs=null", f"schedule.steps={WARMUP + 2 * steps}", "evaluate_every_epochs=1000",
    ]  # fmt: skip
    recipe = changed(parse_recipe(stated, "--child"), length)
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    marks: list[float] = []

    def watch(progress: Progress) -> None:
        if progress.step not in (WARMUP, WARMUP + steps, WARMUP + 2 * steps):
            return
        marks.append(time.perf_counter())
        if progress.step == WARMUP + steps:
            profiler.start()
            marks.append(time.perf_counter())
        elif progress.step == WARMUP + 2 * steps:
            profiler.stop()

    with ranges(), tempfile.TemporaryDirectory() as out:
        loop.train(
            recipe, Pack.open(place), Path(out), device="cpu", watch=watch, final_split="tune",
            checkpoint_seconds=float("inf"),
        )  # fmt: skip
    plain, profiled = marks[1] - marks[0], marks[3] - marks[2]
    by_share = dict.fromkeys(SHARES, 0.0)
    for event in profiler.events():
        by_share[share_of(event.name, ancestors(event))] += event.self_cpu_time_total
    by_share[SHARES[-1]] += max(0.0, 1e6 * profiled - sum(by_share.values()))
    images = steps * recipe.schedule.batch_size
    return {
        "microseconds_a_step": {name: value / steps for name, value in by_share.items()},
        "images_per_second": images / plain,
        "profiled_images_per_second": images / profiled,
    }


@contextmanager
def ranges() -> Iterator[None]:
    """While entered, what the loop does outside the network stands in ranges of the profiler."""
    from tinlab.augment.policy import Policy
    from tinlab.data.batches import Batches
    from tinlab.training.curves import Meter

    with ExitStack() as stack:
        for owner, method, name in (
            (Batches, "at", INPUT),
            (Policy, "inputs", AUGMENTATION),
            (Meter, "add", METRICS),
            (Meter, "drain", METRICS),
        ):
            stack.enter_context(patch.object(owner, method, ranged(name, getattr(owner, method))))
        yield


def ranged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` inside a range of the profiler."""
    import torch

    def inside(*given: Any, **named: Any) -> Any:
        with torch.profiler.record_function(name):
            return function(*given, **named)

    return inside


def ancestors(event: Any) -> list[str]:
    """The names of the operations and ranges that `event` is a part of, the nearest first."""
    names = []
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    return names


def share_of(name: str, inside: Sequence[str]) -> str:
    """Which of SHARES an operation's own time belongs to, by its name and those that it is a part of."""
    names = [name, *inside]
    for one in names:
        if one in RANGES:
            return RANGES[one]
    if any(one.startswith("Optimizer.") for one in names):
        return "optimizer"
    lower = [one.lower() for one in names]
    way = "backward" if any(one.startswith(BACKWARD) for one in names) else "forward"
    if any(word in one for word in LOSS for one in lower) or (way == "forward" and names[-1] in COUNTING):
        return "loss and metrics"
    if any("conv" in one for one in lower):
        return f"convolutions, {way}"
    if any("batch_norm" in one or "batchnorm" in one for one in lower):
        return f"batch norm, {way}"
    return f"activations, pooling and the rest, {way}"


def shares(network: str, found: dict[str, Any], data: str) -> list[Share]:
    """The rows of one network."""
    taken, where = found["microseconds_a_step"], measuring.provenance()
    return [
        Share(
            network=network,
            what=what,
            percent=round(100 * taken[what] / sum(taken.values()), 2),
            milliseconds=measuring.significant(taken[what] / 1000),
            images_per_second=measuring.significant(found["images_per_second"]),
            profiled_images_per_second=measuring.significant(found["profiled_images_per_second"]),
            data=data,
            **where,
        )
        for what in SHARES
    ]


def shown(found: Sequence[Share]) -> str:
    """For the terminal: a row a share, a column a network."""
    names = list(dict.fromkeys(share.network for share in found))
    percent = {(share.network, share.what): share.percent for share in found}
    speed = {s.network: (s.images_per_second, s.profiled_images_per_second) for s in found}
    lines = [f"{'':44}" + "".join(f"{name:>24}" for name in names)]
    lines += [f"{what:44}" + "".join(f"{percent[name, what]:>22.1f} %" for name in names) for what in SHARES]
    lines += [
        f"{what:44}" + "".join(f"{measuring.number(speed[name][place]):>24}" for name in names)
        for place, what in enumerate(("images/s", "images/s under the profiler"))
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    measuring.run(main)
