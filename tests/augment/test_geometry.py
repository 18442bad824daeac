import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from help import apply, images, planes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tinlab.augment import geometry
from tinlab.models.zoo import import_torchvision
from tinlab.recipe import operations as ops

BLACK = ops.Resampling(fill=(0, 0, 0))


def both(value):
    return (value, value)


@pytest.fixture(scope="module")
def tv():
    import_torchvision()
    from torchvision.transforms.v2 import functional

    return functional


def bilinear():
    from torchvision.transforms import InterpolationMode

    return InterpolationMode.BILINEAR


@pytest.mark.parametrize("degrees", [-37.0, 12.5, 90.0, 180.0])
def test_rotation_is_torchvisions(tv, degrees):
    x = images(2)
    found = apply((ops.Rotate(degrees=both(degrees)), BLACK), x)
    expected = tv.rotate(planes(x), degrees, interpolation=bilinear())
    assert torch.allclose(found, expected, atol=0.05)  # on 0..255


@pytest.mark.parametrize(("right", "down"), [(8, -4), (-16, 0), (3, 30)])
def test_shifting_is_torchvisions(tv, right, down):
    x = images(2)
    shift = ops.Translate(right_fraction=both(right / 64), down_fraction=both(down / 64))
    expected = tv.affine(
        planes(x), angle=0, translate=[right, down], scale=1, shear=[0, 0], interpolation=bilinear()
    )
    assert torch.allclose(apply((shift, BLACK), x), expected, atol=0.05)
    inside = slice(max(down, 0), 64 + min(down, 0)), slice(max(right, 0), 64 + min(right, 0))
    assert torch.allclose(apply((shift,), x)[..., *inside], expected[..., *inside], atol=0.05)


@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0])
def test_scaling_is_torchvisions(tv, factor):
    x = images(2)
    expected = tv.affine(
        planes(x), angle=0, translate=[0, 0], scale=factor, shear=[0, 0], interpolation=bilinear()
    )
    assert torch.allclose(apply((ops.Scale(factor=both(factor)),), x), expected, atol=0.05)
    assert torch.allclose(apply((ops.Scale(factor=both(factor)), BLACK), x), expected, atol=0.05)


@pytest.mark.parametrize("degrees", [-20.0, 11.0])
def test_shearing_is_torchvisions(tv, degrees):
    x = images(2)
    slope = both(math.tan(math.radians(degrees)))
    # torchvision slants the other way along x.
    expected = tv.affine(
        planes(x), angle=0, translate=[0, 0], scale=1, shear=[-degrees, 0], interpolation=bilinear()
    )
    assert torch.allclose(apply((ops.Shear(slope_x=slope), BLACK), x), expected, atol=0.05)
    turned = apply((ops.Shear(slope_x=(0, 0), slope_y=slope), BLACK), x.transpose(1, 2).contiguous())
    assert torch.allclose(turned.transpose(2, 3), expected, atol=0.05)


def test_perspective_is_torchvisions(tv):
    x = images(3)
    policy = (ops.Perspective(corner_fraction=(0.0, 0.25)), BLACK)
    from tinlab.augment.policy import Policy

    samples = torch.arange(3)
    (change,) = Policy(policy, torch.zeros(3), torch.ones(3), 4).draw(torch.zeros_like(samples), samples)
    found = apply(policy, x, seed=4)
    corners = [[0, 0], [64, 0], [64, 64], [0, 64]]
    for n in range(3):
        ends = [
            [abs(a - 64 * change[f"corner{k}.x"][n].item()), abs(b - 64 * change[f"corner{k}.y"][n].item())]
            for k, (a, b) in enumerate(corners)
        ]
        expected = tv.perspective(planes(x)[n : n + 1], corners, ends, interpolation=bilinear())
        # torchvision solves for the coefficients in float32.
        assert (found[n : n + 1] - expected).abs().mean() < 0.05


@pytest.mark.parametrize(("fill", "mode"), [("reflect", "reflect"), ("edge", "nearest")])
@pytest.mark.parametrize(("right", "down"), [(0.3, -0.2), (1.0, -1.0)])  # the latter past the mirror image
def test_what_lies_outside_is_scipys(fill, mode, right, down):
    x = images(1, 40, 40)
    turn = ops.Rotate(degrees=both(28.0))
    move = ops.Translate(right_fraction=both(right), down_fraction=both(down))
    found = apply((turn, move, ops.Resampling(fill=fill)), x)[0]
    c, s = math.cos(math.radians(28)), math.sin(math.radians(28))
    # From the new to the old place, as (row, column): shift back, then turn back about the centre.
    matrix = np.array([[c, s], [-s, c]])
    centre = np.array([19.5, 19.5])
    offset = centre + matrix @ (-centre - np.array([down * 40, right * 40]))
    for channel in range(3):
        expected = ndimage.affine_transform(
            x[0, :, :, channel].numpy().astype(np.float64), matrix, offset, order=1, mode=mode
        )
        assert np.abs(found[channel].numpy() - expected).max() < 0.05


@pytest.mark.parametrize("fill", ["reflect", "edge"])
def test_shifts_by_whole_pixels_are_padding_and_cropping(fill):
    x = images(200, 16, 16)
    mode = {"reflect": "symmetric", "edge": "edge"}[fill]
    padded = np.pad(x.numpy(), ((0, 0), (3, 3), (3, 3), (0, 0)), mode=mode)
    found = apply((ops.PadCrop(padding_pixels=3), ops.Resampling(fill=fill)), x).permute(0, 2, 3, 1).numpy()
    places = set()
    for n in range(len(x)):
        fits = [
            (top, left)
            for top in range(7)
            for left in range(7)
            if np.abs(padded[n, top : top + 16, left : left + 16] - found[n]).max() < 0.01
        ]
        assert len(fits) == 1
        places.add(fits[0])
    assert len(places) > 40  # of 49


def test_operations_follow_one_another_in_the_order_of_the_list():
    x = images(2, smooth=True)
    turn = ops.Rotate(degrees=both(25.0))
    move = ops.Translate(right_fraction=both(0.1), down_fraction=both(0.0))
    once = apply((turn, move, BLACK), x)
    twice = apply(
        (move, BLACK), apply((turn, BLACK), x).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    )
    other = apply((move, turn, BLACK), x)
    assert (once - twice)[:, :, 8:-8, 16:-8].abs().mean() < 1.5  # two resamples are softer than one
    assert (once - other)[:, :, 8:-8, 16:-8].abs().mean() > 4


def test_flips_are_exact_and_come_last():
    x = images(2)
    across, down = ops.Flip(probability=1), ops.Flip(probability=1, axis="up_down")
    assert torch.equal(apply((across,), x), planes(x).flip(3))
    assert torch.equal(apply((down,), x), planes(x).flip(2))
    assert torch.equal(apply((across, down, across), x), planes(x).flip(2))
    turn = ops.Rotate(degrees=both(20.0))
    assert torch.allclose(apply((across, turn), x), apply((turn,), x).flip(3), atol=0.01)
    crop = ops.RandomResizedCrop()
    assert torch.allclose(apply((crop, down), x), apply((crop,), x).flip(2), atol=0.01)


def test_both_resamples_agree_where_both_apply():
    x = images(4)
    width = height = 64
    matrix = torch.eye(3).repeat(4, 1, 1)
    matrix[:, 0, 0], matrix[:, 1, 1] = torch.tensor([0.5, 0.8, 1.0, 0.9]), torch.tensor([0.7, 1.0, 0.6, 0.9])
    matrix[:, 0, 2], matrix[:, 1, 2] = torch.tensor([3.0, -8, 12, 0]), torch.tensor([-3.0, 5, 0, 40])
    for fill in ("reflect", "edge"):
        warped = geometry.warp(planes(x), matrix, 64, fill=fill)
        rows, columns = geometry.boxes(matrix, height, width)
        boxed = geometry.resample(x, rows, columns, 64, fill=fill).permute(0, 3, 1, 2)
        assert torch.allclose(warped, boxed, atol=0.02)


@pytest.mark.parametrize("size", [24, 64, 100])
def test_bicubic_resizing_is_what_torch_does_with_antialiasing(size):
    x = images(2)
    expected = F.interpolate(
        planes(x), size=(size, size), mode="bicubic", antialias=True, align_corners=False
    )
    found = apply((ops.Resampling(interpolation="bicubic"),), x, size)
    assert torch.allclose(found, expected.clamp(0, 255), atol=0.05)


def test_bicubic_warps_are_keys_kernel():
    x = images(1, 16, 16)
    found = apply((ops.Rotate(degrees=both(33.0)), ops.Resampling(interpolation="bicubic", fill="edge")), x)
    c, s = math.cos(math.radians(33)), math.sin(math.radians(33))
    source = x[0].numpy().astype(np.float64)

    def kernel(d):
        d = abs(d)
        if d < 1:
            return 1.5 * d**3 - 2.5 * d**2 + 1
        return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0

    for row, column in [(8, 8), (4, 10), (0, 0), (15, 3)]:
        dy, dx = row - 7.5, column - 7.5
        y, x_ = 7.5 + s * dx + c * dy, 7.5 + c * dx - s * dy
        total = np.zeros(3)
        for i in range(math.floor(y) - 1, math.floor(y) + 3):
            for j in range(math.floor(x_) - 1, math.floor(x_) + 3):
                total += source[np.clip(i, 0, 15), np.clip(j, 0, 15)] * kernel(y - i) * kernel(x_ - j)
        assert np.abs(found[0, :, row, column].numpy() - total.clip(0, 255)).max() < 0.05


@settings(max_examples=20, deadline=None)
@given(degrees=st.floats(-180, 180), factor=st.floats(0.6, 1.5), seed=st.integers(0, 100))
def test_one_colour_stays_that_colour_wherever_it_goes(degrees, factor, seed):
    x = torch.full((2, 20, 20, 3), 77, dtype=torch.uint8)
    policy = (ops.Rotate(degrees=both(degrees)), ops.Scale(factor=both(factor)), ops.Perspective())
    assert torch.allclose(apply(policy, x, seed=seed), torch.tensor(77.0), atol=1e-3)


@pytest.mark.parametrize("size", [12, 20, 33])
@pytest.mark.parametrize("operations", [(), (ops.Flip(), ops.RandomResizedCrop())])
def test_a_colour_for_what_lies_outside_stays_outside(operations, size):
    x = torch.full((20, 20, 20, 3), 77, dtype=torch.uint8)
    found = apply((*operations, ops.Resampling(fill=(255, 0, 0))), x, size)
    assert torch.allclose(found, torch.tensor(77.0), atol=1e-3)


@pytest.mark.parametrize("size", [16, 20])
def test_shrinking_by_scale_is_antialiased_at_every_size(size):
    stripes = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    found = apply((ops.Scale(factor=both(0.5)),), stripes, size)
    assert (found - 127.5).abs().max() < (20 if size == 16 else 60)


def test_a_smaller_size_is_antialiased_under_any_matrix():
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    found = apply((ops.Rotate(degrees=both(0.0)),), stripes, 32)
    # A triangle of the new pixel's width mixes a stripe and its two neighbours to nearly even grey.
    assert (found - 127.5).abs()[:, :, :, 1:-1].max() < 20


@pytest.mark.parametrize("size", [32, 48])
def test_a_crop_stays_sharp_at_a_smaller_size_beside_an_operation_that_turns(size):
    """It is cut out of the stored pixels, and not out of an image that was made smaller before."""
    # Of the detail that photographs have: what is finer than two pixels is lost to any interpolation.
    coarse = images(16, 32, 32).permute(0, 3, 1, 2).float()
    smooth = F.interpolate(coarse, scale_factor=2, mode="bilinear").round().byte().permute(0, 2, 3, 1)
    crop = ops.RandomResizedCrop(area=both(0.35))
    alone, beside = (apply(o, smooth, size) for o in ((crop,), (crop, ops.Rotate(degrees=both(0.0)))))
    detail = [(x[..., 1:] - x[..., :-1]).abs().mean() for x in (alone, beside)]
    assert detail[1] > 0.8 * detail[0]
    assert (alone - beside).abs().mean() < 0.1 * alone.std()
