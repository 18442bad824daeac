"""Training steps with tinlab's layers beside torch's own, in one run.

On a CPU tinlab takes small maps as products of matrices (src/tinlab/models/convolutions.py), and draws the
masks of dropout as blocks of words (src/tinlab/models/dropout.py). Whole steps of the same network, in bf16
and channels last, alternate between both kinds of the layer, all else being tinlab's.

    python benchmarks/layers.py [--steps 6] [--rounds 5] [--json]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import measuring

CASES = (
    ("convolutions", "resnet18", 128, 64),
    ("convolutions", "resnet34", 128, 64),
    ("convolutions", "resnet50", 64, 64),
    ("convolutions", "yu_resnet20", 128, 64),
    ("convolutions", "fast_cpu", 256, 32),
    ("convolutions", "fast_cpu", 256, 56),
    ("dropout", "shcherbina_convnet9", 128, 64),
    ("dropout", "shcherbina_vgglike", 128, 64),
    ("DropConnect", "shcherbina_dropconnect", 128, 64),
)
"""What is exchanged; a network, or the recipe that it is of; the batch size; the images' side in pixels."""

WHOSE = ("torch", "tinlab")


def main() -> None:
    parser = measuring.options(__doc__, rounds=5)
    parser.add_argument("--steps", type=measuring.at_least(1), default=6)
    args = parser.parse_args()

    from tinlab.tuning import tune_process

    tune_process()
    rows = []
    for layers, name, batch, side in CASES:
        found = measuring.in_turn(WHOSE, steps_of(layers, name, batch, side, args.steps), args.rounds)
        what = f"step of {name}, {side} pixels: {layers}"
        rows.append(measuring.compare(what, found["tinlab"], found["torch"], "images/s", "torch's"))
    measuring.report(rows, f"{args.steps} steps a round", as_json=args.json)


def steps_of(layers: str, name: str, batch: int, side: int, steps: int) -> Callable[[str], float]:
    """What takes some steps with the layers of one of WHOSE, and returns their images/s."""
    import torch
    import torch.nn.functional as F

    from tinlab import models, recipe, recipes
    from tinlab.compute import autocast, place
    from tinlab.training import optimizer

    torch.manual_seed(0)
    compute, device = recipe.Compute(), torch.device("cpu")
    knobs = recipes.find(name).model if name in recipes.RECIPES else recipe.Model(name=name)
    model = place(models.build(knobs, 200), compute, device).train()
    updater = optimizer.build(recipe.Optimizer(peak_lr=1e-3), model)
    images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(200, (batch,))
    use = exchange(layers, model)

    def step() -> None:
        with autocast(compute, device):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        updater.step()
        updater.zero_grad(set_to_none=True)

    def images_per_second(whose: str) -> float:
        use(whose)
        step()  # its memory is there then
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return batch * steps / (time.perf_counter() - began)

    return images_per_second


def exchange(layers: str, model: Any) -> Callable[[str], None]:
    """What gives `model` the layers of one of WHOSE."""
    import torch.nn.functional as F

    from tinlab.models import dropconnect
    from tinlab.models.convolutions import Convolution
    from tinlab.models.dropout import Dropout, dropout

    if layers == "DropConnect":
        masks: dict[str, Any] = {"torch": F.dropout, "tinlab": dropout}
        return lambda whose: setattr(dropconnect, "dropout", masks[whose])
    own = Convolution if layers == "convolutions" else Dropout
    classes: dict[str, Any] = {"torch": own.__base__, "tinlab": own}
    places = [layer for layer in model.modules() if type(layer) is own]
    assert places, f"no {own.__name__} in {model}"

    def use(whose: str) -> None:
        for layer in places:
            layer.__class__ = classes[whose]

    return use


if __name__ == "__main__":
    measuring.run(main)
