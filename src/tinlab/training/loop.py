"""The training loop: one loop, read from top to bottom, that every recipe goes through."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinlab import models, runs
from tinlab.augment import mix
from tinlab.augment.copies import with_copies
from tinlab.augment.draws import seed_for_step
from tinlab.augment.policy import Policy
from tinlab.compute import autocast, place, resolve_device
from tinlab.data.batches import Batch, Batches, chosen_rows
from tinlab.data.pack import Pack, triple
from tinlab.errors import TinlabError
from tinlab.evaluation.metrics import Metrics, measure
from tinlab.evaluation.predict import predict_split
from tinlab.files import write_json
from tinlab.models.depth import count_blocks, expected_blocks, residual_blocks
from tinlab.recipe import Recipe
from tinlab.runs import Preprocessing, Run
from tinlab.training import checkpoint, optimizer, schedule
from tinlab.training.averaging import Lookahead, MovingAverage
from tinlab.training.penalties import Penalties
from tinlab.training.scaling import Scaling
from tinlab.training.sharpness import SharpnessAware
from tinlab.training.signals import StopRequest

POINTS_PER_EPOCH = 20
"""How many points the training curve gets in one pass over the data."""


class TrainingStopped(TinlabError):
    """A signal ended the training after a step; everything is saved."""

    def __init__(self, run: Path, step: int, total_steps: int, signal_number: int) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(
            f"stopped by {name} after step {step} of {total_steps}; go on with: tinlab train --resume {run}"
        )
        self.exit_code = 128 + signal_number


class Diverged(TinlabError):
    """The loss, or a weight, is no longer a finite number."""


@dataclass(frozen=True)
class Progress:
    """What a watcher is told after each step or now and then."""

    step: int
    total_steps: int
    epoch: float
    images_per_second: float
    loss: float
    top1_percent: float
    image_size: int
    seconds_left: float
    held_out: str
    held_out_top1_percent: float | None


Watcher = Callable[[Progress], None]


def train(
    recipe: Recipe,
    pack: Pack,
    out: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    checkpoint_seconds: float = 300,
    final_split: str = "val",
    watch: Watcher | None = None,
    started: Callable[[Run], None] | None = None,
) -> Run:
    """Train `recipe` on `pack` in a new run folder inside `out`, and measure it on `final_split`.

    A checkpoint is written every `checkpoint_seconds` (0: after every step) and at the end. `started` is
    told the run once its folder is there; `watch` is told the progress. What selects, such as a search,
    measures on `tune` in the end, so that it never looks at `val`. Raises TrainingStopped after a
    signal, Diverged when the loss is not finite, TinlabError for a recipe that does not fit the pack.
    """
    recipe_fits(recipe, pack)
    # What is missing is told before there is a run.
    models.check_weights(recipe.model, len(pack.info.classes), image_size=pack.info.image_size)
    chosen = resolve_device(device)
    run = runs.create(out, recipe, seed, pack, preprocessing(recipe, pack))
    return _go(run, pack, chosen, checkpoint_seconds, final_split, watch, started)


def resume(
    path: Path,
    *,
    pack: Pack | None = None,
    device: str = "auto",
    checkpoint_seconds: float = 300,
    final_split: str = "val",
    watch: Watcher | None = None,
    started: Callable[[Run], None] | None = None,
) -> Run:
    """Go on with the run in folder `path` from its last checkpoint, as `train` would have.

    On a CPU the final weights equal those of an uninterrupted run bit for bit. Raises as `train` does, and
    TinlabError where the pack is not the one that the run began with.
    """
    run = runs.open_run(path)
    pack = pack or Pack.open(run.pack)
    if pack.digest != run.pack_digest:
        raise TinlabError(
            f"{pack.path} is not the pack that {path} was trained on (digest {pack.digest[:12]}, not "
            f"{run.pack_digest[:12]}); name that one with --data"
        )
    return _go(run, pack, resolve_device(device), checkpoint_seconds, final_split, watch, started)


def _go(
    run: Run,
    pack: Pack,
    device: torch.device,
    checkpoint_seconds: float,
    final_split: str,
    watch: Watcher | None,
    started: Callable[[Run], None] | None,
) -> Run:
    with runs.locked(run.path), StopRequest() as stop:
        if started is not None:
            started(run)
        if run.result is None:
            environment = runs.describe_environment(pack, str(device))
            if before := run.environment:
                environment = {**before, "resumed": [*before.get("resumed", []), environment]}
            write_json(run.path / "environment.json", environment)
            _train(run, pack, device, checkpoint_seconds, final_split, watch, stop)
    return run


def _train(
    run: Run,
    pack: Pack,
    device: torch.device,
    checkpoint_seconds: float,
    final_split: str,
    watch: Watcher | None,
    stop: StopRequest,
) -> None:
    recipe, seed = run.recipe, run.seed
    train_split = pack.split(recipe.data.train_split)
    held_out = pack.split("tune" if recipe.data.train_split == "train" else "val")
    rows = chosen_rows(train_split, recipe.data.images_per_class, recipe.data.images)
    rows, variants = with_copies(rows, recipe.augment, seed)
    total_steps = recipe.schedule.total_steps(len(rows))
    steps_per_epoch = len(rows) / recipe.schedule.batch_size
    log_every = max(1, round(steps_per_epoch / POINTS_PER_EPOCH))
    evaluate_every = max(1, round(steps_per_epoch * recipe.evaluate_every_epochs))

    batches = Batches(train_split, rows, recipe.schedule.batch_size, seed, device, variants)
    shown = run.preprocessing
    mean, std = (torch.tensor(values, device=device) for values in (shown.mean, shown.std))
    policy = Policy(recipe.augment, mean, std, seed)
    torch.manual_seed(seed)
    model = models.build(recipe.model, len(run.classes), image_size=shown.image_size)
    last = checkpoint.latest(run.path)
    if last is None:
        loaded = models.begin(model, recipe.model, policy.normalise(batches.at(0).images))
        if loaded is not None:
            write_json(run.path / "environment.json", {**run.environment, "weights": asdict(loaded)})
    model = place(model, recipe.compute, device)
    knobs = recipe.optimizer
    updater = optimizer.build(knobs, model)
    scaling = Scaling(device, recipe.compute.precision == "fp16")
    sharpness = None if knobs.sam_rho is None else SharpnessAware(model, knobs.sam_rho)
    lookahead = (
        None
        if knobs.lookahead_steps is None
        else Lookahead(model, knobs.lookahead_steps, knobs.lookahead_alpha)
    )
    average = None if knobs.ema_decay is None else MovingAverage(model, knobs.ema_decay)
    beside = {} if average is None else {checkpoint.EMA: average.tensors()}
    if lookahead is not None:
        beside["lookahead"] = lookahead.tensors()
    measured_model = model if average is None else average.model
    # What is compiled is a second face of the same weights: saving and measuring go through the raw module.
    network = torch.compile(model) if recipe.compute.compile else model
    depth = _Depth(model)
    penalties = Penalties(recipe.loss.penalties, model)

    state = checkpoint.State()
    if last is not None:
        state = checkpoint.restore(last, model, updater, device, beside)
        scaling.restore(state.scaling)
    runs.keep_metrics_until(run.path / "metrics.jsonl", state.step)

    def save() -> None:
        # The loss shows a spoilt weight one step late: look at the weights before they replace good ones.
        if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
            raise _diverged(run, state.step, rate)
        state.scaling = scaling.state()
        checkpoint.save(run.path, model, updater, state, beside)

    with _Curves(run, state.step) as curves:
        meter = _Meter(device)
        began, elapsed_before = time.perf_counter(), state.elapsed_seconds
        saved_at = began
        held_out_top1: float | None = None
        rate = 0.0
        model.train()
        while state.step < total_steps:
            evaluating = state.step > 0 and state.step % evaluate_every == 0
            if evaluating and not curves.measured(state.step):
                # At the beginning of a step, so that a run resumed from this very step does not skip it.
                predictions = predict_split(measured_model, shown, held_out, recipe.compute, device)
                model.train()
                measured = measure(predictions.logits, predictions.labels)
                held_out_top1 = measured.top1_percent
                state.elapsed_seconds = elapsed_before + time.perf_counter() - began
                curves.add(_eval_point(state, steps_per_epoch, held_out.name, measured))
            if evaluating and recipe.schedule.shape == "plateau":
                # Also where the curve had its point already, and the checkpoint was from before it.
                state.plateau.observe(recipe.schedule, state.step, curves.held_out_loss(state.step))

            step_began = time.perf_counter()
            size = size_at(recipe.data.image_sizes, state.step, total_steps)
            rate = schedule.learning_rate(
                recipe.schedule, knobs.peak_lr, state.step, total_steps, state.plateau.cuts
            )
            momentum = schedule.momentum(recipe.schedule, knobs.momentum, state.step, total_steps)
            schedule.set_rates(updater, rate, momentum)

            torch.manual_seed(seed_for_step(seed, state.step))
            batch = batches.at(state.step)
            inputs, batch = policy.inputs(batch, size)  # (B, 3, size, size)
            backward = partial(in_parts, network, inputs, batch, recipe, penalties, scaling)
            loss, penalty, correct = backward() if sharpness is None else sharpness(backward)
            if depth.drops:
                optimizer.fill_missing_gradients(model)
            if knobs.clip_norm is not None:
                scaling.unscale(updater)
                optimizer.clip(model, knobs.clip_norm)
            scaling.step(updater)
            updater.zero_grad(set_to_none=True)

            state.step += 1
            if lookahead is not None:
                lookahead.update(state.step, total_steps)
            if average is not None:
                average.update(state.step)
            meter.add(loss, penalty, correct, len(batch.labels))
            depth.count(state)
            due = state.step % log_every == 0 or state.step == total_steps or stop.signal_number != 0
            if device.type == "cpu" or due:
                # On a GPU this is where the host waits for it; on a CPU there is nothing to wait for.
                meter.drain(state)
                state.skipped_steps += scaling.take_skipped()
                if not np.isfinite(state.window_loss + state.window_penalty):
                    raise _diverged(run, state.step, rate)
            now = time.perf_counter()
            state.train_seconds += now - step_began
            state.window_seconds += now - step_began
            state.elapsed_seconds = elapsed_before + now - began

            if watch is not None and state.window_images:
                left = _seconds_left(state, total_steps, recipe.data.image_sizes)
                watch(
                    _progress(state, total_steps, steps_per_epoch, size, left, held_out.name, held_out_top1)
                )
            if state.step % log_every == 0 or state.step == total_steps:
                point = _train_point(state, steps_per_epoch, rate, size)
                if recipe.loss.penalties:
                    point["penalty"] = state.window_penalty / state.window_images
                if scaling.enabled:
                    point["skipped_steps"] = state.skipped_steps
                curves.add(point)
                state.window_loss, state.window_penalty, state.window_correct = 0.0, 0.0, 0
                state.window_images, state.window_seconds = 0, 0.0

            stopping = stop.signal_number != 0 and state.step < total_steps
            if stopping or state.step == total_steps or time.perf_counter() - saved_at >= checkpoint_seconds:
                save()
                saved_at = time.perf_counter()
            if stopping:
                raise TrainingStopped(run.path, state.step, total_steps, stop.signal_number)

        about = {"step": str(state.step)}
        final = predict_split(measured_model, shown, pack.split(final_split), recipe.compute, device, about)
        final.save(run.path / "predictions" / f"{final_split}.safetensors")
        measured = measure(final.logits, final.labels)
        if not curves.measured(state.step):
            curves.add(_eval_point(state, steps_per_epoch, final_split, measured))
    state.elapsed_seconds = elapsed_before + time.perf_counter() - began
    result = _result(run, state, steps_per_epoch, final_split, measured, model, len(rows))
    if average is not None:
        result["weights"] = checkpoint.EMA
    if scaling.enabled:
        result["skipped_steps"] = state.skipped_steps
    write_json(run.path / "result.json", {**result, **depth.found(state)})


def in_parts(
    network: Callable[[Tensor], Tensor],
    inputs: Tensor,
    batch: Batch,
    recipe: Recipe,
    penalties: Penalties | None,
    scaling: Scaling,
) -> tuple[Tensor, Tensor, Tensor]:
    """`forward_backward`, the scaled gradients being summed up over `schedule.accumulate` parts of the batch,
    so that without batch norm they are those of the whole."""
    parts = recipe.schedule.accumulate
    if parts == 1:
        return forward_backward(network, inputs, batch, recipe, penalties, scaling.backward)
    found = [
        forward_backward(
            network,
            some,
            _part(batch, number, parts),
            recipe,
            penalties,
            lambda loss: scaling.backward(loss / parts),
        )
        for number, some in enumerate(inputs.chunk(parts))
    ]
    losses, added, correct = (torch.stack(values) for values in zip(*found, strict=True))
    return losses.mean(), added.mean(), correct.sum()


def _part(batch: Batch, number: int, parts: int) -> Batch:
    """Part `number`, counted from 0, of `parts` equal ones; what the batch does not have, it has not."""
    values: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    for name, value in values.items():
        values[name] = None if value is None else value.chunk(parts)[number]
    return Batch(**values)


def forward_backward(
    network: Callable[[Tensor], Tensor],
    inputs: Tensor,
    batch: Batch,
    recipe: Recipe,
    penalties: Penalties | None = None,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one batch's loss and penalties, as `backward` makes them of the sum.

    Returns its mean loss, what penalties add to it, and its number correct, scalars on the device. A mixed
    image has the loss of both its labels, in their shares, and is correct where it is given the label with
    the larger one.
    """
    with autocast(recipe.compute, inputs.device):
        logits = network(inputs)  # (B, classes)
    logits = logits.float()
    smoothing = recipe.loss.label_smoothing
    labels = batch.labels
    if batch.others is None or batch.weights is None:
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    else:
        loss = mix.cross_entropy(logits, labels, batch.others, batch.weights, smoothing)
        labels = torch.where(batch.weights >= 0.5, labels, batch.others)
    added = penalties() if penalties is not None else None
    backward(loss if added is None else loss + added)
    correct = (logits.detach().argmax(dim=1) == labels).sum()
    return loss.detach(), torch.zeros_like(loss) if added is None else added.detach(), correct


def size_at(sizes: tuple[int, ...], step: int, total_steps: int) -> int:
    """The side of the training images in step `step`: each of `sizes` gets an equal share of the steps."""
    return sizes[min(len(sizes) - 1, step * len(sizes) // total_steps)]


def _seconds_left(state: checkpoint.State, total_steps: int, sizes: tuple[int, ...]) -> float:
    """By the speed so far, where a step takes time in proportion to its images' pixels."""

    def cost(step: int) -> float:
        shares = len(sizes) * step / total_steps  # how many of the sizes are done with, and a part
        return sum(size**2 * min(1.0, max(0.0, shares - place)) for place, size in enumerate(sizes))

    return state.train_seconds * (cost(total_steps) / cost(state.step) - 1)


def preprocessing(recipe: Recipe, pack: Pack) -> Preprocessing:
    """What the recipe does to an image's values, from the moments of the images that it trains on."""
    mean, std = pack.moments(recipe.data.train_split)
    if recipe.data.normalise == "scale":
        mean = np.zeros(3)
    if recipe.data.normalise != "mean_std":
        std = np.ones(3)
    std = np.maximum(std, 1e-3)  # a channel that never changes
    return Preprocessing(pack.info.image_size, triple(mean), triple(std))


def recipe_fits(recipe: Recipe, pack: Pack) -> None:
    """Raise TinlabError where `recipe` cannot be run on `pack`."""
    needed = {"val", "train", "tune"}
    if missing := sorted(needed - set(pack.splits)):
        raise TinlabError(f"{pack.path} has no split '{missing[0]}', which training needs; pack again")
    classes, size = len(pack.info.classes), pack.info.image_size
    models.check(recipe.model, classes, image_size=size, train_sizes=recipe.data.image_sizes)
    sketch = models.sketch(recipe.model, classes, image_size=size)
    Penalties(recipe.loss.penalties, sketch)
    optimizer.check(recipe.optimizer, sketch)
    for name in ("val", "tune"):
        split = pack.split(name)
        if not split.labelled:
            raise TinlabError(f"{pack.path} has no labelled images in '{name}', which training needs")


class _Meter:
    """Sums over steps that stay on the device until they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), device=device)
        self._penalty = torch.zeros((), device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._images = 0

    def add(self, loss: Tensor, penalty: Tensor, correct: Tensor, images: int) -> None:
        self._loss += loss * images
        self._penalty += penalty * images
        self._correct += correct
        self._images += images

    def drain(self, state: checkpoint.State) -> None:
        state.window_loss += self._loss.item()
        state.window_penalty += self._penalty.item()
        state.window_correct += int(self._correct.item())
        state.window_images += self._images
        self._loss.zero_()
        self._penalty.zero_()
        self._correct.zero_()
        self._images = 0


class _Depth:
    """How deep a network with stochastic depth is, by its probabilities and by its draws."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.blocks = residual_blocks(model)
        self.expected = expected_blocks(model)
        self.drops = self.expected < self.blocks

    def count(self, state: checkpoint.State) -> None:
        if self.drops:
            blocks, steps = count_blocks(self._model)
            state.blocks_run += blocks
            state.depth_steps += steps

    def found(self, state: checkpoint.State) -> dict[str, Any]:
        """For the result; empty where every block always runs."""
        if not self.drops or not state.depth_steps:
            return {}
        return {
            "blocks": self.blocks,
            "expected_blocks": round(self.expected, 4),
            "measured_blocks": round(state.blocks_run / state.depth_steps, 4),
        }


class _Curves:
    """metrics.jsonl, the record, and TensorBoard's events beside it."""

    def __init__(self, run: Run, step: int) -> None:
        self._path = run.path
        self._step = step
        self._losses = {point["step"]: point["loss"] for point in run.metrics() if point["kind"] == "eval"}

    def __enter__(self) -> _Curves:
        from torch.utils.tensorboard import SummaryWriter

        self._file: IO[str] = (self._path / "metrics.jsonl").open("a", encoding="utf-8")
        # Points after the checkpoint are measured again: purge_step hides the ones written before.
        self._board = SummaryWriter(str(self._path / "tensorboard"), purge_step=self._step + 1)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()

    def measured(self, step: int) -> bool:
        """Whether the held-out curve has a point at `step` already."""
        return step in self._losses

    def held_out_loss(self, step: int) -> float:
        return float(self._losses[step])

    def add(self, point: dict[str, Any]) -> None:
        if point["kind"] == "eval":
            self._losses[point["step"]] = point["loss"]
        self._file.write(json.dumps(point, allow_nan=False) + "\n")
        self._file.flush()
        folder = "train" if point["kind"] == "train" else point["split"]
        for name in ("loss", "penalty", "top1_percent", "top5_percent", "learning_rate", "images_per_second"):
            if name in point:
                self._board.add_scalar(f"{folder}/{name}", point[name], point["step"])


def _train_point(state: checkpoint.State, steps_per_epoch: float, rate: float, size: int) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": state.step,
        "epoch": round(state.step / steps_per_epoch, 4),
        "loss": state.window_loss / state.window_images,
        "top1_percent": 100 * state.window_correct / state.window_images,
        "learning_rate": rate,
        "images_per_second": round(state.window_images / state.window_seconds, 1),
        "image_size": size,
        "train_seconds": round(state.train_seconds, 3),
        "elapsed_seconds": round(state.elapsed_seconds, 3),
    }


def _eval_point(
    state: checkpoint.State, steps_per_epoch: float, split: str, measured: Metrics
) -> dict[str, Any]:
    return {
        "kind": "eval",
        "split": split,
        "step": state.step,
        "epoch": round(state.step / steps_per_epoch, 4),
        "loss": measured.loss,
        "top1_percent": measured.top1_percent,
        "top5_percent": measured.top5_percent,
        "train_seconds": round(state.train_seconds, 3),
        "elapsed_seconds": round(state.elapsed_seconds, 3),
    }


def _progress(
    state: checkpoint.State,
    total_steps: int,
    steps_per_epoch: float,
    size: int,
    seconds_left: float,
    held_out: str,
    held_out_top1_percent: float | None,
) -> Progress:
    return Progress(
        step=state.step,
        total_steps=total_steps,
        epoch=state.step / steps_per_epoch,
        images_per_second=state.window_images / state.window_seconds,
        loss=state.window_loss / state.window_images,
        top1_percent=100 * state.window_correct / state.window_images,
        image_size=size,
        seconds_left=seconds_left,
        held_out=held_out,
        held_out_top1_percent=held_out_top1_percent,
    )


def _result(
    run: Run,
    state: checkpoint.State,
    steps_per_epoch: float,
    final_split: str,
    measured: Metrics,
    model: nn.Module,
    images: int,
) -> dict[str, Any]:
    return {
        "recipe": run.recipe.name,
        "recipe_digest": run.recipe.digest,
        "seed": run.seed,
        "split": final_split,
        "top1_percent": measured.top1_percent,
        "top5_percent": measured.top5_percent,
        "loss": measured.loss,
        "images": measured.images,
        "train_images": images,
        "steps": state.step,
        "epochs": round(state.step / steps_per_epoch, 4),
        "train_seconds": round(state.train_seconds, 3),
        "elapsed_seconds": round(state.elapsed_seconds, 3),
        "images_per_second": round(state.step * run.recipe.schedule.batch_size / state.train_seconds, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    }


def _diverged(run: Run, step: int, rate: float) -> Diverged:
    last = checkpoint.latest(run.path)
    kept = f"{last} is from before" if last else "nothing had been saved yet"
    return Diverged(
        f"the loss is not finite at step {step} (learning rate {rate:.3g}); try --set optimizer.peak_lr="
        f"{run.recipe.optimizer.peak_lr / 3:.2g} or a longer schedule.warmup_fraction; {kept}"
    )
