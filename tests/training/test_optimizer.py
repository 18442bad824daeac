import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from tinlab import recipe
from tinlab.training.optimizer import build, learning_rate


def rates(steps=100, **knobs):
    schedule = recipe.Schedule(steps=steps, **knobs)
    return [learning_rate(schedule, 0.4, step, steps) for step in range(steps)]


def test_constant():
    assert rates(shape="constant") == [0.4] * 100


def test_warm_up_climbs_to_the_peak():
    found = rates(shape="constant", warmup_fraction=0.2)
    assert found[:20] == pytest.approx([0.4 * (n + 1) / 20 for n in range(20)])
    assert found[20:] == [0.4] * 80


def test_linear_and_cosine_fall_from_the_peak_towards_zero():
    line, cosine = rates(shape="linear", warmup_fraction=0.1), rates(shape="cosine", warmup_fraction=0.1)
    for found in (line, cosine):
        assert found[10] == 0.4
        assert all(a > b for a, b in pairwise(found[10:]))
        assert 0 < found[-1] < 0.02
    assert line[55] == pytest.approx(0.2)
    assert cosine[55] == pytest.approx(0.2)
    assert cosine[25] == pytest.approx(0.2 * (1 + math.cos(math.pi * 15 / 90)))


def test_steps_multiply_at_milestones():
    found = rates(shape="step", milestone_steps=(30, 60), factor=0.1)
    assert found[29] == 0.4
    assert found[30] == pytest.approx(0.04)
    assert found[60] == pytest.approx(0.004)


@pytest.mark.parametrize("weights_only", [True, False])
def test_decay_can_leave_out_biases_and_norms(weights_only):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    knobs = recipe.Optimizer(weight_decay=0.3, decay_weights_only=weights_only)
    decays = {
        id(p): group["weight_decay"] for group in build(knobs, model).param_groups for p in group["params"]
    }
    assert len(decays) == 4
    assert decays[id(model[0].weight)] == 0.3
    for parameter in (model[0].bias, model[1].weight, model[1].bias):
        assert decays[id(parameter)] == (0.0 if weights_only else 0.3)


@pytest.mark.parametrize("nesterov", [True, False])
def test_an_update_is_what_the_formula_says(nesterov):
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    model = nn.Module()
    model.weight = weight
    knobs = recipe.Optimizer(peak_lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01)
    updater = build(knobs, model)
    expected, velocity = weight.detach().clone(), torch.zeros(1, 2)
    for gradient in (torch.tensor([[0.5, 1.0]]), torch.tensor([[-1.0, 0.25]])):
        weight.grad = gradient.clone()
        updater.step()
        gradient = gradient + 0.01 * expected
        velocity = 0.9 * velocity + gradient
        expected = expected - 0.1 * (gradient + 0.9 * velocity if nesterov else velocity)
    assert torch.allclose(weight, expected)


def test_adamw_is_torchs():
    model = nn.Linear(3, 2)
    updater = build(recipe.Optimizer(name="adamw", momentum=0.8, weight_decay=0.1), model)
    assert isinstance(updater, torch.optim.AdamW)
    assert updater.param_groups[0]["betas"] == (0.8, 0.999)
