"""A recipe's optimizer: torch's, or timm's."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models.layers import named_layers
from tinlab.models.zoo import import_timm
from tinlab.recipe import Recipe

Groups = list[dict[str, Any]]


def build(knobs: recipe.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over `model`'s parameters.

    SGD and AdamW take one fused kernel a group. A parameter whose layer has a rate of 0 is left out; the
    groups of other rates carry their `rate_factor`, which `schedule.set_rates` multiplies by. Raises
    TinlabError where timm has no such optimizer, where it cannot be used here, for Muon where the network has
    no weight for it, and where every layer has a rate of 0.
    """
    factors = rate_factors(knobs, model)
    trained = [p for p in model.parameters() if factors[p] > 0]
    if not trained:
        raise TinlabError("optimizer.layer_rates: every layer has a factor of 0, so nothing would be trained")
    groups = _groups(knobs, trained, factors)
    match knobs.name:
        case "sgd":
            return torch.optim.SGD(
                groups,
                lr=knobs.peak_lr,
                momentum=knobs.momentum,
                nesterov=knobs.nesterov,
                fused=True,
            )
        case "adamw":
            return torch.optim.AdamW(groups, lr=knobs.peak_lr, betas=_betas(knobs, 0.999), fused=True)
        case "lion":
            import_timm()
            from timm.optim import Lion

            found: torch.optim.Optimizer = Lion(groups, lr=knobs.peak_lr, betas=_betas(knobs, 0.99))
            return found
        case "muon":
            return _muon(knobs, model, trained, factors)
        case _:
            return _of_timm(knobs, groups)


def rate_factors(knobs: recipe.Optimizer, model: nn.Module) -> dict[nn.Parameter, float]:
    """What the learning rate of each parameter of `model` is multiplied by.

    Raises TinlabError where a pattern of `knobs.layer_rates` matches no layer.
    """
    factors = dict.fromkeys(model.parameters(), 1.0)
    for rate in reversed(knobs.layer_rates):  # so that the first pattern has the last word
        for layer in named_layers(model, rate.layers, field="optimizer.layer_rates").values():
            factors.update(dict.fromkeys(layer.parameters(), rate.factor))
        # Some networks have parameters that belong to no layer, such as a transformer's positions.
        own = (p for name, p in model.named_parameters() if fnmatchcase(name, rate.layers))
        factors.update(dict.fromkeys(own, rate.factor))
    return factors


class Frozen:
    """Takes the gradient from the layers of `model` whose rate is 0, and gives it to all others."""

    def __init__(self, knobs: recipe.Optimizer, model: nn.Module) -> None:
        self._model = model
        factors = rate_factors(knobs, model)
        for parameter, factor in factors.items():
            parameter.requires_grad_(factor > 0)
        own = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        self._norms = [
            norm
            for norm in own
            if knobs.frozen_statistics and any(factors[p] == 0 for p in norm.parameters())
        ]

    def train(self) -> None:
        """Put the model into training mode, but for batch norms that keep their statistics."""
        self._model.train()
        for norm in self._norms:
            norm.train(False)


def check(knobs: recipe.Optimizer, model: nn.Module) -> None:
    """Raise TinlabError where `knobs` cannot train a network like `model`, whose values are not needed.

    One of timm's takes a step on a small weight, to see that a checkpoint can hold what it keeps.
    """
    if knobs.name == "muon" or knobs.layer_rates:
        build(knobs, model)
    if not knobs.name.startswith("timm:"):
        return
    probe = nn.Linear(2, 2)
    updater = build(knobs.model_copy(update={"layer_rates": ()}), probe)
    for parameter in probe.parameters():
        parameter.grad = torch.ones_like(parameter)
    with torch.compiler.set_stance("force_eager"):  # some of timm's would be compiled for it
        updater.step()
    for state in updater.state.values():
        for kind, value in state.items():
            if not isinstance(value, Tensor | float | int | None):
                raise TinlabError(
                    f"optimizer.name: {knobs.name} keeps a {type(value).__name__} called '{kind}', which a "
                    "checkpoint does not hold; take another"
                )


def check_momentum(knobs: recipe.Optimizer, model: nn.Module) -> None:
    """Raise TinlabError where what `knobs` builds has no momentum or beta 1 that a schedule could cycle."""
    groups = build(knobs, model).param_groups
    if not all("momentum" in group or "betas" in group for group in groups):
        raise TinlabError(
            f"schedule.low_momentum: {knobs.name} has neither a momentum nor a beta 1 to cycle; take another "
            "optimizer, or leave it out"
        )


def hidden_weights(model: nn.Module) -> list[nn.Parameter]:
    """What Muon trains: the weights of convolutions and fully connected layers, but for the first of these
    layers, which reads the image, and the last, which names the classes.

    A depthwise convolution, whose filters have nothing to do with one another, is left out too.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = [m.get_parameter("weight") for m in layers[1:-1]]
    return list(dict.fromkeys(w for w in weights if w.shape[1] > 1))


def clip(model: nn.Module, length: float) -> None:
    """Scale the gradient of all parameters down to `length`, where it is longer."""
    nn.utils.clip_grad_norm_(model.parameters(), length)


def fill_missing_gradients(model: nn.Module) -> None:
    """Give each trained parameter that no gradient reached in this step a gradient of zero.

    Stochastic depth leaves out whole blocks. Their gradient is zero and not absent, so that momentum and
    weight decay go on for them, as they did for Huang et al. 2016.
    """
    for parameter in model.parameters():
        if parameter.grad is None and parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def _groups(
    knobs: recipe.Optimizer, parameters: list[nn.Parameter], factors: dict[nn.Parameter, float]
) -> Groups:
    """A group for every rate factor and weight decay that there is."""
    decay = knobs.weight_decay
    groups: Groups = []
    for factor in dict.fromkeys(factors[p] for p in parameters):
        own = [p for p in parameters if factors[p] == factor]
        rate = {} if factor == 1 else {"rate_factor": factor}
        groups.append({"params": [p for p in own if p.ndim > 1], "weight_decay": decay, **rate})
        others = [p for p in own if p.ndim <= 1]
        groups.append({"params": others, "weight_decay": 0.0 if knobs.decay_weights_only else decay, **rate})
    return [group for group in groups if group["params"]]


def _betas(knobs: recipe.Optimizer, beta2: float) -> tuple[float, float]:
    return knobs.momentum, beta2 if knobs.beta2 is None else knobs.beta2


def _muon(
    knobs: recipe.Optimizer,
    model: nn.Module,
    trained: list[nn.Parameter],
    factors: dict[nn.Parameter, float],
) -> torch.optim.Optimizer:
    """timm's Muon, which unlike torch's takes the weights of convolutions, as (out, in * height * width)."""
    import_timm()
    from timm.optim import Muon

    apart = set(hidden_weights(model))
    if not apart:
        raise TinlabError(
            "optimizer.name: muon trains the layers between the first and the last, and this network has "
            "none; take adamw"
        )
    rest = {"use_fallback": True, "nesterov": False}
    hidden = [p for p in trained if p in apart]  # none where the classifier learns alone
    others = [p for p in trained if p not in apart]
    groups = [{**group, "use_fallback": False} for group in _groups(knobs, hidden, factors)]
    groups += [{**group, **rest} for group in _groups(knobs, others, factors)]
    updater: torch.optim.Optimizer = Muon(
        groups,
        lr=knobs.peak_lr,
        momentum=knobs.momentum,
        nesterov=knobs.nesterov,
        ns_coefficients="original",
        ns_steps=knobs.newton_schulz_steps,
        adjust_lr_fn="match_rms_adamw",
        betas=(0.9, 0.95 if knobs.beta2 is None else knobs.beta2),
        fallback_lr_scale=1.0 if knobs.rest_lr is None else knobs.rest_lr / knobs.peak_lr,
    )
    return updater


def _of_timm(knobs: recipe.Optimizer, groups: Groups) -> torch.optim.Optimizer:
    import_timm()
    from timm import optim

    name = knobs.name.removeprefix("timm:")
    known = optim.list_optimizers()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"try {', '.join(f'timm:{other}' for other in near)}" if near else "try timm:lamb"
        raise TinlabError(f"optimizer.name: timm has no optimizer '{name}'; {hint}")
    info = optim.get_optimizer_info(name)
    if info.second_order:
        raise TinlabError(f"optimizer.name: {knobs.name} needs second derivatives; take another")
    arguments = {"lr": knobs.peak_lr, "weight_decay": knobs.weight_decay}
    if info.has_momentum:
        arguments["momentum"] = knobs.momentum
    try:
        make: Callable[..., torch.optim.Optimizer] = optim.get_optimizer_class(name)
        made = make(groups, **arguments)
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TinlabError(f"optimizer.name: {knobs.name} cannot be used here ({reason})") from error
    betas = made.defaults.get("betas", ())
    if len(betas) == 2 and not info.has_momentum:
        for group in made.param_groups:
            group["betas"] = _betas(knobs, betas[1])
    elif knobs.beta2 is not None:
        raise TinlabError(f"optimizer.beta2: {knobs.name} has none that can be set; set it to null")
    elif not info.has_momentum and knobs.momentum != type(knobs).model_fields["momentum"].default:
        raise TinlabError(f"optimizer.momentum: {knobs.name} has its own values; leave it at its default")
    return made


def scaled_rates(recipe: Recipe, batch_size: int) -> dict[str, float]:
    """The optimizer's rates for another batch size: SGD's in proportion to it (Goyal et al. 2017), those of
    the others, which divide by the gradient's size, to its square root (Malladi et al. 2022)."""
    ratio = batch_size / recipe.schedule.batch_size
    return recipe.optimizer.rates_times(ratio if recipe.optimizer.name == "sgd" else math.sqrt(ratio))
