import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinlab import models, recipe
from tinlab.models import dropout as layers
from tinlab.models.dropout import Dropout, dropout, quicken

TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rate", [0.001, 0.25, 0.5, 0.75, 0.999])
def test_as_many_are_dropped_as_the_rate_says(dtype, rate):
    torch.manual_seed(0)
    dropped, drawn = 0, 0
    for _ in range(20):
        y = dropout(torch.ones(64, 1001, dtype=dtype), rate)
        dropped += int((y == 0).sum())
        drawn += y.numel()
    deviation = math.sqrt(rate * (1 - rate) / drawn)
    assert dropped / drawn == pytest.approx(rate, abs=4 * deviation + 2**-16)


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_kept_is_as_torch_has_it(dtype):
    torch.manual_seed(1)
    x = torch.randn(4000, dtype=dtype)
    ours, torchs = dropout(x, 0.3), F.dropout(x, 0.3)
    both = (ours != 0) & (torchs != 0)
    assert both.sum() > 1500
    assert torch.equal(ours[both], torchs[both])
    assert ours.dtype == dtype


def test_the_gradient_goes_where_the_values_go():
    x = torch.randn(8, 50, requires_grad=True)
    y = dropout(x, 0.4)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
    assert torch.equal(x.grad * x, y)


def test_a_mask_follows_from_torchs_generator_and_takes_one_number_of_it():
    x = torch.ones(33, 7)
    torch.manual_seed(3)
    first, second, after = dropout(x, 0.5), dropout(x, 0.5), torch.rand(4)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), first)
    torch.manual_seed(3)
    for _ in range(2):
        torch.randint(2**63 - 1, ())
    assert torch.equal(torch.rand(4), after)


@pytest.mark.parametrize("dtype", TYPES)
def test_neighbours_and_seeds_have_nothing_to_do_with_each_other(dtype):
    """Four words come from one number of the generator in 16 bits: none follows from the others."""
    torch.manual_seed(4)
    masks = torch.stack([dropout(torch.ones(2**16, dtype=dtype), 0.5) != 0 for _ in range(3)]).double() - 0.5
    least = 4 * 0.25 / math.sqrt(2**16)
    for distance in range(1, 9):
        assert abs((masks[:, distance:] * masks[:, :-distance]).mean(dim=1)).max() < least
    assert abs((masks[0] * masks[1]).mean()) < least
    assert abs((masks[1] * masks[2]).mean()) < least


ORDERS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 2),
    "a part": lambda x: x[:, 1:, ::2],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "empty": lambda x: x[:0],
    "a number": lambda x: x.sum(),
}


@pytest.mark.parametrize("order", ORDERS)
def test_any_memory_order_is_taken_and_kept(order):
    torch.manual_seed(5)
    x = ORDERS[order](torch.randn(6, 5, 9, 7).abs() + 1)
    y = dropout(x, 0.5)
    kept = y != 0
    assert y.shape == x.shape
    assert y.stride() == F.dropout(x, 0.5).stride()
    assert torch.equal(y[kept], x[kept] * 2)
    if x.numel() > 100:
        assert 0.3 < kept.double().mean() < 0.7
        assert order != "expanded" or not torch.equal(kept[0], kept[1])


def test_the_ends_of_the_rates():
    x = torch.randn(100)
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(dropout(x, 1.0), torch.zeros(100))
    with pytest.raises(ValueError, match="between 0 and 1"):
        dropout(x, 1.5)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_rate_close_to_one_drops_nearly_all(dtype):
    y = dropout(torch.ones(1000, dtype=dtype), 1 - 1e-12)
    assert (y == 0).sum() >= 995


def test_a_layer_drops_in_training_alone_and_in_place_where_it_is_set_so():
    layer, x = nn.Sequential(nn.Dropout(0.5, inplace=True)), torch.ones(500)
    quicken(layer)
    assert type(layer[0]) is Dropout
    assert torch.equal(layer.eval()(x), torch.ones(500))
    y = layer.train()(x)
    assert y.data_ptr() == x.data_ptr()
    assert 100 < (x == 0).sum() < 400


def test_other_kinds_of_dropout_stay():
    kinds = (nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
    model = nn.Sequential(*(kind(0.5) for kind in kinds))
    quicken(model)
    assert tuple(type(layer) for layer in model) == kinds


@pytest.mark.parametrize(
    "knobs",
    [
        recipe.Model(dropout=(0.2,)),
        recipe.Model(name="convnet9", width=8),
        recipe.Model(name="torchvision:mobilenet_v3_small"),
        recipe.Model(name="yu_baseline", width=4, dropconnect=(recipe.DropConnect(layers="fc1"),)),
    ],
    ids=lambda knobs: knobs.name,
)
def test_every_networks_dropout_is_ours(knobs, monkeypatch):
    model = models.build(knobs, 10).train()
    assert not any(type(layer) is nn.Dropout for layer in model.modules())
    drawn = []
    noise = layers._noise
    monkeypatch.setattr(layers, "_noise", lambda x, rate: drawn.append(rate) or noise(x, rate))
    model(torch.randn(4, 3, 64, 64)).sum().backward()
    assert drawn
