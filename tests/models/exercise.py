"""How the papers' networks are built for a test, counted, and looked into."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tinlab import recipe


def build(networks, name, classes=200, **knobs):
    """The network as the registry builds it."""
    entry = networks[name]
    return entry.build(entry.resolve(recipe.Model(name=name, **knobs)), classes)


def parameters_and_multiply_adds(networks, name, **knobs):
    """Both at 64x64 and 200 classes, without memory for weights."""
    with torch.device("meta"):
        model = build(networks, name, **knobs).eval()
        with FlopCounterMode(display=False) as counter:
            assert model(torch.empty(1, 3, 64, 64)).shape == (1, 200)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def outputs(model, names, size=64):
    """What the layers called `names` give for one image of `size` x `size`, copied as it is given."""
    kept = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: kept.update({name: output})
        )
        for name in names
    ]
    model.eval()(torch.randn(1, 3, size, size))
    for handle in handles:
        handle.remove()
    return kept


def places_of_dropout(model):
    """Name of each dropout with its rate, in the order in which they run."""
    return {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
