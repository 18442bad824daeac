import pytest
import torch
from exercise import (
    build,
    outputs,
    parameters_and_multiply_adds,
    places_of_dropout,
)
from torch import nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models.standard import NETWORKS
from tinlab.models.zoo import import_torchvision

VGG16_PAIRS = [
    # (grid at 64x64, inputs, outputs) of the thirteen convolutions of table 1, column D.
    (64, 3, 64), (64, 64, 64),
    (32, 64, 128), (32, 128, 128),
    (16, 128, 256), (16, 256, 256), (16, 256, 256),
    (8, 256, 512), (8, 512, 512), (8, 512, 512),
    (4, 512, 512), (4, 512, 512), (4, 512, 512),
]  # fmt: skip
ALEXNET_LAST = (
    5 * 5 * 64 * 192 + 192 + 3 * 3 * 192 * 384 + 384 + 3 * 3 * 384 * 256 + 256 + 3 * 3 * 256 * 256 + 256
    + 6 * 6 * 256 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 200 + 200
)  # fmt: skip
ALEXNET_LAST_MULTIPLY_ADDS = (
    28**2 * 5 * 5 * 64 * 192
    + 13**2 * (3 * 3 * 192 * 384 + 3 * 3 * 384 * 256 + 3 * 3 * 256 * 256)
    + 6 * 6 * 256 * 4096 + 4096 * 4096 + 4096 * 200
)  # fmt: skip
# SqueezeNet's table 1: (grid at 64x64, inputs, squeeze, each half of expand).
FIRES = [
    (14, 96, 16, 64), (14, 128, 16, 64), (14, 128, 32, 128),
    (7, 256, 32, 128), (7, 256, 48, 192), (7, 384, 48, 192), (7, 384, 64, 256),
    (3, 512, 64, 256),
]  # fmt: skip
# GoogLeNet's table 1: (grid at 64x64, inputs, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection).
INCEPTIONS = [
    (8, 192, 64, 96, 128, 16, 32, 32), (8, 256, 128, 128, 192, 32, 96, 64),
    (4, 480, 192, 96, 208, 16, 48, 64), (4, 512, 160, 112, 224, 24, 64, 64),
    (4, 512, 128, 128, 256, 24, 64, 64), (4, 512, 112, 144, 288, 32, 64, 64),
    (4, 528, 256, 160, 320, 32, 128, 128),
    (2, 832, 256, 160, 320, 32, 128, 128), (2, 832, 384, 192, 384, 48, 128, 128),
]  # fmt: skip


def torchvisions(name, classes=200, **options):
    return getattr(import_torchvision().models, name)(num_classes=classes, **options)


@pytest.mark.parametrize("kernel", [11, 9, 7])
def test_alexnet_counted_by_hand(kernel):
    parameters, multiply_adds = parameters_and_multiply_adds(NETWORKS, "alexnet", first_kernel=kernel)
    assert parameters == kernel**2 * 3 * 64 + 64 + ALEXNET_LAST
    assert multiply_adds == 58**2 * kernel**2 * 3 * 64 + ALEXNET_LAST_MULTIPLY_ADDS


def test_vgg16_counted_by_hand():
    parameters, multiply_adds = parameters_and_multiply_adds(NETWORKS, "vgg16")
    hidden = 2 * 2 * 512 * 4096 + 4096 * 4096 + 4096 * 200
    assert parameters == sum(9 * a * b + b for _, a, b in VGG16_PAIRS) + hidden + 4096 + 4096 + 200
    assert multiply_adds == sum(grid**2 * 9 * a * b for grid, a, b in VGG16_PAIRS) + hidden


def test_squeezenet_counted_by_hand():
    parameters, multiply_adds = parameters_and_multiply_adds(NETWORKS, "squeezenet")
    weights = [a * s + s * e + 9 * s * e for _, a, s, e in FIRES]
    biases = sum(s + 2 * e for _, _, s, e in FIRES)
    assert parameters == 7 * 7 * 3 * 96 + 96 + sum(weights) + biases + 512 * 200 + 200
    fires = sum(grid**2 * count for (grid, *_), count in zip(FIRES, weights, strict=True))
    assert multiply_adds == 29**2 * 7 * 7 * 3 * 96 + fires + 3**2 * 512 * 200


def test_googlenet_counted_by_hand():
    parameters, multiply_adds = parameters_and_multiply_adds(NETWORKS, "googlenet")
    # 3x3 where the paper has 5x5, as torchvision's weights were trained.
    weights = [a * one + a * r3 + 9 * r3 * t + a * r5 + 9 * r5 * f + a * p
               for _, a, one, r3, t, r5, f, p in INCEPTIONS]  # fmt: skip
    norms = sum(2 * sum(channels) for _, _, *channels in INCEPTIONS) + 2 * (64 + 64 + 192)
    stem = [(32, 7 * 7 * 3 * 64), (16, 64 * 64), (16, 3 * 3 * 64 * 192)]
    assert parameters == sum(count for _, count in stem) + sum(weights) + norms + 1024 * 200 + 200
    inceptions = sum(grid**2 * count for (grid, *_), count in zip(INCEPTIONS, weights, strict=True))
    assert multiply_adds == sum(grid**2 * count for grid, count in stem) + inceptions + 1024 * 200


@pytest.mark.parametrize(
    ("name", "options", "weights"),
    [
        ("googlenet", {"aux_logits": False, "init_weights": True, "transform_input": True}, None),
        ("googlenet", {"aux_logits": False, "init_weights": True, "transform_input": True}, "imagenet"),
        ("squeezenet", {}, None),
    ],
)
def test_googlenet_and_squeezenet_are_torchvisions(name, options, weights):
    torch.manual_seed(0)
    ours = build(NETWORKS, name, classes=7, weights=weights).eval()
    theirs = torchvisions(NETWORKS[name].imagenet, 7, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert theirs(x).std() > 0
        assert torch.equal(ours(x), theirs(x))


@pytest.fixture(scope="module")
def both_vgg16():
    torch.manual_seed(0)
    return build(NETWORKS, "vgg16", classes=7), torchvisions("vgg16", 7, init_weights=False)


def test_vgg16s_convolutions_are_torchvisions(both_vgg16):
    ours, theirs = both_vgg16
    before = {key: value.clone() for key, value in ours.features.state_dict().items()}
    ours.features.load_state_dict(theirs.features.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = ours.features(x)
        assert features.shape == (1, 512, 2, 2)
        assert torch.equal(features, theirs.features(x))
    ours.features.load_state_dict(before)


def test_of_vgg16s_weights_only_the_first_fully_connected_layers_do_not_fit(both_vgg16):
    ours, theirs = ({key: value.shape for key, value in m.state_dict().items()} for m in both_vgg16)
    assert list(ours) == list(theirs)
    assert [key for key in ours if ours[key] != theirs[key]] == ["classifier.0.weight"]
    assert ours["classifier.0.weight"] == (4096, 2048)


def test_vgg16_is_drawn_as_torchvision_draws_it(both_vgg16):
    model = both_vgg16[0]
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert not module.bias.any(), name
    assert model.features[28].weight.var().item() == pytest.approx(2 / (3 * 3 * 512), rel=0.02)
    assert model.features[5].weight.var().item() == pytest.approx(2 / (3 * 3 * 128), rel=0.05)
    assert model.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert model.classifier[6].weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_vgg16_built_without_memory_has_none():
    with torch.device("meta"):
        assert {p.device.type for p in build(NETWORKS, "vgg16").parameters()} == {"meta"}


def test_alexnets_weights_are_torchvisions():
    ours, theirs = build(NETWORKS, "alexnet"), torchvisions("alexnet")
    theirs_shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == theirs_shapes
    ours.load_state_dict(theirs.state_dict())
    # At its own stride the first convolution is torchvision's; the one here gives 4 times as many places.
    x = torch.randn(1, 3, 67, 67)
    with torch.no_grad():
        assert torch.allclose(ours.features[0](x)[:, :, ::4, ::4], theirs.features[0](x), atol=1e-5)


@pytest.mark.parametrize("kernel", [11, 9, 7])
def test_alexnets_grids_are_those_of_224_pixels(kernel):
    with torch.device("meta"):
        ours, theirs = build(NETWORKS, "alexnet", first_kernel=kernel), torchvisions("alexnet")
        pools = ["features.5", "features.12", "avgpool"]
        assert [y.shape[-1] for y in outputs(ours, ["features.0", *pools]).values()] == [58, 13, 6, 6]
        assert [y.shape[-1] for y in outputs(theirs, pools, size=224).values()] == [13, 6, 6]


def test_imagenets_weights_go_with_11x11_filters_alone():
    with pytest.raises(TinlabError, match=r"model\.first_kernel: .* 11x11, not 7x7; take 11"):
        build(NETWORKS, "alexnet", weights="imagenet", first_kernel=7)
    with torch.device("meta"):
        build(NETWORKS, "alexnet", weights="imagenet", first_kernel=11)
        build(NETWORKS, "alexnet", weights="run", first_kernel=7)


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision_has_the_weights_named(name):
    assert import_torchvision().models.get_model_weights(NETWORKS[name].imagenet).IMAGENET1K_V1


@pytest.mark.parametrize(
    ("name", "asked", "places"),
    [
        ("alexnet", (0.1, 0.2), {"classifier.0": 0.1, "classifier.3": 0.2}),
        ("vgg16", (0.75, 0.7), {"classifier.2": 0.75, "classifier.5": 0.7}),
        ("googlenet", (0.4,), {"dropout": 0.4}),
        ("squeezenet", (0.3,), {"classifier.0": 0.3}),
    ],
)
def test_dropout_goes_to_torchvisions_places(name, asked, places):
    with torch.device("meta"):
        assert places_of_dropout(build(NETWORKS, name, dropout=asked)) == places
        options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        theirs = places_of_dropout(torchvisions(NETWORKS[name].imagenet, **options))
        assert places_of_dropout(build(NETWORKS, name)) == theirs


def test_dropout_zeroes_in_training():
    model = build(NETWORKS, "squeezenet", classes=3, dropout=0.5).train()
    shares = []
    model.classifier[0].register_forward_hook(
        lambda _module, inputs, output: shares.append(
            ((output == 0) & (inputs[0] > 0)).sum() / (inputs[0] > 0).sum()
        )
    )
    torch.manual_seed(0)
    model(torch.randn(8, 3, 64, 64))
    assert shares[0].item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("name", "kept"), [("alexnet", 0), ("vgg16", 0), ("squeezenet", 1)])
def test_the_activation_can_be_another(name, kept):
    with torch.device("meta"):
        theirs = torchvisions(NETWORKS[name].imagenet)
        count = sum(isinstance(m, nn.ReLU) for m in theirs.modules())
        model = build(NETWORKS, name, activation="elu")
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == kept
    assert sum(isinstance(m, nn.ELU) for m in model.modules()) == count - kept


def test_a_hook_keeps_what_a_layer_gave(both_vgg16):
    """A penalty on activations must not see what the next layer made of them."""
    for model, name in ((both_vgg16[0], "features.28"), (build(NETWORKS, "squeezenet"), "classifier.1")):
        assert (outputs(model, [name])[name] < 0).any()


def test_a_knob_that_a_network_does_not_have_is_refused():
    with pytest.raises(TinlabError, match=r"model\.activation: googlenet has none; it has dropout"):
        NETWORKS["googlenet"].resolve(recipe.Model(name="googlenet", activation="elu"))
    with pytest.raises(TinlabError, match=r"model\.width: vgg16 has none"):
        NETWORKS["vgg16"].resolve(recipe.Model(name="vgg16", width=32))
    with pytest.raises(TinlabError, match=r"model\.first_kernel: squeezenet has none"):
        NETWORKS["squeezenet"].resolve(recipe.Model(name="squeezenet", first_kernel=7))
