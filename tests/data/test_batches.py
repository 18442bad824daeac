import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinlab.data.batches import Batches, chosen_rows
from tinlab.errors import TinlabError

CPU = torch.device("cpu")


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 50), batch_size=st.integers(1, 70), seed=st.integers(0, 2**63))
def test_every_pass_shows_each_image_once(shapes_pack, count, batch_size, seed):
    split = shapes_pack.split("train")
    batches = Batches(split, np.arange(count), batch_size, seed, CPU)
    steps = -(-3 * count // batch_size)
    stream = [batches.at(step) for step in range(steps)]
    samples = torch.cat([b.samples for b in stream])
    epochs = torch.cat([b.epochs for b in stream])
    for epoch in range(3):
        assert sorted(samples[epochs == epoch][:count].tolist()) == list(range(count))
    assert all(len(b.labels) == batch_size for b in stream)


def test_a_batch_holds_the_packs_images_and_labels(shapes_pack):
    split = shapes_pack.split("train")
    batch = Batches(split, np.arange(len(split)), 16, 0, CPU).at(3)
    assert np.array_equal(batch.images.numpy(), split.images[batch.samples.numpy()])
    assert np.array_equal(batch.labels.numpy(), split.labels[batch.samples.numpy()])
    assert batch.images.dtype == torch.uint8


def test_a_batch_depends_on_its_step_alone(shapes_pack):
    split = shapes_pack.split("train")
    rows = np.arange(len(split))
    walked = Batches(split, rows, 16, 7, CPU)
    for step in range(40):
        batch = walked.at(step)
        if step % 13 == 5:
            jumped = Batches(split, rows, 16, 7, CPU).at(step)
            assert torch.equal(batch.samples, jumped.samples)
            assert torch.equal(batch.epochs, jumped.epochs)


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 50),
    batch_size=st.integers(1, 70),
    ranks=st.sampled_from([1, 2]),
    first_epoch=st.integers(0, 3),
)
def test_on_the_device_the_stream_is_the_same(shapes_pack, count, batch_size, ranks, first_epoch):
    split = shapes_pack.split("train")
    rows, variants = np.arange(count)[::-1].copy(), np.arange(count) % 3
    for rank in range(ranks):
        options = {"shard": np.arange(batch_size)[rank::ranks], "first_epoch": first_epoch}
        here, there = (
            Batches(split, rows, batch_size, 5, CPU, variants, **options, resident=resident)
            for resident in (False, True)
        )
        for step in (0, 1, 2, 9, 3):
            one, other = here.at(step), there.at(step)
            for name in ("images", "labels", "samples", "epochs", "variants"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_seeds_and_passes_shuffle_differently(shapes_pack):
    split = shapes_pack.split("train")
    rows = np.arange(len(split))
    one, other = (Batches(split, rows, len(split), seed, CPU) for seed in (0, 1))
    assert not torch.equal(one.at(0).samples, other.at(0).samples)
    assert not torch.equal(one.at(0).samples, one.at(1).samples)


def test_rows_of_a_class(shapes_pack):
    split = shapes_pack.split("train")
    rows = chosen_rows(split, 5)
    assert np.bincount(split.labels[rows]).tolist() == [5, 5, 5, 5]
    assert len(chosen_rows(split, None)) == len(split)
    assert len(chosen_rows(split, 10_000)) == len(split)
    with pytest.raises(TinlabError, match="labels"):
        chosen_rows(shapes_pack.split("test"), None)
