import math

import pytest
import torch
from exercise import (
    build,
    outputs,
    parameters_and_multiply_adds,
    places_of_dropout,
)
from torch import nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models.shcherbina import NETWORKS

# By hand: filter side squared x inputs x outputs + biases; two values a channel for each batch norm.
CONVNET9 = (
    5 * 5 * 3 * 64 + 64
    + 3 * 3 * 64 * 64 + 64
    + 3 * 3 * 64 * 128 + 128
    + 3 * 3 * 128 * 128 + 128
    + 3 * 3 * 128 * 256 + 256
    + 3 * 3 * 256 * 256 + 256
    + 3 * 3 * 256 * 512 + 512
    + 3 * 3 * 512 * 512 + 512
    + 3 * 3 * 512 * 1024 + 1024
    + 2 * (64 + 64 + 128 + 128 + 256 + 256 + 512 + 512 + 1024)
    + 2 * 2 * 1024 * 512 + 512 + 2 * 512
    + 512 * 200 + 200
)  # fmt: skip
CONVNET9_MULTIPLY_ADDS = (
    32**2 * 5 * 5 * 3 * 64 + 32**2 * 3 * 3 * 64 * 64
    + 16**2 * 3 * 3 * 64 * 128 + 16**2 * 3 * 3 * 128 * 128
    + 8**2 * 3 * 3 * 128 * 256 + 8**2 * 3 * 3 * 256 * 256
    + 4**2 * 3 * 3 * 256 * 512 + 4**2 * 3 * 3 * 512 * 512
    + 2**2 * 3 * 3 * 512 * 1024
    + 2 * 2 * 1024 * 512 + 512 * 200
)  # fmt: skip
VGG = (
    3 * 3 * 3 * 32 + 32 + 3 * 3 * 32 * 32 + 32
    + 3 * 3 * 32 * 64 + 64 + 3 * 3 * 64 * 64 + 64
    + 13 * 13 * 64 * 256 + 256 + 256 * 200 + 200
)  # fmt: skip
VGG_MULTIPLY_ADDS = (
    62**2 * 3 * 3 * 3 * 32 + 60**2 * 3 * 3 * 32 * 32
    + 28**2 * 3 * 3 * 32 * 64 + 26**2 * 3 * 3 * 64 * 64
    + 13 * 13 * 64 * 256 + 256 * 200
)  # fmt: skip


def alexnet(kernel):
    """Each convolution and each pool takes its side less 1 from the grid: 64 - (10, 2, 6, 2, 2, 2, 2, 2)."""
    grid = 64 - (kernel - 1)
    parameters = (
        kernel**2 * 3 * 64 + 64
        + 7 * 7 * 64 * 128 + 128
        + 3 * 3 * 128 * 192 + 192
        + 3 * 3 * 192 * 256 + 256
        + 2 * (64 + 128 + 192 + 256)
        + (grid - 18) ** 2 * 256 * 4096 + 4096
        + 4096 * 4096 + 4096
        + 2 * (4096 + 4096)
        + 4096 * 200 + 200
    )  # fmt: skip
    multiply_adds = (
        grid**2 * kernel**2 * 3 * 64
        + (grid - 8) ** 2 * 7 * 7 * 64 * 128
        + (grid - 12) ** 2 * 3 * 3 * 128 * 192
        + (grid - 16) ** 2 * 3 * 3 * 192 * 256
        + (grid - 18) ** 2 * 256 * 4096 + 4096 * 4096 + 4096 * 200
    )  # fmt: skip
    return parameters, multiply_adds


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [("convnet9", CONVNET9, CONVNET9_MULTIPLY_ADDS), ("keras_vgg", VGG, VGG_MULTIPLY_ADDS)],
)
def test_parameters_and_multiplications_are_those_counted_by_hand(name, parameters, multiply_adds):
    assert parameters_and_multiply_adds(NETWORKS, name) == (parameters, multiply_adds)


@pytest.mark.parametrize("kernel", [11, 9, 7])
def test_alexnet_is_as_large_as_counted_by_hand(kernel):
    assert parameters_and_multiply_adds(NETWORKS, "keras_alexnet", first_kernel=kernel) == alexnet(kernel)


def test_alexnet_does_not_fit_her_memory_and_smaller_filters_make_it_worse():
    """Weights and their gradients, in float32, of a card of 12 GB that also holds a batch of activations."""
    sizes = [2 * 4 * alexnet(kernel)[0] for kernel in (11, 9, 7)]
    assert 11e9 < sizes[0] < sizes[1] < sizes[2]


def test_without_knobs_alexnets_first_filters_are_11x11():
    model = build(NETWORKS, "keras_alexnet", width=2)
    assert model.conv1.kernel_size == (11, 11)
    names = ["conv1", "pool1", "conv2", "pool2", "conv3", "pool3", "conv4", "pool4"]
    grids = [y.shape[-1] for y in outputs(model, names).values()]
    assert grids == [54, 52, 46, 44, 42, 40, 38, 36]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("activation", ["elu", "leaky_relu", "gelu", "silu", "selu"])
def test_every_activation_learns(name, activation):
    model = build(NETWORKS, name, classes=5, width=1, activation=activation)
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_convnet9_halves_64_pixels_to_2x2():
    model = build(NETWORKS, "convnet9", width=4)
    names = [f"conv{place}" for place in range(1, 10)]
    grids = [y.shape[-1] for y in outputs(model, [*names, "grid"]).values()]
    assert grids == [32, 32, 16, 16, 8, 8, 4, 4, 2, 2]
    for name in names:
        conv = model.get_submodule(name)
        assert conv.padding[0] == (conv.kernel_size[0] - 1) // 2


@pytest.mark.parametrize(("name", "count"), [("convnet9", 10), ("keras_alexnet", 6)])
def test_batch_norms_are_as_keras_had_them(name, count):
    norms = [m for m in build(NETWORKS, name, width=1).modules() if "BatchNorm" in type(m).__name__]
    assert [(m.eps, m.momentum) for m in norms] == [(1e-6, 0.1)] * count


def test_kerass_vgg_keeps_no_border():
    model = build(NETWORKS, "keras_vgg", width=4)
    names = ["conv1", "conv2", "pool1", "conv3", "conv4", "pool2"]
    assert [y.shape[-1] for y in outputs(model, names).values()] == [62, 60, 30, 28, 26, 13]


@pytest.mark.parametrize(
    ("name", "before"),
    [("convnet9", ["act3", "act6", "act10"]), ("keras_vgg", ["pool1", "pool2", "act5"])],
)
def test_dropout_stands_where_the_report_has_it(name, before):
    model = build(NETWORKS, name, width=16)
    assert list(places_of_dropout(model).values()) == [0.25, 0.25, 0.5]
    names = [child for child, _ in model.named_children()]
    assert [names[names.index(place) - 1] for place in places_of_dropout(model)] == before
    # GELU is zero hardly anywhere, so that the zeros which leave a place are those it drew.
    model = build(NETWORKS, name, width=16, dropout=(0.2, 0.4, 0.6), activation="gelu").train()
    torch.manual_seed(0)
    shares = []
    for place in places_of_dropout(model):
        model.get_submodule(place).register_forward_hook(
            lambda _module, _inputs, output: shares.append((output == 0).float().mean().item())
        )
    model(torch.randn(16, 3, 64, 64))
    assert shares == pytest.approx([0.2, 0.4, 0.6], abs=0.05)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_hook_keeps_what_a_layer_gave(name):
    """A penalty on activations must not see what the next layer made of them."""
    model = build(NETWORKS, name, width=2)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    for layer, output in outputs(model, names).items():
        assert (output < 0).any(), layer


def test_weights_are_drawn_as_keras_drew_them():
    torch.manual_seed(0)
    model = build(NETWORKS, "convnet9", width=16)
    fans = {
        "conv1": (5 * 5 * 3, 16),
        "conv5": (3 * 3 * 32, 64),
        "fc1": (2 * 2 * 256, 128),
        "classifier": (128, 200),
    }
    for name, (fan_in, fan_out) in fans.items():
        layer = model.get_submodule(name)
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert 0.98 * bound < layer.weight.max() < bound
        assert -bound < layer.weight.min() < -0.98 * bound
        assert layer.weight.var().item() == pytest.approx(bound**2 / 3, rel=0.1)
        assert not layer.bias.any()


def test_a_knob_that_a_network_does_not_have_is_refused():
    with pytest.raises(
        TinlabError, match=r"model\.first_kernel: convnet9 has none; it has width, activation"
    ):
        NETWORKS["convnet9"].resolve(recipe.Model(name="convnet9", first_kernel=7))
    with pytest.raises(TinlabError, match=r"model\.dropout: keras_alexnet has none"):
        NETWORKS["keras_alexnet"].resolve(recipe.Model(name="keras_alexnet", dropout=0.5))
    with pytest.raises(TinlabError, match="keras_vgg has 3 places for dropout, not 2"):
        NETWORKS["keras_vgg"].resolve(recipe.Model(name="keras_vgg", dropout=(0.5, 0.5)))
