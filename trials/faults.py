"""Kill commands at random moments, stop them with signals, fill their disk; and see what is lost.

    python trials/faults.py                          all parts
    python trials/faults.py training report --kills 60 --seed 3
    python trials/faults.py signals disk

A part is a command with all it needs. It runs once undisturbed. Then it is started again and again and
killed at a moment drawn over the time that it took. After each kill what is there must be whole, and the next
command must go on or begin anew. Once it ends by itself, the result must be that of the undisturbed one, bit
for bit, beside the same files and no others. Images are rendered, networks tiny. Commands are forked from a
process that has imported torch already, so that they start in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harmed.blows import (
    harm_packs,
    kill_at_random_moments,
    kill_ranks,
    kill_workers,
    refuse_to_write,
    small_disk,
    stop_every_command,
    two_at_once,
)
from harmed.work import PARTS, Ground, OnRay
from ledger import Promise, record
from warm import Warm

TEST = "tests/reliability/test_faults.py"


def _promise(part: str, sentence: str, test: str, kills: int) -> Promise:
    return Promise(
        f"faults.{part}", sentence, f"{TEST}::{test}", f"python trials/faults.py {part} --kills {kills}"
    )


PROMISES = (
    _promise(
        "packing",
        "Packing that is killed at any moment leaves a whole pack or none; the next one is the same.",
        "test_killed_at_random_moments",
        40,
    ),
    _promise(
        "training",
        "A training that is killed at any moment goes on with --resume, to the same weights bit for bit.",
        "test_killed_at_random_moments",
        60,
    ),
    _promise(
        "clock",
        "A clock that jumps by days, under a training and between kills, changes no weight and no duration.",
        "test_killed_at_random_moments",
        20,
    ),
    _promise(
        "evaluation",
        "Measuring that is killed at any moment harms no run; given again it finds the same numbers.",
        "test_killed_at_random_moments",
        40,
    ),
    Promise(
        "faults.study",
        "A study that is killed at any moment, alone or with its trainings, loses no run and goes on.",
        "tests/study/test_attempt.py::"
        "test_a_stopped_trial_goes_on_from_its_checkpoint_and_a_killed_one_is_a_row",
        "python trials/faults.py study --kills 20",
    ),
    _promise(
        "report",
        "A report that is killed at any moment is the old page, the new one or none, never half of one.",
        "test_killed_at_random_moments",
        40,
    ),
    _promise(
        "results",
        "Adding a row that is killed at any moment keeps every row, and no row is there without its curve.",
        "test_killed_at_random_moments",
        40,
    ),
    _promise(
        "signals",
        "Every command that gets SIGINT or SIGTERM ends promptly, with one sentence and code 130 or 143.",
        "test_every_command_ends_on_a_signal",
        60,
    ),
    _promise(
        "packs",
        "A pack that is changed, cut short, replaced or removed under a training cannot change its weights.",
        "test_a_pack_that_is_harmed_under_a_training",
        40,
    ),
    _promise(
        "two",
        "Two commands on one run, pack or file of results do each other no harm; a dead one holds nothing.",
        "test_two_commands_at_once",
        40,
    ),
    Promise(
        "faults.ranks",
        "A rank that dies ends the training of all, which goes on from its checkpoint on any number.",
        "tests/training/test_ranks.py::test_a_rank_that_dies_ends_the_run_which_goes_on_with_one",
        "python trials/faults.py ranks --kills 5",
    ),
    Promise(
        "faults.ray",
        "A worker of a Ray cluster that dies costs no run: its training goes on elsewhere.",
        "tests/study/test_cluster.py::test_a_dead_node_costs_no_run",
        "python trials/faults.py ray --kills 5",
    ),
    _promise(
        "disk",
        "On a disk that fills up or is read-only a command says so in one sentence, and goes on once it can.",
        "test_a_disk_that_fills_up_or_is_read_only",
        40,
    ),
)


MORE = {"packs": harm_packs, "two": two_at_once, "ranks": kill_ranks}
COMMANDS = 28
IN_NAMESPACE = "TINLAB_FAULTS_MAY_MOUNT"
OTHERS = {
    "signals": "signals",
    "disk": "disks that refuse",
    "packs": "harmed packs",
    "two": "pairs of commands",
    "ranks": "dead ranks",
    "ray": "dead workers",
}


def run(parts: Sequence[str], *, kills: int, seed: int, keep: bool) -> int:
    """Run these parts and return how many things failed. With `keep`, the ledger gets their rows."""
    failed = 0
    promises = {promise.id: promise for promise in PROMISES}
    with tempfile.TemporaryDirectory(prefix="tinlab-faults-") as name, Warm() as warm:
        ground = Ground(Path(name) / "ground")
        for part in parts:
            began = time.monotonic()
            folder = Path(name) / part
            if part == "signals":
                tally = stop_every_command(ground, folder, warm, max(1, kills // COMMANDS), seed)
            elif part in MORE:
                tally = MORE[part](ground, folder, warm, kills, seed)
            elif part == "ray":
                tally = kill_workers(OnRay(ground, folder), warm, kills, seed)
            elif part == "disk":
                # The commands' processes are children of one that was started before the mount; it sees it.
                with small_disk(folder, 32) as disk:
                    own = [PARTS[p](ground, disk / p) for p in PARTS if p not in ("study", "clock")]
                    tally = refuse_to_write(own, warm, disk, kills, seed)
            else:
                tally = kill_at_random_moments(PARTS[part](ground, folder), warm, kills, seed)
            seconds = time.monotonic() - began
            failed += len(tally.failures)
            unit = OTHERS.get(part, "kills")
            if keep:
                record(
                    promises[f"faults.{part}"], tally.tried, unit, len(tally.failures), seconds, tally.words
                )
            else:
                print(
                    f"{part}: {tally.tried} {unit}, {len(tally.failures)} failed. {tally.words}", flush=True
                )
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join([*PARTS, *OTHERS]))
    parser.add_argument("--kills", type=int, default=40, help="for each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="leave results/trials.csv as it is")
    given = parser.parse_args()
    parts = given.parts or [*PARTS, *OTHERS]
    if unknown := set(parts) - {*PARTS, *OTHERS}:
        parser.error(f"there is no part {min(unknown)}")
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # before torch is imported
    if "disk" in parts and IN_NAMESPACE not in os.environ:
        # Mounts of its own, which nobody else sees and which end with it.
        os.environ[IN_NAMESPACE] = "1"
        os.execvp("unshare", ["unshare", "--map-root-user", "--mount", sys.executable, *sys.argv])
    sys.exit(min(1, run(parts, kills=given.kills, seed=given.seed, keep=not given.dry)))


if __name__ == "__main__":
    main()
