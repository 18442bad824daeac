"""Packs, checkpoints and files of weights, damaged in their bytes and in what their headers promise."""

from __future__ import annotations

import io
import json
import random
import struct
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from strange.changes import WORDS, changed_bytes, changed_value, json_bytes, node_instead
from strange.data_sets import official_files, without_clashes, zipped
from strange.sandbox import Fault, Files, Folder, Node, Part


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


PARTS = (
    Part("pack", make_pack, try_pack),
    Part("checkpoint", make_checkpoint, try_checkpoint),
    Part("weights", make_weights, try_weights),
)
