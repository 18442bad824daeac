import numpy as np
import pytest
import torch
from help import apply, images, planes
from PIL import Image, ImageOps

from tinlab.augment import draws, tables
from tinlab.augment.strengths import Strengths
from tinlab.models.zoo import import_torchvision
from tinlab.recipe import operations as ops


def both(value):
    return (value, value)


def by_pillow(x, function):
    return torch.stack([torch.from_numpy(np.array(function(Image.fromarray(i.numpy())))) for i in x])


@pytest.fixture(params=["noise", "hills", "one colour", "two colours"])
def x(request):
    if request.param == "noise":
        return images(3, 16, 16)
    if request.param == "hills":
        return images(3, 16, 16, smooth=True) // 3 + 40
    made = torch.full((2, 16, 16, 3), 90, dtype=torch.uint8)
    if request.param == "two colours":
        made[:, 3:9] = 200
    return made


def test_equalise_is_pillows(x):
    assert torch.equal(apply((ops.Equalise(),), x), planes(by_pillow(x, ImageOps.equalize)))


def test_autocontrast_is_pillows(x):
    expected = planes(by_pillow(x, ImageOps.autocontrast))
    assert (apply((ops.Autocontrast(),), x) - expected).abs().max() <= 1  # Pillow cuts, we round


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_posterise_is_pillows(x, bits):
    expected = planes(by_pillow(x, lambda image: ImageOps.posterize(image, bits)))
    assert torch.equal(apply((ops.Posterise(bits=both(bits)),), x), expected)


@pytest.mark.parametrize("threshold", [0, 100, 256])
def test_solarise_is_pillows(x, threshold):
    expected = planes(by_pillow(x, lambda image: ImageOps.solarize(image, threshold)))
    assert torch.equal(apply((ops.Solarise(threshold_levels=both(threshold)),), x), expected)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.2])
def test_gamma_is_torchvisions(x, power):
    import_torchvision()
    from torchvision.transforms.v2 import functional

    expected = functional.adjust_gamma(planes(x).to(torch.uint8), power).float()
    assert (apply((ops.Gamma(power=both(power)),), x) - expected).abs().max() <= 1  # torchvision cuts


def test_tables_follow_one_another(x):
    chain = (ops.Posterise(bits=both(3)), ops.Equalise(), ops.Solarise(threshold_levels=both(128)))

    def step_by_step(image):
        return ImageOps.solarize(ImageOps.equalize(ImageOps.posterize(image, 3)), 128)

    assert torch.equal(apply(chain, x), planes(by_pillow(x, step_by_step)))


def test_whole_bits_are_drawn_alike_often():
    x = images(1, 8, 8).expand(600, -1, -1, -1)
    steps = [len(torch.unique(image[0])) for image in apply((ops.Posterise(bits=(1, 3)),), x)]
    counts = [sum(count in counts for count in steps) for counts in ((1, 2), (3, 4), range(5, 9))]
    assert sum(counts) == 600
    assert min(counts) > 150


def test_the_largest_draw_is_the_highest_strength(monkeypatch):
    strengths = Strengths([ops.Posterise(bits=(4, 8))], 0)
    largest = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    monkeypatch.setattr(draws, "uniforms", lambda begin, *_: largest.expand(len(begin), 1))
    (drawn,) = strengths.draw(torch.tensor([0]), torch.tensor([0]))
    assert drawn.values["bits"].tolist() == [8]


def test_the_histogram_is_numpys():
    x = images(2, 16, 16, smooth=True)
    found = tables.histogram(x)
    for n in range(2):
        for channel in range(3):
            expected = np.bincount(x[n, :, :, channel].numpy().ravel(), minlength=256)
            assert np.array_equal(found[n, channel].numpy(), expected)
