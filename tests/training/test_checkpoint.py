import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.files import read_json
from tinlab.training import checkpoint, optimizer
from tinlab.training.schedule import Plateau

CPU = torch.device("cpu")


def trained(name="sgd", steps=3):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 2)
    )
    model = model.to(memory_format=torch.channels_last)
    updater = optimizer.build(recipe.Optimizer(name=name, peak_lr=0.001), model)
    advance(model, updater, steps)
    return model, updater


def advance(model, updater, steps):
    x = torch.arange(2 * 3 * 64, dtype=torch.float32).view(2, 3, 8, 8) / 100
    for _ in range(steps):
        model(x).square().mean().backward()
        updater.step()
        updater.zero_grad()


# Of timm's those that keep what others do not: whole numbers, other shapes, the group's own count of steps.
TIMMS = [
    "adabelief",
    "adafactor",
    "adan",
    "lamb",
    "laprop",
    "lars",
    "mars",
    "muon",
    "nadamlegacy",
    "novograd",
]


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "muon", *(f"timm:{name}" for name in TIMMS)])
def test_what_is_restored_goes_on_as_if_nothing_had_happened(tmp_path, name):
    model, updater = trained(name)
    place = checkpoint.save(tmp_path, model, updater, checkpoint.State(step=3, train_seconds=1.5))
    other, other_updater = trained(name, steps=1)
    state = checkpoint.restore(place, other, other_updater, CPU)
    assert (state.step, state.train_seconds) == (3, 1.5)
    advance(model, updater, 4)
    advance(other, other_updater, 4)
    for mine, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.isfinite(mine).all()
        assert torch.equal(mine, theirs)


def test_weights_beside_the_models_are_kept(tmp_path):
    model, updater = trained()
    ema = {name: t + 1 for name, t in model.state_dict().items()}
    slow = {name: p.detach() + 2 for name, p in model.named_parameters()}
    state = checkpoint.State(step=3, scaling={"scale": 8.0}, plateau=Plateau(1.5, 2, 1, 3))
    beside = {"ema": ema, "lookahead": slow}
    place = checkpoint.save(tmp_path, model, updater, state, beside)
    into = {file: {k: torch.zeros_like(t) for k, t in tensors.items()} for file, tensors in beside.items()}
    found = checkpoint.restore(place, model, updater, CPU, into)
    assert (found.scaling, found.plateau) == ({"scale": 8.0}, Plateau(1.5, 2, 1, 3))
    for file, tensors in beside.items():
        assert all(torch.equal(into[file][name], t) for name, t in tensors.items())
    other, _ = trained()
    checkpoint.load_measured(place, other, CPU, averaged=True)
    assert all(torch.equal(t, ema[name]) for name, t in other.state_dict().items())
    checkpoint.load_measured(place, other, CPU, averaged=False)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in other.state_dict().items())
    with pytest.raises(TinlabError, match=r"ema\.safetensors has other tensors"):
        checkpoint.load_tensors(place, "ema", {"x": torch.zeros(1)}, CPU)
    (place / "ema.safetensors").unlink()
    with pytest.raises(TinlabError, match=r"ema\.safetensors cannot be read"):
        checkpoint.load_measured(place, other, CPU, averaged=True)


def test_a_checkpoint_from_before_there_were_more_fields_is_read(tmp_path):
    model, updater = trained()
    place = checkpoint.save(tmp_path, model, updater, checkpoint.State(step=5))
    values = read_json(place / "state.json")
    for name in ("optimizer", "scaling", "plateau", "skipped_steps"):
        del values[name]
    (place / "state.json").write_text(json.dumps(values))
    assert checkpoint.restore(place, model, updater, CPU) == checkpoint.State(step=5)


def test_only_the_newest_is_kept_and_partial_ones_do_not_count(tmp_path):
    model, updater = trained()
    assert checkpoint.latest(tmp_path) is None
    for step in (5, 10, 100):
        checkpoint.save(tmp_path, model, updater, checkpoint.State(step=step))
    (tmp_path / "checkpoints" / ".step-00000200.partial").mkdir()
    assert checkpoint.latest(tmp_path).name == "step-00000100"
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 1
    checkpoint.save(tmp_path, model, updater, checkpoint.State(step=200))
    assert checkpoint.latest(tmp_path).name == "step-00000200"
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000200"]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    model, updater = trained()
    checkpoint.save(tmp_path, model, updater, checkpoint.State(step=5))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, model, updater, checkpoint.State(step=6))
    assert checkpoint.latest(tmp_path).name == "step-00000005"


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "garbage"])
def test_a_damaged_checkpoint_is_named(tmp_path, file, damage):
    model, updater = trained()
    place = checkpoint.save(tmp_path, model, updater, checkpoint.State(step=5))
    path = place / file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"garbage")
    with pytest.raises(TinlabError, match=str(place)):
        checkpoint.restore(place, model, updater, CPU)


def test_another_networks_checkpoint_is_refused(tmp_path):
    model, updater = trained()
    place = checkpoint.save(tmp_path, model, updater, checkpoint.State(step=5))
    other = nn.Linear(3, 2)
    with pytest.raises(TinlabError, match="does not belong"):
        checkpoint.restore(place, other, optimizer.build(recipe.Optimizer(), other), CPU)


@pytest.mark.parametrize("damage", [lambda t: t.bfloat16(), lambda t: t[:1]], ids=["precision", "shape"])
def test_a_momentum_of_another_precision_or_shape_is_refused(tmp_path, damage):
    model, updater = trained()
    place = checkpoint.save(tmp_path, model, updater, checkpoint.State(step=3))
    file = place / "optimizer.safetensors"
    kept = load_file(file)
    name = next(name for name, tensor in kept.items() if tensor.ndim > 1)
    save_file({**kept, name: damage(kept[name]).contiguous()}, file)
    with pytest.raises(TinlabError, match="does not fit parameter"):
        checkpoint.restore(place, *trained(steps=1), CPU)


def test_layers_that_share_a_weight_are_saved_and_share_it_afterwards(tmp_path):
    def shared():
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        return nn.Sequential(first, second, nn.BatchNorm1d(4))

    model = shared()
    updater = optimizer.build(recipe.Optimizer(peak_lr=0.1), model)
    place = checkpoint.save(tmp_path, model, updater, checkpoint.State(step=1))
    other = shared()
    checkpoint.restore(place, other, optimizer.build(recipe.Optimizer(peak_lr=0.1), other), CPU)
    assert other[0].weight is other[1].weight
    assert torch.equal(other[1].weight, model[0].weight)
