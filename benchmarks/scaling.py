"""How the cost grows with pixels, classes, images and ranks, and what this machine reads and writes.

Short measurements at a few points an axis, each in a process of its own, so that its peak memory is its own:

    pixels    a training step of `fast_cpu`'s network at each size of images
    classes   the same at 64 pixels, for each number of classes
    images    packing a folder of so many images, and reading shuffled batches from the pack
    ranks     a step of 64 images a rank, a thread each, and one exchange of the gradients by itself
    decoding  packing JPEGs of 500x375 at 64 and at 224 pixels
    reading   a pack from the disk, from its beginning to its end, once nothing of it is in memory

    python benchmarks/scaling.py [--only AXIS …] [--seconds 5] [--out results/scaling.csv] [--json]

All images are drawn. The exponents that are fitted to the points stand in docs/performance.md.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import measuring

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "scaling.csv"
SIZE, CLASSES, BATCH, RANK_BATCH = 64, 200, 128, 64
POINTS: dict[str, tuple[int, ...]] = {
    "pixels": (32, 48, 64, 96),
    "classes": (20, 200, 1000, 21841),
    "images": (2500, 5000, 10000),
    "ranks": (1, 2),
    "decoding": (64, 224),
    "reading": (10000,),
}
"""Axis -> where it is measured: a side in pixels, classes, images, ranks, a side in pixels, images."""
LARGE = (500, 375)
"""Pixels, a usual size of ImageNet's images."""
LARGE_IMAGES = 400


@dataclass(frozen=True)
class Measure:
    """A row of scaling.csv: `value` of `measure`, its unit in its name, at `at` on `axis`."""

    axis: str
    at: int
    measure: str
    value: float
    hardware: str
    versions: str
    commit: str
    date: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=POINTS, default=list(POINTS), metavar="AXIS")
    parser.add_argument("--at", nargs="+", type=measuring.at_least(1), help="other points, of one axis")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        axis, at = args.child
        values = CHILDREN[axis](int(at), args.seconds)
        if int(os.environ.get("RANK", "0")) == 0:
            print(json.dumps(values))
        return
    if args.at and len(args.only) != 1:
        parser.error("--at goes with one axis, --only AXIS")
    where = measuring.provenance()
    found: list[Measure] = []
    for axis in args.only:
        for at in args.at or POINTS[axis]:
            values = point(axis, at, args.seconds)
            found += [
                Measure(axis=axis, at=at, measure=name, value=measuring.significant(value), **where)
                for name, value in values.items()
            ]
            told = ", ".join(f"{name} {measuring.number(value)}" for name, value in values.items())
            print(f"{axis} {at:,}: {told}", file=sys.stderr, flush=True)
    kept = [row for row in measuring.read_csv(args.out, Measure) if row.axis not in args.only]
    order = list(POINTS)
    measuring.write_csv(args.out, sorted([*kept, *found], key=lambda row: order.index(row.axis)), Measure)
    print(json.dumps([asdict(row) for row in found], indent=2) if args.json else shown(found))


def point(axis: str, at: int, seconds: float) -> dict[str, float]:
    """The measures of one point, from a process of its own."""
    words = [HERE / "scaling.py", "--seconds", seconds, "--child", axis, at]
    if axis == "ranks":
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", at, *words]
    threads = {"OMP_NUM_THREADS": "1"} if axis == "ranks" else None
    found: dict[str, float] = measuring.child(*words, environment=threads)
    return found


def a_step(size: int, classes: int, seconds: float) -> dict[str, float]:
    from tinlab.tuning import tune_process

    tune_process()
    import torch

    from tinlab import recipes
    from tinlab.models.summary import summarise
    from tinlab.training.memory import resident_peak_bytes
    from tinlab.training.speed import images_per_second

    knobs = recipes.find("fast_cpu").model
    before = resident_peak_bytes()
    speed = images_per_second(
        knobs, classes, size, device=torch.device("cpu"), batch_size=BATCH, seconds=seconds
    )  # fmt: skip
    cost = summarise(knobs, classes, size)
    return {
        "step_milliseconds": 1000 * BATCH / speed,
        "images_per_second": speed,
        "memory_mib": (resident_peak_bytes() - before) / 2**20,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
    }


def some_images(count: int, seconds: float) -> dict[str, float]:
    """Packing `count` images from a folder, and reading batches from the pack for `seconds`."""
    from tinlab.tuning import tune_process

    tune_process()
    import numpy as np
    import torch

    from tinlab.data.batches import Batches
    from tinlab.data.packing import pack
    from tinlab.training.memory import resident_peak_bytes

    with measuring.scratch() as folder:
        source = folder / "source"
        written(source, count, (SIZE, SIZE))
        before = resident_peak_bytes()
        began = time.perf_counter()
        made = pack(source, folder / "pack")
        packing = time.perf_counter() - began
        peak = resident_peak_bytes() - before
        size = sum(file.stat().st_size for file in made.path.iterdir())
        split = made.split("train+tune")
        batches = Batches(split, np.arange(len(split)), BATCH, 0, torch.device("cpu"))
        step, began = 0, time.perf_counter()
        while (reading := time.perf_counter() - began) < seconds:
            batches.at(step)
            step += 1
    return {
        "pack_seconds": packing,
        "pack_mib": size / 2**20,
        "pack_memory_mib": peak / 2**20,
        "batch_milliseconds": 1000 * reading / step,
    }


def written(folder: Path, count: int, shape: tuple[int, int], classes: int = 10) -> None:
    """Class folders of `count` JPEGs of gradients under noise, `shape` being width and height in pixels."""
    import numpy as np
    from PIL import Image

    width, height = shape
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 160, height)[:, None, None]
    files = []
    for _ in range(min(count, 64)):  # as many different ones as a decoder can tell apart
        coarse = rng.normal(0, 30, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
        pixels = ramp + coarse[:height, :width] + rng.normal(0, 6, (height, width, 3)) + 40
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    for number in range(count):
        place = folder / f"class{number % classes}"
        place.mkdir(parents=True, exist_ok=True)
        # A trailing comment makes each file another one, as digests see it.
        (place / f"{number}.jpg").write_bytes(files[number % len(files)] + str(number).encode())


def decoding(size: int, _: float) -> dict[str, float]:
    """Packing large JPEGs at `size` pixels."""
    from tinlab.data.packing import pack

    with measuring.scratch() as folder:
        written(folder / "source", LARGE_IMAGES, LARGE)
        took = []
        for turn in range(3):
            began = time.perf_counter()
            pack(folder / "source", folder / f"pack{turn}", image_size=size)
            took.append(time.perf_counter() - began)
        file_bytes = sum(file.stat().st_size for file in (folder / "source").rglob("*.jpg")) / LARGE_IMAGES
    return {
        "images_per_second": LARGE_IMAGES / sorted(took)[1],
        "jpeg_bytes": file_bytes,
        "stored_bytes": 3 * size * size,
    }


def reading(count: int, _: float) -> dict[str, float]:
    """Bytes a second of `count` stored images from the disk under the temporary folder, in order, then at
    random places by memory mapping, each once nothing of the file is in memory."""
    import numpy as np

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="tinlab-bench-") as name:
        path = Path(name) / "images.npy"
        np.save(path, rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8))
        size = path.stat().st_size
        forget(path)
        began = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while file.read(8 << 20):
                pass
        in_order = time.perf_counter() - began
        forget(path)
        images = np.load(path, mmap_mode="r")
        rows = rng.permutation(count)[: max(1, count // 4)]
        began = time.perf_counter()
        for start in range(0, len(rows), BATCH):
            images[rows[start : start + BATCH]]
        at_random = time.perf_counter() - began
    return {
        "in_order_mb_per_second": size / 1e6 / in_order,
        "at_random_mb_per_second": len(rows) * 3 * SIZE**2 / 1e6 / at_random,
    }


def forget(path: Path) -> None:
    """Let the system drop what it holds of the file in memory; it must be on the disk for that."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def some_ranks(count: int, seconds: float) -> dict[str, float]:
    """A step of RANK_BATCH images a rank, and an exchange of as many bytes as the gradients have."""
    from tinlab.tuning import tune_process

    tune_process()
    import torch
    import torch.nn.functional as F

    from tinlab import models, recipes
    from tinlab.compute import autocast, place
    from tinlab.ranks import joined
    from tinlab.training import optimizer

    torch.set_num_threads(1)
    recipe = recipes.find("fast_cpu")
    with joined(torch.device("cpu")) as (ranks, device):
        torch.manual_seed(0)
        model = place(models.build(recipe.model, CLASSES, image_size=SIZE), recipe.compute, device)
        updater = optimizer.build(recipe.optimizer, model)
        network = ranks.parallel(model, device, leaves_out=False)
        images = torch.randn(RANK_BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(CLASSES, (RANK_BATCH,))
        gradients = torch.zeros(sum(p.numel() for p in model.parameters()))

        def step() -> None:
            with autocast(recipe.compute, device):
                logits = network(images)  # (B, classes)
            F.cross_entropy(logits.float(), labels).backward()
            updater.step()
            updater.zero_grad(set_to_none=True)

        def timed(work: Callable[[], object], counts: int) -> float:
            ranks.wait()
            began = time.perf_counter()
            for _ in range(counts):
                work()
            ranks.wait()
            return (time.perf_counter() - began) / counts

        step()
        once = float(ranks.maximum(torch.tensor(timed(step, 1))))
        a_step = timed(step, max(1, math.ceil(seconds / once)))  # the same number on every rank
        exchange = timed(lambda: ranks.sum(gradients), 5) if count > 1 else 0.0
    return {
        "step_milliseconds": 1000 * a_step,
        "images_per_second": count * RANK_BATCH / a_step,
        "exchange_milliseconds": 1000 * exchange,
        "gradient_bytes": gradients.nbytes,
    }


CHILDREN: dict[str, Callable[[int, float], dict[str, float]]] = {
    "pixels": lambda at, seconds: a_step(at, CLASSES, seconds),
    "classes": lambda at, seconds: a_step(SIZE, at, seconds),
    "images": some_images,
    "ranks": some_ranks,
    "decoding": decoding,
    "reading": reading,
}


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of log(value) over log(at), by least squares: 1 where twice as much costs twice as much."""
    xs, ys = ([math.log(one) for one in axis] for axis in zip(*points, strict=True))
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum(
        (x - mean_x) ** 2 for x in xs
    )


def shown(found: Sequence[Measure]) -> str:
    """For the terminal: a block an axis, a row a measure, a column a point."""
    blocks = []
    for axis in dict.fromkeys(row.axis for row in found):
        own = [row for row in found if row.axis == axis]
        at = sorted({row.at for row in own})
        lines = [f"{axis:26}" + "".join(f"{value:>14,}" for value in at)]
        for measure in dict.fromkeys(row.measure for row in own):
            values = {row.at: row.value for row in own if row.measure == measure}
            lines.append(f"{measure:26}" + "".join(f"{measuring.number(values[one]):>14}" for one in at))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    measuring.run(main)
