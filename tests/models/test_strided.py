import subprocess
import sys

import pytest
import torch
from torch import nn

from tinlab import models, recipe
from tinlab.models.strided import StridedConvolution, avoid_fault

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


@pytest.mark.parametrize("threads", [2, 3])
def test_narrow_networks_train_on_odd_batches(threads):
    done = subprocess.run(
        [sys.executable, "-c", TRAINING.format(threads=threads)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [8, 9])
def test_it_is_the_same_convolution(order, side):
    torch.manual_seed(0)
    usual = nn.Conv2d(4, 6, 1, stride=2).double()  # oneDNN, and so its fault, is not asked
    model = nn.Sequential(nn.Conv2d(4, 6, 1, stride=2), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, stride=2))
    avoid_fault(model)
    assert [type(layer) for layer in model] == [StridedConvolution, nn.Conv2d, nn.Conv2d]
    own = model[0]
    own.load_state_dict(usual.state_dict())
    images = torch.randn(4, 4, side, side).contiguous(memory_format=order)
    gradients = []
    for layer in (usual, own):
        inputs = images.to(layer.weight.dtype, copy=True).requires_grad_()
        outputs = layer(inputs)
        assert outputs.is_contiguous(memory_format=order)
        outputs.square().sum().backward()
        found = (outputs.detach(), inputs.grad, layer.weight.grad, layer.bias.grad)
        gradients.append([value.float() for value in found])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_every_family_is_guarded():
    network = models.build(recipe.Model(name="torchvision:resnet18"), 4)
    assert type(network.get_submodule("layer2.0.downsample.0")) is StridedConvolution
