"""Studies by name: a function is a study, and says what it asks."""

from __future__ import annotations

from collections.abc import Callable

from tinlab import recipes
from tinlab.recipe import Recipe, changed
from tinlab.recipes.provenance import assumed, inferred, stated
from tinlab.study.plan import Study


def sun_blocks() -> Study:
    """Which residual block is best under Sun's remedies: ResNet-18, 34 and 50, each with (c) and (e).

    Sun, section 5.4: all are similar, and (e) is a little better than (c) on average. The remedies are
    stochastic depth, the per-channel mean subtracted, and flipping left and right; all else is the vanilla
    model's.
    """
    depths = ("resnet18", "resnet34", "resnet50")
    return Study(
        name="sun_blocks",
        summary="ResNet-18, 34 and 50 with residual blocks (c) and (e), under Sun's remedies",
        recipes=tuple(_sun_block(depth, order) for order in ("c", "e") for depth in depths),
    )


def _sun_block(depth: str, order: str) -> Recipe:
    recipe = changed(
        recipes.find("sun_vanilla"),
        [
            f"model.name={depth}",
            f"model.block_order={order}",
            "model.final_survival=0.5",
            "data.normalise=mean",
            'augment=[{"kind": "flip"}]',
        ],
    )
    sources = {
        "model.name": stated("section 5.4 and figure 10: ResNet-18, 34 and 50"),
        "model.block_order": stated("section 5.4: blocks (c) and (e) of He et al. 2016b, figure 4"),
        "model.final_survival": assumed("0.5 is Huang et al.'s; 26.6 of 34 layers on average agrees with it"),
        "data.normalise": stated("section 5.2: the global mean of each channel is subtracted"),
        "augment": stated("section 5.2: flipped left to right with probability 0.5"),
        "schedule.steps": inferred("as in section 4"),
    }
    assert recipe.paper is not None
    paper = recipe.paper.model_copy(update={"section": "5.4. Variants and Comparison", "reported": {}})
    return recipe.model_copy(
        update={
            "name": f"sun_{depth}_{order}",
            "summary": f"{depth}, block ({order}), stochastic depth, flips",
            "paper": paper,
            "provenance": {**recipe.provenance, **sources},
        }
    )


def ma_init() -> Study:
    """Which initialisation goes with which activation: Ma's question, left in progress on his poster.

    Five initialisations times ReLU and ELU, on the network, the 100 images and the 60 steps of ma_overfit.
    """
    return Study(
        name="ma_init",
        summary="Five initialisations times ReLU and ELU, learning 100 images by heart",
        recipes=("ma_overfit",),
        grid={
            "model.activation": ("relu", "elu"),
            "model.init": (
                "he",
                "xavier",
                {"kind": "gaussian", "variance": 0.1},
                "random_walk",
                "lsuv",
            ),
        },
    )


STUDIES: dict[str, Callable[[], Study]] = {"sun_blocks": sun_blocks, "ma_init": ma_init}
