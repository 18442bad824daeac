"""Checkpoints: all that a run needs to go on, in folders that are complete or absent.

    RUN/checkpoints/step-00001000/
        model.safetensors        parameters and buffers
        optimizer.safetensors    momentum and the like, named STATE/PARAMETER
        state.json               step, clocks, the open window of the training curve

A checkpoint is written beside its place, flushed and renamed into it, and only then is the one before it
removed: a kill at any moment leaves at least one whole checkpoint. Nothing in it can run code.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tinlab.errors import TinlabError
from tinlab.files import flush_folder, read_json, write_json


@dataclass
class State:
    """Where a run stands, besides its weights.

    `train_seconds` counts steps alone; `elapsed_seconds` also counts measuring and saving; both leave out
    the time in which the run was stopped. The window holds sums over the images since the curve's last point.
    `blocks_run` residual blocks ran in `depth_steps` steps, where stochastic depth drops some.
    """

    step: int = 0
    train_seconds: float = 0.0
    elapsed_seconds: float = 0.0
    window_loss: float = 0.0
    window_penalty: float = 0.0
    window_correct: int = 0
    window_images: int = 0
    window_seconds: float = 0.0
    blocks_run: float = 0.0
    depth_steps: int = 0


def save(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> Path:
    """Write a checkpoint into folder `run` and remove the ones before it. Returns its folder."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"step-{state.step:08d}"
    if not place.is_dir():
        partial = folder / f".{place.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _save_tensors(partial / "model.safetensors", model.state_dict())
        _save_tensors(partial / "optimizer.safetensors", _optimizer_tensors(optimizer, model))
        write_json(partial / "state.json", asdict(state))
        partial.rename(place)
        flush_folder(folder)
    for older in _checkpoints(run)[:-1]:
        shutil.rmtree(older)
    return place


def latest(run: Path) -> Path | None:
    """The newest checkpoint in folder `run`, or None."""
    found = _checkpoints(run)
    return found[-1] if found else None


def restore(place: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> State:
    """Load checkpoint `place` into `model` and `optimizer`. Raises TinlabError where it is damaged."""
    load_weights(place, model, device)
    tensors = _load_tensors(place / "optimizer.safetensors", device)
    names = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name not in names:
            raise TinlabError(f"{place} does not belong to this recipe: it has no parameter '{name}'")
        parameter = names[name]
        if value.shape == parameter.shape:
            # Fused updates walk memory, so the state takes its parameter's memory order.
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        optimizer.state[parameter][kind] = value
    try:
        return State(**read_json(place / "state.json"))
    except (OSError, ValueError, TypeError) as error:
        raise TinlabError(f"{place / 'state.json'} cannot be read ({error}); remove {place}") from error


def load_weights(place: Path, model: nn.Module, device: torch.device) -> None:
    """Load the parameters and buffers of checkpoint `place` into `model`, all names and shapes alike."""
    try:
        model.load_state_dict(_load_tensors(place / "model.safetensors", device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise TinlabError(f"{place} does not belong to this recipe: {reason}") from error


def _checkpoints(run: Path) -> list[Path]:
    return sorted(path for path in (run / "checkpoints").glob("step-*") if path.is_dir())


def _optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {}
    for parameter, state in optimizer.state.items():
        for kind, value in state.items():
            if value is not None:
                tensors[f"{kind}/{names[parameter]}"] = value
    return tensors


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Memory order is not kept: safetensors wants each tensor dense, in the order of its dimensions."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _load_tensors(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        return load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise TinlabError(f"{path} cannot be read ({error}); remove {path.parent} and resume") from error
