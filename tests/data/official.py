"""A tiny data set in the official layout, made of rendered JPEGs."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n02000000", "n01000000", "n03000000")
"""In the order of wnids.txt, which is not sorted, as in the real set."""

TRAIN, VAL, TEST = 10, 2, 3
"""Images of each class in train and in val, and images in test."""


def pixels(seed: int, size: int = 64) -> np.ndarray:
    """uint8 (size, size, 3): coarse coloured noise, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray | Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def jpeg(seed: int, size: int = 64) -> bytes:
    return encoded(pixels(seed, size), quality=90)


def decoded(data: bytes) -> np.ndarray:
    """What Pillow makes of an image file."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def official_files() -> dict[str, bytes]:
    """Every file of the data set by its path; one training image is grey."""
    files = {}
    annotations = []
    for label, wnid in enumerate(WNIDS):
        for number in range(TRAIN):
            files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = jpeg(100 * label + number)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"boxes\n"
    for number in range(VAL * len(WNIDS)):
        files[f"val/images/val_{number}.JPEG"] = jpeg(1000 + number)
        annotations.append(f"val_{number}.JPEG\t{WNIDS[number % len(WNIDS)]}\t0\t0\t63\t63\n")
    files["val/val_annotations.txt"] = "".join(annotations).encode()
    for number in range(TEST):
        files[f"test/images/test_{number}.JPEG"] = jpeg(2000 + number)
    files["wnids.txt"] = "\n".join(WNIDS).encode()
    files["words.txt"] = "\n".join(f"{wnid}\tword {wnid[2]}, other word" for wnid in sorted(WNIDS)).encode()
    grey = Image.fromarray(pixels(7)).convert("L")
    files[f"train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG"] = encoded(grey)
    return files


def write_folder(place: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def write_zip(place: Path, files: dict[str, bytes], root: str = "tiny-imagenet-200/") -> Path:
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files.items():
            out.writestr(root + name, data)
    return place
