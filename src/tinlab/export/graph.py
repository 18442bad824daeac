"""A network with its preprocessing -> one ONNX file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tinlab import __version__
from tinlab.data.pack import ClassInfo
from tinlab.errors import TinlabError
from tinlab.evaluation.predict import at_network_size
from tinlab.export.libraries import library, quiet
from tinlab.export.runtime import INPUT, LOGITS, PROBABILITIES
from tinlab.runs import Preprocessing

LARGEST_BYTES = 2**31 - 2**20
"""An ONNX file is one protobuf message, of less than 2 GiB; a mebibyte is left for the graph."""


class WithPreprocessing(nn.Module):
    """uint8 (B, H, W, 3) as stored -> logits and probabilities, float32 (B, C) each."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (preprocessing.mean, preprocessing.std))
        self.model = model
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (1 / (255 * std)).float()[:, None, None])
        self.register_buffer("shift", (-mean / std).float()[:, None, None])
        self.preprocessing = preprocessing

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.permute(0, 3, 1, 2).to(torch.float32)  # (B, 3, H, W)
        logits = self.model(at_network_size(self.preprocessing, x * self.scale + self.shift))  # (B, C)
        return logits, logits.softmax(dim=1)


def write_graph(
    path: Path,
    model: nn.Module,
    preprocessing: Preprocessing,
    classes: Sequence[ClassInfo],
    about: Mapping[str, str],
) -> None:
    """Write `model`, a raw eager module on the CPU, to ONNX file `path` in float32; it is set to evaluation.

    The batch is free; height and width are the preprocessing's. `about` is added to the metadata. Raises
    TinlabError where a library is missing or the network cannot be exported.
    """
    onnx = library("onnx")
    library("onnxscript")
    weights_bytes = sum(4 * tensor.numel() for tensor in model.state_dict().values())
    if weights_bytes > LARGEST_BYTES:
        raise TinlabError(f"its weights take {weights_bytes / 2**30:.1f} GiB, and an ONNX file holds 2")
    whole = WithPreprocessing(model, preprocessing)
    whole.train(False)
    size = preprocessing.image_size
    images = torch.zeros(2, size, size, 3, dtype=torch.uint8)  # a batch of one would be taken for fixed
    try:
        with quiet(), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                whole,
                (images,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[LOGITS, PROBABILITIES],
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}},
                external_data=False,
                verbose=False,
            )
            assert program is not None
            file = program.model_proto
    except torch.onnx.errors.OnnxExporterError as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise TinlabError(f"this network cannot be exported to ONNX: {reason[:200]}") from error
    without_traces(file)
    describe(file, preprocessing, classes, about)
    onnx.checker.check_model(file)
    onnx.save(file, path)


def describe(
    file: Any, preprocessing: Preprocessing, classes: Sequence[ClassInfo], about: Mapping[str, str]
) -> None:
    """Say in the ONNX model's metadata what it is: strings, of which classes, mean and std are JSON."""
    library("onnx").helper.set_model_props(
        file,
        {
            "tinlab_version": __version__,
            "image_size": str(preprocessing.image_size),
            "mean": json.dumps(preprocessing.mean),
            "std": json.dumps(preprocessing.std),
            "classes": json.dumps([[c.id, c.words] for c in classes], ensure_ascii=False),
            **about,
        },
    )


def without_traces(file: Any) -> None:
    """Take out what the exporter notes at each value and node: lines of source code, and where they lie."""
    graph = file.graph
    file.ClearField("doc_string")
    for thing in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        thing.ClearField("metadata_props")
        thing.ClearField("doc_string")
