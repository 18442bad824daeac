"""Write docs/performance.md, and its chart, from what the benchmarks wrote into results/.

    python benchmarks/performance.py [--results results] [--docs docs]

Every number of the page is in bench.csv, profile.csv, scaling.csv or race.csv, or is computed from them here;
a part that has no file yet says how to run it.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import measuring
import race
import scaling
from measuring import number
from profile_step import SHARES, Share
from scaling import Measure, exponent
from table import Line

ROOT = Path(__file__).resolve().parent.parent
CHART = "performance.png"

SETS = {
    "Tiny ImageNet, 64 pixels": (110_000, 200, 64),
    "ImageNet-1k, 64 pixels": (1_331_167, 1_000, 64),
    "ImageNet-1k, 224 pixels": (1_331_167, 1_000, 224),
    "ImageNet-21k, 224 pixels": (14_197_122, 21_841, 224),
}
"""Labelled images, classes, and the side they are stored at. Russakovsky et al. 2015 (1,281,167 training and
50,000 validation images); 14,197,122 images of 21,841 classes: image-net.org."""
SHARD_BYTES = 2**30
NETWORKS_GBIT = (1, 10, 100)
RANKS = (2, 8, 64)

INTRODUCTION = """# Performance

`python benchmarks/performance.py` writes this page from the files that the benchmarks leave in `results/`.
Every number stands there, with hardware, versions and commit, or is computed from them.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()

    from tinlab.files import write_text

    shares = measuring.read_csv(args.results / "profile.csv", Share)
    if shares:
        draw(shares, args.docs / CHART)
    write_text(args.docs / "performance.md", page(args.results))
    print(f"wrote {args.docs / 'performance.md'}")


def page(results: Path) -> str:
    """The page, as Markdown."""
    bench = measuring.read_csv(results / "bench.csv", Line)
    shares = measuring.read_csv(results / "profile.csv", Share)
    measures = measuring.read_csv(results / "scaling.csv", Measure)
    points = measuring.read_csv(results / "race.csv", race.Point)
    parts = [
        INTRODUCTION,
        "## Beside others\n",
        beside(bench) or not_yet("make bench DATA=…", 15),
        "## The same minutes\n",
        raced(points) or not_yet("python benchmarks/race.py OUT --data DATA --publish", None),
        "## Where a step goes\n",
        where(shares) or not_yet("python benchmarks/profile_step.py --data DATA", 2),
        "## How the cost grows\n",
        growth(measures) or not_yet("python benchmarks/scaling.py", 4),
        "## What larger sets would need\n",
        larger(measures) or not_yet("python benchmarks/scaling.py", 4),
    ]
    return "\n\n".join(map(wrapped, "\n".join(parts).strip().split("\n\n"))) + "\n"


def wrapped(block: str) -> str:
    """A paragraph in lines of at most 116 characters; tables, headings and pictures as they are."""
    if block.startswith(("|", "#", "![")):
        return block
    return textwrap.fill(" ".join(block.split()), 116, break_long_words=False, break_on_hyphens=False)


def not_yet(command: str, minutes: int | None) -> str:
    about = f", about {minutes} minutes on two idle cores" if minutes else ", some hours on two idle cores"
    return f"Not yet run: `{command}`{about}.\n"


def measured_on(rows: Sequence[Line | Share | Measure | race.Point]) -> str:
    """Where and with what the rows were measured, in a sentence."""
    places = dict.fromkeys(f"{r.hardware}; {r.versions}; commit `{r.commit}`, {r.date}" for r in rows)
    data = dict.fromkeys(row.data for row in rows if not isinstance(row, Measure) and row.data)
    return f"Measured on {'; and on '.join(places)}" + (f", with {' and '.join(data)}." if data else ".")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def beside(lines: Sequence[Line]) -> str:
    if not lines:
        return ""
    rows = [
        (
            line.what,
            f"{number(line.ours)} {line.unit}".strip(),
            f"{line.peer_name}: {number(line.peer)} {line.unit}".strip(),
            f"{line.ratio:.2f}",
            line.spread,
        )
        for line in lines
    ]
    text = (
        "Medians of rounds that are taken in turn with the peer. The ratio is tinlab's number over the "
        "peer's: of times and memory less is better, of speeds more. The last column has the smallest and "
        "the largest ratio of one round."
    )
    found = markdown(("what", "tinlab", "peer", "ratio", "of one round"), rows)
    return f"{text}\n\n{found}\n\n{measured_on(lines)} `make bench` measures all of it again.\n"


def raced(points: Sequence[race.Point]) -> str:
    if not points:
        return ""
    rows = []
    for side in dict.fromkeys(point.side for point in points):
        last = [point for point in points if point.side == side][-1]
        reached = [race.minutes_to(points, side, mark) for mark in race.MARKS]
        cells = [f"{minutes:.1f}" if minutes is not None else "not reached" for minutes in reached]
        end = f"{last.top1_percent:.2f}% after {last.minutes:.1f} minutes, {last.epochs:.1f} epochs"
        rows.append((side, *cells, end))
    head = ("side", *(f"minutes to {mark:g}%" for mark in race.MARKS), "in the end")
    text = (
        "Recipes beside plain scripts on the same machine, in turns of a few minutes. The clock runs in "
        "training steps alone, and the schedule of each script ends with the minutes that the longest recipe "
        "was expected to take. Minutes are those of the first measurement at or above the mark."
    )
    picture = "![Top-1 on val over minutes of training](race.png)"
    return f"{text}\n\n{picture}\n\n{markdown(head, rows)}\n\n{measured_on(points)}\n"


AROUND = ("input", "augmentation", "loss and metrics", "Python and bookkeeping")
"""Shares of a step that are not the network's."""


def where(shares: Sequence[Share]) -> str:
    if not shares:
        return ""
    networks = list(dict.fromkeys(share.network for share in shares))
    percent = {(share.network, share.what): share.percent for share in shares}
    of = {share.network: share for share in shares}
    rows = [(what, *(f"{percent[network, what]:.1f}%" for network in networks)) for what in SHARES]
    rows.append(("images/s", *(number(of[network].images_per_second) for network in networks)))
    costs = [100 * (of[n].images_per_second / of[n].profiled_images_per_second - 1) for n in networks]
    told = []
    for network in networks:
        own = sum(percent[network, f"convolutions, {way}"] for way in ("forward", "backward"))
        around = sum(percent[network, what] for what in AROUND)
        told.append(f"{own:.0f}% and {around:.1f}% ({network})")
    text = (
        "The training loop itself, in batches of 128, under torch.profiler, which slowed the steps by "
        f"{max(0, min(costs)):.0f} to {max(0, max(costs)):.0f}%. Convolutions, and all that is around the "
        f"network (reading, augmenting, measuring, Python): {'; '.join(told)}."
    )
    picture = f"![Shares of a training step]({CHART})"
    found = markdown(("share of a step", *networks), rows)
    return f"{text}\n\n{picture}\n\n{found}\n\n{measured_on(shares)}\n"


def values_of(measures: Sequence[Measure], axis: str, measure: str) -> dict[int, float]:
    """Where on the axis -> value; empty where it was not measured."""
    return {row.at: row.value for row in measures if row.axis == axis and row.measure == measure}


GROWTH = (
    ("pixels", "pixels a side", "step_milliseconds", "a step of 128 images, ms", 2),
    ("pixels", "pixels a side", "memory_mib", "memory of the step, MiB", 2),
    ("classes", "classes", "step_milliseconds", "a step of 128 images at 64 pixels, ms", 1),
    ("classes", "classes", "memory_mib", "memory of the step, MiB", 1),
    ("images", "images", "pack_seconds", "packing, s", 1),
    ("images", "images", "pack_memory_mib", "memory of packing, MiB", 1),
    ("images", "images", "pack_mib", "the pack, MiB", 1),
    ("images", "images", "batch_milliseconds", "reading a batch of 128, ms", 1),
)
"""Axis, its name, measure, what it is, and the power of the axis that the exponent is of: pixels are a side
squared."""


def growth(measures: Sequence[Measure]) -> str:
    rows = []
    for axis, of, measure, what, power in GROWTH:
        values = values_of(measures, axis, measure)
        if len(values) < 2 or min(values.values()) <= 0:
            continue
        shown = ", ".join(f"{number(values[at])} at {at:,}" for at in sorted(values))
        slope = exponent([(at**power, value) for at, value in sorted(values.items())])
        rows.append((of, what, shown, f"{slope:.2f}"))
    if not rows:
        return ""
    text = (
        "The network of `fast_cpu`, as it was at the commit below. The exponent is the slope of a line "
        "through the points on logarithmic axes: 1 where twice as much costs twice as much, 0 where it "
        "costs nothing more. That of pixels is of their number, the side squared. An epoch's time is in "
        "proportion to its images, since a step looks at its batch alone."
    )
    found = markdown(("grows with", "what", "measured", "exponent"), rows)
    return f"{text}\n\n{found}\n\n{_ranks(measures)}{measured_on(measures)}\n"


def _ranks(measures: Sequence[Measure]) -> str:
    speeds = values_of(measures, "ranks", "images_per_second")
    if not {1, 2} <= set(speeds):
        return ""
    exchange = values_of(measures, "ranks", "exchange_milliseconds")[2]
    step = values_of(measures, "ranks", "step_milliseconds")[1]
    megabytes = values_of(measures, "ranks", "gradient_bytes")[2] / 1e6
    return (
        f"Ranks: one process with a thread makes {number(speeds[1])} images/s in batches of "
        f"{scaling.RANK_BATCH}, two make {number(speeds[2])} ({speeds[2] / speeds[1]:.2f} times as many). "
        f"Exchanging the {megabytes:.1f} MB of gradients takes {number(exchange)} ms by itself, beside a "
        f"step of {number(step)} ms, and DistributedDataParallel does a part of it during the backward pass."
        "\n\n"
    )


OPEN_SHARDS = 8
NODE_IMAGES_PER_SECOND = 8_000
"""What one node of several GPUs may take, as an example."""
JPEG_BYTES = 147_897_477_120
"""ILSVRC2012_img_train.tar, the 1,281,167 training images of ImageNet-1k as they are distributed."""


def larger(measures: Sequence[Measure]) -> str:
    decoding = values_of(measures, "decoding", "images_per_second")
    in_order = values_of(measures, "reading", "in_order_mb_per_second")
    at_random = values_of(measures, "reading", "at_random_mb_per_second")
    speeds = values_of(measures, "pixels", "images_per_second")
    gradients = values_of(measures, "ranks", "gradient_bytes")
    steps = values_of(measures, "ranks", "step_milliseconds")
    if not (decoding and in_order and 64 in speeds and gradients):
        return ""
    reads, random = (number(next(iter(found.values()))) for found in (in_order, at_random))
    bandwidth = next(iter(in_order.values()))
    rows = []
    for name, (images, classes, side) in SETS.items():
        stored = images * 3 * side**2
        packing = minutes_or_seconds(images / decoding[side]) if side in decoding else ""
        rows.append(
            (
                name, f"{images:,}", f"{classes:,}", f"{3 * side**2:,}", f"{stored / 1e9:,.1f} GB",
                f"{-(-stored // SHARD_BYTES):,}", "" if name.startswith("Tiny") else packing,
                minutes_or_seconds(stored / 1e6 / bandwidth),
            )
        )  # fmt: skip
    head = (
        "set", "images", "classes", "bytes an image", "pack", "shards of 1 GiB", "packing here",
        "reading it once here",
    )  # fmt: skip
    sent = {ranks: 2 * (ranks - 1) / ranks * max(gradients.values()) for ranks in RANKS}
    exchanges = [
        (f"{ranks}", f"{each / 1e6:.1f} MB", *(f"{each * 8 / gbit / 1e6:,.1f} ms" for gbit in NETWORKS_GBIT))
        for ranks, each in sent.items()
    ]
    share = 100 * (sent[8] * 8 / 10 / 1e6) / steps[min(steps)]
    large = 3 * 224**2  # bytes
    return _LARGER.format(
        width=scaling.LARGE[0],
        height=scaling.LARGE[1],
        packing="; ".join(f"{number(decoding[side])} images/s at {side} pixels" for side in sorted(decoding)),
        reads=reads,
        random=random,
        sets=markdown(head, rows),
        speed=number(speeds[64]),
        needed=number(speeds[64] * 3 * 64**2 / 1e6),
        limit=number(1e6 * next(iter(at_random.values())) / large),
        open_shards=OPEN_SHARDS,
        mixed=f"{OPEN_SHARDS * SHARD_BYTES // large:,}",
        node=f"{NODE_IMAGES_PER_SECOND:,}",
        node_mb=f"{NODE_IMAGES_PER_SECOND * large / 1e6:,.0f}",
        node_gbit=f"{NODE_IMAGES_PER_SECOND * large * 8 / 1e9:.1f}",
        silence=f"{2 * SHARD_BYTES / (NODE_IMAGES_PER_SECOND * large):.1f}",
        jpeg_gb=f"{JPEG_BYTES / 1e9:.0f}",
        jpeg_each=f"{JPEG_BYTES / 1_281_167:,.0f}",
        large_bytes=f"{large:,}",
        gradients=f"{max(gradients.values()) / 1e6:.1f}",
        exchanges=markdown(
            ("ranks", "sent by each in a step", *(f"at {gbit} Gbit/s" for gbit in NETWORKS_GBIT)), exchanges
        ),
        step=number(steps[min(steps)]),
        share=number(share),
        gpu_share=number(100 * share),
        heads=_heads(measures),
    )


_LARGER = """On paper, from the numbers above and from these: packing JPEGs of {width}x{height} gives
{packing}, and the disk reads {reads} MB/s in order and {random} MB/s at random.

{sets}

**Sharded packs.** A pack is one array a split, mapped into memory, and a batch is gathered from random
rows. That holds as long as the array fits into memory. Beyond it, reading at random counts: the {speed}
images/s that this machine trains on at 64 pixels are {needed} of the {random} MB/s that its disk gives, and
a machine that trains on more than {limit} images/s of 224 pixels would wait for such a disk. So the pack
has to be cut into shards of about a gibibyte, read in order, each with a digest of its own, that are packed
and fetched side by side. The
order stays a function of (seed, epoch, step): shards are permuted, a few are open at a time, and rows are
permuted among those. With {open_shards} open shards, {mixed} images of 224 pixels are mixed at any
moment, in {open_shards} GiB of memory.

**Streaming from object storage.** A shard is then one object, read from its beginning to its end, so
that bandwidth counts and latency does not. {node} images/s of 224 pixels, which one node of several
GPUs may take, are {node_mb} MB/s, or {node_gbit} Gbit/s; with two shards on their way ahead, a store
may fall silent for {silence} s before a step waits. JPEGs are no way around that: ImageNet-1k's
training images are {jpeg_gb} GB as they are distributed, {jpeg_each} bytes each, where the pixels of a
224-pixel one are {large_bytes}, and they would have to be decoded in every epoch, at the rate of
packing, instead of once.

**Several nodes.** A rank in a ring sends 2 (n - 1) / n times the {gradients} MB of gradients in each
step:

{exchanges}

A step takes {step} ms on one core here; what 8 ranks exchange at 10 Gbit/s is {share}% of that, before any of
it is hidden behind the backward pass. On a GPU that takes a hundredth of the time it is {gpu_share}%: there
gradients in bf16, which halve the bytes, and more images a rank come first. {heads}

What has to be built: shards and their order in `data/`, a fetcher that fills a folder with them and
forgets the oldest, and learning rates for batches of some thousands. The loop, its checkpoints and the
exact measuring over several ranks stay as they are.
"""


def minutes_or_seconds(seconds: float) -> str:
    if seconds >= 7200:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:,.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _heads(measures: Sequence[Measure]) -> str:
    parameters = values_of(measures, "classes", "parameters")
    milliseconds = values_of(measures, "classes", "step_milliseconds")
    if len(parameters) < 2:
        return ""
    few, many = min(parameters), max(parameters)
    return (
        f"With {many:,} classes instead of {few:,} the network has {parameters[many] / 1e6:.1f} instead of "
        f"{parameters[few] / 1e6:.1f} million parameters, all of which are exchanged, and its step takes "
        f"{milliseconds[many] / milliseconds[few]:.2f} times as long here."
    )


COLOURS = (
    "#8a6fb0", "#bba9d6", "#0a6a62", "#4f9d95", "#b3541e", "#dd9468", "#c9a227", "#e6d08a", "#3d5a80",
    "#8fa9c7", "#9a9da3",
)  # fmt: skip
"""Of SHARES: two of one colour are the two ways of one thing."""


def draw(shares: Sequence[Share], path: Path) -> None:
    """A bar a network, cut into its shares."""
    from matplotlib.colors import to_rgb

    from tinlab.drawing import INK, MUTED, new_figure, save_png

    networks = list(dict.fromkeys(share.network for share in shares))
    figure, axes = new_figure(height=1.7 + 0.42 * len(networks))
    for row, network in enumerate(networks):
        left = 0.0
        for what, colour in zip(SHARES, COLOURS, strict=True):
            share = next(s.percent for s in shares if s.network == network and s.what == what)
            axes.barh(row, share, left=left, color=colour, height=0.62, label=what if row == 0 else None)
            if share >= 4:
                middle, ink = left + share / 2, "white" if sum(to_rgb(colour)) < 1.2 else INK
                axes.text(middle, row, f"{share:.0f}", ha="center", va="center", fontsize=8, color=ink)
            left += share
    axes.set_yticks(range(len(networks)), networks)
    axes.set_ylim(len(networks) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of a training step", color=MUTED)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8, labelcolor=INK)
    largest = max(shares, key=lambda share: share.percent)
    save_png(figure, path, f"Shares of a training step; the largest: {largest.what}, {largest.percent:.0f}%")


if __name__ == "__main__":
    measuring.run(main)
