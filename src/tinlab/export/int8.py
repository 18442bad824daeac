"""Static quantisation: 8-bit weights and activations, with ranges seen on training images.

Weights are int8, symmetric, with a scale for each output channel; activations uint8, with a scale and a zero
point for each tensor, from the least to the greatest value seen (ONNX' QDQ format, which says in the graph
where values are rounded). The preprocessing, the logits and the softmax stay in float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinlab.export.graph import without_traces
from tinlab.export.libraries import library, quiet
from tinlab.export.runtime import INPUT

CALIBRATION_IMAGES = 512
BATCH_SIZE = 32
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operations that multiply with weights: what comes before the first of them is preprocessing."""


def quantise(source: Path, path: Path, images: np.ndarray) -> None:
    """Write the int8 form of ONNX file `source` to `path`; its metadata stay.

    `images` uint8 (N, H, W, 3) are what the ranges of the activations are taken from. Raises TinlabError
    where a library is missing.
    """
    onnx, tools = library("onnx"), library("onnxruntime.quantization")
    shapes = library("onnxruntime.quantization.shape_inference")
    batches = iter([images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)])

    class Reader(tools.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: np.ascontiguousarray(batch)}

    original = onnx.load(source)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        # Batch norm that stands behind a convolution is folded into it, and shapes are written down.
        prepared = Path(folder) / "prepared.onnx"
        shapes.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        tools.quantize_static(
            prepared,
            path,
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            calibrate_method=tools.CalibrationMethod.MinMax,
            nodes_to_exclude=[node.name for node in kept_in_float(graph)],
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
    file = onnx.load(path)
    without_traces(file)
    onnx.helper.set_model_props(
        file, {p.key: p.value for p in original.metadata_props} | {"precision": "int8"}
    )
    onnx.checker.check_model(file)
    onnx.save(file, path)


def kept_in_float(graph: Any) -> Iterator[Any]:
    """The nodes of the preprocessing, which no product stands before, and those that give probabilities."""
    outputs = {output.name for output in graph.output}
    after_a_product: set[str] = set()
    for node in graph.node:  # in an order in which they can be computed
        if node.op_type in PRODUCTS or after_a_product & set(node.input):
            after_a_product |= set(node.output)
            if node.op_type == "Softmax" and outputs & set(node.output):
                yield node
        else:
            yield node


def calibration_rows(labels: np.ndarray, count: int = CALIBRATION_IMAGES, seed: int = 0) -> np.ndarray:
    """Which `count` rows of a split to calibrate on, sorted, drawn by `seed`.

    Classes differ by at most one image, unless one has too few. `labels` (N,); all rows where count >= N.
    """
    rng = np.random.default_rng(seed)
    turn = np.empty(len(labels), np.int64)  # the how many-th of its class an image is
    for label in rng.permutation(np.unique(labels)):
        rows = np.flatnonzero(labels == label)
        turn[rng.permutation(rows)] = np.arange(len(rows))
    return np.sort(np.lexsort((rng.random(len(labels)), turn))[:count])
