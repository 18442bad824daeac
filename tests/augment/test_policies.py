"""Every operation and every policy: shapes, range, determinism, order, neutral strengths, words."""

from typing import get_args

import numpy as np
import pytest
import torch
from help import EVERY, NEUTRAL, NOTHING, ONE, apply, images, planes
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tinlab.augment.copies import with_copies
from tinlab.augment.policy import Policy
from tinlab.augment.strengths import Strengths, slots
from tinlab.data.batches import Batches
from tinlab.errors import TinlabError
from tinlab.recipe import POLICIES, Operation, Recipe, Schedule, changed, parse_recipe
from tinlab.recipe import operations as ops


def kind_of(operation):
    return operation.kind


def test_every_operation_is_tried():
    (union, _) = get_args(ops.Simple)
    assert set(get_args(union)) == {type(operation) for operation in EVERY}


@pytest.mark.parametrize("operation", EVERY, ids=kind_of)
def test_an_operation_keeps_shape_and_range_and_its_draws(operation):
    x = images(6, 24, 24)
    for size in (24, 16, 40):
        y = apply((operation,), x, size)
        assert y.shape == (6, 3, size, size)
        assert y.dtype == torch.float32
        assert torch.isfinite(y).all()
        assert y.min() >= -1e-2
        assert y.max() <= 255 + 1e-2
        assert torch.equal(apply((operation,), x, size), y)
    varies = bool(slots(operation))
    again, other = apply((operation,), x, epoch=1), apply((operation,), x, seed=1)
    assert torch.equal(again, apply((operation,), x)) != varies
    assert torch.equal(other, apply((operation,), x)) != varies


@pytest.mark.parametrize("operation", NEUTRAL, ids=kind_of)
def test_a_strength_of_nothing_changes_nothing(operation):
    x = images(4, 24, 24)
    assert torch.allclose(apply((operation,), x), planes(x), atol=0.01)
    for size in (16, 40):
        assert torch.allclose(apply((operation,), x, size), apply((), x, size), atol=0.02)


@pytest.mark.parametrize("operation", [o for o in EVERY if slots(o)], ids=kind_of)
def test_an_operation_that_does_not_happen_changes_nothing(operation):
    x = images(40, 16, 16)
    never = operation.model_copy(update={"probability": 0.0})
    assert torch.allclose(apply((never,), x), planes(x), atol=0.01)
    sometimes = operation.model_copy(update={"probability": 0.5})
    same = torch.tensor(
        [torch.allclose(a, b, atol=0.01) for a, b in zip(apply((sometimes,), x), planes(x), strict=True)]
    )
    assert 0 < same.sum() < 40


policies = st.lists(
    st.one_of(
        st.sampled_from(EVERY).map(lambda o: o.model_copy(update={"probability": 0.7})),
        st.lists(st.sampled_from(EVERY), min_size=1, max_size=5).map(
            lambda some: ops.SomeOf(count=(0, len(some)), operations=tuple(some))
        ),
    ),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(
    operations=policies,
    fill=st.sampled_from(["reflect", "edge", (3.0, 200.0, 90.0)]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    height=st.integers(12, 24),
    width=st.integers(12, 24),
    size=st.integers(8, 28),
    seed=st.integers(0, 2**64),
)
def test_any_policy(operations, fill, interpolation, height, width, size, seed):
    policy = Policy(
        (*operations, ops.Resampling(fill=fill, interpolation=interpolation)), NOTHING, ONE / 255, seed
    )
    x = images(5, height, width, seed % 1000)
    before = x.clone()
    samples, epochs = torch.arange(5) + 17, torch.arange(5) // 2
    y = policy.apply(x, epochs, samples, size)
    assert torch.equal(x, before)
    assert y.shape == (5, 3, size, size)
    assert y.dtype == torch.float32
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.isfinite(y).all()
    assert y.min() >= -0.01
    assert y.max() <= 255.01
    assert torch.equal(policy.apply(x, epochs, samples, size), y)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.allclose(policy.apply(x[order], epochs[order], samples[order], size), y[order], atol=0.01)
    halves = [policy.apply(x[part], epochs[part], samples[part], size) for part in (slice(0, 3), slice(3, 5))]
    assert torch.allclose(torch.cat(halves), y, atol=0.01)
    assert isinstance(str(policy), str)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_runs_prints_itself_and_survives_json(name):
    operations = POLICIES[name]()
    policy = Policy(operations, NOTHING, ONE / 255, 3)
    x, samples = images(32, smooth=True), torch.arange(32)
    variants = samples % 6 if name.endswith("fixed") else None
    for size in (64, 32):
        y = policy.apply(x, samples, samples, size, variants)
        assert y.shape == (32, 3, size, size)
        assert torch.isfinite(y).all()
        assert y.min() >= -0.01
        assert y.max() <= 255.01
    assert (y.flatten(1).amax(1) > y.flatten(1).amin(1)).all()
    lines = str(policy).splitlines()
    assert len(lines) >= len(operations)
    assert all(operation.kind.replace("_", " ") in str(policy) for operation in policy._strengths.simple)
    read = TypeAdapter(tuple[Operation, ...]).validate_python([o.model_dump(mode="json") for o in operations])
    assert read == operations


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "trivial_augment_wide"])
def test_edges_show_no_black(name):
    x = torch.full((200, 16, 16, 3), 200, dtype=torch.uint8)
    darkening = (ops.Invert, ops.Brightness, ops.Solarise, ops.Posterise, ops.GaussianNoise)
    operations = [_without(operation, darkening) for operation in POLICIES[name]()]
    assert apply(operations, x).min() > 150


def _without(operation, kinds):
    if isinstance(operation, ops.SomeOf):
        kept = tuple(o for o in operation.operations if not isinstance(o, kinds))
        return operation.model_copy(update={"operations": kept, "count": (1, 2)})
    return operation


@pytest.mark.cuda
def test_gpu_and_cpu_agree():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x, samples = images(64, smooth=True), torch.arange(64)
    for operations in [
        *((o.model_copy(update={"probability": 0.7}),) for o in EVERY),
        *(make() for make in POLICIES.values()),
    ]:
        for size in (64, 32):
            variants = samples % 6
            here = Policy(operations, NOTHING, ONE / 255, 5).apply(x, samples, samples, size, variants)
            policy = Policy(operations, NOTHING.cuda(), ONE.cuda() / 255, 5)
            there = policy.apply(x.cuda(), samples.cuda(), samples.cuda(), size, variants.cuda()).cpu()
            # A place between two pixels, or a value between two levels, may fall either way.
            assert (here - there).abs().mean() < 0.05, operations
    torch.cuda.synchronize()


# Which operations an image gets.


def test_an_image_gets_as_many_as_was_asked_each_as_often():
    inner = tuple(ops.Tint(levels=(k, k)) for k in range(1, 13))
    strengths = Strengths((ops.SomeOf(count=(2, 5), operations=inner),), 9)
    samples = torch.arange(6000)
    active = torch.stack([change.active for change in strengths.draw(samples, samples)])  # (12, B)
    numbers = torch.bincount(active.sum(0), minlength=13)
    assert numbers.sum() == numbers[2:6].sum() == 6000
    assert (numbers[2:6] - 1500).abs().max() < 150
    shares = active.float().mean(1)
    assert (shares - 3.5 / 12).abs().max() < 0.03


def test_idle_choices_count():
    policy = (ops.SomeOf(idle=3, operations=(ops.Invert(probability=1),)),)
    x = torch.zeros(2000, 8, 8, 3, dtype=torch.uint8)
    assert abs((apply(policy, x)[:, 0, 0, 0] > 1).float().mean() - 0.25) < 0.04


def test_ends_only_draws_both_ends_and_nothing_else():
    x = torch.full((500, 8, 8, 3), 100, dtype=torch.uint8)
    levels = apply((ops.Brightness(factor=(0.5, 2.0), ends_only=True),), x)[:, 0, 0, 0].round()
    assert sorted(set(levels.tolist())) == [50, 200]
    assert 200 < (levels == 50).sum() < 300


def test_a_longer_policy_keeps_the_draws_of_its_beginning():
    samples = torch.arange(50)
    short = Strengths((ops.Rotate(), ops.Flip()), 4).draw(samples, samples)
    long = Strengths((ops.Rotate(), ops.Flip(), ops.Tint(), ops.Cutout()), 4).draw(samples, samples)
    assert torch.equal(short[0]["degrees"], long[0]["degrees"])
    assert torch.equal(short[1].active, long[1].active)


def test_strengths_fill_their_ranges():
    samples = torch.arange(20_000)
    (change,) = Strengths((ops.Rotate(degrees=(-5.0, 20.0)),), 0).draw(samples, samples)
    values = change["degrees"]
    assert -5 <= values.min() < -4.9
    assert 19.9 < values.max() <= 20
    assert abs(values.mean() - 7.5) < 0.2


# Fixed copies.


def test_the_enlarged_set_has_the_papers_265000_images():
    rows, variants = with_copies(np.arange(100_000), POLICIES["shcherbina_fixed"](), 1)
    assert len(rows) == len(variants) == 265_000
    assert np.bincount(variants).tolist() == [100_000, *[33_000] * 5]
    assert np.array_equal(rows[:100_000], np.arange(100_000))
    for copy_number in range(1, 6):
        mine = rows[variants == copy_number]
        assert len(np.unique(mine)) == 33_000
        assert abs(mine.mean() - 50_000) < 1000
    # Each operation has a third of its own: 1 - 0.67^5 of the images are copied at all.
    assert len(np.unique(rows[100_000:])) / 100_000 == pytest.approx(1 - 0.67**5, abs=0.01)
    again, _ = with_copies(np.arange(100_000), POLICIES["shcherbina_fixed"](), 1)
    other, _ = with_copies(np.arange(100_000), POLICIES["shcherbina_fixed"](), 2)
    assert np.array_equal(rows, again)
    assert not np.array_equal(rows, other)
    assert with_copies(rows, (ops.Flip(),), 1) == (rows, None)


def test_copies_are_the_same_in_every_pass_and_originals_unchanged():
    x, samples = images(20, 16, 16), torch.arange(20)
    operations = (ops.FixedCopies(operations=(ops.Rotate(degrees=(10, 30)), ops.Tint(levels=(3, 5)))),)
    policy = Policy(operations, NOTHING, ONE / 255, 0)

    def see(epoch, variant):
        return policy.apply(
            x, torch.full_like(samples, epoch), samples, 16, torch.full_like(samples, variant)
        )

    assert torch.allclose(see(0, 0), planes(x), atol=0.01)
    for variant in (1, 2):
        assert torch.equal(see(0, variant), see(5, variant))
        assert not torch.allclose(see(0, variant), planes(x), atol=1)
    assert torch.allclose(policy.apply(x, samples, samples, 16), planes(x), atol=0.01)
    live = Policy((*operations, ops.Flip()), NOTHING, ONE / 255, 0)
    passes = [live.apply(x, torch.full_like(samples, e), samples, 16, samples * 0) for e in (0, 1)]
    assert not torch.equal(*passes)


def test_a_pass_over_the_enlarged_set_shows_every_image_and_copy_once(shapes_pack):
    split = shapes_pack.split("train")
    rows, variants = with_copies(
        np.arange(40), (ops.FixedCopies(share=0.25, operations=(ops.Flip(), ops.Tint())),), 3
    )
    assert len(rows) == 60
    batches = Batches(split, rows, 12, 3, torch.device("cpu"), variants)
    seen = []
    for step in range(5):
        batch = batches.at(step)
        assert np.array_equal(batch.images.numpy(), split.images[batch.samples.numpy()])
        seen += list(zip(batch.samples.tolist(), batch.variants.tolist(), strict=True))
    assert sorted(seen) == sorted(zip(rows.tolist(), variants.tolist(), strict=True))


# In a recipe.


def recipe(augment):
    value = {"name": "x", "schedule": {"steps": 1}, "augment": augment}
    return parse_recipe(value, "x.json")


def test_a_policys_name_stands_for_its_operations():
    assert recipe("sun_heavy").augment == POLICIES["sun_heavy"]()
    assert changed(recipe([]), ["augment=sun_heavy"]).augment == POLICIES["sun_heavy"]()
    dumped = recipe("sun_heavy").model_dump(mode="json")["augment"]
    assert dumped[0]["kind"] == "some_of"
    assert len(dumped[0]["operations"]) == 12
    assert recipe(dumped) == recipe("sun_heavy")


def test_the_digest_follows_the_operations():
    digests = [recipe(name).digest for name in POLICIES]
    assert len(set(digests)) == len(POLICIES)
    flip = Recipe(name="x", schedule=Schedule(steps=1), augment=(ops.Flip(axis="left_right"),))
    assert flip.digest == recipe([{"kind": "flip"}]).digest


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        ("sun_hevy", ["augment", "no policy 'sun_hevy'", "did you mean 'sun_heavy'"]),
        ([{"kind": "rotate", "degrees": [5, -5]}], ["degrees", "smaller number to a larger"]),
        ([{"kind": "brightness", "factor": [-1, 1]}], ["factor", "0"]),
        ([{"kind": "posterise", "bits": [0, 8]}], ["bits"]),
        ([{"kind": "some_of", "count": [1, 3], "operations": [{"kind": "flip"}]}], ["count goes to 3"]),
        ([{"kind": "some_of", "operations": []}], ["operations"]),
        ([{"kind": "some_of", "operations": [{"kind": "mixup"}]}], ["mixup"]),
        ([{"kind": "resampling"}, {"kind": "resampling"}], ["at most one resampling"]),
        ([{"kind": "resampling", "fill": "black"}], ["fill"]),
        ([{"kind": "mixup", "probability": 0.7}, {"kind": "cutmix", "probability": 0.7}], ["add up"]),
        (
            [{"kind": "mixup", "probability": 0.1}, {"kind": "mixup", "probability": 0.1}],
            ["at most one mixup"],
        ),
        ([{"kind": "random_resized_crop", "area": [0, 1]}], ["area"]),
        ([{"kind": "perspective", "corner_fraction": [0, 0.6]}], ["corner_fraction"]),
    ],
)
def test_a_bad_policy_is_refused(augment, words):
    with pytest.raises(TinlabError) as error:
        recipe(augment)
    for word in words:
        assert word in str(error.value)


def test_operations_print_their_ranges():
    assert str(ops.Rotate(probability=0.25)) == "rotate, degrees -15 to 15, on 25% of the images"
    assert str(ops.Brightness(factor=(0.5, 0.5))) == "brightness, factor 0.5"
    assert str(ops.Resampling(fill=(0, 0, 0))) == "resampling, bilinear, outside: colour 0 0 0"
    assert str(POLICIES["sun_heavy"]()[0]).splitlines()[0] == "2 to 5 of these 12:"


def test_values_cannot_be_changed():
    with pytest.raises(ValidationError):
        ops.Rotate().degrees = (0, 1)
