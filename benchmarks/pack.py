"""How long packing takes beside `unzip -q` of the same zip.

Both are whole child processes that read from memory and write to memory (a tmpfs, where there is one), taken
in turn after one unmeasured run each, so that neither has the quieter half of the machine. The zip is
`--data`, or $TINLAB_DATA (a zip, or a folder that holds one), or else one that is rendered here.

    python benchmarks/pack.py [--data ZIP] [--rounds 5] [--json]
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import measuring
import numpy as np
from PIL import Image

from tinlab.data.pack import Pack

SOURCES = Path(__file__).resolve().parent.parent / "src"
PACK = "import sys; from tinlab.data.packing import pack; pack(sys.argv[1], sys.argv[2])"
STAND_IN_CLASSES, STAND_IN_IMAGES = 50, 200


def main() -> None:
    parser = measuring.options(__doc__, rounds=5)
    parser.add_argument("--data", type=Path, help="the zip to unpack and to pack")
    args = parser.parse_args()
    unzip = measuring.unzip()
    with measuring.scratch() as folder:
        archive = folder / "data.zip"
        found = args.data or data_from_environment()
        if found is None:
            described = render(archive)
        elif zipfile.is_zipfile(found):
            described = found.name
            shutil.copyfile(found, archive)
        else:
            sys.exit(f"{found} is no zip, and unzip takes nothing else")
        rows = measure(folder, archive, args.rounds, unzip)
    measuring.report(rows, f"{described}, in {folder.parent}, {os.cpu_count()} CPUs", as_json=args.json)


def data_from_environment() -> Path | None:
    """The zip that $TINLAB_DATA names or holds."""
    place = os.environ.get("TINLAB_DATA")
    if not place:
        return None
    path = Path(place)
    if path.is_dir():
        path = path / "tiny-imagenet-200.zip"
    return path if path.is_file() else None


def render(archive: Path) -> str:
    """Write a zip of gradients under noise in the official layout, and describe it."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 160, 64)[:, None, None]
    wnids = [f"n{90000000 + number:08d}" for number in range(STAND_IN_CLASSES)]
    annotations = []
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:

        def image(name: str) -> None:
            noise = rng.normal(0, 12, (64, 64, 3)) + rng.uniform(0, 95, 3)
            file = io.BytesIO()
            Image.fromarray((ramp + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=75)
            out.writestr(f"tiny-imagenet-200/{name}", file.getvalue())

        for wnid in wnids:
            for number in range(STAND_IN_IMAGES):
                image(f"train/{wnid}/images/{wnid}_{number}.JPEG")
            image(f"val/images/val_{wnid}.JPEG")
            annotations.append(f"val_{wnid}.JPEG\t{wnid}\t0\t0\t63\t63\n")
        out.writestr("tiny-imagenet-200/val/val_annotations.txt", "".join(annotations))
        out.writestr("tiny-imagenet-200/wnids.txt", "".join(f"{wnid}\n" for wnid in wnids))
    count = STAND_IN_CLASSES * (STAND_IN_IMAGES + 1)
    size = archive.stat().st_size / 1e6
    return f"a rendered stand-in: {count:,} JPEGs of noise over gradients, 64x64, {size:.0f} MB"


def measure(folder: Path, archive: Path, rounds: int, unzip: str) -> list[measuring.Row]:
    """Wall seconds, CPU seconds, peak memory, and images/s, of both in turn."""
    output = folder / "out"
    commands = {
        "unzip": [unzip, "-q", str(archive), "-d", str(output)],
        "tinlab": [sys.executable, "-c", PACK, str(archive), str(output)],
    }
    images = 0

    def run(name: str) -> tuple[float, float, float]:
        nonlocal images
        taken = timed(commands[name])
        if name == "tinlab":
            images = sum(split.count for split in Pack.open(output).info.splits.values())
        shutil.rmtree(output)
        return taken

    for name in commands:
        run(name)  # the first of each only warms up
    found = measuring.in_turn(commands, run, rounds)
    ours, theirs = ([list(values) for values in zip(*found[s], strict=True)] for s in ("tinlab", "unzip"))
    rows = [
        measuring.compare(f"pack {images:,} images: {what}", ours[n], theirs[n], unit, "unzip -q")
        for n, (what, unit) in enumerate((("time", "s"), ("CPU time", "s"), ("memory", "MiB")))
    ]
    mine, other = ([images / seconds for seconds in side[0]] for side in (ours, theirs))
    return [*rows, measuring.compare("pack: speed", mine, other, "images/s", "unzip -q")]


def timed(command: list[str]) -> tuple[float, float, float]:
    """Wall and CPU seconds of one child process and of those it starts, and the largest one's peak MiB."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    start = time.perf_counter()
    child = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{command[0]} failed with exit status {child.returncode}")
    per_mib = 2**20 if sys.platform == "darwin" else 2**10
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / per_mib


if __name__ == "__main__":
    measuring.run(main)
