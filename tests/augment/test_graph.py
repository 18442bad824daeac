import pytest
import torch
from help import EVERY, NOTHING, ONE, images

from tinlab.augment.graph import Graphed
from tinlab.augment.policy import Policy
from tinlab.data.batches import Batch
from tinlab.recipe import POLICIES
from tinlab.recipe import operations as ops

ALL = (
    ops.SomeOf(count=(1, 6), operations=EVERY),
    ops.Mixup(probability=0.5),
    ops.Cutmix(probability=0.5),
)


@pytest.mark.parametrize("name", [*POLICIES, "all"])
def test_a_graph_does_what_its_policy_does(name):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    operations = ALL if name == "all" else POLICIES[name]()
    mean, std = NOTHING.cuda(), ONE.cuda() / 255
    plain, graphed = Policy(operations, mean, std, 1), Graphed(Policy(operations, mean, std, 1))
    for number, size in enumerate((32, 32, 48, 32)):
        samples = torch.arange(16).cuda() + 100 * number
        labels = samples % 7
        batch = Batch(images(16, 48, 48, number).cuda(), labels, samples, samples // 9, samples % 6)
        expected, mixed = plain.inputs(batch, size)
        found, same = graphed.inputs(batch, size)
        assert torch.equal(found, expected)
        assert torch.equal(same.labels, labels)
        for one, other in ((mixed.others, same.others), (mixed.weights, same.weights)):
            assert (one is None and other is None) or torch.equal(one, other)
