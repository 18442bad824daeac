import json

import pytest

from tinlab.errors import TinlabError
from tinlab.recipe import Flip, Recipe, Schedule, changed, parse_recipe, read_recipe
from tinlab.recipes import RECIPES, find


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_file(name, tmp_path):
    recipe = RECIPES[name]()
    assert recipe.name == name
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe.model_dump(mode="json")))
    assert read_recipe(path) == recipe
    assert find(str(path)) == recipe
    assert find(str(tmp_path)) == recipe  # a run folder


FUTURE = ("shcherbina_dropconnect", "shcherbina_targeted", "shcherbina_untargeted", "shcherbina_pruned")


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name]().paper])
def test_a_papers_recipe_says_where_its_fields_come_from(name):
    recipe = RECIPES[name]()
    kinds = {entry.kind for entry in recipe.provenance.values()}
    assert kinds <= {"stated", "inferred", "assumed", "changed"}
    assert "stated" in kinds
    assert recipe.paper.section
    # Described, in progress, or failed there.
    without = {"sun_finetune", "ma_scratch", "yu_squeezenet", "yu_tuned", "shcherbina_alexnet", *FUTURE}
    assert bool(recipe.paper.reported) != (name in without or name.startswith("ma_overfit"))


def test_a_change_is_typed_and_leaves_the_rest():
    recipe = find("demo")
    new = changed(recipe, ["optimizer.peak_lr=0.5", "model.stem=small", "compute.compile=true"])
    assert (new.optimizer.peak_lr, new.model.stem, new.compute.compile) == (0.5, "small", True)
    assert new.schedule == recipe.schedule
    assert recipe.optimizer.peak_lr != 0.5


def test_steps_and_epochs_replace_each_other():
    new = changed(find("demo"), ["schedule.epochs=2"])
    assert (new.schedule.epochs, new.schedule.steps) == (2, None)
    assert changed(new, ["schedule.steps=7"]).schedule.steps == 7


def test_a_changed_field_of_a_paper_is_marked():
    new = changed(find("sun_vanilla"), ["optimizer.peak_lr=0.01"])
    assert new.provenance["optimizer.peak_lr"].kind == "changed"
    assert new.provenance["model.name"].kind == "stated"


def test_a_changed_field_within_a_list_is_marked_and_goes_with_it():
    new = changed(find("sun_improved"), ["augment.0.probability=0.3"])
    assert new.augment[0].probability == 0.3
    assert new.provenance["augment.0.probability"].kind == "changed"
    none = changed(new, ["augment=[]"])
    assert "augment.0.probability" not in none.provenance
    assert none.provenance["augment"].kind == "changed"


@pytest.mark.parametrize("path", ["augment.7.probability", "augment.first", "optimizer.rate", "name.x"])
def test_provenance_names_fields(path):
    value = find("sun_improved").model_dump(mode="json")
    value["provenance"][path] = {"kind": "stated", "why": "so"}
    with pytest.raises(TinlabError, match=f"provenance names '{path}', which is no field"):
        parse_recipe(value, "here")


def test_operations_are_told_apart_by_their_kind():
    new = changed(find("demo"), ['augment=[{"kind": "flip", "probability": 0.1}]'])
    assert new.augment == (Flip(probability=0.1),)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("optimizer.peak_lr=fast", ["optimizer.peak_lr", "number", "'fast'"]),
        ("optimizer.peak_lr=-1", ["optimizer.peak_lr", "greater than 0"]),
        ("optimizer.peak_lr=NaN", ["optimizer.peak_lr"]),
        ("optimizer.peek_lr=1", ["peek_lr", "did you mean 'peak_lr'"]),
        ("optimiser.peak_lr=1", ["optimiser", "did you mean 'optimizer'"]),
        ("optimizer.peak_lr.x=1", ["'x'"]),
        ("schedule.shape=step", ["milestone_steps"]),
        ("schedule=1", ["schedule"]),
        ('augment=[{"kind": "flop"}]', ["augment", "flip"]),
        ("peak_lr", ["PATH=VALUE"]),
        ("=3", ["PATH=VALUE"]),
        ("schedule.steps=null", ["exactly one"]),
        ("schedule.epochs=1e308", ["schedule.epochs", "less than or equal to 1000000"]),
        ("schedule.steps=1000000001", ["schedule.steps", "less than or equal to 1000000000"]),
        ("schedule.batch_size=1" + 400 * "0", ["schedule.batch_size", "less than or equal to"]),
        ("evaluate_every_epochs=1e308", ["evaluate_every_epochs", "less than or equal to"]),
        ("data.image_sizes=[]", ["data.image_sizes"]),
        ("name=../etc", ["name"]),
        ("optimizer.name=adagard", ["optimizer.name", "sgd, adamw, muon, lion, and timm:NAME", "'adagard'"]),
        ("optimizer.name=timm:a/b", ["optimizer.name", "timm:NAME"]),
        ("optimizer.rest_lr=0.1", ["rest_lr goes with muon"]),
        ("optimizer.newton_schulz_steps=3", ["newton_schulz_steps goes with muon"]),
        ("optimizer.beta2=0.9", ["beta2"]),
        ("optimizer.lookahead_alpha=0.9", ["lookahead_alpha goes with lookahead_steps"]),
        ("optimizer.ema_decay=1", ["optimizer.ema_decay", "less than 1"]),
        ("optimizer.clip_norm=0", ["optimizer.clip_norm", "greater than 0"]),
        ("optimizer.sam_rho=-1", ["optimizer.sam_rho"]),
        ("schedule.accumulate=7", ["accumulate: 128 images are not 7 equal parts"]),
        ("schedule.shape=inverse_time", ["decay"]),
        ("schedule.decay=0.1", ["decay goes with shape 'inverse_time'"]),
        ("schedule.shape=one_cycle", ["warmup_fraction", "rise_fraction"]),
        ("schedule.low_momentum=0.8", ["low_momentum goes with shape one_cycle"]),
        ("schedule.patience=3", ["patience goes with shape plateau"]),
        ("compute.precision=fp8", ["compute.precision", "fp16"]),
    ],
)
def test_a_bad_change_is_refused_with_the_fields_name(assignment, words):
    with pytest.raises(TinlabError) as error:
        changed(find("demo"), [assignment])
    for word in words:
        assert word in str(error.value)


def test_unknown_fields_and_foreign_values_are_refused():
    good = find("demo").model_dump(mode="json")
    with pytest.raises(TinlabError, match="did you mean 'optimizer'"):
        parse_recipe({**good, "optimiser": {}}, "x.json")
    for value in ([], None, 3, "demo", {}, {**good, "schedule": None}):
        with pytest.raises(TinlabError, match=r"x\.json"):
            parse_recipe(value, "x.json")


def test_unreadable_files_are_named(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("{")
    with pytest.raises(TinlabError, match="not JSON"):
        read_recipe(path)
    path.write_text("[" * 100_000)
    with pytest.raises(TinlabError, match="not JSON"):
        read_recipe(path)
    path.write_text('{"name": "\\ud800"}')
    with pytest.raises(TinlabError, match="not JSON"):
        read_recipe(path)
    with pytest.raises(TinlabError, match="half of a character"):
        changed(find("demo"), ['augment="\\ud800"'])
    with pytest.raises(TinlabError, match="cannot be read"):
        read_recipe(tmp_path / "none.json")
    with pytest.raises(TinlabError, match="there is no recipe 'dmo'; try demo"):
        find("dmo")


def test_the_digest_follows_what_decides_the_result_and_nothing_else():
    recipe = find("sun_vanilla")
    assert recipe.model_copy(update={"summary": "x", "paper": None, "provenance": {}}).digest == recipe.digest
    assert changed(recipe, ["optimizer.peak_lr=0.2"]).digest != recipe.digest


def test_length_in_steps():
    assert Schedule(epochs=2, batch_size=100).total_steps(1000) == 20
    assert Schedule(epochs=0.001, batch_size=100).total_steps(1000) == 1
    assert Schedule(steps=15_000, batch_size=100).total_steps(3) == 15_000


def test_recipes_are_values():
    with pytest.raises(ValueError, match="frozen"):
        find("demo").schedule.batch_size = 3
    assert isinstance(find("demo"), Recipe)


def test_plateau_watches_tune_alone():
    recipe = changed(find("demo"), ["data.train_split=train", "schedule.shape=plateau"])
    with pytest.raises(TinlabError, match=r"plateau' watches the loss on tune.*data.train_split"):
        changed(recipe, ["data.train_split=train+tune"])


def test_how_often_is_measured_decides_where_the_rate_follows_it():
    recipe = changed(find("demo"), ["data.train_split=train"])
    often = ["evaluate_every_epochs=0.5"]
    assert changed(recipe, often).digest == recipe.digest
    watching = changed(recipe, ["schedule.shape=plateau"])
    assert changed(watching, often).digest != watching.digest


def test_momentum_falls_in_a_cycle():
    cycle = ["schedule.shape=one_cycle", "schedule.warmup_fraction=0", "schedule.low_momentum=0.85"]
    assert changed(find("demo"), cycle).schedule.low_momentum == 0.85
    with pytest.raises(TinlabError, match=r"schedule.low_momentum 0.85 is above optimizer.momentum 0.8"):
        changed(find("demo"), [*cycle, "optimizer.momentum=0.8"])


def test_a_recipe_and_the_same_read_from_its_file_have_one_digest():
    for name in RECIPES:
        recipe = find(name)
        assert parse_recipe(json.loads(recipe.model_dump_json()), name).digest == recipe.digest, name
