"""DropConnect: Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of Neural Networks using DropConnect",
ICML 2013.

Stated: in training, each weight and each bias of a fully connected layer is zero with a given probability,
with a mask of its own for every example of the mini-batch.

Changed: masks. The paper says that one mask for a whole mini-batch does not regularise enough; one for each
example needs B times the weight's memory. Here as many masks are drawn as MASKED_WEIGHTS allows, and runs of
neighbours in the mini-batch, which is shuffled, share one: each example has its own up to 65,536 weights and
128 examples; a layer of 512 x 200 has one for every two, one of 1024 x 1024 for every sixteen.

Changed: scale. The kept values are divided in training by the share that is kept, so that in evaluation the
layer is the plain Linear that it replaces. The paper multiplies by that share in evaluation, which comes to
the same up to the scale of the weights; this way round, initialisation, weights from elsewhere, export and
explanation need not know.

Changed: evaluation. The paper matches a Gaussian to the masked layer's outputs, draws from it and averages
what comes after the activation. Here the Gaussian's mean is passed on: nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models.dropout import dropout
from tinlab.models.layers import named_layers

MASKED_WEIGHTS = 1 << 23
"""At most so many weights are masked in a step and layer, 32 MiB in float32, unless one mask is larger."""


class DropConnectLinear(nn.Linear):
    """(B, …, inputs) -> (B, …, outputs): shares the weight and bias of `linear`, and drops some in
    training."""

    def __init__(self, linear: nn.Linear, rate: float) -> None:
        # On the meta device nothing is allocated or drawn.
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.rate = rate
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return super().forward(x)
        images = x.shape[0]
        sharing = images_per_mask(images, self.weight.numel())
        masks = -(-images // sharing)
        weight = dropout(self.weight.expand(masks, -1, -1), self.rate)  # (masks, outputs, inputs)
        rows = F.pad(x.flatten(1), (0, 0, 0, masks * sharing - images))
        rows = rows.view(masks, -1, self.in_features)  # (masks, sharing x …, inputs)
        y = torch.bmm(rows, weight.mT)  # (masks, sharing x …, outputs)
        if self.bias is not None:
            y = y + dropout(self.bias.expand(masks, 1, -1), self.rate).to(y.dtype)
        return y.reshape(masks * sharing, *x.shape[1:-1], self.out_features)[:images]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rate={self.rate:g}"


def images_per_mask(images: int, weights: int) -> int:
    """How many of a mini-batch's `images` share a mask of a layer of `weights` weights."""
    masks = min(images, max(1, MASKED_WEIGHTS // weights))
    return -(-images // masks)


def add_dropconnect(model: nn.Module, knobs: Iterable[recipe.DropConnect]) -> None:
    """Replace the Linear layers that `knobs` name by DropConnectLinear, which keep their parameters and
    names.

    Raises TinlabError where a pattern matches nothing, or a layer that is no Linear or has DropConnect.
    """
    for place, knob in enumerate(knobs):
        field = f"model.dropconnect.{place}.layers"
        for name, layer in named_layers(model, knob.layers, field=field).items():
            # Not a subclass: torch's attention, for one, reads such a layer's weight and never calls it.
            if type(layer) is not nn.Linear:
                raise TinlabError(
                    f"{field}: '{name}' is a {type(layer).__name__}; DropConnect goes on a Linear, one time"
                )
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, DropConnectLinear(layer, knob.rate))
