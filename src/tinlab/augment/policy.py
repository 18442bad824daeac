"""A recipe's operations, applied to a batch of stored images: one resample and one multiplication, however
many there are.

The stages, in which the operations run whatever their order in the list; within a stage the list decides:

1. tables (gamma, posterise, …) on the stored values: they are exact only there, and hold for single values,
   which a change of place leaves alone;
2. geometry, the flips last: one resample;
3. colour and the normalisation: one multiplication, then the clamp to 0..255. A colour matrix and a resample
   are both linear, so they could change places; only the clamp could not;
4. filters (blur, sharpness), which look at neighbours and so come after the resample;
5. noise, which no filter may smooth, and another clamp;
6. boxes that are covered (cutout, random erasing);
7. mixing with the partner, which needs images that are ready.

What an operation knows of its image (the mean, the histogram) it knows of the stored one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tinlab.augment import colour, draws, erase, filters, geometry, mix, noise, tables
from tinlab.augment.strengths import Drawn, Strengths
from tinlab.data.batches import Batch
from tinlab.recipe import Operation
from tinlab.recipe import operations as ops

_FILTERS = (ops.Blur, ops.Sharpness)
_NOISE = (ops.GaussianNoise, ops.SaltNoise)
_BOXES = (ops.Cutout, ops.RandomErasing)


class Policy:
    """Operations and the normalisation, ready to be applied: uint8 images in, the network's input out.

    `mean` and `std` are float (3,), for values scaled to 0..1, on the device that the images will be on.
    `str(policy)` lists the operations with their ranges.
    """

    def __init__(self, operations: Sequence[Operation], mean: Tensor, std: Tensor, seed: int) -> None:
        self.operations = tuple(operations)
        self.seed = seed
        self.scale = (1 / (255 * std)).to(torch.float32)  # (3,)
        self.shift = (-mean / std).to(torch.float32)  # (3,)
        self._strengths = Strengths(self.operations, seed)
        self._resampling = next(
            (o for o in self.operations if isinstance(o, ops.Resampling)), ops.Resampling()
        )
        self._mixing = [o for o in self.operations if isinstance(o, ops.Mixup)]
        self._mix_uses = draws.streams(seed, ["mix.choice", "mix.weight", "mix.x", "mix.y"]).to(mean.device)
        self._quantiles = [mix.beta_table(o.alpha).to(mean.device) for o in self._mixing]
        self._bank: Tensor | None = None
        simple = self._strengths.simple
        self._outside = geometry.looks_outside(simple)
        colour_fill = not isinstance(self._resampling.fill, str)
        self._aligned = geometry.is_aligned(simple) and not (self._outside and colour_fill)
        self._shrinks = any(isinstance(o, ops.Scale) and o.factor[0] < 1 for o in simple)
        # What is magnified needs the stored pixels, whatever the training size is.
        self._magnifies = any(
            isinstance(o, ops.RandomResizedCrop) or (isinstance(o, ops.Scale) and o.factor[1] > 1)
            for o in simple
        )
        self._bends = any(isinstance(o, ops.Perspective) for o in simple)
        self._needs_mean = colour.needs_mean(simple)
        self._bicubic = self._resampling.interpolation == "bicubic"
        self._only_moves = not self._bicubic and not any(
            isinstance(o, (*colour.COLOUR, *_FILTERS, *_NOISE, *_BOXES)) for o in simple
        )
        # Filters and noise expect values within range.
        self._leaves_range = any(isinstance(o, (*_FILTERS, *_NOISE)) for o in simple) and (
            self._bicubic or any(isinstance(o, colour.COLOUR) for o in simple)
        )
        # What black and white become in each channel.
        self._limits = torch.stack([self.shift, 255 * self.scale + self.shift], 1).tolist()

    def __str__(self) -> str:
        return "\n".join(map(str, self.operations)) or "nothing"

    def inputs(self, batch: Batch, size: int) -> tuple[Tensor, Batch]:
        """The network's inputs, and the batch with the labels that belong to them."""
        x = self.apply(batch.images, batch.epochs, batch.samples, size, batch.variants)
        return self.mix(x, batch)

    def apply(
        self, images: Tensor, epochs: Tensor, samples: Tensor, size: int, variants: Tensor | None = None
    ) -> Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, 3, size, size) in channels-last memory, without mixing.

        `epochs` and `samples` are int64 (B,): which pass over the data, and which image, each one is;
        `variants` says which fixed copy of it, as in `Batch`.
        """
        return self.run(images, self.draw(epochs, samples, variants), samples, size)

    def draw(self, epochs: Tensor, samples: Tensor, variants: Tensor | None = None) -> list[Drawn]:
        """What each operation does to each image, for `run` and for whoever shows it."""
        return self._strengths.draw(epochs, samples, variants)

    def run(self, images: Tensor, drawn: list[Drawn], samples: Tensor, size: int) -> Tensor:
        """Do what was drawn: uint8 (B, H, W, 3) -> float32 (B, 3, size, size) in channels-last memory."""
        images = _look_up(images, drawn)
        mean = colour.mean_colour(images) if self._needs_mean else None
        x = self._geometry(images, drawn, samples, size)
        if self._only_moves:
            return self.normalise(x.permute(0, 2, 3, 1))
        planes = x.contiguous().to(torch.float32)  # each channel by itself; bytes are the faster to move
        x = colour.multiply(planes, colour.matrices(drawn, mean, samples), self.scale, self.shift)
        if self._leaves_range:
            colour.clamp(x, self._limits, out=x)
        for change in drawn:
            x = self._filter(x, change, size / images.shape[1])
        for change in drawn:
            x = self._noise(x, change)
        for change in drawn:
            x = self._cover(x, change)
        # Also the way into channels-last memory: a clamp is faster at it than a copy.
        return colour.clamp(x, self._limits, out=torch.empty_like(x, memory_format=torch.channels_last))

    def normalise(self, x: Tensor) -> Tensor:
        """(B, H, W, 3) in 0..255 -> float32 (B, 3, H, W) in channels-last memory."""
        batch, height, width, _ = x.shape
        # By whole rows, which a CPU is faster at than by triples.
        rows = x.reshape(batch, height, width * 3).to(torch.float32)
        x = torch.addcmul(self.shift.repeat(width), rows, self.scale.repeat(width))
        x = x.view(batch, height, width, 3)
        return x.permute(0, 3, 1, 2)  # (B, 3, H, W); the memory is still (B, H, W, 3)

    def mix(self, x: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        """Mix inputs with their partners, and give the batch both labels, where the policy says so."""
        if not self._mixing:
            return x, batch
        choice, u, left, top = draws.uniforms(self._mix_uses, batch.epochs, batch.samples)
        partners = mix.partners(len(x), x.device)
        others = x.index_select(0, partners)
        weights = torch.ones_like(u)
        below = 0.0
        for operation, quantiles in zip(self._mixing, self._quantiles, strict=True):
            here = (choice >= below) & (choice < below + operation.probability)
            below += operation.probability
            wanted = torch.where(here, mix.beta(u, quantiles, operation.alpha), 1.0)
            if isinstance(operation, ops.Cutmix):
                x, left_over = mix.cutmix(x, others, wanted, left, top)
            else:
                x, left_over = mix.mixup(x, others, wanted), wanted
            weights = torch.where(here, left_over, weights)
        return x, replace(batch, others=batch.labels[partners], weights=weights)

    def _geometry(self, images: Tensor, drawn: list[Drawn], samples: Tensor, size: int) -> Tensor:
        """The resample: uint8 or float32 (B, 3, size, size), in either memory order."""
        height, width = images.shape[1:3]
        matrix = geometry.matrices(drawn, height, width)  # (B, 3, 3)
        across = geometry.flips(drawn, "left_right", samples)
        down = geometry.flips(drawn, "up_down", samples)
        if matrix is None and (height, width) == (size, size):
            for mirrored, axis in ((across, 2), (down, 1)):
                if mirrored is not None:
                    images = torch.where(mirrored[:, None, None, None], images.flip(axis), images)
            return images.permute(0, 3, 1, 2)
        if matrix is None:
            matrix = torch.eye(3, device=images.device).repeat(len(images), 1, 1)
        how = self._resampling
        if self._aligned and (self._shrinks or self._bicubic or size < max(height, width)):
            (top, bottom), (left, right) = geometry.boxes(matrix, height, width)
            if across is not None:
                left, right = torch.where(across, right, left), torch.where(across, left, right)
            if down is not None:
                top, bottom = torch.where(down, bottom, top), torch.where(down, top, bottom)
            x = geometry.resample(
                images,
                (top, bottom),
                (left, right),
                size,
                fill=how.fill if self._outside and isinstance(how.fill, str) else None,
                interpolation=how.interpolation,
            )
            return x.permute(0, 3, 1, 2)
        smaller = size < min(height, width)
        if smaller and not self._magnifies:
            images, matrix = _shrunk(images, matrix, size)
        for mirrored, column in ((across, 0), (down, 1)):
            if mirrored is not None:
                matrix[:, :, column] *= torch.where(mirrored, -1.0, 1.0)[:, None]
        fill = how.fill if self._outside else "edge"
        planes = images.permute(0, 3, 1, 2).contiguous()
        at = max(height, width) if smaller and self._magnifies else size
        x = geometry.warp(planes, matrix, at, fill=fill, interpolation=how.interpolation, bends=self._bends)
        return x if at == size else _resized(x.permute(0, 2, 3, 1).contiguous(), size).permute(0, 3, 1, 2)

    def _filter(self, x: Tensor, change: Drawn, zoom: float) -> Tensor:
        if isinstance(change.operation, ops.Blur):
            most = change.operation.sigma_pixels[1] * zoom
            return _where_active(x, change, lambda some, of: filters.blur(some, of["sigma"] * zoom, most))
        if isinstance(change.operation, ops.Sharpness):
            return _where_active(x, change, lambda some, of: filters.sharpen(some, of["factor"]))
        return x

    def _noise(self, x: Tensor, change: Drawn) -> Tensor:
        shape = x.shape[1:]
        if isinstance(change.operation, ops.GaussianNoise):
            planes = (1, *shape[1:]) if change.operation.grey else tuple(shape)

            def add(some: Tensor, of: dict[str, Tensor]) -> Tensor:
                deviation = of["deviation"][:, None] * self.scale  # (B, 3)
                return torch.addcmul(some, self._pieces(of["start"], planes), deviation[:, :, None, None])

            return _where_active(x, change, add)
        if isinstance(change.operation, ops.SaltNoise):

            def salt(some: Tensor, of: dict[str, Tensor]) -> Tensor:
                grains = self._pieces(of["start"], (1, *shape[1:]))
                return noise.salt(some, of["share"], grains, self.shift, 255 * self.scale + self.shift)

            return _where_active(x, change, salt)
        return x

    def _cover(self, x: Tensor, change: Drawn) -> Tensor:
        operation = change.operation
        if not isinstance(operation, _BOXES):
            return x

        def cover(some: Tensor, of: dict[str, Tensor]) -> Tensor:
            covered = erase.inside(erase.box_of(operation, of), some.shape[2])
            if operation.fill == "mean":
                return some.masked_fill(covered, 0.0)
            if operation.fill == "noise":
                levels = 127.5 + 64 * self._pieces(of["start"], tuple(some.shape[1:]))
                return torch.where(covered, self._normalised(levels.clamp_(0, 255)), some)
            return torch.where(
                covered, self._normalised(geometry.constant(operation.fill, some.device)[:, None, None]), some
            )

        return _where_active(x, change, cover)

    def _normalised(self, levels: Tensor) -> Tensor:
        return torch.addcmul(self.shift[:, None, None], levels, self.scale[:, None, None])

    def _pieces(self, start: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Normal noise (B, *shape)."""
        longest = torch.Size(shape).numel()
        if self._bank is None or len(self._bank) < noise.BANK + longest:
            self._bank = noise.bank(self.seed, longest).to(start.device)
        return noise.pieces(self._bank, start, shape)


def _shrunk(images: Tensor, matrix: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The images at the training size, antialiased, and the matrices for them."""
    height, width = images.shape[1:3]
    zoom = geometry.constant((size / width, size / height, 1.0), matrix.device)
    return _resized(images, size), zoom[:, None] * matrix / zoom


def _resized(images: Tensor, size: int) -> Tensor:
    """Whole images, (B, H, W, 3), at the training size, antialiased: float32 (B, size, size, 3)."""
    batch, height, width = images.shape[:3]
    edges = [images.new_full((batch,), side, dtype=torch.float32) for side in (0, height, width)]
    return geometry.resample(images, (edges[0], edges[1]), (edges[0], edges[2]), size)


def _look_up(images: Tensor, drawn: list[Drawn]) -> Tensor:
    """Stage 1: tables, on the images that have one."""
    changes = [change for change in drawn if isinstance(change.operation, tables.TABLES)]
    if not changes:
        return images
    masks = [change.active for change in changes if change.active is not None]
    if len(masks) < len(changes) or images.device.type != "cpu":
        return tables.look_up(images, tables.tables(changes, images))
    rows = torch.stack(masks).any(0).nonzero()[:, 0]
    if not len(rows):
        return images
    some = images.index_select(0, rows)
    return images.index_copy(0, rows, tables.look_up(some, tables.tables(changes, some, rows)))


def _where_active(
    x: Tensor, change: Drawn, function: Callable[[Tensor, dict[str, Tensor]], Tensor]
) -> Tensor:
    """`function` of the images, and their values, on which the operation is active; `x` may be changed.

    On a CPU the others are left out. Elsewhere asking which they are would make the host wait, and all are
    done: an operation's neutral values change nothing.
    """
    if change.active is None or x.device.type != "cpu":
        return function(x, change.values)
    rows = change.active.nonzero()[:, 0]
    if not len(rows):
        return x
    values = {name: value.index_select(0, rows) for name, value in change.values.items()}
    return x.index_copy_(0, rows, function(x.index_select(0, rows), values))
