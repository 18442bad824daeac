"""Corruptions: each against what it says it does, and all against what holds of every one."""

from __future__ import annotations

import io

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from PIL import Image

from tinlab.errors import TinlabError
from tinlab.evaluation import corruptions as module
from tinlab.evaluation.corruption_gallery import corruption_gallery
from tinlab.evaluation.corruptions import CORRUPTIONS, GROUPS, STRENGTHS, Chance, corrupt, table_digest


@pytest.fixture(scope="module")
def images(shapes_pack) -> torch.Tensor:
    return torch.from_numpy(np.array(shapes_pack.split("val").images[:6]))


ROWS = torch.arange(6)


def _grey(value: float, batch: int = 4, side: int = 64) -> torch.Tensor:
    return torch.full((batch, side, side, 3), round(255 * value), dtype=torch.uint8)


def test_there_are_four_groups_with_at_least_three_each() -> None:
    groups = [corruption.group for corruption in CORRUPTIONS.values()]
    assert sorted(set(groups), key=GROUPS.index) == list(GROUPS)
    assert all(groups.count(group) >= 3 for group in GROUPS)
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_holds_of_every_corruption(name: str, images: torch.Tensor) -> None:
    """Type and shape stay, every strength is farther from the image than the one before, and an image's
    corruption does not depend on its batch."""
    before = images.clone()
    gaps = []
    for strength in STRENGTHS:
        made = corrupt(images, name, strength, ROWS)
        assert (made.dtype, made.shape) == (torch.uint8, images.shape)
        gaps.append(float((made.float() - images.float()).abs().mean()))
        turned = corrupt(images.flip(0), name, strength, ROWS.flip(0)).flip(0)
        alone = corrupt(images[2:3], name, strength, ROWS[2:3])
        # Blurs are sums, which a processor may add up in another order in another batch.
        for other, same in ((turned, made), (alone, made[2:3])):
            assert int((other.int() - same.int()).abs().max()) <= 1
    assert torch.equal(images, before)
    assert gaps == sorted(gaps)
    assert 0.3 < gaps[0] < 0.7 * gaps[-1]


@pytest.mark.parametrize(
    "name",
    ["gaussian_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog", "elastic"],
)
def test_rows_strengths_and_seeds_draw_differently(name: str) -> None:
    ramp = torch.arange(64, dtype=torch.uint8).view(1, 64, 1, 1) * 2 + torch.arange(
        64, dtype=torch.uint8
    ).view(1, 1, 64, 1)
    image = ramp.expand(2, -1, -1, 3).contiguous()
    made = corrupt(image, name, 3, torch.tensor([5, 6]))
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(corrupt(image, name, 3, torch.tensor([5, 6]), seed=1), made)


def test_noise_has_its_deviation() -> None:
    for strength, level in zip(STRENGTHS, CORRUPTIONS["gaussian_noise"].levels, strict=True):
        made = corrupt(_grey(0.5), "gaussian_noise", strength, torch.arange(4)).double() / 255
        inner = made[(made > 0) & (made < 1)]
        if strength <= 3:  # what is clamped would count
            assert inner.std() == pytest.approx(level[0], rel=0.03)
        assert inner.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("photons", [1.0, 4.0, 20.0, 200.0])
def test_shot_noise_has_poissons_moments(photons: float) -> None:
    chance = Chance(0, "test", torch.arange(8))
    found = 100 * module._shot_noise(torch.full((8, 3, 64, 64), photons / 100), (100.0,), chance).double()
    assert found.round().allclose(found, atol=1e-3)
    found, exact = found.round(), scipy.stats.poisson(photons)
    assert found.mean() == pytest.approx(photons, rel=0.04 if photons < 2 else 0.01)
    assert found.var() == pytest.approx(photons, rel=0.06)
    assert float((found <= exact.ppf(0.1)).double().mean()) == pytest.approx(
        exact.cdf(exact.ppf(0.1)), abs=0.03
    )
    assert float(module._shot_noise(torch.zeros(8, 3, 4, 4), (100.0,), chance).abs().max()) == 0


def test_impulses_have_their_share() -> None:
    made = corrupt(_grey(0.5), "impulse_noise", 4, torch.arange(4))
    black, white = (float((made == value).double().mean()) for value in (0, 255))
    assert black + white == pytest.approx(CORRUPTIONS["impulse_noise"].levels[3][0], rel=0.05)
    assert black == pytest.approx(white, rel=0.1)


@pytest.mark.parametrize(
    "name", ["defocus_blur", "motion_blur", "zoom_blur", "glass_blur", "pixelate", "elastic"]
)
def test_an_even_image_has_nothing_to_blur(name: str) -> None:
    image = _grey(0.4, batch=2)
    assert int((corrupt(image, name, 5, torch.arange(2)).int() - image.int()).abs().max()) <= 1


def test_blurs_are_scipys_convolution(images: torch.Tensor) -> None:
    x = images[:2].permute(0, 3, 1, 2).float() / 255
    angle = torch.tensor([0.3, 2.0])
    for kernels in (module._disc(2.3, x.device).expand(2, -1, -1), module._lines(5.0, angle)):
        assert kernels.sum((1, 2)).numpy() == pytest.approx([1, 1])
        found = module._filtered(x, kernels)
        for n in range(2):
            for channel in range(3):
                expected = scipy.ndimage.correlate(x[n, channel].numpy(), kernels[n].numpy(), mode="mirror")
                assert found[n, channel].numpy() == pytest.approx(expected, abs=1e-5)


def test_a_line_lies_at_its_angle() -> None:
    (kernel,) = module._lines(9.0, torch.tensor([0.0]))
    assert torch.equal(kernel.sum(1) > 0.01, torch.arange(11) == 5)  # all in the middle row
    (kernel,) = module._lines(9.0, torch.tensor([torch.pi / 2]))
    assert torch.equal(kernel.sum(0) > 0.01, torch.arange(11) == 5)


def test_enlarging_keeps_the_middle_and_doubles_distances() -> None:
    matrix = module._enlarging(9, 2.0, torch.device("cpu"))
    places = matrix @ torch.arange(9.0)
    assert places.numpy() == pytest.approx(4 + (np.arange(9) - 4) / 2)


def test_contrast_and_brightness_are_linear(images: torch.Tensor) -> None:
    x = images.double().numpy()
    expected = x.mean((1, 2), keepdims=True)
    expected = expected + CORRUPTIONS["contrast"].levels[2][0] * (x - expected)
    assert np.abs(corrupt(images, "contrast", 3, ROWS).numpy() - expected).max() <= 0.51
    brighter = np.minimum(x + 255 * CORRUPTIONS["brightness"].levels[2][0], 255)
    assert np.abs(corrupt(images, "brightness", 3, ROWS).numpy() - brighter).max() <= 0.51


def test_jpeg_is_pillows(images: torch.Tensor) -> None:
    """Two decoders of one format: the same picture to about a level on average."""
    made = corrupt(images, "jpeg", 2, ROWS)
    for image, found in zip(images, made, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "JPEG", quality=30, subsampling="4:2:0")
        expected = np.asarray(Image.open(file)).astype(int)
        assert np.abs(found.numpy() - expected).mean() < 1.5


def test_pixels_of_half_the_side_are_means_of_four() -> None:
    image = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    x = image.permute(0, 3, 1, 2).float() / 255
    found = module._pixelate(x, (0.5,), Chance(0, "", torch.zeros(1, dtype=torch.int64)))
    means = x.numpy().reshape(1, 3, 32, 2, 32, 2).mean((3, 5))
    assert found.numpy() == pytest.approx(means.repeat(2, 2).repeat(2, 3), abs=1e-6)


@pytest.mark.parametrize("side", [8, 17, 128])
def test_other_sizes(side: int) -> None:
    image = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8)
    for name in CORRUPTIONS:
        assert corrupt(image, name, 5, torch.tensor([0])).shape == image.shape


def test_what_there_is_not_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(TinlabError, match="no corruption 'rain'"):
        corrupt(images, "rain", 1, ROWS)
    with pytest.raises(TinlabError, match="strength 6"):
        corrupt(images, "fog", 6, ROWS)


def test_the_digest_follows_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    before = table_digest()
    assert before == table_digest()
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert table_digest() != before


def test_the_gallery_has_a_row_a_corruption(shapes_pack) -> None:
    one, two = (corruption_gallery(shapes_pack, images=n) for n in (1, 2))
    assert one.height == two.height > 15 * 128
    assert two.width > 1.8 * one.width
    with pytest.raises(TinlabError, match="images is 0"):
        corruption_gallery(shapes_pack, images=0)
