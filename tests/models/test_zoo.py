import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import build, zoo
from tinlab.models.fits import fits, outline


def built(name, classes=5, image_size=64, **knobs):
    network = zoo.find(name, image_size)
    return network.build(network.resolve(recipe.Model(name=name, **knobs)), classes)


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("torchvision:resnet18", "fc"),
        ("torchvision:vgg11_bn", "classifier.6"),
        ("torchvision:mobilenet_v3_small", "classifier.3"),
        ("torchvision:efficientnet_b0", "classifier.1"),
        ("torchvision:convnext_tiny", "classifier.2"),
        ("torchvision:densenet121", "classifier"),
        ("torchvision:shufflenet_v2_x0_5", "fc"),
        ("torchvision:swin_t", "head"),
        ("torchvision:vit_b_16", "heads.head"),
        ("torchvision:googlenet", "fc"),
        ("torchvision:squeezenet1_1", "classifier.1"),
        ("torchvision:regnet_x_400mf", "fc"),  # its constructor needs values
        ("timm:convnextv2_atto", "head.fc"),
        ("timm:convnextv2_atto.fcmae_ft_in1k", "head.fc"),
        ("timm:resnetv2_18", "head.fc"),
        ("timm:vit_tiny_patch16_224", "head"),
        ("timm:mobilenetv4_conv_small", "classifier"),
        ("timm:edgenext_xx_small", "head.fc"),
        ("timm:resnet10t", "fc"),
        ("timm:deit_tiny_distilled_patch16_224", "head"),  # and head_dist
    ],
)
def test_a_network_turns_images_into_logits_and_has_gradients(name, classifier):
    network = zoo.find(name)
    assert network.classifier == classifier
    model = outline(partial(built, name))
    logits = model(torch.zeros(2, 3, 64, 64, device="meta"))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    missing = {path for path, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert missing <= {"mask_token"}
    last = model.get_submodule(network.classifier)
    assert getattr(last, "out_features", getattr(last, "out_channels", None)) == 5


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:test_vit", "timm:test_resnet"])
def test_a_network_learns_and_can_be_saved(name):
    torch.manual_seed(0)
    model = built(name)
    x, y = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    nn.functional.cross_entropy(model(x), y).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    torch.manual_seed(1)
    other = built(name)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_torchvisions_network_is_torchvisions():
    models = zoo.import_torchvision().models
    torch.manual_seed(3)
    theirs = models.squeezenet1_1(num_classes=7)
    torch.manual_seed(3)
    ours = built("torchvision:squeezenet1_1", 7)
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))


def test_neither_package_is_imported_before_it_is_needed():
    code = (
        "import sys, tinlab.models, tinlab.models.zoo, tinlab.models.weights;"
        "print([name for name in ('timm', 'torchvision', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timm:convnextv2_ato", r"timm has no network 'convnextv2_ato'; try timm:convnextv2_atto, timm:"),
        ("timm:convnextv2_atto.nosuch", r"no tag 'nosuch'; its tags are fcmae, fcmae_ft_in1k"),
        ("timm:hf-hub:someone/something", r"timm has no network"),
        ("torchvision:resnet19", r"no classification network 'resnet19'; try torchvision:resnet18"),
        ("torchvision:fcn_resnet50", r"no classification network 'fcn_resnet50'"),  # for segmentation
        ("torchvision:zzzzzzzz", r"'tinlab models torchvision:' lists those there are"),
        ("keras:resnet", r"'keras:resnet' is neither torchvision:NAME nor timm:NAME"),
    ],
)
def test_an_unknown_network_is_refused_with_the_nearest_ones(name, says):
    with pytest.raises(TinlabError, match=f"model.name: .*{says}"):
        zoo.find(name)


def test_only_classification_networks_are_listed():
    names = zoo.names("torchvision")
    assert "torchvision:resnet18" in names
    assert not [name for name in names if "fcn" in name or "quantized" in name or "rcnn" in name]
    assert "timm:convnextv2_atto" in zoo.names("timm")


def test_a_network_of_a_fixed_size_is_built_for_the_images_in_use():
    for size, patches in ((64, 16), (96, 36)):
        model = outline(partial(built, "torchvision:vit_b_16", image_size=size))
        assert model.encoder.pos_embedding.shape == (1, patches + 1, 768)
        model = outline(partial(built, "timm:vit_tiny_patch16_224", image_size=size))
        assert model.pos_embed.shape == (1, patches + 1, 192)


def test_auxiliary_classifiers_are_left_out():
    model = outline(partial(built, "torchvision:googlenet"))
    assert not [name for name, _ in model.named_modules() if name.startswith("aux")]


def test_dropout_is_timms_drop_rate():
    model = outline(partial(built, "timm:resnet10t", dropout=0.3))
    assert model.drop_rate == 0.3
    assert zoo.find("timm:resnet10t").options == {"dropout": (0.0,)}
    assert zoo.find("timm:rexnet_100").options == {"dropout": (0.2,)}  # timm gives it some
    with pytest.raises(TinlabError, match="has 1 place for dropout, not 2"):
        built("timm:resnet10t", dropout=(0.1, 0.2))
    with pytest.raises(TinlabError, match="dropout: torchvision:resnet18 has none"):
        built("torchvision:resnet18", dropout=0.3)
    with pytest.raises(TinlabError, match="width: timm:resnet10t has none; it has dropout"):
        built("timm:resnet10t", width=8)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("torchvision:inception_v3", 64),
        ("torchvision:alexnet", 32),
    ],
)
def test_images_that_are_too_small_are_refused_in_one_sentence(name, size):
    with pytest.raises(TinlabError, match=rf"model.name: {name} cannot take {size}x{size} images \(.+\); "):
        fits(name, partial(built, name), [size], 5)


def test_images_that_patches_do_not_divide_are_refused():
    with pytest.raises(TinlabError, match="vit_b_16 cannot take 50x50 images"):
        zoo.find("torchvision:vit_b_16", 50)
    with pytest.raises(TinlabError, match="maxvit_t cannot take 64x64 images"):
        zoo.find("torchvision:maxvit_t", 64)
    # Built for 64, and then shown others.
    with pytest.raises(TinlabError, match="vit_tiny_patch16_224 cannot take 32x32 images"):
        fits("timm:vit_tiny_patch16_224", partial(built, "timm:vit_tiny_patch16_224"), [64, 32], 5)


def test_what_fits_fits_and_draws_nothing_from_the_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fits("resnet18", partial(build, recipe.Model(final_survival=0.5), 5), [16, 64, 31], 5)
    fits("timm:test_vit", partial(built, "timm:test_vit"), [64], 5)
    fits("torchvision:regnet_x_400mf", partial(built, "torchvision:regnet_x_400mf"), [64], 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_needs_values_is_tried_with_some():
    class Needs(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 5)

        def forward(self, x):
            if x.sum().item() != 0:  # what the meta device cannot tell
                raise ValueError
            return self.fc(x.mean(dim=(2, 3)))

    fits("needs", Needs, [8], 5)


def test_a_network_without_plain_logits_is_refused():
    class Pair(nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3)), x

    with pytest.raises(TinlabError, match="pair gives a tuple in training"):
        fits("pair", Pair, [8], 3)
    with pytest.raises(TinlabError, match=r"flat gives \(2, 192\) for 2 images of 8x8 and 5 classes"):
        fits("flat", nn.Flatten, [8], 5)
