"""A policy as one CUDA graph.

A policy is some hundreds of small kernels, and starting them one by one takes the host longer than a GPU
needs to run them. Recorded once, they are started together.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from tinlab.augment.policy import Policy
from tinlab.data.batches import Batch

_WARM_UP = 3
"""Runs before the recording, which settle what is made on first use."""


class Graphed:
    """`policy` on a GPU, recorded for each shape of batch and training size.

    What `inputs` returns is overwritten by the next call with the same shapes, on the same stream: a training
    step is done with it by then; whoever keeps it must copy it.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._recorded: dict[object, tuple[torch.cuda.CUDAGraph, Batch, Tensor, Batch]] = {}

    def inputs(self, batch: Batch, size: int) -> tuple[Tensor, Batch]:
        """As `Policy.inputs`."""
        key = batch.images.shape, size, batch.variants is None
        if key not in self._recorded:
            self._recorded[key] = self._record(batch, size)
        graph, given, x, mixed = self._recorded[key]
        for name, value in _tensors(given).items():
            value.copy_(_tensors(batch)[name])
        graph.replay()
        return x, mixed

    def _record(self, batch: Batch, size: int) -> tuple[torch.cuda.CUDAGraph, Batch, Tensor, Batch]:
        given = Batch(**{name: value.clone() for name, value in _tensors(batch).items()})
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self.policy.inputs(given, size)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            x, mixed = self.policy.inputs(given, size)
        return graph, given, x, mixed


def _tensors(batch: Batch) -> dict[str, Tensor]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if value is not None}
