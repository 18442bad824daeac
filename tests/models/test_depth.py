import pytest
import torch
from torch import nn

from tinlab import recipe
from tinlab.models import build
from tinlab.models.depth import (
    SampleSurvival,
    Survival,
    count_blocks,
    draw_rows,
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


class Rows(nn.Module):
    """A linear branch that remembers how many rows it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.seen: list[int] = []

    def forward(self, x):
        self.seen.append(len(x))
        return self.linear(x)


def test_dropped_samples_are_not_computed_and_pass_unchanged():
    torch.manual_seed(0)
    survival, branch = SampleSurvival(0.6), Rows()
    x = torch.randn(10, 3)
    (rows,) = draw_rows([survival], 10, x.device)
    y = survival(x, branch, rows)
    assert branch.seen == [6]
    assert len(set(rows.tolist())) == 6
    dropped = sorted(set(range(10)) - set(rows.tolist()))
    assert torch.equal(y[dropped], x[dropped])
    assert torch.allclose(y[rows], x[rows] + branch.linear(x[rows]))


def test_the_gradient_is_that_of_a_mask():
    torch.manual_seed(0)
    survival, branch = SampleSurvival(0.5), nn.Linear(3, 3)
    x = torch.randn(6, 3, requires_grad=True)
    (rows,) = draw_rows([survival], 6, x.device)
    mask = torch.zeros(6, 1).index_fill(0, rows, 1.0)
    seed = torch.randn(6, 3)
    of = [x, branch.weight, branch.bias]
    ours = torch.autograd.grad(survival(x, branch, rows), of, seed)
    theirs = torch.autograd.grad(x + mask * branch(x), of, seed)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def test_evaluation_is_the_mean_of_training():
    torch.manual_seed(0)
    survival, branch = SampleSurvival(0.75), nn.Linear(3, 3)
    x = torch.randn(8, 3)
    draws = [survival(x, branch, draw_rows([survival], 8, x.device)[0]) for _ in range(2000)]
    mean = torch.stack(draws).mean(dim=0)
    expected = survival.eval()(x, branch, None)
    # A sample is kept in 2000 draws with probability 3/4: the standard error of its share is 0.0097.
    assert torch.allclose(mean, expected, atol=0.05 * branch(x).abs().max().item())


def test_every_sample_has_its_own_lot():
    torch.manual_seed(0)
    survivals = [SampleSurvival(0.5) for _ in range(200)]
    kept = torch.zeros(200, 4)
    for block, rows in enumerate(draw_rows(survivals, 4, torch.device("cpu"))):
        kept[block, rows] = 1
    # Two of four samples, 200 times: a sample's count is 100 with a standard deviation of 7; who is kept has
    # one place less beside it, so that two samples correlate by -1/3, with a standard error of 0.07.
    assert ((kept.sum(dim=0) - 100).abs() < 35).all()
    assert torch.corrcoef(kept.T)[0, 1].item() == pytest.approx(-1 / 3, abs=0.25)


def test_the_seed_decides_the_draw():
    survivals = [SampleSurvival(0.5), SampleSurvival(1.0), SampleSurvival(0.9)]

    def draw(seed):
        torch.manual_seed(seed)
        return draw_rows(survivals, 32, torch.device("cpu"))

    first, again, other = draw(1), draw(1), draw(2)
    assert first[1] is None
    assert [len(first[0]), len(first[2])] == [16, 29]
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("probability", "batch", "kept"), [(0.9, 1, 1), (0.1, 1, 1), (0.1, 4, 1), (0.7, 10, 7)]
)
def test_at_least_one_sample_survives(probability, batch, kept):
    assert SampleSurvival(probability).survivors(batch) == kept


def test_blocks_are_counted_by_the_share_of_samples():
    torch.manual_seed(0)
    model = nn.ModuleList([SampleSurvival(0.75), SampleSurvival(0.5)])
    assert expected_blocks(model) == 1.25
    for _ in range(3):
        draw_rows(list(model), 4, torch.device("cpu"))
    assert count_blocks(model) == (3.75, 3)
    assert count_blocks(model) == (0, 0)


def test_blocks_that_always_run_are_not_counted():
    model = nn.ModuleList([SampleSurvival(1.0), Survival(1.0)])
    assert expected_blocks(model) == 2
    assert draw_rows([model[0]], 4, torch.device("cpu")) == [None]
    assert model[1].runs()
    assert count_blocks(model) == (0, 0)


def test_whole_blocks_are_counted_as_before():
    torch.manual_seed(0)
    survival = Survival(0.5)
    ran = sum(survival.runs() for _ in range(20))
    assert 0 < ran < 20
    assert count_blocks(survival) == (ran, 20)
