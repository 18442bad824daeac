import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from torch import nn

from tinlab import models, recipe
from tinlab.models import convolutions
from tinlab.models.convolutions import Convolution, choose_ways

BY_MATRICES = convolutions._ConvolutionByMatrices
TRAINING = """
import torch
from tinlab import models, recipe
torch.set_num_threads({threads})
torch.manual_seed(0)
model = models.build(recipe.Model(name="resnet18", width=8, stem="patch"), 4)
model = model.to(memory_format=torch.channels_last)
kept = []
for step in range(60):
    images = torch.randn(7, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    model(images).square().sum().backward()
    kept = [*kept[-20:], [torch.randn(5 + step), *(p.grad.clone() for p in model.parameters())]]
"""
SHAPES = [  # kernel, stride, padding, side of the maps, way in float32, way in bf16
    (3, 1, 1, 1, "dense", "dense"),
    (3, 1, 1, 2, "dense", "dense"),
    (3, 2, 1, 2, "dense", "dense"),
    (5, 1, 2, 3, "dense", "dense"),
    (3, 1, 1, 3, None, "columns"),
    (3, 2, 1, 4, None, "columns"),
    (3, 2, 1, 9, None, "columns"),
    (2, 2, 0, 4, None, "columns"),
    (3, 1, 1, 6, None, None),
    (1, 1, 0, 8, None, "pointwise"),
    (1, 2, 0, 7, None, "pointwise"),
    (1, 1, 0, 9, None, None),
]


@pytest.mark.parametrize("threads", [2, 3])
def test_narrow_networks_train_on_odd_batches(threads):
    done = subprocess.run(
        [sys.executable, "-c", TRAINING.format(threads=threads)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def results_of(layer, images):
    """What a layer makes of images, and the gradients of its square: of the images, the weight, the bias."""
    inputs = images.clone(memory_format=torch.preserve_format).requires_grad_()
    outputs = layer(inputs)
    outputs.float().square().mean().backward()
    return outputs.detach(), inputs.grad, layer.weight.grad, layer.bias.grad


def pair_of(kernel, stride, padding, inputs=20):
    """A plain convolution, and a Convolution with the same weights."""
    torch.manual_seed(0)
    usual, own = (nn.Conv2d(inputs, 24, kernel, stride, padding) for _ in range(2))
    choose_ways(own)
    own.load_state_dict(usual.state_dict())
    assert (type(usual), type(own)) == (nn.Conv2d, Convolution)
    return usual, own


@pytest.mark.parametrize(("kernel", "stride", "padding", "side", "float32", "bf16"), SHAPES)
@pytest.mark.parametrize("half", [False, True])
def test_every_way_is_the_same_convolution(kernel, stride, padding, side, float32, bf16, half):
    if half and not convolutions._bf16_products():
        pytest.skip("this CPU multiplies no bf16 matrices")
    usual, own = pair_of(kernel, stride, padding)
    images = torch.randn(6, 20, side, side).contiguous(memory_format=torch.channels_last)
    expected = results_of(usual, images)
    ways = []
    by_matrices = BY_MATRICES.apply

    def told(x, weight, geometry, way):
        ways.append(way)
        return by_matrices(x, weight, geometry, way)

    with patch.object(BY_MATRICES, "apply", told), torch.autocast("cpu", enabled=half):
        found = results_of(own, images)
    assert ways == [way for way in [bf16 if half else float32] if way]
    assert found[0].dtype == (torch.bfloat16 if half else torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        apart, length = torch.linalg.vector_norm(one - other), torch.linalg.vector_norm(other)
        assert apart < (0.01 if half else 1e-5) * length
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [8, 9])
def test_around_the_fault_it_is_the_same_convolution(order, side):
    usual, own = pair_of(1, 2, 0, inputs=4)
    images = torch.randn(4, 4, side, side)
    # In float64 oneDNN, and so its fault, is not asked.
    expected = results_of(usual.double(), images.double())
    found = results_of(own, images.contiguous(memory_format=order))
    assert found[0].is_contiguous(memory_format=order)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.float())


def test_what_stands_still_costs_no_gradient():
    _, own = pair_of(3, 1, 1)
    images = torch.randn(2, 20, 2, 2).contiguous(memory_format=torch.channels_last)
    own.weight.requires_grad_(False)
    inputs = images.clone(memory_format=torch.preserve_format).requires_grad_()
    own(inputs).sum().backward()
    assert own.weight.grad is None
    assert inputs.grad is not None
    own.weight.requires_grad_(True)
    own(images).sum().backward()
    assert own.weight.grad is not None


def test_without_gradients_it_is_torchs_own():
    usual, own = pair_of(3, 1, 1)
    images = torch.randn(2, 20, 2, 2).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), patch.object(BY_MATRICES, "apply", None):
        torch.testing.assert_close(own(images), usual(images), rtol=0, atol=0)


def test_every_family_takes_part_and_other_kinds_stay():
    network = models.build(recipe.Model(name="torchvision:resnet18"), 4)
    assert type(network.get_submodule("layer2.0.downsample.0")) is Convolution
    others = [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    ]
    choose_ways(nn.Sequential(*others))
    assert {type(layer) for layer in others} == {nn.Conv2d}


@pytest.mark.parametrize(("kernel", "side"), [(1, 4), (3, 1), (3, 2), (3, 4)])
def test_what_follows_may_change_the_outputs_in_place(kernel, side):
    """As networks of timm do, whose convolutions have no bias where a batch norm would come."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, kernel, padding=kernel // 2, bias=False)
    images = torch.randn(4, 8, side, side).contiguous(memory_format=torch.channels_last)
    found = []
    for choose in (False, True):
        if choose:
            choose_ways(layer)
        layer.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            outputs = nn.functional.hardswish(layer(images), inplace=True)
        assert outputs.is_contiguous(memory_format=torch.channels_last)
        outputs.float().square().sum().backward()
        found.append((outputs.detach().float(), layer.weight.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=0.05, rtol=0.05)
