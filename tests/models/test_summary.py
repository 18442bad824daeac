import pytest
import torch

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models import build
from tinlab.models.summary import summarise


def test_resnet18_by_hand():
    """He et al. 2016, table 1, at 64x64: the stem gives 32x32, the max pool 16x16."""
    found = summarise(recipe.Model(name="resnet18"), 200, 64)
    stem = 32 * 32 * 7 * 7 * 3 * 64
    first = 4 * 16 * 16 * 9 * 64 * 64
    halves = sum(
        side * side * (9 * c * 2 * c + 3 * 9 * 2 * c * 2 * c + c * 2 * c)
        for side, c in ((8, 64), (4, 128), (2, 256))
    )
    assert found.multiply_adds == stem + first + halves + 512 * 200
    norms = 64 + 4 * 64 + sum(5 * 2 * c for c in (64, 128, 256))
    weights = 7 * 7 * 3 * 64 + 4 * 9 * 64 * 64
    weights += sum(9 * c * 2 * c + 3 * 9 * 4 * c * c + 2 * c * c for c in (64, 128, 256))
    assert found.parameters == weights + 2 * norms + 512 * 200 + 200
    assert found.blocks == found.expected_blocks == 8


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_layers_add_up(name):
    found = summarise(recipe.Model(name=name, width=16, final_survival=0.5), 10, 32)
    assert sum(layer.parameters for layer in found.layers) == found.parameters
    assert sum(layer.multiply_adds for layer in found.layers) == found.multiply_adds
    assert found.layers[0].output == (16, 16, 16)
    assert found.layers[-1].name == "fc"
    assert found.layers[-1].output == (10,)
    assert found.expected_blocks < found.blocks


def test_a_branch_that_is_sometimes_left_out_counts_once():
    found = summarise(recipe.Model(name="trinext", final_survival=0.5), 10, 32)
    # The products of attention are of no single layer.
    assert 0.99 < sum(layer.multiply_adds for layer in found.layers) / found.multiply_adds <= 1


def test_activations_are_what_a_training_step_keeps():
    """Against the tensors that autograd really saves in a bf16 step, counted by their storage."""
    knobs = recipe.Model(name="resnet18", width=8, stem="small")
    model = build(knobs, 10)
    weights = {p.data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    batch = 8
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(batch, 3, 32, 32))
    # Autocast also keeps the weights in bf16, and some small statistics.
    copies = 2 * sum(p.numel() for p in model.parameters())
    really = (sum(t.untyped_storage().nbytes() for t in kept.values()) - copies) / batch
    assert summarise(knobs, 10, 32).activation_bytes == pytest.approx(really, rel=0.05)


def test_images_that_are_too_small_are_an_error():
    with pytest.raises(TinlabError, match="cannot take"):
        summarise(recipe.Model(name="resnet18", stem="patch2x2"), 10, 1)
