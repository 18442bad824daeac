"""What augmentation is made of: each operation with its ranges.

A range is (low, high), drawn uniformly between the two for each image. Fractions are shares of the image's
side, pixels are those of the stored image, levels are steps of 0..255. Whatever its place in the list, an
operation runs in the stage that it belongs to; `tinlab.augment.policy` states their order.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tinlab.recipe.knobs import Fraction, Knobs, NotNegative, Positive


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("a range goes from a smaller number to a larger one")
    return value


Level = Annotated[float, Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level]
"""Red, green and blue in 0..255."""
Range = Annotated[tuple[float, float], AfterValidator(_rising)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_rising)]
FractionRange = Annotated[tuple[Fraction, Fraction], AfterValidator(_rising)]
FactorRange = Annotated[tuple[NotNegative, NotNegative], AfterValidator(_rising)]
_Corner = Annotated[float, Field(ge=0, lt=0.5)]
_Bits = Annotated[int, Field(ge=1, le=8)]
_Threshold = Annotated[float, Field(ge=0, le=256)]
_Count = Annotated[int, Field(ge=0)]


class Change(Knobs):
    """One change to an image, made to a random share of the images."""

    kind: str
    probability: Fraction = 1.0
    """Share of the images that it is applied to; inside `some_of`, of those that picked it."""

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """What a person reads: the kind, its values, and which share of the images it changes."""
        said = [self.kind.replace("_", " ")]
        said += [
            _said(name, value) for name, value in self if name not in ("kind", "probability", "ends_only")
        ]
        if getattr(self, "ends_only", False):
            said.append("one of the two ends")
        if self.probability != 1:
            said.append(f"on {100 * self.probability:g}% of the images")
        return [", ".join(word for word in said if word)]


class _Ranged(Change):
    ends_only: bool = False
    """Draw one of the two ends of a range instead of a value between them."""


# Geometry: all of a policy's are one 3x3 matrix an image.


class Flip(Change):
    """Mirror left and right, or top and bottom. Done after all other geometry."""

    kind: Literal["flip"] = "flip"
    probability: Fraction = 0.5
    axis: Literal["left_right", "up_down"] = "left_right"
    alternate: bool = False
    """Mirror each image in every other pass: half of them, drawn once, in the even ones and the rest in the
    odd ones, so that two passes show each image both ways (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds",
    section 3.6)."""

    @model_validator(mode="after")
    def _half_alternate(self) -> Self:
        if self.alternate and self.probability != 0.5:
            raise ValueError("alternate mirrors half of the images; leave the probability at 0.5")
        return self

    def lines(self) -> list[str]:
        return [super().lines()[0].replace("alternate", "in every other pass")]


class RandomResizedCrop(Change):
    """Cut a box of random area and aspect and resize it to the training size (Szegedy et al. 2015). A side
    that would be longer than the image's is cut to that, so that boxes of nearly all of it are rarer."""

    kind: Literal["random_resized_crop"] = "random_resized_crop"
    area: FractionRange = (0.6, 1.0)
    """Smallest and largest share of the image's area."""
    aspect: PositiveRange = (3 / 4, 4 / 3)
    """Smallest and largest width over height; drawn uniformly in the logarithm."""

    @model_validator(mode="after")
    def _has_area(self) -> Self:
        if not self.area[0] > 0:
            raise ValueError("area starts above 0")
        return self


class PadCrop(Change):
    """Shift by whole pixels, as padding and then cropping at random does (He et al. 2016)."""

    kind: Literal["pad_crop"] = "pad_crop"
    padding_pixels: Annotated[int, Field(ge=0)] = 8


class Rotate(_Ranged):
    """Turn anticlockwise about the centre."""

    kind: Literal["rotate"] = "rotate"
    degrees: Range = (-15.0, 15.0)


class Translate(_Ranged):
    """Shift to the right and downwards."""

    kind: Literal["translate"] = "translate"
    right_fraction: Range = (-0.1, 0.1)
    down_fraction: Range = (-0.1, 0.1)


class Scale(_Ranged):
    """Enlarge (above 1) or shrink about the centre."""

    kind: Literal["scale"] = "scale"
    factor: PositiveRange = (0.8, 1.2)


class Shear(_Ranged):
    """Slant about the centre: each row moves sideways by `slope_x` pixels a pixel down, then each column
    downwards by `slope_y` a pixel to the right."""

    kind: Literal["shear"] = "shear"
    slope_x: Range = (-0.2, 0.2)
    slope_y: Range = (0.0, 0.0)


class Perspective(Change):
    """Move each corner inwards, along both axes, by a share of the side; the picture fills the new shape."""

    kind: Literal["perspective"] = "perspective"
    corner_fraction: Annotated[tuple[_Corner, _Corner], AfterValidator(_rising)] = (0.0, 0.15)


class Resampling(Knobs):
    """How the policy's one resample is done; without it, as the defaults say."""

    kind: Literal["resampling"] = "resampling"
    fill: Literal["reflect", "edge"] | Colour = "reflect"
    """What lies outside the image: its mirror image, its outermost pixels, or a colour."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __str__(self) -> str:
        return self.lines()[0]

    def lines(self) -> list[str]:
        fill = self.fill if isinstance(self.fill, str) else "colour {:g} {:g} {:g}".format(*self.fill)
        return [f"resampling, {self.interpolation}, outside: {fill}"]


# Colour: all of a policy's are one 4x4 matrix an image.


class Brightness(_Ranged):
    """Multiply by a factor."""

    kind: Literal["brightness"] = "brightness"
    factor: FactorRange = (0.8, 1.2)


class Contrast(_Ranged):
    """Move away from the pivot by a factor: the image's mean grey, or black, where it multiplies."""

    kind: Literal["contrast"] = "contrast"
    factor: FactorRange = (0.8, 1.2)
    pivot: Literal["mean", "black"] = "mean"


class Saturation(_Ranged):
    """Move away from the pixel's grey by a factor."""

    kind: Literal["saturation"] = "saturation"
    factor: FactorRange = (0.8, 1.2)


class Hue(_Ranged):
    """Turn the colours about the grey axis, in YIQ, so that a pixel's grey stays; from red towards green."""

    kind: Literal["hue"] = "hue"
    degrees: Range = (-15.0, 15.0)


class Tint(_Ranged):
    """Add a random number of levels to each channel."""

    kind: Literal["tint"] = "tint"
    levels: Range = (-5.0, 5.0)


class Greyscale(Change):
    """Replace the colours by their grey (ITU-R BT.601)."""

    kind: Literal["greyscale"] = "greyscale"
    probability: Fraction = 0.2


class Invert(Change):
    """The negative."""

    kind: Literal["invert"] = "invert"
    probability: Fraction = 0.1


# Tables: all of a policy's are one table of 256 values an image and channel.


class Gamma(_Ranged):
    """Raise the values, as 0..1, to a power."""

    kind: Literal["gamma"] = "gamma"
    power: PositiveRange = (0.7, 1.4)


class Posterise(_Ranged):
    """Keep the highest bits of each value."""

    kind: Literal["posterise"] = "posterise"
    bits: Annotated[tuple[_Bits, _Bits], AfterValidator(_rising)] = (4, 8)


class Solarise(_Ranged):
    """Invert the values from a threshold on."""

    kind: Literal["solarise"] = "solarise"
    threshold_levels: Annotated[tuple[_Threshold, _Threshold], AfterValidator(_rising)] = (128.0, 256.0)


class Equalise(Change):
    """Spread each channel's values so that all are about as frequent."""

    kind: Literal["equalise"] = "equalise"


class Autocontrast(Change):
    """Stretch each channel to 0..255."""

    kind: Literal["autocontrast"] = "autocontrast"


# Filters, noise and boxes.


class Blur(_Ranged):
    """Gaussian blur."""

    kind: Literal["blur"] = "blur"
    sigma_pixels: FactorRange = (0.0, 1.0)


class Sharpness(_Ranged):
    """Move away from the image smoothed with a 3x3 kernel by a factor; below 1 it blurs."""

    kind: Literal["sharpness"] = "sharpness"
    factor: FactorRange = (0.5, 2.0)


class GaussianNoise(_Ranged):
    """Add normal noise."""

    kind: Literal["gaussian_noise"] = "gaussian_noise"
    deviation_levels: FactorRange = (0.0, 15.0)
    grey: bool = False
    """The same noise on all three channels."""


class SaltNoise(_Ranged):
    """Make a share of the pixels white or black."""

    kind: Literal["salt_noise"] = "salt_noise"
    share: FractionRange = (0.0, 0.03)


class Cutout(_Ranged):
    """Cover a square that is centred anywhere in the image, and may reach over its edge (DeVries and Taylor
    2017)."""

    kind: Literal["cutout"] = "cutout"
    side_fraction: FractionRange = (0.25, 0.25)
    fill: Literal["mean", "noise"] | Colour = "mean"
    """What becomes 0 (the training images' mean, or black where no mean is subtracted), normal noise of 64
    levels about the middle, or a colour."""


class RandomErasing(Change):
    """Cover a box of random area and aspect inside the image (Zhong et al. 2020)."""

    kind: Literal["random_erasing"] = "random_erasing"
    probability: Fraction = 0.5
    area: FractionRange = (0.02, 0.33)
    aspect: PositiveRange = (0.3, 3.3)
    """Height over width; drawn uniformly in the logarithm."""
    fill: Literal["mean", "noise"] | Colour = "mean"


Simple = Annotated[
    Flip | RandomResizedCrop | PadCrop | Rotate | Translate | Scale | Shear | Perspective
    | Brightness | Contrast | Saturation | Hue | Tint | Greyscale | Invert
    | Gamma | Posterise | Solarise | Equalise | Autocontrast
    | Blur | Sharpness | GaussianNoise | SaltNoise | Cutout | RandomErasing,
    Field(discriminator="kind"),
]  # fmt: skip
"""An operation that changes one image."""


def _refuse_alternating(operations: tuple[Any, ...]) -> None:
    if any(isinstance(operation, Flip) and operation.alternate for operation in operations):
        raise ValueError(
            "a flip that alternates stands by itself in the policy, not inside another operation"
        )


class SomeOf(Knobs):
    """A random several of these on each image; they run in the order of the list. With a count of (1, 1), one
    of these."""

    kind: Literal["some_of"] = "some_of"
    count: Annotated[tuple[_Count, _Count], AfterValidator(_rising)] = (1, 1)
    """Fewest and most operations on an image; each number between them is as likely."""
    operations: Annotated[tuple[Simple, ...], Field(min_length=1)]
    idle: _Count = 0
    """How many further choices change nothing."""

    @model_validator(mode="after")
    def _none_alternates(self) -> Self:
        _refuse_alternating(self.operations)
        return self

    @model_validator(mode="after")
    def _has_as_many(self) -> Self:
        if self.count[1] > len(self.operations) + self.idle:
            raise ValueError(
                f"count goes to {self.count[1]}, but there are {len(self.operations)} operations"
            )
        return self

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        low, high = self.count
        idle = f", or of {self.idle} that do nothing" if self.idle else ""
        head = f"{low if low == high else f'{low} to {high}'} of these {len(self.operations)}{idle}:"
        return [head, *("  " + line for operation in self.operations for line in operation.lines())]


class FixedCopies(Knobs):
    """Enlarge the training set once: for each of these operations, copies of a random share of the images,
    changed by it with strengths that stay the same in every pass. The originals remain, unchanged.

    Nothing is stored: a copy is made anew, and alike, each time that it is met.
    """

    kind: Literal["fixed_copies"] = "fixed_copies"
    share: Fraction = 0.3
    """Copies an operation, as a share of the images."""
    operations: Annotated[tuple[Simple, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _none_alternates(self) -> Self:
        _refuse_alternating(self.operations)
        return self

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        head = f"the images, and fixed copies of {100 * self.share:g}% of them for each of:"
        return [head, *("  " + line for operation in self.operations for line in operation.lines())]


class Mixup(Knobs):
    """Blend each image with its partner, and their labels likewise, with a weight from Beta(alpha, alpha)
    (Zhang et al. 2018)."""

    kind: Literal["mixup"] = "mixup"
    alpha: Positive = 0.2
    probability: Fraction = 1.0

    def __str__(self) -> str:
        return self.lines()[0]

    def lines(self) -> list[str]:
        return [f"{self.kind}, alpha {self.alpha:g}, on {100 * self.probability:g}% of the images"]


class Cutmix(Mixup):
    """Paste a box of the partner into each image; labels weigh as their areas, 1 - area ~ Beta(alpha, alpha)
    (Yun et al. 2019)."""

    kind: Literal["cutmix"] = "cutmix"  # type: ignore[assignment]
    alpha: Positive = 1.0


Operation = Annotated[
    Simple | SomeOf | FixedCopies | Resampling | Mixup | Cutmix, Field(discriminator="kind")
]


def fit_together(operations: tuple[Any, ...]) -> tuple[Any, ...]:
    """`operations`, once they make a policy. Raises ValueError where they do not."""
    for only in (Resampling, FixedCopies):
        if sum(isinstance(operation, only) for operation in operations) > 1:
            raise ValueError(f"a policy has at most one {only.model_fields['kind'].default}")
    mixing = [operation for operation in operations if isinstance(operation, Mixup)]
    if len({operation.kind for operation in mixing}) < len(mixing):
        raise ValueError("a policy has at most one mixup and one cutmix")
    if sum(operation.probability for operation in mixing) > 1 + 1e-9:
        raise ValueError(
            "mixup and cutmix: an image gets one of them or none, so their probabilities add up to at most 1"
        )
    return operations


def _said(name: str, value: Any) -> str:
    words = name.replace("_", " ")
    if isinstance(value, str):
        return f"{words} {value.replace('_', ' and ')}"
    if isinstance(value, bool):
        return words if value else ""
    if isinstance(value, tuple) and len(value) == 3:
        return "{} {:g} {:g} {:g}".format(words, *value)
    if isinstance(value, tuple):
        low, high = value
        return f"{words} {low:.3g}" if low == high else f"{words} {low:.3g} to {high:.3g}"
    return f"{words} {value:g}"
