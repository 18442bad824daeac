"""How a network is trained: the update, the learning rate over the steps, and the arithmetic."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tinlab.recipe.knobs import Count, Epochs, Fraction, Knobs, NotNegative, Positive

OPTIMIZERS = ("sgd", "adamw", "muon", "lion")

Beta = Annotated[float, Field(ge=0, lt=1)]


def _known(name: str) -> str:
    if name not in OPTIMIZERS and not re.fullmatch(r"timm:[a-z0-9_]+", name):
        raise ValueError(f"there are {', '.join(OPTIMIZERS)}, and timm:NAME such as timm:lamb")
    return name


class LayerRate(Knobs):
    """A rate of its own for some layers."""

    layers: str
    """Pattern of layer names, such as layer4* or fc; `tinlab models NAME` lists them."""
    factor: NotNegative
    """What the learning rate is multiplied by; 0: these layers stand still."""


class Optimizer(Knobs):
    """How a gradient becomes an update."""

    name: Annotated[str, AfterValidator(_known)] = "sgd"
    """`sgd`; `adamw` (Loshchilov and Hutter 2019); `lion` (Chen et al. 2023); `muon` (Jordan et al. 2024) for
    the weights of convolutions and fully connected layers inside the network, and AdamW for the rest; or
    `timm:NAME`, whose other values are timm's own."""
    peak_lr: Positive = 0.1
    momentum: Beta = 0.9
    """SGD's and Muon's momentum, or the beta 1 of AdamW, Lion and timm's."""
    beta2: Beta | None = None
    """AdamW's or Lion's beta 2, or under Muon that of AdamW, whose beta 1 is then 0.9; None: 0.999 for AdamW,
    0.99 for Lion, 0.95 under Muon, and timm's own."""
    rest_lr: Positive | None = None
    """Muon's: peak rate of what AdamW trains; None: `peak_lr`. Muon's updates are scaled to AdamW's usual
    size (Liu et al. 2025), so that one rate can serve both."""
    newton_schulz_steps: Annotated[int, Field(gt=0)] = 5
    """Muon's: products that make an update's singular values more equal. Fewer cost less and leave the small
    ones smaller."""
    nesterov: bool = False
    weight_decay: NotNegative = 1e-4
    """For SGD added to the gradient; for AdamW, Lion and Muon taken off the weight, times the rate."""
    decay_weights_only: bool = False
    """Leave biases and the scales and shifts of batch norm out of weight decay."""
    layer_rates: tuple[LayerRate, ...] = ()
    """Learning rates by layer: the first pattern that a layer matches decides; one that matches none has the
    rate itself."""
    frozen_statistics: bool = True
    """Batch norms whose layer has a factor of 0 also keep their running statistics and normalise by them;
    false: by the batch, as all others do."""
    clip_norm: Positive | None = None
    """Scale the gradient down to this length, over all parameters, where it is longer."""
    sam_rho: Positive | None = None
    """Sharpness-aware minimisation (Foret et al. 2021): the gradient is taken this far uphill. Two passes."""
    lookahead_steps: Annotated[int, Field(gt=0)] | None = None
    """Lookahead (Zhang et al. 2019): after this many steps, and after the last one, slow weights move
    towards the fast ones, which go on from there."""
    lookahead_alpha: Annotated[float, Field(gt=0, le=1)] = 0.5
    """How much of the way the slow weights move."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Measure and keep an exponential moving average of the weights: each step keeps this share of it, in the
    first steps less, (1 + t) / (10 + t) after step t."""

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.nesterov and (self.name not in ("sgd", "muon") or self.momentum == 0):
            raise ValueError("nesterov needs sgd or muon with a momentum above 0")
        if self.beta2 is not None and self.name == "sgd":
            raise ValueError("beta2 goes with adamw, lion, muon or timm:NAME, and sgd has none")
        if self.rest_lr is not None and self.name != "muon":
            raise ValueError("rest_lr goes with muon")
        if self.newton_schulz_steps != 5 and self.name != "muon":
            raise ValueError("newton_schulz_steps goes with muon")
        if self.lookahead_alpha != 0.5 and self.lookahead_steps is None:
            raise ValueError("lookahead_alpha goes with lookahead_steps")
        return self

    def rates_times(self, factor: float) -> dict[str, float]:
        """Its peak rates by the names of their fields, each times `factor`, to six digits."""
        rates = {"peak_lr": self.peak_lr, "rest_lr": self.rest_lr}
        return {name: float(f"{rate * factor:.6g}") for name, rate in rates.items() if rate is not None}


class Schedule(Knobs):
    """How long, and how the learning rate changes. Exactly one of `epochs` and `steps` is given."""

    epochs: Annotated[Epochs, Field(le=1e6)] | None = None
    steps: Count | None = None
    batch_size: Count = 128
    """Images an update."""
    accumulate: Annotated[int, Field(gt=0)] = 1
    """Compute each batch in this many equal parts, one after the other, to save memory. Batch norm sees one
    part at a time."""
    shape: Literal[
        "constant", "step", "cosine", "linear", "one_cycle", "exponential", "inverse_time", "plateau"
    ] = "cosine"  # fmt: skip
    """After the warm-up: constant; times `factor` at each milestone; along a cosine to zero; along a line;
    up and down once (Smith and Topin 2018); up to the peak by the same factor at every step, which finds a
    rate and trains nothing (`tinlab lr-find`); peak / (1 + decay t), as Keras' `decay`; or times `factor`
    when the loss on `tune` no longer falls."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps in which the learning rate climbs linearly to its peak."""
    milestone_steps: tuple[Annotated[int, Field(gt=0)], ...] = ()
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """What `step` and `plateau` multiply the rate by."""
    final_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Where `cosine` and `linear` end, and what `plateau` does not go below, as a share of the peak."""
    decay: NotNegative = 0.0
    """`inverse_time`: t counts steps from the end of the warm-up."""
    patience: Annotated[int, Field(ge=0)] = 10
    """`plateau`: this many evaluations in a row without a lower loss are let pass; the next one cuts."""
    least_improvement: Fraction = 1e-4
    """`plateau`: a loss is lower if it is so by more than this share of the lowest."""
    rise_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """`one_cycle`: share of the steps in which the rate climbs to its peak."""
    start_divisor: Annotated[float, Field(ge=1)] = 25.0
    """`one_cycle` and `exponential`: it starts at the peak divided by this."""
    end_divisor: Annotated[float, Field(ge=1)] = 1e4
    """`one_cycle`: it ends at its start divided by this."""
    cycle_curve: Literal["cosine", "linear"] = "cosine"
    """`one_cycle`: how it climbs and falls."""
    low_momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """`one_cycle`: momentum, or beta 1, falls to this as the rate climbs, and climbs back as it falls; None:
    it stays."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps, and null for the other")
        if (self.shape == "step") != bool(self.milestone_steps):
            raise ValueError("milestone_steps goes with shape 'step', and 'step' needs it")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.batch_size} images are not {self.accumulate} equal parts")
        if (self.shape == "inverse_time") != bool(self.decay):
            raise ValueError("decay goes with shape 'inverse_time', which needs one above 0")
        if self.shape == "one_cycle" and self.warmup_fraction:
            raise ValueError("warmup_fraction: one_cycle climbs by itself; set rise_fraction instead")
        if self.shape == "exponential" and self.warmup_fraction:
            raise ValueError("warmup_fraction: exponential climbs by itself; set start_divisor instead")
        self._belong(("cosine", "linear", "plateau"), "final_fraction")
        self._belong(("plateau",), "patience", "least_improvement")
        self._belong(("step", "plateau"), "factor")
        self._belong(("one_cycle", "exponential"), "start_divisor")
        self._belong(("one_cycle",), "rise_fraction", "end_divisor", "cycle_curve", "low_momentum")
        return self

    def _belong(self, shapes: tuple[str, ...], *fields: str) -> None:
        """Raise ValueError where one of `fields` is set and the shape is none of `shapes`."""
        for name in fields:
            if self.shape not in shapes and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} goes with shape {' or '.join(shapes)}, not {self.shape}")

    def total_steps(self, train_images: int) -> int:
        """Number of updates, each on `batch_size` images drawn from `train_images`."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * train_images / self.batch_size))


class MagnitudePruning(Knobs):
    """Set the smallest weights of all layers together to zero, for good (Han et al. 2015)."""

    kind: Literal["magnitude"] = "magnitude"
    share: Annotated[float, Field(ge=0, lt=1)]
    """Of all weights of convolutions and fully connected layers; those pruned before count."""
    keep: tuple[str, ...] = ()
    """Patterns of layers that are left alone."""


class ChannelPruning(Knobs):
    """Remove the weakest channels, so that the network is smaller and faster (Fang et al. 2023, DepGraph)."""

    kind: Literal["channels"] = "channels"
    share: Annotated[float, Field(ge=0, le=0.9)]
    """Of the channels that the network has at that point; each layer keeps a tenth of its own."""
    scope: Literal["layer", "network"] = "layer"
    """`layer`: the same share of each layer's channels; `network`: the weakest of all layers together."""
    keep: tuple[str, ...] = ()
    """Patterns of layers whose channels are left alone; the classifier's always are."""


Prune = Annotated[MagnitudePruning | ChannelPruning, Field(discriminator="kind")]


class Compute(Knobs):
    """How the arithmetic is done; it decides the last digits of a result."""

    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """`bf16` and `fp16`: autocast, with float32 weights and batch-norm statistics. `fp16` scales the loss so
    that small gradients are not lost, and skips the steps in which they overflow."""
    channels_last: bool = True
    compile: bool = False
    """Train through torch.compile; pays after some minutes. Steps that compile are taken before the clock
    starts, and undone."""
    cuda_graphs: bool = False
    """On a GPU, replay what was compiled as CUDA graphs, without a launch for each kernel (torch.compile's
    reduce-overhead); pays where kernels are short. Needs `compile`."""
    sync_batch_norm: bool = False
    """On several ranks, normalise by the whole batch, and not by each rank's part of it."""

    @model_validator(mode="after")
    def _graphs_are_compiled(self) -> Self:
        if self.cuda_graphs and not self.compile:
            raise ValueError("cuda_graphs goes with compile")
        return self
