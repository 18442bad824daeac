"""Penalties on weights and activations, as additions to the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models.layers import named_layers


def penalty(values: Tensor, l1: float, l2: float) -> Tensor:
    """l1 * sum |v| + l2 * sum v^2 over all of `values`, a scalar."""
    total = values.new_zeros(())
    if l1:
        total = total + l1 * values.abs().sum()
    if l2:
        total = total + l2 * values.square().sum()
    return total


class Penalties:
    """The penalties in `knobs` on layers of `model`, to be called once after each forward pass in training.

    Weights: the parameter `weight` of a matched layer, where it has two dimensions or more; biases and the
    scales of norms are left out, as by Keras' W_regularizer. A weight that two matched layers share counts
    once. Activations: the outputs of a matched layer in its training mode, as the layer gave them, whatever
    overwrites them later; summed over everything but the batch, over which they are averaged, and over the
    uses of a layer that is used more than once, as Keras 1.0's ActivityRegularizer does. All sums are in
    float32, or in the values' type where that is wider, under autocast too.

    Raises TinlabError where a pattern matches no layer, or for weights none that has some.
    """

    def __init__(self, knobs: Iterable[recipe.Penalty], model: nn.Module) -> None:
        self._model = model
        self._on_weights: list[tuple[recipe.Penalty, list[nn.Module]]] = []
        self._of_outputs: list[Tensor] = []
        for place, knob in enumerate(knobs):
            field = f"loss.penalties.{place}.layers"
            layers = named_layers(model, knob.layers, field=field)
            if knob.on == "weights":
                weighted = _distinct_weights(layers.values())
                if not weighted:
                    raise TinlabError(
                        f"{field}: no layer called '{knob.layers}' has weights of two dimensions or more; "
                        f"name convolutions or fully connected layers"
                    )
                self._on_weights.append((knob, weighted))
            else:
                for name, layer in layers.items():
                    layer.register_forward_hook(self._watch(knob, f"{field}: '{name}'"))

    @property
    def weighted(self) -> list[nn.Module]:
        """The layers whose weights have a penalty."""
        return [layer for _, layers in self._on_weights for layer in layers]

    def _watch(
        self, knob: recipe.Penalty, called: str
    ) -> Callable[[nn.Module, tuple[Any, ...], object], None]:
        def catch(layer: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            if not layer.training or not torch.is_grad_enabled():
                return
            if not isinstance(output, Tensor):
                raise TinlabError(
                    f"{called} gives a {type(output).__name__}, not a tensor; name another layer"
                )
            # A copy: an in-place activation may be next, and the gradient needs the values.
            values = output.to(_summed_in(output.dtype), copy=True)
            self._of_outputs.append(penalty(values, knob.l1, knob.l2) / output.shape[0])

        return catch

    def __call__(self) -> Tensor | None:
        """The sum of all penalties, a scalar with gradient, or None where there are none.

        Forgets the outputs, so that the next call counts those since this one. None in evaluation mode.
        """
        terms = self._of_outputs.copy()
        self._of_outputs.clear()
        if not self._model.training:
            return None
        for knob, layers in self._on_weights:
            for layer in layers:
                weight = layer.get_parameter("weight")
                terms.append(penalty(weight.to(_summed_in(weight.dtype)), knob.l1, knob.l2))
        return torch.stack(terms).sum() if terms else None


def _distinct_weights(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """The layers that have a weight of two dimensions or more, the first of those that share one."""
    found: dict[nn.Parameter, nn.Module] = {}
    for layer in layers:
        weight = getattr(layer, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() >= 2:
            found.setdefault(weight, layer)
    return list(found.values())


def _summed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
