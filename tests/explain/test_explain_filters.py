from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import TwoConvolutions
from torch import nn

from tinlab.errors import TinlabError
from tinlab.explain.compare import inputs_of
from tinlab.explain.filters import (
    exciting_images,
    exciting_input,
    filters_sheet,
    first_filters,
    last_filters,
)
from tinlab.explain.layers import feature_map

HALF = (0.5, 0.5, 0.5)


def test_first_filters_are_the_weights_in_colour():
    net = TwoConvolutions()
    found = first_filters(net, 16)
    assert (found.layer, found.of, found.tiles.shape) == ("conv1", 6, (6, 3, 3, 3))
    weights = net.conv1.weight.detach().permute(0, 2, 3, 1).numpy()
    back = found.tiles / 127.5 - 1
    scale = np.abs(weights).max((1, 2, 3), keepdims=True)
    assert np.allclose(back, weights / scale, atol=1 / 127)
    assert len(first_filters(net, 16, most=2).tiles) == 2


def test_last_filters_are_each_the_slice_that_weighs_most():
    net = TwoConvolutions()
    with torch.no_grad():
        net.conv2.weight[:] = 0.01
        net.conv2.weight[3, 4] = torch.tensor([[0, 0, 0], [0, -2.0, 0], [0, 0, 1.0]])
    found = last_filters(net, 16)
    assert (found.layer, found.of) == ("conv2", 8)
    assert found.tiles[3, :, :, 0].tolist() == [[128, 128, 128], [128, 0, 128], [128, 128, 191]]
    assert (found.tiles[..., 0] == found.tiles[..., 2]).all()


def test_a_last_convolution_of_single_pixels_is_passed_over():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    assert last_filters(net, 16).layer == "0"
    with pytest.raises(TinlabError, match="no convolution with filters larger than a pixel"):
        last_filters(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 16)


@pytest.mark.parametrize("by", ["max", "mean"])
def test_exciting_images_are_those_a_sort_of_all_finds(by, network, shapes_pack, monkeypatch):
    split = shapes_pack.split("train")
    place = feature_map(network.model, 64)
    kept = []
    handle = network.model.get_submodule(place.layer).register_forward_hook(lambda m, i, o: kept.append(o))
    _, x = inputs_of(network, list(np.array(split.images)))
    with torch.no_grad():
        network.model(x)
    handle.remove()
    maps = kept[0]  # (N, C, h, w)
    values = maps.amax((2, 3)) if by == "max" else maps.mean((2, 3))
    monkeypatch.setattr("tinlab.explain.filters.ROWS_AT_ONCE", 7)
    for found in exciting_images(network, split, [0, 5, 9], by=by, top=4):
        best = torch.sort(values[:, found.filter], descending=True, stable=True)
        assert np.allclose(found.values, best.values[:4], rtol=1e-3, atol=1e-5)
        assert np.allclose(values[list(found.rows), found.filter], best.values[:4], rtol=1e-3, atol=1e-5)
    (few,) = exciting_images(network, split, [0], top=50, images=3)
    assert sorted(few.rows) == [0, round((len(split) - 1) / 2), len(split) - 1]


def test_channels_that_are_not_there_are_refused(network, shapes_pack):
    split = shapes_pack.split("val")
    with pytest.raises(TinlabError, match=r"has channels 0 to 31, and no channel 32"):
        exciting_images(network, split, [32])
    with pytest.raises(TinlabError, match="top is 0"):
        exciting_images(network, split, [0], top=0)
    with pytest.raises(TinlabError, match="classes 0 to 4, and no class 5"):
        exciting_input(TwoConvolutions(), [5], side=16, mean=HALF, std=HALF)


def score(net, pictures, unit):
    x = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        return net(x)[:, unit]


def test_an_exciting_input_excites_its_unit():
    net = TwoConvolutions().eval()
    made = exciting_input(net, [1, 3], side=16, mean=HALF, std=HALF, steps=60)
    assert (made.shape, made.dtype) == ((2, 16, 16, 3), np.uint8)
    photographs = np.random.default_rng(0).integers(0, 255, (200, 16, 16, 3), np.uint8)
    for place, unit in enumerate((1, 3)):
        assert score(net, made, unit)[place] > score(net, photographs, unit).max()
    channel = exciting_input(net, [2], side=16, mean=HALF, std=HALF, steps=60, layer="conv2")
    x = [(torch.from_numpy(p).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5 for p in (channel, photographs)]
    made_mean, others = (net.conv2(net.conv1(v).relu())[:, 2].mean((1, 2)) for v in x)
    assert made_mean > others.max()


def test_an_exciting_input_comes_from_its_seed_and_not_from_the_others():
    net = TwoConvolutions()
    how = {"side": 16, "mean": HALF, "std": HALF, "steps": 8}
    both = exciting_input(net, [1, 3], **how)
    assert np.array_equal(exciting_input(net, [3], **how)[0], both[1])
    assert not np.array_equal(exciting_input(net, [3], seed=1, **how)[0], both[1])
    with pytest.raises(TinlabError, match="steps is 0"):
        exciting_input(net, [3], **{**how, "steps": 0})


def test_a_sheet_of_filters(network, shapes_pack, monkeypatch):
    monkeypatch.setattr("tinlab.explain.filters.STEPS", 3)
    told = []
    whole = filters_sheet(
        network,
        shapes_pack.split("val"),
        channels=2,
        classes=3,
        top=3,
        progress=lambda d, t: told.append((d, t)),
    )
    assert told[-1] == (40, 40)
    assert "First convolution" in whole.alt
    assert "Images that excite channels" in whole.alt
    bare = filters_sheet(network, None, classes=3)
    assert bare.image.height < whole.image.height - 2 * 128
    with pytest.raises(TinlabError, match="classes is 0"):
        filters_sheet(network, None, classes=0)
