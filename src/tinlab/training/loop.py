"""The training loop: one loop, read from top to bottom, that every recipe goes through."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinlab import runs
from tinlab.augment.draws import seed_for_step
from tinlab.augment.targeted import Targeted, hardest_classes
from tinlab.compute import choose_kernels, resolve_device, wait_for
from tinlab.data.pack import Pack
from tinlab.environment import describe_environment, sittings
from tinlab.errors import TinlabError
from tinlab.evaluation.metrics import Metrics, measure
from tinlab.evaluation.predict import predict_split
from tinlab.files import FULL, refused, remove_leftovers, write_json
from tinlab.ranks import Ranks, first_here, joined, launch, lost, restarted
from tinlab.recipe import Recipe
from tinlab.runs import Preprocessing, Run
from tinlab.training import checkpoint, schedule
from tinlab.training.curves import Curves, Meter, Place, eval_point, train_point
from tinlab.training.endings import OUT_OF_TIME, Diverged, TimeIsUp, TrainingStopped
from tinlab.training.fitting import preprocessing, ranks_fit, recipe_fits, weights_fit
from tinlab.training.memory import Peak, explain_out_of_memory, is_out_of_memory
from tinlab.training.progress import Progress, Watcher, seconds_left
from tinlab.training.schedule import Plateau
from tinlab.training.signals import StopRequest
from tinlab.training.stages import Left, Setup, spans
from tinlab.training.step import size_at, sizes_from, take_step
from tinlab.training.warm_up import warm_up


def train(
    recipe: Recipe,
    pack: Pack,
    out: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    checkpoint_seconds: float = 300,
    final_split: str = "val",
    log_every: int | None = None,
    stop_after_seconds: float | None = None,
    warm_up: bool | None = None,
    watch: Watcher | None = None,
    started: Callable[[Run], None] | None = None,
) -> Run:
    """Train `recipe` on `pack` in a new run folder inside `out`, and measure it on `final_split`.

    A checkpoint is written every `checkpoint_seconds` (0: after every step), after each stage and at the end;
    on several GPUs, and likewise where it stops, at the next point of the training curve.
    The training curve gets a point every `log_every` steps, by default POINTS_PER_EPOCH in a pass over the
    data. `started` is told the run once its folder is there; `watch` is told the progress, and what it raises
    ends the run there and then. What selects, such as a search, measures on `tune` in the end, so that it
    never looks at `val`. With `stop_after_seconds`, counted from this call, the training stops after the step
    in which they are over, and saves. With `warm_up` steps are taken before the clock starts, and undone
    (None: where the recipe compiles). Under torchrun all ranks train together, and ranks that it has started
    again go on with the run that they had begun. Raises TrainingStopped after a signal, TimeIsUp after
    `stop_after_seconds`, Diverged when the loss is not finite, TinlabError for a recipe that does not fit the
    pack, for a pack that is not as it was packed or is written to meanwhile, for a full disk, or where
    another rank is gone. The last checkpoint stays.
    """
    ends_at = None if stop_after_seconds is None else time.perf_counter() + stop_after_seconds
    if not 0 <= seed < 2**63:
        raise TinlabError(f"a seed is a whole number from 0 to 2^63 - 1, not {seed}")
    recipe_fits(recipe, pack)
    # What is missing is told before there is a run.
    weights_fit(recipe, pack)
    pack.split(final_split)
    if first_here():
        pack.verify_once()
    with joined(resolve_device(device)) as (ranks, chosen):
        ranks_fit(recipe, pack, ranks)
        path = ""
        if ranks.first:
            again = _begun(out, recipe, seed, pack) if restarted() else None
            run = again or runs.create(
                out, recipe, seed, pack, preprocessing(recipe, pack),
                launch=launch(), final_split=final_split, log_every=log_every,
            )  # fmt: skip
            path = str(run.path.resolve()) if ranks.count > 1 else str(run.path)
        run = runs.open_run(ranks.text(path, chosen))
        how = How(checkpoint_seconds, ends_at, warm_up, watch, started)
        return _go(run, pack, chosen, ranks, how)


def resume(
    path: Path,
    *,
    pack: Pack | None = None,
    device: str = "auto",
    checkpoint_seconds: float = 300,
    stop_after_seconds: float | None = None,
    warm_up: bool | None = None,
    watch: Watcher | None = None,
    started: Callable[[Run], None] | None = None,
) -> Run:
    """Go on with the run in folder `path` from its last checkpoint, as `train` would have.

    On a CPU the final weights equal those of an uninterrupted run bit for bit; on another number of ranks
    within rounding, where batch norms go by the whole batch. Raises as `train` does, and TinlabError where
    the pack is not the one that the run began with.
    """
    ends_at = None if stop_after_seconds is None else time.perf_counter() + stop_after_seconds
    run = runs.open_run(path)
    pack = pack or Pack.open(run.pack)
    if pack.digest != run.pack_digest:
        raise TinlabError(
            f"{pack.path} is not the pack that {path} was trained on (digest {pack.digest[:12]}, not "
            f"{run.pack_digest[:12]}); name that one with --data"
        )
    if run.result is None and first_here():
        pack.verify_once()
    with joined(resolve_device(device)) as (ranks, chosen):
        ranks_fit(run.recipe, pack, ranks)
        how = How(checkpoint_seconds, ends_at, warm_up, watch, started)
        return _go(run, pack, chosen, ranks, how)


def _begun(out: Path, recipe: Recipe, seed: int, pack: Pack) -> Run | None:
    """The run in `out` that was begun before torchrun started its ranks again."""
    for run in reversed(runs.list_runs(out)):
        same = run.recipe.digest == recipe.digest and run.recipe.name == recipe.name and run.seed == seed
        if same and run.pack_digest == pack.digest and run.launch is not None and run.launch == launch():
            return run
    return None


@dataclass(frozen=True)
class How:
    """What `train` and `resume` were asked that the run does not say; `ends_at` is by time.perf_counter()."""

    checkpoint_seconds: float
    ends_at: float | None
    warm_up: bool | None
    watch: Watcher | None
    started: Callable[[Run], None] | None


@contextmanager
def _disk_errors_told(run: Run) -> Iterator[None]:
    """Say how to go on where the disk is full or refuses."""
    try:
        yield
    except OSError as error:
        if refused(error, run.path) is None:
            raise
        why, place = (error.strerror or str(error)).lower(), error.filename or run.path
        mend = "make room" if error.errno in FULL else "see to it"
        raise TinlabError(
            f"{run.path} stopped: {why} at {place}; {mend}, and go on with: tinlab train "
            f"--resume {shlex.quote(str(run.path))}"
        ) from error


def _go(run: Run, pack: Pack, device: torch.device, ranks: Ranks, how: How) -> Run:
    with (
        _disk_errors_told(run),
        runs.locked(run.path) if ranks.first else nullcontext(),
        StopRequest() as stop,
    ):
        if how.started is not None and ranks.first:
            how.started(run)
        if run.result is not None:
            return run
        if ranks.first:
            environment = describe_environment(pack, str(device), ranks.count)
            if before := run.environment:
                environment = {**before, "resumed": [*sittings(before)[1:], environment]}
            write_json(run.path / "environment.json", environment)
        choose_kernels(device)
        job = _Job(run, pack, device, ranks, how, stop)
        try:
            job.train()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise job.out_of_memory(error) from error
            if ranks.count > 1 and lost(error):
                raise TinlabError(
                    f"another of the {ranks.count} ranks is gone; go on with: tinlab train --resume "
                    f"{shlex.quote(str(run.path))}, on as many ranks as there are"
                ) from error
            raise
        ranks.wait()  # until the result is there for all
    return run


class _Job:
    """One run's training, from where it stands to its result."""

    def __init__(
        self,
        run: Run,
        pack: Pack,
        device: torch.device,
        ranks: Ranks,
        how: How,
        stop: StopRequest,
    ) -> None:
        self.run, self.pack, self.device, self.ranks = run, pack, device, ranks
        self.stamps = pack.stamps()
        self.checkpoint_seconds = how.checkpoint_seconds
        self.watch = how.watch if ranks.first else None
        self.ends_at, self.warms_up, self.stop = how.ends_at, how.warm_up, stop
        self.spans = spans(run.recipe, pack, run.seed)
        self.total_steps = self.spans[-1].end_step
        self.held_out = pack.split("tune" if run.recipe.data.train_split == "train" else "val")
        self.final = pack.split(run.final_split)
        self.held_out_top1: float | None = None
        self.rate = 0.0
        self.phase = run.recipe.phases[0]
        self.peak = Peak(device)

    def train(self) -> None:
        """All stages from the last checkpoint on, and the result."""
        last = checkpoint.latest(self.run.path)
        self.state = checkpoint.State() if last is None else checkpoint.read_state(last)
        self.ranks.wait()  # until all have read what there was
        if self.ranks.first:
            checkpoint.clean(self.run.path)
            remove_leftovers(self.run.path)
            runs.keep_metrics_until(self.run.path / "metrics.jsonl", self.state.step)
        self.ranks.wait()
        self.meter = Meter(self.device, self.ranks)
        self.began, self.elapsed_before = time.perf_counter(), self.state.elapsed_seconds
        self.saved_at = self.began
        left: Left | None = None
        self.peak.start()
        with Curves(self.run, self.state.step, writes=self.ranks.first) as self.curves:
            for span in self.spans[self.state.stage :]:
                if span.number > self.state.stage:
                    self.state.stage, self.state.plateau = span.number, Plateau()
                self.phase = span.recipe
                setup = Setup(
                    span, self.run, self.pack, self.state, self.device, self.ranks, last=last, left=left
                )
                self._stage(setup)
                left, last = setup.left(), None
                if span is not self.spans[-1]:
                    self._measure(setup)
            self._finish(setup)

    def _stage(self, setup: Setup) -> None:
        """The steps of one stage."""
        span, recipe, state, seed = setup.span, setup.recipe, self.state, self.run.seed
        knobs = recipe.optimizer
        setup.frozen.train()
        warms_up = recipe.compute.compile if self.warms_up is None else self.warms_up
        if warms_up and state.step < span.end_step:
            sizes = sizes_from(recipe.data.image_sizes, state.step - span.first_step, span.steps)
            seconds = warm_up(setup, sizes, take_step, self._is_to_stop)
            state.warm_up_seconds += seconds
            self.began += seconds
        while state.step < span.end_step:
            step = state.step - span.first_step
            if step > 0 and step % span.evaluate_every == 0:
                # At the beginning of a step, so that a run resumed from this very step does not skip it.
                self._measure(setup)

            began = time.perf_counter()
            size = size_at(recipe.data.image_sizes, step, span.steps)
            self.rate = schedule.learning_rate(
                recipe.schedule, knobs.peak_lr, step, span.steps, state.plateau.cuts
            )
            momentum = schedule.momentum(recipe.schedule, knobs.momentum, step, span.steps)
            schedule.set_rates(setup.updater, self.rate, momentum)
            torch.manual_seed(seed_for_step(seed, state.step))
            if self.ranks.rank > 0:
                # Blocks are dropped by the host's generator, alike on all ranks; dropout differs, but where
                # blocks are dropped on CPUs, which have one generator for both.
                own = seed_for_step(seed, state.step) + self.ranks.rank
                if self.device.type == "cuda":
                    torch.cuda.manual_seed(own)
                elif not setup.depth.drops:
                    torch.manual_seed(own)
            self.meter.add(*take_step(setup, step, size))
            state.step += 1
            setup.updated(step + 1)
            setup.depth.count(state)
            if state.step == self.total_steps:
                setup.finish()
            self._after(setup, step, size, began)

    def _after(self, setup: Setup, step: int, size: int, began: float) -> None:
        """What follows step `step` of a stage, which began at `began`: clocks, curve, checkpoint, stop.

        Only here does the host ask for what the device has found, and on a CUDA device only where a window of
        the curve ends, one window late, or where a checkpoint is due.
        """
        span, state, device = setup.span, self.state, self.device
        at_end = state.step == span.end_step
        logging = (step + 1) % (self.run.log_every or span.log_every) == 0 or at_end
        stopping = self.stop.signal_number or self._out_of_time()
        saving = at_end or time.perf_counter() - self.saved_at >= self.checkpoint_seconds
        ends_here = self.ranks.count == 1 and (stopping != 0 or saving)
        late = logging and self.meter.lags and not (ends_here or at_end or setup.scaling.enabled)
        due = not late and (logging or device.type == "cpu" or ends_here)
        sent = self.meter.take_sent() if late or due else None
        before = None if sent is None else sent.received()
        if due:
            self.meter.drain(state)
            state.skipped_steps += setup.scaling.take_skipped()
            self._check_finite(state)
            stopping, saving = self.ranks.agree(stopping, saving, device)
        if (step + 1) % span.evaluate_every == 0:
            wait_for(device)  # the clock stands still while the network is measured
        now = time.perf_counter()
        state.train_seconds += now - began
        state.window_seconds += now - began
        state.elapsed_seconds = self.elapsed_before + now - self.began

        if sent is not None and before is not None:
            self._check_finite(before)
            self._log(setup, before, sent.place, sent.learning_rate, sent.image_size)
        for shown in (before, None if late else state):
            if self.watch is not None and shown is not None and shown.window_images:
                self.watch(self._progress(setup, shown, size))
        if late:
            self.meter.send(state, span.place(state.step), self.rate, size)
        elif logging:
            self._log(setup, state, span.place(state.step), self.rate, size)
        if logging:
            state.begin_window()

        stops_here = stopping != 0 and state.step < self.total_steps
        if due and (saving or stops_here):
            self._save(setup)
        if due and stops_here and stopping == OUT_OF_TIME:
            raise TimeIsUp(self.run.path, state.step, self.total_steps)
        if due and stops_here:
            raise TrainingStopped(self.run.path, state.step, self.total_steps, stopping)

    def _check_finite(self, state: checkpoint.State) -> None:
        """Raise Diverged where the loss over the window in `state` is not a number."""
        if not np.isfinite(state.window_loss + state.window_penalty):
            raise self._diverged("the loss")

    def _is_to_stop(self) -> bool:
        """Whether this process, and no other with it, is to save and stop."""
        return self.ranks.count == 1 and bool(self.stop.signal_number or self._out_of_time())

    def _out_of_time(self) -> int:
        return OUT_OF_TIME if self.ends_at is not None and time.perf_counter() >= self.ends_at else 0

    def _log(self, setup: Setup, state: checkpoint.State, place: Place, rate: float, size: int) -> None:
        """A point of the training curve, of the window in `state`."""
        point = train_point(state, place, rate, size)
        if setup.recipe.loss.penalties:
            point["penalty"] = state.window_penalty / state.window_images
        if setup.scaling.enabled:
            point["skipped_steps"] = state.skipped_steps
        self.curves.add(point)

    def _measure(self, setup: Setup) -> None:
        """A point of the held-out curve, unless it has one here, and what follows from it."""
        state, recipe = self.state, setup.recipe
        if not self.curves.measured(state.step):
            setup.settle()
            seen = self._seen(setup)
            predictions = predict_split(
                setup.measured_model,
                seen,
                self.held_out,
                recipe.compute,
                self.device,
                ranks=self.ranks,
            )
            setup.frozen.train()
            measured = measure(predictions.logits, predictions.labels)
            self.held_out_top1 = measured.top1_percent
            self._tick()
            point = eval_point(
                state, setup.span.place(state.step), self.held_out.name, measured, seen.network_size
            )
            if recipe.hard_classes is not None:
                right = predictions.logits.argmax(1) == predictions.labels
                share, classes = recipe.hard_classes.share, len(self.run.classes)
                point["hard_classes"] = hardest_classes(right, predictions.labels, classes, share)
            self.curves.add(point)
        # Also where the curve had its point already, and the checkpoint was from before it.
        point = self.curves.point(state.step)
        if recipe.schedule.shape == "plateau":
            state.plateau.observe(recipe.schedule, state.step, point["loss"])
        if isinstance(setup.policy, Targeted):
            setup.policy.classes = state.hard_classes = point["hard_classes"]

    def _seen(self, setup: Setup) -> Preprocessing:
        """How held-out images are shown now: while those in training grow, at the size of the last step. At
        a larger one, which it has not yet seen, a network can be far worse."""
        span, shown = setup.span, self.run.preprocessing
        size = size_at(setup.recipe.data.image_sizes, self.state.step - span.first_step - 1, span.steps)
        return shown if size == self.spans[-1].recipe.data.image_sizes[-1] else shown.at(size)

    def _save(self, setup: Setup) -> None:
        """A checkpoint."""
        setup.settle()
        self._same_pack()
        # The loss shows a spoilt weight one step late: look at the weights before they replace good ones.
        if not all(bool(torch.isfinite(p).all()) for p in setup.model.parameters()):
            raise self._diverged("a weight")
        self.state.scaling = setup.scaling.state()
        if self.ranks.first:
            self.curves.settle()
            checkpoint.save(self.run.path, setup.model, setup.updater, self.state, setup.beside)
        self.saved_at = time.perf_counter()

    def _same_pack(self) -> None:
        """Raise TinlabError where the pack's files were written to since the training began: so no checkpoint
        holds what was learned from them."""
        if name := self.pack.written_to_since(self.stamps):
            raise TinlabError(
                f"{self.pack.path / name} was written to while {self.run.path} trained on it; put back what "
                f"was there and go on from the last checkpoint: tinlab train --resume "
                f"{shlex.quote(str(self.run.path))}"
            )

    def _finish(self, setup: Setup) -> None:
        """The final split's logits and the result."""
        state, run = self.state, self.run
        setup.settle()
        final = predict_split(
            setup.measured_model,
            run.preprocessing,
            self.final,
            run.recipe.compute,
            self.device,
            {"step": str(state.step)},
            ranks=self.ranks,
        )
        self._same_pack()
        measured = measure(final.logits, final.labels)
        self._tick()
        if not self.curves.measured(state.step):
            place, size = setup.span.place(state.step), run.preprocessing.network_size
            self.curves.add(eval_point(state, place, self.final.name, measured, size))
        if not self.ranks.first:
            return
        final.save(run.path / "predictions" / f"{self.final.name}.safetensors")
        write_json(run.path / "result.json", self._result(setup, measured))

    def _result(self, setup: Setup, measured: Metrics) -> dict[str, Any]:
        state, run = self.state, self.run
        seen = sum(span.steps * span.recipe.schedule.batch_size for span in self.spans)
        found = {
            "recipe": run.recipe.name,
            "recipe_digest": run.recipe.digest,
            "seed": run.seed,
            "split": self.final.name,
            "top1_percent": measured.top1_percent,
            "top5_percent": measured.top5_percent,
            "loss": measured.loss,
            "images": measured.images,
            "train_images": max(len(span.rows) for span in self.spans),
            "steps": state.step,
            "epochs": round(setup.span.place(state.step).epoch, 4),
            "train_seconds": round(state.train_seconds, 3),
            "elapsed_seconds": round(state.elapsed_seconds, 3),
            "images_per_second": round(seen / state.train_seconds, 1),
            "parameters": sum(p.numel() for p in setup.model.parameters()),
            "peak_memory_bytes": self.peak.read(),
            "ranks": self.ranks.count,
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        }
        if state.warm_up_seconds:
            found["warm_up_seconds"] = round(state.warm_up_seconds, 3)
        if setup.average is not None:
            found["weights"] = checkpoint.EMA
        if setup.scaling.enabled:
            found["skipped_steps"] = state.skipped_steps
        if setup.masks is not None:
            found["sparsity"] = round(setup.masks.sparsity(), 6)
        return {**found, **setup.depth.found(state)}

    def _tick(self) -> None:
        self.state.elapsed_seconds = self.elapsed_before + time.perf_counter() - self.began

    def _progress(self, setup: Setup, state: checkpoint.State, size: int) -> Progress:
        span = setup.span
        return Progress(
            step=state.step,
            total_steps=self.total_steps,
            epoch=span.place(state.step).epoch,
            images_per_second=state.window_images / state.window_seconds,
            loss=state.window_loss / state.window_images,
            top1_percent=100 * state.window_correct / state.window_images,
            image_size=size,
            seconds_left=seconds_left(self.spans, state),
            held_out=self.held_out.name,
            held_out_top1_percent=self.held_out_top1,
            stage=None if span.stage is None else span.stage.name,
        )

    def out_of_memory(self, error: RuntimeError | MemoryError) -> TinlabError:
        """What to say where there was no memory left."""
        return explain_out_of_memory(
            error,
            self.phase,
            self.peak.read(),
            self.device,
            classes=len(self.run.classes),
            image_size=self.run.preprocessing.network_size,
            run=self.run.path,
            saved=checkpoint.latest(self.run.path) is not None,
        )

    def _diverged(self, what: str) -> Diverged:
        last = checkpoint.latest(self.run.path)
        kept = f"{last} is from before" if last else "nothing had been saved yet"
        stage = self.spans[self.state.stage].stage
        lower = f"optimizer.peak_lr={self.phase.optimizer.peak_lr / 3:.2g}"
        if stage is not None and "optimizer.peak_lr" in stage.changes:
            lower = f"{lower} in stage {stage.name}"
        else:
            lower = f"--set {lower}"
        return Diverged(
            f"{what} is not finite at step {self.state.step} (learning rate {self.rate:.3g}); try {lower} or "
            f"a longer schedule.warmup_fraction; {kept}"
        )
