"""Does memory stay flat: of packing, from 10,000 images to 1,000,000, and of training, from epoch 2 to 200?
And does the program start at once?

    python trials/memory.py packing [--images 10000 100000 1000000] [--kinds zip folder parquet]
    python trials/memory.py training [--epochs 200]
    python trials/memory.py startup [--rounds 25]        on a machine that does nothing else

The images are a few of 8 x 8 pixels, many times over: a zip's members with the same bytes, hard links, rows
of a table. Each pack is made by a process of its own, with a helper beside it; what is taken is the most that
either held at any moment (VmHWM). All is made in a temporary folder (--place), and removed.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from ledger import Promise, record
from PIL import Image

SOURCES = Path(__file__).resolve().parent.parent / "src"
SIZE = 8
CLASSES = 200
MOST_BYTES_AN_IMAGE = 500
"""What may be held for an image beside its pixels, which take 12,288 bytes at 64 x 64."""
MOST_HELPER_BYTES = 100_000_000
MOST_START_SECONDS = 0.5
MOST_GROWN_BYTES = 4 << 20
"""What an allocator may come to hold in a few hundred epochs without a leak."""
PICTURES = 64
"""Different images that a made set repeats; a file system allows some 65,000 links to one file."""

PROMISES = (
    Promise(
        "memory.packing",
        "Packing takes as much memory for a million images as for ten thousand, but for what it must"
        " remember of each: its name, label and digest.",
        "tests/reliability/test_memory_stays_flat.py::test_packing",
        "python trials/memory.py packing",
    ),
    Promise(
        "memory.training",
        "Training holds no more memory at its end than after its second epoch.",
        "tests/reliability/test_memory_stays_flat.py::test_training",
        "python trials/memory.py training",
    ),
    Promise(
        "memory.startup",
        "`tinlab --help` is there in less than half a second, and no command's help loads a large library.",
        "tests/reliability/test_memory_stays_flat.py::test_help_loads_no_large_library",
        "python trials/memory.py startup",
    ),
)  # fmt: skip


def pictures() -> list[bytes]:
    """JPEGs of noise, each another one, and every eighth of twice the size, which must be shrunk."""
    rng, made = np.random.default_rng(0), []
    for number in range(PICTURES):
        side = 2 * SIZE if number % 8 == 7 else SIZE
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "JPEG", quality=60)
        made.append(file.getvalue())
    return made


def names(images: int) -> Iterator[str]:
    """Paths of `images` images in class folders, as long as those of Tiny ImageNet's training images."""
    for number in range(images):
        yield f"train/n{number % CLASSES:08d}/images/n{number % CLASSES:08d}_{number // CLASSES}.JPEG"


def make_zip(place: Path, images: int) -> Path:
    made, some = place / "set.zip", itertools.cycle(pictures())
    with zipfile.ZipFile(made, "w") as archive:
        for name, picture in zip(names(images), some, strict=False):
            archive.writestr(name, picture)
    return made


def make_folder(place: Path, images: int) -> Path:
    made, originals = place / "set", []
    for number, picture in enumerate(pictures()):
        originals.append(place / f"original{number}.jpg")
        originals[-1].write_bytes(picture)
    for label in range(CLASSES):
        (made / f"train/n{label:08d}/images").mkdir(parents=True)
    for name, original in zip(names(images), itertools.cycle(originals), strict=False):
        os.link(original, made / name)
    return made


def make_parquet(place: Path, images: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    made, some, at_once = place / "train.parquet", pictures(), 10_000
    schema = pa.schema({"image": pa.binary(), "label": pa.int64()})
    # Without a dictionary the same bytes are stored again and again, as different images would be.
    with pq.ParquetWriter(made, schema, use_dictionary=False, compression="none") as writer:
        for start in range(0, images, at_once):
            rows = range(start, min(start + at_once, images))
            columns = [[some[row % PICTURES] for row in rows], [row % CLASSES for row in rows]]
            writer.write_table(
                pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema)
            )
    return made


KINDS: dict[str, Callable[[Path, int], Path]] = {
    "zip": make_zip,
    "folder": make_folder,
    "parquet": make_parquet,
}


@dataclass(frozen=True)
class Packed:
    """One pack that was made: the most memory that the process, and any helper of it, held at once."""

    kind: str
    images: int
    peak_bytes: int
    helper_peak_bytes: int
    seconds: float


def peak_bytes(process: int | str = "self") -> int:
    """VmHWM of a process; 0 where it has gone."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmHWM")), 0)


def packed(kind: str, images: int, place: Path, workers: int = 2) -> Packed:
    """Make a set of so many images below `place`, pack it in a process of its own, and remove both."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        source = KINDS[kind](Path(name), images)
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, "pack", str(source), f"{name}/pack", "--workers", str(workers)],
            env={**os.environ, "PYTHONPATH": str(SOURCES)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)
        found = json.loads(done.stdout)
        if found["images"] != images:
            raise RuntimeError(f"{images} images were given, and {found['images']} packed")
        return Packed(kind, images, found["peak"], found["helper"], time.perf_counter() - began)


def pack_here(source: Path, out: Path, workers: int) -> None:
    """The process that is measured."""
    from tinlab.data.packing import pack

    me, helper = psutil.Process(), 0

    def look(done: int, total: int) -> None:
        nonlocal helper
        helper = max([helper, *(peak_bytes(child.pid) for child in me.children())])

    made = pack(source, out, image_size=SIZE, workers=workers, progress=look)
    images = sum(len(made.split(name)) for name in made.splits)
    print(json.dumps({"images": images, "peak": peak_bytes(), "helper": helper}))


def bytes_an_image(found: Sequence[Packed]) -> float:
    """What the packing process holds for each image: its growth from the smallest set to the largest."""
    small, large = (pick(found, key=lambda one: one.images) for pick in (min, max))
    return (large.peak_bytes - small.peak_bytes) / (large.images - small.images)


def packing(images: Sequence[int], kinds: Sequence[str], place: Path) -> None:
    """Pack sets of these numbers of images, and write the row."""
    began, words, failed, total = time.perf_counter(), [], 0, 0
    for kind in kinds:
        found = []
        for count in images:
            found.append(packed(kind, count, place))
            total += count
            print(found[-1], flush=True)
        growth = bytes_an_image(found)
        helpers = max(one.helper_peak_bytes for one in found)
        failed += growth > MOST_BYTES_AN_IMAGE or helpers > MOST_HELPER_BYTES
        peaks = ", ".join(f"{one.peak_bytes / 1e6:.0f} MB for {one.images:,}" for one in found)
        words.append(f"{kind}: {peaks} ({growth:.0f} bytes an image), a helper {helpers / 1e6:.0f} MB")
    record(PROMISES[0], total, "images", failed, time.perf_counter() - began, "; ".join(words))


@dataclass(frozen=True)
class Trained:
    """Memory that a training held (resident) after its second epoch, and the most in its last tenth."""

    epochs: int
    early_bytes: int
    late_bytes: int

    @property
    def grown_bytes(self) -> int:
        return self.late_bytes - self.early_bytes


def trained(epochs: int, place: Path) -> Trained:
    """Train a tiny network for so many passes over 32 images, with an evaluation in each, in this process."""
    import alike

    from tinlab.recipe import changed
    from tinlab.training import loop
    from tinlab.training.progress import Progress

    on = alike.small_pack(place, seed=0)
    images = len(on.split("train"))
    changes = [
        "evaluate_every_epochs=1",
        "schedule.batch_size=8",
        f"schedule.steps={epochs * images // 8}",
        "data.image_sizes=[16]",
        'augment=[{"kind": "flip"}, {"kind": "random_resized_crop"}, {"kind": "mixup"}]',
    ]
    recipe = changed(alike.recipe_of(alike.random.Random(0), knobs=0), changes)
    me, held = psutil.Process(), []

    def watch(progress: Progress) -> None:
        held.append((progress.epoch, me.memory_info().rss))

    loop.train(recipe, on, place / "runs", device="cpu", checkpoint_seconds=1, watch=watch)
    early = max(rss for epoch, rss in held if epoch <= 2)
    return Trained(epochs, early, max(rss for epoch, rss in held if epoch > 0.9 * epochs))


def training(epochs: int, place: Path) -> None:
    """Train, and write the row."""
    from tinlab.tuning import tune_process

    tune_process()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=place) as name:
        found = trained(epochs, Path(name))
    note = f"{found.early_bytes / 1e6:.1f} MB after epoch 2, {found.late_bytes / 1e6:.1f} MB at the end"
    failed = int(found.grown_bytes > MOST_GROWN_BYTES)
    record(PROMISES[1], epochs, "epochs", failed, time.perf_counter() - began, note)


def startup(rounds: int) -> None:
    """Start the program so many times, in turn with Python itself, and write the row."""
    began = time.perf_counter()
    taken: dict[str, list[float]] = {"python": [], "help": []}
    for turn in range(rounds + 1):
        for name, words in (("python", ["-c", "pass"]), ("help", ["-m", "tinlab", "--help"])):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, *words], env={**os.environ, "PYTHONPATH": str(SOURCES)},
                stdout=subprocess.DEVNULL, check=True,
            )  # fmt: skip
            if turn:  # the first one compiles
                taken[name].append(time.perf_counter() - start)
    python, shown = (1000 * statistics.median(values) for values in taken.values())
    late = sum(seconds > MOST_START_SECONDS for seconds in taken["help"])
    note = f"median {shown:.0f} ms, at most {1000 * max(taken['help']):.0f} ms; Python alone {python:.0f} ms"
    record(PROMISES[2], rounds, "starts", late, time.perf_counter() - began, note)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(required=True, dest="part")
    parts.add_parser("startup").add_argument("--rounds", type=int, default=25)
    for name in ("packing", "training"):
        part = parts.add_parser(name)
        part.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()))
        if name == "packing":
            part.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
            part.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
        else:
            part.add_argument("--epochs", type=int, default=200)
    child = parts.add_parser("pack")
    child.add_argument("source", type=Path)
    child.add_argument("out", type=Path)
    child.add_argument("--workers", type=int)
    args = parser.parse_args()
    if args.part == "pack":
        pack_here(args.source, args.out, args.workers)
    elif args.part == "startup":
        startup(args.rounds)
    elif args.part == "packing":
        packing(args.images, args.kinds, args.place)
    else:
        training(args.epochs, args.place)


if __name__ == "__main__":
    main()
