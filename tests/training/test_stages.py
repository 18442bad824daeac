"""Trainings of several stages: what each one takes over, changes and leaves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tinlab import classifier, models, runs
from tinlab.augment.policy import Policy
from tinlab.augment.targeted import Targeted, hardest_classes
from tinlab.data.batches import Batch, Batches
from tinlab.errors import TinlabError
from tinlab.evaluation.logits import Predictions
from tinlab.evaluation.predict import normalised
from tinlab.recipe import Recipe, changed, operations
from tinlab.training import checkpoint, loop, sharpness
from tinlab.training.stages import spans

CPU = torch.device("cpu")


def staged(recipe: Recipe, *stages: dict[str, object]) -> Recipe:
    named = [{"name": f"stage{number}", **stage} for number, stage in enumerate(stages)]
    return changed(recipe, [f"stages={json.dumps(named)}"])


def weights(run, file="model"):
    return load_file(checkpoint.latest(run.path) / f"{file}.safetensors")


def moved(one, other, name):
    return not torch.equal(one[name], other[name])


class Stopped(Exception):
    pass


def train_until(step, recipe, pack, out):
    """The run in `out`, broken off after `step`, with a checkpoint of every step."""

    def watch(progress):
        if progress.step > step:
            raise Stopped

    with pytest.raises(Stopped):
        loop.train(recipe, pack, out, seed=4, device="cpu", checkpoint_seconds=0, watch=watch)
    return runs.list_runs(out)[0]


def test_one_stage_that_changes_nothing_is_the_recipe_itself(tiny_recipe, shapes_pack, tmp_path):
    plain = loop.train(tiny_recipe, shapes_pack, tmp_path, seed=4, device="cpu")
    single = loop.train(staged(tiny_recipe, {}), shapes_pack, tmp_path, seed=4, device="cpu")
    assert all(torch.equal(t, weights(single)[name]) for name, t in weights(plain).items())
    assert {point.get("stage") for point in single.metrics()} == {"stage0"}
    assert "stage" not in plain.metrics()[0]


def test_the_head_first_and_then_everything_with_smaller_rates_below(tiny_recipe, shapes_pack, tmp_path):
    recipe = staged(
        tiny_recipe,
        {"changes": {
            "schedule.steps": 3,
            "optimizer.layer_rates": [{"layers": "fc", "factor": 1}, {"layers": "*", "factor": 0}],
        }},
        {"changes": {
            "schedule.steps": 5,
            "optimizer.layer_rates": [{"layers": "fc", "factor": 1}, {"layers": "layer4*", "factor": 0.1},
                                      {"layers": "*", "factor": 0.01}],
        }},
    )  # fmt: skip
    run = train_until(3, recipe, shapes_pack, tmp_path)  # the checkpoint of the first stage's end
    torch.manual_seed(4)
    begun = models.build(recipe.model, 4, image_size=64).state_dict()
    head = weights(run)
    assert moved(begun, head, "fc.weight")
    # What stands still includes the statistics of its batch norms.
    assert all(torch.equal(t, begun[name]) for name, t in head.items() if not name.startswith("fc"))
    run = loop.resume(run.path, device="cpu")
    end = weights(run)
    assert run.result["steps"] == 8
    assert moved(head, end, "conv1.weight")
    assert moved(head, end, "bn1.running_mean")
    rates = [p["learning_rate"] for p in run.metrics() if p["kind"] == "train"]
    assert rates[:4] == pytest.approx([0.05, 0.05, 0.025, 0.05])  # each stage has its own schedule
    assert [p["stage"] for p in run.metrics() if p["kind"] == "train"] == ["stage0"] * 3 + ["stage1"] * 5


def test_layer_rates_scale_the_step(shapes_pack, tiny_recipe, tmp_path):
    """Plain SGD's one step is the rate times the gradient, which is the same in both runs."""
    one = changed(
        tiny_recipe,
        ["schedule.steps=1", "schedule.warmup_fraction=0", "optimizer.nesterov=false",
         "optimizer.momentum=0", "optimizer.weight_decay=0", "compute.precision=fp32"],
    )  # fmt: skip
    half = changed(one, ['optimizer.layer_rates=[{"layers": "layer1*", "factor": 0.5}]'])
    torch.manual_seed(4)
    begun = models.build(one.model, 4, image_size=64).state_dict()
    full = weights(loop.train(one, shapes_pack, tmp_path, seed=4, device="cpu"))
    less = weights(loop.train(half, shapes_pack, tmp_path, seed=4, device="cpu"))
    name = "layer1.0.conv1.weight"
    assert torch.allclose(less[name] - begun[name], (full[name] - begun[name]) / 2, rtol=1e-3, atol=1e-8)
    assert torch.equal(less["conv1.weight"], full["conv1.weight"])


def test_frozen_layers_may_go_on_normalising_by_the_batch(tiny_recipe, shapes_pack, tmp_path):
    """Shcherbina set the rate of the layers above to 0, whose batch norms went on."""
    still = [
        'optimizer.layer_rates=[{"layers": "layer2*", "factor": 0}]',
        "optimizer.frozen_statistics=false",
    ]
    run = loop.train(changed(tiny_recipe, still), shapes_pack, tmp_path, seed=4, device="cpu")
    torch.manual_seed(4)
    begun = models.build(tiny_recipe.model, 4, image_size=64).state_dict()
    assert torch.equal(weights(run)["layer2.0.conv1.weight"], begun["layer2.0.conv1.weight"])
    assert moved(weights(run), begun, "layer2.0.bn1.running_mean")


def test_every_stage_resumes_bit_for_bit(tiny_recipe, shapes_pack, tmp_path):
    recipe = staged(
        tiny_recipe,
        {"changes": {"schedule.steps": 4, "optimizer.ema_decay": 0.9}},
        {"prune": {"kind": "magnitude", "share": 0.5}, "changes": {"schedule.steps": 4}},
        {"prune": {"kind": "magnitude", "share": 0.8}, "fresh": ["fc"], "changes": {"schedule.steps": 4}},
    )
    whole = loop.train(recipe, shapes_pack, tmp_path / "whole", seed=4, device="cpu")
    expected = weights(whole)
    assert whole.result["sparsity"] == pytest.approx(0.8, abs=1e-3)
    zeros = sum(int((t == 0).sum()) for t in expected.values() if t.dim() > 1)
    assert zeros / sum(t.numel() for t in expected.values() if t.dim() > 1) == pytest.approx(0.8, abs=1e-3)
    for step in (2, 4, 6, 8, 11):
        run = train_until(step, recipe, shapes_pack, tmp_path / str(step))
        assert run.result is None
        run = loop.resume(run.path, device="cpu")
        assert all(torch.equal(t, expected[name]) for name, t in weights(run).items()), step
        losses = [(p["step"], p["kind"], p["loss"]) for p in run.metrics()]
        assert losses == [(p["step"], p["kind"], p["loss"]) for p in whole.metrics()], step


def test_channels_that_are_pruned_are_gone_and_the_run_loads(tiny_recipe, shapes_pack, tmp_path):
    wider = changed(tiny_recipe, ["model.width=8", "model.shortcut=average_pool"])
    recipe = staged(
        wider,
        {"changes": {"schedule.steps": 3}},
        {"prune": {"kind": "channels", "share": 0.4}, "changes": {"schedule.steps": 3}},
    )
    whole = loop.train(wider, shapes_pack, tmp_path / "wide", seed=4, device="cpu")
    run = loop.train(recipe, shapes_pack, tmp_path, seed=4, device="cpu")
    assert run.result["parameters"] < 0.7 * whole.result["parameters"]
    loaded = classifier.load(run.path, "cpu")
    saved = Predictions.load(run.path / "predictions" / "val.safetensors")
    images = torch.from_numpy(np.array(shapes_pack.split("val").images))
    assert np.array_equal(loaded.logits(images).numpy(), saved.logits)
    broken = train_until(5, recipe, shapes_pack, tmp_path / "broken")
    again = loop.resume(broken.path, device="cpu")
    assert all(torch.equal(t, weights(run)[name]) for name, t in weights(again).items())


def test_a_wider_stage_takes_over_what_fits(tiny_recipe, shapes_pack, tmp_path):
    recipe = staged(
        tiny_recipe,
        {"changes": {"schedule.steps": 3}},
        {"changes": {"schedule.steps": 1, "model.name": "resnet34", "optimizer.peak_lr": 1e-12}},
    )
    run = loop.train(recipe, shapes_pack, tmp_path, seed=4, device="cpu")
    first = train_until(3, recipe, shapes_pack, tmp_path / "first")
    assert weights(run)["layer1.1.conv1.weight"].allclose(weights(first)["layer1.1.conv1.weight"])
    assert "layer1.2.conv1.weight" in weights(run)


def test_what_is_fresh_in_the_first_stage_is_not_filled_from_a_run(tiny_recipe, shapes_pack, tmp_path):
    base = loop.train(tiny_recipe, shapes_pack, tmp_path / "base", seed=1, device="cpu")
    start = changed(tiny_recipe, [f"model.weights={base.path}", "schedule.steps=1", "optimizer.peak_lr=1e-9"])
    whole = loop.train(staged(start, {}), shapes_pack, tmp_path, seed=4, device="cpu")
    fresh = loop.train(staged(start, {"fresh": ["fc"]}), shapes_pack, tmp_path, seed=4, device="cpu")
    assert torch.allclose(weights(whole)["fc.weight"], weights(base)["fc.weight"], atol=1e-6)
    torch.manual_seed(4)
    drawn = models.build(start.model, 4, image_size=64).state_dict()
    assert torch.allclose(weights(fresh)["fc.weight"], drawn["fc.weight"], atol=1e-6)
    assert torch.allclose(
        weights(fresh)["layer1.0.conv1.weight"], weights(base)["layer1.0.conv1.weight"], atol=1e-6
    )
    assert fresh.environment["weights"]["fresh_layers"] == ["fc"]


def test_what_is_fresh_later_is_drawn_as_the_recipe_says(tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(
        tiny_recipe, ['model.init={"kind": "gaussian", "variance": 25}', "optimizer.peak_lr=1e-9"]
    )
    stage = {"changes": {"schedule.steps": 1}}
    run = loop.train(staged(recipe, stage, {**stage, "fresh": ["fc"]}), shapes_pack, tmp_path, device="cpu")
    assert 3 < weights(run)["fc.weight"].std() < 7  # not about 0.1, as the network itself draws it


@pytest.mark.parametrize(
    "changes", [{"model.weights": "somewhere.safetensors"}, {"model.fresh_layers": ["conv1"]}], ids=str
)
def test_only_the_first_stage_starts_from_a_file(tiny_recipe, changes):
    start = changed(tiny_recipe, ["model.weights=a.safetensors"])
    staged(start, {"changes": changes})
    with pytest.raises(
        TinlabError, match=r"stages\.1 \(stage1\): model\.\w+ says what the first stage starts"
    ):
        staged(start, {}, {"changes": changes})


def test_a_batch_norm_with_one_value_is_refused_before_there_is_a_run(tiny_recipe, shapes_pack, tmp_path):
    for assignments in (["schedule.batch_size=1"], ["schedule.accumulate=16"]):
        # At 16x16 its last grid is 1x1.
        recipe = changed(tiny_recipe, ["data.image_sizes=[16]", "model.stem=imagenet", *assignments])
        with pytest.raises(
            TinlabError, match=r"schedule\.batch_size: resnet18 cannot be trained on one 16x16"
        ):
            loop.train(recipe, shapes_pack, tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_sizes_data_and_augmentation_of_a_stage_are_its_own(tiny_recipe, shapes_pack, tmp_path):
    recipe = staged(
        tiny_recipe,
        {"changes": {"schedule.epochs": 0.5, "data.image_sizes": [16], "data.images_per_class": 8}},
        {"changes": {"schedule.steps": 2, "data.image_sizes": [32], "augment": "shcherbina"}},
    )
    run = loop.train(recipe, shapes_pack, tmp_path, seed=4, device="cpu")
    points = [p for p in run.metrics() if p["kind"] == "train"]
    assert [p["image_size"] for p in points] == [16, 32, 32]
    planned = spans(recipe, shapes_pack, 4)
    assert [(s.first_step, s.end_step, s.first_epoch, len(s.rows)) for s in planned] == [
        (0, 1, 0, 32), (1, 3, 1, 108),
    ]  # fmt: skip
    assert points[-1]["epoch"] == pytest.approx(0.5 + 2 * 16 / 108, abs=1e-4)


def test_the_stages_draw_other_orders(shapes_pack):
    rows = np.arange(20)
    first = Batches(shapes_pack.split("train"), rows, 20, 0, CPU)
    later = Batches(shapes_pack.split("train"), rows, 20, 0, CPU, first_epoch=3)
    assert torch.equal(first.at(3).samples, later.at(0).samples)
    assert not torch.equal(first.at(0).samples, later.at(0).samples)
    assert later.at(0).epochs.tolist() == [3] * 20


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"changes": {"optimizer.peak": 1}}, r"there is no field 'peak'; did you mean 'peak_lr'"),
        ({"changes": {"compute.compile": True}}, "compute.compile is the same in all stages"),
        ({"changes": {"data.normalise": "mean"}}, "data.normalise is the same in all stages"),
        ({"changes": {"optimizer.peak_lr": -1}}, "optimizer.peak_lr: input should be greater than 0"),
        ({"prune": {"kind": "magnitude", "share": 1}}, "less than 1"),
        ({"prune": {"kind": "threshold", "share": 0.5}}, "there is no 'threshold'"),
        ({"name": "Not a name"}, "stages.0.name"),
    ],
)
def test_a_stage_that_cannot_be_is_refused_by_name(tiny_recipe, stage, said):
    with pytest.raises(TinlabError, match=said):
        staged(tiny_recipe, stage)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"fresh": ["head*"]}, r"stages\.1\.fresh: 'head\*' matches no layer with weights"),
        ({"fresh": ["maxpool"]}, r"stages\.1\.fresh: 'maxpool' matches no layer with weights"),
        ({"prune": {"kind": "magnitude", "share": 0.5, "keep": ["nothing"]}}, r"stages\.1\.prune\.keep"),
        ({"changes": {"optimizer.layer_rates": [{"layers": "*", "factor": 0}]}}, "nothing would be trained"),
        ({"changes": {"optimizer.layer_rates": [{"layers": "x", "factor": 0}]}}, "optimizer.layer_rates"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_before_there_is_a_run(
    tiny_recipe, shapes_pack, tmp_path, stage, said
):
    recipe = staged(tiny_recipe, {"changes": {"schedule.steps": 1}}, stage)
    with pytest.raises(TinlabError, match=said):
        loop.train(recipe, shapes_pack, tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_weights_before_channels_is_refused(tiny_recipe):
    with pytest.raises(TinlabError, match="prune channels before single weights"):
        staged(
            tiny_recipe,
            {"prune": {"kind": "magnitude", "share": 0.5}},
            {"prune": {"kind": "channels", "share": 0.5}},
        )


@pytest.mark.parametrize(
    ("kind", "stage", "said"),
    [
        (
            "magnitude",
            {"prune": {"kind": "magnitude", "share": 0.6, "keep": ["fc"]}},
            "the same 'keep' in all stages",
        ),
        (
            "magnitude",
            {"prune": {"kind": "magnitude", "share": 0.4}},
            "a share of 0.4 of the weights is pruned after 0.5",
        ),
        ("magnitude", {"changes": {"model.width": 16}}, r"stages\.1: its network has other weights"),
        ("channels", {"changes": {"model.width": 16}}, r"stages\.1: its network has other weights"),
    ],
)
def test_what_is_pruned_for_good_cannot_come_back(tiny_recipe, shapes_pack, tmp_path, kind, stage, said):
    def trained():
        recipe = staged(tiny_recipe, {"prune": {"kind": kind, "share": 0.5}}, stage)
        loop.train(recipe, shapes_pack, tmp_path, device="cpu")

    with pytest.raises(TinlabError, match=said):
        trained()
    assert list(tmp_path.iterdir()) == []


def test_sharpness_is_climbed_without_what_is_pruned(tiny_recipe, shapes_pack, tmp_path, monkeypatch):
    climb, grown = sharpness.climb, []

    def watched(parameters, rho):
        before = [p == 0 for p in parameters if p.ndim > 1]
        climb(parameters, rho)
        after = [p == 0 for p in parameters if p.ndim > 1]
        grown.append(sum(int((b & ~a).sum()) for b, a in zip(before, after, strict=True)))
        assert sum(int(b.sum()) for b in before) > 100

    monkeypatch.setattr(sharpness, "climb", watched)
    recipe = staged(
        changed(tiny_recipe, ["optimizer.sam_rho=0.1", "schedule.steps=3"]),
        {"prune": {"kind": "magnitude", "share": 0.5}},
    )
    loop.train(recipe, shapes_pack, tmp_path, device="cpu")
    assert grown == [0, 0, 0]


def test_a_digest_tells_stages_apart(tiny_recipe):
    one = staged(tiny_recipe, {})
    assert len({tiny_recipe.digest, one.digest, staged(tiny_recipe, {}, {}).digest}) == 3
    assert changed(one, ['stages.0.changes={"schedule.steps": 3}']).phases[0].schedule.steps == 3


def test_the_hardest_classes_by_hand():
    labels = np.array([0, 0, 1, 1, 2, 2, 4, 4])
    correct = np.array([1, 1, 0, 0, 1, 0, 0, 1], bool)
    assert hardest_classes(correct, labels, 5, 0.4) == [1, 2]  # class 3 has no images
    assert hardest_classes(correct, labels, 5, 0.6) == [1, 2, 4]
    assert hardest_classes(correct, labels, 5, 0.01) == [1]


def test_hard_classes_alone_get_the_other_augmentation():
    mean, std = torch.zeros(3), torch.ones(3)
    policy = Targeted(
        Policy((), mean, std, 0), Policy((operations.Invert(probability=1),), mean, std, 0), [2]
    )
    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    labels = torch.tensor([0, 2, 1, 2])
    batch = Batch(images, labels, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    x, _ = policy.inputs(batch, 8)
    plain = images.permute(0, 3, 1, 2) / 255
    assert torch.allclose(x[[0, 2]], plain[[0, 2]], atol=1e-6)
    assert torch.allclose(x[[1, 3]], 1 - plain[[1, 3]], atol=1e-6)
    policy.classes = []
    assert torch.allclose(policy.inputs(batch, 8)[0], plain, atol=1e-6)


def test_hard_classes_are_found_at_each_evaluation_and_resume(tiny_recipe, shapes_pack, tmp_path):
    recipe = changed(
        tiny_recipe,
        ['hard_classes={"share": 0.5, "augment": "sun_heavy"}', "evaluate_every_epochs=0.5"],
    )
    whole = loop.train(recipe, shapes_pack, tmp_path / "whole", seed=4, device="cpu")
    found = [p["hard_classes"] for p in whole.metrics() if p["kind"] == "eval" and p["split"] == "tune"]
    assert len(found) >= 2
    assert all(len(classes) == 2 for classes in found)
    plain = loop.train(tiny_recipe, shapes_pack, tmp_path / "plain", seed=4, device="cpu")
    assert any(moved(weights(plain), weights(whole), name) for name in weights(plain))
    for step in (3, 4, 8):  # evaluations are at 3, 6 and 9
        run = train_until(step, recipe, shapes_pack, tmp_path / str(step))
        again = loop.resume(run.path, device="cpu")
        assert all(torch.equal(t, weights(whole)[name]) for name, t in weights(again).items()), step


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (['hard_classes={"augment": "sun_heavy"}', "data.train_split=train+tune"], "trained on here"),
        (['hard_classes={"augment": [{"kind": "mixup"}]}'], "mixing is done to whole batches"),
        (['hard_classes={"augment": "nothing"}'], "nothing"),
    ],
)
def test_hard_classes_that_cannot_be_are_refused(tiny_recipe, changes, said):
    with pytest.raises(TinlabError, match=said):
        changed(tiny_recipe, changes)


def test_channels_that_cannot_be_followed_are_refused_before_there_is_a_run(
    tiny_recipe, shapes_pack, tmp_path
):
    recipe = changed(
        tiny_recipe, ["model.name=torchvision:shufflenet_v2_x0_5", "model.width=null", "model.stem=null"]
    )
    pruned = staged(recipe, {}, {"prune": {"kind": "channels", "share": 0.3}})
    with pytest.raises(TinlabError, match="torch-pruning cannot follow its channels"):
        loop.train(pruned, shapes_pack, tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_lsuv_scales_what_is_fresh_on_the_network_that_it_goes_on(tiny_recipe, shapes_pack, tmp_path):
    still = changed(tiny_recipe, ["model.init=lsuv", "optimizer.peak_lr=1e-9", "compute.precision=fp32"])
    moved = changed(still, ["optimizer.peak_lr=0.2", "schedule.steps=8"])
    stage = {"changes": {"optimizer.peak_lr": 1e-9, "schedule.steps": 1}, "fresh": ["fc"]}
    run = loop.train(staged(moved, {}, stage), shapes_pack, tmp_path, device="cpu")
    model = models.build(run.recipe.model, 4)
    model.load_state_dict(weights(run))
    batches = Batches(shapes_pack.split("train"), np.arange(len(shapes_pack.split("train"))), 16, 0, CPU)
    model.train()
    with torch.no_grad():
        scores = model(normalised(run.preprocessing, batches.at(0).images))
    assert float(scores.var(correction=0)) == pytest.approx(1, abs=0.35)
