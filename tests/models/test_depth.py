import pytest
import torch
from torch import nn

from tinlab import recipe
from tinlab.models import build
from tinlab.models.depth import (
    Survival,
    count_blocks,
    expected_blocks,
    residual_blocks,
    survival_probabilities,
)


def test_probabilities_fall_along_a_line():
    assert survival_probabilities(4, 0.5) == [0.875, 0.75, 0.625, 0.5]
    assert survival_probabilities(3, 1.0) == [1, 1, 1]


def test_the_expected_depth_is_the_papers():
    """Huang et al. 2016, section 3: (3 L - 1) / 4 blocks for p_L = 0.5."""
    for name, blocks in (("resnet18", 8), ("resnet34", 16), ("resnet50", 16), ("resnet101", 33)):
        model = build(recipe.Model(name=name, width=4, final_survival=0.5), 3)
        assert residual_blocks(model) == blocks
        assert expected_blocks(model) == pytest.approx((3 * blocks - 1) / 4)
    assert expected_blocks(build(recipe.Model(width=4), 3)) == 8


def test_the_measured_depth_meets_the_expected_one():
    torch.manual_seed(0)
    model = build(recipe.Model(width=1, final_survival=0.5, stem="patch"), 3)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for _ in range(400):
            model(x)
    ran, steps = count_blocks(model)
    assert steps == 400
    # The sum of 8 Bernoulli draws has a variance of at most 2: 5 standard errors of 400 such means are 0.35.
    assert ran / steps == pytest.approx(expected_blocks(model), abs=0.35)
    assert count_blocks(model) == (0, 0)


def test_a_dropped_block_is_the_identity_and_computes_nothing():
    model = build(recipe.Model(width=4, final_survival=0.5), 3)
    called = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    for unit in (unit for stage in (model.layer1, model.layer2) for unit in stage):
        unit.survival = Survival(0.0)
        x = torch.rand(2, unit.conv1.in_channels, 8, 8)
        called.clear()
        y = unit(x)
        if unit.downsample is None:
            assert torch.equal(y, x)
            assert called == []
        else:
            assert torch.equal(y, unit.downsample(x).relu())
            assert {name.split(".")[2] for name in called} == {"downsample"}


@pytest.mark.parametrize("order", "acde")
def test_evaluation_scales_the_branch_by_its_probability(order):
    torch.manual_seed(0)
    model = build(recipe.Model(width=4, final_survival=0.5, block_order=order), 3).eval()
    unit = model.layer1[1]
    x = torch.rand(2, 4, 8, 8)
    scaled = unit(x)
    branch = unit.branch({"d": x.relu(), "e": unit.bn1(x).relu()}.get(order, x))
    p = unit.survival.probability
    assert p == pytest.approx(1 - 2 / 8 * 0.5)
    expected = x + p * branch
    assert torch.allclose(scaled, expected.relu() if order == "a" else expected, atol=1e-6)


def test_the_expectation_over_draws_is_what_evaluation_computes():
    """For the sum of shortcut and branch, before any activation: order (e), whose addition comes last."""
    torch.manual_seed(0)
    model = build(recipe.Model(width=4, final_survival=0.5, block_order="e"), 3)
    unit = model.layer1[1]
    for module in unit.modules():  # the same statistics in training and in evaluation
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = torch.rand(2, 4, 8, 8)
    with torch.no_grad():
        draws = torch.stack([unit(x) for _ in range(2000)])
        unit.eval()
        evaluated = unit(x)
    # The draws are all or nothing: 5 standard errors of the mean, for the largest branch value there is.
    largest = (draws.amax(0) - draws.amin(0)).max().item()
    assert torch.allclose(draws.mean(0), evaluated, atol=5 * largest * 0.5 / 2000**0.5)


def test_draws_follow_torchs_seed():
    model = build(recipe.Model(width=2, final_survival=0.3), 3)
    x = torch.randn(2, 3, 32, 32)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append([model(x).detach() for _ in range(4)])
    assert all(torch.equal(a, b) for a, b in zip(outputs[0], outputs[1], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(outputs[0], outputs[2], strict=True))
