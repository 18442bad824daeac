"""The decoder against Pillow's own pixels, in every mode, and against broken files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
import simplejpeg
from official import decoded, encoded, jpeg, pixels
from PIL import Image, ImageOps

from tinlab.data.decode import MAX_PIXELS, ImageError, TooManyPixelsError, decode_into, is_image_name
from tinlab.data.moments import PixelSums


def opened(data: bytes, size: int = 64) -> np.ndarray:
    row = np.full((size, size, 3), 99, dtype=np.uint8)
    decode_into(data, row)
    return row


def close(found: np.ndarray, expected: np.ndarray, tolerance: int = 3) -> bool:
    return bool((np.abs(found.astype(int) - expected) <= tolerance).all())


@pytest.mark.parametrize(
    "options",
    [{}, {"quality": 30}, {"subsampling": 2}, {"subsampling": 1}, {"progressive": True}, {"optimize": True}],
)
def test_jpegs_equal_pillows(options: dict[str, object]) -> None:
    for seed in range(5):
        data = encoded(pixels(seed), **options)
        np.testing.assert_array_equal(opened(data), decoded(data))


def test_grey_and_cmyk_jpegs_equal_pillows() -> None:
    for mode in ("L", "CMYK"):
        data = encoded(Image.fromarray(pixels(1)).convert(mode))
        np.testing.assert_array_equal(opened(data), decoded(data))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000"])
def test_other_formats_equal_pillows(kind: str) -> None:
    data = encoded(pixels(3), kind)
    np.testing.assert_array_equal(opened(data), decoded(data))


def test_modes() -> None:
    image = Image.fromarray(pixels(2))
    palette = encoded(image.quantize(16), "PNG")
    np.testing.assert_array_equal(opened(palette), decoded(palette))
    bilevel = encoded(image.convert("1"), "PNG")
    np.testing.assert_array_equal(opened(bilevel), decoded(bilevel))
    grey = np.asarray(image.convert("L"))
    deep = encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    np.testing.assert_array_equal(opened(deep), np.repeat(grey[:, :, None], 3, axis=2))
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(np.repeat(np.uint8([[0, 255]]), 32, axis=1).repeat(64, axis=0)))
    expected = pixels(2).copy()
    expected[:, :32] = 255  # transparent parts become white
    np.testing.assert_array_equal(opened(encoded(clear, "PNG")), expected)
    with pytest.raises(ImageError, match="floating-point"):
        opened(encoded(Image.fromarray(grey.astype(np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(kind: str, orientation: int) -> None:
    for size in (64, 96):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(Image.fromarray(pixels(4, size)), kind, exif=exif)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).resize((64, 64))
        assert close(opened(data), np.asarray(upright), 2)


def test_other_sizes_are_scaled_and_cut_to_the_middle() -> None:
    wide = np.zeros((100, 200, 3), dtype=np.uint8)
    wide[:, 50:150] = 200
    for kind in ("PNG", "JPEG"):
        assert close(opened(encoded(wide, kind))[:, 2:-2], np.full((64, 60, 3), 200), 12)
    assert opened(jpeg(1, 8)).shape == (64, 64, 3)
    assert opened(jpeg(1), 224).shape == (224, 224, 3)
    assert opened(encoded(np.zeros((1, 300, 3), np.uint8), "PNG")).max() == 0


def test_broken_images_are_errors() -> None:
    good = jpeg(1)
    for bad, reason in (
        (b"", "empty"),
        (b"garbage" * 50, "no image"),
        (good[: len(good) // 2], "damaged"),
        (good[:-2], "damaged"),
        (good[:20], "it is"),
        (encoded(pixels(1), "PNG")[:-900], "damaged"),
    ):
        with pytest.raises(ImageError, match=reason):
            opened(bad)


def test_a_huge_header_is_refused_before_anything_is_allocated() -> None:
    good = jpeg(1)
    frame = good.index(b"\xff\xc0")
    for side, reason in ((60000, "more than 50 million"), (9000, "9000 x 9000")):
        huge = good[: frame + 5] + struct.pack(">2H", side, side) + good[frame + 9 :]
        with pytest.raises(ImageError, match=reason):
            opened(huge)
    header = b"IHDR" + struct.pack(">2L5B", 50000, 50000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">L", 13) + header + struct.pack(">L", zlib.crc32(header))
    with pytest.raises(ImageError, match="pixels"):
        opened(bomb + struct.pack(">L4s4xL", 4, b"IDAT", zlib.crc32(b"IDAT\0\0\0\0")))
    assert MAX_PIXELS < 9000**2


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"optimize": True}, {"comment": b"\xff\xc0" * 9}]
)
def test_the_quick_way_is_taken_for_the_packs_own_size_alone(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    quick = simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", lambda data, *a, **o: tried.append(o) or quick(data, *a, **o)
    )
    data = encoded(pixels(1), **options)
    np.testing.assert_array_equal(opened(data), decoded(data))
    assert [set(how) for how in tried] == [{"buffer"}]
    for size in (8, 63, 65, 128):
        opened(data, size)
    assert not any("buffer" in how for how in tried[1:])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its memory from /proc")
def test_images_of_another_size_leave_nothing_behind() -> None:
    """simplejpeg 1.9 loses 4 KB when it is given too small a buffer: 3000 times that would be 12 MB."""

    def held() -> int:
        return psutil.Process().memory_info().rss

    data, row = encoded(pixels(2)), np.zeros((8, 8, 3), np.uint8)
    for _ in range(100):
        decode_into(data, row)
    before = held()
    for _ in range(1500):
        decode_into(data, row)
    assert held() - before < 2 << 20


def test_names_of_images() -> None:
    assert all(map(is_image_name, ["a.JPEG", "b/c.jpg", "d.Png", "e.webp"]))
    assert not any(map(is_image_name, ["a.txt", "jpeg", "b.jpg/c", "evil.eps", ""]))


@pytest.mark.parametrize(("size", "count"), [(64, 300), (32, 7), (224, 3), (5, 1)])
def test_sums_are_exact(size: int, count: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    images[: count // 2] = 255
    wide = images.reshape(-1, 3).astype(np.int64)
    sums = PixelSums(size)
    for _ in range(2):  # the scratch space is used again
        np.testing.assert_array_equal(sums.of(images), [wide.sum(axis=0), (wide**2).sum(axis=0)])


def tiled_tiff(side: int) -> bytes:
    """A header and tags alone: 64 x 64 pixels, in one tile of `side` x `side`."""
    tags = [(256, 64), (257, 64), (258, 8), (259, 1), (262, 1), (277, 1)]
    tags += [(322, side), (323, side), (324, 200), (325, side * side)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def test_a_tiff_whose_tiles_are_larger_than_it_says_is_refused() -> None:
    with pytest.raises(TooManyPixelsError, match="tiles of 268,435,456 pixels"):
        opened(tiled_tiff(1 << 14))
    with pytest.raises(ImageError, match="damaged"):  # as large as may be, and without its data
        opened(tiled_tiff(64))
