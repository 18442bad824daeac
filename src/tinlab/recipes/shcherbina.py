"""Anna Shcherbina, "Tiny ImageNet Challenge", Stanford CS231n project report, 2016."""

from __future__ import annotations

from typing import Any

from tinlab.recipe import Compute, Data, Model, Optimizer, Paper, Recipe, Schedule, Stage
from tinlab.recipes.provenance import assumed, inferred, stated

TITLE = "Tiny ImageNet Challenge"
LAYERS = 11
"""Nine convolutions, the hidden fully connected layer, and the classifier."""


def shcherbina_layerwise() -> Recipe:
    """convnet9, one layer after another: each stage lets one more layer learn, the ones below go on.

    Layers above the one that was let go last keep the values they were drawn with, the classifier's among
    them; their batch norms go on normalising by the batch. She reports that it learns the training set by
    heart and nothing else.
    """
    names = [f"conv{number}" for number in range(1, 10)] + ["fc1", "classifier"]
    return Recipe(
        name="shcherbina_layerwise",
        summary="Nine-layer ConvNet whose layers are trained one at a time, from below",
        paper=Paper(
            title=TITLE,
            authors="Anna Shcherbina",
            section="2.3.1 Individual pre-training of layers, figure 3 and table 1",
            reported={
                "train_top1_percent": 98.3,
                "val_top1_percent": 3.8,
                "test_top1_percent": 7.6,
                "train_loss": 0.135,
            },
        ),
        provenance={
            "data.train_split": assumed("she trains on all training images"),
            "data.normalise": stated("section 2.1: mean subtracted, divided by the standard deviation"),
            "augment": inferred("measured 'prior to the addition of dropout and regularization'"),
            "model.name": stated("section 2.2.1: the network of assignment 3"),
            "model.dropout": stated("section 2.3.1: before dropout was added"),
            "optimizer.name": stated("section 2.2.1: plain SGD"),
            "optimizer.peak_lr": stated("section 2.3.1: the default rate, 1e-1"),
            "optimizer.momentum": stated("section 2.2.1: without momentum"),
            "optimizer.weight_decay": stated("section 2.3.1: before regularisation was added"),
            "optimizer.frozen_statistics": inferred("a rate of 0 does not stop Keras' batch norms"),
            "schedule.batch_size": assumed("she gives none"),
            "schedule.epochs": assumed("she gives none; one for each stage"),
            "compute.precision": assumed("Keras computed in float32; bf16 is ours"),
        },
        data=Data(train_split="train+tune"),
        model=Model(name="convnet9", dropout=(0, 0, 0)),
        optimizer=Optimizer(peak_lr=0.1, momentum=0.0, weight_decay=0.0, frozen_statistics=False),
        schedule=Schedule(epochs=1, batch_size=128, shape="constant"),
        compute=Compute(precision="bf16"),
        stages=tuple(
            Stage(name=names[top], changes={"optimizer.layer_rates": _still_above(top)})
            for top in range(LAYERS)
        ),
    )


def _still_above(top: int) -> list[dict[str, Any]]:
    """Rates of 0 for the layers after layer `top`, counted from 0, with their batch norms."""
    names = [f"conv{number}" for number in range(1, 10)] + ["fc1", "classifier"]
    norms = [f"bn{number}" for number in range(1, 11)]
    return [{"layers": name, "factor": 0} for name in [*names[top + 1 :], *norms[top + 1 :]]]
