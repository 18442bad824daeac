"""What is done to commands: kills, signals, harmed packs, a second command, disks that refuse."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warm import PATIENCE_SECONDS, Command, Warm

from harmed.work import (
    Evaluation,
    Ground,
    OnRay,
    Packing,
    Part,
    Results,
    Training,
    files_in,
    runs_in,
    same,
)

PROMPT_SECONDS = 30
"""A command that has got a signal ends within this time on a busy machine; a training, within a step."""


ENDS: dict[int | None, str] = {0: "finished", 2: "refused", -signal.SIGBUS: "killed by SIGBUS"}
"""Exit codes in words."""


@dataclass
class Tally:
    """What a trial counted."""

    tried: int = 0
    finished: int = 0
    failures: list[str] = field(default_factory=list)
    words: str = ""

    def note(self, what: str) -> None:
        self.failures.append(what)
        print(f"FAILED: {what}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Undisturbed:
    seconds: float
    result: Any
    files: set[str]


def undisturbed(part: Part, warm: Warm) -> Undisturbed:
    """One run of the part's command, in its folder as it is."""
    began = time.monotonic()
    command = warm.start(part.words(), part.folder, part.changes)
    code = command.wait(PATIENCE_SECONDS)
    seconds = time.monotonic() - began
    assert code == 0, f"{part.name}: code {code}: {command.said}"
    return Undisturbed(seconds, part.result(command), files_in(part.folder))


def ended_alike(part: Part, command: Command, wanted: Undisturbed) -> None:
    """Raise AssertionError where `command` left another result or other files than the undisturbed one."""
    same(part.result(command), wanted.result)
    found = files_in(part.folder)
    assert found == wanted.files, f"left behind {found - wanted.files}, missing {wanted.files - found}"


def kill_at_random_moments(part: Part, warm: Warm, kills: int, seed: int) -> Tally:
    """Kill the part's command `kills` times, and let it end by itself again and again."""
    dice, tally = random.Random(f"{part.name} {seed}"), Tally()
    expected: dict[int, Undisturbed] = {}
    seconds: dict[int, float] = {}
    while tally.tried < kills:
        part.begin()
        if part.variant not in expected:
            expected[part.variant] = undisturbed(part, warm)
            seconds[part.variant] = expected[part.variant].seconds
            part.chains -= 1
            part.begin()
        wanted = expected[part.variant]
        moments: list[float] = []
        try:
            while True:
                command = warm.start(part.words(), part.folder, part.changes)
                last = tally.tried >= kills
                moment = PATIENCE_SECONDS if last else dice.uniform(0, 1.25 * seconds[part.variant])
                began = time.monotonic()
                if command.wait(moment) is not None:
                    if not moments:  # it may be quicker than the first time
                        took = time.monotonic() - began
                        seconds[part.variant] = min(seconds[part.variant], took)
                    break
                assert not last, "it hangs"
                others = part.victims(command, dice)
                if command.kill():
                    tally.tried += 1
                    moments.append(round(moment, 3))
                for pid in others:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                part.whole()
            assert command.code in part.done_codes, f"code {command.code}: {command.said[-2000:]}"
            assert "Traceback" not in command.said, command.said[-2000:]
            ended_alike(part, command, wanted)
            tally.finished += 1
        except Exception as error:
            tally.note(f"{part.name}, killed after {moments} s: {type(error).__name__}: {error}")
    tally.words = f"{tally.finished} times it then ended by itself, with the result of the undisturbed one."
    return tally


def kill_workers(part: OnRay, warm: Warm, kills: int, seed: int) -> Tally:
    """Kill Ray's worker under a trial `kills` times, once in each study; Ray begins the trial anew."""
    import psutil

    dice, tally = random.Random(f"ray {seed}"), Tally()
    part.begin()
    expected = undisturbed(part, warm)
    while tally.tried < kills:
        part.begin()
        command = warm.start(part.words(), part.folder)
        steps = dice.randrange(1, 20)
        try:
            worker = None
            while worker is None and command.wait(0.05) is None:
                begun = runs_in(part.folder / "study" / "runs")
                if not any(p["step"] >= steps for run in begun if not run.result for p in run.metrics()):
                    continue
                with contextlib.suppress(psutil.NoSuchProcess):
                    below = psutil.Process(command.pid).children(recursive=True)
                    tasks = [p for p in below if " ".join(p.cmdline()).startswith("ray::run_here")]
                    worker = dice.choice(tasks) if tasks else None
            if worker is None:
                continue  # the trainings were too quick
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
                tally.tried += 1
            code = command.wait(PATIENCE_SECONDS)
            assert code == 0, f"code {code}: {command.said[-2000:]}"
            ended_alike(part, command, expected)
            tally.finished += 1
        except Exception as error:
            tally.note(f"a worker of Ray, killed after step {steps}: {type(error).__name__}: {error}")
        finally:
            command.send(signal.SIGTERM)
            command.wait(PATIENCE_SECONDS)
    tally.words = (
        f"{tally.finished} studies then ended by themselves, with the result of the undisturbed one."
    )
    return tally


def harm_packs(ground: Ground, folder: Path, warm: Warm, times: int, seed: int) -> Tally:
    """Change, cut short, replace or remove the pack under a training, then put it back and go on."""
    dice, tally = random.Random(f"packs {seed}"), Tally()
    part = Training(ground, folder)
    part.begin()
    expected = undisturbed(part, warm)
    ended: dict[str, int] = {}
    while tally.tried < times:
        part.chains -= 1
        part.begin()
        pack = shutil.copytree(ground.pack.path, folder.with_name("harmed"), dirs_exist_ok=True)
        harm = dice.choice(sorted(HARMS))
        words = [pack if word == ground.pack.path else word for word in part.words()]
        command = warm.start(words, folder)
        if command.wait(dice.uniform(0, expected.seconds)) is not None:
            continue  # it was quicker
        HARMS[harm](pack, dice)
        tally.tried += 1
        try:
            code = command.wait(PATIENCE_SECONDS)
            how = f"{harm}: {ENDS.get(code, f'code {code}')}"
            ended[how] = ended.get(how, 0) + 1
            assert code in ((0, 2, -signal.SIGBUS) if harm == "cut short" else (0, 2)), f"code {code}"
            assert "Traceback" not in command.said, command.said[-2000:]
            if code == 2:
                assert _is_a_sentence(command.said, "pack|data|written to while"), command.said[-2000:]
            part.whole()
            shutil.rmtree(pack, ignore_errors=True)
            shutil.copytree(ground.pack.path, pack)
            if code != 0:
                words = [pack if word == ground.pack.path else word for word in part.words()]
                command = warm.start(words, folder)
                assert command.wait(PATIENCE_SECONDS) == 0, command.said[-2000:]
            same(part.result(command), expected.result)
            tally.finished += 1
        except Exception as error:
            tally.note(f"a pack under a training, {harm}: {type(error).__name__}: {error}")
    tally.words = f"{tally.finished} times the same weights came out in the end; " + ", ".join(
        f"{what} {count} times" for what, count in sorted(ended.items())
    )
    return tally


def _change(pack: Path, dice: random.Random) -> None:
    path = dice.choice(sorted(pack.glob("train*.npy")))
    with path.open("r+b") as file:
        place = dice.randrange(128, path.stat().st_size)
        file.seek(place)
        old = file.read(1)[0]
        file.seek(place)
        file.write(bytes([old ^ 1]))


def _replace(pack: Path, dice: random.Random) -> None:
    other = shutil.copytree(pack, pack.with_name("another"))
    _change(other, dice)
    shutil.rmtree(pack)
    other.rename(pack)


HARMS: dict[str, Callable[[Path, random.Random], None]] = {
    "changed": _change,
    "cut short": lambda pack, dice: os.truncate(pack / "train.npy", dice.randrange(200, 100_000)),
    "replaced": _replace,
    "removed": lambda pack, dice: shutil.rmtree(pack),
}


def two_at_once(ground: Ground, folder: Path, warm: Warm, times: int, seed: int) -> Tally:
    """Give a command twice, the second a random moment after the first: to one run folder, one pack, one file
    of results."""
    dice, tally = random.Random(f"two {seed}"), Tally()
    kinds = {kind.name: kind(ground, folder / kind.name) for kind in (Packing, Training, Evaluation, Results)}
    expected: dict[tuple[str, int], Undisturbed] = {}
    refused = 0
    while tally.tried < times:
        part = kinds[dice.choice(sorted(kinds))]
        part.begin()
        key = (part.name, part.variant)
        if key not in expected:
            expected[key] = undisturbed(part, warm)
            part.chains -= 1
            part.begin()
        wanted = expected[key]
        try:
            if part.name == "training":  # a run that was begun, to go on with
                command = warm.start(part.words(), part.folder)
                while not runs_in(part.folder) and command.wait(0.01) is None:
                    pass
                command.kill()
            first = warm.start(part.words(), part.folder, part.changes)
            first.wait(dice.uniform(0, wanted.seconds))
            second = warm.start(part.words(), part.folder, part.changes)
            tally.tried += 1
            codes = [one.wait(PATIENCE_SECONDS) for one in (first, second)]
            told = f"codes {codes}: {first.said[-1000:]} {second.said[-1000:]}"
            assert 0 in codes, told
            assert set(codes) <= {0, 2}, told
            assert "Traceback" not in told, told
            if 2 in codes:
                refused += 1
                assert _is_a_sentence((first, second)[codes.index(2)].said, "another process|already"), told
            part.whole()
            done = (first, second)[codes.index(0)]
            ended_alike(part, done, wanted)
            tally.finished += 1
        except Exception as error:
            tally.note(f"{part.name}, twice at once: {type(error).__name__}: {error}")
    tally.words = f"{refused} times the other was told so and left it alone."
    return tally


def kill_ranks(ground: Ground, folder: Path, warm: Warm, kills: int, seed: int) -> Tally:
    """Kill one of two ranks at a random moment; one process alone goes on with the run, to its end."""
    import psutil

    dice, tally = random.Random(f"ranks {seed}"), Tally()
    part = Training(ground, folder)
    while tally.tried < kills:
        part.chains = 0
        part.begin()
        torchrun = subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                "-m", "tinlab", *map(str, part.words()), "--set", "schedule.steps=150",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            steps = dice.randrange(1, 100)
            ranks: list[psutil.Process] = []
            while torchrun.poll() is None and not ranks:
                time.sleep(0.02)
                begun = runs_in(folder)
                if begun and any(point["step"] >= steps for point in begun[0].metrics()):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        below = psutil.Process(torchrun.pid).children()
                        ranks = [p for p in below if "tinlab" in p.cmdline()]
            if not ranks:
                assert torchrun.poll() == 0, "torchrun failed by itself"
                continue
            dice.choice(ranks).kill()
            tally.tried += 1
            assert torchrun.wait(PATIENCE_SECONDS) != 0
            part.whole()
            command = warm.start(part.words(), folder)
            assert command.wait(PATIENCE_SECONDS) == 0, command.said[-2000:]
            (run,) = runs_in(folder)
            assert run.result["steps"] == 150
            tally.finished += 1
        except Exception as error:
            tally.note(f"a rank, killed after step {steps}: {type(error).__name__}: {error}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(torchrun.pid, signal.SIGKILL)
    tally.words = f"{tally.finished} runs then ended, on one process."
    return tally


def commands(ground: Ground, folder: Path, port: int) -> dict[str, list[object]]:
    """Every command of the program, with words for it; at `port` somebody listens and is silent."""
    first, second = ground.runs
    pack, plain = ground.pack.path, ground.recipes[0]
    data = ("--data", pack)
    return {
        "demo": ["demo", *data, "--out", folder],
        "train": ["train", plain, *data, "--out", folder, "--set", "schedule.steps=5000"],
        "study": ["study", plain, *data, "--out", folder],
        "search": ["search", plain, *data, "--out", folder, "--space", "optimizer.peak_lr=0.01:0.1"],
        "reproduce": ["reproduce", "sun_vanilla", *data, "--out", folder, "--budget", 0.01],
        "transfer": ["transfer", plain, *data, "--out", folder, "--images", 5],
        "lr-find": ["lr-find", plain, *data, "--out", folder / "a.png"],
        "overfit": ["overfit", plain, *data, "--out", folder / "a.png"],
        "evaluate": ["evaluate", folder / "run", "--tta", "--calibrate", "--corruptions"],
        "compare": ["compare", first, second, "--split", "tune"],
        "ensemble": ["ensemble", first, second],
        "submit": ["submit", folder / "run", "--out", folder / "answers.txt"],
        "explain": ["explain", first, "--out", folder / "a.png"],
        "export": ["export", first, "--out", folder / "a.onnx"],
        "serve": ["serve", first, "--port", 0],
        "report": ["report", first, second, "--out", folder / "a.html"],
        "runs": ["runs", "--out", ground.folder / "runs"],
        "recipes": ["recipes"],
        "models": ["models", "--speed"],
        "augment": ["augment", "sun_heavy", *data, "--out", folder / "a.png"],
        "results": ["results", "--out", folder],
        "results add": ["results", "add", first, "--file", folder / "results.csv"],
        "data download": ["data", "download", "--to", folder, "--url", f"http://127.0.0.1:{port}/a.zip"],
        "data render": ["data", "render", folder / "images"],
        "data pack": ["data", "pack", ground.zip, "--out", folder / "pack"],
        "data subset": ["data", "subset", folder / "half", "--half", "A", *data],
        "data audit": ["data", "audit", pack],
        "data show": ["data", "show", pack, "--out", folder / "a.png"],
    }


def stop_every_command(
    ground: Ground, folder: Path, warm: Warm, times: int, seed: int, *, within_seconds: float = 1.0
) -> Tally:
    """Send SIGINT or SIGTERM to every command `times` times, at a moment of its first second."""
    dice, tally = random.Random(f"signals {seed}"), Tally()
    slowest = 0.0
    with socket.create_server(("127.0.0.1", 0), backlog=128) as silent:
        names = list(commands(ground, folder, 0))
        for name in names * times:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            shutil.copytree(ground.runs[0], folder / "run")
            words = commands(ground, folder, silent.getsockname()[1])[name]
            number = dice.choice((signal.SIGINT, signal.SIGTERM))
            command = warm.start(words, folder)
            if command.wait(dice.uniform(0, within_seconds)) is not None:
                continue  # it was done before
            command.send(number)
            began = time.monotonic()
            code = command.wait(PROMPT_SECONDS)
            slowest = max(slowest, time.monotonic() - began)
            if code == 0 or (code == 128 + number and command.printed and not command.said):
                continue  # it was done in that very moment
            tally.tried += 1
            told = f"{name}, {signal.Signals(number).name}: code {code}: {command.said[-1500:]}"
            left = [place for place in files_in(folder) if place.endswith(".partial")]
            if code is None:
                command.kill()
                tally.note(f"{told}: it goes on")
            elif code != 128 + number or not _is_a_sentence(command.said, "stopped"):
                tally.note(told)
            elif left or "Traceback" in command.said:
                tally.note(f"{told}: left behind {left}")
    tally.words = f"{len(names)} commands; the slowest took {slowest:.1f} s to end."
    return tally


def refuse_to_write(parts: Sequence[Part], warm: Warm, disk: Path, times: int, seed: int) -> Tally:
    """Give the parts' commands less room than they need on the small disk at `disk`, or make it read-only, as
    every fourth time; then give them room enough."""
    dice, tally = random.Random(f"disk {seed}"), Tally()
    expected: dict[tuple[str, int], Undisturbed] = {}
    most: dict[tuple[str, int], int] = {}
    while tally.tried < times and len(tally.failures) < times:
        for part in parts:
            shutil.rmtree(part.folder, ignore_errors=True)
        part = parts[dice.randrange(len(parts))]
        part.begin()
        key = (part.name, part.variant)
        if key not in expected:
            before = _size(part.folder)
            expected[key] = undisturbed(part, warm)
            most[key] = _size(part.folder) - before
            part.chains -= 1
            part.begin()
        read_only = tally.tried % 4 == 3
        room = None if read_only else int(dice.uniform(0, 1.3 * most[key])) + 4096
        try:
            with _refusing(disk, room):
                command = warm.start(part.words(), part.folder, part.changes)
                code = command.wait(PATIENCE_SECONDS)
                assert code is not None, "it hangs"
                if code == 0:
                    part.result(command)
                    continue
                tally.tried += 1
                told = f"with {room} bytes of room, code {code}: {command.said[-2000:]}"
                assert code == 2, told
                assert "Traceback" not in command.said, told
                mend = "read-only" if read_only else r"make room|another place"
                assert _is_a_sentence(command.said, mend), told
                part.whole()
            command = warm.start(part.words(), part.folder, part.changes)
            code = command.wait(PATIENCE_SECONDS)
            assert code in part.done_codes, f"with room again code {code}: {command.said[-2000:]}"
            ended_alike(part, command, expected[key])
            tally.finished += 1
        except Exception as error:
            tally.note(f"{part.name} on a disk that refuses: {type(error).__name__}: {error}")
    tally.words = (
        f"Every fourth was read-only; {tally.finished} times the next command went on, to the result of the "
        "undisturbed one."
    )
    return tally


@contextlib.contextmanager
def _refusing(disk: Path, room: int | None) -> Iterator[None]:
    """Leave `room` bytes on the disk, or none to be written (None), for so long."""
    if room is None:
        subprocess.run(["mount", "-o", "remount,ro,bind", disk], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw,bind", disk], check=True)
        return
    filler = disk / "filler"
    with filler.open("wb") as file:
        for spare in itertools.count(0, 65536):  # the system gives room of removed files back with some delay
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, max(1, _free(disk) - room - spare))
                break
    try:
        yield
    finally:
        filler.unlink()


def _size(folder: Path) -> int:
    """The bytes of the files in `folder`, in pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*"))


def _free(disk: Path) -> int:
    return shutil.disk_usage(disk).free


def _is_a_sentence(said: str, pattern: str) -> bool:
    """Whether the last line is the program's own, and holds `pattern`."""
    last = (said.strip().splitlines() or [""])[-1]
    return last.startswith("tinlab: ") and re.search(pattern, last, re.IGNORECASE) is not None


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A tmpfs at `place`; for a process that may mount, such as one that `unshare --mount` started."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
