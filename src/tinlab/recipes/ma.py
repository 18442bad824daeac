"""Yinbin Ma, "Tiny ImageNet Challenge", Stanford CS231n project poster, 2017."""

from __future__ import annotations

from tinlab.recipe import Compute, Data, Model, Optimizer, Paper, Recipe, Schedule
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
            "data.images": stated("a small dataset of 100 images"),
            "model.name": stated("ResNet-18"),
            "optimizer.peak_lr": assumed("0.1 is He et al.'s; the poster's own setting failed"),
            "schedule.batch_size": assumed("the poster gives none; all images at once"),
            "schedule.steps": assumed("the poster's filters are shown after 30 iterations; twice as many"),
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
    hundredth of what ma_overfit's rate would. Weights that ImageNet has put in place need no more than that;
    random ones are still random.
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
