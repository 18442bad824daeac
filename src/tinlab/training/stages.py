"""The stages of a training: where each lies in the run, and all that it trains with.

A recipe without stages has a single one. Every stage builds its network anew, by its own knobs, and takes
over the weights that the stage before it left: so nothing of a stage, such as a hook that penalises
activations, lives on in the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tinlab import models
from tinlab.augment.copies import with_copies
from tinlab.augment.draws import seed_for_step
from tinlab.augment.policy import Policy
from tinlab.augment.targeted import Targeted
from tinlab.compute import compiled, place
from tinlab.data.batches import Batches, chosen_rows
from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.evaluation.predict import normalised
from tinlab.files import write_json
from tinlab.models.depth import count_blocks, expected_blocks, residual_blocks
from tinlab.models.initialise import scaled_after
from tinlab.models.structure import smaller
from tinlab.models.weights import fresh_names
from tinlab.ranks import Ranks, synchronise_batch_norm
from tinlab.recipe import ChannelPruning, MagnitudePruning, Recipe, Stage
from tinlab.runs import Run
from tinlab.training import checkpoint, optimizer, statistics
from tinlab.training.averaging import Lookahead, MovingAverage
from tinlab.training.curves import POINTS_PER_EPOCH, Place
from tinlab.training.penalties import Penalties
from tinlab.training.pruning import Masks, prune_channels
from tinlab.training.scaling import Scaling
from tinlab.training.sharpness import SharpnessAware


@dataclass(frozen=True)
class Span:
    """A stage, and where it lies in the run: its steps are `first_step` to before `end_step`, its passes over
    `rows` (int64, with their fixed copies in `variants`) are counted from `first_epoch`, and `epochs_before`
    passes, the last one of each stage perhaps a part, lie before it."""

    number: int
    stage: Stage | None
    recipe: Recipe
    rows: np.ndarray
    variants: np.ndarray | None
    first_step: int
    end_step: int
    first_epoch: int
    epochs_before: float

    @property
    def steps(self) -> int:
        return self.end_step - self.first_step

    @property
    def steps_per_epoch(self) -> float:
        return len(self.rows) / self.recipe.schedule.batch_size

    @property
    def log_every(self) -> int:
        """Steps from a point of the training curve to the next."""
        return max(1, round(self.steps_per_epoch / POINTS_PER_EPOCH))

    @property
    def evaluate_every(self) -> int:
        """Steps from a point of the held-out curve to the next."""
        return max(1, round(self.steps_per_epoch * self.recipe.evaluate_every_epochs))

    def place(self, step: int) -> Place:
        """Where step `step` of the run lies, for a point of the curves."""
        epoch = self.epochs_before + (step - self.first_step) / self.steps_per_epoch
        return Place(step, epoch, None if self.stage is None else self.stage.name)


def spans(recipe: Recipe, pack: Pack, seed: int) -> list[Span]:
    """The stages of `recipe` on the images of `pack`."""
    split = pack.split(recipe.data.train_split)
    found: list[Span] = []
    for number, phase in enumerate(recipe.phases):
        rows = chosen_rows(split, phase.data.images_per_class, phase.data.images)
        rows, variants = with_copies(rows, phase.augment, seed)
        steps = phase.schedule.total_steps(len(rows))
        before = found[-1] if found else None
        first = before.end_step if before else 0
        passed = before.steps / before.steps_per_epoch if before else 0.0
        found.append(
            Span(
                number=number,
                stage=recipe.stages[number] if recipe.stages else None,
                recipe=phase,
                rows=rows,
                variants=variants,
                first_step=first,
                end_step=first + steps,
                first_epoch=before.first_epoch + math.ceil(passed) if before else 0,
                epochs_before=before.epochs_before + passed if before else 0.0,
            )
        )
    return found


@dataclass(frozen=True)
class Left:
    """What a stage leaves to the next: weights and buffers by name, and the masks of pruned weights."""

    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor] | None


class Setup:
    """All that a stage trains with: network, batches, augmentation, updates.

    `model` is the raw module, which is saved and explained; `network` the same weights as a step calls them,
    compiled and on several ranks as the recipe and the ranks ask for; `measured_model` has the weights that
    are measured. `last` is the checkpoint to go on from where it is of this stage; otherwise `left` is what
    the stage before it left, and `state` takes note of what pruning makes of the network.
    """

    def __init__(
        self,
        span: Span,
        run: Run,
        pack: Pack,
        state: checkpoint.State,
        device: torch.device,
        ranks: Ranks,
        *,
        last: Path | None,
        left: Left | None,
    ) -> None:
        self.span, self.recipe, self.device, self.ranks = span, span.recipe, device, ranks
        recipe, seed, shown = span.recipe, run.seed, run.preprocessing
        self.shown = shown
        mean, std = (torch.tensor(values, device=device) for values in (shown.mean, shown.std))
        plain = Policy(recipe.augment, mean, std, seed)
        self.policy: Policy | Targeted = plain
        if recipe.hard_classes is not None:
            hard = Policy(recipe.hard_classes.augment, mean, std, seed)
            self.policy = Targeted(plain, hard, state.hard_classes)
        self.split = pack.split(recipe.data.train_split)
        self.batches = Batches(
            self.split,
            span.rows,
            recipe.schedule.batch_size,
            seed,
            device,
            span.variants,
            shard=ranks.shard(recipe.schedule.batch_size, recipe.schedule.accumulate),
            first_epoch=span.first_epoch,
        )

        torch.manual_seed(seed if span.number == 0 else seed_for_step(seed, span.first_step))
        build = partial(models.build, recipe.model, len(run.classes), image_size=shown.network_size)
        model = build()
        if state.structure is not None:
            smaller(model, state.structure, image_size=shown.network_size)
        prune = None if span.stage is None or last is not None else span.stage.prune
        if last is None:
            whole = self.batches
            if ranks.count > 1:  # the first batch whole on every rank, so that all begin as one process does
                drawn = (recipe.schedule.batch_size, seed, device, span.variants)
                whole = Batches(self.split, span.rows, *drawn, first_epoch=span.first_epoch, resident=False)
            images = normalised(shown, whole.at(0).images)
            loaded = models.begin(model, run.recipe.beginning(span.number), images)
            if loaded is not None and ranks.first:
                write_json(run.path / "environment.json", {**run.environment, "weights": asdict(loaded)})
        if left is not None:
            assert span.stage is not None
            with scaled_after(model, recipe.model.init, images):
                carry_over(left.weights, model, span.stage.fresh)
        if isinstance(prune, ChannelPruning):
            cut = prune_channels(
                model,
                prune.share,
                scope=prune.scope,
                classifier=models.find(recipe.model.name, shown.network_size).classifier,
                leave=prune.keep,
                image_size=shown.network_size,
                field=f"stages.{span.number}.prune.keep",
            )
            state.structure = cut.structure
        if recipe.compute.sync_batch_norm:
            synchronise_batch_norm(model)
        self.model = model = place(model, recipe.compute, device)
        self.masks: Masks | None = None
        pruned = magnitude_pruning(run.recipe, span.number)
        if pruned is not None:
            self.masks = Masks.of(model, pruned.keep, field=f"stages.{span.number}.prune.keep")
            if left is not None and left.masks is not None:
                for name, mask in self.masks.tensors().items():
                    mask.copy_(left.masks[name])
            if isinstance(prune, MagnitudePruning):
                self.masks.prune(prune.share)
            self.masks.apply()

        knobs = recipe.optimizer
        self.frozen = optimizer.Frozen(knobs, model)
        self.depth = Depth(model)
        # All ranks have the first one's weights from here on, which what follows takes copies of.
        parallel = ranks.parallel(model, device, leaves_out=self.depth.drops)
        self.updater = optimizer.build(knobs, model)
        self.scaling = Scaling(device, recipe.compute.precision == "fp16")
        self.sharpness = None if knobs.sam_rho is None else SharpnessAware(model, knobs.sam_rho)
        self.lookahead = (
            None
            if knobs.lookahead_steps is None
            else Lookahead(model, knobs.lookahead_steps, knobs.lookahead_alpha)
        )
        self.average = None if knobs.ema_decay is None else MovingAverage(model, knobs.ema_decay)
        self.penalties = Penalties(recipe.loss.penalties, model)
        self.measured_model = model if self.average is None else self.average.model
        self.beside: dict[str, Mapping[str, Tensor]] = {}
        if self.average is not None:
            self.beside[checkpoint.EMA] = self.average.tensors()
        if self.lookahead is not None:
            self.beside["lookahead"] = self.lookahead.tensors()
        if self.masks is not None:
            self.beside["masks"] = self.masks.tensors()
        if last is not None:
            checkpoint.restore(last, model, self.updater, device, self.beside)
            self.scaling.restore(state.scaling)
        # A second face of the same weights: saving and measuring go through the raw module.
        self.network: Callable[[Tensor], Tensor] = compiled(parallel, recipe.compute)

    def updated(self, step: int) -> None:
        """After the update of step `step` of the stage, counted from 1: what follows the weights.

        Slow and averaged weights begin as the pruned ones are, and so stay at zero with them.
        """
        if self.masks is not None:
            self.masks.apply()
        if self.lookahead is not None:
            self.lookahead.update(step, self.span.steps)
        if self.average is not None:
            self.average.update(step)

    def finish(self) -> None:
        """After the last step of the training: what the weights are measured with."""
        wanted = self.recipe.data.precise_bn_images
        if wanted is None:
            return
        self.frozen.train()
        statistics.take_anew(
            self.measured_model,
            statistics.norms_of(self.model),
            self.shown,
            self.split,
            statistics.spread(self.span.rows, wanted),
            self.recipe.compute,
            self.device,
        )

    def settle(self) -> None:
        """Before weights are measured or saved: let all ranks have the same statistics."""
        self.ranks.average_buffers(self.model)
        if self.average is not None:
            self.ranks.average_buffers(self.average.model)

    def left(self) -> Left:
        """What the next stage goes on with."""
        masks = None if self.masks is None else self.masks.tensors()
        return Left(self.measured_model.state_dict(), masks)


def magnitude_pruning(recipe: Recipe, number: int) -> MagnitudePruning | None:
    """The last pruning of single weights in the stages of `recipe` up to stage `number`."""
    found = [stage.prune for stage in recipe.stages[: number + 1]]
    return next((prune for prune in reversed(found) if isinstance(prune, MagnitudePruning)), None)


@torch.no_grad()
def carry_over(weights: Mapping[str, Tensor], model: nn.Module, fresh: tuple[str, ...]) -> None:
    """Put `weights` into `model` wherever name and shape are the same, but for the layers `fresh` names.

    Raises TinlabError where nothing is taken over.
    """
    own = model.state_dict()
    apart = fresh_names(own, fresh)
    taken = {
        name: value
        for name, value in weights.items()
        if name in own and own[name].shape == value.shape and name not in apart
    }
    if not taken:
        raise TinlabError(
            "stages: nothing of the network before fits the next stage's; give the model more alike"
        )
    for name, value in taken.items():
        own[name].copy_(value)


class Depth:
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

    def found(self, state: checkpoint.State) -> dict[str, float]:
        """For the result; empty where every block always runs."""
        if not self.drops or not state.depth_steps:
            return {}
        return {
            "blocks": self.blocks,
            "expected_blocks": round(self.expected, 4),
            "measured_blocks": round(state.blocks_run / state.depth_steps, 4),
        }
