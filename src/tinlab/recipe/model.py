"""Which network: its shape, its remedies against overfitting, and the values that it starts from."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tinlab.recipe.knobs import Knobs, NotNegative, Positive

Rate = Annotated[float, Field(ge=0, lt=1)]
"""Probability that a value is dropped in training."""


class He(Knobs):
    """Normal with variance g^2 / fan (He et al. 2015), which keeps the variance through the layers, where g
    is the activation's gain: 1.41 with relu, 1 with selu; see tinlab.models.initialise."""

    kind: Literal["he"] = "he"
    fan: Literal["in", "out"] = "in"
    """`in` keeps the variance of the activations, `out` that of the gradients."""


class Xavier(Knobs):
    """Variance 2 / (fan in + fan out), whatever the activation (Glorot and Bengio 2010)."""

    kind: Literal["xavier"] = "xavier"
    distribution: Literal["uniform", "normal"] = "uniform"


class Gaussian(Knobs):
    """Normal with the given mean and variance, whatever the layer's size."""

    kind: Literal["gaussian"] = "gaussian"
    mean: float = 0.0
    variance: Positive = 0.01


class Orthogonal(Knobs):
    """Rows of equal length at right angles, a row being an output's weights; where there are more rows than
    weights in one, the columns are (Saxe et al. 2014)."""

    kind: Literal["orthogonal"] = "orthogonal"
    gain: Positive | None = None
    """Length of a row or column; None: the activation's gain, 1.41 with relu."""


class RandomWalk(Knobs):
    """Normal with variance g^2 / fan in, where g keeps the logarithm of the gradient's length from drifting
    through the layers (Sussillo and Abbott 2014)."""

    kind: Literal["random_walk"] = "random_walk"


class Lsuv(Knobs):
    """Orthogonal, then layer by layer scaled until the outputs on a batch of training images have variance 1
    (Mishkin and Matas 2016). A batch norm before a layer uses this batch's statistics."""

    kind: Literal["lsuv"] = "lsuv"
    tolerance: Positive = 0.1
    """How far from 1 the variance may stay."""


def _kind_alone(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _one_alone(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


Init = Annotated[
    He | Xavier | Gaussian | Orthogonal | RandomWalk | Lsuv,
    Field(discriminator="kind"),
]


class DropConnect(Knobs):
    """Zero a random share of the weights and biases of fully connected layers in each step, and divide the
    rest by the share that is kept (Wan et al. 2013; tinlab.models.dropconnect says what is changed)."""

    layers: str
    """Pattern of layer names, such as fc*; `tinlab models NAME` lists them. All that match must be fully
    connected, and no two patterns may match the same layer."""
    rate: Rate = 0.5


class Model(Knobs):
    """Which network. None stands for the network's own value, which `tinlab models NAME` prints; a field that
    the network does not have is refused."""

    name: str = "resnet18"
    """One of `tinlab models`, or torchvision:NAME, or timm:NAME."""
    width: Annotated[int, Field(gt=0, le=1024)] | None = None
    """Channels of the first stage; each stage after it has twice those of the one before."""
    stem: Literal["imagenet", "small", "patch", "patch2x2"] | None = None
    """`imagenet`: 7x7/2 convolution and 3x3/2 max pool; `small`: 3x3/1; `patch`: 3x3/2; `patch2x2`: 2x2/2."""
    block_order: Literal["a", "b", "c", "d", "e"] | None = None
    """He et al. 2016b, figure 4: (a) original, (b) batch norm after addition, (c) ReLU before addition, (d)
    ReLU-only pre-activation, (e) full pre-activation."""
    shortcut: Literal["projection", "average_pool"] | None = None
    """How a shortcut changes resolution: 1x1/2 convolution, or 2x2 average pool and then 1x1 convolution."""
    first_kernel: Literal[7, 9, 11] | None = None
    """Side of the first convolution's filters in pixels."""
    activation: Literal["relu", "elu", "leaky_relu", "gelu", "silu", "selu"] | None = None
    final_survival: Annotated[float, Field(gt=0, le=1)] | None = None
    """Stochastic depth (Huang et al. 2016): block l of L runs in training with probability
    1 - l/L (1 - this); 1: every block always runs."""
    dropout: Annotated[tuple[Rate, ...] | None, BeforeValidator(_one_alone)] = None
    """Rates at the network's places for dropout, from the input on."""
    dropconnect: tuple[DropConnect, ...] = ()
    zero_last_bn: bool | None = None
    """Start each block as the identity: the scale of its last batch norm is 0 (Goyal et al. 2017)."""
    init: Annotated[Init | None, BeforeValidator(_kind_alone)] = None
    """How the weights of convolutions and fully connected layers are drawn, their biases then being 0: a
    kind, or a kind with its values. None: as the network's source draws them."""
    weights: str | None = None
    """Weights to start from: `imagenet`, or a .safetensors or .pth file, or a run folder. The classifier is
    left as it was drawn where its size differs; any other difference is an error."""
    fresh_layers: tuple[str, ...] = ()
    """Patterns of layer names that keep their drawn values although `weights` has some for them."""

    @model_validator(mode="after")
    def _fresh_layers_need_weights(self) -> Self:
        if self.fresh_layers and self.weights is None:
            raise ValueError("fresh_layers goes with weights")
        return self


class Penalty(Knobs):
    """An addition to the loss in training: l1 * sum |v| + l2 * sum v^2, over the weights of the named layers,
    or over their outputs, where the sum is a mean over the batch."""

    layers: str
    """Pattern of layer names, such as conv1 or fc*; `tinlab models NAME` lists them. Every match counts, a
    block as well as the layers in it where both match."""
    on: Literal["weights", "activations"] = "weights"
    """`weights`: of convolutions and fully connected layers, without biases and without the scales of norms.
    `activations`: what the named layer itself puts out. A convolution's output is what it is before the
    activation that follows, so to penalise what comes after, as Keras does for a layer that is given an
    activation, name the activation's layer. One that is used in several places counts in each."""
    l1: NotNegative = 0.0
    l2: NotNegative = 0.0

    @model_validator(mode="after")
    def _penalises(self) -> Self:
        if self.l1 == 0 and self.l2 == 0:
            raise ValueError("give l1 or l2 a value above 0")
        return self
