import importlib
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models.depth import count_blocks, expected_blocks
from tinlab.models.trinext import (
    NETWORKS,
    Attention,
    Convolution,
    GlobalResponseNorm,
    Mlp,
    TriNeXt,
    attend,
    attention_block,
    convolution_block,
)
from tinlab.models.zoo import import_torchvision

import_torchvision()  # timm looks into it
timm_grn = importlib.import_module("timm.layers.grn")
timm_mlp = importlib.import_module("timm.layers.mlp")
timm_convnext = importlib.import_module("timm.models.convnext")

KNOBS = recipe.Model(name="trinext_small", activation="gelu")


def build(name="trinext_small", classes=5, **knobs):
    network = NETWORKS[name]
    return network.build(network.resolve(recipe.Model(name=name, **knobs)), classes)


SHAPES = {
    # name: (width, convolution blocks of each stage, attention blocks of the last)
    "trinext_small": (40, (2, 4, 0), 3),
    "trinext": (64, (3, 5, 0), 5),
    "trinext_large": (96, (3, 6, 0), 5),
    "trinext_conv": (64, (3, 6, 7), 0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_multiplications_counted_by_hand(name):
    width, convolutions, attentions = SHAPES[name]
    parameters = 3 * 9 * width + 2 * width  # 3x3 from three colours; batch norm
    products = 3 * 9 * width * 32 * 32
    for stage, count in enumerate(convolutions):
        c, places = width * 2**stage, (32 // 2**stage) ** 2
        if stage > 0:
            half = c // 2
            parameters += 2 * half + 9 * half * c + c  # batch norm; 3x3 and biases
            products += 9 * half * c * places
        depthwise, mlp = 9 * c, 2 * c * 4 * c
        # Besides: batch norm, biases of the mlp, global response norm, scale.
        parameters += count * (depthwise + mlp + 2 * c + (4 * c + c) + 2 * 4 * c + c)
        products += count * (depthwise + mlp) * places
        if stage == 2:
            projections = 4 * c * c  # query, key, value and the one after; all heads together are c wide
            parameters += attentions * (projections + 4 * c + depthwise + c + 2 * c + c)
            parameters += attentions * (mlp + 2 * c + (4 * c + c) + 2 * 4 * c + c)
            products += attentions * ((projections + depthwise + mlp) * places + 2 * places * places * c)
    parameters += 2 * c + 200 * c + 200
    products += 200 * c

    model = build(name, classes=200).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert NETWORKS[name].summary.endswith(f"{parameters / 1e6:.1f} million parameters")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    assert counter.get_total_flops() == 2 * products


def test_three_stages_of_32_16_and_8_pixels():
    model = build(width=8)
    shapes = []
    for stage in model.stages:
        stage[-1].register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    model(torch.zeros(2, 3, 64, 64))
    assert shapes == [(2, 32, 32, 8), (2, 16, 16, 16), (2, 8, 8, 32)]


def random_grn(channels):
    grn = GlobalResponseNorm(channels)
    nn.init.normal_(grn.weight)
    nn.init.normal_(grn.bias)
    return grn


def test_global_response_norm_by_its_formula():
    torch.manual_seed(0)
    grn = random_grn(3)
    x = torch.randn(2, 4, 5, 3)
    y = grn(x)
    for sample in range(2):
        lengths = [math.sqrt(sum(v * v for v in x[sample, ..., c].flatten().tolist())) for c in range(3)]
        for c in range(3):
            relative = lengths[c] / (sum(lengths) / 3 + 1e-6)
            expected = x[sample, ..., c] * (1 + grn.weight[c] * relative) + grn.bias[c]
            assert torch.allclose(y[sample, ..., c], expected, atol=1e-5)


def test_global_response_norm_is_timms():
    torch.manual_seed(0)
    ours, theirs = random_grn(8), timm_grn.GlobalResponseNorm(8)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 5, 8, requires_grad=True)
    seed = torch.randn(2, 4, 5, 8)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    (mine,) = torch.autograd.grad(ours(x), x, seed)
    (other,) = torch.autograd.grad(theirs(x), x, seed)
    assert torch.allclose(mine, other, atol=1e-5)


def test_global_response_norm_starts_as_the_identity_and_has_a_slope_at_zero():
    x = torch.randn(2, 4, 4, 3)
    assert torch.equal(GlobalResponseNorm(3)(x), x)
    zeros = torch.zeros(2, 4, 4, 3, requires_grad=True)
    random_grn(3)(zeros).sum().backward()
    assert torch.isfinite(zeros.grad).all()


def test_global_response_norm_in_bfloat16():
    torch.manual_seed(0)
    grn = random_grn(8)
    x = torch.randn(2, 32, 32, 8)
    y = grn(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), grn(x), rtol=0.02, atol=0.03)


def test_the_mlp_is_timms():
    torch.manual_seed(0)
    ours, theirs = Mlp(6, KNOBS), timm_mlp.GlobalResponseNormMlp(6, 24)
    nn.init.normal_(ours.grn.weight)
    pairs = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(pairs))
    x = torch.randn(2, 4, 5, 6)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_a_convolution_block_is_timms_convnext_block():
    torch.manual_seed(0)
    (ours,) = convolution_block(6, KNOBS, iter([1.0]))
    theirs = timm_convnext.ConvNeXtBlock(
        6,
        kernel_size=3,
        conv_mlp=True,
        conv_bias=False,
        use_grn=True,
        ls_init_value=0.1,
        norm_layer=nn.BatchNorm2d,
    )
    nn.init.normal_(ours.branch.mlp.grn.weight)
    nn.init.normal_(ours.branch.norm.bias)
    renamed = {
        "gamma": "scale",
        "conv_dw": "branch.depthwise",
        "norm": "branch.norm",
        "mlp.fc1": "branch.mlp.expand",
        "mlp.grn": "branch.mlp.grn",
        "mlp.fc2": "branch.mlp.project",
    }
    values = ours.state_dict()
    assert len(theirs.state_dict()) == len(values)
    for name, value in theirs.state_dict().items():
        layer = name if name in renamed else name.rpartition(".")[0]
        value.copy_(values[name.replace(layer, renamed[layer], 1)].view_as(value))
    x = torch.randn(2, 6, 8, 8)
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        y = ours(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert torch.allclose(y, theirs(x), atol=1e-5)


def test_attention_is_torchs_where_the_convolution_is_zero():
    torch.manual_seed(0)
    ours = Attention(64)
    nn.init.normal_(ours.query_key.bias)
    nn.init.zeros_(ours.local.weight)
    nn.init.zeros_(ours.local.bias)
    theirs = nn.MultiheadAttention(64, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query_key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query_key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.project.state_dict())
    x = torch.randn(2, 3, 4, 64)
    tokens = x.flatten(1, 2)
    expected = theirs(tokens, tokens, tokens, need_weights=False)[0].unflatten(1, (3, 4))
    assert torch.allclose(ours(x), expected, atol=1e-5)


def test_attention_tells_places_apart_by_its_convolution():
    torch.manual_seed(0)
    attention = Attention(32)
    x = torch.randn(1, 4, 4, 32)
    moved = torch.flip(x, dims=(1,))
    assert not torch.allclose(attention(moved), torch.flip(attention(x), dims=(1,)), atol=1e-3)
    nn.init.zeros_(attention.local.weight)
    assert torch.allclose(attention(moved), torch.flip(attention(x), dims=(1,)), atol=1e-5)


def test_attention_on_a_cpu_is_the_fused_one():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 16, 8)
    expected = nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(attend(query, key, value), expected, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("stem", ["patch", "patch2x2", "small"])
def test_every_network_runs_learns_and_can_be_saved(name, stem):
    torch.manual_seed(0)
    knobs = {"width": 8, "stem": stem, "final_survival": 0.5, "dropout": 0.1}
    model = build(name, **knobs)
    x, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    logits = model(x)
    assert logits.shape == (4, 5)
    nn.functional.cross_entropy(logits, y).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert torch.isfinite(p.grad).all(), key
        assert p.grad.abs().sum() > 0, key
    other = build(name, **knobs)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x), model.eval()(x))


@pytest.mark.parametrize("size", [16, 31, 32, 64, 96])
def test_any_size_of_image(size):
    for stem in ("patch", "patch2x2"):
        model = build(width=4, stem=stem).eval()
        assert model(torch.randn(1, 3, size, size)).shape == (1, 5)


@pytest.mark.parametrize("activation", ["relu", "silu", "elu"])
def test_other_activations(activation):
    model = build(width=4, activation=activation)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_stem_that_it_does_not_have_is_refused():
    with pytest.raises(TinlabError, match="has no stem 'imagenet'; take patch, patch2x2, small"):
        build(stem="imagenet")


def test_scales_and_shifts_have_one_dimension():
    # tinlab.training.optimizer decays what has more.
    for key, p in build(width=8).named_parameters():
        matrix = key.endswith("weight") and "norm" not in key and "grn" not in key
        assert (p.ndim > 1) == matrix or ".downsamplings" in f".{key}", key


def test_weights_are_drawn_as_stated():
    torch.manual_seed(0)
    model = build("trinext", classes=200)
    expected = {
        "stem": 1 / 27,
        "stages.0.0.branch.depthwise": 1 / 9,
        "stages.0.0.branch.mlp.expand": 1 / 64,
        "stages.1.0.branch.mlp.project": 1 / 512,
        "downsamplings.1.1": 1 / 1152,
        "stages.2.0.branch.attention.query_key": 1 / 256,
        "head": 0.02**2,
    }
    for name, variance in expected.items():
        layer = model.get_submodule(name)
        # 576 values at the least: the standard error of their variance is 4%.
        assert layer.weight.var().item() == pytest.approx(variance, rel=0.15), name
        assert layer.bias is None or layer.bias.abs().max() == 0, name
        assert layer.weight.abs().max() <= 2.3 * math.sqrt(variance), name


def test_nothing_is_copied_on_the_way_to_a_convolution():
    model = build(width=8).to(memory_format=torch.channels_last)
    seen = []

    def look(module, inputs):
        seen.append(inputs[0].permute(0, 3, 1, 2).is_contiguous(memory_format=torch.channels_last))

    for module in model.modules():
        if isinstance(module, Convolution):
            module.register_forward_pre_hook(look)
    model(torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert len(seen) == 2 + 4 + 3 + 2
    assert all(seen)


def test_bfloat16_is_close_to_float32():
    torch.manual_seed(0)
    model = build(width=8, final_survival=0.5)
    x = torch.randn(4, 3, 32, 32)
    torch.manual_seed(1)
    exact = model(x)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        close = model(x)
        loss = close.float().square().sum()
    loss.backward()
    assert torch.allclose(close.float(), exact, atol=0.05 * exact.abs().max().item())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_dropped_samples_are_not_computed():
    torch.manual_seed(0)
    model = build(width=4, final_survival=0.5)
    rows = []
    branches = [residual.branch for stage in model.stages for residual in stage]
    for branch in branches:
        branch.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    model(torch.zeros(12, 3, 16, 16))
    # 2 + 4 convolution blocks and 3 of attention with two branches each: p = 1 - l / 12 * 0.5.
    assert rows == [round(12 * (1 - branch / 24)) for branch in range(1, 13)]
    assert expected_blocks(model) == pytest.approx(12 - 0.5 * 13 / 2)
    assert count_blocks(model) == (pytest.approx(sum(rows) / 12), 1)
    rows.clear()
    model.eval()(torch.zeros(12, 3, 16, 16))
    assert rows == [12] * 12
    assert count_blocks(model) == (0, 0)


def test_a_block_in_evaluation_is_its_mean_in_training():
    torch.manual_seed(0)
    mix, _ = attention_block(32, KNOBS, iter([0.5, 0.5]))
    x = torch.randn(2, 2, 2, 32)
    one, other = torch.tensor([0]), torch.tensor([1])
    mean = (mix(x, one) + mix(x, other)) / 2  # of two samples one survives: these are all the draws
    assert torch.allclose(mean, mix.eval()(x), atol=1e-6)


def test_the_seed_decides_which_samples_survive():
    torch.manual_seed(0)
    model = build(width=4, final_survival=0.2)
    x = torch.randn(6, 3, 16, 16)

    def run(seed):
        torch.manual_seed(seed)
        return model(x)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_it_can_be_compiled():
    torch.manual_seed(0)
    knobs = recipe.Model(width=4, stem="patch", activation="gelu", final_survival=0.5, dropout=0.0)
    model = TriNeXt((1, 1, 1), True, knobs, 5)
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(4, 3, 16, 16)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    got = compiled(x)
    assert torch.allclose(got, expected, atol=1e-4)
    got.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert count_blocks(model)[1] == 2
