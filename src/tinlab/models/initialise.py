"""Values that a network's convolutions and fully connected layers start from.

A layer's fan in is the number of inputs that one of its outputs is a sum of, and its fan out the number of
outputs that one of its inputs goes into, both within a group of a grouped convolution and at stride 1. Where
a weight has variance g^2 / fan in, outputs are as large as inputs if g is the activation's gain:
1 / sqrt(E f(z)^2) for z standard normal. That is sqrt 2 for ReLU and sqrt(2 / (1 + 0.01^2)) for leaky ReLU
(He et al. 2015, equations 10 and 15), and 1 for SELU, whose constants were chosen so (Klambauer et al. 2017,
with LeCun's variance 1 / fan in). For ELU, GELU and SiLU no paper states one: the same integral gives 1.25,
1.53 and 1.68.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models.activation import activation as make_activation

ROUNDS = 10
"""How often LSUV scales a layer before it goes on to the next (Mishkin and Matas 2016, T_max)."""

Layer = nn.Conv2d | nn.Linear


@torch.no_grad()
def initialise(
    model: nn.Module, init: recipe.Init, activation: str | None, images: Tensor | None = None
) -> None:
    """Draw the weights of every Conv2d and Linear of `model` anew, and set their biases to 0.

    The draws come from torch's generator, layer by layer in the order of definition. All else stays as it is,
    batch norms that start at zero included. `activation` is the one between the layers, one of
    recipe.Model.activation's; None, for a network that does not say, counts as relu. `images` are some tens
    of training images as the network gets them, (B, 3, H, W); `lsuv` alone needs them. Raises TinlabError
    where it gets fewer than two.
    """
    if isinstance(init, recipe.Lsuv) and (images is None or len(images) < 2):
        raise TinlabError("model.init: lsuv measures the layers' outputs on images; give it two or more")
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    for layer in layers:
        _draw(layer, init, activation or "relu", last=layer is layers[-1])
        if layer.bias is not None:
            layer.bias.zero_()
    if isinstance(init, recipe.Lsuv) and layers:
        assert images is not None
        scale_to_unit_variance(model, images.to(layers[0].weight.device), init.tolerance)


@contextmanager
def scaled_after(model: nn.Module, init: recipe.Init | None, images: Tensor) -> Iterator[None]:
    """While entered, layers of `model` may get other weights. By LSUV those that did not are scaled again
    then, on `images`: what they see is no longer what they were scaled on."""
    if not isinstance(init, recipe.Lsuv):
        yield
        return
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    before = [layer.weight.detach().clone() for layer in layers]
    yield
    pairs = zip(layers, before, strict=True)
    given = {layer for layer, weight in pairs if not torch.equal(layer.weight.detach(), weight)}
    if given:
        scale_to_unit_variance(model, images.to(layers[0].weight.device), init.tolerance, leave=given)


def _draw(layer: Layer, init: recipe.Init, activation: str, *, last: bool) -> None:
    weight = layer.weight  # (outputs, inputs / groups), and for a convolution (…, height, width)
    fan_in, fan_out = fans(layer)
    match init:
        case recipe.He(fan=fan):
            weight.normal_(0, gain(activation) / math.sqrt(fan_in if fan == "in" else fan_out))
        case recipe.Xavier(distribution="normal"):
            weight.normal_(0, math.sqrt(2 / (fan_in + fan_out)))
        case recipe.Xavier():
            bound = math.sqrt(6 / (fan_in + fan_out))
            weight.uniform_(-bound, bound)
        case recipe.Gaussian(mean=mean, variance=variance):
            weight.normal_(mean, math.sqrt(variance))
        case recipe.Orthogonal(gain=length):
            weight.copy_(orthogonal_like(layer) * (gain(activation) if length is None else length))
        case recipe.RandomWalk():
            scale = random_walk_gain(None if last else activation, fan_in)
            weight.normal_(0, scale / math.sqrt(fan_in))
        case recipe.Lsuv():
            weight.copy_(orthogonal_like(layer))


def fans(layer: Layer) -> tuple[int, int]:
    """(fan in, fan out) of one group of `layer`."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    outputs, inputs, *window = layer.weight.shape
    return inputs * math.prod(window), outputs // groups * math.prod(window)


@cache
def _moments(activation: str) -> tuple[float, float, float]:
    """E f(z)^2, E f'(z)^2 and E f'(z)^4 for z standard normal, by the midpoint rule; 0, where f may have a
    kink, lies between two points. Right to 7 digits."""
    points, reach = 1 << 14, 10.0
    step = 2 * reach / points
    z = (torch.arange(points, dtype=torch.float64, device="cpu") + 0.5) * step - reach
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * step
    with torch.enable_grad():
        z.requires_grad_()
        value = make_activation(activation, inplace=False)(z)
        (slope,) = torch.autograd.grad(value.sum(), z)
    value = value.detach()
    square, slope_square, slope_fourth = (
        float((density * values).sum()) for values in (value**2, slope**2, slope**4)
    )
    return square, slope_square, slope_fourth


def gain(activation: str) -> float:
    """1 / sqrt(E f(z)^2) for z standard normal: keeps the size of outputs through the activation f."""
    return 1 / math.sqrt(_moments(activation)[0])


def random_walk_gain(activation: str | None, fan_in: int) -> float:
    """The g for which the logarithm of the gradient's length has no drift through layers of this fan in.

    Sussillo and Abbott 2014, "Random Walk Initialization for Training Very Deep Feedforward Networks", give
    exp(1 / 2N) for linear layers, here the last one (None), and sqrt(2) exp(1.2 / (max(N, 6) - 2.4)) for
    ReLUs. For the others they give none. With s the mean of f'(z)^2 for z standard normal, and k that of
    f'(z)^4 over s^2, the squared length is multiplied in a layer by a factor of mean g^2 s and relative
    variance (3k - 1) / N, so that its logarithm falls short of that of the mean by half of this variance, and
    g = exp((3k - 1) / 4N) / sqrt(s). That is the paper's own value for linear layers, k = 1, and for ReLUs, k
    = 2, agrees with it where N is large."""
    if activation is None:
        return math.exp(1 / (2 * fan_in))
    if activation == "relu":
        return math.sqrt(2) * math.exp(1.2 / (max(fan_in, 6) - 2.4))
    _, slope_square, slope_fourth = _moments(activation)
    spread = 3 * slope_fourth / slope_square**2 - 1
    return math.exp(spread / (4 * fan_in)) / math.sqrt(slope_square)


def orthogonal_like(layer: Layer) -> Tensor:
    """A random weight of `layer`'s shape: in each group, the rows (an output's weights) have length 1 and are
    at right angles, or where they are more than their length, the columns."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = layer.weight
    rows, columns = weight.shape[0] // groups, weight[0].numel()
    draw = torch.randn(groups, max(rows, columns), min(rows, columns), device=weight.device)
    q, r = torch.linalg.qr(draw)
    # Uniform over the orthogonal matrices: QR alone prefers some signs (Mezzadri 2007).
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return (q if rows >= columns else q.mT).reshape(weight.shape)


@torch.no_grad()
def scale_to_unit_variance(
    model: nn.Module, images: Tensor, tolerance: float, *, leave: Collection[nn.Module] = ()
) -> None:
    """Divide each weight of a Conv2d or Linear by its output's standard deviation on `images`, in forward
    order, until the variance over all of the output is within `tolerance` of 1, at most ROUNDS times.

    The second part of LSUV (Mishkin and Matas 2016, "All You Need Is a Good Init", algorithm 1). There a
    layer is measured by a forward pass of its own. A layer sees only what comes before it, and that is
    finished when its turn comes, so that one pass is enough, in which each layer is computed again once it is
    scaled.

    Batch norms use the batch's statistics, as the authors' code does, which runs the network in its training
    phase: with the running ones, 0 and 1 at the start, the layers behind them would be measured on values
    that training never shows them. Their running statistics are left alone. All else is in evaluation mode,
    so that dropout, DropConnect and stochastic depth draw nothing and every block runs.

    Left as they are: layers in `leave`, those that this pass does not call, such as auxiliary classifiers,
    and those whose outputs are all equal.
    """
    layers = [module for module in model.modules() if isinstance(module, Layer) and module not in leave]
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    scaled: set[nn.Module] = set()

    def scale(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        if layer in scaled:  # used a second time
            return output
        scaled.add(layer)
        assert isinstance(layer, Layer)
        for _ in range(ROUNDS):
            variance = float(output.var(correction=0))
            if abs(variance - 1) < tolerance or variance == 0 or not math.isfinite(variance):
                break
            layer.weight.div_(math.sqrt(variance))
            output = layer.forward(*inputs, **named)
        return output

    hooks = [layer.register_forward_hook(scale, with_kwargs=True) for layer in layers]
    try:
        model.eval()
        for norm in norms:
            norm.train()
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
        for buffer, before in buffers:
            buffer.copy_(before)
