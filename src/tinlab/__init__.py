"""tinlab: train, measure, explain and compare image classifiers on Tiny ImageNet and other small images."""

from __future__ import annotations

__version__ = "0.1.0"
