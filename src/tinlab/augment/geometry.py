"""Geometry: all of a policy's operations as one 3x3 matrix an image, and the one resample that applies it.

A matrix maps places in the new image to places in the stored one, in pixels from the centre, x to the right
and y downwards. There are two ways to apply it:

- `resample`, where rows and columns keep to themselves (crop, resize, mirror, shift, scale): an image's
  resample is then two small matrices, one for its rows and one for its columns, and a batched matrix product
  applies them, with the antialiasing that a smaller training size needs.
- `warp`, for any matrix: the neighbours of each place are gathered and blended. It does not antialias, and is
  the faster one where nothing shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinlab.augment.strengths import Drawn
from tinlab.recipe import operations as ops

Fill = str | tuple[float, float, float]

_ALIGNED = (ops.RandomResizedCrop, ops.PadCrop, ops.Translate, ops.Scale)
_TURNING = (ops.Rotate, ops.Shear, ops.Perspective)
GEOMETRY = (*_ALIGNED, *_TURNING)
"""The operations that a matrix stands for. Flips are apart: they are done last, and by themselves they need
no resample."""


def is_aligned(operations: Sequence[object]) -> bool:
    """Rows stay rows and columns stay columns."""
    return not any(isinstance(operation, _TURNING) for operation in operations)


def looks_outside(operations: Sequence[object]) -> bool:
    """Places outside the stored image may be asked for."""
    inside = (ops.RandomResizedCrop, ops.Flip)
    return any(
        isinstance(operation, GEOMETRY) and not isinstance(operation, inside) for operation in operations
    )


def flips(drawn: Sequence[Drawn], axis: str, samples: Tensor) -> Tensor | None:
    """Whether each of `samples` is mirrored along `axis` in all: bool (B,), or None where nothing mirrors."""
    mirrored = None
    for change in drawn:
        if isinstance(change.operation, ops.Flip) and change.operation.axis == axis:
            mask = change.mask(samples)
            mirrored = mask if mirrored is None else mirrored ^ mask
    return mirrored


def matrices(drawn: Sequence[Drawn], height: int, width: int) -> Tensor | None:
    """The matrix of each image, without its flips: float32 (B, 3, 3), or None where there is no geometry."""
    total = None
    for change in drawn:
        if isinstance(change.operation, GEOMETRY):
            inverse = _inverse(change, height, width)
            total = inverse if total is None else torch.bmm(total, inverse)
    return total


def _inverse(change: Drawn, height: int, width: int) -> Tensor:
    """From places after the operation to places before it: (B, 3, 3)."""
    match change.operation:
        case ops.RandomResizedCrop():
            share, ratio = change["area"], torch.exp(change["aspect"])
            box_height = (height * torch.sqrt(share / ratio)).clamp(1, height)
            box_width = (width * torch.sqrt(share * ratio)).clamp(1, width)
            top = (height - box_height) * change["top"]
            left = (width - box_width) * change["left"]
            return _rows(
                (box_width / width, 0, left + box_width / 2 - width / 2),
                (0, box_height / height, top + box_height / 2 - height / 2),
            )
        case ops.PadCrop():
            return _rows((1, 0, -change["right"]), (0, 1, -change["down"]))
        case ops.Translate():
            return _rows((1, 0, -width * change["right"]), (0, 1, -height * change["down"]))
        case ops.Scale():
            share = 1 / change["factor"]
            return _rows((share, 0, 0), (0, share, 0))
        case ops.Rotate():
            angle = change["degrees"] * (math.pi / 180)
            sine, cosine = angle.sin(), angle.cos()
            return _rows((cosine, -sine, 0), (sine, cosine, 0))
        case ops.Shear():
            x, y = change["slope_x"], change["slope_y"]
            return _rows((1 + x * y, -x, 0), (-y, 1, 0))
        case ops.Perspective():
            return _perspective(change, height, width)
    raise TypeError(f"{change.operation.kind} is no geometry")


def _rows(*rows: tuple[Tensor | float, ...]) -> Tensor:
    """(B, 3, 3) from rows of numbers and (B,); the third row is (0, 0, 1) where it is left out."""
    rows = rows if len(rows) == 3 else (*rows, (0, 0, 1))
    some = next(value for row in rows for value in row if isinstance(value, Tensor))
    matrix = some.new_zeros(len(some), 3, 3)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if isinstance(value, Tensor) or value != 0:
                matrix[:, i, j] = value
    return matrix


def _perspective(change: Drawn, height: int, width: int) -> Tensor:
    """From the quadrilateral of the moved corners back to the image.

    Square to quadrilateral is Heckbert, "Fundamentals of Texture Mapping and Image Warping", 1989, section
    2.2.3; its adjugate is the way back.
    """
    # Corners in turn: top left, top right, bottom right, bottom left, in the unit square.
    corners = (0, 0), (1, 0), (1, 1), (0, 1)
    x = [abs(at - change[f"corner{n}.x"]) for n, (at, _) in enumerate(corners)]
    y = [abs(at - change[f"corner{n}.y"]) for n, (_, at) in enumerate(corners)]
    dx1, dx2, dx3 = x[1] - x[2], x[3] - x[2], x[0] - x[1] + x[2] - x[3]
    dy1, dy2, dy3 = y[1] - y[2], y[3] - y[2], y[0] - y[1] + y[2] - y[3]
    below = dx1 * dy2 - dx2 * dy1
    g = (dx3 * dy2 - dx2 * dy3) / below
    h = (dx1 * dy3 - dx3 * dy1) / below
    a, b, c = x[1] - x[0] + g * x[1], x[3] - x[0] + h * x[3], x[0]
    d, e, f = y[1] - y[0] + g * y[1], y[3] - y[0] + h * y[3], y[0]
    back = _rows(
        (e - f * h, c * h - b, b * f - c * e),
        (f * g - d, a - c * g, c * d - a * f),
        (d * h - e * g, b * g - a * h, a * e - b * d),
    )
    to_unit = constant(((1 / width, 0, 0.5), (0, 1 / height, 0.5), (0, 0, 1)), back.device)
    to_pixels = constant(((width, 0, -width / 2), (0, height, -height / 2), (0, 0, 1)), back.device)
    matrix = to_pixels @ back @ to_unit
    return matrix / matrix[:, 2:, 2:]


@cache
def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Numbers, nested or not, as float32 on `device`; kept there, so that a GPU is sent them once."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def resample(
    images: Tensor,
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
    size: int,
    *,
    fill: str | None = None,
    interpolation: str = "bilinear",
) -> Tensor:
    """Stretch a box of each image to size x size, antialiased.

    (B, H, W, 3) -> float32 (B, size, size, 3), in the same range. `rows` and `columns` are the box's (start,
    end) in pixels, each (B,); an end before its start mirrors. `fill` is `reflect` or `edge` where a box may
    reach outside, None where none does.
    """
    batch, height, width, channels = images.shape
    by_rows = _weights(*rows, height, size, fill, interpolation)  # (B, size, H)
    by_columns = _weights(*columns, width, size, fill, interpolation)  # (B, size, W)
    x = images.to(torch.float32).view(batch, height, width * channels)
    x = torch.bmm(by_rows, x)  # (B, size, W * 3)
    x = x.view(batch, size, width, channels).transpose(1, 2).reshape(batch, width, size * channels)
    x = torch.bmm(by_columns, x)  # (B, size across, size down * 3)
    return x.view(batch, size, size, channels).transpose(1, 2).contiguous()


def _weights(
    start: Tensor, end: Tensor, inputs: int, outputs: int, fill: str | None, interpolation: str
) -> Tensor:
    """What each input pixel gives to each output pixel along one axis: (B, outputs, inputs); rows sum to 1.

    A triangle or Keys' cubic, as wide as an output pixel where that covers more than one input pixel
    (antialiasing).
    """
    step = (end - start) / outputs  # (B,) input pixels an output pixel; negative mirrors
    places = torch.arange(outputs, device=start.device) + 0.5
    centres = start[:, None] + places * step[:, None]  # (B, outputs)
    if fill == "reflect":
        centres = _reflect(centres, inputs)
    if fill is not None:
        centres = centres.clamp(0.5, inputs - 0.5)
    pixels = torch.arange(inputs, device=start.device) + 0.5
    reach = step.abs().clamp(min=1)[:, None, None]  # (B, 1, 1)
    distance = (pixels - centres[:, :, None]).abs() / reach  # (B, outputs, inputs)
    weights = (1 - distance).clamp(min=0) if interpolation == "bilinear" else _cubic(distance)
    return weights / weights.sum(dim=2, keepdim=True)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5 at the distances, in pixels, without sign (Keys 1981)."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _reflect(places: Tensor, length: int) -> Tensor:
    """Fold places, in pixels from the image's edge, back into it, in place."""
    return places.remainder_(2 * length).sub_(length).abs_().neg_().add_(length)


def boxes(matrix: Tensor, height: int, width: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The (start, end) of the rows and of the columns, in pixels from the edge, that aligned matrices ask
    for."""
    scale_x, x, scale_y, y = matrix[:, 0, 0], matrix[:, 0, 2], matrix[:, 1, 1], matrix[:, 1, 2]
    rows = y + height / 2 - scale_y * (height / 2), y + height / 2 + scale_y * (height / 2)
    columns = x + width / 2 - scale_x * (width / 2), x + width / 2 + scale_x * (width / 2)
    return rows, columns


def warp(
    planes: Tensor,
    matrix: Tensor,
    size: int,
    *,
    fill: Fill = "reflect",
    interpolation: str = "bilinear",
    bends: bool = False,
) -> Tensor:
    """Apply any matrix: uint8 or float32 (B, C, H, W) -> float32 (B, C, size, size).

    `matrix` is (B, 3, 3); where `bends` is false its third row is (0, 0, 1) (no perspective). `fill` is what
    lies outside: `reflect` (the mirror image, and beyond that its own), `edge`, or a colour. Nothing is
    antialiased: shrinking belongs to `resample`.
    """
    batch, channels, height, width = planes.shape
    places = _places(matrix, size, height, width, bends)  # (2, B, size, size)
    sample = _bilinear if interpolation == "bilinear" else _bicubic
    out = sample(planes.to(torch.float32), places, fill == "reflect").view(batch, channels, size, size)
    if isinstance(fill, str):
        return out
    # The share of an interpolated pixel that lies in the image falls to 0 within a pixel outside.
    across, down = (1 - places.abs()).unbind(0)
    covered = (across * (width / 2) + 0.5).clamp_(0, 1) * (down * (height / 2) + 0.5).clamp_(0, 1)
    return torch.lerp(constant(fill, out.device).view(1, -1, 1, 1), out, covered[:, None])


def _places(matrix: Tensor, size: int, height: int, width: int, bends: bool) -> Tensor:
    """Where each new pixel's centre lies, across and down: (2, B, size, size), from -1 at the image's outer
    edge to 1 at the other."""
    steps = (torch.arange(size, device=matrix.device) + 0.5) / size - 0.5
    in_pixels = constant((width, height, 1), matrix.device)
    in_halves = constant((2 / width, 2 / height, 1), matrix.device)
    a, b, c = (in_halves[:, None] * matrix * in_pixels).permute(2, 1, 0)[..., None, None]  # (3, B, 1, 1) each
    if not bends:
        a, b, c = a[:2], b[:2], c[:2]
    places = a * steps + (b * steps[:, None] + c)  # (2 or 3, B, size, size)
    return places[:2] / places[2].clamp_(min=0.05) if bends else places  # places at and behind the horizon


def _bilinear(planes: Tensor, places: Tensor, mirrored: bool) -> Tensor:
    """Blend the four pixels about each place: (B, C, size, size)."""
    outside = "reflection" if mirrored else "border"
    return F.grid_sample(planes, places.permute(1, 2, 3, 0), padding_mode=outside, align_corners=False)


def _bicubic(planes: Tensor, places: Tensor, mirrored: bool) -> Tensor:
    """Blend the sixteen pixels about each place by Keys' kernel: (B, C, size * size)."""
    batch, channels, height, width = planes.shape
    flat = planes.reshape(batch, channels, height * width)

    def taps(places: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
        """Index and weight of the four pixels along one axis, each (B, 1, size * size)."""
        places = (places + 1) * (length / 2)  # in pixels
        if mirrored:
            places = _reflect(places, length)
        places = places.sub(0.5).clamp_(-2, length + 1).view(batch, 1, -1)
        first = places.floor()
        found = []
        for n in range(-1, 3):
            pixel = first + n
            weight = _cubic((places - pixel).abs())
            if mirrored:
                pixel = _reflect(pixel + 0.5, length) - 0.5
            found.append((pixel.clamp(0, length - 1).to(torch.int64), weight))
        return found

    across = taps(places[0], width)
    out = planes.new_zeros(batch, channels, places[0, 0].numel())
    for row, row_weight in taps(places[1], height):
        line = torch.zeros_like(out)
        for column, weight in across:
            line += weight * flat.gather(2, (row * width + column).expand(-1, channels, -1))
        out += row_weight * line
    return out
