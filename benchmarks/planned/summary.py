"""How the jobs stand, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planned.plan import KNOWN_SECONDS, Job, State


def table(jobs: Sequence[Job], state: State) -> str:
    """How all jobs stand, as text."""
    from tinlab.papers.registry import every_row

    rows = {row.id: row for row in every_row()}
    lines = [("job", "status", "seconds", "val top-1", "paper", "")]
    for job in jobs:
        known = state.of(job)
        number = known.get("top1_percent")
        paper = reported(rows[job.row].numbers) if job.row in rows and job.row == job.id[:-3] else ""
        lines.append(
            (
                job.id,
                known.get("status", "not yet run"),
                f"{known['seconds']:.0f}" if "seconds" in known else expected(job),
                "" if number is None else f"{number:.2f}",
                paper,
                note(known),
            )
        )
    widths = [max(len(line[n]) for line in lines) for n in range(5)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)) + "  " + line[5]
        for line in lines
    ]
    return "\n".join([*(line.rstrip() for line in text), "", *measures(state.found)])


def expected(job: Job) -> str:
    """What a job that was not run is expected to take, where that is known by now."""
    seconds = job.seconds or (KNOWN_SECONDS.get(job.recipe.digest) if job.recipe is not None else None)
    return "" if seconds is None else f"({seconds:.0f})"


def note(known: Mapping[str, Any]) -> str:
    if known.get("share") and known.get("status") == "paused":
        return f"{100 * known['share']:.0f}% done"
    part = f"{100 * known['fraction']:g}% of its length" if known.get("fraction", 1) != 1 else ""
    return "; ".join(word for word in (part, known.get("error") or known.get("note") or "") if word)


def reported(numbers: Mapping[str, float]) -> str:
    """The paper's own number, on val where it gives one."""
    for name in ("val_top1_percent", "top1_percent"):
        if name in numbers:
            return f"{numbers[name]:g}"
    return ""


def measures(found: Mapping[str, Any]) -> list[str]:
    """What the device and fast_gpu came to, in lines."""
    from fast import shown

    lines = []
    if one := found.get("measure"):
        lines.append(
            f"{one['device']}: {one['matrix_tflops']:.3g} TFLOP/s, copy {one['copy_gb_per_s']:.3g} GB/s; "
            f"fastest way: {one['fastest']}"
        )
        for step in one["steps"]:
            if "failed" in step:
                lines.append(f"  {step['way']}: {step['failed']}")
                continue
            lines.append(
                f"  {step['way']}, {step['size']} pixels: {step['milliseconds']:.2f} ms, "
                f"{100 * step['share_of_matrix_rate']:.1f}% of the matrix rate"
            )
        lines += [
            f"  augmentation {a['policy']}, {a['size']} pixels: {a['percent']:.2f}% of a step"
            for a in one["augmentation"]
        ]
    if one := found.get("fast_gpu-length"):
        lines += [
            f"fast_gpu, {t['change']}: {t['tune_top1_percent']:.2f}% of tune, {t['seconds']:.1f} s"
            for t in one["tried"]
        ]
    if one := found.get("fast_gpu-5") or found.get("fast_gpu-1"):
        lines.append(
            f"fast_gpu with {', '.join(one['changes']) or 'nothing changed'}: {shown(one['seconds'], 2)} s; "
            f"val {shown(one['top1_percent'], 2)}%, with flips {shown(one['top1_flip_percent'], 2)}%; "
            f"{100 * one['share_of_limit']:.1f}% of the limit"
        )
        for target, reached in one["targets"].items():
            lines.append(
                f"  seconds to {target}%: {shown(reached['seconds'], 2)}; whole runs that end there "
                f"{shown(reached['seconds_whole_run'], 2)}, with flips "
                f"{shown(reached['seconds_whole_run_with_flips'], 2)}"
            )
    return lines


def best_runs(out: Path, state: State) -> list[str]:
    """The finished runs whose weights are worth keeping."""
    found = [
        str(one["run"])
        for name, one in state.jobs.items()
        if name.startswith("best") and one.get("status") == "finished"
    ]
    fast = state.found.get("fast_gpu-5") or state.found.get("fast_gpu-1") or {"runs": []}
    return [*found, *(line["run"] for line in fast["runs"][:1])]
