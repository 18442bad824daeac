"""Exported networks beside PyTorch, and files that need neither torch nor tinlab."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tinlab
from tinlab import models
from tinlab.cli import app
from tinlab.data.pack import ClassInfo
from tinlab.errors import TinlabError
from tinlab.evaluating import evaluate, predictions_of
from tinlab.evaluation.predict import forward
from tinlab.export import load_onnx
from tinlab.export.check import compare
from tinlab.export.exporting import export_run, torch_logits
from tinlab.export.graph import write_graph
from tinlab.export.int8 import calibration_rows
from tinlab.export.libraries import library
from tinlab.export.speed import images_per_second
from tinlab.recipe import Compute, Model, changed
from tinlab.runs import Preprocessing
from tinlab.training import loop

CLASSES = [ClassInfo(f"n{i}", f"thing {i}, Res «{i}»") for i in range(7)]
PREPROCESSING = Preprocessing(64, (0.48, 0.45, 0.4), (0.28, 0.27, 0.29))
FAMILIES = {
    "resnet18": Model(name="resnet18", width=4, block_order="e", final_survival=0.5),
    "convnet9": Model(name="convnet9"),
    "squeezenet": Model(name="squeezenet"),
    "trinext_small": Model(name="trinext_small"),
    "timm": Model(name="timm:convnextv2_atto"),
}


@pytest.fixture(scope="module", autouse=True)
def _hurry():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinlab.export.exporting.TIMED_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def run(tiny_recipe, shapes_pack, tmp_path_factory) -> Path:
    """A run in bf16 that measures a moving average of its weights."""
    recipe = changed(tiny_recipe, ["schedule.steps=30", "optimizer.ema_decay=0.9"])
    return loop.train(recipe, shapes_pack, tmp_path_factory.mktemp("runs"), device="cpu").path


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    return export_run(run, tmp_path_factory.mktemp("out") / "m.onnx", int8=True, calibration_images=32)


def shake(model: torch.nn.Module) -> None:
    """Statistics of batch norm as training leaves them, so that folding them wrongly shows."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_pytorchs_logits(family, tmp_path):
    torch.manual_seed(0)
    model = models.build(FAMILIES[family], len(CLASSES))
    shake(model)
    model.train()  # as nobody should leave it
    path = tmp_path / "m.onnx"
    write_graph(path, model, PREPROCESSING, CLASSES, {"recipe": family})
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    loaded = load_onnx(path, threads=1)

    def reference(batch):
        with torch.inference_mode():
            compute = Compute(precision="fp32")
            return forward(model.eval(), PREPROCESSING, torch.from_numpy(batch), compute).numpy()

    found = compare(loaded.logits, reference, images, (1, 7, 12))
    assert found.close, found
    assert found.images == 20
    assert found.same_percent == 100
    expected = torch.from_numpy(reference(images)).softmax(1).numpy()
    assert np.allclose(loaded.probabilities(list(images)), expected, atol=1e-5)
    assert loaded.classes == tuple(CLASSES)
    assert loaded.metadata["recipe"] == family


def test_a_wrong_preprocessing_would_show(made, run, shapes_pack):
    """The check is no formality: images that are a little darker are not close, and no numbers neither."""
    loaded, images = load_onnx(made.file), np.array(shapes_pack.split("val").images)
    classifier = tinlab.load(run, device="cpu")
    good = torch_logits(classifier, Compute(precision="fp32"))
    assert compare(loaded.logits, good, images).close
    darker = (images * 0.98).astype(np.uint8)
    assert not compare(lambda batch: loaded.logits((batch * 0.98).astype(np.uint8)), good, images).close
    assert compare(loaded.logits, good, darker).close
    assert not compare(lambda batch: np.full((len(batch), 4), np.nan), good, images).close


def test_the_table(made, run):
    ways = {way.name: way for way in made.ways}
    assert list(ways) == ["PyTorch fp32", "PyTorch bf16", "ONNX fp32", "ONNX int8"]
    assert made.images == 40
    assert made.calibration_images == 32
    assert ways["PyTorch bf16"].top1_percent == pytest.approx(evaluate(run).metrics.top1_percent)
    assert ways["ONNX fp32"].top1_percent == ways["PyTorch fp32"].top1_percent
    assert ways["ONNX fp32"].change == (0, 0, 0)
    assert ways["ONNX fp32"].agreement.close
    assert ways["ONNX int8"].agreement.same_percent >= 80
    assert ways["ONNX int8"].agreement.difference > ways["ONNX fp32"].agreement.difference
    for way in made.ways:
        assert way.batch_1_images_per_second > 0
        assert way.batch_64_images_per_second > 0
        assert (way.file is None) == way.name.startswith("PyTorch")
        if way.file:
            assert way.megabytes == pytest.approx(Path(way.file).stat().st_size / 1e6)
    json.dumps(made.to_json(), allow_nan=False)


def test_words_are_those_of_the_run(made, run, shapes_pack, tmp_path):
    loaded, classifier = load_onnx(made.file), tinlab.load(run, device="cpu")
    image = np.array(shapes_pack.split("val").images[3])
    (ours,), (theirs,) = loaded.predict(image, top=2), classifier.predict(image, top=2)
    assert [guess.id for guess in ours] == [guess.id for guess in theirs]
    assert [guess.words for guess in ours] == [guess.words for guess in theirs]
    assert ours[0].probability == pytest.approx(theirs[0].probability, abs=0.02)  # which computes in bf16
    big = Image.fromarray(image).resize((150, 100))
    big.save(tmp_path / "big.png")
    assert loaded.predict([tmp_path / "big.png"]) == loaded.predict(big)
    assert loaded.predict([]) == []
    with pytest.raises(TinlabError, match="cannot be used as an image"):
        loaded.predict([3])
    assert len(loaded.logits(np.zeros((130, 64, 64, 3), np.uint8))) == 130


def test_the_file_needs_neither_torch_nor_tinlab(made, shapes_pack, tmp_path):
    pixels = np.array(shapes_pack.split("val").images[5])
    Image.fromarray(pixels).save(tmp_path / "image.png")
    program = """
import json, sys
sys.modules["torch"] = sys.modules["tinlab"] = None
import numpy, onnxruntime, PIL.Image
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
image = numpy.asarray(PIL.Image.open(sys.argv[2]))[None]
(probabilities,) = session.run(["probabilities"], {"images": image})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
print(json.dumps([classes[probabilities[0].argmax()][1], float(probabilities.max())]))
"""
    words = [sys.executable, "-c", program, made.file, str(tmp_path / "image.png")]
    found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    (expected,) = load_onnx(made.file).predict(pixels, top=1)
    assert found == [expected[0].words, pytest.approx(expected[0].probability)]
    light = "import sys, tinlab.export as e; e.load_onnx(sys.argv[1]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", light, made.file], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_what_the_file_says_of_itself(made, run, shapes_pack):
    for path, precision in ((made.file, "fp32"), (made.int8_file, "int8")):
        said = load_onnx(path).metadata
        recipe = json.loads((run / "recipe.json").read_text())["name"]
        assert (said["precision"], said["recipe"], said["seed"], said["step"]) == (
            precision,
            recipe,
            "0",
            "30",
        )
        assert said["tinlab_version"] == tinlab.__version__
        assert said["pack_digest"] == shapes_pack.digest
        about = json.loads((run / "run.json").read_text())["preprocessing"]
        assert json.loads(said["mean"]) == about["mean"]
        assert json.loads(said["std"]) == about["std"]
        assert str(Path(tinlab.__file__).parent).encode() not in Path(path).read_bytes()
        assert b"stack_trace" not in Path(path).read_bytes()


def test_int8_weights_are_rounded_by_channel_and_preprocessing_is_not(made):
    whole, small = onnx.load(made.file), onnx.load(made.int8_file)
    rounded = {
        output
        for node in small.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for output in node.output
    }
    for kind in ("Transpose", "Cast", "Softmax"):
        (node,) = (node for node in small.graph.node if node.op_type == kind)
        assert not rounded & set(node.input)
    # Transpose, Cast, Mul, Add: the graphs are the same up to the first convolution's input.
    before = [n for n in whole.graph.node if n.op_type in ("Transpose", "Cast", "Mul", "Add")][:4]
    after = [n for n in small.graph.node if n.op_type in ("Transpose", "Cast", "Mul", "Add")][:4]
    assert [list(n.input) for n in after] == [list(n.input) for n in before]
    values = {i.name: onnx.numpy_helper.to_array(i) for i in small.graph.initializer}
    exact = {i.name: onnx.numpy_helper.to_array(i) for i in whole.graph.initializer}
    dequantise = {n.output[0]: n for n in small.graph.node if n.op_type == "DequantizeLinear"}
    checked = 0
    for node in small.graph.node:
        if node.op_type != "Conv":
            continue
        by = dequantise[node.input[1]]
        weight, scale = values[by.input[0]], values[by.input[1]]
        assert weight.dtype == np.int8
        assert scale.shape == weight.shape[:1]
        name = by.input[0].removesuffix("_quantized")
        if name in exact:
            wide = scale[:, None, None, None]
            assert np.abs(weight * wide - exact[name]).max() <= 0.501 * scale.max()
            assert (np.abs(weight * wide - exact[name]) <= 0.501 * wide).all()
            checked += 1
        assert node.input[0] in dequantise
    assert checked >= 5


def test_calibration_images_are_balanced_and_seeded():
    labels = np.repeat(np.arange(20), [50] * 19 + [1])
    rows = calibration_rows(labels, 52)
    counts = np.bincount(labels[rows], minlength=20)
    assert (len(rows), len(set(rows))) == (52, 52)
    assert counts[19] == 1
    assert set(counts[:19]) <= {2, 3}
    assert np.array_equal(rows, calibration_rows(labels, 52))
    assert not np.array_equal(rows, calibration_rows(labels, 52, seed=1))
    assert np.array_equal(calibration_rows(labels, 9999), np.arange(len(labels)))


def test_ways_are_timed_in_turn():
    calls: list[str] = []

    def way(name):
        return lambda batch: calls.append(f"{name}{len(batch)}")

    images = np.zeros((3, 4, 4, 3), np.uint8)
    found = images_per_second({"a": way("a"), "b": way("b")}, images, (1, 5), rounds=2, seconds=0)
    assert calls == ["a1", "b1"] * 3 + ["a5", "b5"] * 3
    assert found.keys() == {"a", "b"}
    assert all(speed > 0 for sizes in found.values() for speed in sizes.values())


def test_what_does_not_agree_is_not_kept(run, made, tmp_path, monkeypatch):
    out = tmp_path / "m.onnx"
    out.write_text("old")
    monkeypatch.setattr(
        "tinlab.export.exporting.write_graph", lambda path, *rest: shutil.copy(made.file, path)
    )
    monkeypatch.setattr("tinlab.export.check.TOLERANCE", -1.0)
    with pytest.raises(TinlabError, match="other logits than PyTorch"):
        export_run(run, out)
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_network_that_cannot_be_exported(tmp_path):
    class Strange(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2] if x.sum() > 0 else x.flatten(1)[:, 2:4]

    with pytest.raises(TinlabError, match="cannot be exported to ONNX"):
        write_graph(tmp_path / "m.onnx", Strange(), PREPROCESSING, CLASSES[:2], {})


def test_missing_libraries_are_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TinlabError, match=r"pip install 'tinlab\[export\]'"):
        export_run(run)
    with pytest.raises(TinlabError, match="onnxruntime"):
        load_onnx("m.onnx")
    assert library("onnx") is onnx


def test_what_is_no_exported_file(tmp_path):
    with pytest.raises(TinlabError, match="is not there"):
        load_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(TinlabError, match="cannot be read as an ONNX file"):
        load_onnx(tmp_path / "text.onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [result])
    other = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(TinlabError, match="does not name its classes"):
        load_onnx(tmp_path / "other.onnx")


def test_the_command(run, tmp_path):
    out = tmp_path / "m.onnx"
    done = CliRunner().invoke(app, ["export", str(run), "--out", str(out), "--images", "16", "--json"])
    assert done.exit_code == 0, done.exception
    shown = json.loads(done.stdout)
    assert (shown["file"], shown["images"], shown["int8_file"]) == (str(out), 16, None)
    labels = predictions_of(run).labels
    assert len(labels) == 40
    for words, message in (
        (["export", str(run), "--format", "tflite"], "there is: onnx"),
        (["export", str(run), "--out", str(tmp_path)], "is a folder"),
        (["export", str(tmp_path)], "not a run folder"),
        (["export", str(run), "--out", "/proc/no/m.onnx"], "cannot be written"),
    ):
        done = CliRunner().invoke(app, words)
        assert isinstance(done.exception, TinlabError), done.exception
        assert message in str(done.exception)
