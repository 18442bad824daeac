"""Run a row: train what it names, or give its command, and go on where an earlier time left off."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinlab import recipes
from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.papers.measures import values_of
from tinlab.papers.registry import Row, row
from tinlab.recipe import Recipe
from tinlab.recipes import shortened
from tinlab.runs import Run
from tinlab.study.attempt import Settings
from tinlab.study.plan import file_name
from tinlab.study.run import outcome, run_study
from tinlab.study.studies import STUDIES
from tinlab.study.trial import find_run, training_alone
from tinlab.training import loop
from tinlab.training.progress import Watcher

Say = Callable[[str], None]
Finished = Callable[[Path], None]


@dataclass(frozen=True)
class How:
    """How rows are run: where runs are, which seeds (None: the row's own), which share of the length, and
    fields that are set by hand."""

    settings: Settings
    out: Path
    seeds: tuple[int, ...] | None = None
    fraction: float = 1.0
    changes: tuple[str, ...] = ()
    jobs: int = 1
    recorded: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """Recipe digest and seed -> top-1 in percent of what is known already: it is run no more."""

    def recipe(self, recipe: Recipe, say: Say = lambda text: None) -> Recipe:
        """What is trained in the place of `recipe`; `say` is told what another network has no place for.
        Raises TinlabError for a change that cannot be."""
        new, foreign = recipes.with_changes(recipe, self.changes)
        if foreign:
            say(f"{recipe.name}: left out, as {new.model.name} has none: {', '.join(foreign)}")
        return shortened(new, self.fraction)


@dataclass(frozen=True)
class Reproduced:
    """What a row came to: the run folders that are finished, and for a command the values it was read for."""

    row: Row
    runs: tuple[Path, ...] = ()
    values: dict[str, float] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    of: tuple[str, ...] = ()
    """Digests of the recipes whose runs a command looked at."""
    failed: tuple[str, ...] = ()
    """A line for each run of a study that failed."""
    recorded: tuple[str, ...] = ()
    """A line for each run that was known already, and is not in the folder."""


def reproduce(
    row_: Row,
    how: How,
    *,
    say: Say = print,
    watch: Watcher | None = None,
    finished: Finished = lambda run: None,
) -> Reproduced:
    """Run `row_` in `how.out`: what is finished stays, what was stopped goes on.

    `finished` is told the folder of each run as it ends, or is found to have ended, before the next one
    begins; of what `how.recorded` has there is none. Raises what `loop.train` and `run_study` raise, and
    TinlabError where a command fails, or the runs that it looks at are not there.
    """
    if row_.recipe is not None:
        recipe = how.recipe(recipes.find(row_.recipe), say)
        runs, known = [], []
        for seed in _seeds(row_, how):
            if (run := _trained(recipe, how, seed, say, watch)) is None:
                known.append(_known(recipe.name, recipe.digest, seed, how))
            else:
                runs.append(run)
                finished(run)
        return Reproduced(row_, tuple(runs), recorded=tuple(known))
    if row_.study is not None:
        return _studied(row_, how, say, finished)
    return _commanded(row_, how, say)


def _seeds(row_: Row, how: How) -> tuple[int, ...]:
    return how.seeds if how.seeds is not None else row_.seeds


def _known(name: str, digest: str, seed: int, how: How) -> str:
    return f"{name}, seed {seed}: has a row already: {how.recorded[digest, seed]:.2f}%"


def _trained(recipe: Recipe, how: How, seed: int, say: Say, watch: Watcher | None) -> Path | None:
    """The finished run of `recipe` and `seed`, trained, gone on with, or found; None where it is known."""
    pack = Pack.open(how.settings.pack)
    options: dict[str, Any] = {
        "device": how.settings.device,
        "checkpoint_seconds": how.settings.checkpoint_seconds,
        "watch": watch,
    }
    run = find_run(how.out, recipe, seed, pack.digest)
    if run is None or run.result is None:
        if (recipe.digest, seed) in how.recorded:
            return None
        with training_alone(how.out, recipe, seed, pack.digest):
            run = find_run(how.out, recipe, seed, pack.digest)  # another process may have begun it meanwhile
            if run is None:
                return loop.train(
                    recipe, pack, how.out, seed=seed, started=lambda new: say(f"run: {new.path}"), **options
                ).path
            if run.result is None:
                say(f"{recipe.name}, seed {seed}: goes on in {run.path}")
                return loop.resume(run.path, pack=pack, **options).path
    say(f"{recipe.name}, seed {seed}: finished already: {run.path}")
    return run.path


def _studied(row_: Row, how: How, say: Say, finished: Finished) -> Reproduced:
    assert row_.study is not None
    study = STUDIES[row_.study]()
    bases = tuple(
        how.recipe(recipes.find(one) if isinstance(one, str) else one, say) for one in study.recipes
    )
    name = study.name if how.fraction == 1 else f"{study.name}-budget-{how.fraction:g}"
    changed = study.model_copy(
        update={
            "name": file_name("-".join([name, *how.changes])),
            "recipes": bases,
            "seeds": _seeds(row_, how),
        }
    )
    folder = how.out / changed.name
    done = run_study(
        changed,
        folder,
        how.settings,
        jobs=how.jobs,
        say=say,
        finished=lambda one: finished(folder / str(one.run)),
        needless=lambda trial: (trial.recipe.digest, trial.seed) in how.recorded,
        option="--out",
    )
    runs = tuple(done.folder / one.run for one in done.rows if one.run and one.status == "finished")
    others = [one for one in done.rows if one.status != "finished"]
    known = [one for one in others if (one.recipe_digest, one.seed) in how.recorded]
    failed = tuple(outcome(one) for one in others if one not in known)
    lines = tuple(_known(one.recipe, one.recipe_digest, one.seed, how) for one in known)
    return Reproduced(row_, runs, failed=failed, recorded=lines)


def _commanded(row_: Row, how: How, say: Say) -> Reproduced:
    pack_digest = how.settings.pack_digest
    looked_at = {name: finished_run(row(name), how, pack_digest) for name in row_.needs}
    words = [_filled(word, looked_at, how.out) for word in row_.command.split()]
    if words[0] == "tinlab" and how.settings.device != "auto":
        words += ["--device", how.settings.device]
    say("$ " + shlex.join(words))
    if words[0] == "python":
        script = Path(__file__).resolve().parents[3] / words[1]
        if not script.is_file():
            raise TinlabError(f"{row_.id}: {words[1]} is in a checkout of the project, and this is none")
        words = [sys.executable, str(script), *words[2:]]
    else:
        words = [sys.executable, "-m", "tinlab", *words[1:]]
    how.out.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise TinlabError(f"{row_.id}: its command failed with code {done.returncode}; see above")
    answer = json.loads(done.stdout)
    if isinstance(answer, list):  # a benchmark's comparisons, known by what they compare
        answer = {one["what"]: one for one in answer}
    of = tuple(run.recipe.digest for run in looked_at.values())
    return Reproduced(row_, values=values_of(row_, answer), answer=answer, of=of)


def _filled(word: str, looked_at: dict[str, Run], out: Path) -> str:
    for name, run in looked_at.items():
        word = word.replace(f"{{{name}}}", str(run.path))
    return word.replace("{out}", str(out))


def finished_run(needed: Row, how: How, pack_digest: str) -> Run:
    """The run that a command looks at: of the row's recipe and the first seed. Raises TinlabError where there
    is none that is finished."""
    assert needed.recipe is not None
    recipe = how.recipe(recipes.find(needed.recipe))
    run = find_run(how.out, recipe, _seeds(needed, how)[0], pack_digest)
    if run is None or run.result is None:
        words = ["tinlab", "reproduce", needed.id, "--data", str(how.settings.pack), "--out", str(how.out)]
        words += ["--seeds", ",".join(map(str, how.seeds)) + ","] if how.seeds is not None else []
        words += ["--budget", f"{how.fraction:g}"] if how.fraction != 1 else []
        words += [word for change in how.changes for word in ("--set", change)]
        raise TinlabError(
            f"there is no finished run of {recipe.name} and seed {_seeds(needed, how)[0]} in {how.out}; make "
            f"one: {shlex.join(words)}"
        )
    return run


def status(row_: Row, lines: Sequence[dict[str, str]], measured: Sequence[dict[str, str]], out: Path) -> str:
    """How a row stands: by its lines in results.csv and in measures.csv, then by the runs in `out`."""
    from tinlab.papers.found import found_of
    from tinlab.runs import list_runs

    if row_.command:
        if not measured:
            return "not yet run"
        share = float(measured[0]["share"])
        return "measured" if share == 1 else f"measured, {share:g} of the length"
    found = [found_of(recipe, lines) for recipe in row_.recipes]
    there = [one for one in found if one]
    if there and len(found) == 1:
        best = there[0][0]
        seeds = len({line["seed"] for line in best.lines})
        return f"measured, {seeds} seed{'s' if seeds > 1 else ''}" + (
            f", {best.budget}" if best.budget else ""
        )
    if there:
        shares = sorted({one[0].share for one in there})
        length = f", {' and '.join(f'{share:g}' for share in shares)} of the length" if shares != [1] else ""
        return f"measured, {len(there)} of {len(found)} recipes{length}"
    digests = {recipe.digest for recipe in row_.recipes}
    folders = [out] if row_.recipe is not None else [out / str(row_.study) / "runs"]
    runs = [run for folder in folders for run in list_runs(folder) if run.recipe.digest in digests]
    if any(run.result for run in runs):
        return f"finished in {out}, not added to the results"
    return f"begun in {out}" if runs else "not yet run"
