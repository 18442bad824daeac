"""What every group of a recipe's fields is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Epochs = Annotated[float, Field(gt=0, le=1e9)]
"""Passes over the training images. Counts end somewhere, so that those made from them are numbers."""
Count = Annotated[int, Field(gt=0, le=10**9)]


class Knobs(BaseModel):
    """A frozen group of fields that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
