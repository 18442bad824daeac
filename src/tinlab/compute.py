"""Where and how the arithmetic is done: devices, memory order, precision."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tinlab.errors import TinlabError
from tinlab.recipe import Compute

KERNELS_OF_ONE_PIECE = 256
"""What torch.compile may make of one function before it gives up and calls it as it is; torch's own is 8."""


def resolve_device(name: str) -> torch.device:
    """The device called `name`; `auto` is cuda, or else mps, or else cpu.

    Raises TinlabError where it is not there.
    """
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
        # Each rank on its own GPU, or all would hold memory on the first one.
        own = os.environ.get("LOCAL_RANK") if device.type == "cuda" else None
        torch.empty(1, device=device if own is None else f"cuda:{int(own) % torch.cuda.device_count()}")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise TinlabError(f"--device {name} cannot be used here ({reason}); try --device cpu") from error
    return device


def wait_for(device: torch.device) -> None:
    """Until `device` has done all that it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def choose_kernels(device: torch.device) -> None:
    """Let cuDNN try its kernels for each shape that it meets and keep the fastest: shapes are few here, and
    come again in every step."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def compiled(network: Callable[[Tensor], Tensor], compute: Compute) -> Callable[[Tensor], Tensor]:
    """`network` through torch.compile, where the recipe asks for it.

    A kernel of its own for every size of images: one for all of them would be slower, and there are few.
    torch allows 8 for one function, which blocks of a kind share, and stochastic depth needs one for each
    block: here more are allowed.
    """
    if not compute.compile:
        return network
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, KERNELS_OF_ONE_PIECE)
    mode = "reduce-overhead" if compute.cuda_graphs else None
    return torch.compile(network, dynamic=False, mode=mode)


def place(model: nn.Module, compute: Compute, device: torch.device) -> nn.Module:
    """`model` on `device`, in the memory order that the recipe asks for."""
    memory = torch.channels_last if compute.channels_last else torch.contiguous_format
    return model.to(device=device, memory_format=memory)  # type: ignore[call-overload]


def autocast(compute: Compute, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context in which the forward pass runs."""
    dtype = torch.float16 if compute.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=compute.precision != "fp32")
