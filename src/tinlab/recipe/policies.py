"""Policies by name: what a recipe's `augment` may be instead of a list of operations."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from tinlab.recipe.operations import (
    Autocontrast,
    Blur,
    Brightness,
    Contrast,
    Equalise,
    FixedCopies,
    Flip,
    GaussianNoise,
    Invert,
    PadCrop,
    Posterise,
    RandomResizedCrop,
    Rotate,
    Saturation,
    Scale,
    Sharpness,
    Shear,
    Solarise,
    SomeOf,
    Tint,
    Translate,
)

Policy = tuple[Any, ...]
"""Operations, in the sense of `tinlab.recipe.Operation`."""


def sun_light() -> Policy:
    """Sun's flip, section 5.2. The mean that he subtracts beside it is `data.normalise`."""
    return (Flip(probability=0.5),)


def sun_heavy() -> Policy:
    """Sun's 12 transforms, section 6: a random several on each image, each at a random strength.

    Stated: flip, crop, scale, shift, rotate, shear, invert, brightness and noise; that they are 12; that the
    ranges keep the object plain to the eye. Assumed: the other three (contrast, saturation, blur, which the
    package that he used also has), how many an image gets, and every range.
    """
    return (
        SomeOf(
            count=(2, 5),
            operations=(
                Flip(probability=1.0),
                RandomResizedCrop(area=(0.7, 1.0), aspect=(1.0, 1.0)),
                Scale(factor=(0.8, 1.2)),
                Translate(right_fraction=(-0.15, 0.15), down_fraction=(-0.15, 0.15)),
                Rotate(degrees=(-20.0, 20.0)),
                Shear(slope_x=(-0.2, 0.2)),
                Invert(probability=0.3),
                Brightness(factor=(0.7, 1.3)),
                Contrast(factor=(0.6, 1.4)),
                Saturation(factor=(0.4, 1.6)),
                Blur(sigma_pixels=(0.3, 0.9)),
                GaussianNoise(deviation_levels=(2.0, 14.0)),
            ),
        ),
    )


def _shcherbina(probability: float) -> Policy:
    side = 55 / 64
    return (
        Flip(probability=probability),
        Flip(probability=probability, axis="up_down"),
        RandomResizedCrop(probability=probability, area=(side**2, side**2), aspect=(1.0, 1.0)),
        Contrast(probability=probability, factor=(0.8, 1.2), pivot="black"),
        Tint(probability=probability, levels=(-5.0, 5.0)),
    )


def shcherbina() -> Policy:
    """Shcherbina's five operations, section 2.1, each on a random 30% of the images in every pass.

    Her spline interpolation is skimage's `resize`, whose default is of order 1: bilinear.
    """
    return _shcherbina(0.3)


def shcherbina_fixed() -> Policy:
    """The same five as her fixed enlarged set of 265,000 images, drawn once.

    Section 2.1 says that 30% of the 100,000 training images were taken for each operation, which makes
    250,000 with the originals. Her code takes a third of them, with replacement, 266,665 in all; here the
    total that she states is kept: 33%, without replacement.
    """
    return (FixedCopies(share=0.33, operations=_shcherbina(1.0)),)


_TRANSLATE = 14.4 / 32
"""Largest translation of the AutoAugment family, as a share of the side: 14.4 of CIFAR's 32 pixels."""


def _family(
    slope: float, shift: float, degrees: float, change: float, bits: int, threshold: float, ends_only: bool
) -> Policy:
    """The 13 operations of the AutoAugment family beside the identity, up to the given strengths."""
    ends = {"ends_only": ends_only}
    around = (1 - change, 1 + change)
    return (
        Shear(slope_x=(-slope, slope), slope_y=(0, 0), **ends),
        Shear(slope_x=(0, 0), slope_y=(-slope, slope), **ends),
        Translate(right_fraction=(-shift, shift), down_fraction=(0, 0), **ends),
        Translate(right_fraction=(0, 0), down_fraction=(-shift, shift), **ends),
        Rotate(degrees=(-degrees, degrees), **ends),
        Brightness(factor=around, **ends),
        Saturation(factor=around, **ends),
        Contrast(factor=around, **ends),
        Sharpness(factor=around, **ends),
        Posterise(bits=(bits, bits if ends_only else 8)),
        Solarise(threshold_levels=(threshold, threshold if ends_only else 256)),
        Autocontrast(),
        Equalise(),
    )


def trivial_augment() -> Policy:
    """TrivialAugment (Müller and Hutter 2021) over RandAugment's space: flip, then one of 14 operations, the
    identity included, at a random strength. Strengths are drawn from the whole range, not from 31 steps of
    it, and what lies outside is the mirror image instead of black. The ends of the paper's ranges (brightness
    and contrast at 0.1, low thresholds) are not plain to the eye."""
    return Flip(), SomeOf(idle=1, operations=_family(0.3, _TRANSLATE, 30.0, 0.9, 4, 0.0, False))


def trivial_augment_wide() -> Policy:
    """The same over the paper's wide space, meant for large images: turns up to 135 degrees, and shifts and
    shears that leave half of the object outside. Not plain to the eye."""
    return Flip(), SomeOf(idle=1, operations=_family(0.99, 0.5, 135.0, 0.99, 2, 0.0, False))


def rand_augment() -> Policy:
    """RandAugment (Cubuk et al. 2020) with two operations at magnitude 9 of 30: flip, then twice one of 14,
    the identity included, each at 30% of its full strength, to either side. Outside is the mirror image.
    Solarise and equalise together leave some images hardly plain to the eye, as they do in the paper."""
    share = 9 / 30
    one = SomeOf(
        idle=1,
        operations=_family(
            0.3 * share,
            _TRANSLATE * share,
            30 * share,
            0.9 * share,
            8 - round(4 * share),
            256 * (1 - share),
            True,
        ),
    )
    return Flip(), one, one


def pad_crop_flip() -> Policy:
    """Flip, and shift by up to an eighth of 64 pixels, as He et al. 2016 do with 4 of CIFAR's 32. What comes
    in at the edges is the mirror image, where theirs is black."""
    return Flip(), PadCrop(padding_pixels=8)


def random_resized_crop() -> Policy:
    """Flip, and a box of 25% to 100% of the area: gentler than ImageNet's 8%, since 64 pixels hold less."""
    return Flip(), RandomResizedCrop(area=(0.25, 1.0))


POLICIES: dict[str, Callable[[], Policy]] = {
    "sun_light": sun_light,
    "sun_heavy": sun_heavy,
    "shcherbina": shcherbina,
    "shcherbina_fixed": shcherbina_fixed,
    "trivial_augment": trivial_augment,
    "trivial_augment_wide": trivial_augment_wide,
    "rand_augment": rand_augment,
    "pad_crop_flip": pad_crop_flip,
    "random_resized_crop": random_resized_crop,
}


def named(value: Any) -> Any:
    """The operations of the policy called `value`; what is no string is handed through.

    Raises ValueError for an unknown name.
    """
    if not isinstance(value, str):
        return value
    if value in POLICIES:
        return POLICIES[value]()
    near = difflib.get_close_matches(value, POLICIES, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(POLICIES)}"
    raise ValueError(f"there is no policy '{value}'; {hint}")
