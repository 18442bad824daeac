"""A recipe and a pack together: whether they fit, and how the network is shown the images."""

from __future__ import annotations

import numpy as np
import torch

from tinlab import models
from tinlab.data.pack import Pack, triple
from tinlab.errors import TinlabError
from tinlab.models.depth import layers_left_out
from tinlab.models.layers import named_layers
from tinlab.models.weights import fresh_names
from tinlab.ranks import Ranks, synchronise_batch_norm
from tinlab.recipe import ChannelPruning, Recipe
from tinlab.runs import Preprocessing
from tinlab.training import optimizer, pruning, statistics
from tinlab.training.penalties import Penalties


def preprocessing(recipe: Recipe, pack: Pack) -> Preprocessing:
    """What the recipe does to an image's values, from the moments of the images that it trains on."""
    mean, std = pack.moments(recipe.data.train_split)
    if recipe.data.normalise == "scale":
        mean = np.zeros(3)
    if recipe.data.normalise != "mean_std":
        std = np.ones(3)
    std = np.maximum(std, 1e-3)  # a channel that never changes
    return Preprocessing(pack.info.image_size, triple(mean), triple(std), recipe.data.measured_size)


def network_size(recipe: Recipe, pack: Pack) -> int:
    """Pixels a side of what the network sees where it is measured."""
    return recipe.data.measured_size or pack.info.image_size


def recipe_fits(recipe: Recipe, pack: Pack) -> None:
    """Raise TinlabError where `recipe` cannot be run on `pack`."""
    needed = {"val", "train", "tune"}
    if missing := sorted(needed - set(pack.splits)):
        raise TinlabError(f"{pack.path} has no split '{missing[0]}', which training needs; pack again")
    classes, size = len(pack.info.classes), network_size(recipe, pack)
    pruned: dict[str, torch.Size] | None = None
    for number, phase in enumerate(recipe.phases):
        models.check(
            phase.model,
            classes,
            image_size=size,
            train_sizes=phase.data.image_sizes,
            train_batch=phase.schedule.batch_size // phase.schedule.accumulate,
        )
        sketch = models.sketch(phase.model, classes, image_size=size)
        Penalties(phase.loss.penalties, sketch)
        optimizer.check(phase.optimizer, sketch)
        if phase.schedule.low_momentum is not None:
            optimizer.check_momentum(phase.optimizer, sketch)
        statistics.check(phase.data, sketch)
        if recipe.stages:
            stage = recipe.stages[number]
            if "data.precise_bn_images" in stage.changes and number < len(recipe.stages) - 1:
                raise TinlabError(
                    f"stages.{number}: data.precise_bn_images is for the end of a training; change it in the "
                    "last stage, or in the recipe"
                )
            fresh_names(sketch.state_dict(), stage.fresh, field=f"stages.{number}.fresh")
            for pattern in stage.prune.keep if stage.prune else ():
                named_layers(sketch, pattern, field=f"stages.{number}.prune.keep")
            if isinstance(stage.prune, ChannelPruning):
                pruning.import_torch_pruning()
                pruning.check_layers(sketch)
                _can_be_cut(phase, stage.prune, classes, size, f"stages.{number}.prune.keep")
            elif stage.prune:
                pruning.Masks.of(sketch, stage.prune.keep, field=f"stages.{number}.prune.keep")
            shapes = {name: parameter.shape for name, parameter in sketch.named_parameters()}
            if pruned is not None and shapes != pruned:
                raise TinlabError(
                    f"stages.{number}: its network has other weights than the one before, of which some were "
                    "pruned for good"
                )
            pruned = shapes if pruned or stage.prune else None
        if phase.compute.sync_batch_norm:
            synchronise_batch_norm(sketch)
    for name in ("val", "tune"):
        split = pack.split(name)
        if not split.labelled:
            raise TinlabError(f"{pack.path} has no labelled images in '{name}', which training needs")


def _can_be_cut(phase: Recipe, prune: ChannelPruning, classes: int, size: int, field: str) -> None:
    """Raise TinlabError where channels cannot be pruned, by pruning those of a network that is then dropped:
    that its channels can be followed shows in no sketch."""
    with torch.random.fork_rng(devices=[]):
        model = models.build(phase.model, classes, image_size=size)
    pruning.prune_channels(
        model,
        prune.share,
        scope=prune.scope,
        classifier=models.find(phase.model.name, size).classifier,
        leave=prune.keep,
        image_size=size,
        field=field,
    )


def weights_fit(recipe: Recipe, pack: Pack) -> None:
    """Raise TinlabError where the weights that `recipe` starts from, if any, cannot be had or do not fit.

    Fetches published ones, which is why it is apart from `recipe_fits`.
    """
    models.check_weights(recipe.beginning(0), len(pack.info.classes), image_size=network_size(recipe, pack))


def ranks_fit(recipe: Recipe, pack: Pack, ranks: Ranks) -> None:
    """Raise TinlabError where a stage of `recipe` cannot be shared out among `ranks`: its batches, the images
    that a batch norm of one rank needs, or a penalty on weights that stochastic depth leaves out of a step,
    which torch's gradients do not wait for."""
    classes, size = len(pack.info.classes), network_size(recipe, pack)
    for phase in recipe.phases:
        part = len(ranks.shard(phase.schedule.batch_size, phase.schedule.accumulate))
        if ranks.count == 1:
            continue
        if part == phase.schedule.accumulate and not phase.compute.sync_batch_norm:
            sizes = phase.data.image_sizes
            models.check(phase.model, classes, image_size=size, train_sizes=sizes, train_batch=1)
        if not phase.loss.penalties:
            continue
        sketch = models.sketch(phase.model, classes, image_size=size)
        dropped = set(layers_left_out(sketch))
        if any(layer in dropped for layer in Penalties(phase.loss.penalties, sketch).weighted):
            raise TinlabError(
                "loss.penalties: on several ranks, weights of blocks that stochastic depth drops cannot have "
                "a penalty; name other layers, such as the classifier, or set optimizer.weight_decay"
            )
