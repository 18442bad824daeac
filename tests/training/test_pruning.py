import json
import os
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune as torchs

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import MODELS, build
from tinlab.models.structure import smaller, structure_of
from tinlab.models.summary import summarise_network
from tinlab.training import checkpoint
from tinlab.training.pruning import Masks, prune_channels
from tinlab.training.sharpness import SharpnessAware

CLASSES = 5
WIDTHS = {"keras_alexnet": 2}
"""Where 8 channels in the first stage are many still."""
LARGE = {"alexnet", "vgg16", "googlenet", "squeezenet"}
"""They have no width."""
WHOLE = ("trinext_small", "trinext", "trinext_large", "trinext_conv")
"""Their channels cannot be pruned."""


def two_layers():
    """A 2x2 convolution of 2 weights and a 2x3 linear layer, with weights that are plain to see."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.1, -5.0]).view(2, 1, 1, 1))
        model[2].weight.copy_(torch.tensor([[0.3, -0.2], [0.05, 2.0], [-4.0, 0.4]]))
    return model


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(128, 5)
    )


def weights(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def backward(model, seed=0):
    """A backward pass on images of 8 pixels a side."""
    torch.manual_seed(seed)
    x, y = torch.randn(8, 3, 8, 8), torch.randint(0, 5, (8,))
    F.cross_entropy(model(x), y).backward()


# Masks


def test_one_threshold_holds_for_all_layers():
    """By hand: of 8 weights the smallest three are 0.05, 0.1 and 0.2."""
    model = two_layers()
    biases = [layer.bias.clone() for layer in weights(model)]
    masks = Masks.of(model)
    assert masks.sparsity() == 0
    masks.prune(3 / 8)
    assert torch.equal(model[0].weight.flatten(), torch.tensor([0.0, -5.0]))
    assert torch.equal(model[2].weight, torch.tensor([[0.3, 0.0], [0.0, 2.0], [-4.0, 0.4]]))
    assert all(torch.equal(m.bias, bias) for m, bias in zip(weights(model), biases, strict=True))
    assert masks.sparsity() == 3 / 8
    assert {name: int(mask.sum()) for name, mask in masks.tensors().items()} == {"0.weight": 1, "2.weight": 2}
    assert masks.tensors()["2.weight"].tolist() == [[False, True], [True, False], [False, False]]


def test_rounds_are_cumulative():
    """What was pruned stays so, whatever happened to it since, and counts."""
    model = two_layers()
    masks = Masks.of(model)
    masks.prune(3 / 8)
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[0.35, 9.0], [9.0, 0.3], [-4.0, 0.4]]))
    masks.prune(5 / 8)
    assert torch.equal(model[2].weight, torch.tensor([[0.0, 0.0], [0.0, 0.0], [-4.0, 0.4]]))
    masks.prune(5 / 8)
    assert masks.sparsity() == 5 / 8
    with pytest.raises(TinlabError, match=r"0\.625 of the weights are pruned already, and 0\.5 is less"):
        masks.prune(0.5)


def test_rounds_are_torchs():
    """torch counts a later round's weights among those that are left, and protects none."""
    mine, theirs = convolutional(), convolutional()
    masks = Masks.of(mine)
    where = [(layer, "weight") for layer in weights(theirs)]
    total, before = sum(m.weight.numel() for m in weights(mine)), 0
    for share in (0.3, 0.52, 0.7):
        masks.prune(share)
        count = round(share * total)
        torchs.global_unstructured(where, torchs.L1Unstructured, amount=count - before)
        before = count
        for (layer, _), mask in zip(where, masks.tensors().values(), strict=True):
            assert torch.equal(layer.weight_mask == 0, mask)
        assert sum(int(mask.sum()) for mask in masks.tensors().values()) == count


@pytest.mark.parametrize("share", [0, 1 / 3, 0.5, 2 / 3])
def test_equal_weights_go_in_order_and_the_count_is_exact(share):
    model = nn.Sequential(nn.Conv2d(1, 6, 1, bias=False), nn.Flatten(), nn.Linear(6, 3, bias=False))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(-0.5)
    masks = Masks.of(model)
    masks.prune(share)
    pruned = torch.cat([mask.flatten() for mask in masks.tensors().values()])
    expected = torch.zeros(24, dtype=torch.bool)
    # The first of each layer counts as its largest, and stays.
    free = [place for place in range(24) if place not in (0, 6)]
    expected[free[: round(share * 24)]] = True
    assert torch.equal(pruned, expected)


def test_each_layer_keeps_its_largest_weight():
    model = two_layers()
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    masks = Masks.of(model)
    masks.prune(0.5)
    assert (model[0].weight.flatten() != 0).tolist() == [False, True]
    assert masks.sparsity() == 0.5
    masks.prune(1)
    assert masks.sparsity() == 6 / 8
    assert model[2].weight.flatten().nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(share):
    with pytest.raises(TinlabError, match="from 0 to 1"):
        Masks.of(two_layers()).prune(share)


def test_layers_can_be_left_alone():
    model = nn.Sequential()
    model.add_module("stem", nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model.add_module("mix", nn.Conv2d(4, 4, 3))
    model.add_module("fc", nn.Linear(4, 2))
    assert list(Masks.of(model).tensors()) == ["stem.0.weight", "mix.weight", "fc.weight"]
    assert list(Masks.of(model, ("stem", "f*")).tensors()) == ["mix.weight"]
    with pytest.raises(TinlabError, match=r"^pruning\.leave\.1: no layer .* 'head'"):
        Masks.of(model, ("fc", "head"), field="pruning.leave")
    with pytest.raises(TinlabError, match=r"^pruning\.leave: no convolution"):
        Masks.of(model, ("*",), field="pruning.leave")


def test_a_shared_weight_counts_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(Masks.of(model).tensors()) == ["0.weight"]


def test_dropconnect_is_masked_as_what_it_replaces():
    knobs = recipe.Model(name="yu_baseline", width=4, dropconnect=(recipe.DropConnect(layers="fc1"),))
    assert "fc1.weight" in Masks.of(build(knobs, CLASSES)).tensors()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_masks_outlast_steps_with_momentum(memory):
    """Momentum from before the masks, and gradients through the zeros, both move pruned weights."""
    model = convolutional().to(memory_format=memory)
    updater = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    backward(model)
    updater.step()
    masks = Masks.of(model)
    masks.prune(0.5)
    kept = model[3].weight.detach().clone()
    for step in range(3):
        updater.zero_grad()
        backward(model, step)
        updater.step()
        assert any((p[masks.tensors()[n]] != 0).any() for n, p in model.named_parameters() if p.dim() > 1)
        masks.apply()
        for name, mask in masks.tensors().items():
            assert (model.get_parameter(name)[mask] == 0).all()
            assert (model.get_parameter(name)[~mask] != 0).all()
    assert not torch.equal(model[3].weight, kept)
    assert all(mask.stride() == model.get_parameter(name).stride() for name, mask in masks.tensors().items())


def test_masked_gradients_leave_nothing_to_pruned_weights():
    """Then sharpness-aware minimisation does not climb by them, and momentum does not gather for them."""
    model = convolutional()
    masks = Masks.of(model)
    masks.prune(0.5)
    updater = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    climbed = []

    def masked_backward():
        climbed.append(deepcopy(model.state_dict()))
        backward(model)
        masks.apply_to_gradients()

    SharpnessAware(model, rho=0.5)(masked_backward)
    updater.step()
    for name, mask in masks.tensors().items():
        p = model.get_parameter(name)
        assert not torch.equal(climbed[1][name], climbed[0][name])
        for values in (climbed[1][name], p, p.grad, updater.state[p]["momentum_buffer"]):
            assert (values[mask] == 0).all()
            assert (values[~mask] != 0).any()


def test_masks_are_saved_beside_a_checkpoint(tmp_path):
    model = convolutional()
    masks = Masks.of(model)
    masks.prune(0.7)
    updater = torch.optim.SGD(model.parameters(), lr=0.1)
    place = checkpoint.save(tmp_path, model, updater, checkpoint.State(), {"masks": masks.tensors()})
    fresh = convolutional()
    again = Masks.of(fresh)
    other = torch.optim.SGD(fresh.parameters(), lr=0.1)
    checkpoint.restore(place, fresh, other, torch.device("cpu"), {"masks": again.tensors()})
    assert again.sparsity() == masks.sparsity() > 0.69
    with torch.no_grad():
        for p in fresh.parameters():
            p.fill_(1.0)
    again.apply()
    for name, mask in masks.tensors().items():
        assert torch.equal(fresh.get_parameter(name) == 0, mask)
    again.prune(0.8)
    assert again.sparsity() == pytest.approx(0.8, abs=1e-3)


# Channels


def cut(model, share, classifier, **words):
    pytest.importorskip("torch_pruning")
    return prune_channels(model, share, classifier=classifier, **words)


def drawn(knobs, image_size=64):
    """A network with values in its batch norms as after some training."""
    torch.manual_seed(0)
    model = build(knobs, CLASSES, image_size=image_size)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def tiny(name):
    small = {"width": WIDTHS.get(name, 8)} if "width" in MODELS[name].options else {}
    return recipe.Model(name=name, **small)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in WHOLE])
def test_every_network_gets_smaller_and_is_built_again(name):
    size = 32
    model = drawn(tiny(name), size).train()
    before = summarise_network(model, size, name)
    found = cut(model, 0.4, MODELS[name].classifier, image_size=size)
    assert found.channels == found.channels_before - round(0.4 * found.channels_before)
    after = summarise_network(model, size, name)
    assert model.training
    assert (found.parameters_before, found.multiply_adds_before) == (before.parameters, before.multiply_adds)
    assert (found.parameters, found.multiply_adds) == (after.parameters, after.multiply_adds)
    assert sum(p.numel() for p in model.parameters()) == found.parameters < 0.75 * found.parameters_before
    assert found.multiply_adds < 0.9 * found.multiply_adds_before
    torch.manual_seed(1)
    x = torch.randn(2, 3, size, size)
    if name not in LARGE:
        F.cross_entropy(model(x), torch.tensor([0, 1])).backward()
        for key, p in model.named_parameters():
            assert p.grad is not None, key
            assert p.grad.isfinite().all(), key
    again = build(tiny(name), CLASSES, image_size=size)
    smaller(again, json.loads(json.dumps(found.structure)), image_size=size)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        logits = model.eval()(x)
        assert logits.shape == (2, CLASSES)
        assert torch.equal(again.eval()(x), logits)


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_cut_is_refused_and_left_alone(name):
    model = drawn(tiny(name))
    before = str(model)
    with pytest.raises(TinlabError, match=r"model\.name: this network's channels cannot .*Residual"):
        cut(model, 0.4, MODELS[name].classifier)
    assert str(model) == before


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 180), ("yu_resnet20", 228)])
@pytest.mark.parametrize(
    ("stem", "order", "shortcut", "activation"),
    [
        ("imagenet", "a", "average_pool", "relu"),
        ("small", "b", "projection", "elu"),
        ("patch", "c", "average_pool", "leaky_relu"),
        ("patch2x2", "d", "projection", "gelu"),
        ("patch", "e", "average_pool", "silu"),
        ("imagenet", "e", "projection", "selu"),
    ],
)
def test_resnets_are_cut_as_if_their_weakest_channels_were_silent(
    name, channels, stem, order, shortcut, activation
):
    """With stems, shortcuts, orders and activations of all kinds; stochastic depth, dropout and DropConnect
    are of training alone. By hand: a basic block has channels of its own, 4, 8, 16 or 32, a bottleneck twice
    as many, and each stage's blocks share those that they add to, the first those of the stem too."""
    knobs = recipe.Model(
        name=name,
        width=4,
        stem=stem,
        block_order=order,
        shortcut=shortcut,
        activation=activation,
        final_survival=0.5,
        dropout=(0.2,),
        dropconnect=(recipe.DropConnect(layers="fc"),),
    )
    model = drawn(knobs, 32)
    # Channels that are silent already are the weakest, wherever they are; without them nothing changes.
    silent = [
        (unit.conv1, unit.bn1 if order != "e" else unit.bn2)
        for unit in model.modules()
        if hasattr(unit, "survival")
    ]
    with torch.no_grad():
        for conv, norm in silent:
            conv.weight[0] = 0
            for values in (norm.weight, norm.bias, norm.running_mean):
                values[0] = 0
        for unit in model.modules():
            if hasattr(unit, "survival"):
                unit.conv2.weight[:, 0] = 0
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model.eval()(x)
        found = cut(model, len(silent) / channels, "fc", image_size=32, scope="network")
        assert (found.channels_before, found.channels) == (channels, channels - len(silent))
        for conv, _ in silent:
            assert (conv.weight.flatten(1).abs().sum(1) > 0).all()
        assert torch.allclose(model(x), wanted, atol=1e-5, rtol=1e-4)
    F.cross_entropy(model.train()(x), torch.tensor([0, 1])).backward()


@pytest.mark.parametrize(
    ("scope", "first", "second"), [("layer", [0, 1], [0, 2]), ("network", [0], [0, 2, 3])]
)
def test_importance_by_hand(scope, first, second):
    """Two convolutions of three and four channels, and a linear layer: three of all seven channels go."""
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 4, 1, bias=False), nn.Flatten(), nn.Linear(4, 2)
    )
    a = torch.tensor([[1.0, 0, 0], [0, 3.0, 0], [0, 0, 2.0]])
    b = torch.tensor([[5.0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]])
    c = torch.tensor([[1.0, 0, 5, 4], [0, 1, 0, 0]])
    with torch.no_grad():
        model[0].weight.copy_(a.view(3, 3, 1, 1))
        model[1].weight.copy_(b.view(4, 3, 1, 1))
        model[3].weight.copy_(c)
    # First layer: 1 + 25, 9 + 2, 4 + 3. Second: 27 + 1, 2 + 1, 1 + 25, 0 + 16. Of all, 3, 7 and 11 are least;
    # by layer 7 of three channels, and 3 and 16 of four.
    found = cut(model, 3 / 7, "3", image_size=1, scope=scope)
    assert (found.channels_before, found.channels) == (7, 4)
    assert torch.equal(model[0].weight.flatten(1), a[first])
    assert torch.equal(model[1].weight.flatten(1), b[second][:, first])
    assert torch.equal(model[3].weight, c[:, second])


def test_channels_without_any_weight_go_first():
    model = convolutional()
    with torch.no_grad():
        model[3].weight.zero_()
        model[3].bias.zero_()
        model[5].weight.zero_()
    found = cut(model, 7 / 14, "5", image_size=8, scope="network")
    assert (found.channels_before, found.channels) == (14, 7)
    assert (model[0].out_channels, model[3].out_channels) == (6, 1)


@pytest.mark.parametrize("scope", ["layer", "network"])
def test_the_librarys_own_pruner_takes_the_same_channels(scope):
    tp = pytest.importorskip("torch_pruning")
    knobs = recipe.Model(name="resnet18", width=8)
    mine, theirs = drawn(knobs, 32), drawn(knobs, 32).eval()
    found = cut(mine, 0.25, "fc", image_size=32, scope=scope)
    tp.pruner.BasePruner(
        theirs,
        torch.randn(2, 3, 32, 32),
        tp.importance.GroupMagnitudeImportance(p=2, group_reduction="sum", normalizer=None),
        global_pruning=scope == "network",
        pruning_ratio=0.25,
        ignored_layers=[theirs.fc],
        in_channel_groups={},
        out_channel_groups={},
    ).step()
    assert found.channels == 0.75 * found.channels_before
    assert structure_of(theirs) == found.structure
    for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_layers_keep_channels_and_some_stay_whole():
    model = drawn(recipe.Model(name="yu_vgg", width=16))
    with torch.no_grad():
        model.conv4.weight[1:] *= 1e-6
        model.conv5.weight[:, 1:] *= 1e-6
    found = cut(model, 0.6, "classifier", leave=("conv1", "fc*"), scope="network")
    sizes = [layer.out_channels for layer in model if isinstance(layer, nn.Conv2d)]
    assert sizes[0] == 16
    assert sizes[3] == 4  # a tenth of 32, rounded up
    assert model.fc1.out_features == model.fc2.out_features == 256
    assert found.channels_before == 16 + 2 * 32 + 2 * 64
    assert found.channels == found.channels_before - round(0.6 * found.channels_before)


def test_channels_are_left_in_multiples():
    model = drawn(recipe.Model(name="resnet18", width=16), 32)
    found = cut(model, 0.6, "fc", image_size=32, multiple=8)
    sizes = {m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert all(size % 8 == 0 for size in sizes)
    assert min(sizes) < 16
    assert 0.4 * found.channels_before < found.channels < found.channels_before


def test_rounds_go_on_from_the_smaller_network():
    knobs = recipe.Model(name="resnet18", width=8)
    model = drawn(knobs, 32)
    first = cut(model, 0.3, "fc", image_size=32)
    second = cut(model, 0.3, "fc", image_size=32)
    assert second.channels_before == first.channels
    assert second.parameters_before == first.parameters > second.parameters
    again = smaller(build(knobs, CLASSES), second.structure)
    again.load_state_dict(model.state_dict())


def test_it_is_the_same_network_in_a_process_without_the_library(tmp_path):
    knobs = recipe.Model(name="resnet18", width=8)
    model = drawn(knobs, 32).eval()
    found = cut(model, 0.4, "fc", image_size=32)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        save_file({"x": x, "logits": model(x), **model.state_dict()}, tmp_path / "model.safetensors")
    (tmp_path / "structure.json").write_text(json.dumps(found.structure))
    program = """
import json, sys
from pathlib import Path
sys.modules["torch_pruning"] = None
import torch
from safetensors.torch import load_file, save_file
from tinlab import recipe
from tinlab.models import build
from tinlab.models.structure import smaller
place = Path(sys.argv[1])
model = build(recipe.Model(name="resnet18", width=8), 5)
smaller(model, json.loads((place / "structure.json").read_text()), image_size=32)
saved = load_file(place / "model.safetensors")
x = saved.pop("x")
del saved["logits"]
model.load_state_dict(saved)
with torch.no_grad():
    save_file({"logits": model.eval()(x)}, place / "again.safetensors")
"""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=True, timeout=100, env={**os.environ, **threads}
    )
    wanted = load_file(tmp_path / "model.safetensors")["logits"]
    assert torch.equal(load_file(tmp_path / "again.safetensors")["logits"], wanted)


def test_grouped_and_depthwise_convolutions():
    """Groups stay as many, with fewer channels in each; depthwise ones lose groups."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.Conv2d(12, 24, 3, groups=4), nn.ReLU(), nn.Conv2d(24, 24, 3, groups=24),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    again = deepcopy(model)
    found = cut(model, 0.5, "6", image_size=9)
    assert model[1].groups == 4
    assert model[3].groups == model[3].out_channels == model[1].out_channels < 24
    smaller(again, found.structure, image_size=9).load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(again(x), model(x))


class Shuffled(nn.Module):
    """Reads its channels by number, in a way that the library does not follow."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(x).roll(1, dims=1)
        return self.fc(self.mix(x).mean((2, 3)))


class Indexed(Shuffled):
    def forward(self, x):
        return self.fc(self.mix(self.conv(x)[:, torch.arange(8)]).mean((2, 3)))


@pytest.mark.parametrize("kind", [Shuffled, Indexed])
def test_a_network_whose_channels_are_mixed_up_is_refused_and_left_alone(kind):
    torch.manual_seed(0)
    model = kind()
    before = deepcopy(model.state_dict())
    with pytest.raises(TinlabError, match=r"torch-pruning (does not|cannot) follow its channels"):
        cut(model, 0.5, "fc", image_size=4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"share": 0.95}, r"from 0 to 0\.9, not 0\.95"),
        ({"share": -0.5}, "from 0 to"),
        ({"share": float("nan")}, "from 0 to"),
        ({"multiple": 0}, "1 or more"),
        ({"scope": "all"}, "layer or network, not 'all'"),
        ({"leave": ("x",)}, r"^leave\.0: no layer"),
        ({"leave": ("*",)}, "no channels to take out"),
    ],
)
def test_bad_input_is_refused(words, said):
    with pytest.raises(TinlabError, match=said):
        cut(convolutional(), **{"share": 0.5, "classifier": "5", "image_size": 8, **words})


def test_without_the_library_the_mend_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(TinlabError, match=r"pip install 'tinlab\[prune\]'"):
        prune_channels(convolutional(), 0.5, classifier="5", image_size=8)


def test_the_generator_is_left_as_it_was():
    torch.manual_seed(3)
    wanted = torch.rand(())
    model = convolutional()
    torch.manual_seed(3)
    cut(model, 0.3, "5", image_size=8)
    assert torch.rand(()) == wanted
