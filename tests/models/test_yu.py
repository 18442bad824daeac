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
from tinlab.models.yu import NETWORKS

# By hand from the poster: filter side squared x inputs x outputs, and biases where there are any.
RESNET20 = (
    7 * 7 * 3 * 64 + 2 * 64
    # A first bottleneck with its projection, and one more: 64, 64, 256
    + 64 * 64 + 3 * 3 * 64 * 64 + 64 * 256 + 2 * (64 + 64 + 256) + 64 * 256 + 2 * 256
    + 256 * 64 + 3 * 3 * 64 * 64 + 64 * 256 + 2 * (64 + 64 + 256)
    # 128, 128, 512
    + 256 * 128 + 3 * 3 * 128 * 128 + 128 * 512 + 2 * (128 + 128 + 512) + 256 * 512 + 2 * 512
    + 512 * 128 + 3 * 3 * 128 * 128 + 128 * 512 + 2 * (128 + 128 + 512)
    # 256, 256, 1024
    + 512 * 256 + 3 * 3 * 256 * 256 + 256 * 1024 + 2 * (256 + 256 + 1024) + 512 * 1024 + 2 * 1024
    + 1024 * 256 + 3 * 3 * 256 * 256 + 256 * 1024 + 2 * (256 + 256 + 1024)
    + 1024 * 200 + 200
)  # fmt: skip
RESNET20_MULTIPLY_ADDS = (
    32**2 * 7 * 7 * 3 * 64
    + 16**2 * (64 * 64 + 3 * 3 * 64 * 64 + 64 * 256 + 64 * 256)
    + 16**2 * (256 * 64 + 3 * 3 * 64 * 64 + 64 * 256)
    # The first 1x1 runs before the 3x3 halves the grid.
    + 16**2 * 256 * 128 + 8**2 * (3 * 3 * 128 * 128 + 128 * 512 + 256 * 512)
    + 8**2 * (512 * 128 + 3 * 3 * 128 * 128 + 128 * 512)
    + 8**2 * 512 * 256 + 4**2 * (3 * 3 * 256 * 256 + 256 * 1024 + 512 * 1024)
    + 4**2 * (1024 * 256 + 3 * 3 * 256 * 256 + 256 * 1024)
    + 1024 * 200
)  # fmt: skip
ALEXNET = (
    3 * 3 * 3 * 64 + 64 + 3 * 3 * 64 * 64 + 64 + 2 * 64
    + 3 * 3 * 64 * 128 + 128 + 2 * 128
    + 3 * 3 * 128 * 256 + 256 + 3 * 3 * 256 * 256 + 256
    + 8 * 8 * 256 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 200 + 200
)  # fmt: skip
ALEXNET_MULTIPLY_ADDS = (
    64**2 * (3 * 3 * 3 * 64 + 3 * 3 * 64 * 64)
    + 32**2 * 3 * 3 * 64 * 128
    + 16**2 * (3 * 3 * 128 * 256 + 3 * 3 * 256 * 256)
    + 8 * 8 * 256 * 1024 + 1024 * 1024 + 1024 * 200
)  # fmt: skip
VGG = (
    3 * 3 * 3 * 64 + 64 + 3 * 3 * 64 * 64 + 64
    + 3 * 3 * 64 * 128 + 128 + 3 * 3 * 128 * 128 + 128
    + 3 * 3 * 128 * 256 + 256 + 3 * 3 * 256 * 256 + 256
    + 8 * 8 * 256 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 200 + 200
)  # fmt: skip
VGG_MULTIPLY_ADDS = (
    64**2 * (3 * 3 * 3 * 64 + 3 * 3 * 64 * 64)
    + 32**2 * (3 * 3 * 64 * 128 + 3 * 3 * 128 * 128)
    + 16**2 * (3 * 3 * 128 * 256 + 3 * 3 * 256 * 256)
    + 8 * 8 * 256 * 1024 + 1024 * 1024 + 1024 * 200
)  # fmt: skip
BASELINE = (
    3 * 3 * 3 * 32 + 32 + 3 * 3 * 32 * 32 + 32 + 3 * 3 * 32 * 64 + 64
    + 8 * 8 * 64 * 512 + 512 + 512 * 200 + 200
)  # fmt: skip
BASELINE_MULTIPLY_ADDS = (
    64**2 * 3 * 3 * 3 * 32 + 32**2 * 3 * 3 * 32 * 32 + 16**2 * 3 * 3 * 32 * 64
    + 8 * 8 * 64 * 512 + 512 * 200
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("yu_resnet20", RESNET20, RESNET20_MULTIPLY_ADDS),
        ("yu_alexnet", ALEXNET, ALEXNET_MULTIPLY_ADDS),
        ("yu_vgg", VGG, VGG_MULTIPLY_ADDS),
        ("yu_baseline", BASELINE, BASELINE_MULTIPLY_ADDS),
    ],
)
def test_parameters_and_multiplications_are_those_counted_by_hand(name, parameters, multiply_adds):
    assert parameters_and_multiply_adds(NETWORKS, name) == (parameters, multiply_adds)


@pytest.mark.parametrize("name", ["yu_alexnet", "yu_vgg", "yu_baseline"])
@pytest.mark.parametrize("activation", ["elu", "leaky_relu", "gelu", "silu", "selu"])
def test_every_activation_learns(name, activation):
    model = build(NETWORKS, name, classes=5, width=4, activation=activation)
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_resnet20_has_twenty_layers_and_the_grids_of_its_figure():
    model = build(NETWORKS, "yu_resnet20", width=8)
    shortcuts = 3
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) - shortcuts == 20
    grids = outputs(model, ["conv1", "maxpool", "layer1", "layer2", "layer3"])
    assert [tuple(y.shape[1:]) for y in grids.values()] == [
        (8, 32, 32), (8, 16, 16), (32, 16, 16), (64, 8, 8), (128, 4, 4),
    ]  # fmt: skip


def test_the_reduced_alexnet_follows_its_table():
    with torch.device("meta"):
        model = build(NETWORKS, "yu_alexnet")
    kinds = [name.rstrip("0123456789") for name, _ in model.named_children()]
    assert [kind for kind in kinds if kind not in ("act", "grid", "dropout")] == [
        "conv", "conv", "pool", "bn", "conv", "pool", "bn", "conv", "conv", "pool",
        "flatten", "fc", "fc", "classifier",
    ]  # fmt: skip
    # Its column of dimensions, line by line.
    names = ["conv1", "conv2", "pool1", "conv3", "pool2", "conv4", "conv5", "pool3", "fc1", "fc2"]
    with torch.device("meta"):
        dimensions = [tuple(y.shape[1:]) for y in outputs(model, names).values()]
    assert dimensions == [
        (64, 64, 64), (64, 64, 64), (64, 32, 32), (128, 32, 32), (128, 16, 16),
        (256, 16, 16), (256, 16, 16), (256, 8, 8), (1024,), (1024,),
    ]  # fmt: skip


def test_dropout_stands_after_each_fully_connected_layer_and_is_off_unless_asked_for():
    assert places_of_dropout(build(NETWORKS, "yu_vgg", width=4)) == {"dropout1": 0, "dropout2": 0}
    model = build(NETWORKS, "yu_vgg", width=4, dropout=(0.3, 0.6))
    assert places_of_dropout(model) == {"dropout1": 0.3, "dropout2": 0.6}
    names = [name for name, _ in model.named_children()]
    assert names[names.index("fc1") :] == [
        "fc1", "act7", "dropout1", "fc2", "act8", "dropout2", "classifier",
    ]  # fmt: skip


def test_weights_are_drawn_by_fan_in():
    torch.manual_seed(0)
    model = build(NETWORKS, "yu_vgg", width=16)
    for name, fan_in in (("conv4", 3 * 3 * 32), ("conv6", 3 * 3 * 64), ("fc2", 256), ("classifier", 256)):
        layer = model.get_submodule(name)
        assert layer.weight.var().item() == pytest.approx(2 / fan_in, rel=0.05)
        assert not layer.bias.any()


def test_a_knob_that_a_network_does_not_have_is_refused():
    with pytest.raises(TinlabError, match=r"model\.stem: yu_alexnet has none; it has width, activation"):
        NETWORKS["yu_alexnet"].resolve(recipe.Model(name="yu_alexnet", stem="small"))
    with pytest.raises(TinlabError, match=r"model\.first_kernel: yu_baseline has none"):
        NETWORKS["yu_baseline"].resolve(recipe.Model(name="yu_baseline", first_kernel=7))
    with pytest.raises(TinlabError, match="yu_vgg has 2 places for dropout, not 1"):
        NETWORKS["yu_vgg"].resolve(recipe.Model(name="yu_vgg", dropout=0.5))
