"""What tinlab writes and reads again as text: recipes, sets, results, studies, answers; and whole runs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from strange.binary import (
    pack_files,
    run_files,
    safetensors,
)
from strange.changes import WORDS, changed_bytes, changed_value, json_bytes, node_instead, odd_value, places
from strange.data_sets import without_clashes
from strange.sandbox import Fault, Files, Node, Part
from tinlab.errors import TinlabError


@cache
def recipe_values() -> tuple[dict[str, Any], ...]:
    """Recipes of all kinds as JSON, and a study's."""
    from tinlab import recipes

    return tuple(json.loads(json.dumps(make().model_dump(mode="json"))) for make in recipes.RECIPES.values())


def make_recipe(rng: random.Random) -> Files:
    value: Any = rng.choice(recipe_values())
    if rng.random() < 0.15:
        value = {
            "name": "s",
            "recipes": [value, "demo"],
            "grid": {"optimizer.peak_lr": [0.1, 0.2]},
            "seeds": [0, 1],
        }
    return {"recipe.json": node_instead(rng, json_bytes(rng, changed_value(rng, value)), 0.01)}


def try_recipe(place: Path, out: Path) -> None:
    from tinlab import models, recipes
    from tinlab.recipe import parse_recipe
    from tinlab.study.plan import find, read_study, resolved, trials, whole

    path = place / "recipe.json"
    if b'"recipes"' in (path.read_bytes() if path.is_file() and path.stat().st_size < 1e7 else b""):
        study = resolved(find([str(path)], {}))
        if not trials(study) or len({r.name for r in whole(study)}) != len(whole(study)):
            raise Fault("a study without trials")
        read_study(path)
        return
    recipe = recipes.find(str(path))
    value = recipe.model_dump(mode="json")
    again = parse_recipe(json.loads(json.dumps(value, allow_nan=False)), "again")
    if again.digest != recipe.digest or again != recipe:
        raise Fault("it reads otherwise the second time")
    for phase in recipe.phases:
        phase.schedule.total_steps(100_000)
        for operation in phase.augment:
            operation.lines()
        models.find(phase.model.name).resolve(phase.model)


def make_set(rng: random.Random) -> Files:
    value = rng.choice(recipe_values())
    paths = [".".join(map(str, path)) for path in places(value) if path]
    made = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        path = rng.choice(paths)
        draw = rng.random()
        if draw < 0.15:
            path = ".".join(
                rng.choice((*path.split("."), "", "0", "-1", "²", "٣", "9" * 30, "9" * 6000, *WORDS))
                for _ in range(rng.randrange(1, 5))
            )
        elif draw < 0.25:
            path = changed_bytes(rng, path.encode(), most=2).decode("utf-8", "surrogateescape")
        found: Any = rng.choice(
            (odd_value(rng), odd_value(rng), rng.choice(recipe_values()).get(path.split(".")[0]))
        )
        text = found if isinstance(found, str) else json.dumps(found)
        if rng.random() < 0.1:
            text = json_bytes(rng, found).decode("utf-8", "surrogateescape")
        if rng.random() < 0.1:
            text = rng.choice(
                (
                    "1:2",
                    "1:2:log",
                    "0:1e999",
                    "a|b",
                    "1,2,3",
                    "[1,2],[3]",
                    ",",
                    ":",
                    "|",
                    "1000000000",
                    "[" * 5000 + ":1",
                )
            )
        made.append(rng.choice((f"{path}={text}",) * 9 + (path, f"={text}", f"{path}=={text}")))
    recipe = rng.choice(recipe_values())["name"]
    return {"assignments": json.dumps([recipe, *made]).encode()}


def try_set(place: Path, out: Path) -> None:
    """`--set`, `--space`, `--seeds` and a study's `--set`, all of which take the same texts."""
    from tinlab import recipes
    from tinlab.cli.common import split_auto
    from tinlab.study.plan import Study, parse_grid, parse_seeds, resolved
    from tinlab.study.space import check_space, parse_space

    name, *given = json.loads((place / "assignments").read_text())
    base = recipes.RECIPES[name]()
    refusals: list[TinlabError] = []

    def use(function: Callable[[], Any]) -> None:
        try:
            function()
        except TinlabError as error:
            refusals.append(error)

    use(lambda: recipes.with_changes(base, split_auto(given)[0])[0].digest)
    use(lambda: check_space(parse_space(given), base))
    use(lambda: resolved(Study(name="s", recipes=(base,), grid=parse_grid(given[:2]))))
    use(lambda: parse_seeds(given[0].partition("=")[2]))
    if len(refusals) == 4:
        raise refusals[0]


CSV_FILES = ("results.csv", "measures.csv")


@cache
def csv_files() -> dict[str, bytes]:
    """Results and measures as tinlab writes them."""
    from tinlab.papers.measures import COLUMNS as MEASURES
    from tinlab.results import COLUMNS as RESULTS

    row = dict.fromkeys(RESULTS, "1") | {
        "recipe": "demo",
        "recipe_digest": "abc",
        "split": "val",
        "top1_percent": "51.02",
    }
    lines = [",".join(RESULTS), *[",".join(row.values())] * 2]
    measures = [",".join(MEASURES), ",".join(["sun-1", "top1", "3.5", *["x"] * (len(MEASURES) - 3)])]
    return {
        "results.csv": "\n".join(lines).encode() + b"\n",
        "measures.csv": "\n".join(measures).encode() + b"\n",
    }


def make_results(rng: random.Random) -> Files:
    """A run's record: result, curves, predictions; and the tables that results end in."""
    files: dict[str, Node] = {**run_files(), **csv_files()}
    names = [name for name in files if "/checkpoints/" not in name] + ["run/result.json", "run/metrics.jsonl"]
    for name in sorted(set(rng.sample(names, rng.choice((1, 1, 2, 3))))):
        node = files.get(name)
        if not isinstance(node, bytes):
            continue
        if name.endswith(".jsonl"):
            lines = [json.loads(line) for line in node.splitlines()]
            node = b"\n".join(
                json_bytes(rng, changed_value(rng, line)) if rng.random() < 0.5 else json.dumps(line).encode()
                for line in lines
            )
        elif name.endswith(".json"):
            node = json_bytes(rng, changed_value(rng, json.loads(node)))
        elif name.endswith(".safetensors"):
            node = safetensors(rng, node)
        elif name.endswith(".csv"):
            node = _changed_csv(rng, node)
        else:
            node = changed_bytes(rng, node)
        files[name] = node_instead(rng, node, 0.01)
    if rng.random() < 0.05:
        files.pop(rng.choice(list(files)))
    return without_clashes(dict(files))


def _changed_csv(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return changed_bytes(rng, data)
    lines = [line.split(",") for line in data.decode().splitlines()]
    for _ in range(rng.randrange(1, 4)):
        line = rng.choice(lines[1:] if rng.random() < 0.9 else lines)
        line[rng.randrange(len(line))] = rng.choice((*WORDS, '"', '"a,b"', "nan", "x" * 200_000))
    if rng.random() < 0.2:
        lines[rng.randrange(len(lines))].append("more")
    return "\n".join(",".join(line) for line in lines).encode(
        "utf-8", rng.choice(("surrogatepass", "replace"))
    )


def try_results(place: Path, out: Path) -> None:
    from tinlab import results, runs
    from tinlab.evaluating import saved_predictions
    from tinlab.evaluation.metrics import judge
    from tinlab.papers.measures import read_measures

    refusals: list[TinlabError] = []

    def use(function: Callable[[], Any]) -> None:
        try:
            function()
        except TinlabError as error:
            refusals.append(error)

    def listed() -> None:
        for run in runs.list_runs(place):
            result = run.result or {}
            last = (run.metrics() or [{}])[-1]
            f"{result.get('top1_percent', 0):.2f} {result.get('epochs', last.get('epoch', 0)):.1f}"
            f"{result.get('train_seconds', last.get('train_seconds', 0)) / 60:.1f}"
            run.environment.get("gpu")
            run.started_at[:16].replace("T", " ")

    def predictions() -> None:
        found = saved_predictions(place / "run")
        if found is not None:
            judge(found.logits, found.labels)

    use(listed)
    use(predictions)
    use(lambda: runs.open_run(place / "run").result)
    use(lambda: results.mean_top1_percent(place / "results.csv"))
    use(lambda: read_measures(place / "measures.csv"))
    # A copy of the tables is written to: the run itself is only read.
    copy = out / "results.csv"
    if (place / "results.csv").is_file() and (place / "results.csv").stat().st_size < 1e7:
        copy.write_bytes((place / "results.csv").read_bytes())
    use(lambda: results.record(place / "run", copy))
    if refusals:
        raise refusals[0]


def make_report(rng: random.Random) -> Files:
    files = dict(make_results(rng))
    for name in CSV_FILES:
        files.pop(name, None)
    if rng.random() < 0.5:
        name = rng.choice(("run/recipe.json", "run/classes.json", "run/environment.json", "run/result.json"))
        value = json.loads(run_files()[name])
        files[name] = json_bytes(rng, changed_value(rng, value))
    return without_clashes(files)


def try_report(place: Path, out: Path) -> None:
    from tinlab.report.page import write_report

    page = write_report(place / "run", out=out / "report.html", explain=False, device="cpu")
    html = page.read_text(encoding="utf-8")
    for bad in ("<script>alert", "<img src=x>", "</title></style>", "\u202e", "\x1b", "\x9b"):
        if bad in html:
            raise Fault(f"the page holds {bad!r}")


@cache
def study_files() -> dict[str, bytes]:
    """A study's folder with two runs."""
    from tinlab.recipe import Recipe
    from tinlab.study.attempt import Row
    from tinlab.study.plan import Study, resolved, trials

    run = run_files()
    about = json.loads(run["run/run.json"])
    recipe = Recipe.model_validate(json.loads(run["run/recipe.json"]))
    study = resolved(
        Study(name="s", recipes=(recipe, recipe.model_copy(update={"name": "other"})), seeds=(0,))
    )
    files = {"study/study.json": json.dumps(study.model_dump(mode="json")).encode()}
    for trial in trials(study):
        name = f"{trial.key}-20260101-000000"
        for path, data in run.items():
            if path.endswith("recipe.json"):
                data = json.dumps(trial.recipe.model_dump(mode="json")).encode()
            if "/checkpoints/" not in path or path.endswith("state.json"):
                files[path.replace("run/", f"study/runs/{name}/", 1)] = data
        row = Row(recipe=trial.recipe.name, recipe_digest=trial.recipe.digest, seed=trial.seed,
        status="finished",
                  pack_digest=about["pack_digest"], run=f"runs/{name}", top1_percent=50.0,
                  split="val")  # fmt: skip
        files[f"study/trials/{trial.key}.json"] = row.model_dump_json().encode()
    return files


def make_study(rng: random.Random) -> Files:
    files: dict[str, Node] = dict(study_files())
    names = [name for name in files if name.endswith((".json", ".jsonl", ".safetensors"))]
    names += 8 * [name for name in names if name.endswith("study.json") or "/trials/" in name]
    for name in {rng.choice(names) for _ in range(rng.choice((1, 1, 2)))}:
        node = files[name]
        assert isinstance(node, bytes)
        if name.endswith(".json"):
            node = json_bytes(rng, changed_value(rng, json.loads(node)))
        else:
            node = safetensors(rng, node) if name.endswith(".safetensors") else changed_bytes(rng, node)
        files[name] = node_instead(rng, node, 0.01)
    return without_clashes(dict(files))


def try_study(place: Path, out: Path) -> None:
    from tinlab.study.page import differing_fields, read_study, verdict
    from tinlab.study.run import outcome
    from tinlab.study.summary import interval_note, shown_difference, shown_mean, summarise

    done = read_study(place / "study")
    lines = summarise(done)
    for line in lines:
        shown_mean(line), shown_difference(line)
    for row in done.rows:
        outcome(row)
    verdict(lines), interval_note(lines), differing_fields(done)


def make_answers(rng: random.Random) -> Files:
    """A file of answers for the challenge's server, and the ensemble's file."""
    lines = [["val_0.JPEG", "n02"], ["val_1.JPEG", "n01"]]
    for _ in range(rng.randrange(3)):
        line = rng.choice(lines)
        if not line:
            continue
        line[rng.randrange(len(line))] = rng.choice((*WORDS, "n01", "val_0.JPEG"))
    text = rng.choice(("\n", "\r\n", "\r", "\n\n")).join(
        rng.choice((" ", " ", " ", "\t", "  ")).join(line) for line in lines
    )
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.4:
        data = changed_bytes(rng, data)
    member = {"run": "../run", "recipe": "tiny", "recipe_digest": "x", "seed": 0, "step": 2, "weight": 0.5}
    ensemble = {
        "format": "tinlab-ensemble-1", "tinlab": "0.1.0", "rule": "probabilities", "pool": "probabilities",
        "temperature": 1.0,
        "order": [0, 1], "fitted_on": None, "pack_digest": "x", "members": [member, {**member,
        "run": "../other"}],
    }  # fmt: skip
    return {
        "answers.txt": node_instead(rng, data, 0.02),
        "ensemble.json": json_bytes(rng, changed_value(rng, ensemble)),
        **{f"pack/{name}": content for name, content in pack_files().items()},
    }


def try_answers(place: Path, out: Path) -> None:
    from tinlab.data.pack import Pack
    from tinlab.evaluating.ensemble import open_ensemble
    from tinlab.evaluating.submission import check_submission

    refusal: TinlabError | None = None
    try:
        open_ensemble(place / "ensemble.json")
        raise Fault("an ensemble of runs that are not there")
    except TinlabError as error:
        refusal = error
    found = check_submission(place / "answers.txt", Pack.open(place / "pack"), split="val")
    if found.images != 2:
        raise refusal


PARTS = (
    Part("recipe", make_recipe, try_recipe),
    Part("set", make_set, try_set),
    Part("results", make_results, try_results),
    Part("report", make_report, try_report),
    Part("study", make_study, try_study),
    Part("answers", make_answers, try_answers),
)
