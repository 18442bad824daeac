"""Recipes for the shortest time to a stated accuracy on the official validation set."""

from __future__ import annotations

from tinlab.recipe import Data, Flip, Loss, Model, Optimizer, RandomResizedCrop, Recipe, Schedule


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
