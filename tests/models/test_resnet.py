import pytest
import torch

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import MODELS, build
from tinlab.models.zoo import import_torchvision


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_the_standard_network_is_torchvisions(name):
    theirs = getattr(import_torchvision().models, name)(num_classes=200)
    ours = build(recipe.Model(name=name, stem="imagenet"), 200)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    # The same layers in the same order: the weights can be handed over one by one.
    pairs = list(zip(ours.state_dict().items(), _in_our_order(theirs), strict=True))
    assert all(mine.shape == other.shape for (_, mine), other in pairs)
    ours.load_state_dict({key: other for (key, _), other in pairs})
    x = torch.randn(2, 3, 64, 64)
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        assert torch.allclose(ours(x), theirs(x), atol=1e-4)


def _in_our_order(theirs):
    """Tensors of torchvision's ResNet in the order of ours: a block's shortcut comes last in both."""
    return list(theirs.state_dict().values())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stem", ["imagenet", "small", "patch"])
@pytest.mark.parametrize("shortcut", ["projection", "average_pool"])
def test_every_network_runs_learns_and_can_be_saved(name, stem, shortcut):
    knobs = recipe.Model(name=name, width=8, stem=stem, shortcut=shortcut, zero_last_bn=True)
    torch.manual_seed(0)
    model = build(knobs, 5)
    x, y = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    logits = model(x)
    assert logits.shape == (4, 5)
    torch.nn.functional.cross_entropy(logits, y).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    other = build(knobs, 5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x), model.eval()(x))


@pytest.mark.parametrize("size", [16, 31, 32, 33, 64, 96])
def test_any_size_of_image(size):
    for stem in ("imagenet", "small", "patch"):
        knobs = recipe.Model(width=4, stem=stem, shortcut="average_pool")
        assert build(knobs, 3)(torch.randn(2, 3, size, size)).shape == (2, 3)


def test_blocks_can_start_as_the_identity():
    torch.manual_seed(0)
    block = build(recipe.Model(width=8, zero_last_bn=True), 3).layer1[0]
    x = torch.rand(2, 8, 4, 4)
    assert torch.equal(block(x), x)


def test_an_unknown_network_is_refused_with_the_nearest_ones():
    with pytest.raises(TinlabError, match="no network 'resnet19'; try resnet18"):
        build(recipe.Model(name="resnet19"), 3)
