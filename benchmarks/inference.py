"""Images a second of one trained network's ways to run: eager PyTorch, compiled, ONNX Runtime, and int8.

By default a narrow ResNet-18 (width 48 behind a 3x3/2 stem, 64x64 pixels, 200 classes)
with drawn weights on drawn images: neither changes the speed. `--run` takes a run's network and its val
images. All ways take uint8 images and give logits, use `--threads` threads, and run in turn in one process;
the numbers are medians of `--rounds` rounds. Ratios are to eager PyTorch in float32 at the same batch size.

    python benchmarks/inference.py [--run RUN] [--compile] [--threads N] [--rounds 5] [--json]
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring

EAGER = "eager fp32"


def main() -> None:
    parser = measuring.options(__doc__, rounds=5)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--compile", action="store_true", help="time torch.compile too; it takes minutes")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--seconds", type=float, default=1.0, help="of one way in one round")
    args = parser.parse_args()

    import numpy as np
    import torch
    from torch import nn

    import tinlab
    from tinlab import models, recipe
    from tinlab.compute import place
    from tinlab.data.pack import ClassInfo, Pack
    from tinlab.evaluation.predict import forward
    from tinlab.export import load_onnx
    from tinlab.export.graph import write_graph
    from tinlab.export.int8 import calibration_rows, quantise
    from tinlab.export.speed import images_per_second
    from tinlab.runs import Preprocessing
    from tinlab.tuning import tune_process

    tune_process()
    torch.set_num_threads(args.threads)
    cpu, model = torch.device("cpu"), nn.Module()
    if args.run:
        classifier = tinlab.load(args.run, "cpu")
        model, preprocessing, classes = classifier.model, classifier.run.preprocessing, classifier.classes
        pack = Pack.open(classifier.run.pack)
        images = np.array(pack.split("val").images[: max(args.batch_sizes)])
        train = pack.split("train")
        calibration = np.array(train.images[calibration_rows(train.labels)])
        name = str(args.run)
    else:
        torch.manual_seed(0)
        preprocessing = Preprocessing(64, (0.48, 0.45, 0.4), (0.28, 0.27, 0.28))
        classes = tuple(ClassInfo(str(i), str(i)) for i in range(200))
        network = recipe.Model(name="resnet18", width=48, stem="patch", shortcut="average_pool")
        model = place(models.build(network, 200, image_size=64), recipe.Compute(), cpu).eval()
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (max(args.batch_sizes), 64, 64, 3), dtype=np.uint8)
        calibration = rng.integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)
        name = "resnet18 of width 48, drawn weights"

    def eager(network: nn.Module, precision: str) -> Callable[[np.ndarray], np.ndarray]:
        compute = recipe.Compute(precision=precision)

        def logits(batch: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return forward(network, preprocessing, torch.from_numpy(batch), compute).numpy()

        return logits

    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "int8.onnx"
        write_graph(whole, model, preprocessing, classes, {})
        quantise(whole, small, calibration)
        megabytes = {"onnx fp32": whole.stat().st_size / 1e6, "onnx int8": small.stat().st_size / 1e6}
        ways = {EAGER: eager(model, "fp32"), "eager bf16": eager(model, "bf16")}
        if args.compile:
            compiled: Any = torch.compile(model, dynamic=False)
            ways |= {"compiled fp32": eager(compiled, "fp32"), "compiled bf16": eager(compiled, "bf16")}
        ways["onnx fp32"] = load_onnx(whole, threads=args.threads).logits
        ways["onnx int8"] = load_onnx(small, threads=args.threads).logits
        rounds = [
            images_per_second(ways, images, args.batch_sizes, rounds=1, seconds=args.seconds)
            for _ in range(args.rounds)
        ]
    rows = [
        measuring.compare(
            f"inference, batch {size}: {way}",
            [one[way][size] for one in rounds],
            [one[EAGER][size] for one in rounds],
            "images/s",
            EAGER,
        )
        for way in ways
        for size in args.batch_sizes
        if way != EAGER
    ]
    sizes = ", ".join(f"{way} {value:.1f} MB" for way, value in megabytes.items())
    heading = f"{name}, {args.threads} threads, {args.seconds:g} s a round; {sizes}"
    measuring.report(rows, heading, as_json=args.json)


if __name__ == "__main__":
    measuring.run(main)
