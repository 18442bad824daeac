"""What augmentation is made of: each operation with its ranges."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tinlab.recipe.knobs import Fraction, Knobs, Positive


class Flip(Knobs):
    """Mirror left and right."""

    kind: Literal["flip"] = "flip"
    probability: Fraction = 0.5


class RandomResizedCrop(Knobs):
    """Cut a box of random area and aspect and resize it to the training size (Szegedy et al. 2015)."""

    kind: Literal["random_resized_crop"] = "random_resized_crop"
    area: tuple[Fraction, Fraction] = (0.6, 1.0)
    """Smallest and largest share of the image's area."""
    aspect: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Smallest and largest width over height; drawn uniformly in the logarithm."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 < self.area[0] <= self.area[1] or not self.aspect[0] <= self.aspect[1]:
            raise ValueError("a range goes from a smaller number above 0 to a larger one")
        return self


Operation = Annotated[Flip | RandomResizedCrop, Field(discriminator="kind")]
