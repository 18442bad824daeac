"""A recipe's operations, applied to a batch of stored images in one resample and one multiplication.

Cropping, resizing and mirroring move rows and columns independently, so an image's resample is two small
matrices, one for its rows and one for its columns: a batched matrix product, which every device is fastest
at, with the antialiasing that a smaller training size needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tinlab.augment import draws
from tinlab.recipe import Flip, Operation, RandomResizedCrop


class Policy:
    """Operations and the normalisation, ready to be applied: uint8 images in, the network's input out.

    `mean` and `std` are float (3,), for values scaled to 0..1, on the device that the images will be on.
    """

    def __init__(self, operations: Sequence[Operation], mean: Tensor, std: Tensor, seed: int) -> None:
        self.operations = tuple(operations)
        self.seed = seed
        self.scale = (1 / (255 * std)).to(torch.float32)  # (3,)
        self.shift = (-mean / std).to(torch.float32)  # (3,)

    def apply(self, images: Tensor, epochs: Tensor, samples: Tensor, size: int) -> Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, 3, size, size) in channels-last memory.

        `epochs` and `samples` are int64 (B,): which pass over the data, and which image, each one is.
        """
        height, width = images.shape[1:3]
        boxes, flipped = self._draw(epochs, samples, height, width)
        if boxes is None and (height, width) == (size, size):
            x = images
            if flipped is not None:
                x = torch.where(flipped[:, None, None, None], x.flip(2), x)
            return self.normalise(x)
        if boxes is None:
            boxes = images.new_tensor([[0.0, 0.0, height, width]], dtype=torch.float32)
            boxes = boxes.expand(len(images), 4)
        top, left, bottom, right = boxes.unbind(1)
        if flipped is not None:
            left, right = torch.where(flipped, right, left), torch.where(flipped, left, right)
        return self.normalise(resample(images, (top, bottom), (left, right), size))

    def normalise(self, x: Tensor) -> Tensor:
        """(B, H, W, 3) in 0..255 -> float32 (B, 3, H, W) in channels-last memory."""
        x = torch.addcmul(self.shift, x.to(torch.float32), self.scale)
        return x.permute(0, 3, 1, 2)  # (B, 3, H, W); the memory is still (B, H, W, 3)

    def _draw(
        self, epochs: Tensor, samples: Tensor, height: int, width: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """A box (top, left, bottom, right) in pixels a sample, float32 (B, 4), and whether it is mirrored."""
        boxes = flipped = None
        for place, operation in enumerate(self.operations):

            def draw(use: str, place: int = place) -> Tensor:
                return draws.uniform(self.seed, f"{place}.{use}", epochs, samples)

            match operation:
                case Flip(probability=probability):
                    mirror = draw("flip") < probability
                    flipped = mirror if flipped is None else flipped ^ mirror
                case RandomResizedCrop(area=area, aspect=aspect):
                    if boxes is not None:
                        raise ValueError("a policy has at most one random_resized_crop")
                    share = area[0] + (area[1] - area[0]) * draw("area")
                    low, high = math.log(aspect[0]), math.log(aspect[1])
                    ratio = torch.exp(low + (high - low) * draw("aspect"))
                    box_height = (height * torch.sqrt(share / ratio)).clamp(1, height)
                    box_width = (width * torch.sqrt(share * ratio)).clamp(1, width)
                    top = (height - box_height) * draw("top")
                    left = (width - box_width) * draw("left")
                    boxes = torch.stack([top, left, top + box_height, left + box_width], dim=1)  # (B, 4)
        return boxes, flipped


def resample(
    images: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], size: int
) -> Tensor:
    """Stretch a box of each image to size x size, bilinearly and antialiased.

    (B, H, W, 3) -> float32 (B, size, size, 3), in the same range. `rows` and `columns` are the box's (start,
    end) in pixels, each (B,); an end before its start mirrors.
    """
    batch, height, width, channels = images.shape
    by_rows = _weights(*rows, height, size)  # (B, size, H)
    by_columns = _weights(*columns, width, size)  # (B, size, W)
    x = images.to(torch.float32).view(batch, height, width * channels)
    x = torch.bmm(by_rows, x)  # (B, size, W * 3)
    x = x.view(batch, size, width, channels).transpose(1, 2).reshape(batch, width, size * channels)
    x = torch.bmm(by_columns, x)  # (B, size across, size down * 3)
    return x.view(batch, size, size, channels).transpose(1, 2).contiguous()


def _weights(start: Tensor, end: Tensor, inputs: int, outputs: int) -> Tensor:
    """What each input pixel gives to each output pixel along one axis: (B, outputs, inputs); rows sum to 1.

    A triangle filter, as wide as an output pixel where that covers more than one input pixel (antialiasing).
    """
    step = (end - start) / outputs  # (B,) input pixels an output pixel; negative mirrors
    places = torch.arange(outputs, device=start.device) + 0.5
    centres = start[:, None] + places * step[:, None]  # (B, outputs)
    pixels = torch.arange(inputs, device=start.device) + 0.5
    reach = step.abs().clamp(min=1)[:, None, None]  # (B, 1, 1)
    weights = (1 - (pixels - centres[:, :, None]).abs() / reach).clamp(min=0)  # (B, outputs, inputs)
    return weights / weights.sum(dim=2, keepdim=True)
