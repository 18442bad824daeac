"""Export a run: its ONNX files, checked, and what they cost and gain."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinlab.classifier import Classifier, load
from tinlab.data.pack import Pack, Split
from tinlab.errors import TinlabError
from tinlab.evaluating import predictions_of
from tinlab.evaluation.ensemble import gain_interval
from tinlab.evaluation.predict import forward
from tinlab.export.check import BATCH_SIZES, Agreement, Logits, compare
from tinlab.export.graph import write_graph
from tinlab.export.int8 import CALIBRATION_IMAGES, calibration_rows, quantise
from tinlab.export.libraries import library
from tinlab.export.runtime import load_onnx
from tinlab.export.speed import images_per_second
from tinlab.files import write_atomically
from tinlab.recipe import Compute
from tinlab.runs import pack_of

SPLIT = "val"
TIMED_SECONDS = 0.3
"""Of one way to run the network, in one of five rounds, with one batch size."""


@dataclass(frozen=True)
class Way:
    """One way to run the network.

    `top1_percent` is over the `images` of `Exported`; `change` is it minus PyTorch's in float32, in points,
    with its 95% interval over images. `agreement` compares with PyTorch in float32 too. Speeds are images/s
    in batches of 1 and 64.
    """

    name: str
    file: str | None
    megabytes: float | None
    top1_percent: float | None
    change: tuple[float, float, float] | None
    agreement: Agreement | None
    batch_1_images_per_second: float
    batch_64_images_per_second: float


@dataclass(frozen=True)
class Exported:
    """What `export_run` made. `images` of val were measured, and `calibration_images` of train gave the
    ranges of the int8 file (None without one)."""

    file: str
    int8_file: str | None
    images: int
    calibration_images: int | None
    threads: int
    ways: tuple[Way, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def export_run(
    run: str | Path,
    out: str | Path | None = None,
    *,
    int8: bool = False,
    images: int | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    pack: Pack | None = None,
) -> Exported:
    """Write the network of run folder `run` to ONNX file `out`, by default model.onnx in the run's folder.

    With `int8` its quantised form stands beside it, as model-int8.onnx. Accuracy is measured on `images` of
    val (None: all), drawn by a fixed seed. The files get their places when they agree with PyTorch on real
    images. Raises TinlabError where a library, the checkpoint or the pack is missing, where the network
    cannot be exported, and where the files cannot be written or do not agree.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        library(name)
    classifier = load(run, "cpu")
    opened = classifier.run
    out = Path(out) if out is not None else opened.path / "model.onnx"
    int8_out = out.with_name(f"{out.stem}-int8{out.suffix}") if int8 else None
    for place in (out, int8_out):
        if place is not None and place.is_dir():
            raise TinlabError(f"--out {place} is a folder; name a file, such as {place / 'model.onnx'}")
    pack = pack or pack_of(opened)
    own = predictions_of(run, split=SPLIT, pack=pack, device="cpu")
    held_out, step = pack.split(SPLIT), own.about["step"]
    held_out.verify_once()
    about = {
        "precision": "fp32",
        "recipe": opened.recipe.name,
        "recipe_digest": opened.recipe.digest,
        "seed": str(opened.seed),
        "step": step,
        "pack_digest": opened.pack_digest,
    }
    reference = torch_logits(classifier, Compute(precision="fp32"))
    real = np.array(held_out.images[: sum(BATCH_SIZES)])

    def write(temporary: Path) -> None:
        write_graph(temporary, classifier.model, opened.preprocessing, opened.classes, about)
        found = compare(load_onnx(temporary).logits, reference, real)
        if not found.close:
            raise TinlabError(
                f"the ONNX file of {run} gives other logits than PyTorch (by up to {found.difference:.2g}; "
                f"{found.tolerance:.2g} is allowed) and was not kept; try another onnxruntime"
            )

    _write(out, write)
    if int8_out is not None:
        train = pack.split("train")
        train.verify_once()
        rows = calibration_rows(train.labels, calibration_images)
        calibration_images = len(rows)
        calibration = np.array(train.images[rows])

        def write_int8(temporary: Path) -> None:
            quantise(out, temporary, calibration)
            if not np.isfinite(compare(load_onnx(temporary).logits, reference, real).difference):
                raise TinlabError(f"the int8 file of {run} gives logits that are no numbers; it was not kept")

        _write(int8_out, write_int8)
    chosen = _chosen(held_out, images)
    ways = _measure(classifier, own.logits, held_out, chosen, real, out, int8_out)
    return Exported(
        file=str(out.resolve()),
        int8_file=str(int8_out.resolve()) if int8_out else None,
        images=len(chosen),
        calibration_images=calibration_images if int8 else None,
        threads=torch.get_num_threads(),
        ways=ways,
    )


def torch_logits(classifier: Classifier, compute: Compute) -> Logits:
    """The eager network as a function of uint8 arrays, computing as `compute` says."""

    def logits(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            preprocessing = classifier.run.preprocessing
            return forward(classifier.model, preprocessing, torch.from_numpy(images), compute).numpy()

    return logits


def _measure(
    classifier: Classifier,
    own: np.ndarray,
    held_out: Split,
    chosen: np.ndarray,
    real: np.ndarray,
    out: Path,
    int8_out: Path | None,
) -> tuple[Way, ...]:
    """The rows of the table: PyTorch as the run was measured, in float32, and the files."""
    compute, threads = classifier.run.recipe.compute, torch.get_num_threads()
    ways: dict[str, tuple[Logits, Path | None]] = {
        "PyTorch fp32": (torch_logits(classifier, Compute(precision="fp32")), None)
    }
    if compute.precision != "fp32":
        ways[f"PyTorch {compute.precision}"] = (torch_logits(classifier, compute), None)
    for name, place in (("ONNX fp32", out), ("ONNX int8", int8_out)):
        if place is not None:
            ways[name] = (load_onnx(place, threads=threads).logits, place)
    timed = {name: logits for name, (logits, _) in ways.items()}
    speeds = images_per_second(timed, real, seconds=TIMED_SECONDS)
    labels = held_out.labels[chosen]
    right: dict[str, np.ndarray] = {}
    for name, (logits, _) in ways.items():
        if name == f"PyTorch {compute.precision}":
            scores = own[chosen]
        else:
            scores = np.concatenate([logits(np.array(held_out.images[rows])) for rows in _parts(chosen)])
        right[name] = scores.argmax(axis=1) == labels
    return tuple(
        Way(
            name=name,
            file=None if place is None else str(place.resolve()),
            megabytes=None if place is None else place.stat().st_size / 1e6,
            top1_percent=100 * float(right[name].mean()) if held_out.labelled else None,
            change=(
                gain_interval(right[name], right["PyTorch fp32"])
                if held_out.labelled and name != "PyTorch fp32"
                else None
            ),
            agreement=(compare(logits, ways["PyTorch fp32"][0], real) if name != "PyTorch fp32" else None),
            batch_1_images_per_second=speeds[name][1],
            batch_64_images_per_second=speeds[name][64],
        )
        for name, (logits, place) in ways.items()
    )


def _chosen(held_out: Split, images: int | None) -> np.ndarray:
    if images is None or images >= len(held_out):
        return np.arange(len(held_out))
    return np.sort(np.random.default_rng(0).permutation(len(held_out))[:images])


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + 64] for start in range(0, len(rows), 64)]


def _write(path: Path, write: Any) -> None:
    try:
        write_atomically(path, write)
    except OSError as error:
        raise TinlabError(f"{path} cannot be written: {error.strerror or error}") from error
