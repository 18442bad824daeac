import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tinlab.augment.geometry import resample
from tinlab.augment.policy import Policy
from tinlab.augment.strengths import Strengths
from tinlab.errors import TinlabError
from tinlab.recipe import Flip, RandomResizedCrop, parse_recipe

MEAN, STD = torch.tensor([0.48, 0.45, 0.4]), torch.tensor([0.28, 0.27, 0.28])
NOTHING, ONE = torch.zeros(3), torch.ones(3)


def images(count, height=64, width=64, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(values)


def apply(policy, x, size=64, epoch=0):
    samples = torch.arange(len(x))
    return policy.apply(x, torch.full_like(samples, epoch), samples, size)


@pytest.mark.parametrize("size", [16, 32, 40, 64, 96])
def test_resizing_is_what_torch_does_with_antialiasing(size):
    x = images(3)
    expected = F.interpolate(
        x.permute(0, 3, 1, 2).float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    found = apply(Policy((), NOTHING, ONE / 255, 0), x, size)
    assert torch.allclose(found, expected, atol=1e-2)  # on 0..255


@pytest.mark.parametrize("size", [24, 64])
def test_a_box_is_a_crop_then_a_resize(size):
    x = images(2)
    rows = torch.tensor([8.0, 8.0]), torch.tensor([56.0, 56.0])
    columns = torch.tensor([4.0, 4.0]), torch.tensor([60.0, 60.0])
    crop = x[:, 8:56, 4:60].permute(0, 3, 1, 2).float()
    expected = F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    found = resample(x, rows, columns, size).permute(0, 3, 1, 2)
    # Our filter may look over the box's edge at real pixels, where a crop has none: compare the inside.
    assert torch.allclose(found[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2], atol=1e-2)


def test_a_backward_box_mirrors():
    x = images(2)
    low, high = torch.zeros(2), torch.full((2,), 64.0)
    assert torch.allclose(resample(x, (low, high), (high, low), 64), x.flip(2).float(), atol=1e-3)


def test_normalising_subtracts_the_mean_and_divides_by_the_deviation():
    x = images(4)
    expected = (x.permute(0, 3, 1, 2).double() / 255 - MEAN[:, None, None]) / STD[:, None, None]
    found = apply(Policy((), MEAN, STD, 0), x)
    assert torch.allclose(found.double(), expected, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_flip_mirrors_about_half_of_the_images_and_others_the_next_time():
    x = images(1).expand(2000, -1, -1, -1)
    policy = Policy((Flip(probability=0.3),), NOTHING, ONE / 255, seed=5)
    plain, mirrored = x[0].permute(2, 0, 1).float(), x[0].flip(1).permute(2, 0, 1).float()
    passes = []
    for epoch in (0, 1):
        y = apply(policy, x, epoch=epoch)
        flipped = torch.tensor([torch.allclose(image, mirrored, atol=1e-2) for image in y])
        kept = torch.tensor([torch.allclose(image, plain, atol=1e-2) for image in y])
        assert (flipped ^ kept).all()
        assert 0.26 < flipped.float().mean() < 0.34
        passes.append(flipped)
    assert not torch.equal(*passes)


def test_a_flip_that_alternates_shows_each_image_both_ways_in_two_passes():
    x = images(1).expand(500, -1, -1, -1)
    policy = Policy((Flip(alternate=True),), NOTHING, ONE / 255, seed=5)
    mirrored = x[0].flip(1).permute(2, 0, 1).float()
    passes = [
        torch.tensor([torch.allclose(image, mirrored, atol=1e-2) for image in apply(policy, x, epoch=epoch)])
        for epoch in (0, 1, 2, 7)
    ]
    assert 0.42 < passes[0].float().mean() < 0.58
    assert torch.equal(passes[0], ~passes[1])
    assert torch.equal(passes[0], passes[2])
    assert torch.equal(passes[1], passes[3])
    other = Policy((Flip(alternate=True),), NOTHING, ONE / 255, seed=6)
    assert not torch.equal(apply(other, x), apply(policy, x))


def test_a_flip_beside_one_that_alternates_is_drawn_as_ever():
    samples = torch.arange(200)
    alone = Strengths((RandomResizedCrop(), Flip(axis="up_down")), 3).draw(samples, samples)
    beside = Strengths((RandomResizedCrop(), Flip(axis="up_down"), Flip(alternate=True)), 3)
    drawn = beside.draw(samples, samples)
    assert torch.equal(alone[1].active, drawn[1].active)
    assert torch.equal(alone[0]["area"], drawn[0]["area"])


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        ([{"kind": "flip", "alternate": True, "probability": 0.3}], "leave the probability"),
        ([{"kind": "some_of", "operations": [{"kind": "flip", "alternate": True}]}], "by itself"),
        ([{"kind": "fixed_copies", "operations": [{"kind": "flip", "alternate": True}]}], "by itself"),
    ],
)
def test_a_flip_can_alternate_only_by_itself(augment, said):
    with pytest.raises(TinlabError, match=said):
        parse_recipe({"name": "x", "schedule": {"steps": 1}, "augment": augment}, "x")


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    size=st.integers(8, 48),
    low=st.floats(0.05, 1),
    seed=st.integers(0, 2**64),
)
def test_any_crop_keeps_shape_and_range_and_ignores_the_order(height, width, size, low, seed):
    x = images(5, height, width, seed % 1000)
    policy = Policy((Flip(), RandomResizedCrop(area=(low, 1.0))), NOTHING, ONE / 255, seed)
    samples = torch.arange(5)
    y = policy.apply(x, torch.zeros_like(samples), samples, size)
    assert y.shape == (5, 3, size, size)
    assert y.dtype == torch.float32
    assert torch.isfinite(y).all()
    assert y.min() >= -1e-2
    assert y.max() <= 255 + 1e-2
    order = torch.tensor([3, 1, 4, 0, 2])
    again = policy.apply(x[order], torch.zeros_like(samples), samples[order], size)
    assert torch.allclose(again, y[order], atol=1e-3)


def test_a_crop_of_everything_is_the_image():
    x = images(3)
    policy = Policy((RandomResizedCrop(area=(1, 1), aspect=(1, 1)),), NOTHING, ONE / 255, 0)
    assert torch.allclose(apply(policy, x), x.permute(0, 3, 1, 2).float(), atol=1e-2)


def test_crops_cover_the_asked_area():
    # A ramp along each axis shows which box was cut: its mean is the box's centre, its spread the box's side.
    ramp = torch.arange(64, dtype=torch.uint8) * 4
    x = torch.stack([ramp[:, None].expand(64, 64), ramp[None].expand(64, 64), ramp.new_zeros(64, 64)], -1)
    y = apply(
        Policy((RandomResizedCrop(area=(0.25, 0.5)),), NOTHING, ONE / 255, 1), x.expand(500, -1, -1, -1)
    )
    sides = (y.amax((2, 3)) - y.amin((2, 3)))[:, :2] / 4 + 1  # (B, 2) rows, columns
    share = sides.prod(1) / 64**2
    assert 0.22 < share.min() < 0.28
    assert 0.47 < share.max() < 0.55
