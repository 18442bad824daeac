"""What the five papers report, in their own order, and how each of it is run here: a row an experiment.

Errors and accuracies are top-1, given as accuracies in percent. The test set's labels were never published:
what a paper reports on `test` came from the course's server, and stands here beside ours on val.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from functools import cache

from tinlab import recipes
from tinlab.errors import TinlabError
from tinlab.recipe import Recipe
from tinlab.recipes import BUDGET, shortened
from tinlab.study.plan import Study, resolved, whole
from tinlab.study.studies import STUDIES


@dataclass(frozen=True)
class Row:
    """One experiment. Exactly one of `recipe`, `study` and `command` says how it is run.

    `command` is `tinlab …` or `python benchmarks/…`; {NAME} in it stands for the finished run of the row
    NAME, and {out} for the folder of runs. `measures` are what its JSON answer is read for: name with unit ->
    keys. `reported` is measure with unit in its name -> value; for a recipe, what the recipe says.
    """

    id: str
    what: str
    recipe: str | None = None
    study: str | None = None
    command: str = ""
    measures: dict[str, tuple[str | int, ...]] = field(default_factory=dict)
    reported: dict[str, float] = field(default_factory=dict)
    says: str = ""
    """What the paper reports in words, where that is no number."""

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """What is trained: one recipe, those of a study, or none for a command."""
        if self.recipe is not None:
            return (recipes.find(self.recipe),)
        return study_recipes(self.study) if self.study is not None else ()

    @property
    def numbers(self) -> dict[str, float]:
        """Measure -> value, as the paper reports it, in its order."""
        if self.recipe is not None and not self.reported:
            paper = recipes.find(self.recipe).paper
            return paper.reported if paper is not None else {}
        return self.reported

    @property
    def beside_val(self) -> float | None:
        """What ours on val stands beside, in percent: the paper's on val, or its only number, or on test."""
        names = ("val_top1_percent", "top1_percent", "test_top1_percent")
        return next((self.numbers[name] for name in names if name in self.numbers), None)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that are run where nobody says."""
        return STUDIES[self.study]().seeds if self.study is not None else (0,)

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows whose runs its command looks at."""
        return tuple(word[1:-1] for word in self.command.split() if re.fullmatch(r"\{\w+\}", word))

    @property
    def saw_imagenet(self) -> bool:
        """Whether ImageNet's weights are in what is trained or looked at."""
        trained = any(phase.model.weights == "imagenet" for recipe in self.recipes for phase in recipe.phases)
        return trained or any(row(name).saw_imagenet for name in self.needs)


@dataclass(frozen=True)
class Paper:
    """One paper and its rows, in its order."""

    key: str
    title: str
    about: str
    rows: tuple[Row, ...]


CLASS_ERRORS: dict[str, tuple[str | int, ...]] = {
    f"{name}_errors": ("errors_of", wnid)
    for name, wnid in (
        ("goldfish", "n01443537"),
        ("school_bus", "n04146614"),
        ("bullet_train", "n02917067"),
        ("monarch", "n02279972"),
        ("ladybug", "n02165456"),
        ("umbrella", "n04507155"),
        ("punch_bag", "n04023962"),
        ("wooden_spoon", "n04597913"),
        ("syringe", "n04376876"),
        ("plunger", "n03970156"),
    )
}
"""Shcherbina's table 3: how often images of her best five and worst five classes are got wrong."""

PAPERS = (
    Paper(
        "sun",
        "Sun, ResNet on Tiny ImageNet",
        "Stanford CS231n, report and poster.",
        (
            Row("sun_finetune", "fine-tuning in two phases, described only", recipe="sun_finetune"),
            Row(
                "sun_tuning",
                "preprocessing placement, NCHW and NHWC, fused batch norm (table 1)",
                command="python benchmarks/layout.py --json",
                measures={
                    "seconds_before": ("resnet34 step, all three", "peer"),
                    "seconds_after": ("resnet34 step, all three", "ours"),
                },
                reported={"seconds_before": 2.74, "seconds_after": 2.45},
                says="an iteration of 100 images on a K80, as in the text; the table has them in exchange",
            ),
            Row("sun_vanilla", "ResNet-34 without remedies (figure 5)", recipe="sun_vanilla"),
            Row(
                "sun_depth_cost",
                "what stochastic depth saves (table 2)",
                command="python benchmarks/depth.py --json",
                measures={
                    "mean_blocks": ("resnet34, stochastic depth: blocks, counted", "ours"),
                    "mean_layers": ("resnet34, stochastic depth: layers, counted", "ours"),
                    "seconds_without": ("resnet34, stochastic depth: a step", "peer"),
                    "seconds_with": ("resnet34, stochastic depth: a step", "ours"),
                },
                reported={
                    "mean_blocks": 12.3,
                    "mean_layers": 26.6,
                    "seconds_without": 2.45,
                    "seconds_with": 2.13,
                },
                says="of 16 blocks and 34 layers; seconds an iteration on a K80",
            ),
            Row("sun_improved", "stochastic depth, mean, flips (figure 8)", recipe="sun_improved"),
            Row(
                "sun_variants",
                "ResNet-18, 34, 50 with blocks (c) and (e) (figure 10)",
                study="sun_blocks",
                says="a chart; all similar, (e) a little better than (c) on average",
            ),
            Row(
                "sun_deeper",
                "ResNet-101 and 152 with blocks (c) and (e)",
                study="sun_deeper",
                says="did not fit the GPU there",
            ),
            Row("sun_final", "block (e) and heavy augmentation (figure 13)", recipe="sun_final"),
            Row(
                "sun_errors",
                "misclassified images with their words (figure 14)",
                command="tinlab explain {sun_final} --errors --out {out}/sun_errors.png --json",
                says="a figure; pairs such as sports car and convertible",
            ),
        ),
    ),
    Paper(
        "ma",
        "Ma, Tiny ImageNet Challenge",
        "Stanford CS231n, poster, 2017.",
        (
            Row(
                "ma_filters_pretrained",
                "first-layer filters after 30 iterations from ImageNet's weights",
                command=(
                    "tinlab explain {ma_overfit_pretrained} --filters --layer conv1 --out "
                    "{out}/ma_filters_pretrained.png --json"
                ),
                says="a figure",
            ),
            Row(
                "ma_overfit_pretrained",
                "100 images by heart, from ImageNet's weights",
                recipe="ma_overfit_pretrained",
                says="starts from a low accuracy, converges fast",
            ),
            Row(
                "ma_overfit_failing",
                "100 images, from scratch, set as for fine-tuning",
                recipe="ma_overfit_failing",
                says="fails from scratch",
            ),
            Row(
                "ma_overfit",
                "100 images by heart, from scratch",
                recipe="ma_overfit",
                says="not reached there",
            ),
            Row("ma_finetune", "ImageNet's weights, 5,000 images", recipe="ma_finetune"),
            Row("ma_scratch", "ResNet-18 from scratch", recipe="ma_scratch", says="in progress there"),
            Row(
                "ma_filters_scratch",
                "first-layer filters from scratch",
                command=(
                    "tinlab explain {ma_scratch} --filters --layer conv1 --out "
                    "{out}/ma_filters_scratch.png --json"
                ),
                says="a figure",
            ),
            Row(
                "ma_init",
                "five initialisations with ReLU and ELU",
                study="ma_init",
                says="in progress there",
            ),
        ),
    ),
    Paper(
        "yu",
        "Yu, Convolutional Neural Networks for Tiny ImageNet Classification",
        "Stanford CS231n, poster. The table of accuracies is damaged in the text that is at hand; the poster "
        "also gives ResNet-20's test error as 44.60%.",
        (
            Row("yu_baseline", "a small ConvNet", recipe="yu_baseline"),
            Row("yu_alexnet", "Reduced AlexNet", recipe="yu_alexnet"),
            Row("yu_vgg", "Reduced VGGNet", recipe="yu_vgg"),
            Row("yu_inception", "GoogLeNet, retrained from ImageNet's weights", recipe="yu_inception"),
            Row("yu_resnet20", "ResNet-20 of bottlenecks", recipe="yu_resnet20"),
            Row("yu_squeezenet", "SqueezeNet", recipe="yu_squeezenet", says="described, no number"),
            Row(
                "yu_tuned",
                "future direction: ResNet-20 in as many epochs, tuned as is usual today",
                recipe="yu_tuned",
                says="not done there",
            ),
            Row(
                "yu_gap",
                "what ResNet-20's number could rest on: the decay, the images' size",
                study="yu_gap",
                says="open there",
            ),
        ),
    ),
    Paper(
        "shcherbina",
        "Shcherbina, Tiny ImageNet Challenge",
        "Stanford CS231n, report, 2016. The nine-layer network began there from the course's weights, which "
        "are gone; here it begins from drawn ones.",
        (
            Row("shcherbina_convnet9", "nine-layer ConvNet with its remedies", recipe="shcherbina_convnet9"),
            Row(
                "shcherbina_lr_search",
                "learning rates for the nine-layer ConvNet",
                study="shcherbina_lr_search",
                says="1e-1 best of 1e-7, 1e-5, 1e-3, 1e-1, 5e-1",
            ),
            Row("shcherbina_vgglike", "Keras' VGG-like example", recipe="shcherbina_vgglike"),
            Row("shcherbina_vgg16", "VGG-16 from ImageNet's convolutions", recipe="shcherbina_vgg16"),
            *(
                Row(
                    f"shcherbina_train_{name}",
                    f"accuracy on the training images, measured after the training: {name} (table 2)",
                    command=f"tinlab evaluate {{shcherbina_{name}}} --split train+tune --json",
                    measures={"train_top1_percent": ("top1_percent",)},
                    reported={"train_top1_percent": reported},
                )
                for name, reported in (("convnet9", 98.8), ("vgglike", 48.8), ("vgg16", 76.0))
            ),
            Row(
                "shcherbina_lr_search_vgg16",
                "learning rates for VGG-16",
                study="shcherbina_lr_search_vgg16",
                says="1e-3 best of 1e-7, 1e-5, 1e-3, 1e-1",
            ),
            Row(
                "shcherbina_alexnet",
                "AlexNet in Keras",
                recipe="shcherbina_alexnet",
                says="out of memory there",
            ),
            Row(
                "shcherbina_alexnet_kernels",
                "AlexNet with first filters of 9x9 and of 7x7",
                study="shcherbina_alexnet_kernels",
                says="out of memory there too",
            ),
            Row(
                "shcherbina_ensemble",
                "majority vote of the three, ties to VGG-16; correlation of their errors",
                command=(
                    "tinlab ensemble {shcherbina_vgg16} {shcherbina_convnet9} {shcherbina_vgglike} --json"
                ),
                measures={
                    "val_top1_percent": ("rows", 0, "top1_percent"),
                    "error_correlation": ("mean_class_error_correlation",),
                    "error_correlation_over_images": ("mean_error_correlation",),
                },
                reported={
                    "test_top1_percent": 49.2,
                    "abstract_test_top1_percent": 49.4,
                    "error_correlation": 0.732,
                },
            ),
            Row(
                "shcherbina_layerwise",
                "nine-layer ConvNet, layers trained one at a time (figure 3, table 1)",
                recipe="shcherbina_layerwise",
            ),
            Row(
                "shcherbina_curves",
                "loss and accuracy over epochs (figure 4)",
                command="tinlab report {shcherbina_convnet9} --json",
                says="a figure",
            ),
            Row(
                "shcherbina_saliency",
                "saliency maps: absolute, positive, negative (figure 5)",
                command=(
                    "tinlab explain {shcherbina_convnet9} {shcherbina_vgg16} "
                    "{shcherbina_vgglike} --methods "
                    "saliency,saliency_positive,saliency_negative --out "
                    "{out}/shcherbina_saliency.png --json"
                ),
                says="a figure",
            ),
            *(
                Row(
                    f"shcherbina_filters_{which}_{name}",
                    f"filters of the {which} convolution, {name} (figure 6)",
                    command=(
                        f"tinlab explain {{shcherbina_{name}}} --filters --layer {layer} --out "
                        f"{{out}}/shcherbina_filters_{which}_{name}.png --json"
                    ),
                    says="a figure",
                )
                for which, layers in (
                    ("first", ("conv1", "features.0", "conv1")),
                    ("last", ("conv9", "features.28", "conv4")),
                )
                for name, layer in zip(("convnet9", "vgg16", "vgglike"), layers, strict=True)
            ),
            Row(
                "shcherbina_classes",
                "validation errors a class, best five and worst five (table 3, figure 7)",
                command="tinlab evaluate {shcherbina_vgg16} --classes --json",
                measures=CLASS_ERRORS,
                reported={
                    "goldfish_errors": 4,
                    "school_bus_errors": 6,
                    "bullet_train_errors": 7,
                    "monarch_errors": 8,
                    "ladybug_errors": 8,
                    "umbrella_errors": 39,
                    "punch_bag_errors": 39,
                    "wooden_spoon_errors": 39,
                    "syringe_errors": 41,
                    "plunger_errors": 42,
                },
                says="of 50 images each, by VGG-16",
            ),
            Row(
                "shcherbina_class_images",
                "images of the best and of the worst classes, on the run's page (figure 7)",
                command="tinlab report {shcherbina_vgg16} --json",
                says="a figure",
            ),
            Row(
                "shcherbina_saliency_scratch",
                "the saliency maps of the two networks from scratch (figure 5)",
                command=(
                    "tinlab explain {shcherbina_convnet9} {shcherbina_vgglike} --methods "
                    "saliency,saliency_positive,saliency_negative --out "
                    "{out}/shcherbina_saliency_scratch.png --json"
                ),
                says="a figure",
            ),
            Row(
                "shcherbina_classes_scratch",
                "errors in the same ten classes of the nine-layer ConvNet from scratch (table 3)",
                command="tinlab evaluate {shcherbina_convnet9} --classes --json",
                measures=CLASS_ERRORS,
                says="by VGG-16 alone, as above",
            ),
            Row(
                "shcherbina_convnet9_plain",
                "nine-layer ConvNet without its remedies (discussion)",
                recipe="shcherbina_convnet9_plain",
            ),
            Row(
                "shcherbina_dropconnect",
                "future work: DropConnect",
                recipe="shcherbina_dropconnect",
                says="not done there",
            ),
            Row(
                "shcherbina_targeted",
                "future work: more augmentation for hard classes",
                recipe="shcherbina_targeted",
                says="not done there",
            ),
            Row(
                "shcherbina_untargeted",
                "what targeting is compared with: all classes augmented alike",
                recipe="shcherbina_untargeted",
                says="not done there",
            ),
            Row(
                "shcherbina_pruned",
                "future work: pruning and retraining",
                recipe="shcherbina_pruned",
                says="not done there",
            ),
        ),
    ),
)
"""The papers in the order of their names here, each with its rows in its own order."""

WHAT_HELPS = Row("what_helps", "Sun's vanilla network with one remedy at a time", study="what_helps")
WHAT_HELPS_SMALL = Row(
    "what_helps_small", "the same with 50 images a class, in a tenth of the steps", study="what_helps_small"
)

REMEDY_ROWS = (WHAT_HELPS, WHAT_HELPS_SMALL)
"""One remedy at a time, on all images and on few."""


def every_row() -> tuple[Row, ...]:
    """All rows of all papers, and the ablations."""
    return (*(row for paper in PAPERS for row in paper.rows), *REMEDY_ROWS)


def row(name: str) -> Row:
    """The row called `name`. Raises TinlabError with the nearest names where there is none."""
    known = {one.id: one for one in every_row()}
    if name not in known:
        keys = [*known, *(paper.key for paper in PAPERS)]
        near = difflib.get_close_matches(name, keys, n=3) or [paper.key for paper in PAPERS]
        raise TinlabError(
            f"there is no row or paper '{name}'; try {', '.join(near)} ('tinlab reproduce' lists all)"
        )
    return known[name]


def rows_of(name: str | None) -> tuple[Row, ...]:
    """The rows that `name` stands for: one row's id, a paper's key, or None for all."""
    if name is None:
        return every_row()
    for paper in PAPERS:
        if paper.key == name:
            return paper.rows
    return (row(name),)


@cache
def study_recipes(name: str, fraction: float = 1.0) -> tuple[Recipe, ...]:
    """The recipes of the built-in study `name`, at a fraction of their length."""
    return whole(resolved(with_budget(STUDIES[name](), fraction)))


def with_budget(study: Study, fraction: float) -> Study:
    """`study` with its recipes at a fraction of their length."""
    found = tuple(
        shortened(recipes.find(one) if isinstance(one, str) else one, fraction) for one in study.recipes
    )
    return study.model_copy(update={"recipes": found})


def recipe_called(name: str) -> Recipe:
    """The recipe that a row of results.csv names, of `tinlab recipes` or of a built-in study, shortened or
    not. Raises TinlabError where there is none.
    """
    found = BUDGET.search(name)
    for study in STUDIES:
        for recipe in study_recipes(study, float(found[1]) if found else 1.0):
            if recipe.name == name:
                return recipe
    return recipes.find(name)
