"""A recipe's optimizer, and its learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from tinlab import recipe


def build(knobs: recipe.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over `model`'s parameters, in one fused kernel a group."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    decay = knobs.weight_decay
    groups = [
        {"params": weights, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0 if knobs.decay_weights_only else decay},
    ]
    groups = [group for group in groups if group["params"]]
    if knobs.name == "adamw":
        return torch.optim.AdamW(groups, lr=knobs.peak_lr, betas=(knobs.momentum, 0.999), fused=True)
    return torch.optim.SGD(
        groups, lr=knobs.peak_lr, momentum=knobs.momentum, nesterov=knobs.nesterov, fused=True
    )


def fill_missing_gradients(model: nn.Module) -> None:
    """Give each trained parameter that no gradient reached in this step a gradient of zero.

    Stochastic depth leaves out whole blocks. Their gradient is zero and not absent, so that momentum and
    weight decay go on for them, as they did for Huang et al. 2016.
    """
    for parameter in model.parameters():
        if parameter.grad is None and parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def learning_rate(knobs: recipe.Schedule, peak: float, step: int, total_steps: int) -> float:
    """The learning rate of step `step`, counted from 0, of `total_steps`."""
    warmup_steps = round(knobs.warmup_fraction * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    match knobs.shape:
        case "constant":
            return peak
        case "step":
            passed = sum(step >= milestone for milestone in knobs.milestone_steps)
            return peak * knobs.factor**passed
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return peak * (1 - done)
