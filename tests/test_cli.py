"""The commands as a person types them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tinlab.files import write_json


def tinlab(*words: object, cache: Path | None = None, cwd: Path | None = None, data: str = ""):
    """Run the program; $TINLAB_DATA is not the tester's."""
    environment = {**os.environ, "TINLAB_DATA": data, "TINLAB_CACHE": str(cache or "/nonexistent/cache")}
    return subprocess.run(
        [sys.executable, "-m", "tinlab", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=120,
        check=False,
    )


def ok(*words: object, **where):
    done = tinlab(*words, **where)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def recipe_file(tiny_recipe, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.json"
    write_json(path, tiny_recipe.model_dump(mode="json"))
    return path


@pytest.fixture(scope="module")
def run(recipe_file, shapes_pack, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    made = json.loads(ok("train", recipe_file, "--data", shapes_pack.path, "--out", out, "--json"))
    return Path(made["run"])


def test_help_lists_the_commands_without_what_is_slow_to_import():
    shown = ok("--help")
    work = ("demo", "train", "study", "search", "lr-find", "overfit", "evaluate", "report", "compare")
    after = ("ensemble", "submit", "explain", "export", "serve")
    for command in (*work, *after, "runs", "recipes", "models", "augment", "data", "results"):
        assert f" {command} " in shown
    imported = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, tinlab.cli; print('torch' in sys.modules, 'numpy' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert imported.stdout.split() == ["False", "False"]


def test_version():
    from tinlab import __version__

    assert ok("--version").strip() == f"tinlab {__version__}"


def test_from_nothing_to_a_report(tmp_path):
    """Render, pack, audit, look, train, evaluate, report: each from what the one before printed."""
    cache = tmp_path / "cache"
    folder = tmp_path / "images"
    made = json.loads(
        ok("data", "render", folder, "--classes", 3, "--train-per-class", 12, "--val-per-class", 4, "--json")
    )
    packed = json.loads(ok("data", "pack", made["folder"], "--json", cache=cache))
    assert packed["splits"] == {"train": 33, "tune": 3, "val": 12, "test": 200}
    assert packed["source"]["kind"] == "rendered"
    assert packed["pack"].startswith(str(cache))
    again = json.loads(ok("data", "pack", folder, "--json", cache=cache))
    assert again["reused"]
    audited = json.loads(ok("data", "audit", packed["pack"], "--json"))
    assert audited["pack"] == packed["pack"]
    assert "identical" in ok("data", "audit", packed["pack"])
    ok("data", "show", packed["pack"], "--out", tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"
    # A data set is packed on the way, into the cache, where it is already.
    words = ("--set", "schedule.steps=3", "--set", "model.width=4", "--set", "schedule.batch_size=8")
    trained = json.loads(
        ok("train", "demo", "--data", folder, *words, "--out", tmp_path / "runs", "--json", cache=cache)
    )
    assert trained["steps"] == 3
    listed = json.loads(ok("runs", "--out", tmp_path / "runs", "--json"))
    assert [row["run"] for row in listed] == [trained["run"]]
    assert listed[0]["finished"]
    measured = json.loads(ok("evaluate", trained["run"], "--json"))
    assert measured["top1_percent"] == trained["top1_percent"]
    assert [c["id"] for c in measured["classes_by_accuracy"]] != []
    page = json.loads(ok("report", trained["run"], "--json"))["report"]
    assert "data:image/" in Path(page).read_text()


def test_what_to_type_next_is_quoted(tmp_path):
    folder = tmp_path / "my images"
    said = ok("data", "render", folder, "--classes", 2, "--train-per-class", 2, "--val-per-class", 1)
    assert shlex.split(said.splitlines()[-1]) == ["next:", "tinlab", "data", "pack", str(folder)]


def test_evaluating_reads_what_was_saved(run):
    place = run / "predictions" / "val.safetensors"
    before = place.stat().st_mtime_ns
    ok("evaluate", run)
    assert place.stat().st_mtime_ns == before
    place.unlink()
    shown = ok("evaluate", run)
    assert place.is_file()
    assert "top-1" in shown
    tune = json.loads(ok("evaluate", run, "--split", "tune", "--json"))
    assert tune["images"] == 12


def test_a_changed_field_reaches_the_run(recipe_file, shapes_pack, tmp_path):
    made = json.loads(
        ok(
            "train", recipe_file, "--data", shapes_pack.path, "--out", tmp_path, "--seed", 9, "--json",
            "--set", "schedule.steps=2", "--set", "optimizer.name=adamw", "--set", "optimizer.nesterov=false",
        )
    )  # fmt: skip
    recipe = json.loads((Path(made["run"]) / "recipe.json").read_text())
    assert recipe["schedule"]["steps"] == 2
    assert recipe["optimizer"]["name"] == "adamw"
    assert made["seed"] == 9


def test_recipes_are_listed_with_paper_and_numbers():
    rows = {row["name"]: row for row in json.loads(ok("recipes", "--json"))}
    assert rows["sun_vanilla"]["reported_val_top1_percent"] == 52.0
    assert "Lei Sun" in ok("recipes")
    one = json.loads(ok("recipes", "sun_vanilla"))
    assert one["schedule"]["steps"] == 15_000


def test_networks_are_listed_with_what_they_cost():
    rows = {row["model"]: row for row in json.loads(ok("models", "--json"))}
    assert rows["resnet34"]["blocks"] == 16
    assert rows["resnet18"]["parameters"] == 11_279_112
    assert "layers" not in rows["resnet18"]
    shown = ok("models")
    assert all(name in shown for name in rows)


def test_a_networks_layers_are_drawn():
    shown = ok("models", "resnet18", "--set", "model.width=8", "--set", "model.final_survival=0.5")
    assert "layer4.1.conv2" in shown
    assert "64x2x2" in shown
    assert "5.75 of 8 blocks run in a step on average" in shown
    found = json.loads(
        ok("models", "torchvision:resnet18", "--image-size", "32", "--classes", "10", "--json")
    )
    assert found["layers"][-1] == {
        "name": "fc", "kind": "Linear", "output": [10], "parameters": 5130, "multiply_adds": 5120,
    }  # fmt: skip


def test_a_network_is_timed():
    words = ["--set", "model.width=4", "--batch-size", "4", "--image-size", "16", "--device", "cpu"]
    assert json.loads(ok("models", "resnet18", "--speed", "--json", *words))["train_images_per_second"] > 0


def test_a_network_that_does_not_fit_is_not_timed():
    """keras_alexnet has 1.4 billion parameters; 40 times as wide it fits nowhere."""
    done = tinlab("models", "keras_alexnet", "--speed", "--set", "model.width=1024", "--device", "cpu")
    assert done.returncode == 2
    assert "GB" in done.stderr


def test_progress_and_notes_stay_out_of_the_output(recipe_file, shapes_pack, tmp_path):
    done = tinlab("train", recipe_file, "--data", shapes_pack.path, "--out", tmp_path, "--json")
    json.loads(done.stdout)
    assert "images/s" in done.stderr


BAD = {
    "no data": (["train", "demo"], "data download"),
    "data without a name": (["evaluate", "RUN", "--data", ""], "--data is empty"),
    "no such data": (["train", "demo", "--data", "nowhere"], "nowhere"),
    "unknown recipe": (["train", "fast_cpuu", "--data", "PACK"], "fast_cpu"),
    "recipe is no json": (["train", "TEXT", "--data", "PACK"], "not JSON"),
    "recipe is missing": (["train", "none.json", "--data", "PACK"], "none.json"),
    "unknown field": (["train", "demo", "--data", "PACK", "--set", "model.widht=3"], "width"),
    "bad value": (["train", "demo", "--data", "PACK", "--set", "model.width=wide"], "model.width"),
    "no assignment": (["train", "demo", "--data", "PACK", "--set", "model.width"], "PATH=VALUE"),
    "unknown network": (["train", "demo", "--data", "PACK", "--set", "model.name=resnet"], "resnet18"),
    "unknown device": (["train", "demo", "--data", "PACK", "--device", "abacus"], "abacus"),
    "no such device": (["train", "demo", "--data", "PACK", "--device", "cuda:99"], "cuda:99"),
    "augment at no size": (["augment", "sun_heavy", "--data", "PACK", "--size", "0"], "--size"),
    "a split of no policy": (["augment", "--split", "val"], "--split is for the picture of a policy"),
    "a picture of no policy": (["augment", "--out", "OUT"], "--out is for the picture of a policy"),
    "a batch that is not timed": (["models", "--batch-size", "8"], "--batch-size goes with --speed"),
    "a device that is not used": (["models", "resnet18", "--device", "cpu"], "--device goes with --speed"),
    "policy that is not there": (["augment", "nope", "--data", "PACK"], "sun_heavy"),
    "misspelt policy": (["train", "demo", "--data", "PACK", "--set", "augment=sun_hevy"], "sun_heavy'?"),
    "network that is not there": (["models", "resnet19"], "resnet18"),
    "network of timm that is not there": (["models", "timm:resnet19"], "timm:resnet18"),
    "knob that a network lacks": (["models", "vgg16", "--set", "model.stem=small"], "vgg16 has none"),
    "size that a network cannot take": (["models", "torchvision:inception_v3"], "cannot take 64x64"),
    "weights that are not there": (
        ["train", "demo", "--data", "PACK", "--set", "model.weights=none.pth"],
        "there is no none.pth",
    ),
    "no time": (["train", "demo", "--data", "PACK", "--stop-after", "0"], "--stop-after is in minutes"),
    "a time that is no number": (["train", "demo", "--data", "PACK", "--stop-after", "nan"], "not nan"),
    "no end of time": (["train", "demo", "--data", "PACK", "--checkpoint-seconds", "inf"], "not inf"),
    "seed below 0": (["train", "demo", "--data", "PACK", "--out", "OUT", "--seed", "-1"], "2^63 - 1, not -1"),
    "seed beyond 64 bits": (
        ["augment", "sun_light", "--data", "PACK", "--seed", "9" * 26],
        "2^63 - 1, not 9",
    ),
    "augment without end": (
        ["augment", "sun_light", "--data", "PACK", "--columns", "100000000"],
        "beyond 250 million pixels",
    ),
    "render without end": (
        ["data", "render", "OUT", "--val-per-class", "100000000000"],
        "at most 10,000,000",
    ),
    "more pixels than are decoded": (["serve", "RUN", "--max-pixels", "200000000"], "89,478,485"),
    "neither recipe nor run": (["train"], "--resume"),
    "recipe and run": (["train", "demo", "--resume", "RUN"], "--resume"),
    "set and resume": (["train", "--resume", "RUN", "--set", "model.width=3"], "--set"),
    "resume no run": (["train", "--resume", "PACK"], "run.json"),
    "out is a file": (["train", "demo", "--data", "PACK", "--out", "TEXT"], "TEXT"),
    "data is text": (["train", "demo", "--data", "TEXT"], "TEXT"),
    "evaluate no run": (["evaluate", "PACK"], "run.json"),
    "evaluate unknown split": (["evaluate", "RUN", "--split", "nope"], "nope"),
    "evaluate unlabelled split": (["evaluate", "RUN", "--split", "test"], "published"),
    "report no run": (["report", "TEXT"], "run"),
    "pack nothing": (["data", "pack", "nowhere", "--out", "OUT"], "nowhere"),
    "pack of size 0": (["data", "pack", "IMAGES", "--out", "OUT", "--image-size", "0"], "image_size"),
    "pack over something": (["data", "pack", "IMAGES", "--out", "FULL"], "FULL"),
    "audit no pack": (["data", "audit", "TEXT"], "TEXT"),
    "show unknown split": (["data", "show", "PACK", "--split", "nope"], "nope"),
    "show no class": (["data", "show", "PACK", "--classes", "0"], "classes"),
    "render no classes": (["data", "render", "OUT", "--classes", "0"], "classes"),
    "render over something": (["data", "render", "FULL"], "FULL"),
    "download from nowhere": (["data", "download", "--url", "ftp://127.0.0.1/x.zip", "--to", "OUT"], "http"),
    "add rendered results": (["results", "add", "RUN", "--file", "OUT"], "rendered"),
    "unknown option": (["train", "demo", "--dta", "x"], "--data"),
    "unknown command": (["trian"], "train"),
    "seed is no number": (["train", "demo", "--seed", "x"], "'--seed'"),
    "no such port": (["serve", "RUN", "--port", "99999"], "'--port'"),
    "no run to serve": (["serve"], "tinlab serve --help'"),
    "no value": (["train", "demo", "--seed"], "'--seed'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_exit_code_2(case, run, shapes_pack, shapes_folder, tmp_path):
    words, expected = BAD[case]
    text, full, out = tmp_path / "TEXT", tmp_path / "FULL", tmp_path / "OUT"
    text.write_text("hello")
    full.mkdir()
    (full / "precious").write_text("keep")
    places = {
        "PACK": shapes_pack.path, "RUN": run, "IMAGES": shapes_folder, "TEXT": text, "FULL": full, "OUT": out,
    }  # fmt: skip
    done = tinlab(*(places.get(word, word) for word in words), cwd=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert expected in done.stderr.replace("\n", " ")
    lines = done.stderr.strip().splitlines()
    assert [line for line in lines if line.startswith("tinlab: ")] == lines[-1:]  # after progress, if any
    assert "Usage: " not in done.stderr
    assert done.stdout == ""
    assert text.read_text() == "hello"
    assert (full / "precious").read_text() == "keep"
    left = {path.name for path in tmp_path.iterdir()} - {"TEXT", "FULL"}
    assert left <= ({"OUT", "cache"} if "download" in words else set()), left


def test_without_data_a_cached_pack_is_used(recipe_file, shapes_folder, shapes_pack, tmp_path):
    cache = tmp_path / "cache"
    ok("data", "pack", shapes_folder, "--out", cache / "packs" / "tiny-imagenet-200-64-x")
    made = json.loads(ok("train", recipe_file, "--out", tmp_path / "runs", "--json", cache=cache))
    assert json.loads((Path(made["run"]) / "run.json").read_text())["pack"].startswith(str(cache))
    # The environment variable comes before the cache, and --data before both.
    named = ok(
        "train", recipe_file, "--out", tmp_path / "r2", "--json", cache=cache, data=str(shapes_pack.path)
    )
    other = json.loads((Path(json.loads(named)["run"]) / "run.json").read_text())
    assert other["pack"] == str(shapes_pack.path)
    assert tinlab("train", recipe_file, cache=cache, data="/nowhere").returncode == 2


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_what_others_name_like_torchruns_variables_is_told(name, shapes_pack, tmp_path, monkeypatch):
    monkeypatch.setenv(name, "first")
    done = tinlab("train", "demo", "--data", shapes_pack.path, "--set", "schedule.steps=1", cwd=tmp_path)
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr
    assert tinlab("evaluate", "nope", cwd=tmp_path).returncode == 2
    if done.returncode == 2:
        assert f"${name} is 'first'" in done.stderr


def test_what_would_start_again_cannot_be_told_to_stop(shapes_pack, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    done = tinlab("train", "demo", "--data", shapes_pack.path, "--stop-after", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "torchrun --max-restarts starts them again" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_runs_are_listed_with_the_split_that_they_were_measured_on(run, tmp_path):
    shutil.copytree(run, tmp_path / "runs" / "a")
    result = tmp_path / "runs" / "a" / "result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "split": "tune"}))
    (row,) = json.loads(ok("runs", "--out", tmp_path / "runs", "--json"))
    assert row["split"] == "tune"
    assert "tune" in ok("runs", "--out", tmp_path / "runs")


@pytest.mark.parametrize("found", [True, False])
def test_the_demo_says_which_images_it_uses(found, shapes_pack, tmp_path):
    """The whole demo, shortened from outside by a smaller recipe; `make demo` runs it at length."""
    script = (
        "import sys, tinlab.cli, tinlab.demo as demo, tinlab.recipes as recipes\n"
        "from tinlab.data import shapes\n"
        "from tinlab.recipe import changed\n"
        "small = changed(recipes.find('demo'), ['schedule.steps=3', 'model.width=4'])\n"
        "recipes.RECIPES['demo'] = lambda: small\n"
        "render = shapes.render\n"
        "shapes.render = lambda folder, progress: render(folder, classes=3, train_per_class=9)\n"
        "sys.argv[1:] = ['demo', '--out', sys.argv[1]]\n"
        "tinlab.cli.main()\n"
    )
    environment = {
        **os.environ,
        "TINLAB_CACHE": str(tmp_path / "cache"),
        "TINLAB_DATA": str(shapes_pack.path) if found else "",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (str(shapes_pack.path) if found else "a rendered stand-in set is used") in done.stderr
    page = Path(done.stdout.splitlines()[-1].removeprefix("report: "))
    assert page.is_file()
    assert "top-1" in done.stdout


def test_names_cannot_drive_the_terminal():
    from tinlab.terminal import plain

    assert plain("a\x1b[31mb\r\x07c\u202e") == "a\ufffd[31mb\ufffd\ufffdc\ufffd"
