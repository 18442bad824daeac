"""Lei Sun, "ResNet on Tiny ImageNet", Stanford CS231n project report, 2016 or 2017."""

from __future__ import annotations

from tinlab.recipe import Compute, Data, Flip, Model, Optimizer, Paper, Recipe, Schedule, Stage
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


def sun_finetune() -> Recipe:
    """The two-phase fine-tuning that the paper describes and does not do: a new classifier is trained alone,
    then the whole network, here with smaller rates below.

    Tiny ImageNet's images come from ImageNet, so that a network with ImageNet's weights has seen val: its
    number stands in no table with networks from scratch.
    """
    return Recipe(
        name="sun_finetune",
        summary="ResNet-34 from ImageNet's weights: a new classifier alone, then everything",
        paper=Paper(title=TITLE, authors="Lei Sun", section="3.3: described, not measured"),
        provenance={
            "model.name": inferred("the paper's own network"),
            "model.weights": stated("section 3.3: fine-tune pre-trained ResNets"),
            "augment": assumed("the flip of the improved model"),
            "optimizer.peak_lr": assumed("a tenth of He et al.'s, the habit of fine-tuning"),
            "schedule.batch_size": stated("section 3.1: mini-batches of 100"),
            "schedule.epochs": stated("section 3.3: a couple of epochs each"),
            "compute.precision": assumed("bf16 is ours"),
        },
        data=Data(train_split="train+tune"),
        augment=(Flip(),),
        model=Model(name="resnet34", stem="imagenet", weights="imagenet"),
        optimizer=Optimizer(peak_lr=0.01, momentum=0.9, weight_decay=1e-4),
        schedule=Schedule(epochs=2, batch_size=100, shape="linear", warmup_fraction=0.1),
        compute=Compute(precision="bf16"),
        stages=(
            Stage(
                name="head",
                changes={
                    "optimizer.layer_rates": [{"layers": "fc", "factor": 1}, {"layers": "*", "factor": 0}],
                    "optimizer.peak_lr": 0.1,
                },
            ),
            Stage(
                name="all",
                changes={
                    "optimizer.layer_rates": [
                        {"layers": "fc", "factor": 1},
                        {"layers": "layer4*", "factor": 0.5},
                        {"layers": "layer3*", "factor": 0.2},
                        {"layers": "*", "factor": 0.1},
                    ]
                },
            ),
        ),
    )
