"""Lei Sun, "ResNet on Tiny ImageNet", Stanford CS231n project report, 2016 or 2017."""

from __future__ import annotations

from tinlab.recipe import Compute, Data, Model, Optimizer, Paper, Recipe, Schedule
from tinlab.recipes.provenance import assumed, inferred, stated

TITLE = "ResNet on Tiny ImageNet"


def sun_vanilla() -> Recipe:
    """The paper's first network: ResNet-34, no augmentation, 15,000 iterations of 100 images.

    It overfits, which is its point: the training error goes to zero after the rate is cut at 10,000, and the
    validation error does not move.
    """
    return Recipe(
        name="sun_vanilla",
        summary="ResNet-34 without any remedy against overfitting",
        paper=Paper(
            title=TITLE,
            authors="Lei Sun",
            section="4. Vanilla Model, figure 5",
            reported={"val_top1_percent": 52.0, "test_top1_percent": 51.0},
        ),
        provenance={
            "data.train_split": stated("section 3.1: 100,000 training images"),
            "data.normalise": inferred("the mean is first subtracted in the improved model (section 5.2)"),
            "augment": inferred("flipping is first named for the improved model (section 5.2)"),
            "model.name": stated("section 4: ResNet-34"),
            "model.stem": assumed(
                "section 4 points to the table of He et al., which has 7x7/2 and max pool; 2.45 s an "
                "iteration on a K80 would also fit a stem that keeps the resolution"
            ),
            "optimizer.name": assumed("the report names none; SGD is He et al.'s"),
            "optimizer.peak_lr": assumed("0.1 is He et al.'s"),
            "optimizer.momentum": assumed("0.9 is He et al.'s"),
            "optimizer.weight_decay": assumed("1e-4 is He et al.'s"),
            "schedule.batch_size": stated("section 3.1: 1,000 mini-batches of 100"),
            "schedule.steps": stated("section 4: 15,000 iterations"),
            "schedule.milestone_steps": stated("section 4: annealed at iteration 10,000"),
            "schedule.factor": assumed("a tenth is He et al.'s"),
            "compute.precision": assumed("TensorFlow on a K80 computed in float32; bf16 is ours"),
        },
        data=Data(train_split="train+tune", normalise="scale"),
        model=Model(name="resnet34", stem="imagenet"),
        optimizer=Optimizer(name="sgd", peak_lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=Schedule(steps=15_000, batch_size=100, shape="step", milestone_steps=(10_000,), factor=0.1),
        compute=Compute(precision="bf16"),
    )
