import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import build
from tinlab.training.penalties import Penalties, penalty


def weights(layers, l1=0.0, l2=0.0):
    return recipe.Penalty(layers=layers, l1=l1, l2=l2)


def activations(layers, l1=0.0, l2=0.0):
    return recipe.Penalty(layers=layers, on="activations", l1=l1, l2=l2)


def two_layers():
    """Linear -> in-place ReLU -> Linear, with values to count on."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 0.0], [-1.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, -3.0, 1.0]))
        model[2].weight.copy_(torch.tensor([[2.0, -4.0, 1.0]]))
        model[2].bias.fill_(9.0)
    return model


X = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
# Outputs of layer 0: (-3, -2.5, 2) and (1, -1.5, -1); of the ReLU: (0, 0, 2) and (1, 0, 0).
BEFORE = torch.tensor([[-3.0, -2.5, 2.0], [1.0, -1.5, -1.0]])


def test_weights_by_hand():
    model = two_layers()
    penalties = Penalties([weights("0", l1=0.1, l2=0.01), weights("2", l1=1.0)], model)
    value = penalties()
    assert value.item() == pytest.approx(0.1 * 5.5 + 0.01 * 7.25 + 7.0)
    value.backward()
    first = model[0].weight
    assert torch.allclose(first.grad, 0.1 * first.sign() + 0.01 * 2 * first)
    assert torch.equal(model[2].weight.grad, model[2].weight.sign())
    assert model[0].bias.grad is None


def test_outputs_by_hand_although_the_relu_overwrites_them():
    model = two_layers()
    penalties = Penalties([activations("0", l1=0.1, l2=0.01)], model)
    model(X)
    value = penalties()
    assert value.item() == pytest.approx((0.1 * 11 + 0.01 * 23.5) / 2)
    value.backward()
    # d/dv of (0.1 |v| + 0.01 v^2) / 2 images, and v's bias is in every image.
    slope = (0.1 * BEFORE.sign() + 0.02 * BEFORE) / 2
    assert torch.allclose(model[0].bias.grad, slope.sum(dim=0))
    assert torch.allclose(model[0].weight.grad, slope.T @ X)
    assert model[2].weight.grad is None


def test_after_the_activation_by_naming_it():
    model = two_layers()
    penalties = Penalties([activations("1", l1=1.0, l2=0.5)], model)
    model(X)
    value = penalties()
    assert value.item() == pytest.approx((3 + 0.5 * 5) / 2)
    value.backward()
    after = BEFORE.clamp(min=0)
    assert torch.allclose(model[0].bias.grad, ((after > 0) * (1 + after) / 2).sum(dim=0))


def test_the_loss_and_the_penalty_share_a_backward():
    model, plain = two_layers(), two_layers()
    penalties = Penalties([activations("0", l2=0.3), weights("2", l2=0.2)], model)
    loss = model(X).square().mean()
    (loss + penalties()).backward()
    # The same without hooks: nothing in place, all by hand.
    before = plain[0](X)
    output = plain[2](before.relu())
    by_hand = 0.3 * before.square().sum() / 2 + 0.2 * plain[2].weight.square().sum()
    (output.square().mean() + by_hand).backward()
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad)


def test_gradients_against_finite_differences():
    values = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: penalty(v, 0.3, 0.7), values)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.same = self.conv

    def forward(self, x):
        return self.same(self.conv(x))


def test_a_layer_used_twice_counts_twice_and_its_weight_once():
    model = Twice()
    x = torch.randn(3, 2, 4, 4)
    first = model.conv(x)
    expected = (
        0.5 * (first.abs().sum() + model.conv(first).abs().sum()) / 3 + model.conv.weight.square().sum()
    )
    penalties = Penalties([activations("conv", l1=0.5), weights("conv", l2=1.0)], model)
    model(x)
    assert torch.allclose(penalties(), expected)


def test_a_weight_that_two_layers_share_counts_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert torch.allclose(Penalties([weights("*", l1=1.0)], model)(), model[0].weight.abs().sum())


def test_norms_are_left_out_of_weights():
    model = build(recipe.Model(width=4), 3)
    with torch.no_grad():
        model.layer4[0].bn1.weight.fill_(1e6)
    matched = [p for n, p in model.named_parameters() if n.startswith("layer4") and p.dim() > 1]
    expected = sum(p.square().sum() for p in matched)
    assert len(matched) == 5
    assert torch.allclose(Penalties([weights("layer4*", l2=1.0)], model)(), expected)


def test_sums_are_float32_under_autocast():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 500), nn.ReLU(inplace=True))
    penalties = Penalties([activations("0", l1=1.0, l2=1.0), weights("0", l1=1.0)], model)
    x = torch.randn(40, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        value = penalties()
        rounded = nn.functional.linear(x, model[0].weight, model[0].bias)
    assert rounded.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    v, w = rounded.double(), model[0].weight.double()
    expected = (v.abs().sum() + v.square().sum()) / 40 + w.abs().sum()
    # A sum of 20,000 values in bf16 would be off by percents.
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    value.backward()
    assert model[0].weight.grad.dtype == torch.float32


def test_only_in_training_and_nothing_is_kept():
    model = two_layers()
    penalties = Penalties([activations("0", l1=1.0)], model)
    assert penalties() is None
    model(X)
    assert penalties().item() == pytest.approx(5.5)
    assert penalties() is None
    with torch.no_grad():
        model(X)
    assert penalties() is None
    model.eval()
    model(X)
    assert penalties() is None
    assert Penalties([weights("0", l1=1.0)], model)() is None
    model.train()
    assert penalties() is None
    assert Penalties([], model)() is None


def test_graphs_are_freed_with_the_value():
    model = two_layers()
    penalties = Penalties([activations("0", l1=1.0, l2=1.0)], model)
    x = X.clone().requires_grad_()
    model(x)
    value = penalties()
    value.backward()
    watched = weakref.ref(x)
    del x, value
    gc.collect()
    assert watched() is None


def test_a_copy_of_the_model_does_not_copy_the_store():
    model = two_layers()
    penalties = Penalties([activations("0", l1=1.0)], model)
    twin = copy.deepcopy(model).eval()
    twin(X)
    assert penalties() is None
    model(X)
    assert penalties().item() == pytest.approx(5.5)


def test_with_a_compiled_model():
    model = two_layers()
    penalties = Penalties([activations("0", l1=0.1, l2=0.01), weights("2", l1=1.0)], model)
    network = torch.compile(model, backend="aot_eager")
    plain = two_layers()
    by_hand = Penalties([activations("0", l1=0.1, l2=0.01), weights("2", l1=1.0)], plain)
    for _ in range(2):
        total, expected = network(X).sum(), plain(X).sum()
        total, expected = total + penalties(), expected + by_hand()
        assert total.item() == pytest.approx(expected.item())
        total.backward()
        expected.backward()
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad)
    model.eval()
    network(X)
    assert penalties() is None


@pytest.mark.parametrize("on", ["weights", "activations"])
def test_a_pattern_that_matches_nothing(on):
    model = build(recipe.Model(width=4), 3)
    knobs = [weights("fc", l1=1.0), recipe.Penalty(layers="cov1", on=on, l1=1.0)]
    with pytest.raises(TinlabError, match=r"^loss\.penalties\.1\.layers: no layer .* 'cov1'; it has conv1"):
        Penalties(knobs, model)


def test_layers_without_weights():
    model = build(recipe.Model(width=4), 3)
    with pytest.raises(TinlabError, match=r"^loss\.penalties\.0\.layers: no layer called 'bn1' has weights"):
        Penalties([weights("bn1", l1=1.0)], model)


def test_layers_that_give_no_tensor():
    model = nn.Sequential(nn.LSTM(3, 2))
    Penalties([activations("0", l1=1.0)], model)
    with pytest.raises(TinlabError, match=r"^loss\.penalties\.0\.layers: '0' gives a tuple, not a tensor"):
        model(torch.randn(4, 3))
