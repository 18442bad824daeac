"""On a GPU the host must not wait for the device between two steps.

On torch's meta device nothing has a value: whoever asks for one, or branches on one, raises. So what runs
there never reads a value back.
"""

import numpy as np
import pytest
import torch

from tinlab import recipes
from tinlab.augment.policy import Policy
from tinlab.data.batches import Batches
from tinlab.recipe import POLICIES, Cutmix, Mixup

META = torch.device("meta")
BOTH = (Mixup(probability=0.5), Cutmix(probability=0.5))
EVERY = {
    **{name: make() for name, make in POLICIES.items()},
    **{name: recipes.find(name).augment for name in ("fast_gpu", "best", "best_resnet18")},
    "mixing": BOTH,
}


def on_meta(operations):
    """A policy as it is on a GPU, where its constants are sent once."""
    policy = Policy(operations, torch.full((3,), 0.5), torch.full((3,), 0.25), 0)
    for name in ("scale", "shift", "_mix_uses"):
        setattr(policy, name, getattr(policy, name).to(META))
    policy._quantiles = [table.to(META) for table in policy._quantiles]
    return policy


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", EVERY)
def test_a_batch_is_read_and_augmented_without_asking_for_a_value(name, size, shapes_pack):
    split = shapes_pack.split("train+tune")
    batches = Batches(split, np.arange(len(split)), 8, 0, META, resident=True)
    policy = on_meta(EVERY[name])
    # Its one table of noise is made on the host once, at the first batch.
    for step in range(len(split) // 8 + 1):  # the last one goes over the end of a pass
        batch = batches.at(step)
    x, batch = policy.inputs(batch, size)
    assert x.shape == (8, 3, size, size)
    assert {x.device, batch.images.device, batch.labels.device, batch.epochs.device} == {META}


def test_the_meta_device_finds_a_value_that_is_asked_for():
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(torch.zeros(1, device=META) > 0)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(3, device=META).nonzero()
