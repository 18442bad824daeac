"""The recipe of `make demo`: small enough for two cores and a coffee, real enough to show overfitting."""

from __future__ import annotations

from tinlab.recipe import Compute, Data, Flip, Loss, Model, Optimizer, RandomResizedCrop, Recipe, Schedule


def demo() -> Recipe:
    """A quarter-width ResNet-18, 1,000 steps of 128, on images that grow from 32 to the 64 pixels of val.

    Trained at 32 pixels alone, it gets 88% of the rendered training images right and 33% of val at 64.
    """
    return Recipe(
        name="demo",
        summary="ResNet-18 of base width 16, trained for about a minute",
        data=Data(train_split="train", image_sizes=(32, 32, 48, 64)),
        augment=(Flip(), RandomResizedCrop(area=(0.6, 1.0))),
        model=Model(name="resnet18", width=16, stem="patch", shortcut="average_pool", zero_last_bn=True),
        loss=Loss(label_smoothing=0.1),
        optimizer=Optimizer(peak_lr=0.2, nesterov=True, weight_decay=5e-4, decay_weights_only=True),
        schedule=Schedule(steps=1000, batch_size=128, shape="linear", warmup_fraction=0.2),
        compute=Compute(precision="bf16"),
    )
