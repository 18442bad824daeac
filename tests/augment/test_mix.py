import numpy as np
import pytest
import torch
import torch.nn.functional as F
from help import NOTHING, ONE, images, planes
from scipy import stats

from tinlab.augment import mix
from tinlab.augment.policy import Policy
from tinlab.data.batches import Batch
from tinlab.recipe import Compute, Loss, Recipe, Schedule
from tinlab.recipe import operations as ops
from tinlab.training.step import forward_backward


def batch_of(count, side=16, epoch=0):
    samples = torch.arange(count) + 5
    return Batch(images(count, side, side), torch.arange(count) % 7, samples, torch.full_like(samples, epoch))


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 4.0, 12.0, 32.0, 150.0, 1000.0])
def test_weights_are_beta_distributed(alpha):
    u = torch.rand(50_000, generator=torch.Generator().manual_seed(1))
    weights = mix.beta(u, mix.beta_table(alpha), alpha).double().numpy()
    assert ((weights >= 0) & (weights <= 1)).all()
    quantiles = np.array([0.001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 0.999])
    found = mix.beta(torch.tensor(quantiles, dtype=torch.float32), mix.beta_table(alpha), alpha)
    assert np.allclose(found, stats.beta(alpha, alpha).ppf(quantiles), atol=2e-3)
    # What is near 1 has no digits left to tell it from 1; the lower half has them.
    low = weights[weights < 0.5]
    assert 0.49 < len(low) / len(weights) < 0.51
    assert stats.kstest(low, lambda w: 2 * stats.beta(alpha, alpha).cdf(w)).pvalue > 1e-3


def test_partners_are_neighbours():
    assert mix.partners(6, torch.device("cpu")).tolist() == [1, 0, 3, 2, 5, 4]
    assert mix.partners(5, torch.device("cpu")).tolist() == [1, 0, 3, 2, 4]


def test_mixup_blends_images_and_labels_alike():
    batch = batch_of(8)
    x, mixed = Policy((ops.Mixup(alpha=1.0),), NOTHING, ONE / 255, 3).inputs(batch, 16)
    plain = planes(batch.images)
    swapped = plain[[1, 0, 3, 2, 5, 4, 7, 6]]
    weights = mixed.weights[:, None, None, None]
    assert torch.allclose(x, weights * plain + (1 - weights) * swapped, atol=1e-2)
    assert torch.equal(mixed.others, batch.labels[[1, 0, 3, 2, 5, 4, 7, 6]])
    assert len(set(mixed.weights.tolist())) == 8


def test_cutmix_pastes_a_box_and_weighs_by_area():
    batch = batch_of(64, 32)
    x, mixed = Policy((ops.Cutmix(),), NOTHING, ONE / 255, 3).inputs(batch, 32)
    plain = planes(batch.images)
    for n in range(64):
        other = n ^ 1
        pasted = (x[n] != plain[n]).any(0)
        assert torch.equal(x[n][:, pasted], plain[other][:, pasted])
        rows, columns = pasted.any(1).nonzero(), pasted.any(0).nonzero()
        if len(rows):
            box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            # A pixel that is alike in both images may hide at the box's rim.
            assert pasted.sum() <= box
            assert abs((1 - mixed.weights[n]) * 32 * 32 - box) <= 2 * (
                rows[-1] - rows[0] + columns[-1] - columns[0] + 2
            )
    areas = 1 - mixed.weights
    assert areas.min() < 0.1
    assert areas.max() > 0.6


def test_each_happens_as_often_as_asked():
    batch = batch_of(2000, 8)
    plain = planes(batch.images)
    policy = Policy(
        (ops.Mixup(alpha=4.0, probability=0.3), ops.Cutmix(probability=0.5)), NOTHING, ONE / 255, 1
    )
    x, mixed = policy.inputs(batch, 8)
    pixels = (x == plain).all(1).flatten(1).float().mean(1)  # share of pixels that are the image's own
    blended = (pixels < 0.02) & (mixed.weights > 0.02) & (mixed.weights < 0.98)
    assert abs(blended.float().mean() - 0.3) < 0.05
    untouched = mixed.weights == 1
    assert torch.equal(x[untouched], plain[untouched])
    assert 0.18 < untouched.float().mean() < 0.26  # and boxes too small to hold a pixel's centre


def test_pairs_survive_being_cut_for_two_ranks():
    batch = batch_of(16)
    policy = Policy((ops.Rotate(), ops.Mixup(probability=0.5), ops.Cutmix(probability=0.5)), NOTHING, ONE, 7)
    x, mixed = policy.inputs(batch, 16)
    for part in (slice(0, 8), slice(8, 16)):
        piece = Batch(*(getattr(batch, name)[part] for name in ("images", "labels", "samples", "epochs")))
        y, of_piece = policy.inputs(piece, 16)
        assert torch.allclose(y, x[part], atol=1e-3)
        assert torch.equal(of_piece.weights, mixed.weights[part])
        assert torch.equal(of_piece.others, mixed.others[part])


def test_weights_change_from_pass_to_pass_and_repeat():
    policy = Policy((ops.Mixup(),), NOTHING, ONE, 7)
    first, again, later = (policy.inputs(batch_of(8, epoch=e), 16)[1].weights for e in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_two_labels_are_soft_labels(smoothing):
    dice = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 6, generator=dice)
    labels, others = (torch.randint(0, 6, (10,), generator=dice) for _ in range(2))
    weights = torch.rand(10, generator=dice)
    soft = weights[:, None] * F.one_hot(labels, 6) + (1 - weights)[:, None] * F.one_hot(others, 6)
    expected = F.cross_entropy(logits, soft, label_smoothing=smoothing)
    found = mix.cross_entropy(logits, labels, others, weights, smoothing)
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_loop_counts_the_label_with_the_larger_share():
    logits = torch.tensor([[2.0, 0, 0], [2, 0, 0], [0, 0, 2]])
    batch = Batch(
        images=torch.zeros(3),
        labels=torch.tensor([0, 0, 0]),
        samples=torch.arange(3),
        epochs=torch.zeros(3, dtype=torch.int64),
        others=torch.tensor([1, 1, 2]),
        weights=torch.tensor([0.7, 0.3, 0.3]),
    )
    recipe = Recipe(name="x", schedule=Schedule(steps=1), compute=Compute(precision="fp32"), loss=Loss())
    scale = torch.ones((), requires_grad=True)
    loss, _, correct = forward_backward(lambda inputs: inputs * scale, logits, batch, recipe)
    assert correct == 2
    expected = mix.cross_entropy(logits, batch.labels, batch.others, batch.weights)
    assert torch.allclose(loss, expected)
    assert scale.grad is not None
