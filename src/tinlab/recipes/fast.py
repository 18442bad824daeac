"""Recipes for the shortest time to a stated accuracy on the official validation set."""

from __future__ import annotations

from tinlab.recipe import (
    ChannelPruning,
    Compute,
    Cutmix,
    Cutout,
    Data,
    Flip,
    Loss,
    MagnitudePruning,
    Model,
    Optimizer,
    RandomResizedCrop,
    Recipe,
    Schedule,
    Stage,
)


def fast_cpu() -> Recipe:
    """Two CPU cores, under 25 minutes: ResNet-18 of width 32 behind a 3x3/2 stem, sizes 32 to 56, Muon.

    Most of the steps are taken on small images, where a step costs half of what it does at 56 pixels, and the
    last ones at 56, which is what val is resized to: measured at 64 the same network loses 9 points. Width 32
    takes about half of width 48's time an image on AVX-512, and in so few minutes the narrower network is the
    better one. Muon makes more of each step than SGD; its iterations take as long for any batch, so the batch
    is 256 and they are three instead of five. LOG.md has what was tried. No shortcut passes over activations,
    every block starts as the identity, weights alone are decayed, and the rate falls linearly to zero.
    """
    return Recipe(
        name="fast_cpu",
        summary="ResNet-18 of base width 32, growing images and Muon, for two CPU cores",
        data=Data(
            train_split="train+tune", image_sizes=(32, 32, 32, 32, 32, 40, 40, 48, 56, 56), measured_size=56
        ),
        augment=(Flip(alternate=True), RandomResizedCrop(area=(0.6, 1.0))),
        model=Model(name="resnet18", width=32, stem="patch", shortcut="average_pool", zero_last_bn=True),
        loss=Loss(label_smoothing=0.1),
        optimizer=Optimizer(
            name="muon",
            peak_lr=0.014,
            rest_lr=0.003,
            momentum=0.95,
            nesterov=True,
            newton_schulz_steps=3,
            weight_decay=0.1,
            decay_weights_only=True,
        ),
        schedule=Schedule(epochs=10, batch_size=256, shape="linear", warmup_fraction=0.2),
    )


def fast_cpu_56() -> Recipe:
    """Two CPU cores, under 40 minutes: fast_cpu for 21 epochs with stronger crops. 57.4% of val, where
    Sun's improved network has 56.3 (his conclusion), 57 (section 5.3) or 60 (his poster).

    With crops from 60% of the area on the network of fast_cpu knows 73% of its training images after 22
    epochs and 55.1% of val; from 35% on it keeps learning. Such crops magnify what they show, so val is shown
    larger than the last images, and the batch norms' statistics are taken anew for it (Touvron et al. 2019):
    57.5% at 64 pixels where 56 have 55.5 (LOG.md, "Stronger crops want val as it is"). Half of the steps are
    at 40 pixels, since at 32 such crops leave little to see.

    Assumed: where the sizes change, and that 32 pixels would have cost more than they save.
    """
    base = fast_cpu()
    return base.model_copy(
        update={
            "name": "fast_cpu_56",
            "summary": "fast_cpu for 21 epochs, stronger crops and val at 64 pixels",
            "data": base.data.model_copy(
                update={
                    "image_sizes": (40, 40, 40, 40, 40, 48, 48, 48, 56, 56),
                    "measured_size": None,
                    "precise_bn_images": 2500,
                }
            ),
            "augment": (Flip(alternate=True), RandomResizedCrop(area=(0.35, 1.0))),
            "schedule": base.schedule.model_copy(update={"epochs": 21}),
        }
    )


def fast_cpu_65() -> Recipe:
    """Two CPU cores, under six hours: fast_cpu_56 at twice the width, for 52 epochs, half of the images mixed
    by CutMix. Aim: the 65.32% of Sun's final network, of which no split is named. Reached: 63.7% of val, in
    5.3 hours (LOG.md).

    The count. The network takes 240, 313 and 457 million multiply-adds an image at 40, 48 and 56 pixels, 305
    million on average over the steps: four times those of fast_cpu_56, and 9.9 times as many in all. By the
    speeds of its steps (LOG.md, "A faster host") they are 5.6 hours.

    Evidence. Two and a half times the minutes brought fast_cpu's errors from 47.5 to 42.6% of val; were it so
    again for each factor of 2.5, ten times as many would leave 32.5%. Width and epochs grow together, since a
    longer training alone learns the training images by heart (LOG.md, "Twice the epochs"). CutMix brings
    ResNet-18 from 61.7 to 65.5% in 400 epochs (Westlake-AI/openmixup), but costs points where a network has
    little time to learn (docs/what-helps.md, on 50 images a class): half of the images are mixed.

    Assumed: that the sizes' shares, the rates and the decay of 21 epochs serve 52 as well.
    """
    base = fast_cpu_56()
    return base.model_copy(
        update={
            "name": "fast_cpu_65",
            "summary": "fast_cpu_56 at width 64 for 52 epochs, half of the images mixed by CutMix",
            "augment": (*base.augment, Cutmix(probability=0.5)),
            "model": base.model.model_copy(update={"width": 64}),
            "schedule": base.schedule.model_copy(update={"epochs": 52}),
        }
    )


def fast_gpu() -> Recipe:
    """One data-centre GPU, under a minute of training: ResNet-18 of width 96 behind a 3x3/2 stem, sizes 32 to
    64. Measured by `python benchmarks/fast.py --recipe fast_gpu`; not yet run on such a GPU.

    The count. The network takes 312, 702 and 1,249 million multiply-adds an image at 32, 48 and 64 pixels,
    693 million on average over the steps. 30 epochs of 100,000 images, forward and twice as much backward,
    two operations a multiply-add: 1.25e16 operations. An H200 multiplies matrices of random bf16 numbers at
    some 790 TFLOP/s, which makes 15.8 seconds: no training by this recipe is faster there, and one in 60
    seconds reaches 26% of that limit.

    Evidence. The stem, growing images, average-pooled shortcuts, blocks that begin as the identity and the
    rate's shape are fast_cpu's: at width 48 they reach 51.1% of val after 8 epochs (LOG.md) and reached 56.1%
    after 14 in a first probe. Weight decay of 5e-4 is the strongest lever known here: ResNet-18 gets 65.5%
    with it (cs-giung/giung2-jax, 100 epochs, 90,000 images) and 61.7% with 1e-4 (Westlake-AI/openmixup, 400
    epochs). A batch of 1,024 with the rate scaled along, since small batches of small images leave a GPU
    idle; flips that alternate and a small cutout are airbench's (Jordan 2024). The last quarter of the steps
    is at the full size: without it val is measured at a size that was never trained on. Of what was seen in
    crops val shows the whole, and so smaller (Touvron et al. 2019, "Fixing the train-test resolution
    discrepancy"); batch norms' statistics taken anew over 2,500 plain images brought two networks that ended
    at 64 pixels 1.8 and 1.9 points (LOG.md).

    Assumed: width 96 and 30 epochs, as what is left to find is which of both buys more; crops of 50% of the
    area and more. Left out, as nothing here shows that they pay in so short a run whose rate ends at zero: a
    moving average of the weights, Lookahead, mixing. Muon does pay on a CPU (LOG.md: 48.1% of val for SGD's
    44.6 after nine epochs of 100 classes); whether it does where its many small products wait for the host
    is the first thing to try on a GPU, as --set optimizer.name=muon with the values of fast_cpu.
    """
    return Recipe(
        name="fast_gpu",
        summary="ResNet-18 of base width 96, growing images, for one data-centre GPU",
        data=Data(
            train_split="train+tune",
            image_sizes=(32, 32, 32, 48, 48, 48, 64, 64),
            precise_bn_images=2500,
        ),
        augment=(
            Flip(alternate=True),
            RandomResizedCrop(area=(0.5, 1.0)),
            Cutout(side_fraction=(0.25, 0.25)),
        ),
        model=Model(name="resnet18", width=96, stem="patch", shortcut="average_pool", zero_last_bn=True),
        loss=Loss(label_smoothing=0.1),
        optimizer=Optimizer(peak_lr=1.6, nesterov=True, weight_decay=5e-4, decay_weights_only=True),
        schedule=Schedule(epochs=30, batch_size=1024, shape="linear", warmup_fraction=0.2),
        compute=Compute(compile=True),
        evaluate_every_epochs=2,
    )


def fast_cpu_pruned() -> Recipe:
    """Prune and retrain: give `model.weights` the folder of a run of fast_cpu.

    Two rounds of taking out channels, which make the network smaller and faster, retrained for half an epoch
    and for a whole one at a fifth of the rate; then three of setting the smallest weights to zero (Han et al.
    2015), two of half an epoch and the last of a whole one, until the rate is zero.
    """
    half = {"schedule.epochs": 0.5, "schedule.shape": "constant"}
    base = fast_cpu()
    return base.model_copy(
        update={
            "name": "fast_cpu_pruned",
            "summary": "fast_cpu's network, pruned to half its channels and a tenth of their weights",
            "data": base.data.model_copy(update={"image_sizes": (base.data.measured_size,)}),
            "optimizer": base.optimizer.model_copy(update=base.optimizer.rates_times(0.2)),
            "schedule": Schedule(epochs=1, batch_size=128, shape="linear"),
            "stages": (
                Stage(name="channels-1", prune=ChannelPruning(share=0.3), changes=half),
                Stage(name="channels-2", prune=ChannelPruning(share=0.3)),
                Stage(name="weights-1", prune=MagnitudePruning(share=0.6), changes=half),
                Stage(name="weights-2", prune=MagnitudePruning(share=0.8), changes=half),
                Stage(name="weights-3", prune=MagnitudePruning(share=0.9)),
            ),
        }
    )
