"""Small networks whose explanations can be worked out by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

RELUS = {
    "module": lambda net, x: net.relu(x),
    "in-place module": lambda net, x: net.inplace(x),
    "F.relu": lambda net, x: F.relu(x),
    "F.relu in place": lambda net, x: F.relu(x, inplace=True),
    "torch.relu": lambda net, x: torch.relu(x),
    "torch.relu_": lambda net, x: torch.relu_(x),
    "method": lambda net, x: x.relu(),
    "statement": lambda net, x: (x.relu_(), x)[1],
}
"""Every way to write a ReLU; the last changes x and ignores what is returned."""


class TwoConvolutions(nn.Module):
    """Convolution, ReLU, convolution, ReLU, mean over the grid, classifier: (B, 3, H, W) -> (B, classes)."""

    def __init__(self, relu="module", classes=5, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8, classes)
        self.relu = nn.ReLU()
        self.inplace = nn.ReLU(inplace=True)
        self.act = RELUS[relu]

    def forward(self, x):
        x = self.act(self, self.conv1(x))
        x = self.act(self, self.conv2(x))
        return self.fc(x.mean((2, 3)))


class Smooth(nn.Module):
    """A network without ReLUs: (B, 3, H, W) -> (B, classes)."""

    def __init__(self, classes=5):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        return self.fc(F.gelu(self.conv(x)).mean((2, 3)))


def images(count=3, side=16, seed=0):
    """Inputs and targets: (B, 3, side, side), (B,)."""
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, side, side, generator=dice), torch.arange(count) % 5
