"""Several processes that train one network together, as torchrun starts them: a rank each.

Every rank takes an equal part of each batch, and DistributedDataParallel averages their gradients. Draws are
functions of the sample, so that two ranks see what one would. Rank 0 writes; the run folder must be one that
every rank can read. Where a batch norm has statistics of its own on each rank, their mean is measured and
saved: running statistics are linear in what they have seen, so that averaging them at any step is the same.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinlab.errors import TinlabError

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others."""


@dataclass(frozen=True)
class Ranks:
    """Which rank this process is, counted from 0, and how many there are."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def shard(self, batch_size: int, parts: int = 1) -> np.ndarray:
        """Which images of a batch are this rank's, int64: its share of the first of `parts` equal parts, then
        of the second, …, so that each part is made of the same images on any number of ranks.

        Raises TinlabError where ranks would get unequal shares.
        """
        if batch_size % (self.count * parts):
            each = f" in each of {parts} parts" if parts > 1 else ""
            raise TinlabError(
                f"schedule.batch_size: {batch_size} images cannot be shared equally by {self.count} ranks"
                f"{each}"
            )
        return np.arange(batch_size).reshape(parts, self.count, -1)[:, self.rank].reshape(-1)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values`, of any shape, over the ranks, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def maximum(self, values: Tensor) -> Tensor:
        """The largest of each of `values` over the ranks, in place."""
        if self.count > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def agree(self, stopping: int, saving: bool, device: torch.device) -> tuple[int, bool]:
        """The signal that any rank got, or 0, and whether rank 0 wants to save."""
        if self.count == 1:
            return stopping, saving
        wishes = torch.tensor([stopping, int(saving and self.first)], device=device)
        stopping, saving = self.maximum(wishes).tolist()
        return stopping, bool(saving)

    def text(self, value: str, device: torch.device) -> str:
        """Rank 0's `value`, on every rank."""
        if self.count == 1:
            return value
        data = torch.tensor(list(value.encode()), dtype=torch.uint8, device=device)
        length = torch.tensor([len(data)], device=device)
        dist.broadcast(length, 0)
        data = data if self.first else torch.empty(int(length), dtype=torch.uint8, device=device)
        dist.broadcast(data, 0)
        return bytes(data.tolist()).decode()

    def wait(self) -> None:
        """Until every rank is here."""
        if self.count > 1:
            dist.barrier()

    def average_buffers(self, model: nn.Module) -> None:
        """Give every rank the mean of the ranks' running statistics, and of what else `model` keeps in
        floating point besides its parameters."""
        if self.count == 1:
            return
        kept = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if not kept:
            return
        together = self.sum(torch.cat([buffer.flatten() for buffer in kept])) / self.count
        for buffer, mean in zip(kept, together.split([buffer.numel() for buffer in kept]), strict=True):
            buffer.copy_(mean.view_as(buffer))

    def parallel(self, model: nn.Module, device: torch.device, *, leaves_out: bool) -> nn.Module:
        """`model` with gradients averaged over the ranks; itself where there is one.

        `leaves_out` says that a step may reach only some of the parameters, as under stochastic depth.
        """
        if self.count == 1:
            return model
        with warnings.catch_warnings():
            # torch 2.13 calls the argument another name, which 2.11 does not know.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                model,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,  # statistics are averaged when they are looked at
                find_unused_parameters=leaves_out,
            )


ALONE = Ranks()
"""A process that was started by itself."""


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """The ranks that torchrun started, which this process joins and leaves, and this rank's own device.

    A process that was started by itself is the only rank. Raises TinlabError where a rank cannot be reached,
    and where there are more ranks on this machine than GPUs.
    """
    count = _given("WORLD_SIZE", 1)
    if count == 1:
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # events and random numbers are the current device's
        yield ALONE, device
        return
    local = _given("LOCAL_RANK", 0)
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise TinlabError(
                f"rank {os.environ['RANK']} has no GPU: there are {torch.cuda.device_count()} here; "
                "lower --nproc-per-node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise TinlabError(f"several ranks train on cuda or cpu, not on {device.type}")
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            dist.init_process_group(
                backend,
                store=_fresh_store(number(), count),
                rank=number(),
                world_size=count,
                timeout=PATIENCE,
            )
        else:
            dist.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TinlabError(f"the ranks cannot find each other ({reason})") from error
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
    except RuntimeError as error:
        if not lost(error):
            raise
        raise TinlabError(f"another of the {count} ranks is gone; start them again") from error
    finally:
        dist.destroy_process_group()


def _fresh_store(rank: int, count: int) -> dist.Store:
    """torchrun's store, but for what an earlier attempt of these ranks left in it.

    torchrun keeps one store over its restarts (torch 2.13; issue 135712 of pytorch/pytorch), so that ranks
    that are started again would find the addresses of dead ones. Here rank 0 opens a round under a new name,
    the others sign in to the newest round there is, and a round counts for a rank once rank 0 has confirmed
    that very process.
    """
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=PATIENCE
    )
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("tinlab/round", own)
        signed = [store.get(f"tinlab/{own}/{other}").decode() for other in range(1, count)]
        store.set(f"tinlab/{own}/confirmed", " ".join(signed))
        return dist.PrefixStore(own, store)
    while True:
        current = store.get("tinlab/round").decode()
        store.set(f"tinlab/{current}/{rank}", own)
        confirmed = f"tinlab/{current}/confirmed"
        if store.check([confirmed]) and own in store.get(confirmed).decode().split():
            return dist.PrefixStore(current, store)
        time.sleep(0.05)


def _given(name: str, otherwise: int) -> int:
    """The whole number in variable `name` of the environment."""
    text = os.environ.get(name, str(otherwise))
    if not text.isdecimal():
        raise TinlabError(f"${name} is '{text[:40]}', and torchrun sets it to a whole number; unset it")
    return int(text)


def number() -> int:
    """This process' rank as torchrun gives it, joined or not; 0 for one that was started by itself."""
    return _given("RANK", 0)


def restarted() -> bool:
    """Whether torchrun has started this process again, after a rank was lost."""
    return _given("TORCHELASTIC_RESTART_COUNT", 0) > 0


def restarts() -> int:
    """How often torchrun starts the ranks again that it has lost; 0 for a process that was started alone."""
    return _given("TORCHELASTIC_MAX_RESTARTS", 0)


def launch() -> str | None:
    """A name for the torchrun that this process is a child of, which no other one has; None without one.

    It is made of the number of the process and of when that began, counted from the machine's start: no jump
    of the clock changes it.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = os.getppid()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # Field 22; the program's name, field 2, is in brackets and may hold blanks.
        began = Path(f"/proc/{parent}/stat").read_text(encoding="ascii", errors="replace")
        return f"{boot}/{parent}/{began.rpartition(')')[2].split()[19]}"
    except OSError:  # not Linux
        return f"{socket.gethostname()}/{parent}/{psutil.Process(parent).create_time():.2f}"


def first_here() -> bool:
    """Whether this is the first of the ranks on its machine, or a process that was started by itself."""
    return _given("LOCAL_RANK", 0) == 0


def lost(error: Exception) -> bool:
    """Whether `error` is what a rank gets when another one has gone."""
    text = str(error).lower()
    signs = ("connection closed by peer", "connection reset", "broken pipe", "timed out", "nccl", "gloo")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the whole batch of all ranks, on CPUs as on GPUs: torch's runs on GPUs alone.

    It gives what nn.BatchNorm2d gives for the parts of the ranks put together, its gradient included, where
    they are equally large. One exchange forward and one backward.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
        values = x.float()
        own_var, own_mean = torch.var_mean(values, axes, correction=0)  # (C,), (C,)
        own = torch.stack([own_mean, own_var])
        means, variances = torch.stack(_gathered(own)).unbind(1)  # (ranks, C) each
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            count = values.numel() // values.shape[1] * dist.get_world_size()
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / (count - 1), momentum)
        scale = torch.rsqrt(variance + self.eps)
        shift = -mean * scale
        if self.affine:
            scale = scale * self.weight
            shift = shift * self.weight + self.bias
        return (values * scale.view(shape) + shift.view(shape)).to(x.dtype)


class _Gather(torch.autograd.Function):
    """Every rank's tensor, on every rank; each gets back the sum of the gradients that reached its own."""

    @staticmethod
    def forward(ctx: object, own: Tensor) -> tuple[Tensor, ...]:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        together = torch.stack(gradients)
        dist.all_reduce(together)
        return together[dist.get_rank()]


def _gathered(own: Tensor) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = _Gather.apply(own)
    return found


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Replace every batch norm of `model` by a SyncedBatchNorm with the same parameters and buffers.

    Raises TinlabError where one does more than normalise over axis 1, such as timm's, which hold the
    activation.
    """
    for name, module in list(model.named_children()):
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            synchronise_batch_norm(module)
            continue
        if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            raise TinlabError(
                f"compute.sync_batch_norm: this network's {type(module).__name__} is more than a batch norm; "
                "leave it out"
            )
        synced = SyncedBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        synced.weight, synced.bias = module.weight, module.bias
        for buffer in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(synced, buffer, getattr(module, buffer))
        synced.train(module.training)
        setattr(model, name, synced)
    return model
