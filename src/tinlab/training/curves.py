"""What a training writes down as it goes: sums over steps, and the points of its curves."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from typing import IO, Any

import torch
from torch import Tensor

from tinlab.evaluation.metrics import Metrics
from tinlab.ranks import Ranks
from tinlab.runs import Run
from tinlab.training.checkpoint import State

POINTS_PER_EPOCH = 20
"""How many points the training curve gets in one pass over the data."""


@dataclass(frozen=True)
class Window:
    """Steps whose sums are on their way to the host, and what a point of the curve says of them besides.

    `sums` are loss, penalty and number correct, on the host once `event` is over (None: they are there).
    `state` is as it was after the last of these steps.
    """

    place: Place
    learning_rate: float
    image_size: int
    state: State
    sums: Tensor
    images: int
    event: torch.cuda.Event | None

    def received(self) -> State:
        """Wait for the sums: `state` with their whole window."""
        if self.event is not None:
            self.event.synchronize()
        loss, penalty, correct = self.sums.tolist()
        return replace(
            self.state,
            window_loss=self.state.window_loss + loss,
            window_penalty=self.state.window_penalty + penalty,
            window_correct=self.state.window_correct + int(correct),
            window_images=self.state.window_images + self.images,
        )


class Meter:
    """Sums over steps and ranks that stay on the device until they are asked for.

    Where it `lags`, on a CUDA device and without other ranks, they are sent off at the end of a window and
    taken at the end of the next one: the device never waits for the host, and the host is at most a window
    ahead of it.
    """

    def __init__(self, device: torch.device, ranks: Ranks) -> None:
        self.lags = device.type == "cuda" and ranks.count == 1
        self._sent: Window | None = None
        self._ranks = ranks
        self._loss = torch.zeros((), device=device)
        self._penalty = torch.zeros((), device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._images = 0

    def add(self, loss: Tensor, penalty: Tensor, correct: Tensor, images: int) -> None:
        self._loss += loss * images
        self._penalty += penalty * images
        self._correct += correct
        self._images += images

    def drain(self, state: State) -> None:
        """Add the sums of all ranks to the window of `state`, and begin again at zero."""
        for sums in (self._loss, self._penalty, self._correct):
            self._ranks.sum(sums)
        state.window_loss += self._loss.item()
        state.window_penalty += self._penalty.item()
        state.window_correct += int(self._correct.item())
        state.window_images += self._images * self._ranks.count
        self._begin()

    def send(self, state: State, place: Place, learning_rate: float, image_size: int) -> None:
        """Send off the sums since the last window, of the window in `state`, which ends here."""
        sums = torch.stack((self._loss, self._penalty, self._correct.to(self._loss.dtype)))  # (3,)
        event = None
        if sums.device.type == "cuda":
            host = torch.empty(3, dtype=sums.dtype, pin_memory=True)
            sums = host.copy_(sums, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._sent = Window(place, learning_rate, image_size, replace(state), sums, self._images, event)
        self._begin()

    def take_sent(self) -> Window | None:
        """The window that was sent and not yet received, if there is one."""
        sent, self._sent = self._sent, None
        return sent

    def _begin(self) -> None:
        self._loss.zero_()
        self._penalty.zero_()
        self._correct.zero_()
        self._images = 0


@dataclass(frozen=True)
class Place:
    """Where in a run a point lies: `epoch` counts passes over the data, `stage` is the stage's name."""

    step: int
    epoch: float
    stage: str | None

    def fields(self) -> dict[str, Any]:
        found = {"step": self.step, "epoch": round(self.epoch, 4)}
        return found if self.stage is None else {**found, "stage": self.stage}


class Curves:
    """metrics.jsonl, the record, and TensorBoard's events beside it. Rank 0 writes, the others only know."""

    def __init__(self, run: Run, step: int, *, writes: bool) -> None:
        self._path = run.path
        self._step = step
        self._writes = writes
        self._held_out = {point["step"]: point for point in run.metrics() if point["kind"] == "eval"}

    def __enter__(self) -> Curves:
        if self._writes:
            from torch.utils.tensorboard import SummaryWriter

            self._file: IO[str] = (self._path / "metrics.jsonl").open("a", encoding="utf-8")
            # Points after the checkpoint are measured again: purge_step hides the ones written before.
            self._board = SummaryWriter(str(self._path / "tensorboard"), purge_step=self._step + 1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._writes:
            self._file.close()
            self._board.close()

    def settle(self) -> None:
        """Bring the points to the disk: before a checkpoint, which does not measure them again."""
        if self._writes:
            os.fsync(self._file.fileno())

    def measured(self, step: int) -> bool:
        """Whether the held-out curve has a point at `step` already."""
        return step in self._held_out

    def point(self, step: int) -> dict[str, Any]:
        """The held-out curve's point at `step`."""
        return self._held_out[step]

    def add(self, point: dict[str, Any]) -> None:
        if point["kind"] == "eval":
            self._held_out[point["step"]] = point
        if not self._writes:
            return
        self._file.write(json.dumps(point, allow_nan=False) + "\n")
        self._file.flush()
        folder = "train" if point["kind"] == "train" else point["split"]
        for name in ("loss", "penalty", "top1_percent", "top5_percent", "learning_rate", "images_per_second"):
            if name in point:
                self._board.add_scalar(f"{folder}/{name}", point[name], point["step"])


def train_point(state: State, place: Place, rate: float, size: int) -> dict[str, Any]:
    """A point of the training curve, from the window of `state`."""
    return {
        "kind": "train",
        **place.fields(),
        "loss": state.window_loss / state.window_images,
        "top1_percent": 100 * state.window_correct / state.window_images,
        "learning_rate": rate,
        "images_per_second": round(state.window_images / state.window_seconds, 1),
        "image_size": size,
        "train_seconds": round(state.train_seconds, 3),
        "elapsed_seconds": round(state.elapsed_seconds, 3),
    }


def eval_point(state: State, place: Place, split: str, measured: Metrics, image_size: int) -> dict[str, Any]:
    """A point of a held-out split's curve, measured at `image_size` pixels a side."""
    return {
        "kind": "eval",
        "split": split,
        **place.fields(),
        "loss": measured.loss,
        "top1_percent": measured.top1_percent,
        "top5_percent": measured.top5_percent,
        "image_size": image_size,
        "train_seconds": round(state.train_seconds, 3),
        "elapsed_seconds": round(state.elapsed_seconds, 3),
    }
