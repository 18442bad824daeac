"""Recipes for the shortest time to a stated accuracy on the official validation set."""

from __future__ import annotations

from tinlab.recipe import (
    ChannelPruning,
    Data,
    Flip,
    Loss,
    MagnitudePruning,
    Model,
    Optimizer,
    RandomResizedCrop,
    Recipe,
    Schedule,
    Stage,
)


def fast_cpu() -> Recipe:
    """Two CPU cores, about an hour: ResNet-18 of width 48 behind a 3x3/2 stem, sizes 32 to 64.

    Most of the steps are taken on small images, where a step costs a quarter, and the last ones at the full
    size, which is what val is measured at. No shortcut passes over activations, every block starts as the
    identity, weights alone are decayed, and the rate falls linearly to zero.
    """
    return Recipe(
        name="fast_cpu",
        summary="ResNet-18 of base width 48, growing images, for two CPU cores",
        data=Data(
            train_split="train+tune",
            image_sizes=(32, 32, 40, 40, 48, 48, 56, 64),
        ),
        augment=(Flip(), RandomResizedCrop(area=(0.6, 1.0))),
        model=Model(name="resnet18", width=48, stem="patch", shortcut="average_pool", zero_last_bn=True),
        loss=Loss(label_smoothing=0.1),
        optimizer=Optimizer(peak_lr=0.2, nesterov=True, weight_decay=5e-4, decay_weights_only=True),
        schedule=Schedule(epochs=8, batch_size=128, shape="linear", warmup_fraction=0.2),
    )


def fast_cpu_pruned() -> Recipe:
    """Prune and retrain: give `model.weights` the folder of a run of fast_cpu.

    Two rounds of taking out channels, which make the network smaller and faster, each retrained for an epoch
    at a fifth of the rate; then three of setting the smallest weights to zero (Han et al. 2015), the last one
    retrained until the rate is zero.
    """
    half = {"schedule.epochs": 0.5, "schedule.shape": "constant"}
    base = fast_cpu()
    return base.model_copy(
        update={
            "name": "fast_cpu_pruned",
            "summary": "fast_cpu's network, pruned to half its channels and a tenth of their weights",
            "data": base.data.model_copy(update={"image_sizes": (64,)}),
            "optimizer": base.optimizer.model_copy(update={"peak_lr": 0.04}),
            "schedule": Schedule(epochs=1, batch_size=128, shape="linear"),
            "stages": (
                Stage(name="channels-1", prune=ChannelPruning(share=0.3), changes=half),
                Stage(name="channels-2", prune=ChannelPruning(share=0.3)),
                Stage(name="weights-1", prune=MagnitudePruning(share=0.6), changes=half),
                Stage(name="weights-2", prune=MagnitudePruning(share=0.8), changes=half),
                Stage(name="weights-3", prune=MagnitudePruning(share=0.9)),
            ),
        }
    )
