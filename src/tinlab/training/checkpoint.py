"""Checkpoints: all that a run needs to go on, in folders that are complete or absent.

    RUN/checkpoints/step-00001000/
        model.safetensors        parameters and buffers
        optimizer.safetensors    momentum and the like, named STATE/PARAMETER, or STATE/#GROUP
        ema.safetensors          the moving average of the weights, where the recipe has one
        lookahead.safetensors    slow weights, where the recipe has some
        masks.safetensors        which weights are pruned, where some are
        state.json               step, clocks, the open window of the training curve, loss scale, plateau,
                                 and what the optimizer keeps as plain numbers

A checkpoint is written beside its place, flushed and renamed into it, and only then is the one before it
removed: a kill at any moment leaves at least one whole checkpoint. Nothing in it can run code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tinlab.errors import TinlabError
from tinlab.files import check_regular, current_umask, flush, flush_folder, read_json, write_json
from tinlab.training.schedule import Plateau

EMA = "ema"
"""Name of the moving average among a checkpoint's files."""

Beside = Mapping[str, Mapping[str, Tensor]]
"""Weights beside the model's: name of the file -> name of the tensor -> tensor."""


@dataclass
class State:
    """Where a run stands, besides its weights.

    `train_seconds` counts steps alone; `elapsed_seconds` also counts measuring and saving; both leave out
    the time in which the run was stopped, and that of steps taken to warm up, which is `warm_up_seconds`.
    The window holds sums over the images since the curve's last point. `blocks_run` residual blocks ran in
    `depth_steps` steps, where stochastic depth drops some.
    `optimizer` holds what it keeps as plain numbers, named as its tensors are; `scaling` is that of the loss.
    `stage` counts from 0 and `step` through all stages; `structure` says which shapes pruned layers have, and
    `hard_classes` which classes get the augmentation for hard ones.
    """

    step: int = 0
    stage: int = 0
    train_seconds: float = 0.0
    elapsed_seconds: float = 0.0
    warm_up_seconds: float = 0.0
    window_loss: float = 0.0
    window_penalty: float = 0.0
    window_correct: int = 0
    window_images: int = 0
    window_seconds: float = 0.0
    blocks_run: float = 0.0
    depth_steps: int = 0
    skipped_steps: int = 0
    optimizer: dict[str, float | bool] = field(default_factory=dict)
    scaling: dict[str, float] = field(default_factory=dict)
    plateau: Plateau = field(default_factory=Plateau)
    structure: dict[str, Any] | None = None
    hard_classes: list[int] = field(default_factory=list)

    def begin_window(self) -> None:
        """The next point of the training curve is of the steps from here on."""
        self.window_loss, self.window_penalty, self.window_correct = 0.0, 0.0, 0
        self.window_images, self.window_seconds = 0, 0.0


_LIKE_PARAMETER = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
"""What optimizers keep of each of a parameter's values."""
_NAME = re.compile(r"step-[0-9]{8,18}")
_STATE = TypeAdapter(State)
"""What state.json may hold: it may come from anywhere, and its numbers end up in loops and in file names."""


def save(
    run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, beside: Beside | None = None
) -> Path:
    """Write a checkpoint into folder `run` and remove the ones before it. Returns its folder."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"step-{state.step:08d}"
    if not place.is_dir():
        partial = folder / f".{place.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            _save_tensors(partial / "model.safetensors", model.state_dict())
            kept = dict(_kept(optimizer, model))
            tensors = {key: value for key, value in kept.items() if isinstance(value, Tensor)}
            state.optimizer = {key: value for key, value in kept.items() if not isinstance(value, Tensor)}
            _save_tensors(partial / "optimizer.safetensors", tensors)
            for name, values in (beside or {}).items():
                _save_tensors(partial / f"{name}.safetensors", values)
            write_json(partial / "state.json", asdict(state))
            partial.rename(place)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the room
            raise
        flush_folder(folder)
    clean(run)
    return place


def clean(run: Path) -> None:
    """Remove what is not the newest checkpoint of folder `run`: older ones, and those that a kill cut short.

    Only for the process that holds the run.
    """
    for place in [*_checkpoints(run)[:-1], *(run / "checkpoints").glob(".step-*.partial")]:
        shutil.rmtree(place)


def latest(run: Path) -> Path | None:
    """The newest checkpoint in folder `run`, or None."""
    found = _checkpoints(run)
    return found[-1] if found else None


def read_state(place: Path) -> State:
    """Where the run stood at checkpoint `place`. Raises TinlabError where that cannot be read."""
    try:
        values = read_json(place / "state.json")
        state = State(**{**values, "plateau": Plateau(**values.get("plateau", {}))})
        _STATE.validate_json(json.dumps(asdict(state)), strict=True)
        _check_counts(state)
        return state
    except ValidationError as error:
        wrong = ".".join(map(str, error.errors()[0]["loc"]))
        raise TinlabError(f"{place / 'state.json'} is damaged ({wrong[:80]}); remove {place}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TinlabError(f"{place / 'state.json'} cannot be read ({error}); remove {place}") from error


def _check_counts(state: State) -> None:
    """Raise ValueError for what no training can have counted."""
    counts = {name: value for name, value in asdict(state).items() if isinstance(value, int | float)}
    for name, value in counts.items():
        if not (name == "window_loss" or name == "window_penalty" or 0 <= value < 2**53):
            raise ValueError(f"{name} is {value}")
    if any(not 0 <= label < 2**31 for label in state.hard_classes):
        raise ValueError("hard_classes has a class that cannot be")


def restore(
    place: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    beside: Beside | None = None,
) -> State:
    """Load checkpoint `place` into `model`, `optimizer` and the tensors of `beside`.

    Raises TinlabError where it is damaged.
    """
    load_weights(place, model, device)
    state = read_state(place)
    kept = {**_load_tensors(place / "optimizer.safetensors", device), **state.optimizer}
    names = dict(model.named_parameters())
    groups = {f"#{number}": group for number, group in enumerate(optimizer.param_groups)}
    group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
    # Some of timm's keep a momentum in bfloat16; torch's own take their parameter's precision alone.
    others = () if type(optimizer).__module__.startswith("torch.") else (torch.bfloat16,)
    optimizer.state.clear()
    for key, value in kept.items():
        kind, _, name = key.partition("/")
        if name in groups:
            if kind == "params" or kind in optimizer.defaults:
                raise TinlabError(
                    f"{place} is damaged: {kind} of the optimizer is the recipe's; remove {place}"
                )
            groups[name][kind] = value.cpu() if isinstance(value, Tensor) else value
            continue
        if name not in names:
            raise TinlabError(f"{place} does not belong to this recipe: it has no parameter '{name}'")
        parameter = names[name]
        if isinstance(value, Tensor):
            # Some of timm's keep averages of rows and columns, under other names.
            alike = kind not in _LIKE_PARAMETER or value.shape == parameter.shape
            alike = alike or (kind != "momentum_buffer" and value.ndim == 0)  # one for the whole of it
            single = kind != "step" or value.numel() == 1
            precise = value.ndim == 0 or value.dtype in (parameter.dtype, *others)
            if not (alike and single and precise):
                raise TinlabError(
                    f"{place} is damaged: {kind} does not fit parameter '{name}'; remove {place}"
                )
            if value.shape == parameter.shape:
                # Fused updates walk memory, so the state takes its parameter's memory order.
                value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
            elif kind == "step" and not (
                group_of[parameter].get("fused") or group_of[parameter].get("capturable")
            ):
                value = value.cpu()  # where all but fused kernels count
        optimizer.state[parameter][kind] = value
    _complete(optimizer, place)
    for file, tensors in (beside or {}).items():
        load_tensors(place, file, tensors, device)
    return state


def _complete(optimizer: torch.optim.Optimizer, place: Path) -> None:
    """Fused updates take what all parameters keep, or nothing: give SGD's without momentum the zeros that it
    starts from, and refuse AdamW's that keep some of their averages alone."""
    for group in optimizer.param_groups:
        kept = [optimizer.state[parameter] for parameter in group["params"] if parameter in optimizer.state]
        if isinstance(optimizer, torch.optim.SGD) and any("momentum_buffer" in one for one in kept):
            for parameter in group["params"]:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        if isinstance(optimizer, torch.optim.AdamW) and any(
            one and not {"step", "exp_avg", "exp_avg_sq"} <= one.keys() for one in kept
        ):
            raise TinlabError(
                f"{place} is damaged: it lacks some of the optimizer's averages; remove {place}"
            )


@torch.no_grad()
def load_tensors(place: Path, name: str, into: Mapping[str, Tensor], device: torch.device) -> None:
    """Overwrite the tensors of `into` with the file called `name` of checkpoint `place`."""
    found = _load_tensors(place / f"{name}.safetensors", device)
    if {key: value.shape for key, value in found.items()} != {key: t.shape for key, t in into.items()}:
        raise TinlabError(f"{place} does not belong to this recipe: {name}.safetensors has other tensors")
    for key, tensor in into.items():
        tensor.copy_(found[key])


def load_measured(place: Path, model: nn.Module, device: torch.device, averaged: bool) -> None:
    """Load into `model` the weights that are measured: the moving average, where `averaged`."""
    if averaged:
        load_tensors(place, EMA, model.state_dict(), device)
    else:
        load_weights(place, model, device)


def load_weights(place: Path, model: nn.Module, device: torch.device) -> None:
    """Load the parameters and buffers of checkpoint `place` into `model`, all names and shapes alike."""
    found, own = _load_tensors(place / "model.safetensors", device), model.state_dict()
    strange = [n for n in own.keys() | found.keys() if n not in own or n not in found]
    strange = strange or [name for name, tensor in found.items() if tensor.shape != own[name].shape]
    if strange:
        raise TinlabError(
            f"{place} does not belong to this recipe, or was written by another version of tinlab: "
            f"{len(strange)} of its tensors do not fit the network, such as '{min(strange)}'"
        )
    model.load_state_dict(found)


def step_of(place: Path) -> int:
    """After how many steps checkpoint `place` was saved, by its name."""
    return int(place.name.removeprefix("step-"))


def _checkpoints(run: Path) -> list[Path]:
    folders = [path for path in (run / "checkpoints").glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted((path for path in folders if path.is_dir()), key=step_of)


def _kept(optimizer: torch.optim.Optimizer, model: nn.Module) -> Iterator[tuple[str, Any]]:
    """What `optimizer` keeps from step to step, of each parameter and of each group: (name, value)."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        for kind, value in state.items():
            if value is not None:
                yield f"{kind}/{names[parameter]}", value
    for number, group in enumerate(optimizer.param_groups):
        for kind, value in group.items():
            # Some of timm's count their steps here; everything else in a group is the recipe's.
            if kind != "params" and kind not in optimizer.defaults:
                yield f"{kind}/#{number}", value


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Memory order is not kept: safetensors wants each tensor dense, in the order of its dimensions, and
    layers that share a weight with a copy of it each.

    Raises OSError where the disk refuses.
    """
    dense: dict[str, Tensor] = {}
    places = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        dense[name] = value.clone() if place in places else value
        places.add(place)
    try:
        save_file(dense, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(0o666 & ~current_umask())  # safetensors keeps it from all but its owner
    flush(path)


def _load_tensors(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        check_regular(path)
        return load_file(path, device=str(device))
    # Number formats that safetensors knows and this torch does not are errors of any kind.
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise TinlabError(f"{path} cannot be read ({error}); remove {path.parent} and resume") from error
