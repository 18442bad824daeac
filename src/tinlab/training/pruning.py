"""Pruning: weak weights set to zero, or weak channels taken out.

`Masks` prunes by magnitude: Han, Pool, Tran and Dally, "Learning both Weights and Connections for Efficient
Neural Networks", NIPS 2015: train, take away the weights below a threshold, train what is left, perhaps
several times. Stated there: a threshold for each layer, a chosen factor times the standard deviation of its
weights. Changed: one threshold for the whole network, global magnitude pruning, which leaves one share to
choose and no factors. Left out: they multiply the rates of dropout by the square root of the share of weights
that are left. The network keeps its shape: it compresses better, and is not faster.

`prune_channels` takes out whole channels: Fang, Ma, Song, Mi and Wang, "DepGraph: Towards Any Structural
Pruning", CVPR 2023, by their library torch-pruning. A channel goes with all that depends on it: the filter
that makes it, its batch norm, the weights that read it, and where a shortcut adds it to others, all of
theirs. The network is smaller and faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tinlab.errors import TinlabError
from tinlab.models.fits import reason
from tinlab.models.layers import named_layers
from tinlab.models.structure import Structure, sizes_of, smaller, structure_of
from tinlab.models.summary import summarise_network

KEPT = 0.1
"""`prune_channels` leaves of the channels of each layer at least this share, and one: a network is as wide as
its narrowest place."""

AGREEMENT = 1e-6
"""How far, relative to the largest, the scores of a network without its channels may be from those of one
where they are silent, in float64."""


class Masks:
    """Which weights of `model` are pruned: none at first.

    Pruned are weights of convolutions and fully connected layers, not biases nor norms. After `prune`, and
    then after each step of the optimizer, call `apply`. `apply_to_gradients`, after each backward pass,
    leaves pruned weights out of the gradient's length and of what sharpness-aware minimisation climbs by, and
    keeps the optimizer from gathering momentum for them.

    Make it where `model` has its final device and memory order, and after channels were taken out: it holds
    on to its parameters.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        """`weights`: name of parameter -> parameter, all of one device. `Masks.of` finds them."""
        self._weights = dict(weights)
        # In the weights' own memory order, so that masking walks both alike.
        self._pruned = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in weights.items()}

    @classmethod
    def of(cls, model: nn.Module, leave: Sequence[str] = (), *, field: str = "leave") -> Masks:
        """Of all convolutions and fully connected layers of `model` but those whose names match a pattern in
        `leave`, or lie within what matches. A weight that layers share counts once.

        Raises TinlabError, which begins with `field`, where a pattern matches nothing, or none is left.
        """
        left = {
            layer
            for place, pattern in enumerate(leave)
            for matched in named_layers(model, pattern, field=f"{field}.{place}").values()
            for layer in matched.modules()
        }
        found = {
            layer.weight
            for layer in model.modules()
            if isinstance(layer, _ConvNd | nn.Linear) and layer not in left
        }
        weights = {name: p for name, p in model.named_parameters() if p in found}
        if not weights:
            raise TinlabError(
                f"{field}: no convolution or fully connected layer is left to prune; leave out fewer layers"
            )
        return cls(weights)

    @torch.no_grad()
    def prune(self, share: float) -> None:
        """Set the smallest weights by magnitude to zero until `share` of all of them, from 0 to 1, is pruned.

        One threshold holds for all layers. What was pruned stays so and counts. There are exactly
        round(share * weights), except that each layer keeps its largest; among equals those go first that are
        first in the network.

        Raises TinlabError where `share` is out of range, or below what is pruned already.
        """
        if not 0 <= share <= 1:
            raise TinlabError(f"the share of weights to prune is from 0 to 1, not {share:g}")
        total = sum(w.numel() for w in self._weights.values())
        wanted = min(round(share * total), total - len(self._weights))
        pruned = sum(int(mask.sum()) for mask in self._pruned.values())
        if wanted < pruned:
            raise TinlabError(
                f"{pruned / total:.4g} of the weights are pruned already, and {share:g} is less; give a "
                "share at least as large"
            )
        # On the host: the choice must not depend on the device, and few devices select without sorting.
        sizes = torch.cat([_sizes(w, self._pruned[name]) for name, w in self._weights.items()])
        chosen = _smallest(sizes, wanted)
        for mask, part in zip(self._pruned.values(), chosen.split(self._numbers()), strict=True):
            mask.copy_(part.view(mask.shape))
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Set the model's pruned weights to zero, in place."""
        for name, mask in self._pruned.items():
            self._weights[name].masked_fill_(mask, 0)

    @torch.no_grad()
    def apply_to_gradients(self) -> None:
        """Set the gradients of pruned weights to zero, in place, where there are any."""
        for name, mask in self._pruned.items():
            gradient = self._weights[name].grad
            if gradient is not None:
                gradient.masked_fill_(mask, 0)

    def tensors(self) -> Mapping[str, Tensor]:
        """Name of parameter -> bool, True where pruned; to be saved, or overwritten in place."""
        return self._pruned

    def sparsity(self) -> float:
        """Share of the weights that are pruned, 0 to 1."""
        return sum(int(mask.sum()) for mask in self._pruned.values()) / sum(self._numbers())

    def _numbers(self) -> list[int]:
        return [mask.numel() for mask in self._pruned.values()]


def _sizes(weight: Tensor, pruned: Tensor) -> Tensor:
    """Magnitudes on the host, (numel,), in float32 or wider: -1 where pruned, infinite for the largest."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    sizes = weight.detach().to(wide).abs().masked_fill(pruned, -1).flatten().cpu()
    sizes[sizes.argmax()] = math.inf
    return sizes


def _smallest(values: Tensor, count: int) -> Tensor:
    """Marks the `count` smallest of `values` (n,): bool (n,). Among equals the first go first."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = values.kthvalue(count).values
    chosen = values < threshold
    equal = (values == threshold).nonzero().flatten()
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen


@dataclass(frozen=True)
class Cut:
    """What `prune_channels` did. `structure` is JSON; `tinlab.models.structure.smaller` takes it.

    `channels` counts those that can be taken out, before and after. `multiply_adds` are those of one image's
    forward pass, as tinlab.models.summary counts them.
    """

    structure: Structure
    channels_before: int
    channels: int
    parameters_before: int
    parameters: int
    multiply_adds_before: int
    multiply_adds: int


def prune_channels(
    model: nn.Module,
    share: float,
    *,
    classifier: str,
    scope: Literal["layer", "network"] = "layer",
    leave: Sequence[str] = (),
    image_size: int = 64,
    multiple: int = 1,
    field: str = "leave",
) -> Cut:
    """Take the weakest `share` of its channels out of `model`, in place: (B, 3, image_size, image_size) ->
    (B, classes).

    A channel's importance is the sum of the squares of all weights that go with it, in convolutions, fully
    connected layers and the scales of batch norms (Fang et al. 2023, their norm of a group; torch-pruning's
    GroupMagnitudeImportance, summed and not normalised). round(share * channels) go: with scope `layer` the
    least important of each layer, of all layers the same share; with `network` the least important of all.
    Channels that can only go together, as those that a shortcut adds, or those at one place of each group of
    a grouped convolution, count once. Parameters and multiply-adds fall by other shares, which the result
    tells. Each layer keeps at least KEPT of its channels; what is missing from `share` then goes elsewhere.

    `classifier` is the name of the last layer, whose outputs stay, as do those of layers that match a pattern
    in `leave`. With `multiple` the channels that are left in a layer are a multiple of it (8 suits a GPU in
    16 bits), at the price of taking out fewer than asked.

    Everything that holds parameters of `model` is to be made afterwards: optimizer, averages, masks,
    penalties. What is cut is in plain memory order, so choose channels last afterwards too. Needs the extra
    `prune`.

    Raises TinlabError, and leaves `model` as it is, where `share` is not between 0 and 1 - KEPT, where a
    pattern matches nothing, and where the network cannot be cut: it has parameters outside of convolutions,
    fully connected layers and batch norms, or the cut network would not be the same as the whole one with
    those channels silent.
    """
    tp = import_torch_pruning()
    if not 0 <= share <= 1 - KEPT:
        raise TinlabError(f"the share of channels to prune is from 0 to {1 - KEPT:g}, not {share:g}")
    if multiple < 1:
        raise TinlabError(f"the multiple that channels are left in is 1 or more, not {multiple}")
    if scope not in ("layer", "network"):
        raise TinlabError(f"the scope in which channels are compared is layer or network, not '{scope}'")
    kept_whole = [classifier] + [
        name
        for place, pattern in enumerate(leave)
        for name in named_layers(model, pattern, field=f"{field}.{place}")
    ]
    check_layers(model)
    before = summarise_network(model, image_size, type(model).__name__)
    # In float64, so that it can be told whether what is cut is what was meant.
    cut = deepcopy(model).cpu().double().train(False).requires_grad_(True)
    silent = deepcopy(cut)
    drawn = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, image_size, image_size, dtype=torch.float64, generator=drawn)
    ignored = [layer for name in kept_whole for layer in cut.get_submodule(name).modules()]
    try:
        with torch.enable_grad():  # which the library follows channels by
            by_layer = scope == "layer"
            channels, removed = _cut(tp, cut, silent, images, ignored, share, multiple, by_layer=by_layer)
        agrees = _agree(cut, silent, images)
    # Tracing somebody's network can fail in any way that its own code can.
    except Exception as error:
        raise _uncuttable(f"torch-pruning cannot follow its channels ({reason(error)})") from error
    if not agrees:
        raise _uncuttable("torch-pruning does not follow its channels to where they are used")
    smaller(model, structure_of(cut), image_size=image_size)
    model.load_state_dict(cut.state_dict())
    after = summarise_network(model, image_size, type(model).__name__)
    return Cut(
        structure=structure_of(model),
        channels_before=channels,
        channels=channels - removed,
        parameters_before=before.parameters,
        parameters=after.parameters,
        multiply_adds_before=before.multiply_adds,
        multiply_adds=after.multiply_adds,
    )


def import_torch_pruning() -> ModuleType:
    """The library. Raises TinlabError that says how to install it where it is missing."""
    try:
        import torch_pruning
    except ImportError as error:
        raise TinlabError(
            "pruning channels needs torch-pruning, which is not installed: pip install 'tinlab[prune]'"
        ) from error
    return torch_pruning


def _uncuttable(why: str) -> TinlabError:
    return TinlabError(
        f"model.name: this network's channels cannot be pruned: {why}; prune its weights, or take another "
        "network"
    )


def check_layers(model: nn.Module) -> None:
    """Raise TinlabError where `model` has parameters that no channels can be cut from."""
    for name, _ in model.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        if not sizes_of(layer):
            raise _uncuttable(
                f"its parameter '{name}' belongs to a {type(layer).__name__}, and not to a convolution, a "
                "fully connected layer or a batch norm"
            )


def _cut(
    tp: ModuleType,
    model: nn.Module,
    silent: nn.Module,
    images: Tensor,
    ignored: list[nn.Module],
    share: float,
    multiple: int,
    *,
    by_layer: bool,
) -> tuple[int, int]:
    """Take channels out of `model`, and silence the same ones in its copy `silent`: (channels, taken out)."""
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=images)
    importance = tp.importance.GroupMagnitudeImportance(p=2, group_reduction="sum", normalizer=None)
    found = []
    for group in graph.get_all_groups(ignored_layers=ignored, root_module_types=[nn.Conv2d, nn.Linear]):
        groups = max(_groups(dependency.target.module) for dependency, _ in group)
        values = importance(group).view(groups, -1).mean(0)  # (channels of one group,)
        found.append((group[0].dep, groups, _ranks(values) if by_layer else values))
    taken = _weakest([values for _, _, values in found], share, multiple)
    chosen = [
        (root, [place + part * len(values) for part in range(groups) for place in places.tolist()])
        for (root, groups, values), places in zip(found, taken, strict=True)
        if len(places)
    ]
    names = {layer: name for name, layer in model.named_modules()}
    # All are silenced before the first is cut: then places are those of the whole network.
    for root, places in chosen:
        for dependency, lost in graph.get_pruning_group(root.target.module, root.handler, places):
            layer = dependency.target.module
            if layer in names and graph.is_out_channel_pruning_fn(dependency.handler):
                _silence(silent.get_submodule(names[layer]), lost)
    for root, places in chosen:
        graph.get_pruning_group(root.target.module, root.handler, places).prune()
    return sum(len(values) for _, _, values in found), sum(map(len, taken))


def _groups(layer: Any) -> int:
    """How many groups of channels `layer` keeps alike; a depthwise convolution loses groups instead."""
    if not isinstance(layer, nn.Conv2d) or layer.groups == layer.out_channels:
        return 1
    return layer.groups


def _ranks(values: Tensor) -> Tensor:
    """(n,): 1 / n for the smallest, 1 for the largest; equal ones in order."""
    ranks = torch.empty_like(values)
    ranks[values.argsort(stable=True)] = torch.arange(1, len(values) + 1, dtype=values.dtype) / len(values)
    return ranks


def _weakest(importances: Sequence[Tensor], share: float, multiple: int) -> list[Tensor]:
    """For each of `importances`, (n,), the places of those that go: the smallest of all together."""
    if not importances:
        raise ValueError("there are no channels to take out")
    held = []
    for values in importances:
        kept = values.clone()
        least = max(1, math.ceil(KEPT * len(values)))
        kept[values.topk(least).indices] = math.inf
        held.append(kept)
    together = torch.cat(held)
    count = min(round(share * len(together)), int(together.isfinite().sum()))
    places = []
    for values, chosen in zip(held, _smallest(together, count).split([len(v) for v in held]), strict=True):
        left = len(values) - int(chosen.sum())
        left = min(len(values), -(-left // multiple) * multiple)
        places.append(values.argsort(stable=True)[: len(values) - left].sort().values)
    return places


@torch.no_grad()
def _silence(layer: nn.Module, places: Iterable[int]) -> None:
    """Let `layer` give 0 for the channels at `places`."""
    for name in ("weight", "bias", "running_mean"):
        values = getattr(layer, name, None)
        if values is not None:
            values[list(places)] = 0


@torch.no_grad()
def _agree(cut: nn.Module, silent: nn.Module, images: Tensor) -> bool:
    """Whether both give the same scores; where activations turn 0 into 0, they do if what was cut is what
    depends on the silent channels."""
    found, wanted = cut(images), silent(images)
    return found.shape == wanted.shape and bool(
        (found - wanted).abs().max() <= AGREEMENT * wanted.abs().max()
    )
