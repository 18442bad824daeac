"""A study from its value to its rows: what is finished stays, what was stopped goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tinlab import runs
from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.files import remove_leftovers, write_json
from tinlab.recipe import Recipe
from tinlab.study.attempt import Row, Settings, read_row
from tinlab.study.cluster import run_on_cluster
from tinlab.study.local import run_locally
from tinlab.study.plan import Study, Trial, read_study, resolved, trials, whole
from tinlab.training.signals import StopRequest

Say = Callable[[str], None]


class StudyStopped(TinlabError):
    """A signal ended a study or a search; every run is saved."""

    def __init__(self, signal_number: int, what: str) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; {what}; give the same command again to go on")
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class Done:
    """A study that has been run: its folder, its resolved value, and a row for each of its trials."""

    folder: Path
    study: Study
    rows: tuple[Row, ...]


def run_study(
    study: Study,
    folder: Path,
    settings: Settings,
    *,
    jobs: int = 1,
    cluster: str | None = None,
    retry: bool = False,
    say: Say = print,
    finished: Callable[[Row], None] = lambda row: None,
    needless: Callable[[Trial], bool] = lambda trial: False,
    option: str = "--name",
) -> Done:
    """Run the trials of `study` that are not finished, in `folder`.

    A failed trial is a row, and is tried again only with `retry`; one that is `needless` is not run.
    `finished` is told of each finished trial: first of those that were so before, then of each as it ends.
    Raises StudyStopped after a signal, and TinlabError where the folder holds another study's runs (`option`
    is what names another), or what is asked for is not there.
    """
    study = resolved(study)
    everything = trials(study)
    check(whole(study), settings, device=None if cluster else settings.device)
    make_folder(folder, "trials", "runs")
    folder = folder.resolve()
    with runs.locked(folder):
        for place in (folder, folder / "trials"):
            remove_leftovers(place)
        _check_same(folder / "study.json", {trial.recipe.name for trial in everything}, option)
        rows = [read_row(folder, trial, settings.pack_digest, option) for trial in everything]
        write_json(folder / "study.json", study.model_dump(mode="json"))
        due = [trial for trial, row in zip(everything, rows, strict=True) if _due(row, retry)]
        todo = [trial for trial in due if not needless(trial)]
        done = len(everything) - len(todo)
        if there := sum(row.status == "finished" for row in rows):
            say(f"{there} of {len(everything)} runs are there already")
        if left := len(everything) - len(due) - there:
            say(f"{left} of {len(everything)} have failed before and are left so; --retry tries them again")
        for row in rows:
            if row.status == "finished":
                finished(row)

        def ended(trial: Trial, row: Row) -> None:
            nonlocal done
            done += row.status in ("finished", "failed")
            say(f"[{done}/{len(everything)}] {outcome(row)}")
            if row.status == "finished":
                finished(row)

        with StopRequest() as stop:
            if todo and cluster:
                run_on_cluster(folder, todo, settings, cluster, stop=stop, ended=ended)
            elif todo:
                run_locally(folder, todo, settings, jobs=jobs, stop=stop, ended=ended)
            if stop.signal_number:
                raise StudyStopped(stop.signal_number, f"{done} of {len(everything)} runs are done")
        rows = [read_row(folder, trial, settings.pack_digest) for trial in everything]
    return Done(folder, study, tuple(rows))


def _check_same(file: Path, names: set[str], option: str) -> None:
    """Raise TinlabError where `file` holds a study that has no recipe of those `names`."""
    try:
        before = {trial.recipe.name for trial in trials(read_study(file))}
    except TinlabError:  # none there, or a damaged one, which is written anew
        return
    if before.isdisjoint(names):
        raise TinlabError(
            f"{file.parent} holds another study, of {min(before)}; name another place with {option}"
        )


def outcome(row: Row) -> str:
    """A line that tells how a trial ended."""
    name = f"{row.recipe}, seed {row.seed}"
    if row.status == "finished":
        minutes = "" if row.train_minutes is None else f" in {row.train_minutes:.1f} minutes"
        return f"{name}: {row.split} top-1 {row.top1_percent:.2f}%{minutes}"
    reason = f": {row.error}" if row.error else ""
    kind = "out of memory" if row.out_of_memory else row.status
    return f"{name}: {kind}{reason}"


def check(recipes: Iterable[Recipe], settings: Settings, device: str | None) -> None:
    """Raise TinlabError where a recipe cannot be run on the pack, or this machine has no such `device`: in
    one sentence at once, rather than in a row for each run later."""
    from tinlab.compute import resolve_device
    from tinlab.training.fitting import recipe_fits, weights_fit

    if device is not None:
        resolve_device(device)
    pack = Pack.open(settings.pack)
    for recipe in recipes:
        try:
            recipe_fits(recipe, pack)
            weights_fit(recipe, pack)
        except TinlabError as error:
            raise TinlabError(f"{recipe.name}: {error}") from error


def make_folder(folder: Path, *inside: str) -> None:
    """Make `folder` and folders inside it. Raises TinlabError where that cannot be."""
    try:
        for name in inside:
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TinlabError(f"no folder can be made at {folder}: {error.strerror}") from error


def _due(row: Row, retry: bool) -> bool:
    return row.status != "finished" and (retry or row.status != "failed")
