import dataclasses
import json
import sys
from pathlib import Path

import pytest

from tinlab import cli, recipes
from tinlab.data.digests import OFFICIAL_DIGEST
from tinlab.errors import TinlabError
from tinlab.files import write_json
from tinlab.papers import reproduce as module
from tinlab.papers.length import IMAGES_PER_SECOND
from tinlab.papers.measures import read_measures
from tinlab.papers.registry import CLASS_ERRORS, Row, row
from tinlab.papers.reproduce import How, Reproduced, reproduce, status
from tinlab.recipes import shortened
from tinlab.results import COLUMNS, TINY_IMAGENET, recorded, write_table
from tinlab.runs import open_run
from tinlab.study import run as study_run
from tinlab.study.attempt import Settings, write_row
from tinlab.study.attempt import read_row as study_rows
from tinlab.study.trial import training_alone
from tinlab.training import loop

RESULT = {
    **dict.fromkeys(("recipe", "recipe_digest", "split", "finished_at"), ""),
    **dict.fromkeys(("top1_percent", "top5_percent", "loss", "train_seconds", "epochs"), 1.0),
}
SMALL = ("model.width=4", "schedule.batch_size=4", "schedule.steps=3")


@pytest.fixture
def how(shapes_pack, tmp_path):
    settings = Settings(pack=shapes_pack.path, pack_digest=shapes_pack.digest, device="cpu")
    return How(settings, tmp_path / "runs", changes=SMALL)


def test_a_row_is_trained_once_and_gone_on_with(how, monkeypatch):
    said: list[str] = []

    def stop(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(row("ma_overfit"), how, say=said.append, watch=stop)
    monkeypatch.setattr(loop, "train", lambda *a, **k: pytest.fail("trained anew"))
    done = reproduce(row("ma_overfit"), how, say=said.append)
    assert json.loads((done.runs[0] / "result.json").read_text())["steps"] == 3
    assert "goes on" in said[-1]
    again = reproduce(row("ma_overfit"), how, say=said.append)
    assert again.runs == done.runs
    assert "finished already" in said[-1]


def test_who_trains_the_same_in_the_same_folder_is_refused(how, monkeypatch):
    recipe, digest = how.recipe(recipes.find("ma_overfit")), how.settings.pack_digest
    monkeypatch.setattr(loop, "train", lambda *a, **k: pytest.fail("trained twice"))
    with (
        training_alone(how.out, recipe, 0, digest),
        training_alone(how.out, recipe, 1, digest),  # which is another training
        pytest.raises(TinlabError, match=r"ma_overfit, seed 0, in .* is being trained by another process"),
    ):
        reproduce(row("ma_overfit"), how, say=lambda text: None)


def test_seeds_are_run_one_after_another(how):
    more = How(how.settings, how.out, seeds=(0, 3), changes=SMALL)
    done = reproduce(row("ma_overfit"), more, say=lambda text: None)
    assert [json.loads((run / "run.json").read_text())["seed"] for run in done.runs] == [0, 3]


def test_each_run_is_told_before_the_next_one_begins(how):
    told: list[Path] = []

    def stop(progress):
        if told:
            raise KeyboardInterrupt

    more = How(how.settings, how.out, seeds=(0, 3), changes=SMALL)
    with pytest.raises(KeyboardInterrupt):
        reproduce(row("ma_overfit"), more, say=lambda text: None, watch=stop, finished=told.append)
    assert [open_run(run).seed for run in told] == [0]
    reproduce(row("ma_overfit"), more, say=lambda text: None, finished=told.append)
    assert [open_run(run).seed for run in told] == [0, 0, 3]


def test_each_run_of_a_study_is_told_as_it_ends(how, monkeypatch):
    def run_locally(folder, todo, settings, *, jobs, stop, ended):
        for trial in todo[:2]:
            (folder / "runs" / trial.key).mkdir()
            known = {"status": "finished", "run": f"runs/{trial.key}", "split": "val", "loss": 1.0}
            known |= {"top1_percent": 1.0, "top5_percent": 1.0}
            row = study_rows(folder, trial, settings.pack_digest).model_copy(update=known)
            write_json(folder / "runs" / trial.key / "result.json", RESULT)
            ended(trial, write_row(folder, trial, row))
        raise TinlabError("enough")

    monkeypatch.setattr(study_run, "run_locally", run_locally)
    told: list[Path] = []
    for expected in (2, 6):
        with pytest.raises(TinlabError, match="enough"):
            reproduce(row("sun_variants"), how, say=lambda text: None, finished=told.append)
        assert len(told) == expected  # the second time those of before come first
    assert all(run.is_dir() for run in told)


def test_what_has_a_row_is_not_run_again(how, monkeypatch):
    told: list[Path] = []
    recipe = how.recipe(recipes.find("ma_overfit"))
    known = dataclasses.replace(how, seeds=(0, 3), recorded={(recipe.digest, 3): 12.345})
    done = reproduce(row("ma_overfit"), known, say=lambda text: None, finished=told.append)
    assert [open_run(run).seed for run in done.runs] == [0] == [open_run(run).seed for run in told]
    assert done.recorded == ("ma_overfit, seed 3: has a row already: 12.35%",)

    asked: list[str] = []

    def run_locally(folder, todo, settings, *, jobs, stop, ended):
        asked.extend(trial.recipe.name for trial in todo)
        for trial in todo:
            failed = study_rows(folder, trial, settings.pack_digest).model_copy(update={"status": "failed"})
            ended(trial, write_row(folder, trial, failed))

    monkeypatch.setattr(study_run, "run_locally", run_locally)
    how = dataclasses.replace(how, seeds=(0,))
    every = reproduce(row("sun_variants"), how, say=lambda text: None)
    first = asked[0]
    base = next(one for one in row("sun_variants").recipes if one.name == first)
    known = dataclasses.replace(how, out=how.out / "again", recorded={(how.recipe(base).digest, 0): 50.0})
    asked.clear()
    done = reproduce(row("sun_variants"), known, say=lambda text: None)
    assert len(asked) == len(every.failed) - 1 == len(done.failed)
    assert first not in asked
    assert done.recorded == (f"{first}, seed 0: has a row already: 50.00%",)


def test_rows_that_stand_for_a_run(tmp_path):
    other = dict.fromkeys(COLUMNS, "1")
    images = dict.fromkeys(TINY_IMAGENET, "1") | {"content_digest": "d", "classes": "8"}
    other |= {"recipe_digest": "r", "split": "val", **images}
    rows = [
        other | {"top1_percent": "12.5", "finished_at": "2"},
        other | {"top1_percent": "11.5", "finished_at": "1"},
        other | {"seed": "2", "classes": "199"},
        other | {"seed": "3", "content_digest": "e"},
        other | {"seed": "4", "split": "tune"},
    ]
    write_table(tmp_path / "results.csv", COLUMNS, rows)
    assert recorded(tmp_path / "results.csv", images) == {("r", 1): 12.5}


def test_a_budget_makes_another_run(how):
    tenth = How(how.settings, how.out, fraction=0.1, changes=SMALL[:2])
    done = reproduce(row("ma_overfit"), tenth, say=lambda text: None)
    (run,) = done.runs
    assert run.name.startswith("ma_overfit-budget-0.1-s0-")
    assert json.loads((run / "result.json").read_text())["steps"] == 6


def test_a_budget_is_a_share_of_the_length_that_was_set(how):
    changes = (*SMALL[:1], "schedule.steps=50")
    made = How(how.settings, how.out, fraction=0.1, changes=changes).recipe(recipes.find("ma_overfit"))
    assert made.schedule.steps == 5
    assert recipes.budget_of(made) == "5 of 50 steps"


def test_a_command_looks_at_the_run_of_its_row(how, monkeypatch):
    drawn = Row("drawn", "x", command="tinlab explain {ma_overfit} --errors --out {out}/e.png --json")
    with pytest.raises(TinlabError, match="tinlab reproduce ma_overfit"):
        reproduce(drawn, how, say=lambda text: None)
    trained = reproduce(row("ma_overfit"), how, say=lambda text: None)
    said: list[str] = []
    done = reproduce(drawn, how, say=said.append)
    assert (how.out / "e.png").is_file()
    assert str(trained.runs[0]) in said[0]
    assert done.values == {"pictures": 1}
    assert done.of == (how.recipe(recipes.find("ma_overfit")).digest,)


@pytest.mark.parametrize("name", ["sun_depth_cost", "sun_tuning"])
def test_a_benchmark_measures_what_its_row_reads(how, name):
    one = row(name)
    brief = dataclasses.replace(one, command=f"{one.command} --steps 1 --rounds 1")
    done = reproduce(brief, how, say=lambda text: None)
    assert set(done.values) == set(one.measures)
    assert all(value > 0 for value in done.values.values())


def test_a_command_that_fails_is_told(how):
    with pytest.raises(TinlabError, match="failed with code"):
        reproduce(Row("x", "x", command="tinlab report nowhere --json"), how, say=lambda text: None)
    with pytest.raises(TinlabError, match="checkout"):
        reproduce(Row("x", "x", command="python benchmarks/nothing.py"), how, say=lambda text: None)


def test_every_recipe_of_a_study_is_shortened_and_changed(how, monkeypatch):
    asked = {}

    def run_study(study, folder, settings, **more):
        asked.update(study=study, folder=folder, option=more["option"])
        raise TinlabError("enough")

    monkeypatch.setattr(module, "run_study", run_study)
    tenth = How(how.settings, how.out, seeds=(7,), fraction=0.1, changes=("model.width=8",))
    with pytest.raises(TinlabError, match="enough"):
        reproduce(row("sun_variants"), tenth)
    assert asked["study"].seeds == (7,)
    assert asked["option"] == "--out"
    assert {recipe.schedule.steps for recipe in asked["study"].recipes} == {2000}
    assert {recipe.model.width for recipe in asked["study"].recipes} == {8}
    assert asked["folder"].name == "sun_blocks-budget-0.1-model.width-8"


@pytest.mark.parametrize(("name", "lines"), [("sun_vanilla", 1), ("sun_variants", 6)])
def test_what_another_network_has_no_place_for_is_told(name, lines, how, monkeypatch):
    def enough(*_, **__):
        raise TinlabError("enough")

    monkeypatch.setattr(module, "run_study", enough)
    monkeypatch.setattr(loop, "train", enough)
    said: list[str] = []
    other = How(how.settings, how.out, changes=("model.name=vgg16",))
    with pytest.raises(TinlabError, match="enough"):
        reproduce(row(name), other, say=said.append)
    assert len(said) == lines
    assert all(": left out, as vgg16 has none: model." in line for line in said)


def test_a_row_says_what_its_runs_are(how):
    full = How(how.settings, how.out)

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(row("yu_baseline"), full, say=lambda text: None, watch=stop)
    assert status(row("yu_baseline"), [], (), how.out).startswith("begun")
    (run,) = how.out.glob("yu_baseline-*")
    (run / "result.json").write_text("{}")
    assert status(row("yu_baseline"), [], (), how.out) == "not yet run"  # a damaged run is none
    write_json(run / "result.json", RESULT)
    assert status(row("yu_baseline"), [], (), how.out).startswith("finished")


def test_a_row_that_was_measured_says_so(how):
    def line(recipe, budget=""):
        found = {"recipe": recipe.name, "recipe_digest": recipe.digest, "split": "val", "seed": "0"}
        found |= {"budget": budget, "finished_at": "2026", "content_digest": OFFICIAL_DIGEST}
        return found | {"classes": "200"}

    def told(name, *lines):
        return status(row(name), lines, (), how.out)

    whole = recipes.find("yu_vgg")
    assert told("yu_vgg", line(whole)) == "measured, 1 seed"
    assert told("yu_vgg", line(shortened(whole, 0.2), "1 of 5 epochs")) == "measured, 1 seed, 1 of 5 epochs"
    assert told("yu_vgg") == "not yet run"
    first, second, *_ = row("sun_variants").recipes
    short = line(shortened(second, 0.1))
    assert told("sun_variants", line(first)) == "measured, 1 of 6 recipes"
    assert told("sun_variants", short) == "measured, 1 of 6 recipes, 0.1 of the length"
    assert told("sun_variants", line(first), short) == "measured, 2 of 6 recipes, 0.1 and 1 of the length"


def command(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tinlab", *words])
    try:
        cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    said = capsys.readouterr()
    return code, said.out, " ".join(said.err.split())


def test_the_list_is_in_the_papers_order(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, _ = command(["reproduce", "--json"], monkeypatch, capsys)
    rows = json.loads(out)
    assert code == 0
    assert [one["id"] for one in rows][:3] == ["sun_finetune", "sun_tuning", "sun_vanilla"]
    final = next(one for one in rows if one["id"] == "sun_final")
    assert final["expected_minutes"] == pytest.approx(7e6 / IMAGES_PER_SECOND["resnet34"] / 60, abs=0.1)
    assert final["reported"] == {"top1_percent": 65.32}


def test_a_command_on_other_images_replaces_no_measure(shapes_pack, monkeypatch, capsys, tmp_path):
    one = row("shcherbina_classes_scratch")
    answers = iter([("0123",), (), *[("0123",)] * 6])
    monkeypatch.setattr(
        module,
        "reproduce",
        lambda *a, **k: Reproduced(one, values=dict.fromkeys(CLASS_ERRORS, 1.0), of=next(answers)),
    )
    words = ["reproduce", one.id, "--add-results", "--file", str(tmp_path / "r.csv"), "--json"]
    words += ["--data", str(shapes_pack.path), "--out", str(tmp_path / "runs")]
    code, _, said = command(words, monkeypatch, capsys)
    assert code == 0
    assert "not added, as its runs are of another pack" in said
    assert not (tmp_path / "measures.csv").exists()
    command(words, monkeypatch, capsys)  # one that looks at no run
    assert (tmp_path / "measures.csv").is_file()
    (tmp_path / "measures.csv").unlink()
    monkeypatch.setattr("tinlab.results.images_of", lambda pack: TINY_IMAGENET)
    for more, share, told in (
        (["--budget", "0.1"], "0.1", ""),
        (["--budget", "0.05"], "0.1", "not added: shcherbina_classes_scratch was measured already on runs"),
        ([], "1", ""),
        (["--set", "schedule.epochs=1"], "1", "not added, as it is of changed trainings"),
        (["--seeds", "3,"], "1", "not added, as it is of trainings from seed 3, not 0"),
        (["--budget", "0.1"], "1", "not added"),
    ):
        code, _, said = command([*words, *more], monkeypatch, capsys)
        assert (code, told in said) == (0, True)
        assert {line["share"] for line in read_measures(tmp_path / "measures.csv")[one.id]} == {share}


def test_pages_that_cannot_be_written_end_no_training(how, shapes_pack, monkeypatch, capsys, tmp_path):
    """A remark that is wrong from the start is told before any training; one that comes to be is told after
    each, and the rows are kept."""
    remarks = tmp_path / "remarks.toml"
    remarks.write_text('[[remark]]\nrow = "nope"\ntext = "x"\n')
    words = ["reproduce", "ma_overfit", "--add-results", "--file", str(tmp_path / "r.csv"), "--seeds", "2"]
    words += ["--data", str(shapes_pack.path), "--out", str(tmp_path / "runs"), "--device", "cpu"]
    words += [word for change in SMALL for word in ("--set", change)]
    code, _, told = command(words, monkeypatch, capsys)
    assert (code, "there is no row 'nope'" in told) == (2, True)
    assert not (tmp_path / "runs").exists()
    remarks.unlink()

    def added(run, path):
        remarks.write_text('[[remark]]\nrow = "nope"\ntext = "x"\n')
        return {"recipe": "ma_overfit", "seed": open_run(run).seed, "top1_percent": 1.0}

    monkeypatch.setattr("tinlab.results.record", added)
    code, _, told = command(words, monkeypatch, capsys)
    assert code == 0
    assert told.count("r.csv: ma_overfit, seed") == 2
    assert told.count("the pages were not written:") == 3
    assert "not added" not in told


BAD = {
    "a budget of a benchmark": (["reproduce", "sun_tuning", "--budget", "0.5"], "--budget changes trainings"),
    "a field of a benchmark": (["reproduce", "sun_tuning", "--set", "optimizer.peak_lr=1"], "--set changes"),
    "seeds of a benchmark": (["reproduce", "sun_tuning", "--seeds", "5"], "--seeds changes trainings"),
    "no such row": (["reproduce", "sun_finl"], "sun_final"),
    "no budget": (["reproduce", "sun_final", "--budget", "0"], "--budget"),
    "too much": (["reproduce", "sun_final", "--budget", "2"], "--budget"),
    "a budget of a list": (["reproduce", "--budget", "0.5"], "name a row"),
    "jobs of a list": (["reproduce", "--jobs", "2"], "name a row"),
    "jobs of one recipe": (["reproduce", "sun_final", "--jobs", "2"], "--jobs is for studies"),
    "no data": (["reproduce", "sun_final", "--data", "nowhere"], "nowhere"),
    "no file": (["results", "--file", "nothing.csv"], "nothing.csv"),
    "a file alone": (["reproduce", "sun_final", "--file", "x.csv"], "--add-results"),
    "all of them added": (["reproduce", "--add-results"], "name a row"),
    "a foreign file": (["reproduce", "sun_final", "--add-results", "--file", "foreign.csv"], "other columns"),
    "a page of one's own": (["results", "--file", "foreign.csv"], "place with --out"),
    "one beside rows": (["reproduce", "sun_final", "--add-results", "--file", "r.csv"], "place with --file"),
    "a share of a transfer": (["transfer", "--budget", "2"], "--budget"),
    "no number": (["transfer", "--images", "few"], "few"),
    "no classes named": (["data", "subset", "out"], "--half"),
    "both named": (["data", "subset", "out", "--half", "A", "--class", "x"], "--half"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, monkeypatch, capsys, tmp_path):
    words, expected = BAD[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n")
    (tmp_path / "RESULTS.md").write_text("my own\n")
    code, _, said = command(words, monkeypatch, capsys)
    assert code == 2
    assert expected in said
