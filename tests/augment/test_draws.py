import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tinlab.augment.draws import seed_for_step, uniform

words = st.integers(min_value=0, max_value=2**63 - 1)


def draw(seed, use, epoch, samples):
    return uniform(seed, use, torch.full((len(samples),), epoch), torch.as_tensor(samples))


@given(seed=words, epoch=words, samples=st.lists(words, min_size=1, max_size=20))
def test_draws_lie_in_the_unit_interval_and_ignore_their_neighbours(seed, epoch, samples):
    together = draw(seed, "flip", epoch, samples)
    assert ((together >= 0) & (together < 1)).all()
    alone = torch.cat([draw(seed, "flip", epoch, [sample]) for sample in samples])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("vary", ["samples", "epochs", "seeds"])
def test_draws_are_uniform_and_uncorrelated(vary):
    n = 100_000
    many, one = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    if vary == "samples":
        u = uniform(1, "flip", one, many)
    elif vary == "epochs":
        u = uniform(1, "flip", many, one)
    else:
        u = torch.cat([uniform(seed, "flip", one[:10], many[:10]) for seed in range(n // 10)])
    values = u.double().numpy()
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01


def test_uses_share_nothing():
    samples = torch.arange(100_000)
    one = uniform(3, "0.flip", torch.zeros_like(samples), samples).double().numpy()
    other = uniform(3, "1.flip", torch.zeros_like(samples), samples).double().numpy()
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.01


def test_step_seeds_differ():
    seeds = {seed_for_step(seed, step) for seed in range(100) for step in range(100)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("seed", "step", "expected"),
    [
        (0, 0, 4412414878254712906),
        (1, 7, 762636380939148595),
        (2**63 - 1, 2**40 + 3, 6717350118711483249),
    ],
)
def test_step_seeds_are_what_they_were(seed, step, expected):
    assert seed_for_step(seed, step) == expected
