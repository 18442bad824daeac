"""Yinbin Ma, "Tiny ImageNet Challenge", Stanford CS231n project poster, 2017."""

from __future__ import annotations

from tinlab.recipe import POLICIES, Compute, Data, Flip, Model, Optimizer, Paper, Recipe, Schedule
from tinlab.recipes.provenance import assumed, inferred, stated

TITLE = "Tiny ImageNet Challenge"


def ma_overfit() -> Recipe:
    """Learn 100 images by heart, from scratch: a check that a network can be trained at all.

    All 100 images in every step, at He et al.'s rate of 0.1. In evaluation mode such a network looks as if it
    had learnt nothing for the first ten steps or more: batch norm's running averages have a memory of ten.
    """
    return Recipe(
        name="ma_overfit",
        summary="ResNet-18 from scratch on 100 images: learns them by heart",
        paper=Paper(title=TITLE, authors="Yinbin Ma", section="Overfit a small dataset"),
        provenance={
            "data.images": stated("a small dataset of 100; which is assumed, one of each of 100 classes"),
            "model.name": stated("ResNet-18"),
            "optimizer.peak_lr": assumed("0.1 is He et al.'s; the poster's own setting failed"),
            "optimizer.momentum": assumed("0.9 is He et al.'s"),
            "optimizer.weight_decay": assumed("none, since the images are to be learned by heart"),
            "schedule.batch_size": assumed("the poster gives none; all images at once"),
            "schedule.steps": assumed("the poster's filters are shown after 30 iterations; twice as many"),
            "schedule.shape": assumed("too short to cut the rate"),
            "compute.precision": assumed("float32 then; bf16 is ours"),
        },
        data=Data(train_split="train", images=100),
        model=Model(name="resnet18"),
        optimizer=Optimizer(name="sgd", peak_lr=0.1, momentum=0.9, weight_decay=0.0),
        schedule=Schedule(steps=60, batch_size=100, shape="constant"),
        compute=Compute(precision="bf16"),
        evaluate_every_epochs=1000,
    )


def ma_overfit_failing() -> Recipe:
    """The same at a habit of fine-tuning, batches of 10 at a rate of 0.001, in 30 iterations: it fails.

    The rate is small and the steps are few: three times over the images, each time moving the weights by a
    hundredth of what ma_overfit's rate would. Weights that ImageNet has put in place may need no more than
    that; random ones are still random.
    """
    recipe = ma_overfit()
    changes = {
        "optimizer.peak_lr": assumed("the poster gives none; 0.001 with momentum 0.9 is fine-tuning's habit"),
        "schedule.batch_size": assumed("the poster gives none"),
        "schedule.steps": inferred("the poster's filters are shown after 30 iterations"),
    }
    return recipe.model_copy(
        update={
            "name": "ma_overfit_failing",
            "summary": "ResNet-18 from scratch on 100 images, set as for fine-tuning: fails",
            "provenance": {**recipe.provenance, **changes},
            "optimizer": recipe.optimizer.model_copy(update={"peak_lr": 0.001}),
            "schedule": Schedule(steps=30, batch_size=10, shape="constant"),
        }
    )


def ma_overfit_pretrained() -> Recipe:
    """The failing setting from ImageNet's weights: it starts from a low accuracy and converges fast.

    The network differs in nothing but its weights from the one that fails.
    """
    recipe = ma_overfit_failing()
    changes = {"model.weights": stated("Overfit a small dataset: from the pre-trained model")}
    return recipe.model_copy(
        update={
            "name": "ma_overfit_pretrained",
            "summary": "ResNet-18 from ImageNet's weights on 100 images: converges fast",
            "provenance": {**recipe.provenance, **changes},
            "model": recipe.model.model_copy(update={"weights": "imagenet"}),
        }
    )


def ma_finetune() -> Recipe:
    """The poster's result: ResNet-18 from ImageNet's weights, on 5,000 of the training images.

    Rates, length and flips are those of PyTorch's transfer-learning tutorial of that year, with batches that
    are larger and a rate that is so too. Tiny ImageNet's images come from ImageNet: the network has seen val.
    """
    return Recipe(
        name="ma_finetune",
        summary="ResNet-18 from ImageNet's weights, trained on 5,000 images",
        paper=Paper(
            title=TITLE,
            authors="Yinbin Ma",
            section="Train the residual network",
            reported={"test_top1_percent": 46.1},
        ),
        provenance={
            "data.train_split": stated("images from the training set"),
            "data.images": stated("5000 images from the training set; which ones is assumed, 25 a class"),
            "data.normalise": assumed("what ImageNet's weights were trained with, from this set's moments"),
            "augment": assumed("the flip of the tutorial"),
            "model.name": stated("ResNet-18"),
            "model.stem": inferred("ImageNet's weights are those of a 7x7/2 stem with max pool"),
            "model.weights": stated("the pre-trained model for ImageNet, its last layer of 200"),
            "optimizer.peak_lr": assumed(
                "the tutorial's 0.001 for batches of 4, ten times for 16 times as many"
            ),
            "optimizer.momentum": assumed("the tutorial's 0.9"),
            "optimizer.weight_decay": assumed("the tutorial's: none"),
            "schedule.batch_size": assumed("the poster gives none"),
            "schedule.epochs": assumed("the tutorial's 25"),
            "schedule.shape": assumed("the tutorial's: a tenth every 7 epochs"),
            "schedule.milestone_steps": assumed("the tutorial's: a tenth every 7 epochs"),
            "compute.precision": assumed("float32 then; bf16 is ours"),
        },
        data=Data(train_split="train+tune", images=5000),
        augment=(Flip(),),
        model=Model(name="resnet18", stem="imagenet", weights="imagenet"),
        optimizer=Optimizer(peak_lr=0.01, momentum=0.9, weight_decay=0.0),
        schedule=Schedule(epochs=25, batch_size=64, shape="step", milestone_steps=(547, 1094, 1641)),
        compute=Compute(precision="bf16"),
    )


def ma_scratch() -> Recipe:
    """ResNet-18 from scratch on all training images: "in progress" on the poster.

    A third of PyTorch's ImageNet example: 30 epochs, the rate cut to a tenth after each 10.
    """
    return Recipe(
        name="ma_scratch",
        summary="ResNet-18 from scratch, 30 epochs",
        paper=Paper(
            title=TITLE, authors="Yinbin Ma", section="Train the residual network: in progress there"
        ),
        provenance={
            "data.train_split": assumed("the poster's 5,000 images were for its pre-trained network"),
            "augment": assumed("the example's random boxes and flips; boxes are larger, for 64 pixels"),
            "model.name": stated("ResNet-18"),
            "model.stem": assumed("as for the pre-trained network; the configuration is a picture"),
            "optimizer.peak_lr": assumed("the example's 0.1"),
            "optimizer.momentum": assumed("the example's 0.9"),
            "optimizer.weight_decay": assumed("the example's 1e-4"),
            "schedule.batch_size": assumed("half of the example's 256"),
            "schedule.epochs": assumed("a third of the example's 90"),
            "schedule.shape": assumed("the example's: a tenth after each third"),
            "schedule.milestone_steps": assumed("after each third, as in the example"),
            "compute.precision": assumed("float32 then; bf16 is ours"),
        },
        data=Data(train_split="train+tune"),
        augment=POLICIES["random_resized_crop"](),
        model=Model(name="resnet18", stem="imagenet"),
        optimizer=Optimizer(peak_lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=Schedule(epochs=30, batch_size=128, shape="step", milestone_steps=(7_812, 15_625)),
        compute=Compute(precision="bf16"),
    )
