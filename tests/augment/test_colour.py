import colorsys

import numpy as np
import pytest
import torch
from help import apply, images, planes

from tinlab.augment import colour
from tinlab.models.zoo import import_torchvision
from tinlab.recipe import operations as ops


@pytest.fixture(scope="module")
def tv():
    import_torchvision()
    from torchvision.transforms.v2 import functional

    return functional


def both(value):
    return (value, value)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.7])
@pytest.mark.parametrize(
    ("operation", "name"),
    [(ops.Brightness, "brightness"), (ops.Contrast, "contrast"), (ops.Saturation, "saturation")],
)
def test_factors_are_torchvisions(tv, operation, name, factor):
    x = images(3, 16, 16)
    expected = getattr(tv, f"adjust_{name}")(planes(x) / 255, factor) * 255
    # torchvision's grey has weights of four digits: 0.2989 instead of 0.299.
    assert torch.allclose(apply((operation(factor=both(factor)),), x), expected, atol=0.1)


def test_invert_and_greyscale_are_torchvisions(tv):
    x = images(3, 16, 16)
    assert torch.allclose(apply((ops.Invert(probability=1),), x), tv.invert(planes(x) / 255) * 255, atol=1e-2)
    grey = tv.rgb_to_grayscale(planes(x), num_output_channels=3)
    assert torch.allclose(apply((ops.Greyscale(probability=1),), x), grey, atol=0.1)


def test_the_black_pivot_multiplies_the_pixel():
    x = images(2, 16, 16)
    found = apply((ops.Contrast(factor=both(0.8), pivot="black"),), x)
    assert torch.allclose(found, 0.8 * planes(x), atol=1e-2)


@pytest.mark.parametrize("degrees", [-50.0, 20.0])
def test_hue_turns_i_and_q_as_the_standard_library_has_them(degrees):
    # Pale colours, which stay inside the cube.
    x = (images(1, 8, 8) // 4 + 96).to(torch.uint8)
    found = apply((ops.Hue(degrees=both(degrees)),), x)[0].permute(1, 2, 0).numpy()
    angle = np.radians(degrees)
    for pixel, new in zip(x[0].reshape(-1, 3).numpy() / 255, found.reshape(-1, 3), strict=True):
        y, i, q = colorsys.rgb_to_yiq(*pixel)
        turned = complex(q, i) * np.exp(1j * angle)
        expected = 255 * np.array(colorsys.yiq_to_rgb(y, turned.imag, turned.real))
        assert np.abs(new - expected).max() < 1.5  # the library's weights have two digits


def test_hue_keeps_grey_and_goes_full_circle():
    x = images(2, 8, 8)
    grey = x[..., :1].expand(-1, -1, -1, 3).contiguous()
    assert torch.allclose(apply((ops.Hue(degrees=both(77.0)),), grey), planes(grey), atol=0.02)
    assert torch.allclose(apply((ops.Hue(degrees=both(360.0)),), x), planes(x), atol=0.02)


def test_hue_turns_as_kornias_within_fifteen_degrees():
    """kornia turns the hue of HSV, whose circle runs at another pace; the direction and the size agree."""
    kornia = pytest.importorskip("kornia")
    x = (images(1, 8, 8) // 3 + 80).to(torch.uint8)
    found = apply((ops.Hue(degrees=both(30.0)),), x) / 255
    expected = kornia.enhance.adjust_hue(planes(x) / 255, torch.tensor([np.pi / 6]))
    apart = kornia.color.rgb_to_hsv(found)[:, 0] - kornia.color.rgb_to_hsv(expected)[:, 0]
    apart = (apart + np.pi) % (2 * np.pi) - np.pi
    assert apart.abs().median() < np.radians(15)


def test_tint_adds_to_each_channel():
    x = (images(50, 8, 8) // 2 + 50).to(torch.uint8)
    moved = apply((ops.Tint(levels=(-5, 5)),), x) - planes(x)
    per_channel = moved.flatten(2)
    assert (per_channel.amax(2) - per_channel.amin(2)).max() < 1e-2
    levels = per_channel[:, :, 0]
    assert -5 <= levels.min() < -4 < 4 < levels.max() <= 5
    assert (levels[:, 0] - levels[:, 1]).abs().max() > 1


def test_a_chain_is_one_matrix_and_is_clamped_once():
    x = images(3, 16, 16)
    assert torch.allclose(
        apply((ops.Brightness(factor=both(2.0)), ops.Brightness(factor=both(0.5))), x), planes(x), atol=1e-2
    )
    chain = (
        ops.Brightness(factor=both(0.7)),
        ops.Saturation(factor=both(0.5)),
        ops.Contrast(factor=both(0.6)),
    )
    found = apply(chain, x)
    step = planes(x)
    step = 0.7 * step
    grey = (step * torch.tensor(colour.GREY)[:, None, None]).sum(1, keepdim=True)
    step = grey + 0.5 * (step - grey)
    mean = (step * torch.tensor(colour.GREY)[:, None, None]).sum(1).mean((1, 2))[:, None, None, None]
    step = mean + 0.6 * (step - mean)
    assert torch.allclose(found, step, atol=0.02)


def test_normalisation_is_folded_in():
    x = images(2, 16, 16)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    from tinlab.augment.policy import Policy

    policy = Policy((ops.Brightness(factor=both(1.5)),), mean, std, 0)
    samples = torch.arange(2)
    found = policy.apply(x, samples, samples, 16)
    bright = (1.5 * planes(x)).clamp(0, 255) / 255
    assert torch.allclose(found, (bright - mean[:, None, None]) / std[:, None, None], atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)
