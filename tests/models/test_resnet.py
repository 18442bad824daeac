import pytest
import torch
from torch import nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import build, zoo
from tinlab.models.zoo import import_torchvision

ORDERS = "abcde"


@pytest.mark.parametrize(
    ("package", "name"),
    [
        *(("torchvision", f"resnet{depth}") for depth in (18, 34, 50, 101, 152)),
        *(("timm", f"resnet{depth}") for depth in (18, 50)),
    ],
)
def test_order_a_is_torchvisions_and_timms_network(package, name):
    theirs = zoo.find(f"{package}:{name}").build(recipe.Model(), 200)
    ours = build(recipe.Model(name=name), 200)
    ours.load_state_dict(theirs.state_dict())  # the same names and shapes
    x = torch.randn(2, 3, 64, 64)
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        with torch.no_grad():
            assert torch.allclose(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "blocks", "norms"), [("resnet18", (2, 2, 2, 2), 2), ("resnet50", (3, 4, 6, 3), 3)]
)
def test_order_e_is_timms_pre_activation_network(name, blocks, norms):
    """timm's first unit activates on its own branch; the paper's has its activation before both paths, and so
    before the max pool. Its batch norm is moved there: in evaluation, with positive scales, a maximum and a
    rising function commute, and the two networks agree."""
    import_torchvision()
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(f"resnetv2_{name.removeprefix('resnet')}", num_classes=200).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = build(recipe.Model(name=name, block_order="e"), 200).eval()
    state = {}
    for key, value in theirs.state_dict().items():
        new = key.replace("stem.conv", "conv1").replace("head.fc", "fc")
        if new.startswith("norm."):
            new = f"last_bn.{new.removeprefix('norm.')}"
        if new.startswith("stages."):
            _, stage, _, block, rest = new.split(".", 4)
            if (stage, block) == ("0", "0") and rest.startswith("norm1."):
                new = rest.replace("norm1", "bn1")
            else:
                rest = rest.replace("norm", "bn").replace("downsample.conv", "downsample.0")
                new = f"layer{int(stage) + 1}.{block}.{rest}"
        state[new] = value.reshape(value.shape[:2]) if new == "fc.weight" else value
    ours.load_state_dict(state)
    unit = theirs.stages[0].blocks[0]
    theirs.stem.append(unit.norm1)
    unit.norm1 = nn.Identity()
    assert sum(isinstance(m, nn.BatchNorm2d) for m in ours.modules()) == sum(blocks) * norms + 1
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


def by_hand(unit, x, order):
    """Figure 4 of He et al. 2016b, written out for a basic block with an identity shortcut."""
    conv1, conv2, bn1, bn2 = unit.conv1, unit.conv2, unit.bn1, unit.bn2
    relu = torch.relu
    if order == "a":
        return relu(x + bn2(conv2(relu(bn1(conv1(x))))))
    if order == "b":
        return relu(bn2(x + conv2(relu(bn1(conv1(x))))))
    if order == "c":
        return x + relu(bn2(conv2(relu(bn1(conv1(x))))))
    if order == "d":
        return x + bn2(conv2(relu(bn1(conv1(relu(x))))))
    return x + conv2(relu(bn2(conv1(relu(bn1(x))))))


@pytest.mark.parametrize("order", ORDERS)
def test_each_order_is_figure_4(order):
    torch.manual_seed(1)
    model = build(recipe.Model(width=8, block_order=order), 3).eval()
    unit = model.layer1[1]
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    x = torch.randn(2, 8, 5, 5)
    if order in "abc":
        x = x.relu()  # what such units pass on
    before = x.clone()
    assert torch.allclose(unit(x), by_hand(unit, before, order), atol=1e-6)


@pytest.mark.parametrize("order", "de")
def test_the_pre_activation_kinds_begin_and_end_as_the_paper_says(order):
    model = build(recipe.Model(width=8, block_order=order), 3)
    first, later = model.layer1[0], model.layer1[1]
    assert first.first
    assert not later.first
    if order == "e":
        assert isinstance(first.bn1, nn.Identity)
        assert isinstance(later.bn1, nn.BatchNorm2d)
        assert isinstance(model.last_bn, nn.BatchNorm2d)
    assert isinstance(model.last_act, nn.ReLU)
    seen = []
    model.fc.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model(torch.randn(4, 3, 64, 64))
    assert (seen[0] >= 0).all()  # activated once more after the last addition


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "elu"])
def test_every_order_learns_with_blocks_dropped(order, name, activation):
    """In-place activations must not overwrite what a dropped block's shortcut still needs."""
    torch.manual_seed(2)
    knobs = recipe.Model(
        name=name, width=4, block_order=order, activation=activation, final_survival=0.1, stem="small"
    )
    model = build(knobs, 3)
    x = torch.randn(2, 3, 32, 32)
    for _ in range(3):
        model(x).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("stem", ["imagenet", "small", "patch", "patch2x2"])
@pytest.mark.parametrize(("size", "grid"), [(64, (16, 64, 32, 32)), (33, (9, 33, 17, 16))])
def test_a_stem_divides_the_resolution(stem, size, grid):
    expected = dict(zip(["imagenet", "small", "patch", "patch2x2"], grid, strict=True))[stem]
    model = build(recipe.Model(width=4, stem=stem, shortcut="average_pool"), 3)
    seen = []
    model.layer1.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    assert model(torch.randn(2, 3, size, size)).shape == (2, 3)
    assert seen[0] == (2, 4, expected, expected)


@pytest.mark.parametrize("order", "acd")
def test_blocks_can_start_as_the_identity(order):
    torch.manual_seed(0)
    block = build(recipe.Model(width=8, zero_last_bn=True, block_order=order), 3).layer1[1]
    x = torch.rand(2, 8, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("order", "be")
def test_a_zero_batch_norm_needs_one_at_the_end_of_the_branch(order):
    with pytest.raises(TinlabError, match=f"order \\({order}\\) ends its branch without"):
        build(recipe.Model(width=8, zero_last_bn=True, block_order=order), 3)


def test_dropout_stands_before_the_classifier():
    model = build(recipe.Model(width=4, dropout=(0.5,)), 3)
    seen = []
    model.fc.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    torch.manual_seed(0)
    model(torch.randn(64, 3, 32, 32))
    assert 0.4 < (seen[0] == 0).float().mean() < 0.8  # half, and what ReLU made zero
