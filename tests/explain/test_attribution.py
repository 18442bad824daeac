from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets import RELUS, Smooth, TwoConvolutions, images
from torch import nn

from tinlab import models, recipe
from tinlab.errors import TinlabError
from tinlab.explain import attribution as maps
from tinlab.explain.attribution import METHODS, find_methods
from tinlab.explain.layers import anatomy, feature_map


def plain_gradient(model, inputs, targets):
    x = inputs.clone().requires_grad_()
    model(x)[range(len(targets)), targets].sum().backward()
    return x.grad


def guided_by_hand(net, x, targets):
    """Springenberg et al. for TwoConvolutions, without autograd."""
    first = net.conv1(x)
    second = net.conv2(first.clamp(min=0))
    side = x.shape[-1]
    back = net.fc.weight[targets][:, :, None, None].expand(second.shape) / side**2
    back = back.clamp(min=0) * (second > 0)
    back = F.conv_transpose2d(back, net.conv2.weight, padding=1)
    back = back.clamp(min=0) * (first > 0)
    return F.conv_transpose2d(back, net.conv1.weight, padding=1).detach()


def test_saliency_is_the_gradient_in_three_forms():
    net, (x, targets) = TwoConvolutions().eval(), images()
    slope = plain_gradient(net, x, targets)
    assert torch.allclose(maps.gradient(net, x, targets), slope, atol=1e-7)
    assert torch.allclose(maps.saliency(net, x, targets), slope.abs().amax(1), atol=1e-7)
    up, down = maps.saliency_positive(net, x, targets), maps.saliency_negative(net, x, targets)
    assert (up >= 0).all()
    assert (down >= 0).all()
    assert torch.allclose(up - down, slope, atol=1e-7)


@pytest.mark.parametrize("relu", RELUS)
def test_guided_backprop_is_the_one_worked_out_by_hand(relu):
    net, (x, targets) = TwoConvolutions(relu).eval(), images()
    found = maps.guided_backprop(net, x, targets)
    expected = guided_by_hand(TwoConvolutions().eval(), x, targets)
    assert torch.allclose(found, expected, atol=1e-7)
    assert not torch.allclose(found, plain_gradient(net, x, targets), atol=1e-5)


def test_guided_backprop_is_captums_where_captums_applies():
    from captum.attr import GuidedBackprop

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(150, 5),
    ).eval()  # fmt: skip
    x, targets = images()
    expected = GuidedBackprop(net).attribute(x.clone().requires_grad_(), target=targets)
    assert torch.allclose(maps.guided_backprop(net, x, targets), expected, atol=1e-7)


def test_a_clipped_relu_is_guided_too():
    net = nn.Sequential(nn.ReLU6(), nn.Flatten(), nn.Linear(3, 2, bias=False)).eval()
    net[2].weight.data = torch.tensor([[1.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
    x = torch.tensor([2.0, 7.0, 2.0]).view(1, 3, 1, 1)
    found = maps.guided_backprop(net, x, torch.tensor([0]))
    assert found.flatten().tolist() == [1.0, 0.0, 0.0]


def test_guided_backprop_needs_relus():
    with pytest.raises(TinlabError, match="Smooth has none"):
        maps.guided_backprop(Smooth(), *images())


def test_integrated_gradients_are_complete():
    x, targets = images()
    for net, tolerance in ((Smooth().eval(), 1e-5), (TwoConvolutions().eval(), 2e-3)):
        found = maps.integrated_gradients(net, x, targets)
        rows = range(len(x))
        change = net(x)[rows, targets] - net(torch.zeros_like(x))[rows, targets]
        assert torch.allclose(found.sum((1, 2, 3)), change, atol=tolerance)
        error = maps.completeness_error(net, x, targets, found)
        assert torch.allclose(error, found.sum((1, 2, 3)) - change, atol=1e-6)


def test_integrated_gradients_of_a_linear_network_are_weight_times_input():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    x, targets = images(side=2)
    expected = (net[1].weight[targets] * x.flatten(1)).view_as(x)
    assert torch.allclose(maps.integrated_gradients(net, x, targets, steps=3), expected.detach(), atol=1e-6)


def test_grad_cam_is_the_one_worked_out_by_hand_and_captums():
    from captum.attr import LayerGradCam

    net, (x, targets) = TwoConvolutions().eval(), images()
    found = maps.grad_cam(net, x, targets)
    grid = net.conv2(net.conv1(x).relu()).relu()
    weights = net.fc.weight[targets] / 16**2  # the slope is the same at every place, behind the ReLU
    by_hand = (weights[:, :, None, None] * grid).sum(1).relu().detach()
    assert torch.allclose(found, by_hand, atol=1e-6)
    captums = LayerGradCam(net, net.conv1).attribute(x, target=targets, relu_attributions=True)
    assert torch.allclose(maps.grad_cam(net, x, targets, layer="conv1"), captums[:, 0].detach(), atol=1e-6)


def test_grad_cam_is_enlarged_bilinearly():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    x, targets = images()
    from captum.attr import LayerAttribution, LayerGradCam

    small = LayerGradCam(net, net[1]).attribute(x, target=targets, relu_attributions=True)
    expected = LayerAttribution.interpolate(small, (16, 16), "bilinear")[:, 0]
    assert torch.allclose(maps.grad_cam(net, x, targets), expected.detach(), atol=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(4, 4), (5, 2), (16, 16), (3, 1)])
def test_occlusion_is_a_loop_over_squares(window, stride):
    net, (x, targets) = TwoConvolutions().eval(), images(count=2)
    rows = range(len(x))
    total, covered = torch.zeros(2, 16, 16), torch.zeros(16, 16)
    last = 16 - window + stride  # where the grid does not end with the image, one more square is cut by it
    with torch.no_grad():
        whole = net(x)[rows, targets]
        for top in range(0, last, stride):
            for left in range(0, last, stride):
                hidden = x.clone()
                here = (slice(top, top + window), slice(left, left + window))
                hidden[:, :, *here] = 0
                total[:, *here] += (whole - net(hidden)[rows, targets])[:, None, None]
                covered[here] += 1
    found = maps.occlusion(net, x, targets, window=window, stride=stride)
    assert torch.allclose(found, total / covered, atol=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(17, 1), (4, 5), (4, 0), (0, 1)])
def test_occlusion_that_does_not_fit_is_refused(window, stride):
    with pytest.raises(TinlabError, match="does not fit"):
        maps.occlusion(TwoConvolutions(), *images(), window=window, stride=stride)


def test_smoothgrad_is_the_saliency_of_a_mean_over_seeded_noise():
    net, (x, targets) = TwoConvolutions().eval(), images()
    assert torch.allclose(
        maps.smoothgrad(net, x, targets, noise=0.0, samples=2), maps.saliency(net, x, targets), atol=1e-6
    )
    torch.manual_seed(3)
    noise = torch.randn(40, 3, 16, 16)
    means = []
    for one, target in zip(x, targets, strict=True):
        noisy = one + 0.1 * (one.max() - one.min()) * noise
        means.append(plain_gradient(net, noisy, target.expand(40)).mean(0))
    found = maps.smoothgrad(net, x, targets, noise=0.1, samples=40, seed=3)
    # 40 is more than a pass holds: the draws of the second pass follow those of the first.
    assert torch.allclose(found, torch.stack(means).abs().amax(1), atol=1e-5)


def test_noise_comes_from_its_seed_and_leaves_torchs_generator_alone():
    net, (x, targets) = TwoConvolutions(), images()
    torch.manual_seed(0)
    first = maps.smoothgrad(net, x, targets, seed=5)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.rand(1) == after
    assert torch.equal(first, maps.smoothgrad(net, x, targets, seed=5))
    assert not torch.equal(first, maps.smoothgrad(net, x, targets, seed=6))


@pytest.fixture(scope="module")
def deep():
    """A network with batch norm, reused in-place ReLUs, stochastic depth and dropout, in training mode."""
    torch.manual_seed(0)
    knobs = recipe.Model(name="resnet18", width=4, stem="patch", final_survival=0.5, dropout=(0.5,))
    net = models.build(knobs, 5, image_size=32)
    net(torch.randn(8, 3, 32, 32))  # so that the batch norms have statistics
    return net


@pytest.mark.parametrize("name", METHODS)
def test_maps_do_not_depend_on_the_batch_nor_on_what_is_around(name, deep):
    method = METHODS[name]
    x, targets = images(count=3, side=32)
    deep.train()
    deep.layer1.eval()  # somebody froze it
    state = {key: value.clone() for key, value in deep.state_dict().items()}
    modes = [module.training for module in deep.modules()]
    found = method.attribute(deep, x, targets)
    assert found.shape == ((3, 3, 32, 32) if "colour" in method.kind else (3, 32, 32))
    assert found.dtype == torch.float32
    assert float(found.abs().max()) > 0
    assert [module.training for module in deep.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in deep.parameters())
    assert all(torch.equal(value, state[key]) for key, value in deep.state_dict().items())
    scale = float(found.abs().max())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        alone = method.attribute(deep, x[1:2], targets[1:2])
    assert torch.allclose(alone[0], found[1], atol=1e-4 * scale)
    assert torch.equal(method.attribute(deep, x, targets), found)
    if method.kind in ("size", "colour", "place"):
        assert float(found.min()) >= 0


def test_the_eager_module_within_a_compiled_one_is_explained():
    net, (x, targets) = TwoConvolutions(), images()

    def refuse(*_):
        raise AssertionError("compiled")

    compiled = torch.compile(net, backend=refuse)
    assert torch.equal(maps.saliency(compiled, x, targets), maps.saliency(net, x, targets))


@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_has_a_grad_cam_and_says_whether_it_can_be_guided(name):
    torch.manual_seed(0)
    # Narrow, but not so narrow that channels and places are as many.
    knobs = {"width": 6} if "width" in models.MODELS[name].options else {}
    net = models.build(recipe.Model(name=name, **knobs), 7)
    found = anatomy(net, 64)
    assert found.classifier == models.MODELS[name].classifier
    x, targets = images(count=2, side=64)
    place = found.feature_map
    assert place is not None
    assert 1 < place.height == place.width <= 36
    cam = maps.grad_cam(net, x, targets)
    assert cam.shape == (2, 64, 64)
    assert bool(cam.isfinite().all())
    if name.startswith("trinext"):
        with pytest.raises(TinlabError, match="has none"):
            maps.guided_backprop(net, x, targets)
        return
    guided, plain = maps.guided_backprop(net, x, targets), maps.gradient(net, x, targets)
    assert bool(guided.isfinite().all())
    assert not torch.allclose(guided, plain, atol=1e-3 * float(plain.abs().max()))


@pytest.mark.parametrize(
    ("name", "layer", "layout", "grid"),
    [
        ("timm:vit_tiny_patch16_224", "blocks.11.norm1", "tokens", 4),
        ("timm:convnext_atto", "norm_pre", "channels_first", 2),
        ("torchvision:densenet121", "features", "channels_first", 2),
    ],
)
def test_the_last_map_of_other_peoples_networks(name, layer, layout, grid):
    torch.manual_seed(0)
    net = models.build(recipe.Model(name=name), 7)
    place = feature_map(net, 64)
    assert (place.layer, place.layout, place.height, place.width) == (layer, layout, grid, grid)
    assert maps.grad_cam(net, *images(count=1, side=64)).shape == (1, 64, 64)


def test_a_channels_last_map_gives_the_same_grad_cam():
    class Turned(TwoConvolutions):
        def __init__(self):
            super().__init__()
            self.turn = nn.Identity()

        def forward(self, x):
            x = self.conv2(self.conv1(x).relu()).relu()
            return self.fc(self.turn(x.permute(0, 2, 3, 1)).mean((1, 2)))

    x, targets = images()
    assert feature_map(Turned(), 16).layout == "channels_last"
    assert torch.allclose(
        maps.grad_cam(Turned(), x, targets), maps.grad_cam(TwoConvolutions(), x, targets), atol=1e-6
    )


def test_a_network_without_a_map_is_told():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(TinlabError, match="no feature map"):
        maps.grad_cam(net, *images(side=2))
    with pytest.raises(TinlabError, match="no layer of the network is called 'conv9'"):
        maps.grad_cam(TwoConvolutions(), *images(), layer="conv9")
    with pytest.raises(TinlabError, match="gives no feature map"):
        maps.grad_cam(TwoConvolutions(), *images(), layer="fc")


def test_wrong_inputs_are_refused():
    net, (x, targets) = TwoConvolutions(), images()
    for bad, labels in ((x[0], targets), (x, targets[:1]), (x[:, :1], targets), (x[:0], targets[:0])):
        with pytest.raises(TinlabError, match="inputs have shape"):
            maps.saliency(net, bad, labels)
    with pytest.raises(TinlabError, match="there are 5 classes"):
        maps.saliency(net, x, targets + 4)
    with pytest.raises(TinlabError, match="steps is 0"):
        maps.integrated_gradients(net, x, targets, steps=0)
    with pytest.raises(TinlabError, match="samples is 0"):
        maps.smoothgrad(net, x, targets, samples=0)


def test_methods_are_found_by_name():
    assert list(find_methods(["occlusion", "saliency"])) == ["occlusion", "saliency"]
    with pytest.raises(TinlabError, match="no 'salincy'; try saliency"):
        find_methods(["salincy"])
    with pytest.raises(TinlabError, match="none is named"):
        find_methods([])


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 3, 28, 28)])
def test_no_pixel_of_a_map_is_lost_where_it_is_made_smaller(shape):
    for row in range(0, 28, 5):
        for column in range(28):
            peak = torch.zeros(shape)
            peak[..., row, column] = 1
            assert maps.at_size(peak, 8).sum() > 0, (row, column)
    flat = torch.ones(shape)
    assert torch.allclose(maps.at_size(flat, 8), torch.ones(*shape[:-2], 8, 8))
    whole = torch.rand(1, 8, 8)
    wider = F.interpolate(whole[None], size=(16, 16), mode="bilinear")[0]
    assert torch.equal(maps.at_size(whole, 16), wider)
