"""What the API answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

Probability = Annotated[float, Field(ge=0, le=1, description="0 to 1.")]


class Guess(BaseModel):
    """One class that an image may show."""

    id: str = Field(description="The class's id in its data set.", examples=["n01443537"])
    words: str = Field(examples=["goldfish, Carassius auratus"])
    probability: Probability


class ModelAnswer(BaseModel):
    """What one model says of one image."""

    model: str = Field(examples=["fast_cpu"])
    guesses: list[Guess] = Field(description="Likeliest first; none where the model failed.")
    error: str | None = Field(None, description="Why the model has no answer.")


class ImageAnswer(BaseModel):
    """What the models say of one image."""

    name: str = Field(description="The file's name, cleaned.", examples=["goldfish.jpg"])
    models: list[ModelAnswer]


class Classified(BaseModel):
    images: list[ImageAnswer] = Field(description="In the order sent.")


class Explained(BaseModel):
    """Where a model looked. Both pictures are base64 of PNG files of the model's own size."""

    model: str
    method: str
    target: Guess = Field(description="The class that is explained.")
    image_png: str = Field(description="What the model saw: the middle square, resized. RGB.")
    map_png: str = Field(description="The map, to be laid over it: RGBA, clear where it is low.")


class ModelInfo(BaseModel):
    name: str = Field(examples=["fast_cpu"])
    recipe: str
    summary: str
    run: str = Field(description="The run folder's name.")
    network: str = Field(examples=["resnet18"])
    parameters: int = Field(examples=[11279112])
    classes: int = Field(examples=[200])
    image_size: int = Field(description="Pixels a side of what an image is made into.", examples=[64])
    val_top1_percent: float | None = Field(description="Of the finished run; null where not known.")


class RequestLimits(BaseModel):
    max_bytes: int = Field(description="Of a request's body.")
    max_files: int = Field(description="Images of a request.")
    max_pixels: int = Field(description="Of an image.")


class Models(BaseModel):
    models: list[ModelInfo]
    methods: list[str] = Field(description="How /explain can explain.", examples=[["saliency", "grad_cam"]])
    limits: RequestLimits


class Health(BaseModel):
    status: str = Field(description="ok, or stopping.", examples=["ok"])
    tinlab: str = Field(description="The version.")
    waiting: int = Field(description="Images in the queue.")
    capacity: int = Field(description="Images that the queue holds.")


class Sample(BaseModel):
    index: int = Field(description="Row of the split; the image is at /samples/INDEX.")
    id: str | None = Field(description="Its class's id, where its label is known.")
    words: str | None = Field(description="Its class's words.")


class Samples(BaseModel):
    split: str = Field(examples=["val"])
    count: int = Field(description="Images of the split; 0 where there is no pack.")
    samples: list[Sample]


class Problem(BaseModel):
    """Every error."""

    detail: str = Field(description="What is wrong, in a sentence.", examples=["cat.txt is no image."])
