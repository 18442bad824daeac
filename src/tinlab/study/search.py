"""Search for a recipe's best values by top-1 on `tune`, with Optuna; `val` is never looked at.

A search's folder:

search.json          the recipe and the space
search.db            the trials, where no other storage is named
runs/, trials/       as in a study; one run folder a trial
best.json            the best recipe; `tinlab train` takes it
search.png, .svg     the trials, and which fields matter

Several workers, here or on other machines, may work on one storage at a time. A worker says now and then that
its trials are alive; those of one that no longer does are begun anew by another.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinlab import runs
from tinlab.errors import TinlabError
from tinlab.files import write_json
from tinlab.recipe import Recipe
from tinlab.study.attempt import Attempt, Row, Settings, local_gpus
from tinlab.study.charts import save, search_chart
from tinlab.study.local import POLL_SECONDS, check_share, environment
from tinlab.study.plan import Trial, file_name
from tinlab.study.run import StudyStopped, check, make_folder
from tinlab.study.space import Choice, Space, check_space, fitted, to_json, with_values
from tinlab.training.signals import StopRequest

if TYPE_CHECKING:
    import optuna

HEARTBEAT_SECONDS = 15
GRACE_SECONDS = 90
"""A trial whose worker has been silent for so long is taken over."""
WAIT_SECONDS = 60
"""How long a worker waits for another one that writes to the same SQLite file."""
READ_SECONDS = 0.5
"""How often a run's points are read."""
OPENINGS = 5
"""How often a storage is opened whose tables another worker is making."""
MADE_BY_ANOTHER = re.compile("already exists|unique|duplicate|locked", re.IGNORECASE)
RETRIES = 3
"""How often a trial is begun anew after its worker died."""
WORKED = "tinlab_worked"
"""A trial's attribute: it counts among those that were asked for. Stopped and orphaned ones do not; another
trial goes on with their run."""

Say = Callable[[str], None]
PRUNERS = ("median", "hyperband", "none")


@dataclass(frozen=True)
class Found:
    """What a search has found so far. `importances`: field path -> share, or empty where too few trials are
    finished to tell; `counts`: state -> number of trials."""

    folder: Path
    best: Recipe | None
    best_file: Path | None
    top1_percent: float | None
    values: dict[str, Any]
    importances: dict[str, float]
    counts: dict[str, int]
    trials: tuple[dict[str, Any], ...]


def search(
    recipe: Recipe,
    space: Space,
    folder: Path,
    settings: Settings,
    *,
    number: int = 20,
    jobs: int = 1,
    storage: str | None = None,
    pruning: str = "median",
    seed: int = 0,
    say: Say = print,
) -> Found:
    """Go on until the storage holds `number` trials that are over, `jobs` at a time here, and tell what was
    found. Workers side by side may end up with a trial more.

    Every trial trains with `seed`, and is measured on `tune` alone. A trial is pruned where its points on
    `tune` fall behind those of the others: with `median`, below the median of the trials before it, from the
    sixth on; a point counts by its place in the run. A failed trial is marked as failed. Raises StudyStopped
    after a signal, and TinlabError where the recipe does not leave `tune` out, or the storage holds another
    search of this name.
    """
    optuna = _optuna()
    check_space(space, recipe)
    space = fitted(space, recipe)
    check([recipe], settings, settings.device)
    make_folder(folder, "trials", "runs")
    folder = folder.resolve()
    settings = replace(settings, final_split="tune")
    study = _open(optuna, folder.name, storage or f"sqlite:///{folder / 'search.db'}", pruning)
    _claim(study, recipe, space, settings, seed)
    write_json(
        folder / "search.json",
        {"recipe": recipe.model_dump(mode="json"), "space": to_json(space), "seed": seed},
    )
    worker = _Worker(optuna, study, recipe, space, folder, settings, seed, say)
    with StopRequest() as stop:
        worker.work(number, jobs, stop)
        if stop.signal_number:
            raise StudyStopped(stop.signal_number, f"{worker.worked()} of {number} trials are done")
    return report(study, recipe, folder)


class _Worker:
    """This process's share of a search."""

    def __init__(
        self,
        optuna: Any,
        study: optuna.Study,
        recipe: Recipe,
        space: Space,
        folder: Path,
        settings: Settings,
        seed: int,
        say: Say,
    ) -> None:
        self._states = optuna.trial.TrialState
        self._optuna, self._study, self._recipe, self._folder = optuna, study, recipe, folder
        self._settings, self._seed, self._say = settings, seed, say
        self._distributions = {path: _distribution(optuna, found) for path, found in space.items()}
        self._running: dict[int, _Job] = {}

    def worked(self) -> int:
        """How many trials of the storage are over and count."""
        return sum(WORKED in trial.user_attrs for trial in self._study.get_trials(deepcopy=False))

    def work(self, number: int, jobs: int, stop: StopRequest) -> None:
        gpus = local_gpus() if self._settings.gpus != 0 else []
        check_share(jobs, self._settings, gpus)
        told_of_others, looked_at = False, 0.0
        try:
            while True:
                now = time.monotonic()
                if now - looked_at > 1:
                    looked_at = now
                    # First of all: a worker that stood still is no reason to take its own trials for dead.
                    for job in self._running.values():
                        self._beat(job)
                    with _quiet():
                        self._optuna.storages.fail_stale_trials(self._study)
                    trials = self._study.get_trials(deepcopy=False)
                    taken = sum(WORKED in t.user_attrs or t.state == self._states.RUNNING for t in trials)
                    while len(self._running) < jobs and taken < number and not stop.signal_number:
                        self._begin(next(s for s in range(jobs) if s not in self._running), gpus)
                        taken += 1
                        told_of_others = False
                    if not self._running:
                        others = sum(t.state == self._states.RUNNING for t in trials)
                        if stop.signal_number or not others:
                            return
                        if not told_of_others:
                            self._say(f"waiting for {others} trials of other workers")
                            told_of_others = True
                for slot, job in list(self._running.items()):
                    if stop.signal_number:
                        job.attempt.stop()
                    if self._look_at(job):
                        del self._running[slot]
                        looked_at = 0.0
                time.sleep(POLL_SECONDS)
        finally:
            for job in self._running.values():
                job.attempt.stop()

    def _begin(self, slot: int, gpus: list[str]) -> None:
        with _quiet():
            trial = self._study.ask(self._distributions)
        self._study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
        # A trial that takes over another's values takes over its run too, by its name.
        origin = int(trial.user_attrs.get("origin", trial.number))
        try:
            recipe = with_values(
                self._recipe,
                trial.params,
                name=file_name(f"{self._recipe.name}-t{origin:04d}"),
                summary=f"trial {origin} of a search over {self._recipe.name}",
                why="drawn by a search",
            )
        except TinlabError as error:  # values that are good alone and not together
            self._failed(trial, str(error), "failed")
            return
        attempt = Attempt(
            self._folder,
            Trial(recipe, self._seed),
            self._settings,
            environment(slot, gpus, self._settings),
        )
        self._running[slot] = _Job(trial, origin, attempt)

    def _beat(self, job: _Job) -> None:
        """Let other workers know that `job` is looked after."""
        if time.monotonic() - job.heard_at > HEARTBEAT_SECONDS / 2:
            job.heard_at = time.monotonic()
            self._study._storage.record_heartbeat(job.trial._trial_id)  # type: ignore[attr-defined]

    def _look_at(self, job: _Job) -> bool:
        """Tell Optuna how `job` stands; whether it is over."""
        try:
            row = job.attempt.poll()
            if self._report(job) and row is None and job.trial.should_prune():
                job.pruned = True
                job.attempt.stop()
            if row is not None:
                self._tell(job, row)
        except self._optuna.exceptions.UpdateFinishedTrialError:
            # This worker was silent for too long (a machine that slept), and another has the trial now.
            self._say(f"trial {job.trial.number} was taken over by another worker")
            job.attempt.stop()
            job.attempt.wait()
            return True
        return row is not None

    def _report(self, job: _Job) -> bool:
        """Hand on the points on `tune` that the run has measured since; whether there are any."""
        if time.monotonic() - job.read_at < READ_SECONDS and job.attempt.row.status == "running":
            return False
        job.read_at = time.monotonic()
        if job.metrics is None:
            trial = job.attempt.trial
            found = sorted((self._folder / "runs").glob(f"{trial.key}-*/metrics.jsonl"))
            if not found:
                return False
            job.metrics = found[-1]
        points = [line for line in runs.read_metrics(job.metrics) if line.get("kind") == "eval"]
        new = points[job.reported :]
        for place, point in enumerate(new, start=job.reported + 1):
            job.trial.report(point["top1_percent"], place)
        job.reported += len(new)
        return bool(new)

    def _tell(self, job: _Job, row: Row) -> None:
        name = f"trial {job.trial.number}"
        changes = _shown(job.trial.params)
        states = self._states
        job.trial.set_user_attr("run", row.run)
        if row.status == "finished" and row.split == "tune":
            assert row.top1_percent is not None
            self._over(job.trial, states.COMPLETE, row.top1_percent)
            self._say(f"{name}: tune top-1 {row.top1_percent:.2f}% with {changes}")
        elif job.pruned and row.status == "stopped":
            self._over(job.trial, states.PRUNED)
            self._say(f"{name}: pruned at {job.reported} points with {changes}")
        elif row.status == "stopped":
            # Not over: the same values wait in the storage, and whoever takes them goes on with the run.
            self._study.enqueue_trial(job.trial.params, user_attrs={"origin": job.origin})
            self._study.tell(job.trial, state=states.FAIL)
            self._say(f"{name}: stopped; another trial will go on with it")
        else:
            kind = "out of memory" if row.out_of_memory else "failed"
            self._failed(job.trial, row.error or row.status, kind)

    def _failed(self, trial: optuna.trial.Trial, error: str, kind: str) -> None:
        trial.set_user_attr("error", error)
        self._over(trial, self._states.FAIL)
        self._say(f"trial {trial.number}: {kind} with {_shown(trial.params)}: {error}")

    def _over(self, trial: optuna.trial.Trial, state: Any, value: float | None = None) -> None:
        trial.set_user_attr(WORKED, True)
        with _quiet():
            self._study.tell(trial, value, state=state, skip_if_finished=True)


@dataclass
class _Job:
    """A trial that runs here."""

    trial: optuna.trial.Trial
    origin: int
    attempt: Attempt
    metrics: Path | None = None
    reported: int = 0
    pruned: bool = False
    heard_at: float = field(default_factory=time.monotonic)
    read_at: float = 0.0


def report(study: optuna.Study, recipe: Recipe, folder: Path) -> Found:
    """What the storage holds: writes best.json and the chart."""
    optuna = _optuna()
    states = optuna.trial.TrialState
    trials = [t for t in study.get_trials(deepcopy=False) if WORKED in t.user_attrs]
    complete = [t for t in trials if t.state == states.COMPLETE and t.value is not None]
    best, best_file, top, values = None, None, None, {}
    if complete:
        first = max(complete, key=lambda t: (t.value or 0.0, -t.number))
        top, values = first.value, dict(first.params)
        summary = f"{recipe.name} after a search of {len(trials)} trials: top-1 {top:.2f}% on tune"
        best = with_values(
            recipe,
            values,
            name=file_name(f"{recipe.name}-best"),
            summary=summary,
            why=f"the best of {len(trials)} trials by top-1 on tune, {top:.2f}%",
        )
        best_file = folder / "best.json"
        write_json(best_file, best.model_dump(mode="json"))
    importances = _importances(optuna, study, complete)
    points = [(t.number, float(t.value), False) for t in complete if t.value is not None]
    points += [
        (t.number, t.intermediate_values[max(t.intermediate_values)], True)
        for t in trials
        if t.state == states.PRUNED and t.intermediate_values
    ]
    if points:
        save(search_chart(points, importances, folder.name), folder, "search")
    counts = {
        name: sum(t.state == state for t in trials)
        for name, state in (("finished", states.COMPLETE), ("pruned", states.PRUNED), ("failed", states.FAIL))
    }
    listed = tuple(
        {
            "trial": t.number,
            "state": t.state.name.lower(),
            "tune_top1_percent": t.value,
            "values": dict(t.params),
            "error": t.user_attrs.get("error"),
            "run": t.user_attrs.get("run"),
        }
        for t in trials
    )
    return Found(folder, best, best_file, top, values, importances, counts, listed)


def _importances(optuna: Any, study: optuna.Study, complete: list[Any]) -> dict[str, float]:
    """PED-ANOVA (Watanabe et al. 2023): how much each field tells the better trials from the rest.

    Empty for fewer than four finished trials, or where they do not differ.
    """
    if len(complete) < 4 or len({t.value for t in complete}) < 2:
        return {}
    with _quiet():
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {path: float(value) for path, value in found.items()}


def _open(optuna: Any, name: str, url: str, pruning: str) -> optuna.Study:
    """The search called `name` in the storage, made if it is not there."""
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for attempt in range(OPENINGS):
        try:
            with _quiet():
                return _opened(optuna, name, url, pruning)
        except (ImportError, ValueError, RuntimeError, sqlalchemy.exc.SQLAlchemyError) as error:
            # Two workers that find an empty storage both make its tables, and one of them comes too late.
            if MADE_BY_ANOTHER.search(str(error)) and attempt + 1 < OPENINGS:
                time.sleep(1)
                continue
            cause = getattr(error, "orig", None) or error.__cause__ or error
            reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            if isinstance(error, ImportError):
                reason += "; install the driver, for PostgreSQL: pip install 'psycopg[binary]'"
            raise TinlabError(f"--storage {hidden(url)} cannot be used: {reason}") from error
    raise AssertionError("unreachable")


def _opened(optuna: Any, name: str, url: str, pruning: str) -> optuna.Study:
    # A connection that the server closed meanwhile is opened anew.
    sqlite = url.startswith("sqlite:")
    options = {"connect_args": {"timeout": WAIT_SECONDS}} if sqlite else {"pool_pre_ping": True}
    storage = optuna.storages.RDBStorage(
        url,
        engine_kwargs=options,
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=_take_over,
    )
    pruners = {
        "median": optuna.pruners.MedianPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
        "none": optuna.pruners.NopPruner,
    }
    study: optuna.Study = optuna.create_study(
        study_name=name,
        storage=storage,
        direction="maximize",
        # Trials that run count as bad ones, so that workers side by side do not draw the same values.
        sampler=optuna.samplers.TPESampler(constant_liar=True),
        pruner=pruners[pruning](),
        load_if_exists=True,
    )
    return study


def _take_over(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """Let somebody go on with a trial whose worker is silent."""
    attributes = trial.user_attrs
    times = int(attributes.get("retries", 0)) + 1
    if times <= RETRIES:
        origin = attributes.get("origin", trial.number)
        study.enqueue_trial(trial.params, user_attrs={"origin": origin, "retries": times})


def _claim(study: optuna.Study, recipe: Recipe, space: Space, settings: Settings, seed: int) -> None:
    """Note what the search is about; raise TinlabError where it is about something else already."""
    ours = {
        "recipe_digest": recipe.digest,
        "space": to_json(space),
        "pack_digest": settings.pack_digest,
        "seed": seed,
    }
    theirs = study.user_attrs
    for key, what in (
        ("recipe_digest", "another recipe"),
        ("space", "another space"),
        ("pack_digest", "another pack"),
        ("seed", "another seed"),
    ):
        if key in theirs and theirs[key] != ours[key]:
            raise TinlabError(
                f"the search '{study.study_name}' was begun with {what}; name a new one with --name"
            )
    for key, value in ours.items():
        if key not in theirs:
            study.set_user_attr(key, value)


def hidden(url: str) -> str:
    """A storage's URL without its password."""
    import sqlalchemy

    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url.partition(":")[0]


def _shown(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{path}={value:.4g}" if isinstance(value, float) else f"{path}={value}"
        for path, value in values.items()
    )


def _distribution(optuna: Any, found: Any) -> Any:
    if isinstance(found, Choice):
        return optuna.distributions.CategoricalDistribution(found.values)
    kind = optuna.distributions.IntDistribution if found.whole else optuna.distributions.FloatDistribution
    return kind(found.low, found.high, log=found.log)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise TinlabError(f"a search needs optuna ({error}): pip install 'tinlab[search]'") from error
    return optuna


def _quiet() -> Any:
    """Without Optuna's warnings that heartbeats and PED-ANOVA are called experimental."""
    return warnings.catch_warnings(action="ignore")
