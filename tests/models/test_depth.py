import pytest
import torch
from torch import nn

from tinlab.models.depth import (
    SampleSurvival,
    Survival,
    count_blocks,
    draw_rows,
    expected_blocks,
    survival_probabilities,
)


class Rows(nn.Module):
    """A linear branch that remembers how many rows it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.seen: list[int] = []

    def forward(self, x):
        self.seen.append(len(x))
        return self.linear(x)


def test_probabilities_fall_on_a_line():
    assert survival_probabilities(4, 0.6) == pytest.approx([0.9, 0.8, 0.7, 0.6])


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
    assert expected_blocks(model) is None
    assert draw_rows([model[0]], 4, torch.device("cpu")) == [None]
    assert model[1].runs()
    assert count_blocks(model) == (0, 0)


def test_whole_blocks_are_counted_as_before():
    torch.manual_seed(0)
    survival = Survival(0.5)
    ran = sum(survival.runs() for _ in range(20))
    assert 0 < ran < 20
    assert count_blocks(survival) == (ran, 20)
