import pytest
import torch
from torch import nn

from tinlab import models, recipe
from tinlab.errors import TinlabError
from tinlab.models.zoo import import_timm
from tinlab.training.optimizer import build, check, clip, hidden_weights


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


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6),
        nn.Flatten(), nn.Linear(24, 8), nn.Linear(8, 2),
    )  # fmt: skip


def gradients(model):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def test_lion_is_the_papers_algorithm():
    """Chen et al. 2023, program 1: update = sign(interpolation by beta 1), decay decoupled."""
    model = nn.Linear(3, 2)
    updater = build(
        recipe.Optimizer(name="lion", peak_lr=0.01, momentum=0.8, beta2=0.95, weight_decay=0.1), model
    )
    weight, average = model.weight.detach().clone(), torch.zeros(2, 3)
    torch.manual_seed(0)
    for _ in range(4):
        gradients(model)
        gradient = model.weight.grad.clone()
        updater.step()
        weight = weight - 0.01 * ((0.8 * average + 0.2 * gradient).sign() + 0.1 * weight)
        average = 0.95 * average + 0.05 * gradient
    assert torch.allclose(model.weight, weight, atol=1e-6)


@pytest.mark.parametrize("steps", [3, 5])
def test_muon_trains_what_lies_inside_and_adamw_the_rest(steps):
    model = network()
    inside = [model[1].weight, model[5].weight]  # not the first, the depthwise one and the classifier
    assert [id(p) for p in hidden_weights(model)] == [id(p) for p in inside]
    knobs = recipe.Optimizer(
        name="muon", peak_lr=0.02, rest_lr=0.005, momentum=0.9, nesterov=True, weight_decay=0.1, beta2=0.99,
        decay_weights_only=True, newton_schulz_steps=steps,
    )  # fmt: skip
    updater = build(knobs, model)
    mine = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    # torch's Muon takes matrices alone: filters as rows.
    hidden = [mine["1.weight"].detach().flatten(1).requires_grad_(), mine["5.weight"]]
    muon = torch.optim.Muon(
        hidden, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1, adjust_lr_fn="match_rms_adamw",
        ns_steps=steps,
    )  # fmt: skip
    rest = {name: p for name, p in mine.items() if name not in ("1.weight", "5.weight")}
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest.values() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in rest.values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.005,
        betas=(0.9, 0.99),
    )
    for _ in range(3):
        gradients(model)
        for name, parameter in model.named_parameters():
            mine[name].grad = parameter.grad.clone()
        hidden[0].grad = mine["1.weight"].grad.flatten(1)
        updater.step()
        muon.step()
        adamw.step()
    for name, parameter in model.named_parameters():
        if name in rest:
            assert torch.allclose(parameter, rest[name], atol=1e-6), name
    for parameter, other in zip(inside, hidden, strict=True):
        moved = (parameter.detach().flatten(1) - other.detach()).norm() / (3 * 0.02)
        # Both orthogonalise in bfloat16, timm's after interpolating by momentum, torch's by the same.
        assert moved < 0.02, moved
        assert not torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_muon_needs_an_inside():
    with pytest.raises(TinlabError, match="muon trains the layers between"):
        check(recipe.Optimizer(name="muon"), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)))
    inside = models.sketch(recipe.Model(width=4), 4)
    check(recipe.Optimizer(name="muon"), inside)
    last = [{"layers": "fc", "factor": 1}, {"layers": "*", "factor": 0}]
    updater = build(recipe.Optimizer(name="muon", layer_rates=last), inside)
    assert {p for group in updater.param_groups for p in group["params"]} == set(inside.fc.parameters())
    assert all(group["use_fallback"] for group in updater.param_groups)


def test_timms_are_those_of_its_own_registry():
    import_timm()
    from timm import optim

    model, other = network(), network()
    mine = build(recipe.Optimizer(name="timm:lamb", peak_lr=0.01, momentum=0.8, weight_decay=0.2), model)
    theirs = optim.Lamb(other.parameters(), lr=0.01, betas=(0.8, 0.999), weight_decay=0.2)
    for _ in range(3):
        gradients(model)
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            b.grad = a.grad.clone()
        mine.step()
        theirs.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    momentum = build(recipe.Optimizer(name="timm:lars", momentum=0.7), model)
    assert {group["momentum"] for group in momentum.param_groups} == {0.7}


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"name": "timm:lamp"}, "no optimizer 'lamp'; try .*timm:lamb"),
        ({"name": "timm:adahessian"}, "second derivatives"),
        ({"name": "timm:kron"}, "keeps a list called 'Q'"),
        ({"name": "timm:bnbadam"}, "cannot be used here"),
        ({"name": "timm:adan", "momentum": 0.5}, "optimizer.momentum: timm:adan has its own"),
        ({"name": "timm:lars", "beta2": 0.5}, "optimizer.beta2: timm:lars has none"),
    ],
)
@pytest.mark.filterwarnings("ignore:It is highly recommended")
def test_what_cannot_be_used_is_refused(knobs, words):
    with pytest.raises(TinlabError, match=words):
        check(recipe.Optimizer(**knobs), network())


@pytest.mark.parametrize("length", [0.5, 1e4])
def test_clipping_is_by_the_length_over_all_parameters(length):
    model, other = network(), network()
    gradients(model)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        b.grad = a.grad.clone()
    before = torch.cat([p.grad.flatten() for p in other.parameters()]).norm()
    nn.utils.clip_grad_norm_(other.parameters(), length)
    clip(model, length)
    after = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert after.norm() == pytest.approx(min(length, before.item()), rel=1e-4)
    assert torch.equal(after, torch.cat([p.grad.flatten() for p in other.parameters()]))
