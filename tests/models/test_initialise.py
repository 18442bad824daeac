import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import build
from tinlab.models.activation import ACTIVATIONS
from tinlab.models.dropconnect import add_dropconnect
from tinlab.models.initialise import (
    fans,
    gain,
    initialise,
    random_walk_gain,
    scale_to_unit_variance,
    scaled_after,
)
from tinlab.models.zoo import import_torchvision

KINDS = [
    recipe.He(),
    recipe.He(fan="out"),
    recipe.Xavier(),
    recipe.Xavier(distribution="normal"),
    recipe.Gaussian(),
    recipe.Orthogonal(),
    recipe.RandomWalk(),
    recipe.Lsuv(),
]


def drawn(layer, init, activation="relu", seed=0, images=None):
    """`layer`'s weight drawn as in the middle of a network."""
    torch.manual_seed(seed)
    model = nn.Sequential(layer, nn.Linear(4, 4))
    initialise(model, init, activation, images)
    return layer.weight.detach()


def assert_moments(weight, mean, variance, kurtosis=3.0):
    """Within five standard errors: var / n of the mean, (kurtosis - 1) var^2 / n of the variance."""
    n = weight.numel()
    assert weight.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    error = variance * math.sqrt((kurtosis - 1) / n)
    assert weight.var().item() == pytest.approx(variance, abs=5 * error)


@pytest.mark.parametrize(
    ("layer", "fan_in", "fan_out"),
    [
        (nn.Linear(300, 500), 300, 500),
        (nn.Conv2d(40, 60, 3, stride=2), 360, 540),
        (nn.Conv2d(40, 80, 3, groups=4), 90, 180),
        (nn.Conv2d(900, 900, 7, groups=900), 49, 49),
        (nn.Conv2d(64, 128, (1, 5)), 320, 640),
    ],
)
def test_moments_are_those_of_theory(layer, fan_in, fan_out):
    assert fans(layer) == (fan_in, fan_out)
    assert_moments(drawn(layer, recipe.He()), 0, 2 / fan_in)
    assert_moments(drawn(layer, recipe.He(fan="out")), 0, 2 / fan_out)
    glorot = 2 / (fan_in + fan_out)
    assert_moments(drawn(layer, recipe.Xavier(distribution="normal")), 0, glorot)
    uniform = drawn(layer, recipe.Xavier())
    assert_moments(uniform, 0, glorot, kurtosis=1.8)
    assert uniform.abs().max() <= math.sqrt(3 * glorot)
    assert_moments(drawn(layer, recipe.Gaussian(mean=0.3, variance=0.1)), 0.3, 0.1)
    sussillo = 2 * math.exp(2.4 / (fan_in - 2.4)) / fan_in
    assert_moments(drawn(layer, recipe.RandomWalk()), 0, sussillo)


def test_fans_are_torchs_without_groups():
    for layer in (nn.Linear(3, 5), nn.Conv2d(4, 6, (3, 5))):
        assert fans(layer) == nn.init._calculate_fan_in_and_fan_out(layer.weight)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gains_are_the_integrals(name):
    f = ACTIVATIONS[name](False).double()

    def integrand(z):
        return f(torch.tensor(z, dtype=torch.float64)).item() ** 2 * norm.pdf(z)

    square = quad(integrand, -10, 0)[0] + quad(integrand, 0, 10)[0]
    assert gain(name) == pytest.approx(1 / math.sqrt(square), rel=1e-6)


def test_gains_that_papers_state():
    assert gain("relu") == pytest.approx(nn.init.calculate_gain("relu"), rel=1e-6)
    assert gain("leaky_relu") == pytest.approx(nn.init.calculate_gain("leaky_relu", 0.01), rel=1e-6)
    assert gain("selu") == pytest.approx(1, rel=1e-6)


def test_random_walks_own_formula_meets_the_papers():
    assert random_walk_gain(None, 100) == math.exp(0.005)
    assert random_walk_gain("relu", 3) == random_walk_gain("relu", 6) == math.sqrt(2) * math.exp(1 / 3)
    # A leaky ReLU of slope 0.01 is a ReLU but for 1 in 10,000; the paper's fit is within 5% of the expansion.
    ours, papers = random_walk_gain("leaky_relu", 200), random_walk_gain("relu", 200)
    assert ours == pytest.approx(papers, rel=1e-3)
    assert math.log(ours / gain("leaky_relu")) == pytest.approx(math.log(papers / gain("relu")), rel=0.05)


@pytest.mark.parametrize(
    "layer", [nn.Linear(30, 20), nn.Linear(20, 30), nn.Conv2d(4, 50, 3), nn.Conv2d(4, 8, 3)]
)
def test_orthogonal_rows_or_columns(layer):
    matrix = drawn(layer, recipe.Orthogonal()).flatten(1)
    short = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    assert torch.allclose(short @ short.T, 2 * torch.eye(len(short)), atol=1e-5)
    assert drawn(layer, recipe.Orthogonal(gain=3)).flatten(1).norm() == pytest.approx(
        3 * math.sqrt(len(short)), rel=1e-5
    )


def test_orthogonal_groups_stand_alone():
    matrix = drawn(nn.Conv2d(12, 8, 2, groups=4), recipe.Orthogonal(gain=1)).view(4, 2, 12)
    assert torch.allclose(matrix @ matrix.mT, torch.eye(2).expand(4, 2, 2), atol=1e-5)
    depthwise = drawn(nn.Conv2d(50, 50, 3, groups=50), recipe.Orthogonal(gain=1))
    assert torch.allclose(depthwise.flatten(1).norm(dim=1), torch.ones(50), atol=1e-5)


def test_orthogonal_draws_have_no_preferred_sign():
    matrices = drawn(nn.Conv2d(1200, 1200, 1, groups=400), recipe.Orthogonal()).view(400, 3, 3)
    # Each entry's mean sign over 400 draws has a standard error of 0.05.
    assert matrices.sign().mean(dim=0).abs().max() < 0.25


def stack(width, layers, activation="relu"):
    """`layers` times a Linear and the activation, and one Linear on top."""
    parts = []
    for _ in range(layers):
        parts += [nn.Linear(width, width, bias=False), ACTIVATIONS[activation](False)]
    return nn.Sequential(*parts, nn.Linear(width, width, bias=False))


def gradient_drift(init, activation="relu", width=32, layers=60, seeds=12):
    """(mean, standard error) of the logarithm of how much longer the gradient is after `layers` layers."""
    logs = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = stack(width, layers, activation)
        initialise(model, init, activation)
        x = torch.randn(1, width)
        lengths = []
        for part in model:
            x = part(x)
            x.retain_grad()
            lengths.append(x)
        x.backward(torch.randn(1, width))
        logs.append(math.log(lengths[0].grad.norm() / lengths[-2].grad.norm()))
    logs = torch.tensor(logs)
    return logs.mean().item(), logs.std().item() / math.sqrt(seeds)


def test_random_walk_keeps_the_gradients_length_where_others_drift():
    mean, error = gradient_drift(recipe.RandomWalk())
    assert abs(mean) < 3.5 * error
    # The others' drift differs by 60 log(g / g of the random walk), on the same draws.
    own = math.log(random_walk_gain("relu", 32))
    for init, scale in [
        (recipe.He(), math.sqrt(2)),
        (recipe.Xavier(distribution="normal"), 1.0),
        (recipe.Gaussian(variance=0.1), math.sqrt(32 * 0.1)),
    ]:
        theirs, _ = gradient_drift(init)
        assert theirs - mean == pytest.approx(59 * (math.log(scale) - own), abs=0.01)
        assert abs(theirs) > 4 * error


def test_random_walk_generalises_to_leaky_relu():
    mean, error = gradient_drift(recipe.RandomWalk(), "leaky_relu")
    assert abs(mean) < 3.5 * error


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "selu"])
def test_he_keeps_the_size_of_activations_through_depth(name):
    torch.manual_seed(0)
    model = stack(512, 20, name)
    initialise(model, recipe.He(), name)
    with torch.no_grad():
        output = model[:-2](torch.randn(64, 512))  # before the last activation
    # Over 20 layers of 512 the logarithm of the mean square strays by sqrt(20 * 5 / 512) = 0.44.
    assert abs(math.log(output.square().mean())) < 3 * 0.44


def test_selu_brings_a_wrong_variance_back_to_one():
    torch.manual_seed(0)
    model = stack(512, 30, "selu")
    initialise(model, recipe.He(), "selu")
    with torch.no_grad():
        output = model[:-1](3 * torch.randn(128, 512))
    assert output.mean().item() == pytest.approx(0, abs=0.1)
    assert output.var().item() == pytest.approx(1, abs=0.15)


class Plain(nn.Module):
    """No norms; a layer used twice, one never, dropout, and in-place activations."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 5, stride=2)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.aside = nn.Linear(7, 7)
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(16, 40)
        self.fc2 = nn.Linear(40, 5)

    def forward(self, x):
        x = nn.functional.relu(self.depthwise(self.conv1(x)), inplace=True)
        x = nn.functional.relu(self.twice(nn.functional.relu(self.twice(x))))
        return self.fc2(nn.functional.relu(self.fc1(self.dropout(x.mean(dim=(2, 3))))))


def output_variances(model, images, training):
    """The variance of the first output of each layer, measured by a pass of its own, as in the paper."""
    found = {}

    def keep(layer, _, output):
        found.setdefault(layer, output.var(correction=0).item())

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    model.train(training)
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found


def test_lsuv_brings_every_layer_to_unit_variance():
    torch.manual_seed(0)
    images = 5 * torch.rand(16, 3, 16, 16) + 2
    model = Plain()
    initialise(model, recipe.Lsuv(tolerance=0.01), "relu", images)
    found = output_variances(model, images, training=False)
    assert len(found) == 5
    assert list(found.values()) == pytest.approx([1] * 5, abs=0.01)
    # A scaled orthogonal matrix is still one; what is not called keeps length 1.
    rows = model.fc2.weight.detach()
    assert torch.allclose(rows @ rows.T, (rows @ rows.T)[0, 0] * torch.eye(5), atol=1e-5)
    assert torch.allclose(model.aside.weight @ model.aside.weight.T, torch.eye(7), atol=1e-5)


def test_lsuv_on_a_resnet_with_everything_random():
    knobs = recipe.Model(width=8, stem="small", final_survival=0.5, dropout=0.5, zero_last_bn=True)
    torch.manual_seed(0)
    model = build(knobs, 5).train()
    add_dropconnect(model, (recipe.DropConnect(layers="fc"),))
    before = {name: value.clone() for name, value in model.named_buffers()}
    images = torch.randn(8, 3, 32, 32)
    initialise(model, recipe.Lsuv(tolerance=0.05), "relu", images)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(module.training for module in model.modules())
    assert all(not block.bn2.weight.any() for block in model.layer1)
    # Blocks, dropout and DropConnect off; batch norms by this batch's statistics, which they do not keep.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    found = output_variances(model, images, training=False)
    assert len(found) == 21
    assert list(found.values()) == pytest.approx([1] * 21, abs=0.05)


def test_lsuv_leaves_a_layer_within_the_tolerance_alone():
    torch.manual_seed(0)
    layer = nn.Linear(20, 20)
    images = torch.randn(50, 20)
    initialise(layer, recipe.Lsuv(tolerance=0.5), "relu", images)
    assert torch.allclose(layer.weight @ layer.weight.T, torch.eye(20), atol=1e-5)
    scale_to_unit_variance(layer, images, tolerance=1e-3)
    assert layer(images).var(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_lsuv_survives_images_that_are_all_alike():
    model = Plain()
    initialise(model, recipe.Lsuv(), "relu", torch.zeros(4, 3, 16, 16))
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("images", [None, torch.zeros(1, 3, 8, 8)])
def test_lsuv_asks_for_images(images):
    model = Plain()
    before = model.conv1.weight.clone()
    with pytest.raises(TinlabError, match=r"^model\.init: lsuv .* give it two or more"):
        initialise(model, recipe.Lsuv(), "relu", images)
    assert torch.equal(model.conv1.weight, before)


@pytest.mark.parametrize("init", KINDS, ids=lambda init: init.kind)
def test_seeds_reproduce(init):
    images = torch.randn(4, 3, 16, 16)
    states = []
    for seed in (1, 1, 2):
        model = Plain()
        torch.manual_seed(seed)
        initialise(model, init, "relu", images)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])
    assert all(not value.any() for name, value in states[0].items() if name.endswith("bias"))


def test_norms_keep_their_values():
    model = build(recipe.Model(width=8, zero_last_bn=True), 5)
    with torch.no_grad():
        model.bn1.weight.fill_(0.7)
        model.bn1.bias.fill_(0.3)
    initialise(model, recipe.He(), "relu")
    assert torch.equal(model.bn1.weight, torch.full((8,), 0.7))
    assert torch.equal(model.bn1.bias, torch.full((8,), 0.3))
    assert not model.layer1[0].bn2.weight.any()


@pytest.mark.parametrize("init", KINDS, ids=lambda init: init.kind)
def test_networks_from_elsewhere(init):
    theirs = import_torchvision().models  # before timm, which imports it by its own name
    import timm

    images = torch.randn(2, 3, 64, 64)
    for model in (theirs.shufflenet_v2_x0_5(num_classes=5), timm.create_model("test_vit", num_classes=5)):
        size = 160 if model.__class__.__name__ == "VisionTransformer" else 64
        initialise(model, init, None, nn.functional.interpolate(images, size))
        model.train()
        logits = model(nn.functional.interpolate(images, size))
        assert logits.shape == (2, 5)
        assert torch.isfinite(logits).all()


def test_layers_that_kept_their_values_are_scaled_again_behind_others():
    torch.manual_seed(0)
    images = torch.randn(16, 3, 16, 16)
    model = Plain()
    init = recipe.Lsuv(tolerance=0.01)
    initialise(model, init, "relu", images)
    given = 9 * torch.randn_like(model.conv1.weight)
    with scaled_after(model, init, images), torch.no_grad():
        model.conv1.weight.copy_(given)
    assert torch.equal(model.conv1.weight, given)
    found = output_variances(model, images, training=False)
    assert found.pop(model.conv1) > 2
    assert list(found.values()) == pytest.approx([1] * 4, abs=0.01)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with scaled_after(model, recipe.He(), images), torch.no_grad():
        model.conv1.weight.mul_(2)
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert set(before) - same == {"conv1.weight"}
