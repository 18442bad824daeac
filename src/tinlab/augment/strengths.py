"""Which operations each image gets, and how strongly: all that is random about a policy, drawn at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinlab.augment import draws
from tinlab.recipe import operations as ops
from tinlab.recipe.operations import Change


@dataclass(frozen=True)
class Slot:
    """One number that an operation draws: its range, and the value that changes nothing."""

    name: str
    low: float
    high: float
    neutral: float
    ends_only: bool = False
    whole: bool = False
    """An integer from low to high, both included."""


@dataclass(frozen=True)
class Drawn:
    """An operation on a batch: `active` bool (B,) says on which images, None on all; `values` are float32
    (B,), neutral where it is not active."""

    operation: Change
    active: Tensor | None
    values: dict[str, Tensor]

    def mask(self, like: Tensor) -> Tensor:
        """`active`, or all true: bool (B,) on the device of `like` (B, ...)."""
        if self.active is not None:
            return self.active
        return torch.ones(len(like), dtype=torch.bool, device=like.device)

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]


def slots(operation: Change) -> tuple[Slot, ...]:
    """The numbers that `operation` draws for an image."""

    def within(name: str, limits: tuple[float, float], neutral: float, whole: bool = False) -> Slot:
        return Slot(name, *limits, neutral, getattr(operation, "ends_only", False), whole)

    def anywhere(*names: str) -> tuple[Slot, ...]:
        return tuple(Slot(name, 0.0, 1.0, 0.0) for name in names)

    def logarithm(limits: tuple[float, float]) -> tuple[float, float]:
        return math.log(limits[0]), math.log(limits[1])

    match operation:
        case ops.RandomResizedCrop(area=area, aspect=aspect):
            box = within("area", area, 1), within("aspect", logarithm(aspect), 0)
            return *box, *anywhere("top", "left")
        case ops.PadCrop(padding_pixels=most):
            return tuple(within(name, (-most, most), 0, whole=True) for name in ("right", "down"))
        case ops.Rotate(degrees=degrees) | ops.Hue(degrees=degrees):
            return (within("degrees", degrees, 0),)
        case ops.Translate(right_fraction=right, down_fraction=down):
            return within("right", right, 0), within("down", down, 0)
        case ops.Shear(slope_x=slope_x, slope_y=slope_y):
            return within("slope_x", slope_x, 0), within("slope_y", slope_y, 0)
        case ops.Perspective(corner_fraction=corner):
            return tuple(within(f"corner{n}.{axis}", corner, 0) for n in range(4) for axis in "xy")
        case (
            ops.Scale(factor=factor)
            | ops.Brightness(factor=factor)
            | ops.Contrast(factor=factor)
            | ops.Saturation(factor=factor)
            | ops.Sharpness(factor=factor)
        ):
            return (within("factor", factor, 1),)
        case ops.Tint(levels=levels):
            return tuple(within(name, levels, 0) for name in ("red", "green", "blue"))
        case ops.Gamma(power=power):
            return (within("power", power, 1),)
        case ops.Posterise(bits=bits):
            return (within("bits", bits, 8, whole=True),)
        case ops.Solarise(threshold_levels=threshold):
            return (within("threshold", threshold, 256),)
        case ops.Blur(sigma_pixels=sigma):
            return (within("sigma", sigma, 0),)
        case ops.GaussianNoise(deviation_levels=deviation):
            return within("deviation", deviation, 0), *anywhere("start")
        case ops.SaltNoise(share=share):
            return within("share", share, 0), *anywhere("start")
        case ops.Cutout(side_fraction=side):
            return within("side", side, 0), *anywhere("x", "y", "start")
        case ops.RandomErasing(area=area, aspect=aspect):
            box = within("area", area, 0), within("aspect", logarithm(aspect), 0)
            return *box, *anywhere("top", "left", "start")
        case ops.Flip() | ops.Greyscale() | ops.Invert() | ops.Equalise() | ops.Autocontrast():
            return ()
    raise TypeError(f"{operation.kind} has no slots")


class Strengths:
    """What is random about `operations`, as a pure function of (seed, epoch, sample).

    `simple` lists the operations that change one image, those inside others included. Each draw is named
    after the operation's place in the policy, so that a longer policy leaves the draws of its beginning as
    they were.
    """

    def __init__(self, operations: Sequence[object], seed: int) -> None:
        self.seed = seed
        self.simple: list[Change] = []
        self._uses: dict[str, int] = {}
        self._probabilities: list[tuple[int, int, float]] = []  # (operation, use, probability)
        self._groups: list[tuple[ops.SomeOf, int, slice, int | None]] = []
        self._copies: list[int] = []  # place in `simple` of each operation of fixed_copies
        self._alternating: set[int] = set()  # those whose one draw holds for all passes
        self._chancy: set[int] = set()
        self._slots: list[tuple[int, int, Slot]] = []  # (operation, use, slot)
        fixed: set[int] = set()
        for place, operation in enumerate(operations):
            if isinstance(operation, ops.SomeOf):
                first = len(self.simple)
                for n, inner in enumerate(operation.operations):
                    self._chancy.add(self._add(inner, f"{place}.{n}"))
                entrants = len(operation.operations) + operation.idle
                uses = [self._use(f"{place}.{n}.pick") for n in range(entrants)]
                picks = slice(uses[0], uses[-1] + 1)
                low, high = operation.count
                count = self._use(f"{place}.count") if high > low else None
                self._groups.append((operation, first, picks, count))
            elif isinstance(operation, ops.FixedCopies):
                before = len(self._uses)
                for n, inner in enumerate(operation.operations):
                    self._copies.append(self._add(inner, f"{place}.{n}"))
                self._chancy.update(self._copies)
                fixed.update(range(before, len(self._uses)))
            elif isinstance(operation, Change):
                self._add(operation, str(place))
        for number, use, _ in self._probabilities:
            if getattr(self.simple[number], "alternate", False):
                self._alternating.add(number)
                fixed.add(use)
        self._fixed = torch.tensor([[n in fixed] for n in range(len(self._uses))])  # (U, 1)
        limits = [(slot.low, slot.high - slot.low, slot.neutral) for _, _, slot in self._slots]
        self._limits = torch.tensor(limits, dtype=torch.float32).reshape(-1, 3)
        self._begin = draws.streams(seed, list(self._uses))
        self._rows = torch.tensor([use for _, use, _ in self._slots], dtype=torch.int64)
        self._owners = torch.tensor([owner for owner, _, _ in self._slots], dtype=torch.int64)
        self._ends = torch.tensor([[slot.ends_only] for _, _, slot in self._slots])
        self._whole = torch.tensor([[slot.whole] for _, _, slot in self._slots])
        self._device = torch.device("cpu")

    def _use(self, name: str) -> int:
        return self._uses.setdefault(name, len(self._uses))

    def _add(self, operation: Change, prefix: str) -> int:
        number = len(self.simple)
        self.simple.append(operation)
        if operation.probability < 1:
            self._chancy.add(number)
            use = "flip" if isinstance(operation, ops.Flip) else "on"
            self._probabilities.append((number, self._use(f"{prefix}.{use}"), operation.probability))
        for slot in slots(operation):
            self._slots.append((number, self._use(f"{prefix}.{slot.name}"), slot))
        return number

    def draw(self, epochs: Tensor, samples: Tensor, variants: Tensor | None = None) -> list[Drawn]:
        """What each operation of `simple` does to each image.

        `epochs` and `samples` are int64 (B,); `variants` int64 (B,) says which of the fixed copies an image
        is, counted from 1, or 0 for the original; None: all are originals.
        """
        if not self.simple:
            return []
        self._move(samples.device)
        odd = (epochs & 1).to(torch.bool)
        if self._copies or self._alternating:
            epochs = torch.where(self._fixed, 0, epochs)  # (U, B)
        u = draws.uniforms(self._begin, epochs, samples) if self._uses else samples.new_empty(0)
        active: list[Tensor | None] = [None] * len(self.simple)

        def narrow(number: int, mask: Tensor) -> None:
            before = active[number]
            active[number] = mask if before is None else before & mask

        for number, use, probability in self._probabilities:
            below = u[use] < probability
            narrow(number, below ^ odd if number in self._alternating else below)
        for group, first, picks, count_use in self._groups:
            scores = u[picks]  # (entrants, B)
            rank = (scores[None] < scores[:, None]).sum(1)  # (entrants, B) 0 for the lowest score
            low, high = group.count
            count = low if count_use is None else low + (u[count_use] * (high - low + 1)).floor()
            chosen = rank < count
            for n in range(len(group.operations)):
                narrow(first + n, chosen[n])
        for copy, number in enumerate(self._copies, start=1):
            narrow(number, samples != samples if variants is None else variants == copy)
        return [
            Drawn(operation, mask, values)
            for operation, mask, values in zip(self.simple, active, self._values(u, active), strict=True)
        ]

    def _values(self, u: Tensor, active: list[Tensor | None]) -> list[dict[str, Tensor]]:
        """The slots' values, a dict an operation."""
        values: list[dict[str, Tensor]] = [{} for _ in self.simple]
        if not self._slots:
            return values
        low, span, neutral = self._limits.split(1, dim=1)  # each (S, 1)
        drawn = u[self._rows]  # (S, B)
        if any(slot.ends_only for _, _, slot in self._slots):
            drawn = torch.where(self._ends, (drawn >= 0.5).to(u.dtype), drawn)
        if any(slot.whole for _, _, slot in self._slots):
            # Of the largest draws the sum is rounded up, to one more than there is.
            whole = torch.minimum((low + (span + 1) * drawn).floor(), low + span)
            drawn = torch.where(self._whole, whole, low + span * drawn)
        else:
            drawn = low + span * drawn
        if self._chancy:
            everywhere = torch.ones_like(drawn[0], dtype=torch.bool)
            masks = torch.stack([everywhere if mask is None else mask for mask in active])  # (O, B)
            drawn = torch.where(masks[self._owners], drawn, neutral)
        for (owner, _, slot), value in zip(self._slots, drawn.unbind(0), strict=True):
            values[owner][slot.name] = value
        return values

    def _move(self, device: torch.device) -> None:
        if device == self._device:
            return
        for name in ("_fixed", "_limits", "_begin", "_rows", "_owners", "_ends", "_whole"):
            setattr(self, name, getattr(self, name).to(device))
        self._device = device
