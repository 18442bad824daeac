"""What networks without shortcuts are made of: layers one after another, named by kind and number."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tinlab import recipe
from tinlab.models.activation import activation


class Grid(nn.Module):
    """Average pooling to a grid of `side` x `side`: (B, C, H, W) -> (B, C, side, side).

    It stands before a fully connected layer and lets images of any size through: a larger grid is averaged, a
    smaller one repeated, and a grid that fits already is passed on as it is.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[-2:] == (self.side, self.side) else F.adaptive_avg_pool2d(x, self.side)

    def extra_repr(self) -> str:
        return f"side={self.side}"


class Layers:
    """Collects layers in the order in which they run, and knows what comes out of the last one.

    Layers are named conv1, bn1, act1, pool1, dropout1, fc1, … by kind and number, and `classifier`. `first`
    is the paper's number of channels in the first layer; where `knobs.width` asks for another, all layers but
    the classifier change in proportion. `side` is that of the grid at 64 pixels.

    No activation overwrites its input, so that a hook may keep what a layer gave, to show it or to penalise
    it. That costs no memory in training: neither a convolution nor a batch norm needs its output again.
    """

    def __init__(self, knobs: recipe.Model, first: int) -> None:
        assert knobs.width is not None
        self.layers: dict[str, nn.Module] = {}
        self.numbers: dict[str, int] = {}
        self.activation = knobs.activation
        self.rates = iter(knobs.dropout or ())
        self.width, self.first = knobs.width, first
        self.features, self.side, self.flat = 3, 64, False

    def conv(self, channels: int, size: int, *, stride: int = 1, padding: int | None = None) -> None:
        """A convolution with bias; without `padding` it keeps the grid at stride 1, and halves it at 2."""
        padding = size // 2 if padding is None else padding
        channels = self._scaled(channels)
        self._add("conv", nn.Conv2d(self.features, channels, size, stride, padding))
        self.features, self.side = channels, (self.side + 2 * padding - size) // stride + 1

    def norm(self, eps: float = 1e-5) -> None:
        """A batch norm, over channels, or after `flatten` over features."""
        kind = nn.BatchNorm1d if self.flat else nn.BatchNorm2d
        self._add("bn", kind(self.features, eps=eps))

    def act(self) -> None:
        """The activation that the knobs name."""
        self._add("act", activation(self.activation, inplace=False))

    def pool(self, size: int, stride: int) -> None:
        """A max pool without padding."""
        self._add("pool", nn.MaxPool2d(size, stride))
        self.side = (self.side - size) // stride + 1

    def dropout(self) -> None:
        """The next of the network's places for dropout."""
        self._add("dropout", nn.Dropout(next(self.rates)))

    def flatten(self) -> None:
        """(B, C, H, W) -> (B, C * side * side)."""
        self.layers["grid"] = Grid(self.side)
        self.layers["flatten"] = nn.Flatten()
        self.features, self.flat = self.features * self.side**2, True

    def fc(self, features: int) -> None:
        """A fully connected layer with bias."""
        features = self._scaled(features)
        self._add("fc", nn.Linear(self.features, features))
        self.features = features

    def network(self, classes: int) -> nn.Sequential:
        """The layers so far and a classifier: (B, 3, H, W) -> (B, classes)."""
        model = nn.Sequential()
        for name, layer in self.layers.items():
            model.add_module(name, layer)
        model.add_module("classifier", nn.Linear(self.features, classes))
        return model

    def _add(self, kind: str, layer: nn.Module) -> None:
        self.numbers[kind] = self.numbers.get(kind, 0) + 1
        self.layers[f"{kind}{self.numbers[kind]}"] = layer

    def _scaled(self, features: int) -> int:
        return max(1, round(features * self.width / self.first))
