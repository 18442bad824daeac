import numpy as np
import pytest
import torch
from help import apply, images, planes
from scipy import ndimage, stats

from tinlab.augment import noise
from tinlab.models.zoo import import_torchvision
from tinlab.recipe import operations as ops


def both(value):
    return (value, value)


@pytest.fixture(scope="module")
def tv():
    import_torchvision()
    from torchvision.transforms.v2 import functional

    return functional


@pytest.mark.parametrize("sigma", [0.5, 1.3, 3.0])
def test_blur_is_scipys(sigma):
    x = images(2, 40, 40)
    found = apply((ops.Blur(sigma_pixels=both(sigma)),), x)
    expected = ndimage.gaussian_filter(planes(x).numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=5)
    assert np.abs(found.numpy() - expected).max() < 0.1  # on 0..255


@pytest.mark.parametrize("sigma", [0.4, 1.0])
def test_blur_is_torchvisions(tv, sigma):
    x = images(2, 40, 40)
    side = 2 * int(np.ceil(4 * sigma)) + 1
    expected = tv.gaussian_blur(planes(x), [side, side], [sigma, sigma])
    assert torch.allclose(apply((ops.Blur(sigma_pixels=both(sigma)),), x), expected, atol=0.01)


def test_blur_is_in_pixels_of_the_stored_image():
    x = images(2, 64, 64, smooth=True)
    small = apply((ops.Blur(sigma_pixels=both(4.0)),), x, 32)
    expected = ndimage.gaussian_filter(apply((), x, 32).numpy(), (0, 0, 2, 2), mode="mirror")
    assert np.abs(small.numpy() - expected).max() < 0.1


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.9])
def test_sharpness_is_torchvisions(tv, factor):
    x = images(3, 20, 20)
    expected = tv.adjust_sharpness(planes(x) / 255, factor) * 255
    assert torch.allclose(apply((ops.Sharpness(factor=both(factor)),), x), expected, atol=0.02)


def test_the_bank_is_normal_and_begins_alike():
    bank = noise.bank(3, 100)
    assert stats.kstest(bank[:100_000].double().numpy(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(bank[:-1], bank[1:])[0, 1]) < 0.01
    assert torch.equal(noise.bank(3, 5000)[: len(bank)], bank)
    assert not torch.equal(noise.bank(4, 100), bank)


@pytest.mark.parametrize("grey", [False, True])
def test_gaussian_noise_has_the_asked_deviation_and_differs(grey):
    x = torch.full((6, 64, 64, 3), 128, dtype=torch.uint8)
    added = apply((ops.GaussianNoise(deviation_levels=both(10.0), grey=grey),), x) - 128
    for image in added:
        assert abs(image.mean()) < 0.6
        assert abs(image.std() - 10) < 0.4
        assert torch.allclose(image[0], image[1], atol=1e-4) == grey
    assert abs(np.corrcoef(added[0].ravel(), added[1].ravel())[0, 1]) < 0.05


def test_salt_makes_the_asked_share_white_and_black():
    x = torch.full((20, 64, 64, 3), 128, dtype=torch.uint8)
    found = apply((ops.SaltNoise(share=both(0.1)),), x)
    assert (found[:, 0] == found[:, 1]).all()
    white, black = ((found[:, 0] - level).abs() < 1e-2 for level in (255, 0))
    assert abs(white.float().mean() - 0.05) < 0.005
    assert abs(black.float().mean() - 0.05) < 0.005
    assert (white | black | (found[:, 0] == 128)).all()


@pytest.mark.parametrize("fill", ["mean", "noise", (10, 20, 30)])
def test_cutout_covers_a_square_and_nothing_else(fill):
    x = (images(300, 32, 32) // 2 + 100).to(torch.uint8)
    found = apply((ops.Cutout(side_fraction=both(0.5), fill=fill),), x)
    changed = ((found - planes(x)).abs() > 1e-3).any(1)  # (B, 32, 32)
    assert changed.flatten(1).sum(1).max() <= 16 * 16
    for image, mask in zip(found, changed, strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        inside = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert 8 <= len(rows) <= 16  # centred inside the image, so half of it at least
        if fill != "noise":
            expected = torch.tensor((0, 0, 0) if fill == "mean" else fill, dtype=torch.float32)
            assert torch.allclose(inside, expected[:, None, None].expand_as(inside), atol=1e-3)
    assert (changed[:, 0, 0]).any()  # it reaches into corners


def test_erasing_covers_boxes_of_the_asked_area_and_aspect_inside_the_image():
    x = torch.full((400, 64, 64, 3), 200, dtype=torch.uint8)
    policy = (ops.RandomErasing(probability=0.5, area=(0.1, 0.3), aspect=(0.5, 2), fill=(0, 0, 0)),)
    covered = (apply(policy, x) < 1)[:, 0]
    some = covered[covered.flatten(1).any(1)]
    assert 150 < len(some) < 250
    height, width = some.any(2).sum(1).float(), some.any(1).sum(1).float()
    assert torch.equal(height * width, some.flatten(1).sum(1).float())
    area, aspect = height * width / 64**2, height / width
    assert 0.09 < area.min() < 0.12
    assert 0.27 < area.max() < 0.32
    assert 0.45 < aspect.min() < 0.6
    assert 1.7 < aspect.max() < 2.2
