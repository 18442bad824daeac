"""Recipes for the highest accuracy from scratch at 64x64, without other images.

The number is the last epoch's on val, which selects nothing. All are meant to be trained in pieces: `tinlab
train best --stop-after 10`, and then `tinlab train --resume RUN --stop-after 10` until it ends with code 0.
Their length is `schedule.epochs`; `--set schedule.epochs=60` is a fifth of it, to be reported as such.
"""

from __future__ import annotations

from tinlab.recipe import (
    POLICIES,
    Compute,
    Cutmix,
    Data,
    Flip,
    Loss,
    Mixup,
    Model,
    Optimizer,
    RandomErasing,
    RandomResizedCrop,
    Recipe,
    Schedule,
)


def best() -> Recipe:
    """TriNeXt, large, at the resolutions of 64, 32 and 16 pixels, 300 epochs under heavy regularisation. Aim:
    76% of val. Not yet run.

    Evidence. The highest known from scratch is CPolyNeXt-LR's 74.0%, 5.5 million parameters, 300 epochs
    (jjwang8/PolyNeXt; its best epoch on val). TriNeXt has that network's three stages and resolutions (the
    stem `small`), twice its parameters, and attention in the last stage (see tinlab.models.trinext).
    Regularisation is what such networks are trained with from scratch, in DeiT (Touvron et al. 2021) and
    ConvNeXt (Liu et al. 2022): AdamW, weight decay 0.05, RandAugment, mixup 0.8 and CutMix 1.0 on half of the
    images each, random erasing of a quarter of them, label smoothing 0.1, stochastic depth, a cosine to zero
    after a warm-up, and a moving average of the weights. On Tiny ImageNet itself mixing brings ResNet-18 from
    61.7 to 65.5% and its learnt forms to 68.9 and 69.2% (Westlake-AI/openmixup; AdAutoMix). Growing images
    cost no accuracy and save time in EfficientNetV2 (Tan and Le 2021).

    Assumed: every value that is not named above, such as the rate of 2e-3 in batches of 512, survival of 0.7,
    boxes from 35% of the area, half of the steps below the full size. On a very short budget this network is
    behind ResNet-18 (LOG.md, "TriNeXt on a small budget").

    Count: 3,918 million multiply-adds an image on average, 7.1e17 operations: 15 minutes at an H200's 790
    TFLOP/s. Its layers move many bytes for each operation, so that several times as long is to be expected.
    """
    return Recipe(
        name="best",
        summary="TriNeXt, large, 300 epochs, for the highest accuracy of one network",
        data=Data(train_split="train+tune", image_sizes=(32, 48, 64, 64)),
        augment=(
            *POLICIES["rand_augment"](),
            RandomResizedCrop(area=(0.35, 1.0)),
            RandomErasing(probability=0.25),
            Mixup(alpha=0.8, probability=0.5),
            Cutmix(alpha=1.0, probability=0.5),
        ),
        model=Model(name="trinext_large", stem="small", final_survival=0.7),
        loss=Loss(label_smoothing=0.1),
        optimizer=Optimizer(
            name="adamw",
            peak_lr=2e-3,
            weight_decay=0.05,
            decay_weights_only=True,
            clip_norm=1.0,
            ema_decay=0.9998,
        ),
        schedule=Schedule(epochs=300, batch_size=512, shape="cosine", warmup_fraction=0.05),
        compute=Compute(compile=True),
        evaluate_every_epochs=10,
    )


def best_resnet18() -> Recipe:
    """ResNet-18 as the literature on Tiny ImageNet has it, 3x3/1 stem and width 64, 300 epochs. Aim: 70% of
    val. Not yet run.

    Evidence. The highest known is 69.19% (AdAutoMix, 400 epochs, weight decay 1e-4), 68.9% SAMix, 65.5%
    CutMix, 61.7% plain (Westlake-AI/openmixup, the same setting); with weight decay 5e-4 the plain network
    gets 65.5% in 100 epochs of 90,000 images (cs-giung/giung2-jax), 3.8 points above the other plain one.
    Both levers together have not been published; label smoothing and the average of the weights are added,
    and batch norms' statistics over plain images in the end, which fast_gpu gives the evidence for.

    Assumed: shares and strengths of mixing, boxes from 35% of the area, growing images (see `best`), the rate
    of 0.4 in batches of 512.

    Count: 1,562 million multiply-adds an image on average, 2.8e17 operations: 5.9 minutes at an H200's 790
    TFLOP/s, and 24 at a quarter of that.
    """
    return Recipe(
        name="best_resnet18",
        summary="ResNet-18 with a 3x3 stem, 300 epochs, for its highest accuracy",
        data=Data(train_split="train+tune", image_sizes=(32, 48, 64, 64), precise_bn_images=2500),
        augment=(
            Flip(),
            RandomResizedCrop(area=(0.35, 1.0)),
            Mixup(alpha=0.2, probability=0.3),
            Cutmix(alpha=1.0, probability=0.5),
        ),
        model=Model(name="resnet18", width=64, stem="small", zero_last_bn=True),
        loss=Loss(label_smoothing=0.1),
        optimizer=Optimizer(
            peak_lr=0.4, nesterov=True, weight_decay=5e-4, decay_weights_only=True, ema_decay=0.9995
        ),
        schedule=Schedule(epochs=300, batch_size=512, shape="cosine", warmup_fraction=0.05),
        compute=Compute(compile=True),
        evaluate_every_epochs=10,
    )
