"""What every network of the papers must do, and how its parameters and multiplications are counted."""

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


def learns_is_saved_and_takes_any_size(make, classifier):
    """Assert that the network which `make` builds trains, saves, loads, and runs in every way that training
    and prediction use."""
    torch.manual_seed(0)
    model = make()
    x, y = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    logits = model.train()(x)
    assert logits.shape == (4, 5)
    nn.functional.cross_entropy(logits, y).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.dim() == 1 or p.grad.abs().sum() > 0, name
    model.eval()
    with torch.no_grad():
        plain = model(x)
        with torch.device("meta"):
            other = make()
        other.load_state_dict(model.state_dict(), assign=True)
        assert torch.equal(other.eval()(x), plain)
        assert torch.allclose(model(x[:1]), plain[:1], atol=1e-4)
        for size in (32, 96):
            assert model(torch.randn(1, 3, size, size)).shape == (1, 5)
        model.to(memory_format=torch.channels_last)
        last = model(x.contiguous(memory_format=torch.channels_last))
        assert torch.allclose(last, plain, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(model(x).float(), plain, atol=0.05 * plain.abs().max().item())
    assert model.get_submodule(classifier).weight.shape[0] == 5


def places_of_dropout(model):
    """Name of each dropout with its rate, in the order in which they run."""
    return {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
