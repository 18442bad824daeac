import pytest
import torch
from torch import nn

from tinlab.models.zoo import import_timm
from tinlab.training.averaging import Lookahead, MovingAverage


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def advance(model, seed):
    """Other weights, and other running statistics."""
    torch.manual_seed(seed)
    model.train()
    model(torch.randn(8, 3, 8, 8) + seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_the_average_is_torchs_with_a_decay_that_warms_up():
    model = network()
    decays = []

    def theirs(average, new, averaged):
        decays.append(min(0.3, (1 + averaged) / (10 + averaged)))
        return decays[-1] * average + (1 - decays[-1]) * new

    reference = torch.optim.swa_utils.AveragedModel(model, avg_fn=theirs)
    reference.update_parameters(model)  # the first of them copies, which makes it the initial weights
    mine = MovingAverage(model, 0.3)
    for step in range(1, 8):
        advance(model, step)
        reference.update_parameters(model)
        mine.update(step)
    assert len(set(decays)) > 3
    for a, b in zip(mine.model.parameters(), reference.module.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_average_is_timms_once_it_is_warm():
    model = network()
    mine = MovingAverage(model, 0.9)
    import_timm()
    from timm.utils import ModelEmaV3

    theirs = ModelEmaV3(model, decay=0.9, exclude_buffers=True)
    for step in range(1000, 1006):
        advance(model, step - 1000)
        mine.update(step)
        theirs.update(model)
    for (name, a), b in zip(mine.tensors().items(), theirs.module.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5), name


def test_buffers_are_copied_and_nothing_is_shared():
    model = network()
    mine = MovingAverage(model, 0.9)
    began = [p.clone() for p in model.parameters()]
    advance(model, 1)
    assert all(torch.equal(a, b) for a, b in zip(mine.model.parameters(), began, strict=True))
    mine.update(1)
    assert torch.equal(mine.model[1].running_mean, model[1].running_mean)
    assert mine.model[1].num_batches_tracked == 1
    assert mine.model[1].running_mean.data_ptr() != model[1].running_mean.data_ptr()
    assert not mine.model.training
    assert not any(p.requires_grad for p in mine.model.parameters())


def test_lookahead_is_the_papers_algorithm():
    """On one weight that each fast step moves by 1: slow weights go half of the way every two steps."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    slow = Lookahead(model, steps=2, alpha=0.5)
    seen = []
    for step in range(1, 8):
        with torch.no_grad():
            model.weight.add_(1.0)
        slow.update(step, total_steps=7)
        seen.append(model.weight.item())
    # 1, 2 -> 1, 2, 3 -> 2, 3, 4 -> 3, 4 and at the end -> 3.5
    assert seen == [1, 1, 2, 2, 3, 3, 3.5]


def test_lookahead_is_timms_where_that_has_begun():
    """timm's slow weights begin at its first synchronisation: it is asked for one at the start."""
    import_timm()
    from timm import optim

    mine, theirs = network(), network()
    fast = torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9)
    other = optim.Lookahead(torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9), alpha=0.3, k=3)
    slow = Lookahead(mine, steps=3, alpha=0.3)
    x = torch.randn(4, 3, 8, 8)
    for step in range(1, 10):
        for model, updater in ((mine, fast), (theirs, other)):
            updater.zero_grad()
            model(x).square().mean().backward()
            if step == 1 and updater is other:
                other.sync_lookahead()
            updater.step()
        slow.update(step, total_steps=100)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("kind", [MovingAverage, Lookahead])
def test_tensors_are_those_that_are_used(kind):
    model = network()
    made = MovingAverage(model, 0.5) if kind is MovingAverage else Lookahead(model, 1, 0.5)
    with torch.no_grad():
        made.tensors()["3.weight"].fill_(2.0)
        model[3].weight.fill_(4.0)
    if kind is MovingAverage:
        made.update(1000)
        assert (made.model[3].weight == 3.0).all()
    else:
        made.update(1, 10)
        assert (model[3].weight == 3.0).all()
