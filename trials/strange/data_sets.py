"""Data sets: archives, folders, their lists, their images, and tables."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from strange.changes import WORDS, changed_bytes, changed_value, node_instead
from strange.sandbox import Fault, Files, Node, Part


@cache
def image_files() -> tuple[bytes, ...]:
    """Images of every format that is read, small, in several modes."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((10, 8))
    made = []
    forms: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("JPEG", "RGB", {}), ("JPEG", "L", {}), ("JPEG", "CMYK", {}), ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "RGB", {"subsampling": 0, "quality": 95}), ("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG",
        "P", {}),
        ("PNG", "L", {}), ("PNG", "LA", {}), ("PNG", "I;16", {}), ("PNG", "1", {}), ("GIF", "P", {}), ("BMP",
        "RGB", {}),
        ("TIFF", "RGB", {}), ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("WEBP", "RGB", {}), ("PPM",
        "RGB", {}),
        ("TGA", "RGB", {}), ("PCX", "RGB", {}), ("SGI", "RGB", {}), ("ICO", "RGBA", {}), ("JPEG2000", "RGB",
        {}),
        ("DIB", "RGB", {}), ("AVIF", "RGB", {}),
    )  # fmt: skip
    for kind, mode, options in forms:
        image = coarse.convert("L").convert("I;16") if mode == "I;16" else coarse.convert(mode)
        if kind in ("JPEG", "PNG", "WEBP") and mode == "RGB":
            exif = Image.Exif()
            exif[0x0112] = 6
            options = {**options, "exif": exif}
        file = io.BytesIO()
        try:
            image.save(file, kind, **options)
        except (OSError, KeyError):
            continue  # this Pillow was built without it
        made.append(file.getvalue())
    return tuple(made)


@cache
def small_jpeg(number: int) -> bytes:
    """A JPEG of 8x8 pixels in one colour, about."""
    file = io.BytesIO()
    colour = (37 * number % 256, 91 * number % 256, 200)
    Image.new("RGB", (8, 8), colour).save(file, "JPEG", quality=50)
    return file.getvalue()


@cache
def official_files() -> dict[str, bytes]:
    """A data set of two classes in the official layout."""
    files: dict[str, bytes] = {}
    for label, wnid in enumerate(("n02", "n01")):
        for number in range(3):
            files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = small_jpeg(10 * label + number)
    for number in range(2):
        files[f"val/images/val_{number}.JPEG"] = small_jpeg(50 + number)
    files["val/val_annotations.txt"] = b"val_0.JPEG\tn02\t0\t0\t7\t7\nval_1.JPEG\tn01\t0\t0\t7\t7\n"
    files["test/images/test_0.JPEG"] = small_jpeg(90)
    files["wnids.txt"] = b"n02\nn01\n"
    files["words.txt"] = b"n01\tgoldfish, Carassius auratus\nn02\tbullfrog\nn03\tother\n"
    return files


@cache
def class_files() -> dict[str, bytes]:
    """A data set of two class folders."""
    return {
        f"train/{name}/{number}.jpg": small_jpeg(number) for name in ("ant", "bee") for number in range(3)
    }


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def packed(source: Path, out: Path) -> None:
    """Pack, open, read: what a data set is for."""
    from tinlab.data.pack import Pack
    from tinlab.data.packing import pack

    made = pack(source, out / "pack", image_size=8, workers=1)
    made.verify()
    for name in Pack.open(out / "pack").splits:
        split = made.split(name)
        if len(split.names) != len(split) or split.images.shape != (len(split), 8, 8, 3):
            raise Fault(f"{name} has {len(split.names)} names and images {split.images.shape}")


def odd_name(rng: random.Random, name: str) -> str:
    """A member's name, changed."""
    return rng.choice(
        (
            "../" * rng.randrange(1, 4) + name, "/" + name, "C:/" + name, name.replace("/", "\\"),
            name + "\0.jpg",
            name.replace("/", "//"), "./" + name, name + "/", "", name.upper(), f"__MACOSX/{name}",
            f"{name}/{name}",
            rng.choice(WORDS), f"train/{rng.choice(WORDS)}/a.jpg", f"train/ant/{rng.choice(WORDS)}.jpg",
            name * 900,
        )
    )  # fmt: skip


def make_zip(rng: random.Random) -> Files:
    files = dict(rng.choice((official_files(), class_files())))
    if rng.random() < 0.2:
        files = {f"tiny-imagenet-200/{name}": data for name, data in files.items()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            if rng.random() < 0.03:
                continue
            if rng.random() < 0.03:
                name = odd_name(rng, name)
            if rng.random() < 0.05:
                data = (
                    changed_bytes(rng, data, image_files())
                    if rng.random() < 0.7
                    else rng.choice(image_files())
                )
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode().split("\0")[0] or "x")
            if rng.random() < 0.03:
                info.external_attr = rng.choice((0o120777, 0o010644, 0o060644)) << 16  # link, pipe, device
            for _ in range(2 if rng.random() < 0.01 else 1):
                archive.writestr(info, data, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
        if rng.random() < 0.05:
            archive.comment = rng.randbytes(rng.randrange(40))
    data = out.getvalue()
    if rng.random() < 0.6:
        data = _changed_table(rng, data)
    if rng.random() < 0.4:
        data = changed_bytes(rng, data)
    return {"set.zip": node_instead(rng, data, 0.002)}


_FIELDS = {4: 2, 6: 2, 8: 2, 10: 2, 16: 4, 20: 4, 24: 4, 28: 2, 30: 2, 32: 2, 34: 2, 36: 2, 38: 4, 42: 4}
"""Offset -> bytes of the fields of a record in a zip's table."""


def _changed_table(rng: random.Random, data: bytes) -> bytes:
    """A zip with fields of its table, its headers or its end changed."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        signature, fields = rng.choice(
            (
                (b"PK\x01\x02", _FIELDS),
                (b"PK\x03\x04", {4: 2, 6: 2, 8: 2, 14: 4, 18: 4, 22: 4, 26: 2, 28: 2}),
                (b"PK\x05\x06", {4: 2, 6: 2, 8: 2, 10: 2, 12: 4, 16: 4, 20: 2}),
            )
        )
        found = [at for at in range(len(made) - 3) if made[at : at + 4] == signature]
        if not found:
            continue
        at, (offset, width) = rng.choice(found), rng.choice(list(fields.items()))
        before = int.from_bytes(made[at + offset : at + offset + width], "little")
        number = rng.choice(
            (0, 1, before + 1, before - 1, before ^ 1, 256**width - 1, 256**width // 2, rng.getrandbits(32))
        )
        made[at + offset : at + offset + width] = (number % 256**width).to_bytes(width, "little")
    return bytes(made)


def try_zip(place: Path, out: Path) -> None:
    packed(place / "set.zip", out)


def make_folder(rng: random.Random) -> Files:
    files: dict[str, Node] = dict(rng.choice((official_files(), class_files())))
    for name in list(files):
        node = files[name]
        draw = rng.random()
        if draw < 0.02:
            del files[name]
        elif draw < 0.05:
            del files[name]
            files[_file_name(odd_name(rng, name))] = node
        elif draw < 0.08:
            files[name] = changed_bytes(rng, node) if isinstance(node, bytes) else node
        else:
            files[name] = node_instead(rng, node, 0.01)
    for _ in range(rng.choice((0, 0, 1, 2))):
        name = rng.choice(("train/ant/x.jpg", "train/x", "x", "wnids.txt", "words.txt", "val/ant/1.jpg",
        "train/bee",
                           "train/cat/1.jpg", "train.parquet", ".hidden/1.jpg", "shapes.json",
                           "train/ant/loop"))  # fmt: skip
        if name not in files:
            files[name] = node_instead(rng, rng.choice((b"", small_jpeg(3), rng.randbytes(30))), 0.6)
    return without_clashes({f"set/{name}": node for name, node in files.items()})


def _file_name(name: str) -> str:
    """`name` as a path that can be made inside the sandbox."""
    raw = name.encode("utf-8", "surrogatepass").replace(b"\0", b"").replace(b"..", b"_")
    parts = [part[:200] for part in raw.split(b"/") if part not in (b"", b".")]
    return "/".join(os.fsdecode(part) for part in parts[:4]) or "x"


def without_clashes(files: dict[str, Node]) -> Files:
    """Without files that would have to be folders as well."""
    kept: dict[str, Node] = {}
    for name in sorted(files):
        parents = ["/".join(name.split("/")[:end]) for end in range(1, name.count("/") + 1)]
        if not any(parent in kept for parent in parents):
            kept[name] = files[name]
    return kept


def try_folder(place: Path, out: Path) -> None:
    packed(place / "set", out)


def make_lists(rng: random.Random) -> Files:
    """The official layout with its text files changed, by bytes and by cells."""
    files = dict(official_files())
    for name in rng.sample(("wnids.txt", "words.txt", "val/val_annotations.txt"), rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.4:
            files[name] = changed_bytes(rng, files[name], (files["words.txt"],))
            continue
        lines = [line.split("\t") for line in files[name].decode().splitlines()]
        for _ in range(rng.randrange(1, 4)):
            line = rng.choice(lines)
            if not line or rng.random() < 0.1:
                lines.insert(rng.randrange(len(lines) + 1), [rng.choice(WORDS)])
            elif rng.random() < 0.2:
                lines.append(list(line) * rng.choice((1, 2)))
            elif rng.random() < 0.1:
                line.pop()
            else:
                line[rng.randrange(len(line))] = rng.choice(
                    (*WORDS, "n01", "n02", "val_0.JPEG", "../val_0.JPEG")
                )
        text = rng.choice(("\n", "\n", "\r\n", "\r", "\x85", "\n\n")).join("\t".join(line) for line in lines)
        files[name] = rng.choice(("", "", "", "\ufeff")).encode() + text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.05:
            files[name] = text.encode("utf-16", "surrogatepass")
    return {"set.zip": zipped(files, zipfile.ZIP_STORED)}


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """A PNG's chunks: kind and content."""
    at, found = 8, []
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png_of(parts: list[tuple[bytes, bytes]]) -> bytes:
    """The PNG of some chunks, with their checksums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))
        for kind, body in parts
    )


def make_png(rng: random.Random) -> Files:
    seeds = [data for data in image_files() if data.startswith(b"\x89PNG")]
    data = rng.choice(seeds)
    if rng.random() < 0.7:
        parts = chunks(data)
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(len(parts))
            kind, body = parts[at]
            change = rng.randrange(6)
            if kind == b"IHDR" and change < 4:
                header = list(struct.unpack(">2L5B", body.ljust(13, b"\0")[:13]))
                header[rng.randrange(7)] = rng.choice((0, 1, 2, 3, 4, 6, 7, 8, 9, 16, 32, 255, 300))
                if rng.random() < 0.3:
                    header[0] = rng.choice((0, 7000, 8000, 50_000, 2**31 - 1, 2**32 - 1))
                    header[1] = rng.choice((1, 7000, 50_000, 2**31 - 1))
                header[2:] = [value % 256 for value in header[2:]]
                parts[at] = kind, struct.pack(">2L5B", *header)
            elif change == 0:
                del parts[at]
            elif change == 1:
                parts.insert(rng.randrange(len(parts) + 1), parts[at])
            elif change == 2:
                new = rng.choice(
                    (
                        b"tEXt",
                        b"zTXt",
                        b"iTXt",
                        b"iCCP",
                        b"tRNS",
                        b"PLTE",
                        b"eXIf",
                        b"acTL",
                        b"fcTL",
                        b"fdAT",
                        b"gAMA",
                        b"pHYs",
                        b"xXxX",
                    )
                )
                body = rng.choice(
                    (b"", rng.randbytes(rng.randrange(40)), b"x\0\0" + zlib.compress(bytes(2_000_000)))
                )
                parts.insert(rng.randrange(len(parts) + 1), (new, body))
            elif kind == b"IDAT":
                try:
                    pixels = zlib.decompress(body)
                except zlib.error:
                    pixels = body
                parts[at] = kind, zlib.compress(changed_bytes(rng, pixels or b"\0"))
            else:
                parts[at] = kind, changed_bytes(rng, body)
            if not parts:
                break
        data = png_of(parts)
    if rng.random() < 0.4:
        data = changed_bytes(rng, data, tuple(seeds))
    return {"image.png": node_instead(rng, data, 0.002), "size": str(rng.choice((1, 8, 10, 64))).encode()}


def segments(data: bytes) -> list[bytes]:
    """A JPEG's segments, each with its marker; the last holds the image's data and all that follows."""
    at, found = 2, [data[:2]]
    while at + 4 <= len(data) and data[at] == 0xFF:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:
            break
        found.append(data[at : at + length])
        at += length
    return [*found, data[at:]]


def make_jpeg(rng: random.Random) -> Files:
    seeds = [data for data in (*image_files(), small_jpeg(1)) if data.startswith(b"\xff\xd8")]
    data = rng.choice(seeds)
    if rng.random() < 0.6:
        parts = segments(data)
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.randrange(1, len(parts)) if len(parts) > 1 else 0
            part, change = parts[at], rng.randrange(6)
            if part[1:2] in (b"\xc0", b"\xc2") and change < 4:
                body = bytearray(part)
                spot = rng.choice((4, 5, 6, 7, 8, 9, rng.randrange(4, len(body)) if len(body) > 4 else 4))
                if spot < len(body):
                    body[spot] = rng.choice(
                        (0, 1, 2, 3, 4, 8, 12, 0x11, 0x22, 0x44, 0xFF, rng.randrange(256))
                    )
                if rng.random() < 0.2 and len(body) > 9:
                    body[5:9] = struct.pack(
                        ">2H", rng.choice((0, 1, 7000, 65535)), rng.choice((1, 7000, 65535))
                    )
                parts[at] = bytes(body)
            elif change == 0:
                del parts[at]
            elif change == 1:
                parts.insert(rng.randrange(1, len(parts) + 1), part)
            elif change == 2:
                extra = rng.choice((b"Exif\0\0" + rng.randbytes(30),
                b"Adobe\0d\0\0\0\0" + bytes([rng.randrange(4)]),
                                   b"JFIF\0" + rng.randbytes(9), b"ICC_PROFILE\0\1\1" + rng.randbytes(9),
                                   rng.randbytes(20)))  # fmt: skip
                marker = bytes(
                    [0xFF, rng.choice((0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0xDD, 0xDC, 0xCC, 0xC1, 0xC9))]
                )
                parts.insert(rng.randrange(1, len(parts)), marker + struct.pack(">H", len(extra) + 2) + extra)
            elif change == 3:
                parts[at] = part * rng.choice((2, 20, 300))
            else:
                parts[at] = part[:4] + changed_bytes(rng, part[4:] or b"\0", most=2)
            if len(parts) < 2:
                break
        data = b"".join(parts)
    if rng.random() < 0.5:
        data = changed_bytes(rng, data, tuple(seeds), most=3)
    return {"image.jpg": node_instead(rng, data, 0.002), "size": str(rng.choice((1, 8, 10, 64))).encode()}


def make_image(rng: random.Random) -> Files:
    """All other formats, by their bytes."""
    seeds = image_files()
    data = changed_bytes(rng, rng.choice(seeds), seeds, most=4)
    return {"image.x": data, "size": str(rng.choice((8, 10))).encode()}


def try_image(place: Path, out: Path) -> None:
    from tinlab.data.given import squares

    size = int((place / "size").read_text())
    path = next(path for path in sorted(place.iterdir()) if path.name != "size")
    made = squares([path], size)
    if made.shape != (1, size, size, 3) or made.dtype != np.uint8:
        raise Fault(f"it made an array {made.dtype} {made.shape}")


@cache
def parquet_files() -> tuple[bytes, ...]:
    """Tables of images and labels in several layouts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [small_jpeg(n) for n in range(6)]
    struct_column = pa.array([{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(images)])
    names = {"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}
    made = []
    for columns, metadata, options in (
        ({"image": struct_column, "label": pa.array([0, 1] * 3)}, names, {}),
        ({"image": pa.array(images), "label": pa.array(["ant", "bee"] * 3)}, None, {"compression": "zstd"}),
        ({"img": pa.array(images, pa.large_binary()), "fine_label": pa.array([5, 7] * 3, pa.uint8())}, None,
        {}),
        ({"image": struct_column, "label": pa.array([0, 1] * 3)}, names, {"row_group_size": 2,
        "use_dictionary": False}),
        ({"image": pa.array([images[0]] * 6), "label": pa.array(["ant", None] * 3)}, None,
        {"compression": "none"}),
        ({"image": pa.array(images), "label": pa.array([0, 1] * 3), "more": pa.array([1.5] * 6)}, names,
         {"data_page_version": "2.0", "compression": "gzip"}),
    ):  # fmt: skip
        table = pa.table(columns)
        if metadata is not None:
            table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
        file = io.BytesIO()
        pq.write_table(table, file, **options)
        made.append(file.getvalue())
    return tuple(made)


def make_parquet(rng: random.Random) -> Files:
    import pyarrow as pa
    import pyarrow.parquet as pq

    seeds = parquet_files()
    data = rng.choice(seeds)
    if rng.random() < 0.3:  # another table
        count = rng.choice((0, 1, 4, 4, 50))
        image = rng.choice((small_jpeg(1), b"", rng.randbytes(20), rng.choice(image_files())))
        columns = {
            rng.choice(("image", "img", "x", "a.b", "")): rng.choice(
                (pa.array([image] * count, pa.binary()), pa.array([{"bytes": image}] * count,
                pa.struct([("bytes", pa.binary())])),
                 pa.array([None] * count, pa.binary()), pa.array([[image]] * count, pa.list_(pa.binary())))
            ),
            rng.choice(("label", "class", "y", "image")): rng.choice(
                (pa.array([n % 2 for n in range(count)], pa.int64()), pa.array(["a",
                "b"] * (count // 2) + ["a"] * (count % 2), pa.string()),
                 pa.array([None] * count, pa.int64()), pa.array([2**63] * count, pa.uint64()),
                 pa.array([rng.choice(("a", "é", "\x1b[31m", "x" * 3000, ""))] * count, pa.string()),
                 pa.array(["a"] * count, pa.string()).dictionary_encode(), pa.array([[1]] * count,
                 pa.list_(pa.int64())),
                 pa.array([True] * count), pa.array([1.0] * count))
            ),
        }  # fmt: skip
        metadata = changed_value(rng, {"info": {"features": {"label": {"names": ["ant", "bee"]}}}})
        text = json.dumps(metadata).encode("utf-8", "replace")
        table = pa.table(columns).replace_schema_metadata({"huggingface": text})
        file = io.BytesIO()
        pq.write_table(table, file, compression=rng.choice(("snappy", "zstd", "none")))
        data = file.getvalue()
    if rng.random() < 0.9:
        footer = int.from_bytes(data[-8:-4], "little") if len(data) > 12 else 0
        if rng.random() < 0.6 and 0 < footer < len(data) - 12:  # what the file says of itself
            start = len(data) - 8 - footer
            changed = changed_bytes(rng, data[start:-8], most=3)
            data = data[:start] + changed + struct.pack("<L", len(changed)) + b"PAR1"
        else:
            data = changed_bytes(rng, data, seeds)
    return {f"{rng.choice(('train', 'train', 'val', 'x'))}.parquet": data}


def try_parquet(place: Path, out: Path) -> None:
    packed(next(place.iterdir()), out)


PARTS = (
    Part("zip", make_zip, try_zip),
    Part("folder", make_folder, try_folder),
    Part("lists", make_lists, try_zip),
    Part("jpeg", make_jpeg, try_image),
    Part("png", make_png, try_image),
    Part("image", make_image, try_image),
    Part("parquet", make_parquet, try_parquet),
)
