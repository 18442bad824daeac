"""Lei Sun, "ResNet on Tiny ImageNet", Stanford CS231n project report, 2016 or 2017."""

from __future__ import annotations

from tinlab.recipe import POLICIES, Compute, Data, Flip, Model, Optimizer, Paper, Recipe, Schedule, Stage
from tinlab.recipes.provenance import assumed, inferred, stated

TITLE = "ResNet on Tiny ImageNet"


def sun_vanilla() -> Recipe:
    """The paper's first network: ResNet-34, no augmentation, 15,000 iterations of 100 images.

    It overfits, which is its point: in the report the training error goes to zero after the rate is cut at
    10,000, and the validation error does not move.
    """
    return Recipe(
        name="sun_vanilla",
        summary="ResNet-34 without any remedy against overfitting",
        paper=Paper(
            title=TITLE,
            authors="Lei Sun",
            section="4. Vanilla Model, figure 5",
            reported={
                "val_top1_percent": 52.0,
                "test_top1_percent": 51.0,
                "poster_val_top1_percent": 50.0,
                "poster_test_top1_percent": 52.0,
            },
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
            "schedule.shape": stated("section 4: annealed"),
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


def sun_improved() -> Recipe:
    """The vanilla network with the paper's first remedies: stochastic depth, the channels' mean subtracted,
    and half of the images flipped.

    Training now ends far from an error of zero (about 35% on the poster). Its length is not given: "a few
    more epochs" than the vanilla network's 15 are taken to be 20, cut at the same share.
    """
    recipe = sun_vanilla()
    sources = {
        "model.final_survival": inferred(
            "0.5 is Huang et al.'s, whom section 5.1 follows; with l counted from 0 it gives table 2's 12.3 "
            "of 16 blocks (12.25), with l from 1, as the formula reads and as here, 11.75"
        ),
        "data.normalise": stated("section 5.2: the global mean is subtracted from each image"),
        "augment": stated("section 5.2: flipped left to right with probability 0.5"),
        "schedule.steps": assumed("section 5.3: a few more epochs to converge; 20 in place of 15"),
        "schedule.milestone_steps": assumed("section 5.3 names a first plateau; two thirds, as in section 4"),
    }
    return recipe.model_copy(
        update={
            "name": "sun_improved",
            "summary": "ResNet-34 with stochastic depth and flips",
            "paper": Paper(
                title=TITLE,
                authors="Lei Sun",
                section="5. Improved Model and Result, figure 8",
                reported={
                    "val_top1_percent": 57.0,
                    "conclusion_top1_percent": 56.3,
                    "test_top1_percent": 54.9,
                    "poster_train_top1_percent": 65.0,
                    "poster_val_top1_percent": 60.0,
                    "poster_test_top1_percent": 57.0,
                },
            ),
            "provenance": {**recipe.provenance, **sources},
            "data": recipe.data.model_copy(update={"normalise": "mean"}),
            "augment": POLICIES["sun_light"](),
            "model": recipe.model.model_copy(update={"final_survival": 0.5}),
            "schedule": recipe.schedule.model_copy(update={"steps": 20_000, "milestone_steps": (13_333,)}),
        }
    )


def sun_final() -> Recipe:
    """The paper's best: ResNet-34 of full pre-activation blocks under heavy augmentation, 70,000 iterations.

    Which three of the twelve transforms the report does not name, how many an image gets, and their ranges
    are assumed: see the policy sun_heavy.
    """
    recipe = sun_improved()
    sources = {
        "model.block_order": stated("section 6: ResNet-34 with full pre-activation"),
        "model.final_survival": inferred("section 6 improves the model of section 5 further"),
        "augment": stated("section 6: 12 transforms, a random several of them on each image"),
        "schedule.steps": stated("section 7: totally 70,000 iterations"),
        "schedule.milestone_steps": inferred(
            "section 7: 40,000 iterations to get to the first plateau; the second cut, at 60,000, is assumed"
        ),
    }
    return recipe.model_copy(
        update={
            "name": "sun_final",
            "summary": "ResNet-34 with block (e), stochastic depth and heavy augmentation, 70 epochs",
            "paper": Paper(
                title=TITLE,
                authors="Lei Sun",
                section="7. Final Result, figure 13",
                reported={"top1_percent": 65.32},
            ),
            "provenance": {**recipe.provenance, **sources},
            "augment": POLICIES["sun_heavy"](),
            "model": recipe.model.model_copy(update={"block_order": "e"}),
            "schedule": recipe.schedule.model_copy(
                update={"steps": 70_000, "milestone_steps": (40_000, 60_000)}
            ),
        }
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
        paper=Paper(
            title=TITLE, authors="Lei Sun", section="3. Technical Approaches: described, not measured"
        ),
        provenance={
            "data.train_split": stated("section 3.1: 100,000 training images"),
            "model.name": inferred("the paper's own network; section 3 names ResNet-50, 101 and 152"),
            "model.stem": inferred("ImageNet's weights are those of a 7x7/2 stem with max pool"),
            "model.weights": stated("section 3: fine-tune pre-trained ResNets"),
            "augment": assumed("the flip of the improved model"),
            "optimizer.peak_lr": assumed(
                "a tenth of He et al.'s, the habit of fine-tuning; 0.1 for the head"
            ),
            "optimizer.momentum": assumed("0.9 is He et al.'s"),
            "optimizer.weight_decay": assumed("1e-4 is He et al.'s"),
            "stages": stated(
                "section 3: the new layer exclusively, and then the full network; the rates of the layers "
                "below the new one, a half, a fifth and a tenth of its, are ours"
            ),
            "schedule.batch_size": stated("section 3.1: mini-batches of 100"),
            "schedule.epochs": stated("section 3: a couple of epochs each"),
            "schedule.shape": assumed("down to zero along a line"),
            "schedule.warmup_fraction": assumed("a tenth of each stage"),
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
