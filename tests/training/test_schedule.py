"""Learning rates against closed forms, and against torch's own schedulers."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tinlab import recipe
from tinlab.training.schedule import Plateau, learning_rate, momentum, set_rates

PEAK = 0.4
SHAPES = {
    "constant": {},
    "step": {"milestone_steps": (30, 60)},
    "cosine": {},
    "linear": {},
    "inverse_time": {"decay": 0.01},
    "plateau": {},
}
"""Those that take a warm-up."""


def rates(steps=100, **knobs):
    schedule = recipe.Schedule(steps=steps, **knobs)
    return [learning_rate(schedule, PEAK, step, steps) for step in range(steps)]


def of_torch(make, steps=100, lr=PEAK):
    """The rates and momenta that torch's scheduler gives SGD."""
    updater = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.95)
    scheduler = make(updater)
    found = []
    for _ in range(steps):
        found.append((updater.param_groups[0]["lr"], updater.param_groups[0]["momentum"]))
        updater.step()
        scheduler.step()
    return [list(values) for values in zip(*found, strict=True)]


def test_constant():
    assert rates(shape="constant") == [PEAK] * 100


@pytest.mark.parametrize("shape", SHAPES)
def test_warm_up_climbs_to_the_peak_before_every_shape(shape):
    found = rates(shape=shape, warmup_fraction=0.2, **SHAPES[shape])
    assert found[:20] == pytest.approx([PEAK * (n + 1) / 20 for n in range(20)])
    assert found[20] == PEAK
    assert all(a >= b for a, b in pairwise(found[20:]))


def test_linear_and_cosine_fall_from_the_peak_towards_zero():
    line, cosine = rates(shape="linear", warmup_fraction=0.1), rates(shape="cosine", warmup_fraction=0.1)
    for found in (line, cosine):
        assert found[10] == PEAK
        assert all(a > b for a, b in pairwise(found[10:]))
        assert 0 < found[-1] < 0.02
    assert line[55] == pytest.approx(0.2)
    assert cosine[55] == pytest.approx(0.2)
    assert cosine[25] == pytest.approx(0.2 * (1 + math.cos(math.pi * 15 / 90)))


@pytest.mark.parametrize("final", [0.0, 0.05])
def test_cosine_and_linear_are_torchs(final):
    cosine, _ = of_torch(lambda u: lr_scheduler.CosineAnnealingLR(u, 100, eta_min=final * PEAK))
    assert rates(shape="cosine", final_fraction=final) == pytest.approx(cosine, rel=1e-9)
    line, _ = of_torch(lambda u: lr_scheduler.LinearLR(u, 1.0, final, total_iters=100))
    assert rates(shape="linear", final_fraction=final) == pytest.approx(line, rel=1e-9)


def test_steps_multiply_at_milestones():
    found = rates(shape="step", milestone_steps=(30, 60), factor=0.2)
    expected, _ = of_torch(lambda u: lr_scheduler.MultiStepLR(u, [30, 60], gamma=0.2))
    assert found == pytest.approx(expected, rel=1e-12)
    assert (found[29], found[30]) == (PEAK, pytest.approx(0.08))


def test_inverse_time_is_keras_decay():
    # Keras' SGD: lr * (1 / (1 + decay * iterations)).
    found = rates(shape="inverse_time", decay=0.05)
    assert found == pytest.approx([PEAK * (1.0 / (1.0 + 0.05 * t)) for t in range(100)], rel=1e-12)
    assert found[20] == pytest.approx(PEAK / 2)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 97])
@pytest.mark.parametrize("curve", ["cosine", "linear"])
def test_one_cycle_is_torchs(curve, steps):
    knobs = recipe.Schedule(
        steps=steps, shape="one_cycle", rise_fraction=0.4, start_divisor=10, end_divisor=100,
        cycle_curve=curve, low_momentum=0.8,
    )  # fmt: skip
    found = [learning_rate(knobs, PEAK, step, steps) for step in range(steps)]
    moved = [momentum(knobs, 0.95, step, steps) for step in range(steps)]
    if steps <= 2:  # torch's rise would last for less than no step: here it is left out
        assert (found[0], moved[0]) == (PEAK, 0.8)
        assert found[1:] == pytest.approx([PEAK / 1000] * (steps - 1))
        return
    anneal = {"cosine": "cos", "linear": "linear"}[curve]
    expected = of_torch(
        lambda u: lr_scheduler.OneCycleLR(
            u, PEAK, total_steps=steps, pct_start=0.4, anneal_strategy=anneal, base_momentum=0.8,
            max_momentum=0.95, div_factor=10, final_div_factor=100,
        ),
        steps=steps - 1,
    )  # fmt: skip
    assert found[:-1] == pytest.approx(expected[0], rel=1e-9)
    assert moved[:-1] == pytest.approx(expected[1], rel=1e-9)
    assert found[-1] == pytest.approx(PEAK / 1000)
    assert moved[-1] == pytest.approx(0.95)


@pytest.mark.parametrize("steps", [2, 5, 100])
def test_exponential_climbs_as_numpys_geometric_series(steps):
    found = rates(steps, shape="exponential", start_divisor=1e7)
    assert found == pytest.approx(np.geomspace(PEAK / 1e7, PEAK, steps), rel=1e-9)
    climb, _ = of_torch(
        lambda u: lr_scheduler.ExponentialLR(u, 1e7 ** (1 / (steps - 1))), steps, lr=PEAK / 1e7
    )
    assert found == pytest.approx(climb, rel=1e-9)


def test_exponential_of_one_step_is_at_its_start_and_takes_no_warm_up():
    assert rates(1, shape="exponential", start_divisor=10) == pytest.approx([PEAK / 10])
    with pytest.raises(ValueError, match="start_divisor instead"):
        recipe.Schedule(steps=9, shape="exponential", warmup_fraction=0.1)
    with pytest.raises(ValueError, match="start_divisor goes with shape one_cycle or exponential"):
        recipe.Schedule(steps=9, shape="linear", start_divisor=10)


def test_momentum_stays_unless_it_is_cycled():
    assert momentum(recipe.Schedule(steps=9, shape="one_cycle"), 0.9, 3, 9) is None
    assert momentum(recipe.Schedule(steps=9), 0.9, 3, 9) is None


def test_rates_reach_momentum_or_beta_1():
    parameter = nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=1, momentum=0.9)
    adamw = torch.optim.AdamW([parameter], lr=1, betas=(0.9, 0.98))
    for updater in (sgd, adamw):
        set_rates(updater, 0.25, None)
        assert updater.param_groups[0]["lr"] == 0.25
    assert (sgd.param_groups[0]["momentum"], adamw.param_groups[0]["betas"]) == (0.9, (0.9, 0.98))
    for updater in (sgd, adamw):
        set_rates(updater, 0.5, 0.7)
    assert (sgd.param_groups[0]["momentum"], adamw.param_groups[0]["betas"]) == (0.7, (0.7, 0.98))
    assert sgd.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_is_torchs(patience):
    knobs = recipe.Schedule(
        steps=1000,
        shape="plateau",
        factor=0.5,
        patience=patience,
        least_improvement=0.01,
        final_fraction=0.02,
    )
    updater = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = lr_scheduler.ReduceLROnPlateau(
        updater, factor=0.5, patience=patience, threshold=0.01, min_lr=0.02 * PEAK, eps=0
    )
    dice, plateau, seen = random.Random(patience), Plateau(), set()
    for place in range(1, 60):
        loss = 3 / place + dice.uniform(0, 0.2)
        plateau.observe(knobs, 10 * place, loss)
        scheduler.step(loss)
        rate = learning_rate(knobs, PEAK, 10 * place, 1000, plateau.cuts)
        assert rate == pytest.approx(updater.param_groups[0]["lr"], rel=1e-9)
        seen.add(rate)
    assert len(seen) > 2


def test_plateau_counts_an_evaluation_once():
    knobs = recipe.Schedule(steps=9, shape="plateau", patience=1)
    plateau = Plateau()
    for step, loss in ((1, 2.0), (2, 2.0), (2, 2.0), (2, 2.0)):
        plateau.observe(knobs, step, loss)
    assert (plateau.cuts, plateau.waited) == (0, 1)
    plateau.observe(knobs, 3, 2.0)
    assert (plateau.cuts, plateau.waited) == (1, 0)
