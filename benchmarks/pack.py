"""How long packing takes beside `unzip -q` of the same zip.

Both are whole child processes that read from memory and write to memory (a tmpfs, where there is one), taken
in turn after one unmeasured run each, so that neither has the quieter half of the machine. The zip is
`--data`, or $TINLAB_DATA (a zip, or a folder that holds one), or else one that is rendered here.

    python benchmarks/pack.py [--data ZIP] [--runs 5] [--json]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SOURCES = Path(__file__).resolve().parent.parent / "src"
PACK = "import sys; from tinlab.data.packing import pack; pack(sys.argv[1], sys.argv[2])"
STAND_IN_CLASSES, STAND_IN_IMAGES = 50, 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the zip to unpack and to pack")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    if shutil.which("unzip") is None:
        sys.exit("benchmarks/pack.py compares with unzip, which is not installed; install it and run again")
    memory = Path("/dev/shm")
    in_memory = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(prefix="tinlab-bench-", dir=memory if in_memory else None) as name:
        folder = Path(name)
        archive = folder / "data.zip"
        found = args.data or data_from_environment()
        if found is None:
            described = render(archive)
        else:
            described = str(found)
            shutil.copyfile(found, archive)
        result = measure(folder, archive, args.runs)
    where = "in memory (/dev/shm)" if in_memory else f"in {tempfile.gettempdir()}, which may be a disk"
    report = {"zip": described, "where": where, "runs": args.runs, **result}
    print(json.dumps(report, indent=2) if args.json else table(report))


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


def measure(folder: Path, archive: Path, runs: int) -> dict[str, object]:
    """Wall seconds, CPU seconds and peak MiB of both, `runs` times each, in turn."""
    output = folder / "out"
    commands = {
        "unzip": ["unzip", "-q", str(archive), "-d", str(output)],
        "tinlab": [sys.executable, "-c", PACK, str(archive), str(output)],
    }
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for number in range(runs + 1):
        for name, command in commands.items():
            row = timed(command)
            if number:  # the first of each only warms up
                rows[name].append(row)
            shutil.rmtree(output)
    result: dict[str, object] = {}
    for name, found in rows.items():
        wall, cpu, peak = zip(*found, strict=True)
        result[name] = {
            "wall_seconds": [round(value, 3) for value in wall],
            "cpu_seconds": [round(value, 3) for value in cpu],
            "wall_median_seconds": round(statistics.median(wall), 3),
            "cpu_median_seconds": round(statistics.median(cpu), 3),
            "peak_mib": round(max(peak), 1),
        }
    for kind, column in (("wall", 0), ("cpu", 1)):
        medians = {name: statistics.median(row[column] for row in found) for name, found in rows.items()}
        result[f"{kind}_ratio"] = round(medians["tinlab"] / medians["unzip"], 3)
    return result


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


def table(report: dict[str, object]) -> str:
    lines = [
        f"{report['zip']}",
        f"{report['where']}, {report['runs']} runs of each in turn, {os.cpu_count()} CPUs",
    ]
    for name in ("unzip", "tinlab"):
        row = report[name]
        assert isinstance(row, dict)
        for kind in ("wall", "cpu"):
            runs = " ".join(f"{value:6.2f}" for value in row[f"{kind}_seconds"])
            lines.append(f"{name:<7} {kind:<4} {runs}   median {row[f'{kind}_median_seconds']:6.2f} s")
        lines.append(f"{name:<7} peak {row['peak_mib']:6.0f} MiB")
    lines.append(f"tinlab / unzip: wall {report['wall_ratio']:.2f}, CPU {report['cpu_ratio']:.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
