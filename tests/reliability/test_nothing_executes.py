"""Nothing that a stranger hands over runs: one test reads the sources, the others try."""

from __future__ import annotations

import ast
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from strange.binary import run_files
from strange.sandbox import said

import tinlab
from tinlab import models
from tinlab.errors import TinlabError
from tinlab.models.weights import load_into
from tinlab.recipe import Model

SOURCES = sorted(Path(tinlab.__file__).parent.rglob("*.py"))
UNSAFE_MODULES = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "code",
    "runpy",
    "pty", "xmlrpc", "multiprocessing.reduction",
}  # fmt: skip
UNSAFE_NAMES = {"eval", "exec", "compile", "__import__", "execfile", "breakpoint", "input"}
UNSAFE_CALLS = {
    "os.system", "os.popen", "os.execv", "os.execvp", "os.execve", "os.spawnl", "os.spawnv", "os.startfile",
    "subprocess.getoutput", "subprocess.getstatusoutput", "torch.hub.load", "torch.jit.load", "torch.package",
    "np.fromregex", "tempfile.mktemp", "builtins.eval", "shutil.unpack_archive",
}  # fmt: skip


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a call's function; empty where it is something else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def faults_of(source: str) -> list[str]:
    """What could run a stranger's code, as (line, what)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            found += [
                f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in UNSAFE_MODULES
            ]
        if not isinstance(node, ast.Call):
            continue
        name, given = dotted(node.func), {key.arg: key.value for key in node.keywords}
        said_true = {key for key, value in given.items() if getattr(value, "value", None) is True}
        constant = bool(node.args) and isinstance(node.args[0], ast.Constant)
        wrong = (
            name in UNSAFE_NAMES
            or name in UNSAFE_CALLS
            or name.rpartition(".")[2]
            in ("load_module", "exec_module", "extractall", "unpack_archive", "from_string")
            or (name.endswith("torch.load") and "weights_only" not in said_true)
            or (name.endswith("np.load") and getattr(given.get("allow_pickle"), "value", None) is not False)
            or "allow_pickle" in said_true
            or "shell" in said_true
            # A program is a list of words. What a name holds is looked at below.
            or (name.startswith("subprocess.") and constant)
            or (name.endswith("Environment") and "autoescape" not in said_true)
            or (name.endswith("Template"))
        )
        if wrong:
            found.append(f"{node.lineno}: {name}")
    return found


def test_the_reader_of_sources_sees():
    for bad in (
        "import pickle", "from yaml import load", "eval('1')", "import torch\ntorch.load(x)", "exec(a)",
        "torch.load(x, weights_only=False)", "np.load(x)", "np.load(x, allow_pickle=True)", "os.system('x')",
        "subprocess.run('ls', shell=True)", "subprocess.run('ls')", "Environment(loader=x)",
        "zip.extractall(x)",
        "Environment(autoescape=False)", "jinja2.Template('x')",
    ):  # fmt: skip
        assert len(faults_of(bad)) == 1, bad
    for good in (
        "model.eval()",
        "re.compile('x')",
        "torch.compile(m)",
        "subprocess.run(['ls'])",
        "json.loads(x)",
    ):
        assert faults_of(good) == [], good


def test_no_source_holds_what_could_run_a_strangers_code():
    assert {
        str(path): found for path in SOURCES if (found := faults_of(path.read_text(encoding="utf-8")))
    } == {}
    assert len(SOURCES) > 150


def test_only_charts_are_marked_as_safe_in_templates():
    """All else is escaped. What is marked was drawn in tinlab.report.figures, which escapes its words."""
    import re

    marked = []
    for path in sorted(Path(tinlab.__file__).parent.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        marked += [found.strip() for found in re.findall(r"\{\{([^}]*)\|\s*safe\s*\}\}", text)]
        assert "autoescape" not in text
        assert not re.search(r"\son\w+\s*=|javascript:", text), f"{path}: a handler in a template"
    assert sorted(marked) == ["chart", "chart.svg", "run.class_bars", "study.chart"]


class Bomb:
    """Something whose unpickling runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def bombs(marker: Path) -> dict[str, bytes]:
    """Files that would touch `marker` in the hands of a careless reader."""
    new, old = io.BytesIO(), io.BytesIO()
    torch.save({"fc.weight": torch.zeros(2), "x": Bomb(marker)}, new)
    torch.save(Bomb(marker), old, _use_new_zipfile_serialization=False)
    hidden = io.BytesIO()
    with zipfile.ZipFile(new) as read, zipfile.ZipFile(hidden, "w") as write:
        for name in read.namelist():
            write.writestr(name, pickle.dumps(Bomb(marker)) if name.endswith("data.pkl") else read.read(name))
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()"
    calls = f"c__builtin__\nexec\n(V{code}\ntR.".encode()
    return {
        "new.pth": new.getvalue(),
        "old.pth": old.getvalue(),
        "hidden.pt": hidden.getvalue(),
        "bare.bin": pickle.dumps({"fc.weight": Bomb(marker)}),
        "calls.bin": calls,
        "getattr.pth": b"cos\nsystem\n(Vtouch " + str(marker).encode() + b"\ntR.",
        "renamed.safetensors": new.getvalue(),
    }


def test_a_bomb_is_one(tmp_path):
    """What the test below gives to tinlab does harm elsewhere."""
    marker = tmp_path / "owned"
    torch.load(io.BytesIO(bombs(marker)["new.pth"]), weights_only=False)
    assert marker.exists()
    marker.unlink()
    pickle.loads(bombs(marker)["calls.bin"])
    assert marker.exists()


@pytest.mark.parametrize("name", ["new.pth", "old.pth", "hidden.pt", "bare.bin", "calls.bin", "getattr.pth",
                                  "renamed.safetensors"])  # fmt: skip
def test_weights_of_a_stranger_run_nothing(name, tmp_path):
    marker = tmp_path / "owned"
    path = tmp_path / name
    path.write_bytes(bombs(marker)[name])
    knobs = Model(name="resnet18", width=2, stem="patch", weights=str(path))
    model = models.build(Model(name="resnet18", width=2, stem="patch"), 2, image_size=8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(TinlabError) as caught:
        load_into(model, models.find("resnet18"), knobs, image_size=8)
    assert name in said(caught.value)
    assert not marker.exists()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def used(knobs: Model) -> None:
    models.find(knobs.name)
    models.check_weights(knobs, 2, image_size=8)


def test_a_recipe_is_data(tmp_path):
    """Words that are code elsewhere are words: refused where they are no value, and kept where words go."""
    from tinlab import recipes
    from tinlab.recipe import parse_recipe
    from tinlab.report.page import environment

    marker = tmp_path / "owned"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    value = json.loads(json.dumps(recipes.find("demo").model_dump(mode="json")))
    for words in (code, f"{{{{ {code} }}}}", f"!!python/object/apply:os.system ['touch {marker}']",
    f"$(touch {marker})",
                  f"`touch {marker}`", f"eval({code!r})",
                  "{{ cycler.__init__.__globals__.os.system('x') }}"):  # fmt: skip
        for path in ("optimizer.peak_lr", "schedule.epochs", "model.name", "augment", "optimizer.name",
        "model.init",
                     "model.weights", "compute.precision", "name"):  # fmt: skip
            changes = {**value, path.split(".")[0]: words} if "." not in path else {
                **value, path.split(".")[0]: {**value[path.split(".")[0]], path.split(".")[1]: words}
            }  # fmt: skip
            (tmp_path / "recipe.json").write_text(json.dumps(changes))
            try:
                recipe = recipes.find(str(tmp_path / "recipe.json"))
            except TinlabError:
                continue
            with pytest.raises(TinlabError):  # taken as words; whoever uses them as a name finds none
                used(recipe.model)
        kept = parse_recipe({**value, "summary": words}, "x")
        assert kept.summary == words
        shown = environment().from_string("{{ x }}").render(x=words)
        assert "7" * 7 not in shown
        assert shown.count("{") == words.count("{")
    assert not marker.exists()


def test_a_run_of_a_stranger_is_data(tmp_path):
    """A run's folder whose files hold code in the places of numbers and names."""
    from tinlab.classifier import load

    marker = tmp_path / "owned"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    state = "run/checkpoints/step-00000002/state.json"
    content = dict(run_files())
    for name, fields in (
        (state, {"structure": {"conv1": {"in_channels": code}}}), (state, {"optimizer": {"x": code}}),
        (state, {"stage": code}), ("run/run.json", {"seed": code}), ("run/run.json", {"preprocessing": code}),
        ("run/classes.json", [{"id": code, "words": 5}]), ("run/recipe.json", {"model": code}),
    ):  # fmt: skip
        changed = {**json.loads(content[name]), **fields} if isinstance(fields, dict) else fields
        for path, data in {**content, name: json.dumps(changed).encode()}.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(data)
        with pytest.raises(TinlabError):
            load(tmp_path / "run", "cpu")
    header = json.dumps(
        {"__metadata__": {"x": code}, code: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    )
    weights = struct.pack("<Q", len(header)) + header.encode() + bytes(4)
    (tmp_path / "run/checkpoints/step-00000002/model.safetensors").write_bytes(weights)
    for path, data in content.items():
        if not path.endswith("model.safetensors"):
            (tmp_path / path).write_bytes(data)
    with pytest.raises(TinlabError):
        load(tmp_path / "run", "cpu")
    assert not marker.exists()
