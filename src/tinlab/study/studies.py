"""Studies by name: a function is a study, and says what it asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tinlab import recipes
from tinlab.recipe import Data, Flip, Recipe, Schedule, changed
from tinlab.recipes.provenance import assumed, inferred, ours, stated
from tinlab.study.plan import Study


def sun_blocks() -> Study:
    """Which residual block is best under Sun's remedies: ResNet-18, 34 and 50, each with (c) and (e).

    Sun, section 5.4: all are similar, and (e) is a little better than (c) on average. All else is the
    improved model's, stochastic depth, mean and flips included.
    """
    depths = ("resnet18", "resnet34", "resnet50")
    return Study(
        name="sun_blocks",
        summary="ResNet-18, 34 and 50 with residual blocks (c) and (e), under Sun's remedies",
        recipes=tuple(_sun_block(depth, order) for order in ("c", "e") for depth in depths),
    )


def sun_deeper() -> Study:
    """The two depths that Sun left out because they did not fit his GPU (section 5.4): 101 and 152."""
    return Study(
        name="sun_deeper",
        summary="ResNet-101 and 152 with residual blocks (c) and (e), under Sun's remedies",
        recipes=tuple(_sun_block(depth, order) for order in "ce" for depth in ("resnet101", "resnet152")),
        seeds=(0,),
    )


def _sun_block(depth: str, order: str) -> Recipe:
    recipe = recipes.find("sun_improved")
    sources = {
        "model.name": stated("section 5.4: ResNet-18, 34 and 50, and 101 and 152, which did not fit"),
        "model.block_order": stated("section 5.4: blocks (c) and (e) of He et al. 2016b, figure 4"),
    }
    assert recipe.paper is not None
    section = "5.4. Variants and Comparison, figure 10"
    paper = recipe.paper.model_copy(update={"section": section, "reported": {}})
    return recipe.model_copy(
        update={
            "name": f"sun_{depth}_{order}",
            "summary": f"{depth}, block ({order}), stochastic depth, flips",
            "paper": paper,
            "provenance": {**recipe.provenance, **sources},
            "model": recipe.model.model_copy(update={"name": depth, "block_order": order}),
        }
    )


def ma_init() -> Study:
    """Which initialisation goes with which activation: Ma's question, left in progress on the poster.

    Ma's two, a Gaussian of variance 0.1 and Xavier; random walk, from the poster's references; and He and
    LSUV, which are usual today. Each with ReLU and with ELU, which the poster refers to as well. On the 5,000
    images of the poster's other training, where val still tells the networks apart.
    """
    recipe = recipes.find("ma_scratch")
    sources = {
        "model.init": stated(
            "Xavier and a Gaussian of variance 0.1; random walk is from its references, He and LSUV are ours"
        ),
        "model.activation": inferred("ReLU is the example's; the poster refers to ELU"),
        "data.train_split": stated("images from the training set"),
        "data.images": stated("5000 images from the training set; that this study used them is assumed"),
        "augment": assumed("flips; boxes are left to longer trainings"),
        "schedule.epochs": assumed("long enough to tell the initialisations apart"),
        "schedule.shape": assumed("to zero along a line"),
    }
    assert recipe.paper is not None
    left_out = ("schedule.milestone_steps",)
    kept = {path: source for path, source in recipe.provenance.items() if path not in left_out}
    base = recipe.model_copy(
        update={
            "name": "ma_init",
            "summary": "ResNet-18 from scratch on 5,000 images",
            "paper": recipe.paper.model_copy(update={"section": "Weight initialization"}),
            "provenance": {**kept, **sources},
            "data": Data(train_split="train+tune", images=5000),
            "augment": (Flip(),),
            "schedule": Schedule(epochs=15, batch_size=128, shape="linear"),
        }
    )
    return Study(
        name="ma_init",
        summary="Five initialisations times ReLU and ELU, ResNet-18 on 5,000 images",
        recipes=(base,),
        grid={
            "model.activation": ("relu", "elu"),
            "model.init": ("he", "xavier", {"kind": "gaussian", "variance": 0.1}, "random_walk", "lsuv"),
        },
    )


def yu_gap() -> Study:
    """What could explain that Yu's poster reports so much more of val than its own values reach here.

    Two things that it does not say: how the rate falls within the five epochs, and whether the images were
    enlarged. "At least 10 hours" for an epoch on a CPU are three images a second, which fits images of 224
    pixels, as its other tool takes them, better than of 64. A 3x3/2 stem without the pool gives the network
    the grid that it would have on images of 128 pixels.
    """
    base = recipes.find("yu_resnet20")
    cases = {
        "linear": (
            "a rate that falls along a line",
            ("schedule.shape=linear", "schedule.milestone_steps=[]"),
            {"schedule.shape": ours("to zero along a line"), "schedule.milestone_steps": ours("none")},
        ),
        "fine_grid": (
            "the grid of 128-pixel images",
            ("model.stem=patch",),
            {"model.stem": ours("3x3/2 without the pool")},
        ),
    }
    assert base.paper is not None
    paper = base.paper.model_copy(update={"reported": {}})
    found = tuple(
        changed(base, assignments).model_copy(
            update={
                "name": f"{base.name}-{name}",
                "summary": f"{base.name}{WITH}{words}",
                "paper": paper,
                "provenance": {**base.provenance, **sources},
            }
        )
        for name, (words, assignments, sources) in cases.items()
    )
    return Study(
        name="yu_gap",
        summary="Yu's ResNet-20 with what its poster leaves open",
        recipes=found,
        seeds=(0,),
    )


def shcherbina_lr_search() -> Study:
    """Shcherbina's five learning rates for the nine-layer network: 1e-1 ended highest (section 2.2.1).

    Two epochs of the enlarged set each. `tune` is held out, so that a rate can be picked from its curve.
    """
    return _rates("shcherbina_convnet9", "shcherbina_lr_search", (0.1, 0.5, 1e-3, 1e-5, 1e-7))


def shcherbina_lr_search_vgg16() -> Study:
    """Shcherbina's four learning rates for VGG-16, of which 1e-3 was best (section 2.2.3)."""
    return _rates("shcherbina_vgg16", "shcherbina_lr_search_vgg16", (1e-3, 0.1, 1e-5, 1e-7))


def shcherbina_alexnet_kernels() -> Study:
    """AlexNet with the smaller first filters that Shcherbina tried against her memory errors (section
    2.2.4)."""
    base = recipes.find("shcherbina_alexnet")
    return Study(
        name="shcherbina_alexnet_kernels",
        summary="AlexNet in Keras with smaller first filters",
        recipes=(base,),
        grid={"model.first_kernel": (9, 7)},
        seeds=(0,),
    )


def _rates(recipe: str, name: str, rates: tuple[float, ...]) -> Study:
    base = changed(recipes.find(recipe), ["data.train_split=train", "schedule.epochs=2"])
    sources = {
        "data.train_split": assumed("she selects on val; tune is held out in its place"),
        "schedule.epochs": assumed("she does not say how long a rate was tried"),
        "optimizer.peak_lr": stated("sections 2.2.1 and 2.2.3: the rates tried"),
    }
    assert base.paper is not None
    update = {
        "paper": base.paper.model_copy(update={"reported": {}}),
        "provenance": {**base.provenance, **sources},
    }
    return Study(
        name=name,
        summary=f"{recipe} at {len(rates)} learning rates, two epochs each",
        recipes=(base.model_copy(update=update),),
        grid={"optimizer.peak_lr": rates},
        seeds=(0,),
    )


REMEDIES = {
    "stochastic depth": ("model.final_survival=0.5",),
    "flips": ("augment=sun_light",),
    "heavy augmentation": ("augment=sun_heavy",),
    "weight decay 5e-4": ("optimizer.weight_decay=5e-4",),
    "label smoothing 0.1": ("loss.label_smoothing=0.1",),
    "CutMix": ('augment=[{"kind": "cutmix"}]',),
    "moving average of the weights": ("optimizer.ema_decay=0.999",),
    "a stem that keeps 32x32": ("model.stem=patch",),
    "images that grow: 32, 48, 64 pixels": ("data.image_sizes=[32, 48, 64]",),
    "a smaller network: ResNet-18": ("model.name=resnet18",),
    "a narrower network: half the channels": ("model.width=32",),
}
"""Remedy -> the one change to sun_vanilla that it is."""

SHORT_REMEDIES = {**REMEDIES, "moving average of the weights": ("optimizer.ema_decay=0.99",)}
"""The same for a tenth of the steps: the average's memory is a fifteenth of the training, as in REMEDIES."""


WITH = " with "
"""What stands between a recipe and its remedy in a summary."""


def what_helps() -> Study:
    """Which remedies against overfitting help, and how much: Sun's vanilla network with one at a time."""
    return _one_at_a_time("what_helps", recipes.find("sun_vanilla"), REMEDIES)


def what_helps_small() -> Study:
    """The same question for a tenth of the time: 50 images a class, and as many passes over them.

    A tenth of the full study's steps would overfit nothing, since they are 1.5 passes over 100,000 images;
    15 passes over 10,000 images do.
    """
    base = recipes.find("sun_vanilla")
    assert base.paper is not None
    sources = {
        "data.images_per_class": ours("a tenth of the images, so that 15 passes are a tenth of the steps"),
        "schedule.steps": ours("15 passes, as in section 4"),
        "schedule.milestone_steps": ours("after two thirds, as in section 4"),
    }
    small = base.model_copy(
        update={
            "name": "sun_vanilla_small",
            "summary": "sun_vanilla on 50 images a class",
            "paper": base.paper.model_copy(update={"reported": {}}),
            "provenance": {**base.provenance, **sources},
            "data": base.data.model_copy(update={"images_per_class": 50}),
            "schedule": base.schedule.model_copy(update={"steps": 1_500, "milestone_steps": (1_000,)}),
            "evaluate_every_epochs": 3.0,  # val has as many images as an epoch
        }
    )
    return _one_at_a_time("what_helps_small", small, SHORT_REMEDIES)


def _one_at_a_time(name: str, base: Recipe, remedies: Mapping[str, tuple[str, ...]]) -> Study:
    """`base`, and `base` with each remedy alone."""
    assert base.paper is not None
    paper = base.paper.model_copy(update={"reported": {}})
    found = [base]
    for remedy, changes in remedies.items():
        words = "".join(c if c.isalnum() else "_" for c in remedy.partition(":")[0].lower())
        update = {
            "name": f"{base.name}-{words}",
            "summary": f"{base.name}{WITH}{remedy}",
            "paper": paper,
        }
        found.append(changed(base, changes).model_copy(update=update))
    return Study(name=name, summary=f"{base.summary}, and with one remedy at a time", recipes=tuple(found))


def best_ensemble() -> Study:
    """Members for the highest accuracy of several networks together. Aim: 78% of val. Not yet run.

    Three networks built differently, `best`, the same without attention, and ResNet-18, from three seeds
    each. Members that err apart are worth more than better ones that err
    alike (LOG.md, "Two errors much alike"). After the study: `tinlab ensemble` over its runs, which takes the
    mean of their probabilities; with equal weights, since nothing is left to choose them by.
    """
    best = recipes.find("best")
    without = changed(best, ["model.name=trinext_conv", "model.width=96"]).model_copy(
        update={"name": "best_conv", "summary": "best, without attention"}
    )
    return Study(
        name="best_ensemble",
        summary="Members of an ensemble: best, the same without attention, and ResNet-18",
        recipes=(best, without, "best_resnet18"),
        seeds=(0, 1, 2),
    )


STUDIES: dict[str, Callable[[], Study]] = {
    "sun_blocks": sun_blocks,
    "sun_deeper": sun_deeper,
    "ma_init": ma_init,
    "yu_gap": yu_gap,
    "shcherbina_lr_search": shcherbina_lr_search,
    "shcherbina_alexnet_kernels": shcherbina_alexnet_kernels,
    "shcherbina_lr_search_vgg16": shcherbina_lr_search_vgg16,
    "what_helps": what_helps,
    "what_helps_small": what_helps_small,
    "best_ensemble": best_ensemble,
}
