"""A search: its storage, its workers, and the recipe that it leaves."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time

import pytest
from command_line import fails

from tinlab import recipes, runs
from tinlab.files import write_json
from tinlab.recipe import changed
from tinlab.study import search as searching
from tinlab.study.attempt import Settings
from tinlab.study.space import parse_space

optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install 'tinlab[search]'")


@pytest.fixture(scope="module")
def settings(shapes_pack) -> Settings:
    return Settings(pack=shapes_pack.path, pack_digest=shapes_pack.digest, device="cpu")


@pytest.fixture(scope="module")
def quick(tiny_recipe):
    return changed(tiny_recipe, ["schedule.steps=4"])


def test_the_best_on_tune_becomes_a_recipe_and_val_is_never_measured(quick, settings, tmp_path):
    space = parse_space(["optimizer.peak_lr=0.02|0.3|1e30"])
    place = tmp_path / "tiny"
    enqueued = searching._open(optuna, "tiny", f"sqlite:///{place.parent / 'all.db'}", "none")
    for value in ("0.02", "1e30", "0.3"):
        enqueued.enqueue_trial({"optimizer.peak_lr": value})
    told = []
    words = {"storage": f"sqlite:///{tmp_path / 'all.db'}", "pruning": "none", "say": told.append}
    found = searching.search(quick, space, place, settings, number=3, **words)
    assert found.counts == {"finished": 2, "pruned": 0, "failed": 1}
    values = {t["values"]["optimizer.peak_lr"]: t["tune_top1_percent"] for t in found.trials}
    assert found.top1_percent == max(v for v in values.values() if v is not None)
    assert values["1e30"] is None
    assert any("failed with optimizer.peak_lr=1e30: the loss is not finite" in line for line in told)

    best = recipes.find(str(found.best_file))
    assert best == found.best
    assert best.name == "tiny-best"
    assert str(best.optimizer.peak_lr) == found.values["optimizer.peak_lr"]
    assert best.provenance["optimizer.peak_lr"].kind == "changed"

    for run in runs.list_runs(place / "runs"):
        assert {p["split"] for p in run.metrics() if p["kind"] == "eval"} <= {"tune"}
        assert not (run.path / "predictions" / "val.safetensors").exists()
        assert run.result is None or run.result["split"] == "tune"

    again = searching.search(quick, space, place, settings, number=3, **words)
    assert again == found
    assert (place / "search.png").read_bytes()[:4] == b"\x89PNG"
    for change, what in (({"seed": 9}, "seed"), ({"space": parse_space(["model.width=2:4"])}, "space")):
        given = {"space": space, **change}
        with pytest.raises(searching.TinlabError, match=f"another {what}"):
            searching.search(quick, given.pop("space"), place, settings, number=3, **words, **given)


def test_a_trial_that_falls_behind_is_stopped_and_pruned(tiny_recipe, settings, tmp_path, monkeypatch):
    class Always(optuna.pruners.BasePruner):
        def prune(self, study, trial) -> bool:
            return True

    monkeypatch.setattr(optuna.pruners, "MedianPruner", Always)
    recipe = changed(tiny_recipe, ["schedule.steps=5000", "evaluate_every_epochs=0.2"])
    found = searching.search(
        recipe, parse_space(["optimizer.momentum=0.5:0.9"]), tmp_path / "x", settings, number=1, say=print
    )
    assert found.counts == {"finished": 0, "pruned": 1, "failed": 0}
    assert found.best is None
    (run,) = runs.list_runs(tmp_path / "x" / "runs")
    assert run.result is None
    assert 0 < run.metrics()[-1]["step"] < 5000


@pytest.mark.filterwarnings("ignore")  # Optuna calls heartbeats experimental
def test_a_silent_workers_trial_waits_for_another_with_its_run(tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(searching, "GRACE_SECONDS", 1)
    study = searching._open(optuna, "x", f"sqlite:///{tmp_path / 'x.db'}", "none")
    distributions = {"a": optuna.distributions.FloatDistribution(0, 1)}
    trial = study.ask(distributions)
    study._storage.record_heartbeat(trial._trial_id)
    time.sleep(2.1)  # the database counts in whole seconds
    optuna.storages.fail_stale_trials(study)
    for retry in range(1, searching.RETRIES + 1):
        (waiting,) = study.get_trials(states=[optuna.trial.TrialState.WAITING])
        assert waiting.user_attrs == {"origin": 0, "retries": retry}
        assert waiting.system_attrs["fixed_params"] == study.trials[0].params
        trial = study.ask(distributions)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        searching._take_over(study, study.trials[trial.number])
    assert study.get_trials(states=[optuna.trial.TrialState.WAITING]) == []


def test_two_workers_share_one_sqlite_file(quick, shapes_pack, tmp_path):
    write_json(tmp_path / "tiny.json", quick.model_dump(mode="json"))
    command = [
        sys.executable, "-m", "tinlab", "search", str(tmp_path / "tiny.json"),
        "--data", str(shapes_pack.path),
        "--space", "optimizer.peak_lr=0.01:0.1:log", "--space", "model.width=2:4", "--trials", "4",
        "--out", str(tmp_path), "--name", "both", "--device", "cpu", "--json",
    ]  # fmt: skip
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    found = [json.loads(output) for output, _ in said]
    assert found[0]["top1_percent"] == found[1]["top1_percent"]
    assert 4 <= found[0]["counts"]["finished"] <= 5
    place = tmp_path / "both"
    with sqlite3.connect(place / "search.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    made = runs.list_runs(place / "runs")
    assert len({run.recipe.name for run in made}) == len(made) == found[0]["counts"]["finished"]


BAD = {
    "no space": (["RECIPE"], "--space"),
    "bad space": (["RECIPE", "--space", "model.width=9:3"], "not below"),
    "unknown field": (["RECIPE", "--space", "model.widht=3:9"], "width"),
    "value outside": (["RECIPE", "--space", "optimizer.momentum=0.5:2"], "optimizer.momentum"),
    "tune is trained on": (
        ["RECIPE", "--space", "model.width=2:4", "--set", "data.train_split=train+tune"],
        "tune",
    ),
    "unknown pruner": (["RECIPE", "--space", "model.width=2:4", "--pruner", "x"], "hyperband"),
    "no recipe": (["none", "--space", "model.width=2:4"], "none"),
    "bad storage": (["RECIPE", "--space", "model.width=2:4", "--storage", "nothing"], "--storage"),
    "no server": (
        ["RECIPE", "--space", "model.width=2:4", "--storage", "postgresql://me:secret@127.0.0.1:1/x"],
        "--storage postgresql://me:***@127.0.0.1:1/x cannot be used",
    ),
    "unwritable storage": (
        ["RECIPE", "--space", "model.width=2:4", "--storage", "sqlite:////nonexistent/x.db"],
        "unable to open",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, quick, shapes_pack, tmp_path, monkeypatch, capsys):
    words, expected = BAD[case]
    write_json(tmp_path / "tiny.json", quick.model_dump(mode="json"))
    given = [{"RECIPE": str(tmp_path / "tiny.json")}.get(word, word) for word in words]
    given = ["search", *given, "--data", str(shapes_pack.path), "--out", str(tmp_path / "searches")]
    fails(given, tmp_path, monkeypatch, capsys, expected)
