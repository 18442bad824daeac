"""An exported file, read back: images in, words out, with onnxruntime in place of torch.

Everything that it needs is in the file: the graph takes images as they are stored, uint8 (B, H, W, 3), and
the metadata holds the classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tinlab.data.given import Guess, Image, guesses, several, squares
from tinlab.data.pack import ClassInfo
from tinlab.errors import TinlabError
from tinlab.export.libraries import library
from tinlab.files import parse_json

BATCH_SIZE = 64
INPUT, LOGITS, PROBABILITIES = "images", "logits", "probabilities"
"""The graph's input and its outputs."""


class OnnxClassifier:
    """`predict(images)` gives the likeliest classes of each image. Made by `load_onnx(path)`.

    `metadata` is what the file says of itself, strings; `classes` and `image_size` are read from it.
    """

    def __init__(self, path: Path, session: Any, metadata: dict[str, str]) -> None:
        self.path = path
        self.session = session
        self.metadata = metadata
        self.classes = tuple(ClassInfo(*pair) for pair in parse_json(metadata["classes"]))
        self.image_size = int(metadata["image_size"])

    def predict(self, images: Image | Iterable[Image], top: int = 5) -> list[list[Guess]]:
        """The `top` likeliest classes of each image, likeliest first; images as `tinlab.load` takes them."""
        return guesses(self.probabilities(several(images)), self.classes, top)

    def probabilities(self, images: Iterable[Image]) -> np.ndarray:
        """Softmax over the classes, float32 (N, C)."""
        return self._run(PROBABILITIES, squares(images, self.image_size))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, size, size, 3) -> float32 (N, C)."""
        return self._run(LOGITS, images)

    def _run(self, output: str, images: np.ndarray) -> np.ndarray:
        rows = [
            self.session.run([output], {INPUT: images[start : start + BATCH_SIZE]})[0]
            for start in range(0, len(images), BATCH_SIZE)
        ]
        return np.concatenate(rows) if rows else np.empty((0, len(self.classes)), np.float32)


def load_onnx(path: str | Path, *, threads: int | None = None) -> OnnxClassifier:
    """The classifier in ONNX file `path`, on the CPU; `threads` are by default as many as there are cores.

    Raises TinlabError where the file cannot be read or is none that `tinlab export` wrote.
    """
    path = Path(path)
    onnxruntime = library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised
    if threads is not None:
        options.intra_op_num_threads = threads
    if not path.is_file():
        raise TinlabError(f"{path} is not there; 'tinlab export RUN --out {path}' writes it")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no class in common but this
        reason = str(error).strip().splitlines()[0]
        raise TinlabError(f"{path} cannot be read as an ONNX file: {reason}") from error
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    try:
        return OnnxClassifier(path, session, metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise TinlabError(
            f"{path} is an ONNX file that does not name its classes; 'tinlab export RUN' writes one that does"
        ) from error
