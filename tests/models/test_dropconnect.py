import itertools

import pytest
import torch
from torch import nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import build, dropconnect
from tinlab.models.dropconnect import DropConnectLinear, add_dropconnect, images_per_mask


def layer(inputs=30, outputs=20, rate=0.3, bias=True):
    torch.manual_seed(0)
    return DropConnectLinear(nn.Linear(inputs, outputs, bias=bias), rate)


def effective(masked, copies=1):
    """The weights and biases that `copies` images meet in a training step: (copies, outputs, inputs + 1)."""
    inputs = masked.in_features
    probes = torch.cat([torch.eye(inputs), torch.zeros(1, inputs)])  # (inputs + 1, inputs)
    with torch.no_grad():
        outputs = masked(probes.expand(copies, -1, -1))  # (copies, inputs + 1, outputs)
    weights = outputs[:, :-1] - outputs[:, -1:]
    return torch.cat([weights, outputs[:, -1:]], dim=1).mT


def test_drops_the_share_and_scales_the_rest():
    masked = layer(inputs=200, outputs=300)
    found = effective(masked)[0]
    with torch.no_grad():
        full = torch.cat([masked.weight, masked.bias[:, None]], dim=1)
    kept = found.abs() > 1e-6
    # 60,300 draws: a standard error of 0.002 for weights, and of 0.026 for the 300 biases.
    assert kept[:, :-1].float().mean().item() == pytest.approx(0.7, abs=0.01)
    assert kept[:, -1].float().mean().item() == pytest.approx(0.7, abs=0.13)
    assert torch.allclose(found[kept], full[kept] / 0.7, atol=1e-5)


def test_each_example_has_a_mask_of_its_own_where_there_is_room(monkeypatch):
    masked = layer()
    dropped = effective(masked, copies=6).abs() < 1e-6
    assert len({tuple(mask.flatten().tolist()) for mask in dropped}) == 6
    monkeypatch.setattr(dropconnect, "MASKED_WEIGHTS", 3 * 600)
    dropped = effective(masked, copies=7).abs() < 1e-6  # 3 masks: images 0 to 2, 3 to 5, and 6
    same = [torch.equal(one, other) for one, other in itertools.pairwise(dropped)]
    assert same == [True, True, False, True, True, False]


def test_images_per_mask():
    assert images_per_mask(128, 65_536) == 1
    assert images_per_mask(128, 512 * 200) == 2
    assert images_per_mask(128, 1024 * 1024) == 16
    assert images_per_mask(128, 25_088 * 4096) == 128
    assert images_per_mask(1, 10) == 1


@pytest.mark.parametrize("shape", [(30,), (4, 30), (2, 3, 30)])
def test_the_mean_over_masks_is_the_output_in_evaluation(shape):
    masked = layer()
    x = torch.randn(*shape)
    with torch.no_grad():
        draws = masked(x.expand(4000, *shape))
        assert draws.shape == (4000, *shape[:-1], 20)
        error = draws.std(dim=0) / 4000**0.5
        expected = masked.eval()(x)
    # Up to 120 outputs within five standard errors.
    assert ((draws.mean(dim=0) - expected).abs() < 5 * error + 1e-6).all()


def test_evaluation_is_the_plain_layer():
    masked = layer().eval()
    x = torch.randn(5, 30)
    assert torch.equal(masked(x), nn.functional.linear(x, masked.weight, masked.bias))
    assert torch.equal(layer(rate=0.0)(x), nn.functional.linear(x, masked.weight, masked.bias))


def test_gradient_reaches_only_kept_weights(monkeypatch):
    monkeypatch.setattr(dropconnect, "MASKED_WEIGHTS", 1)  # one mask
    masked = layer()
    torch.manual_seed(1)
    kept = effective(masked)[0].abs() > 1e-6
    torch.manual_seed(1)
    x = torch.randn(8, 30, generator=torch.Generator().manual_seed(5))
    masked(x).sum().backward()
    # d(sum of outputs)/d(weight oi) is the sum of input i over the images, scaled where it is kept.
    assert torch.allclose(masked.weight.grad, kept[:, :-1] * x.sum(dim=0) / 0.7, atol=1e-4)
    assert torch.allclose(masked.bias.grad, kept[:, -1] * 8 / 0.7, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_names_and_generator_are_left_alone(bias):
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(6, 4, bias=bias), nn.ReLU()), "b": nn.Linear(4, 2)})
    before = dict(model.named_parameters())
    state = torch.get_rng_state()
    add_dropconnect(model, (recipe.DropConnect(layers="a.0"), recipe.DropConnect(layers="b", rate=0.1)))
    assert torch.equal(torch.get_rng_state(), state)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert isinstance(model["a"][0], DropConnectLinear)
    assert (model["a"][0].rate, model["b"].rate) == (0.5, 0.1)
    assert model["a"][0](torch.randn(3, 6)).shape == (3, 4)


def test_a_network_with_it_learns_and_repeats_itself():
    model = build(recipe.Model(width=4), 5)
    add_dropconnect(model, (recipe.DropConnect(layers="fc"),))
    model.eval()
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(model(x), model(x))
    model.fc.train()
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(model(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    outputs[0].sum().backward()
    assert model.conv1.weight.grad.abs().sum() > 0


def test_under_autocast():
    masked = layer()
    x = torch.randn(8, 30)
    torch.manual_seed(1)
    exact = masked(x)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = masked(x)
    assert rounded.dtype == torch.bfloat16
    assert torch.allclose(rounded.float(), exact, atol=0.05)  # 30 products of bf16's 8 bits
    rounded.float().sum().backward()
    assert masked.weight.grad.dtype == torch.float32


def test_compiles_into_one_graph():
    masked = layer()
    compiled = torch.compile(masked, backend="aot_eager", fullgraph=True)
    output = compiled(torch.randn(8, 30))
    output.sum().backward()
    assert output.shape == (8, 20)
    assert masked.weight.grad.any()
    assert torch.equal(masked.eval()(torch.ones(2, 30)), compiled(torch.ones(2, 30)))


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["fcc"], r"^model\.dropconnect\.0\.layers: no layer .* 'fcc'; it has fc"),
        (
            ["fc", "conv1"],
            r"^model\.dropconnect\.1\.layers: 'conv1' is a Convolution; DropConnect goes on a Linear",
        ),
        (["fc", "f*"], r"^model\.dropconnect\.1\.layers: 'fc' is a DropConnectLinear"),
    ],
)
def test_what_it_refuses(patterns, message):
    model = build(recipe.Model(width=4), 5)
    with pytest.raises(TinlabError, match=message):
        add_dropconnect(model, [recipe.DropConnect(layers=pattern) for pattern in patterns])


def test_attentions_own_linear_is_refused():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 1)})
    with pytest.raises(TinlabError, match="NonDynamicallyQuantizableLinear"):
        add_dropconnect(model, [recipe.DropConnect(layers="*out_proj")])
