"""tinlab: train, measure, explain and compare image classifiers on Tiny ImageNet and other small images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinlab.errors import TinlabError

if TYPE_CHECKING:
    from tinlab.classifier import Classifier, load

__version__ = "0.1.0"

__all__ = ["Classifier", "TinlabError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `Classifier` bring torch along, which takes seconds: only who uses them waits for it."""
    if name in ("load", "Classifier"):
        from tinlab import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module 'tinlab' has no attribute '{name}'")
