"""What tinlab writes and reads again: recipes, packs, runs with their checkpoints and results, studies."""

from __future__ import annotations

import io
import json
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from strange.changes import WORDS, changed_bytes, changed_value, json_bytes, node_instead, odd_value, places
from strange.data_sets import official_files, without_clashes, zipped
from strange.sandbox import Fault, Files, Folder, Node, Part
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


@cache
def pack_files() -> dict[str, bytes]:
    """The files of a small pack."""
    from tinlab.data.packing import pack

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "set.zip").write_bytes(zipped(official_files()))
        pack(Path(folder) / "set.zip", Path(folder) / "pack", image_size=8, workers=1)
        return {path.name: path.read_bytes() for path in sorted((Path(folder) / "pack").iterdir())}


def npy(rng: random.Random, data: bytes) -> bytes:
    """An .npy file with another header."""
    counts = (0, 1, 5, 6, -1, -6, 10**9, 2**40, 2**62, 2**70, 10**30, "'x'")
    kinds = ("|u1", "|O", "<i8", "<i4", "<f8", "<U3", "|V8", "<M8[s]", "x")
    shape = rng.choice(("({},)", "({}, 8, 8, 3)", "({}, 6)", "[{}]", "()", "{}")).format(rng.choice(counts))
    usual = f"{{'descr': '{rng.choice(kinds)}', 'fortran_order': {rng.random() < 0.1}, 'shape': {shape}, }}"
    header = rng.choice(
        (
            *[usual] * 8, "{'descr': [('a', '<i8')], 'fortran_order': True, 'shape': (6,), }", "{" * 3000, "",
            "__import__('os').system('touch owned')", "(" * 200 + ")" * 200, "{'descr': '<i8'",
        )
    ).encode()  # fmt: skip
    version = rng.choice((b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\7\0"))
    head = header.ljust(117) + b"\n"
    length = struct.pack("<H", len(head)) if version == b"\1\0" else struct.pack("<L", len(head))
    return b"\x93NUMPY" + version + length + head + data[128:]


def make_pack(rng: random.Random) -> Files:
    files: dict[str, Node] = dict(pack_files())
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice(list(files) + 6 * ["pack.json"])
        node = files.get(name)
        if not isinstance(node, bytes):
            continue
        if name.endswith(".json") and rng.random() < 0.9:
            try:
                value = json.loads(node)
            except (ValueError, RecursionError):
                continue
            files[name] = json_bytes(rng, changed_value(rng, value))
        elif name.endswith(".npy") and rng.random() < 0.4:
            files[name] = npy(rng, node)
        elif name.endswith(".npy") and rng.random() < 0.1:
            files[name] = zipped({"arr_0.npy": node})
        else:
            files[name] = changed_bytes(rng, node)
        if rng.random() < 0.03:
            files[name] = node_instead(rng, node, 1)
    if rng.random() < 0.03:
        files.pop(rng.choice(list(files)))
    return {f"pack/{name}": node for name, node in files.items()}


def try_pack(place: Path, out: Path) -> None:
    from tinlab.data.audit import audit
    from tinlab.data.pack import Pack
    from tinlab.data.subset import subset_pack
    from tinlab.data.words import short_names

    opened = Pack.open(place / "pack")
    short_names(opened.info.classes)
    for name in opened.splits:
        split = opened.split(name)
        if len(split.names) != len(split) or not all(isinstance(one, str) for one in split.names):
            raise Fault("names that do not fit their images")
        if len(split) and not -1 <= int(split.labels.min()) <= int(split.labels.max()) < len(
            opened.info.classes
        ):
            raise Fault("a label that no class has")
        np.asarray(split.images[:2]).sum()
        if len(split):
            mean, std = opened.moments(name)
            if not (np.isfinite(mean).all() and np.isfinite(std).all()):
                raise Fault("moments that are no numbers")
    audit(opened, near_duplicates=False)
    opened.verify()
    data = {name: content for name, content in pack_files().items() if name != "pack.json"}
    described = {name: content for name, content in data.items() if name in opened.info.files}
    for name, content in described.items():
        if (place / "pack" / name).read_bytes() != content and (
            place / "pack" / "pack.json"
        ).read_bytes() == pack_files()["pack.json"]:
            raise Fault(f"{name} was changed, and verify found nothing")
    subset_pack(opened, [one.id for one in opened.info.classes][:2], out / "subset")


@cache
def run_files() -> dict[str, bytes]:
    """The files of a finished run of a small network, by their paths; its pack stands in as well."""
    from tinlab.data.pack import Pack
    from tinlab.recipe import Model, Recipe, Schedule
    from tinlab.training.loop import train

    recipe = Recipe(name="tiny", model=Model(width=2, stem="patch"), schedule=Schedule(steps=2, batch_size=4))
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / "pack"
        pack.mkdir()
        for name, data in pack_files().items():
            (pack / name).write_bytes(data)
        run = train(recipe, Pack.open(pack), Path(folder) / "runs", device="cpu").path
        found = {
            f"run/{path.relative_to(run)}": path.read_bytes()
            for path in sorted(run.rglob("*"))
            if path.is_file() and "tensorboard" not in str(path) and path.name != "lock"
        }
    about = json.loads(found["run/run.json"])
    found["run/run.json"] = json.dumps({**about, "pack": "/nowhere"}).encode()
    return found


def safetensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file with another header, or other bytes."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.3 or not 0 < length < len(data):
        return changed_bytes(rng, data)
    body = data[8 + length :]
    header = changed_value(rng, json.loads(data[8 : 8 + length]))
    if isinstance(header, dict) and rng.random() < 0.6:
        for _ in range(rng.choice((1, 1, 2))):
            name = rng.choice(list(header) or ["x"])
            about = header.get(name)
            if isinstance(about, dict):
                about[rng.choice(("dtype", "dtype", "shape", "data_offsets"))] = rng.choice(
                    ("F32", "BF16", "F16", "F64", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4",
                    "C64", "U64", "U16",
                     [], [0], [1], [-1], [2**40], [2**62, 4], [0, 0], [0, 8], [8, 0], [0, len(body)], "x",
                     None)
                )  # fmt: skip
    elif isinstance(header, dict) and rng.random() < 0.7:
        return _rebuilt(rng, json.loads(data[8 : 8 + length]), body)
    text = json.dumps(header).encode()
    stated = len(text)
    if rng.random() < 0.1:
        stated = rng.choice((0, 1, 2**60, 2**63, 2**64 - 1, 100_000_001, len(text) + 8, len(text) - 8))
    if rng.random() < 0.1:
        body = changed_bytes(rng, body or b"\0")
    return struct.pack("<Q", stated % 2**64) + text + body


_BYTES = {
    "F32": 4,
    "BF16": 2,
    "F16": 2,
    "F64": 8,
    "I64": 8,
    "I32": 4,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "C64": 8,
    "U64": 8,
}


def _rebuilt(rng: random.Random, header: dict[str, Any], body: bytes) -> bytes:
    """A whole safetensors file whose tensors are others: of another kind, shape or name, or none."""
    made: dict[str, Any] = {}
    data = bytearray()
    chosen = set(rng.sample(list(header), min(len(header), rng.choice((1, 1, 2)))))
    for name, about in header.items():
        if name == "__metadata__":
            made[name] = changed_value(rng, about) if rng.random() < 0.3 else about
            made[name] = (
                {key: str(value) for key, value in made[name].items()} if isinstance(made[name], dict) else {}
            )
            continue
        kind, shape, (start, stop) = about["dtype"], about["shape"], about["data_offsets"]
        content = body[start:stop]
        if name in chosen:
            if rng.random() < 0.2:
                continue
            if rng.random() < 0.2:
                name = (
                    rng.choice((*WORDS, f"{name}x", "params/#0", "lr/#0", "step/fc.bias"))
                    .encode("utf-8", "replace")
                    .decode()
                )
            kind = rng.choice(list(_BYTES)) if rng.random() < 0.6 else kind
            shape = rng.choice((shape, shape[::-1], [], [0], [1, *shape], shape[:-1], [2]))
            size = int(np.prod(shape, dtype=np.int64)) * _BYTES.get(kind, 4)
            filler = rng.choice((b"\x7f", b"\xff", b"\0", b"\1"))
            content = (content if rng.random() < 0.5 else b"")[:size].ljust(size, filler)
        made[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(made).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def make_checkpoint(rng: random.Random) -> Files:
    files: dict[str, Node] = dict(run_files())
    names = [name for name in files if "/checkpoints/" in name]
    for name in rng.sample(names, rng.choice((1, 1, 2))):
        node = files[name]
        assert isinstance(node, bytes)
        if name.endswith(".json"):
            value = json.loads(node)
            value["structure"] = rng.choice(
                (*[None] * 8, {"conv1": {"in_channels": 3, "out_channels": 1, "groups": 1}})
            )
            node = json_bytes(rng, changed_value(rng, value))
        else:
            node = safetensors(rng, node)
        files[name] = node_instead(rng, node, 0.01)
    if rng.random() < 0.03:
        files[
            rng.choice(
                ("run/checkpoints/step-x", "run/checkpoints/step-99999999", "run/checkpoints/step-²/x")
            )
        ] = Folder()
    return without_clashes(dict(files))


def try_checkpoint(place: Path, out: Path) -> None:
    import torch

    from tinlab import models, runs
    from tinlab.classifier import load
    from tinlab.data.pack import Pack  # noqa: F401
    from tinlab.evaluating.saved import measured
    from tinlab.training import checkpoint
    from tinlab.training.optimizer import build

    measured(place / "run")
    classifier = load(place / "run", "cpu")
    classifier.logits(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    run = runs.open_run(place / "run")
    last = checkpoint.latest(run.path)
    assert last is not None
    model = models.build(run.recipe.model, len(run.classes), image_size=8)
    updater = build(run.recipe.optimizer, model)
    checkpoint.restore(last, model, updater, torch.device("cpu"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    updater.step()


@cache
def weights_files() -> tuple[bytes, ...]:
    """Files of weights that torch writes."""
    import torch

    tensors = {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2), "n": torch.tensor(3)}
    fitting = dict(_small_network().state_dict())
    made = []
    for value, options in (
        *[(fitting, {}), ({"state_dict": {f"module.{k}": v for k, v in fitting.items()}}, {})] * 3,
        (tensors, {}), ({"state_dict": tensors, "epoch": 3}, {}), (tensors,
        {"_use_new_zipfile_serialization": False}),
        ({"model": {f"module.{k}": v for k, v in tensors.items()}}, {}), ([1, 2], {}), ({"x": "y"}, {}),
        ({"a": torch.zeros(3).to_sparse(), "b": torch.zeros(2, dtype=torch.complex64)}, {}),
        ({"a": torch.zeros(4, device="meta")}, {}),
        ({"a": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)}, {}),
    ):  # fmt: skip
        file = io.BytesIO()
        torch.save(value, file, **options)
        made.append(file.getvalue())
    return tuple(made)


def make_weights(rng: random.Random) -> Files:
    seeds = weights_files()
    data = rng.choice(seeds)
    if rng.random() < 0.4 and data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        name = rng.choice([name for name in members if name.endswith("data.pkl")] * 3 + list(members))
        members[name] = _changed_pickle(rng, members[name])
        data = zipped(members, zipfile.ZIP_STORED)
    elif rng.random() < 0.8:
        data = _changed_pickle(rng, data) if not data.startswith(b"PK") else changed_bytes(rng, data, seeds)
    suffix = rng.choice((".pth", ".pth", ".pt", ".bin", ".safetensors"))
    if suffix == ".safetensors":
        data = safetensors(rng, run_files()["run/checkpoints/step-00000002/model.safetensors"])
    return {f"weights{suffix}": node_instead(rng, data, 0.02)}


def _changed_pickle(rng: random.Random, data: bytes) -> bytes:
    """A pickle with other opcodes: among them those that call."""
    opcodes = (b"cos\nsystem\n", b"c__builtin__\neval\n", b"\x93", b"R", b"i", b"o", b"b", b"\x81", b"(",
    b"t", b".", b"0", b"2",
               b"X\x05\0\0\0touch", b"\x8c\x02os", b"ctorch._utils\n_rebuild_tensor_v2\n", b"K\x01",
               b"\x8a\xff", b"B\xff\xff\xff\x7f", b"Q")  # fmt: skip
    made = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(made) + 1)
        code = rng.choice(opcodes)
        made[at : at + rng.choice((0, 0, 1, len(code)))] = code
    return changed_bytes(rng, bytes(made)) if rng.random() < 0.3 else bytes(made)


def try_weights(place: Path, out: Path) -> None:
    from tinlab import models
    from tinlab.models.network import Network  # noqa: F401
    from tinlab.models.weights import load_into
    from tinlab.recipe import Model

    path = next(place.iterdir())
    knobs = Model(name="resnet18", width=2, stem="patch", weights=str(path))
    network = models.find(knobs.name)
    model = _small_network()
    load_into(model, network, knobs, image_size=8)


@cache
def _small_network() -> Any:
    from tinlab import models
    from tinlab.recipe import Model

    return models.build(Model(name="resnet18", width=2, stem="patch"), 2, image_size=8)


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
    files: dict[str, Node] = dict(run_files()) | dict(csv_files())
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
    verdict(lines), interval_note(lines, len(done.study.seeds)), differing_fields(done)


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
    Part("pack", make_pack, try_pack),
    Part("checkpoint", make_checkpoint, try_checkpoint),
    Part("weights", make_weights, try_weights),
    Part("results", make_results, try_results),
    Part("report", make_report, try_report),
    Part("study", make_study, try_study),
    Part("answers", make_answers, try_answers),
)
