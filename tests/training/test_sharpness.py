import math

import pytest
import torch
from torch import nn

from tinlab.training.sharpness import SharpnessAware


class Quadratic(nn.Module):
    """L(w, v) = 3 w^2 / 2 + v^2 / 2, over two parameters."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0]))
        self.v = nn.Parameter(torch.tensor([4.0]))
        self.seen = []

    def backward(self):
        self.seen.append((self.w.item(), self.v.item()))
        loss = 1.5 * self.w.square().sum() + 0.5 * self.v.square().sum()
        loss.backward()
        return loss.detach()


def test_the_gradient_is_that_of_the_point_uphill():
    model = Quadratic()
    loss = SharpnessAware(model, 0.5)(model.backward)
    # g = (3, 4), |g| = 5: uphill lies (1 + 0.5 * 3 / 5, 4 + 0.5 * 4 / 5) = (1.3, 4.4), gradient (3.9, 4.4)
    assert model.seen == [(1.0, 4.0), pytest.approx((1.3, 4.4))]
    assert model.w.grad.item() == pytest.approx(3.9)
    assert model.v.grad.item() == pytest.approx(4.4)
    assert (model.w.item(), model.v.item()) == (1.0, 4.0)
    assert loss.item() == 9.5


def test_a_gradient_of_zero_stays_where_it_is():
    model = Quadratic()
    with torch.no_grad():
        model.w.zero_()
        model.v.zero_()
    SharpnessAware(model, 0.5)(model.backward)
    assert math.isfinite(model.w.grad.item())
    assert model.seen == [(0.0, 0.0)] * 2


def test_both_passes_draw_alike_and_batch_norm_counts_the_first():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    once = nn.BatchNorm1d(8)
    x, dropped, inputs = torch.randn(16, 6), [], []
    model[1].register_forward_hook(lambda layer, given, output: inputs.append(given[0].detach().clone()))
    model[2].register_forward_hook(lambda layer, given, output: dropped.append(output.detach() == 0))

    def backward():
        model(x).square().mean().backward()

    SharpnessAware(model, 0.5)(backward)
    assert len(dropped) == 2
    assert torch.equal(*dropped)
    assert 0.2 < dropped[0].float().mean() < 0.8
    assert not torch.equal(*inputs)  # it did go uphill
    once(inputs[0])
    assert torch.equal(model[1].running_mean, once.running_mean)
    assert torch.equal(model[1].running_var, once.running_var)
    assert model[1].num_batches_tracked == 1
    drawn = torch.rand(())
    torch.manual_seed(0)
    assert drawn != torch.rand(())


def test_what_no_gradient_reaches_stays():
    model = Quadratic()
    model.other = nn.Parameter(torch.ones(2))
    SharpnessAware(model, 0.5)(model.backward)
    assert model.other.grad is None
    assert (model.other == 1).all()
