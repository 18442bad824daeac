"""Hujia Yu, "Convolutional Neural Networks for Tiny ImageNet Classification", Stanford CS231n poster."""

from __future__ import annotations

from tinlab.recipe import Compute, Data, Model, Optimizer, Paper, Recipe, Schedule
from tinlab.recipes.provenance import assumed, inferred, stated

TITLE = "Convolutional Neural Networks for Tiny ImageNet Classification"


def yu_resnet20() -> Recipe:
    """The poster's best network: three stages of bottlenecks, five epochs.

    It gives 54.40% of val and 55.40% of test in its table, and a test error of 44.60% in its text.
    """
    return Recipe(
        name="yu_resnet20",
        summary="ResNet-20 of bottlenecks, five epochs without augmentation",
        paper=Paper(
            title=TITLE,
            authors="Hujia Yu",
            section="Results, table 1",
            reported={"train_top1_percent": 65.08, "val_top1_percent": 54.40, "test_top1_percent": 55.40},
        ),
        provenance={
            "data.train_split": stated("dataset: 500 training images of each of 200 classes"),
            "data.normalise": stated("dataset: images are normalised by subtracting the mean"),
            "augment": inferred("none is named"),
            "model.name": stated("figure of ResNet-20; two bottlenecks a stage are inferred from its name"),
            "optimizer.name": stated("analysis: momentum based SGD"),
            "optimizer.peak_lr": stated("analysis: starting with a learning rate of 0.1"),
            "optimizer.momentum": stated("analysis: momentum of 0.9"),
            "optimizer.weight_decay": stated("analysis: weight decay of 0.0001"),
            "schedule.epochs": stated("analysis: a total of 5 epochs"),
            "schedule.batch_size": stated("analysis: batch size of 256"),
            "schedule.shape": inferred("'starting with' says that the rate changes"),
            "schedule.milestone_steps": assumed("a tenth of the rate for the last of the five epochs"),
            "compute.precision": assumed("float32 then; bf16 is ours"),
        },
        data=Data(train_split="train+tune", normalise="mean"),
        model=Model(name="yu_resnet20"),
        optimizer=Optimizer(name="sgd", peak_lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=Schedule(epochs=5, batch_size=256, shape="step", milestone_steps=(1563,)),
        compute=Compute(precision="bf16"),
    )
