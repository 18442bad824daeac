from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Smooth, TwoConvolutions, images
from scipy.stats import spearmanr
from torch import nn

from tinlab import models, recipe
from tinlab.errors import TinlabError
from tinlab.explain import attribution as maps
from tinlab.explain import from_split
from tinlab.explain.sanity import cascade, check, layers_in_order, randomised, rank_correlation


def test_the_rank_correlation_is_scipys():
    dice = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 6, generator=dice), torch.randn(2, 5, 6, generator=dice)
    b[0] = -a[0]  # its size is the same
    b[1, 0] = b[1, 1]  # ties
    expected = [spearmanr(x.abs().flatten(), y.abs().flatten()).statistic for x, y in zip(a, b, strict=True)]
    assert np.allclose(rank_correlation(a, b), expected)
    assert expected[0] == pytest.approx(1)
    assert rank_correlation(torch.ones(1, 4, 4), a[:1, :4, :4]).tolist() == [0]


def test_randomising_shuffles_the_named_layers_of_a_copy():
    net = TwoConvolutions()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    other = randomised(net, ["conv2"], seed=1)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for name, value in other.state_dict().items():
        assert torch.equal(value.flatten().sort().values, before[name].flatten().sort().values)
        assert torch.equal(value, before[name]) != name.startswith("conv2")
    again = randomised(net, ["conv2"], seed=1)
    assert torch.equal(again.conv2.weight, other.conv2.weight)
    assert not torch.equal(randomised(net, ["conv2"], seed=2).conv2.weight, other.conv2.weight)


def test_the_cascade_goes_from_the_last_layer_to_all():
    found = cascade(maps.saliency, TwoConvolutions(), *images(), points=3)
    assert [(point.layer, point.randomised_layers) for point in found] == [
        ("fc", 1),
        ("conv2", 2),
        ("conv1", 3),
    ]


def test_layers_come_in_the_order_of_the_pass_and_not_of_their_names():
    net = models.build(recipe.Model(name="trinext_small"), 10).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    order = layers_in_order(net, x)
    assert sorted(order) == sorted(
        name for name, one in net.named_modules() if list(one.parameters(recurse=False))
    )
    first_of = {stage: min(order.index(n) for n in order if n.startswith(stage)) for stage in
                ("stages.0", "downsamplings.0", "stages.1", "downsamplings.1", "stages.2")}  # fmt: skip
    assert list(first_of.values()) == sorted(first_of.values())


def test_maps_of_a_trained_network_change_with_its_weights(network, shapes_pack):
    """Adebayo et al.: and an edge detector's, which looks at no weight, do not."""
    chosen = from_split(shapes_pack.split("val"), images=8)
    found = check(network, chosen, methods=("saliency", "integrated_gradients", "grad_cam"))
    for name, points in found.items():
        assert points[-1].rank_correlation < 0.6, name
    assert found["saliency"][-1].rank_correlation < found["saliency"][0].rank_correlation
    from tinlab.explain.compare import inputs_of

    _, x = inputs_of(network, [one.image for one in chosen])
    edges = cascade(
        lambda model, inputs, targets: inputs.diff(dim=3).abs().amax(1),
        network.model,
        x,
        torch.zeros(8).long(),
    )
    assert all(point.rank_correlation == pytest.approx(1) for point in edges)


def test_where_no_method_applies_it_says_so(network, shapes_pack):
    plain = type(network)(network.run, Smooth(classes=4), network.device, network.step)
    with pytest.raises(TinlabError, match="Smooth has none"):
        check(plain, from_split(shapes_pack.split("val"), images=1), methods=("guided_backprop",))


class WithToken(nn.Module):
    """A parameter of the network's own, as vision transformers have."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(8))
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.first(x.flatten(1)[:, :8]) + self.token)


def test_the_networks_own_parameters_are_no_last_layer():
    net = WithToken()
    assert layers_in_order(net, torch.randn(2, 3, 4, 4)) == ["", "first", "last"]
    found = cascade(maps.saliency, net, torch.randn(2, 3, 4, 4), torch.tensor([0, 1]), points=3)
    assert [point.layer for point in found] == ["last", "first", "(network)"]


def test_the_network_may_be_on_another_device_than_the_images():
    """The meta device stands for a GPU."""
    net = models.build(recipe.Model(name="yu_baseline", width=4), 10).eval().to("meta")
    assert layers_in_order(net, torch.randn(2, 3, 64, 64))[-1] == "classifier"
