import json
from copy import deepcopy

import pytest
import torch
from torch import nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import build, sketch
from tinlab.models.structure import smaller, structure_of
from tinlab.models.summary import summarise, summarise_network

KNOBS = recipe.Model(name="yu_alexnet", width=4)


def network(width=4):
    torch.manual_seed(0)
    return build(recipe.Model(name="yu_alexnet", width=width), 5)


def test_the_structure_names_sizes_by_layer():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 5))
    assert structure_of(net) == {
        "0": {"in_channels": 4, "out_channels": 8, "groups": 2},
        "1": {"num_features": 8},
        "3": {"in_features": 72, "out_features": 5},
    }


def test_a_wide_network_takes_the_structure_and_weights_of_a_narrow_one():
    narrow, wide = network(2).eval(), network(4).eval()
    for p in narrow.buffers():
        p.copy_(torch.rand(p.shape) * 3)
    read = json.loads(json.dumps(structure_of(narrow)))
    assert smaller(wide, read) is wide
    wide.load_state_dict(narrow.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(wide(x), narrow(x))
    assert structure_of(wide) == read
    assert [str(m) for m in wide.modules()] == [str(m) for m in narrow.modules()]
    assert all(p.requires_grad for p in wide.parameters())


def test_its_own_structure_changes_nothing():
    model = network()
    before = list(model.parameters())
    smaller(model, structure_of(model))
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


def test_the_meta_device_will_do():
    model = smaller(sketch(KNOBS, 5), structure_of(network(2)))
    assert all(p.is_meta for p in model.parameters())
    narrow = summarise(KNOBS.model_copy(update={"width": 2}), 5, 64)
    assert summarise_network(model, 64, "it") == narrow


def test_training_mode_and_a_frozen_layer_stay():
    model = network().train()
    model.conv2.requires_grad_(False)
    smaller(model, structure_of(network(2)))
    assert model.training
    assert not model.conv2.weight.requires_grad
    assert model.conv1.weight.requires_grad


def test_counting_a_network_leaves_it_as_it_is():
    model = network().train()
    before = deepcopy(model.state_dict())
    assert summarise_network(model, 64, "it") == summarise(KNOBS, 5, 64)
    assert model.training
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


def changed(**changes):
    structure = structure_of(network(2))
    for key, value in changes.items():
        layer, _, size = key.partition("__")
        structure[layer][size] = value
    return structure


DAMAGED = {
    "no table": ([1, 2], "not a table of layers"),
    "nothing": (None, "not a table of layers"),
    "a word for a size": (changed(conv1__out_channels="2"), "not a table of layers"),
    "a size of none": (changed(conv1__out_channels=0), "not a table of layers"),
    "a layer of its own": ({**structure_of(network(2)), "x": {}}, "'x' is in the structure alone"),
    "a layer is missing": ({"conv1": {}}, "is in the network alone"),
    "sizes of another kind": ({**structure_of(network(2)), "conv1": {"num_features": 2}}, "'conv1' has"),
    "no sizes": ({**structure_of(network(2)), "conv1": {}}, "and not none"),
    "too large": (changed(conv1__out_channels=9), "out_channels of 'conv1' is 9, and in the network 4"),
    "layers that do not meet": (changed(conv1__out_channels=1), "images do not pass"),
    "another classifier": (changed(classifier__out_features=4), "4 scores and not 5"),
    "groups that do not divide": (changed(conv2__in_channels=3, conv2__groups=1), "images do not pass"),
}


@pytest.mark.parametrize(("structure", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_structure_is_refused_and_the_network_left_alone(structure, said):
    model = network()
    before = str(model), list(model.parameters())
    with pytest.raises(TinlabError, match="does not fit the network") as error:
        smaller(model, structure)
    assert said in str(error.value)
    assert str(model) == before[0]
    assert all(a is b for a, b in zip(model.parameters(), before[1], strict=True))


def test_groups_must_divide():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=4))
    structure = structure_of(net)
    structure["1"]["out_channels"] = 6
    with pytest.raises(TinlabError, match="4 groups of '1' do not divide"):
        smaller(net, structure)
