"""Yinbin Ma, "Tiny ImageNet Challenge", Stanford CS231n project poster, 2017."""

from __future__ import annotations

from tinlab.recipe import Compute, Data, Model, Optimizer, Paper, Provenance, Recipe, Schedule

TITLE = "Tiny ImageNet Challenge"


def ma_overfit_failing() -> Recipe:
    """Overfit 100 images from scratch, at a rate for fine-tuning: it does not work, as on the poster.

    The rate is the reason. Batch norm makes a layer's output independent of the length of its weights, so a
    step turns them by about the rate over their squared length; 0.001 moves weights that ImageNet has put in
    place, and leaves random ones where they are.
    """
    return Recipe(
        name="ma_overfit_failing",
        summary="ResNet-18 from scratch on 100 images at a fine-tuning rate: fails",
        paper=Paper(title=TITLE, authors="Yinbin Ma", section="Overfit a small dataset, from scratch"),
        provenance={
            "data.images": Provenance(kind="stated", why="a small dataset of 100 images"),
            "model.name": Provenance(kind="stated", why="ResNet-18"),
            "optimizer.peak_lr": Provenance(
                kind="assumed", why="no rate is given; 0.001 with momentum 0.9 is the habit in fine-tuning"
            ),
            "schedule.steps": Provenance(kind="assumed", why="not given; as many as ma_overfit needs"),
        },
        data=Data(train_split="train", images=100),
        model=Model(name="resnet18"),
        optimizer=Optimizer(name="sgd", peak_lr=0.001, momentum=0.9, weight_decay=0.0),
        schedule=Schedule(steps=60, batch_size=100, shape="constant"),
        compute=Compute(precision="bf16"),
        evaluate_every_epochs=1_000_000,
    )
