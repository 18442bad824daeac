"""Networks as ONNX files that need neither tinlab nor torch, and reading them back."""

from __future__ import annotations

from tinlab.export.runtime import OnnxClassifier, load_onnx

__all__ = ["OnnxClassifier", "load_onnx"]
