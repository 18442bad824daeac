"""Hujia Yu, "Convolutional Neural Networks for Tiny ImageNet Classification", Stanford CS231n poster."""

from __future__ import annotations

from tinlab.recipe import (
    Compute,
    Data,
    Flip,
    Loss,
    Model,
    Optimizer,
    Paper,
    Provenance,
    RandomResizedCrop,
    Recipe,
    Schedule,
)
from tinlab.recipes.provenance import assumed, inferred, ours, stated

TITLE = "Convolutional Neural Networks for Tiny ImageNet Classification"

AUTHOR = "Hujia Yu"


def yu_baseline() -> Recipe:
    """The poster's small ConvNet, of which it gives nothing but the numbers.

    Its layers are those of the course's own network (see tinlab.models.yu), its training is assumed to be
    that of the poster's best network at a tenth of the rate, since it has no batch norm.
    """
    return _plain(
        "yu_baseline",
        "Small ConvNet, five epochs without augmentation",
        {"train_top1_percent": 65.40, "val_top1_percent": 54.40, "test_top1_percent": 43.04},
        assumed("the layers of the course's own network; the poster gives none"),
    )


def yu_alexnet() -> Recipe:
    """The reduced AlexNet of the poster's table 2, which it calls badly initialised or tuned."""
    return _plain(
        "yu_alexnet",
        "Reduced AlexNet, five epochs without augmentation",
        {"train_top1_percent": 43.2, "val_top1_percent": 43.65, "test_top1_percent": 33.40},
        stated("table 2, layer by layer; 3x3 filters, max pools and the place of the ReLUs are assumed"),
    )


def yu_vgg() -> Recipe:
    """The reduced VGGNet, which the poster calls badly initialised or tuned, and does not describe."""
    return _plain(
        "yu_vgg",
        "Reduced VGGNet, five epochs without augmentation",
        {"train_top1_percent": 54.62, "val_top1_percent": 45.88, "test_top1_percent": 39.40},
        assumed("three of VGG's stages and table 2's fully connected layers; the poster gives none"),
    )


def _plain(name: str, summary: str, reported: dict[str, float], network: Provenance) -> Recipe:
    """A network without batch norm, or with little: yu_resnet20's training at a tenth of its rate."""
    recipe = yu_resnet20()
    sources = {
        "model.name": network,
        "optimizer.name": assumed("as stated for ResNet-20"),
        "optimizer.peak_lr": assumed("AlexNet's and VGG's 0.01; 0.1 is stated for ResNet-20 alone"),
        "optimizer.momentum": assumed("as stated for ResNet-20"),
        "optimizer.weight_decay": assumed("as stated for ResNet-20"),
        "schedule.epochs": assumed("as stated for ResNet-20; an epoch took 10 hours or more"),
        "schedule.batch_size": assumed("as stated for ResNet-20"),
        "schedule.shape": assumed("as for ResNet-20"),
    }
    return recipe.model_copy(
        update={
            "name": name,
            "summary": summary,
            "paper": Paper(title=TITLE, authors=AUTHOR, section="Results, table 1", reported=reported),
            "provenance": {**recipe.provenance, **sources},
            "model": Model(name=name),
            "optimizer": recipe.optimizer.model_copy(update={"peak_lr": 0.01}),
        }
    )


def yu_inception() -> Recipe:
    """GoogLeNet, retrained from ImageNet's weights; the whole network, since it overfits.

    At 64x64 pixels, where the poster's tool would have enlarged the images. Tiny ImageNet's images come from
    ImageNet: the network has seen val.
    """
    return Recipe(
        name="yu_inception",
        summary="GoogLeNet retrained from ImageNet's weights",
        paper=Paper(
            title=TITLE,
            authors=AUTHOR,
            section="Results, table 1",
            reported={"train_top1_percent": 76.03, "val_top1_percent": 50.43, "test_top1_percent": 49.40},
        ),
        provenance={
            "data.train_split": stated("dataset: 500 training images of each of 200 classes"),
            "data.normalise": assumed("the mean is stated; ImageNet's weights expect the deviation too"),
            "augment": inferred("none is named"),
            "model.name": stated("introduction: the original GoogLeNet Inception model"),
            "model.weights": stated(
                "introduction: transfer learning by retraining; that the whole network is retrained is "
                "inferred from its overfitting, and 64 pixels are ours: the poster's tool enlarges images"
            ),
            "optimizer.peak_lr": assumed("a tenth of the rate from scratch, the habit of fine-tuning"),
            "optimizer.momentum": assumed("as stated for ResNet-20"),
            "optimizer.weight_decay": assumed("as stated for ResNet-20"),
            "schedule.epochs": assumed("as stated for ResNet-20"),
            "schedule.batch_size": assumed("half of what is stated for ResNet-20"),
            "schedule.shape": assumed("down to zero along a line"),
            "schedule.warmup_fraction": assumed("ours"),
            "compute.precision": assumed("float32 then; bf16 is ours"),
        },
        data=Data(train_split="train+tune", normalise="mean_std"),
        model=Model(name="googlenet", weights="imagenet"),
        optimizer=Optimizer(peak_lr=0.01, momentum=0.9, weight_decay=1e-4),
        schedule=Schedule(epochs=5, batch_size=128, shape="linear", warmup_fraction=0.1),
        compute=Compute(precision="bf16"),
    )


def yu_squeezenet() -> Recipe:
    """SqueezeNet with its fire modules, from scratch: described on the poster, without a number.

    Trained as Iandola et al. train it, a rate that falls along a line and a small weight decay, with half of
    their rate for half of their batch, and with a warm-up.
    """
    return Recipe(
        name="yu_squeezenet",
        summary="SqueezeNet from scratch, ten epochs",
        paper=Paper(title=TITLE, authors=AUTHOR, section="Approaches, SqueezeNet: described, not measured"),
        provenance={
            "data.train_split": stated("dataset: 500 training images of each of 200 classes"),
            "data.normalise": stated("dataset: images are normalised by subtracting the mean"),
            "augment": inferred("none is named"),
            "model.name": stated("approaches: SqueezeNet, of fire modules; version 1.0 is assumed"),
            "optimizer.peak_lr": assumed("half of Iandola et al.'s 0.04, for half of their batch"),
            "optimizer.weight_decay": assumed("Iandola et al.'s 2e-4"),
            "schedule.batch_size": assumed("as stated for ResNet-20"),
            "schedule.epochs": assumed("twice what is stated for ResNet-20: it has no batch norm"),
            "schedule.shape": assumed("Iandola et al.'s"),
            "schedule.warmup_fraction": assumed("ours"),
            "compute.precision": assumed("float32 then; bf16 is ours"),
        },
        data=Data(train_split="train+tune", normalise="mean"),
        model=Model(name="squeezenet"),
        optimizer=Optimizer(peak_lr=0.02, momentum=0.9, weight_decay=2e-4),
        schedule=Schedule(epochs=10, batch_size=256, shape="linear", warmup_fraction=0.05),
        compute=Compute(precision="bf16"),
    )


def yu_resnet20() -> Recipe:
    """The poster's best network: three stages of bottlenecks, five epochs.

    It gives 54.40% of val and 55.40% of test in its table, and a test error of 44.60% in its text.
    """
    return Recipe(
        name="yu_resnet20",
        summary="ResNet-20 of bottlenecks, five epochs without augmentation",
        paper=Paper(
            title=TITLE,
            authors=AUTHOR,
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


def yu_tuned() -> Recipe:
    """The poster's future direction, better hyper-parameters and more fine-tuning: its best network and its
    five epochs, trained as the field trains small networks today.

    Every value is chosen before the first run and none is searched for, so that val selects nothing.
    """
    recipe = yu_resnet20()
    sources = {
        "data.normalise": ours("divided by the standard deviation too, as is usual"),
        "augment": ours("flips, and boxes of at least 60% of the area: mild, for five epochs"),
        "model.zero_last_bn": ours("each block starts as the identity (Goyal et al. 2017)"),
        "loss.label_smoothing": ours("0.1 (Szegedy et al. 2016)"),
        "optimizer.peak_lr": ours("twice the poster's for half of its batch: batch norm, a warm-up, decay"),
        "optimizer.nesterov": ours("Nesterov's momentum"),
        "optimizer.weight_decay": ours("5e-4, usual for small images"),
        "optimizer.decay_weights_only": ours("no decay of biases and of batch norm (He et al. 2019)"),
        "schedule.batch_size": ours("half of the poster's: twice as many steps in five epochs"),
        "schedule.shape": ours("to zero along a line, so that the last steps are small ones"),
        "schedule.warmup_fraction": ours("the first fifth climbs to the peak"),
    }
    left_out = ("schedule.milestone_steps",)
    kept = {path: source for path, source in recipe.provenance.items() if path not in left_out}
    return recipe.model_copy(
        update={
            "name": "yu_tuned",
            "summary": "The poster's ResNet-20 in its five epochs, tuned as is usual today",
            "paper": Paper(title=TITLE, authors=AUTHOR, section="Future directions: not done there"),
            "provenance": {**kept, **sources},
            "data": Data(train_split="train+tune"),
            "augment": (Flip(), RandomResizedCrop(area=(0.6, 1.0))),
            "model": Model(name="yu_resnet20", zero_last_bn=True),
            "loss": Loss(label_smoothing=0.1),
            "optimizer": Optimizer(
                peak_lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_weights_only=True
            ),
            "schedule": Schedule(epochs=5, batch_size=128, shape="linear", warmup_fraction=0.2),
        }
    )
