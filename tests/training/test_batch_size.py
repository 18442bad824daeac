"""The search for the largest batch, on made-up devices; and the estimate on this one."""

import pytest
import torch

from tinlab.cli.common import split_auto
from tinlab.errors import TinlabError
from tinlab.recipe import changed
from tinlab.training import batch_size, optimizer
from tinlab.training.batch_size import (
    find_batch_size,
    largest_batch,
    measured_in_a_process,
    searched,
    straight_line,
    with_batch_size,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("most", [1, 5, 7, 8, 9, 100, 1000, 4096])
@pytest.mark.parametrize("true_limit", [0, 1, 3, 7, 8, 9, 15, 16, 100, 127, 128, 1000, 5000])
@pytest.mark.parametrize("unit", [1, 3])
def test_the_largest_is_found_as_by_trying_them_all(most, true_limit, unit):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= true_limit

    found = largest_batch(fits, most=most, unit=unit)
    step = 8 * unit if unit == 3 else 8
    allowed = [size for size in range(step, most + 1, step) if size <= true_limit]
    small = [size for power in range(3) if (size := unit * 2**power) <= min(most, true_limit)]
    assert found == max(allowed or small, default=0)
    assert len(tried) <= 2 * max(1, most).bit_length() + 3
    assert max(tried, default=0) <= max(most, unit)
    assert len(set(tried)) == len(tried)


def test_a_device_is_filled_up_to_its_margin():
    def needed(size):
        return None if size > 700 else 10**9 + size * 10**7  # above 700 it runs out

    found = searched(needed, 5 * 10**9, most=100_000, limit="the training images")
    assert (found.batch_size, found.bytes_needed) == (400, 5 * 10**9)
    assert "memory" in found.why
    found = searched(needed, 50 * 10**9, most=100_000, limit="the training images")
    assert found.batch_size == 696
    assert "memory" in found.why
    found = searched(needed, 50 * 10**9, most=108, limit="the training images")
    assert found.batch_size == 104
    assert found.why == "limited by the training images"
    with pytest.raises(TinlabError, match="not even a batch of 4 fits"):
        searched(needed, 10**9, most=108, parts=4, limit="the training images")


def test_a_line_through_two_peaks():
    line = straight_line({8: 100, 40: 420})
    assert [line(size) for size in (8, 40, 100)] == [100, 420, 1020]
    assert straight_line({8: 100, 40: 90})(1000) == 100


def test_on_a_cpu_it_is_estimated_and_close(tiny_recipe, shapes_pack, monkeypatch):
    recipe = changed(tiny_recipe, ["data.image_sizes=[64]", "model.width=16", "model.stem=small"])
    found = find_batch_size(recipe, shapes_pack, CPU)
    assert found.batch_size == 104  # a multiple of 8; there are 108 training images
    assert list(found.measured) == [8, 40]
    (really,) = measured_in_a_process(recipe, shapes_pack, CPU, (104,)).values()
    assert found.bytes_needed == pytest.approx(really, rel=0.15)
    # A machine on which 60 fit.
    line = straight_line(found.measured)
    monkeypatch.setattr(batch_size, "free_bytes", lambda device: line(60) / 0.9)
    monkeypatch.setattr(batch_size, "measured_in_a_process", lambda *_: found.measured)
    assert find_batch_size(recipe, shapes_pack, CPU).batch_size == 56
    monkeypatch.setattr(batch_size, "LARGEST_ON_A_CPU", 32)
    assert find_batch_size(recipe, shapes_pack, CPU).batch_size == 32


def test_the_steps_that_a_gpu_is_tried_with_are_real_ones(tiny_recipe, shapes_pack):
    recipe = changed(
        tiny_recipe,
        [
            "optimizer.sam_rho=0.1",
            "optimizer.ema_decay=0.9",
            "schedule.accumulate=2",
            "optimizer.clip_norm=1",
        ],
    )
    steps = batch_size._Steps(recipe, shapes_pack, CPU)
    before = [p.detach().clone() for p in steps._model.parameters()]
    steps.take(8)
    assert any(not torch.equal(a, b) for a, b in zip(before, steps._model.parameters(), strict=True))


def test_a_step_is_taken_on_as_many_images_as_are_tried(tiny_recipe, shapes_pack, monkeypatch):
    seen = []
    whole = batch_size.in_parts
    monkeypatch.setattr(
        batch_size,
        "in_parts",
        lambda model, inputs, batch, *rest: (
            seen.append((len(inputs), len(batch.labels))) or whole(model, inputs, batch, *rest)
        ),
    )
    steps = batch_size._Steps(tiny_recipe, shapes_pack, CPU)
    for size in (8, 24):
        steps.take(size)
    assert seen == [(8, 8), (8, 8), (24, 24), (24, 24)]


def test_what_fails_in_the_process_is_one_sentence(tiny_recipe, shapes_pack):
    with pytest.raises(
        TinlabError, match=r"batch of 1 could not be tried .*give schedule.batch_size a number"
    ):
        measured_in_a_process(tiny_recipe, shapes_pack, torch.device("cuda:77"), (1, 5))


def test_rates_follow_the_batch_where_asked(tiny_recipe):
    assert with_batch_size(tiny_recipe, 64).optimizer == tiny_recipe.optimizer
    assert with_batch_size(tiny_recipe, 64).schedule.batch_size == 64
    assert with_batch_size(tiny_recipe, 64, scale_lr=True).optimizer.peak_lr == pytest.approx(0.2)
    adamw = changed(tiny_recipe, ["optimizer.name=adamw", "optimizer.nesterov=false"])
    assert optimizer.scaled_rates(adamw, 64) == {"peak_lr": 0.1}
    muon = changed(tiny_recipe, ["optimizer.name=muon", "optimizer.rest_lr=0.01"])
    assert optimizer.scaled_rates(muon, 4) == {"peak_lr": 0.025, "rest_lr": 0.005}
    assert with_batch_size(muon, 4, scale_lr=True).optimizer.rest_lr == 0.005


@pytest.mark.parametrize(
    ("given", "kept", "automatic"),
    [
        (["batch_size=auto"], [], True),
        (["schedule.batch_size=auto", "model.width=3"], ["model.width=3"], True),
        (["batch_size=64"], ["schedule.batch_size=64"], False),
        (["batch_size=auto", "batch_size=64"], ["schedule.batch_size=64"], False),
        (["batch_size=64", "batch_size=auto"], ["schedule.batch_size=64"], True),
        (["model.name=auto"], ["model.name=auto"], False),
    ],
)
def test_auto_is_taken_out_of_the_changes(given, kept, automatic):
    assert split_auto(given) == (kept, automatic)
