"""What every network of the registry must do."""

import functools

import pytest
import torch
import torch.nn.functional as F

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import MODELS, build, check
from tinlab.models.depth import count_blocks

CLASSES = 5
WIDTHS = {"keras_alexnet": 1}
"""Where 8 channels in the first stage are many still."""
SMALL = [name for name, network in MODELS.items() if "width" in network.options]


def knobs(name, **changes):
    """The network, as small as it can be made."""
    width = WIDTHS.get(name, 8)
    small = {"width": width} if name in SMALL else {}
    return recipe.Model(name=name, **{**small, **changes})


@functools.cache
def made(name):
    torch.manual_seed(0)
    return build(knobs(name), CLASSES)


@pytest.mark.parametrize("name", MODELS)
def test_it_learns_at_64_pixels(name):
    model = made(name).train()
    x, y = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    torch.manual_seed(0)
    logits = model(x)
    assert logits.shape == (4, CLASSES)
    model.zero_grad(set_to_none=True)
    F.cross_entropy(logits, y).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    assert any(p.grad.abs().sum() > 0 for p in model.parameters())
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [32, 96])
def test_it_takes_other_sizes_and_a_single_image(name, size):
    model = made(name).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, size, size)).shape == (1, CLASSES)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_saved_and_loaded(name):
    model = made(name).eval()
    torch.manual_seed(1)
    other = build(knobs(name), CLASSES).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        assert not torch.equal(other(x), expected)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x), expected)
        assert torch.equal(model(x), expected)  # evaluation draws nothing


@pytest.mark.parametrize("name", MODELS)
def test_bf16_and_channels_last_change_little(name):
    model = made(name).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        spread = expected.std() + 1e-6
        last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
        assert (last - expected).abs().max() < 1e-3 * max(1, expected.abs().max())
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x).float()
    assert torch.isfinite(half).all()
    # 8 bits of mantissa, through up to 152 layers.
    assert (half - expected).abs().max() < 0.1 * (spread + expected.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_its_options_are_what_they_say(name):
    network = MODELS[name]
    resolved = network.resolve(recipe.Model(name=name))
    for option, value in network.options.items():
        assert getattr(resolved, option) == value
    for option in ("width", "stem", "block_order", "shortcut", "first_kernel", "activation", "dropout"):
        if option not in network.options:
            value = {"width": 8, "stem": "small", "block_order": "a", "shortcut": "projection"}
            value |= {"first_kernel": 7, "activation": "relu", "dropout": (0.1,)}
            with pytest.raises(TinlabError, match=f"model.{option}: {name} has none"):
                network.resolve(recipe.Model(name=name, **{option: value[option]}))


@pytest.mark.parametrize("name", [n for n in SMALL if "activation" in MODELS[n].options])
@pytest.mark.parametrize("activation", ["elu", "leaky_relu", "gelu", "silu", "selu"])
def test_it_takes_every_activation(name, activation):
    model = build(knobs(name, activation=activation), CLASSES)
    kinds = {type(module).__name__.lower() for module in model.modules()}
    assert activation.replace("_", "") in kinds
    assert "relu" not in kinds
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_compiled_it_computes_the_same():
    model = made("yu_baseline").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(torch.compile(model)(x), model(x), atol=1e-4)


def test_traced_with_blocks_dropped():
    """The graph is cut at each draw; a compiler behind it would see the same pieces."""
    model = build(knobs("resnet18", width=4, final_survival=0.5), CLASSES)
    compiled = torch.compile(model, backend="eager")
    for seed in range(3):
        x = torch.randn(2, 3, 32, 32)
        torch.manual_seed(seed)
        one = compiled(x)
        torch.manual_seed(seed)
        assert torch.allclose(one, model(x), atol=1e-4)
        one.sum().backward()
    assert count_blocks(model)[1] == 6


def test_an_unknown_network_is_refused_with_the_nearest_ones():
    with pytest.raises(TinlabError, match="no network 'resnet19'; try resnet18"):
        build(recipe.Model(name="resnet19"), 3)


def test_the_number_of_dropout_rates_is_checked():
    with pytest.raises(TinlabError, match="resnet18 has 1 place for dropout, not 2"):
        check(recipe.Model(dropout=(0.1, 0.2)), 10, image_size=64)
