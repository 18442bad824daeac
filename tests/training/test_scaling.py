import pytest
import torch
from torch import nn

from tinlab import recipe
from tinlab.training import optimizer
from tinlab.training.scaling import Scaling

CPU = torch.device("cpu")


def trained(scaling, losses, name="sgd", clip=None):
    """A weight of 1 after steps on `factor * weight`, for each factor of `losses`."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    updater = optimizer.build(recipe.Optimizer(name=name, peak_lr=0.1, momentum=0.5, weight_decay=0), model)
    for factor in losses:
        scaling.backward(factor * model.weight.sum())
        if clip is not None:
            scaling.unscale(updater)
            optimizer.clip(model, clip)
        scaling.step(updater)
        updater.zero_grad()
    return model.weight.item()


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_scaling_changes_no_update(name, clip):
    losses = [1.0, -2.0, 3.0]
    off, on = Scaling(CPU, enabled=False), Scaling(CPU, enabled=True)
    assert trained(on, losses, name, clip) == pytest.approx(trained(off, losses, name, clip), abs=1e-6)
    assert (on.take_skipped(), off.take_skipped()) == (0, 0)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
def test_a_gradient_that_overflows_is_skipped_and_counted(name):
    scaling = Scaling(CPU, enabled=True)
    began = scaling.state()["scale"]
    found = trained(scaling, [1.0, float("inf"), float("nan"), -2.0], name)
    assert found == pytest.approx(trained(Scaling(CPU, enabled=False), [1.0, -2.0], name), abs=1e-6)
    assert scaling.state()["scale"] == began / 4
    assert scaling.take_skipped() == 2
    assert scaling.take_skipped() == 0


def test_momentum_begins_at_nothing_after_a_first_step_that_was_skipped():
    """A large weight, so that fresh memory holds what was there before."""
    spoilt = [torch.full((1000, 1000), float("nan")) for _ in range(3)]
    model = nn.Linear(1000, 1000, bias=False)
    updater = optimizer.build(recipe.Optimizer(peak_lr=0.1, momentum=0.9), model)
    scaling = Scaling(CPU, enabled=True)
    del spoilt
    for factor in (float("inf"), 1.0, 1.0):
        scaling.backward(factor * model.weight.sum())
        scaling.step(updater)
        updater.zero_grad()
        if factor != 1:
            assert not updater.state[model.weight]
    assert torch.isfinite(model.weight).all()
    assert scaling.take_skipped() == 1


def test_the_scale_and_its_count_go_on():
    one = Scaling(CPU, enabled=True)
    trained(one, [float("inf"), 1.0, 1.0, 1.0])
    other = Scaling(CPU, enabled=True)
    other.restore(one.state())
    assert other.state() == one.state() == {"scale": 32768.0, "_growth_tracker": 3}
    trained(one, [1.0])
    trained(other, [1.0])
    assert other.state() == one.state() == {"scale": 32768.0, "_growth_tracker": 4}
    assert Scaling(CPU, enabled=False).state() == {}
