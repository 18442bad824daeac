"""A run's folder, and a pack, made up for tests of the report: nothing is trained, everything looks real."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors.numpy import save_file

from tinlab.data.digests import OFFICIAL_DIGEST
from tinlab.data.pack import (
    HEADER_BYTES,
    ClassInfo,
    Pack,
    PackInfo,
    SplitInfo,
    block_rows,
    digest_of_digests,
)
from tinlab.evaluation.metrics import measure

WORDS = """goldfish, Carassius auratus
bullfrog, Rana catesbeiana
tailed frog, bell toad
American alligator, Alligator mississipiensis
boa constrictor
scorpion
black widow, Latrodectus mactans
tarantula
centipede
koala, koala bear, kangaroo bear
jellyfish
brain coral
snail
sea slug, nudibranch
American lobster, Maine lobster
spiny lobster, langouste
black stork, Ciconia nigra
king penguin, Aptenodytes patagonica
albatross, mollymawk
dugong, Dugong dugon""".splitlines()


def made_pack(folder: Path, *, classes: int = 20, per_class: int = 50, size: int = 64) -> Pack:
    """A pack with splits train (one image a class) and val: a disc, bar or ring on a gradient."""
    folder.mkdir(parents=True)
    splits, files = {}, {}
    for split, each in (("train", 1), ("val", per_class)):
        labels = np.tile(np.arange(classes), each)
        images = np.stack([_picture(int(label), i, size) for i, label in enumerate(labels)])
        np.save(folder / f"{split}.npy", images)
        np.save(folder / f"{split}.labels.npy", labels.astype(np.int64))
        (folder / f"{split}.names.json").write_text(
            json.dumps([f"{split}/{i}.png" for i in range(len(labels))])
        )
        total = tuple(images.sum((0, 1, 2), dtype=np.float64).tolist())
        splits[split] = SplitInfo(split, 0, len(labels), total, total)
        for file in (f"{split}.labels.npy", f"{split}.names.json"):
            files[file] = xxhash.xxh3_128_hexdigest((folder / file).read_bytes())
        header, step = (folder / f"{split}.npy").read_bytes()[:HEADER_BYTES], block_rows(size)
        pieces = [header, *(images[at : at + step].tobytes() for at in range(0, len(images), step))]
        files[f"{split}.npy"] = digest_of_digests(map(xxhash.xxh3_128_digest, pieces))
    source = {"kind": "official_zip", "name": "tiny-imagenet-200.zip"}
    info = PackInfo("tiny-imagenet", size, made_classes(classes), splits, files, source)
    (folder / "pack.json").write_text(json.dumps(info.to_json()))
    return Pack.open(folder)


def made_classes(classes: int) -> tuple[ClassInfo, ...]:
    words = [WORDS[i] if i < len(WORDS) else f"thing {i}, res {i}" for i in range(classes)]
    return tuple(ClassInfo(f"n{1443537 + 101 * i:08d}", word) for i, word in enumerate(words))


def made_run(
    folder: Path, *, classes: int = 20, per_class: int = 50, epochs: int = 30, pack: Pack | None = None
) -> Path:
    """A finished run's folder with every file that the report reads; tests take away or damage some."""
    folder.mkdir(parents=True)
    logits, labels = made_logits(classes, per_class)
    metrics = measure(logits, labels)
    indices = np.arange(len(labels))
    (folder / "predictions").mkdir()
    save_file(
        {"logits": logits, "labels": labels, "indices": indices}, folder / "predictions" / "val.safetensors"
    )
    write(folder / "classes.json", [{"id": c.id, "words": c.words} for c in made_classes(classes)])
    write(folder / "recipe.json", made_recipe(epochs))
    write(folder / "environment.json", made_environment(classes, per_class, pack))
    lines = made_lines(epochs, metrics.top1_percent, metrics.top5_percent, metrics.loss)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {
        "recipe": "he2016-resnet18", "recipe_digest": "3f9a1c0d22b7", "seed": 0, "split": "val",
        "top1_percent": metrics.top1_percent, "top5_percent": metrics.top5_percent, "loss": metrics.loss,
        "images": len(labels), "steps": 391 * epochs, "epochs": epochs, "train_seconds": 84.0 * epochs,
        "elapsed_seconds": 90.0 * epochs, "images_per_second": 1190.4, "parameters": 11_271_432,
        "finished_at": "2025-03-14T15:09:26+00:00",
    }  # fmt: skip
    write(folder / "result.json", result)
    return folder


def made_logits(classes: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a network that is better on some classes, and takes each class for its neighbour."""
    rng = np.random.default_rng(7)
    labels = np.tile(np.arange(classes), per_class).astype(np.int64)
    skill = 1.2 + 2.6 * rng.permutation(classes) / classes
    logits = rng.normal(0, 1.35, (len(labels), classes))
    logits[np.arange(len(labels)), labels] += skill[labels]
    logits[np.arange(len(labels)), labels ^ 1 if classes % 2 == 0 else (labels + 1) % classes] += 1.3
    return (1.4 * logits).astype(np.float32), labels


def made_recipe(epochs: int) -> dict[str, Any]:
    return {
        "name": "he2016-resnet18",
        "summary": "ResNet-18 as in the paper, with random crops and a step schedule.",
        "paper": {
            "title": "Residual Networks for Tiny ImageNet", "authors": "A. Student and B. Student",
            "section": "4.2, table 3", "reported": {"val_top1_percent": 52.0, "train_top1_percent": 71.5},
        },
        "provenance": {
            "optimizer.peak_lr": {"kind": "stated", "why": "section 4.1: 'we start at 0.1'"},
            "optimizer.momentum": {"kind": "assumed", "why": "the usual value; the paper names none"},
            "schedule.batch_size": {"kind": "inferred", "why": "391 updates an epoch in figure 2"},
            "augment": {"kind": "stated", "why": "section 3: flips and random crops"},
            "model.width": {"kind": "changed", "why": "set to 64 by hand"},
        },
        "data": {
            "train_split": "train+tune", "images_per_class": None, "normalise": "mean_std",
            "image_sizes": [64],
        },
        "augment": [
            {"kind": "random_resized_crop", "area": [0.6, 1.0], "aspect": [0.75, 1.3333333333333333]},
            {"kind": "flip", "probability": 0.5},
        ],
        "model": {"name": "resnet18", "width": 64, "stem": "small", "zero_last_bn": True},
        "loss": {"label_smoothing": 0.1},
        "optimizer": {"name": "sgd", "peak_lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005},
        "schedule": {"epochs": epochs, "steps": None, "batch_size": 256, "shape": "cosine"},
        "compute": {"precision": "bf16", "channels_last": True, "compile": False},
        "evaluate_every_epochs": 1.0,
    }  # fmt: skip


def made_environment(classes: int, per_class: int, pack: Pack | None) -> dict[str, Any]:
    return {
        "tinlab": "0.1.0", "python": "3.12.3", "torch": "2.11.0+cu128", "platform": "Linux-6.1-x86_64",
        "cpu": "AMD EPYC 9354", "cores": 16, "memory_gib": 128.0, "gpu": "NVIDIA H200", "commit": "50a1c28",
        "pack": {
            "name": "tiny-imagenet", "digest": pack.digest if pack else None, "source_kind": "official_zip",
            "content_digest": OFFICIAL_DIGEST, "image_size": 64,
            "classes": 200,  # as the paper's, however few of them the other files have
            "counts": {"train": 450 * classes, "tune": 50 * classes, "val": per_class * classes},
        },
        "command": "tinlab train he2016-resnet18 --pack packs/tiny-imagenet --seed 0",
    }  # fmt: skip


def made_lines(epochs: int, top1: float, top5: float, loss: float) -> list[dict[str, Any]]:
    """Training lines every 20 steps, and a measuring of val each epoch, that ends at the given numbers."""
    rng, lines = np.random.default_rng(3), []
    for step in range(20, 391 * epochs + 1, 20):
        epoch = step / 391
        done = epoch / max(epochs, 1)
        lines.append({
            "kind": "train", "step": step, "epoch": round(epoch, 4),
            "loss": 0.35 + 4.6 * math.exp(-5 * done) + rng.normal(0, 0.06) + 0.5 * (1 - done),
            "top1_percent": max(0.0, 84 * (1 - math.exp(-2.2 * done)) + rng.normal(0, 1.8)),
            "learning_rate": 0.05 * (1 + math.cos(math.pi * done)) * min(1, step / 800),
            "images_per_second": 1190 + rng.normal(0, 15), "image_size": 64,
            "elapsed_seconds": 90 * epoch, "train_seconds": 84 * epoch,
        })  # fmt: skip
    for epoch in range(1, epochs + 1):
        done = epoch / epochs
        lines.append({
            "kind": "eval", "split": "val", "step": 391 * epoch, "epoch": epoch,
            "loss": loss + 2.6 * (math.exp(-6 * done) - math.exp(-6)) - 0.22 * math.sin(math.pi * done),
            "top1_percent": top1 * (1 - math.exp(-4.5 * done)) / (1 - math.exp(-4.5)),
            "top5_percent": top5 * (1 - math.exp(-6 * done)) / (1 - math.exp(-6)),
            "train_seconds": 84 * epoch,
        })  # fmt: skip
    return sorted(lines, key=lambda line: line["step"])


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _picture(label: int, seed: int, size: int) -> np.ndarray:
    """uint8 (size, size, 3): the class gives form and colour, the seed its place, size and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    ground = np.stack([0.3 + 0.5 * x, 0.35 + 0.4 * y, 0.6 - 0.4 * x * y], axis=-1)
    centre, radius = rng.uniform(0.35, 0.65, 2), rng.uniform(0.15, 0.3)
    distance = np.hypot(x - centre[0], y - centre[1])
    form = [distance < radius, abs(x - centre[0]) < radius / 2, abs(distance - radius) < 0.06][label % 3]
    colour = 0.5 + 0.5 * np.cos(2 * np.pi * (label / 20 + np.array([0, 1 / 3, 2 / 3])))
    image = np.where(form[..., None], colour, ground) + rng.normal(0, 0.04, (size, size, 3))
    return (255 * np.clip(image, 0, 1)).astype(np.uint8)
