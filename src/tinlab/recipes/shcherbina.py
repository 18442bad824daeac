"""Anna Shcherbina, "Tiny ImageNet Challenge", Stanford CS231n project report, 2016.

"Her code" is annashcherbina/cs231n_project on GitHub, which the report names as its source; where the two
differ, the report is followed. Batches of 128 are from there. Her nine-layer network began from the weights
that the course gave out, which were trained on 100 of Tiny ImageNet's classes and are no longer to be had;
here it begins from drawn ones (`--set model.weights=FILE` takes others).
"""

from __future__ import annotations

from typing import Any

from tinlab.recipe import (
    POLICIES,
    Compute,
    Data,
    DropConnect,
    HardClasses,
    Loss,
    MagnitudePruning,
    Model,
    Optimizer,
    Paper,
    Penalty,
    Recipe,
    Schedule,
    Stage,
    Xavier,
)
from tinlab.recipes.provenance import assumed, inferred, stated

TITLE = "Tiny ImageNet Challenge"
LAYERS = 11
"""Nine convolutions, the hidden fully connected layer, and the classifier."""
AUTHOR = "Anna Shcherbina"
BATCH = inferred("her code passes 128 to every training")


def shcherbina_convnet9() -> Recipe:
    """The nine-layer network of the course's third assignment with dropout, penalties and 265,000 images.

    Plain SGD at a constant 0.1 for 17 epochs, of the enlarged set. Departs: it begins from drawn weights, not
    from the assignment's, so that it has the same start as everything from scratch.
    """
    return Recipe(
        name="shcherbina_convnet9",
        summary="Nine-layer ConvNet with dropout, L1, L2 and fixed augmented copies, 17 epochs",
        paper=Paper(
            title=TITLE,
            authors=AUTHOR,
            section="2.2.1 Nine-layer network, table 2, figure 4",
            reported={"train_top1_percent": 98.8, "val_top1_percent": 45.5, "test_top1_percent": 42.3},
        ),
        provenance={
            "data.train_split": stated("section 2.1: 100,000 images before augmentation"),
            "data.normalise": stated("section 2: mean subtracted, divided by the standard deviation"),
            "augment": stated(
                "section 2.1: five operations, 265,000 images in all; departs: each on 33% of the images, "
                "since the 30% of the text make 250,000, and her code draws a third (266,665 in all)"
            ),
            "model.name": stated("section 2.2.1: the network of assignment 3"),
            "model.weights": stated("section 2.2.1: pretrained ones, which are gone; departs: none"),
            "model.dropout": stated("section 2.2.1: 0.25 and 0.25 after convolutions 3 and 6, 0.5 after FC"),
            "loss.penalties": stated("section 2.2.1: 1e-7 on convolution 1, 1e-5 on each dense layer"),
            "optimizer.name": stated("section 2.2.1: stochastic gradient descent"),
            "optimizer.peak_lr": stated("section 2.2.1: 1e-1 ended highest of five"),
            "optimizer.momentum": stated("section 2.2.1: removing momentum gave the highest accuracy"),
            "optimizer.weight_decay": inferred("the penalties stand in its place"),
            "schedule.batch_size": BATCH,
            "schedule.epochs": stated("section 2.2.1: 17 epochs"),
            "schedule.shape": stated("section 2.2.1: without decay"),
            "compute.precision": assumed("Keras computed in float32; bf16 is ours"),
        },
        data=Data(train_split="train+tune"),
        augment=POLICIES["shcherbina_fixed"](),
        model=Model(name="convnet9", dropout=(0.25, 0.25, 0.5)),
        loss=Loss(
            penalties=(
                Penalty(layers="conv1", l1=1e-7, l2=1e-7),
                Penalty(layers="fc1", l1=1e-5, l2=1e-5),
                Penalty(layers="classifier", l1=1e-5, l2=1e-5),
            )
        ),
        optimizer=Optimizer(peak_lr=0.1, momentum=0.0, weight_decay=0.0),
        schedule=Schedule(epochs=17, batch_size=128, shape="constant"),
        compute=Compute(precision="bf16"),
    )


def shcherbina_convnet9_plain() -> Recipe:
    """The same before its remedies: no dropout, no penalties, no augmentation. It learns by heart."""
    recipe = shcherbina_convnet9()
    sources = {
        "augment": stated("discussion: before data augmentation"),
        "model.dropout": stated("discussion: before dropout"),
        "loss.penalties": stated("discussion: before regularization"),
        "optimizer.weight_decay": stated("discussion: before regularization"),
        "schedule.epochs": assumed(
            "her one log without remedies has 12 epochs, but ends at 90.9% of the training images and 11.3% "
            "of val, not at the report's numbers"
        ),
    }
    return recipe.model_copy(
        update={
            "name": "shcherbina_convnet9_plain",
            "summary": "Nine-layer ConvNet without any remedy against overfitting, 12 epochs",
            "paper": Paper(
                title=TITLE,
                authors=AUTHOR,
                section="4. Discussion: the initial implementation",
                reported={"train_top1_percent": 98.0, "val_top1_percent": 13.1, "test_top1_percent": 10.5},
            ),
            "provenance": {**recipe.provenance, **sources},
            "augment": (),
            "model": Model(name="convnet9", dropout=(0, 0, 0)),
            "loss": Loss(),
            "schedule": recipe.schedule.model_copy(update={"epochs": 12}),
        }
    )


def shcherbina_vgglike() -> Recipe:
    """Keras' VGG-like example with dropout and penalties, from scratch, for 30 epochs."""
    recipe = shcherbina_convnet9()
    sources = {
        "model.name": stated("section 2.2.2: the VGG-like example of Keras' documentation"),
        "model.weights": stated("section 2.2.2: from scratch; there are no pretrained ones"),
        "model.dropout": stated("section 2.2.2: 0.25 after convolutions 2 and 4, 0.5 after the dense layer"),
        "loss.penalties": stated("section 2.2.2: 1e-6 on the first dense layer, 1e-5 on the second"),
        "augment": inferred("her code trains it on the same enlarged set"),
        "optimizer.name": stated("section 2.2.2: stochastic gradient descent"),
        "optimizer.peak_lr": stated("section 2.2.2: learning rate 1e-1"),
        "optimizer.momentum": inferred("her code has none"),
        "schedule.epochs": stated("section 2.2.2: 30 epochs (the discussion says 20)"),
        "schedule.shape": inferred("her code has no decay"),
    }
    return recipe.model_copy(
        update={
            "name": "shcherbina_vgglike",
            "summary": "Keras' VGG-like network from scratch, 30 epochs",
            "paper": Paper(
                title=TITLE,
                authors=AUTHOR,
                section="2.2.2 VGG-like network, table 2, figure 4",
                reported={"train_top1_percent": 48.8, "val_top1_percent": 28.8, "test_top1_percent": 23.7},
            ),
            "provenance": {**recipe.provenance, **sources},
            "model": Model(name="keras_vgg", dropout=(0.25, 0.25, 0.5)),
            "loss": Loss(
                penalties=(
                    Penalty(layers="fc1", l1=1e-6, l2=1e-6),
                    Penalty(layers="classifier", l1=1e-5, l2=1e-5),
                )
            ),
            "schedule": recipe.schedule.model_copy(update={"epochs": 30}),
        }
    )


def shcherbina_vgg16() -> Recipe:
    """VGG-16: ImageNet's convolutions, new fully connected layers, penalties that grow with the depth.

    Penalties are on weights and on activations, after the ReLU, as Keras adds them to a layer with one. The
    report gives one number a layer for both; her code has 1e-5 for the activations of the dense layers, which
    is what is taken. Tiny ImageNet's images come from ImageNet: the network has seen val.
    """
    recipe = shcherbina_convnet9()
    sources = {
        "model.name": stated("section 2.2.3: VGG-16"),
        "model.weights": stated("section 2.2.3: pretrained ones; torchvision's stand for the Caffe model's"),
        "model.fresh_layers": stated("section 2.2.3: those of the dense layers could not be used"),
        "model.init": stated("section 2.2.3: Glorot initialization of the dense layers"),
        "model.dropout": stated("section 2.2.3: 0.75 after both fully connected layers"),
        "loss.penalties": stated(
            "section 2.2.3, on weights and activations; 1e-5 for those of dense layers is her code's"
        ),
        "augment": inferred("her code trains it on the same enlarged set"),
        "optimizer.name": stated("section 2.2.3: stochastic gradient descent"),
        "optimizer.peak_lr": stated("section 2.2.3: 1e-3 was best of four"),
        "optimizer.momentum": stated("section 2.2.3: Nesterov momentum=0.9"),
        "optimizer.nesterov": stated("section 2.2.3: Nesterov momentum=0.9"),
        "schedule.epochs": stated("section 2.2.3: 6 epochs"),
        "schedule.shape": inferred("Keras' decay is the rate over 1 + decay t"),
        "schedule.decay": stated("section 2.2.3: decay=1e-6"),
    }
    convolutions = (("features.24", "features.25", 1e-7), ("features.26", "features.27", 1e-6),
                    ("features.28", "features.29", 1e-5))  # fmt: skip
    penalties = [
        Penalty(layers=layer, on=on, l1=strength, l2=strength)
        for weighted, active, strength in convolutions
        for layer, on in ((weighted, "weights"), (active, "activations"))
    ]
    penalties += [
        Penalty(layers="classifier.0", l1=1e-4, l2=1e-5),
        Penalty(layers="classifier.1", on="activations", l1=1e-5, l2=1e-5),
        Penalty(layers="classifier.3", l1=1e-4, l2=1e-4),
        Penalty(layers="classifier.4", on="activations", l1=1e-5, l2=1e-5),
    ]
    return recipe.model_copy(
        update={
            "name": "shcherbina_vgg16",
            "summary": "VGG-16 from ImageNet's convolutions, with L1 and L2 on weights and activations",
            "paper": Paper(
                title=TITLE,
                authors=AUTHOR,
                section="2.2.3 VGG-16, table 2, figure 4",
                reported={
                    "train_top1_percent": 76.0,
                    "val_top1_percent": 53.5,
                    "test_top1_percent": 49.4,
                    "abstract_test_top1_percent": 47.6,
                    "section_5_train_top1_percent": 98.0,
                },
            ),
            "provenance": {**recipe.provenance, **sources},
            "model": Model(
                name="vgg16",
                dropout=(0.75, 0.75),
                init=Xavier(),
                weights="imagenet",
                fresh_layers=("classifier.0", "classifier.3", "classifier.6"),
            ),
            "loss": Loss(penalties=tuple(penalties)),
            "optimizer": recipe.optimizer.model_copy(
                update={"peak_lr": 1e-3, "momentum": 0.9, "nesterov": True}
            ),
            "schedule": recipe.schedule.model_copy(
                update={"epochs": 6, "shape": "inverse_time", "decay": 1e-6}
            ),
        }
    )


def shcherbina_alexnet() -> Recipe:
    """AlexNet in Keras, which did not fit into her memory: 1.4 billion weights, and 19.8 GB at the peak of a
    training on a CPU.

    First filters of 9x9 and 7x7, which she tried too, are the study shcherbina_alexnet_kernels.
    """
    recipe = shcherbina_convnet9()
    sources = {
        "model.name": stated("section 2.2.4: AlexNet of four convolutions, the first of 64 11x11 filters"),
        "model.first_kernel": stated("section 2.2.4: 11, then 9 and 7"),
        "model.weights": inferred("her code begins from drawn ones"),
        "augment": inferred("her code trains it on the same enlarged set"),
        "optimizer.name": inferred("her code has stochastic gradient descent"),
        "optimizer.weight_decay": inferred("her code has none"),
        "optimizer.peak_lr": inferred("her code has 1e-1"),
        "optimizer.momentum": inferred("her code has none"),
        "schedule.epochs": inferred("her code has 10"),
        "schedule.shape": inferred("her code has no decay"),
    }
    left_out = ("model.dropout", "loss.penalties")
    kept = {path: source for path, source in recipe.provenance.items() if path not in left_out}
    return recipe.model_copy(
        update={
            "name": "shcherbina_alexnet",
            "summary": "AlexNet in Keras, which did not fit into her memory, 10 epochs",
            "paper": Paper(title=TITLE, authors=AUTHOR, section="2.2.4 AlexNet: out of memory there"),
            "provenance": {**kept, **sources},
            "model": Model(name="keras_alexnet", first_kernel=11),
            "loss": Loss(),
            "schedule": recipe.schedule.model_copy(update={"epochs": 10}),
        }
    )


def shcherbina_dropconnect() -> Recipe:
    """Her future work: DropConnect in place of dropout, on the hidden fully connected layer of convnet9."""
    recipe = shcherbina_convnet9()
    sources = {
        "model.dropconnect": assumed("Wan et al.'s half, on the layer that dropout was behind"),
        "model.dropout": assumed("as before after the convolutions, none where DropConnect is"),
    }
    return recipe.model_copy(
        update={
            "name": "shcherbina_dropconnect",
            "summary": "Nine-layer ConvNet with DropConnect in place of the last dropout",
            "paper": _future("DropConnect"),
            "provenance": {**recipe.provenance, **sources},
            "model": Model(
                name="convnet9",
                dropout=(0.25, 0.25, 0),
                dropconnect=(DropConnect(layers="fc1", rate=0.5),),
            ),
        }
    )


def shcherbina_targeted() -> Recipe:
    """Her future work: more augmentation for the classes that are hardest.

    The fifth of the classes with the lowest accuracy on `tune` gets each of the five operations on every
    second image, the others on 30% of them; found anew after each epoch. So her five are drawn anew in every
    pass here, and `tune` is held out. She would go by VGG-16's errors; here they are the network's own.
    """
    recipe = shcherbina_convnet9()
    usual = POLICIES["shcherbina"]()
    sources = {
        "data.train_split": assumed("the classes are selected on tune, which is held out"),
        "augment": assumed("her operations and her share of 30%, drawn anew in every pass"),
        "hard_classes": assumed("a fifth of the classes; each operation on half of their images"),
        "schedule.epochs": assumed("as many steps as the 17 epochs of 265,000 images: 50 of the 90,000"),
    }
    return recipe.model_copy(
        update={
            "name": "shcherbina_targeted",
            "summary": "Nine-layer ConvNet, hard classes augmented more",
            "paper": _future("smart data augmentation"),
            "provenance": {**recipe.provenance, **sources},
            "data": Data(train_split="train"),
            "augment": usual,
            "hard_classes": HardClasses(
                share=0.2,
                augment=tuple(one.model_copy(update={"probability": 0.5}) for one in usual),
            ),
            "schedule": recipe.schedule.model_copy(update={"epochs": 50}),
        }
    )


def shcherbina_untargeted() -> Recipe:
    """What shcherbina_targeted is compared with: the same for all classes alike.

    Beside shcherbina_convnet9 the former differs in more than the hard classes: its operations are drawn anew
    in every pass, and `tune` is held out.
    """
    recipe = shcherbina_targeted()
    left_out = ("hard_classes",)
    kept = {path: source for path, source in recipe.provenance.items() if path not in left_out}
    return recipe.model_copy(
        update={
            "name": "shcherbina_untargeted",
            "summary": "Nine-layer ConvNet, all classes augmented alike",
            "provenance": kept,
            "hard_classes": None,
        }
    )


def shcherbina_pruned() -> Recipe:
    """Her future work: train, take out the weak connections, retrain what is left (Han et al. 2015).

    convnet9 as above; then half, three quarters and nine tenths of the weights are taken out, each time
    retrained for two epochs at a tenth of the rate.
    """
    recipe = shcherbina_convnet9()
    again = {"schedule.epochs": 2, "optimizer.peak_lr": 0.01}
    shares = (0.5, 0.75, 0.9)
    sources = {"stages": assumed("three rounds, at a tenth of the rate, as Han et al. retrain")}
    return recipe.model_copy(
        update={
            "name": "shcherbina_pruned",
            "summary": "Nine-layer ConvNet, pruned to a tenth of its weights in three rounds",
            "paper": _future("pruning redundant connections"),
            "provenance": {**recipe.provenance, **sources},
            "stages": (
                Stage(name="dense"),
                *(
                    Stage(
                        name=f"pruned-{round(100 * share)}",
                        prune=MagnitudePruning(share=share),
                        changes=again,
                    )
                    for share in shares
                ),
            ),
        }
    )


def _future(what: str) -> Paper:
    return Paper(title=TITLE, authors=AUTHOR, section=f"5. Future Work: {what}; not done there")


def shcherbina_layerwise() -> Recipe:
    """convnet9, one layer after another: each stage lets one more layer learn, the ones below go on.

    Layers above the one that was let go last keep the values they were drawn with, the classifier's among
    them; their batch norms go on normalising by the batch. Hers may have begun from the course's weights,
    which makes it quite another experiment. She reports that it learns the training set by
    heart and nothing else. Her curve has 88 epochs, and starts anew after each eighth.
    """
    names = [f"conv{number}" for number in range(1, 10)] + ["fc1", "classifier"]
    return Recipe(
        name="shcherbina_layerwise",
        summary="Nine-layer ConvNet whose layers are trained one at a time, from below",
        paper=Paper(
            title=TITLE,
            authors=AUTHOR,
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
            "data.normalise": stated("section 2: mean subtracted, divided by the standard deviation"),
            "augment": inferred("measured 'prior to the addition of dropout and regularization'"),
            "model.name": stated("section 2.2.1: the network of assignment 3"),
            "model.weights": inferred(
                "the last version of her code begins from the course's weights, which are gone; departs: none"
            ),
            "model.dropout": stated("section 2.3.1: before dropout was added"),
            "optimizer.name": stated("section 2.2.1: plain SGD"),
            "optimizer.peak_lr": stated("section 2.3.1: the default rate, 1e-1"),
            "optimizer.momentum": stated("section 2.2.1: without momentum"),
            "optimizer.weight_decay": stated("section 2.3.1: before regularisation was added"),
            "optimizer.frozen_statistics": inferred("a rate of 0 does not stop Keras' batch norms"),
            "schedule.batch_size": BATCH,
            "schedule.epochs": inferred(
                "the 88 epochs that her code plots jump after each eighth: 11 stages"
            ),
            "schedule.shape": stated("section 2.2.1: without decay"),
            "stages": stated("section 2.3.1: a layer at a time, those before it learning on"),
            "compute.precision": assumed("Keras computed in float32; bf16 is ours"),
        },
        data=Data(train_split="train+tune"),
        model=Model(name="convnet9", dropout=(0, 0, 0)),
        optimizer=Optimizer(peak_lr=0.1, momentum=0.0, weight_decay=0.0, frozen_statistics=False),
        schedule=Schedule(epochs=8, batch_size=128, shape="constant"),
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
