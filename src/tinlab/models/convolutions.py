"""Convolutions in training on CPUs where oneDNN, which computes them there, is slow or at fault.

Slow: of small maps, above all for the gradient of the weights. 512 channels at 2x2, a batch of 128 in bf16 on
two cores take 29 ms forward and backward, and the same as products of matrices 7 (LOG.md). A ResNet's last
stage is such a place at 64x64 pixels. What is computed stays the same, up to rounding.

At fault: the gradient of the weights of a 1x1 convolution with a stride, of fewer than 16 channels, is
written past the end of its workspace: seen with torch 2.13, and told of 2.14 in issue 6035 of
uxlfoundation/oneDNN. Whether the process then dies or goes on depends on the batch and the threads: two
threads and three images do. Narrow residual networks have such a convolution on their first shortcuts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SAFE_CHANNELS = 16
"""oneDNN's block of channels with AVX-512; with AVX2, which that issue names too, it is 8."""
COLUMNS_POSITIONS, POINTWISE_POSITIONS = 25, 64
"""Maps of up to so many positions are faster by "columns" and by "pointwise": 5x5 and 8x8, in bf16."""

Way = Literal["dense", "columns", "pointwise"]
Pair = tuple[int, int]


class Convolution(nn.Conv2d):
    """torch's convolution, (B, inputs, H, W) -> (B, outputs, H', W'), which in training on a CPU goes the
    faster way for its maps, and around the fault. It has no groups, no dilation, and zeros as its padding."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        geometry = _geometry(tuple(x.shape[2:]), self.kernel_size, self.stride, self.padding)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        way = geometry.way(dtype) if x.is_contiguous(memory_format=torch.channels_last) else None
        if geometry.stride != (1, 1) and geometry.pointwise:
            if way is None and self.in_channels >= SAFE_CHANNELS:
                return super().forward(x)
            order = torch.contiguous_format if x.is_contiguous() else torch.channels_last
            rows, columns = geometry.stride  # the positions that it keeps, and no stride there
            x = x[:, :, ::rows, ::columns].contiguous(memory_format=order)
            geometry = _geometry(tuple(x.shape[2:]), (1, 1), (1, 1), (0, 0))
        if way is None:
            return F.conv2d(x, self.weight, self.bias, geometry.stride, geometry.padding)
        y: Tensor = _ConvolutionByMatrices.apply(x.to(dtype), self.weight, geometry, way)
        return y if self.bias is None else y + self.bias.to(dtype)[:, None, None]


def choose_ways(model: nn.Module) -> None:
    """Make the convolutions of `model` that can be into Convolutions, weights and all."""
    for module in model.modules():
        plain = type(module) is nn.Conv2d and module.groups == 1 and module.dilation == (1, 1)
        if plain and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = Convolution


@dataclass(frozen=True)
class _Geometry:
    """Sizes of a convolution, as (rows, columns)."""

    maps: Pair
    kernel: Pair
    stride: Pair
    padding: Pair

    @property
    def outputs(self) -> Pair:
        rows, columns = (
            (size + 2 * padding - kernel) // stride + 1
            for size, kernel, stride, padding in zip(
                self.maps, self.kernel, self.stride, self.padding, strict=True
            )
        )
        return rows, columns

    @property
    def pointwise(self) -> bool:
        return self.kernel == (1, 1) and self.padding == (0, 0)

    def way(self, dtype: torch.dtype) -> Way | None:
        """The way that is faster than oneDNN's own, if there is one:

        - dense: one product, as a fully connected layer from all positions to all, where half of the kernel
          or more would meet nothing but padding;
        - pointwise: one product over all positions;
        - columns: oneDNN's own, but the gradient of the weights as a product with the patches.
        """
        if dtype == torch.bfloat16:
            if not _bf16_products():
                return None
        elif dtype != torch.float32:
            return None
        positions = self.outputs[0] * self.outputs[1]
        if positions < 1:
            return None
        if 2 * self.maps[0] * self.maps[1] < self.kernel[0] * self.kernel[1]:
            return "dense"
        if dtype == torch.float32:
            return None
        if self.pointwise:
            return "pointwise" if positions <= POINTWISE_POSITIONS else None
        return "columns" if positions <= COLUMNS_POSITIONS else None

    def blocks(self) -> Iterator[tuple[Pair, tuple[slice, slice], tuple[slice, slice]]]:
        """Each position of the outputs, what it sees of the maps, and by which taps of the kernel."""
        for at in product(range(self.outputs[0]), range(self.outputs[1])):
            seen, taps = [], []
            for n in range(2):
                first = at[n] * self.stride[n] - self.padding[n]
                low, high = max(0, first), min(self.maps[n], first + self.kernel[n])
                seen.append(slice(low, max(low, high)))
                taps.append(slice(low - first, max(low, high) - first))
            yield at, (seen[0], seen[1]), (taps[0], taps[1])

    def spread(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The dense matrix of a (outputs, inputs, *kernel) weight: (H' W' outputs, H W inputs)."""
        taps = weight.permute(0, 2, 3, 1)
        matrix = weight.new_zeros((*self.outputs, len(taps), *self.maps, taps.shape[-1]), dtype=dtype)
        for (row, column), seen, kept in self.blocks():
            matrix[row, column, :, seen[0], seen[1]] = taps[:, kept[0], kept[1]]
        return matrix.flatten(3).flatten(0, 2)

    def gathered(self, matrix: Tensor, weight: Tensor) -> Tensor:
        """The gradient of `weight` from that of its dense matrix, summed up in float32."""
        outputs, inputs = weight.shape[:2]
        blocks = matrix.view(*self.outputs, outputs, *self.maps, inputs)
        taps = weight.new_zeros((outputs, *self.kernel, inputs), dtype=torch.float32)
        for (row, column), seen, kept in self.blocks():
            taps[:, kept[0], kept[1]] += blocks[row, column, :, seen[0], seen[1]]
        return taps.permute(0, 3, 1, 2)


@lru_cache(maxsize=1024)
def _geometry(maps: Pair, kernel: Pair, stride: Pair, padding: Pair) -> _Geometry:
    return _Geometry(maps, kernel, stride, padding)


@lru_cache(maxsize=1)
def _bf16_products() -> bool:
    """Whether products of bf16 matrices are oneDNN's, and so fast."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


class _ConvolutionByMatrices(torch.autograd.Function):
    """(B, inputs, H, W), channels last, and the weight -> (B, outputs, H', W'), channels last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: _Geometry, way: Way) -> Tensor:
        ctx.geometry, ctx.way = geometry, way
        if way == "dense":
            matrix = geometry.spread(weight, x.dtype)
            y = _empty_maps(x, len(weight), geometry.outputs)
            torch.mm(_images(x), matrix.t(), out=y.permute(0, 2, 3, 1).view(len(x), -1))
        elif way == "pointwise":
            matrix = weight.flatten(1).to(x.dtype)
            y = _empty_maps(x, len(weight), geometry.outputs)
            torch.mm(_positions(x), matrix.t(), out=y.permute(0, 2, 3, 1).view(-1, len(weight)))
        else:
            matrix = weight.to(x.dtype)
            y = F.conv2d(x, matrix, None, geometry.stride, geometry.padding)
        ctx.save_for_backward(x, weight, matrix)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, matrix = ctx.saved_tensors
        geometry, way = ctx.geometry, ctx.way
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x, of_weight = None, None
        if ctx.needs_input_grad[0]:
            if way == "dense":
                of_x = _maps(_images(gradient) @ matrix, geometry.maps)
            elif way == "pointwise":
                of_x = _maps((_positions(gradient) @ matrix).view(len(x), -1), geometry.maps)
            else:
                of_x = torch.ops.aten.convolution_backward(
                    gradient, x, matrix, None, geometry.stride, geometry.padding, (1, 1), False, (0, 0), 1,
                    (True, False, False),
                )[0]  # fmt: skip
        if ctx.needs_input_grad[1]:
            if way == "dense":
                of_weight = geometry.gathered(_images(gradient).t() @ _images(x), weight)
            elif way == "pointwise":
                of_weight = (_positions(gradient).t() @ _positions(x)).view_as(weight)
            else:
                taps = _positions(gradient).t() @ _patches(x, geometry)
                of_weight = taps.view(len(weight), *geometry.kernel, -1).permute(0, 3, 1, 2)
            of_weight = of_weight.to(weight.dtype)
        return of_x, of_weight, None, None


def _images(x: Tensor) -> Tensor:
    """(B, C, H, W), channels last -> (B, H W C), without a copy."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1)


def _positions(x: Tensor) -> Tensor:
    """(B, C, H, W), channels last -> (B H W, C), without a copy."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _maps(images: Tensor, size: Pair) -> Tensor:
    """(B, H W C) -> (B, C, H, W), channels last, without a copy."""
    return images.view(len(images), *size, -1).permute(0, 3, 1, 2)


def _empty_maps(x: Tensor, channels: int, size: Pair) -> Tensor:
    """(B, channels, H, W), channels last: memory of its own and no view, which the layer behind could not
    change in place."""
    order = torch.channels_last
    return torch.empty(len(x), channels, *size, dtype=x.dtype, device=x.device, memory_format=order)


def _patches(x: Tensor, geometry: _Geometry) -> Tensor:
    """(B, C, H, W) -> what each position of the outputs sees: (B H' W', kernel's rows x columns x C)."""
    rows, columns = geometry.padding
    around = F.pad(x.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows))
    windows = around.unfold(1, geometry.kernel[0], geometry.stride[0])
    windows = windows.unfold(2, geometry.kernel[1], geometry.stride[1])  # (B, H', W', C, rows, columns)
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, geometry.kernel[0] * geometry.kernel[1] * x.shape[1])
