"""Bytes -> pixels within limits, and maps -> colours."""

from __future__ import annotations

import io

import numpy as np
import pytest
from made_files import encoded, huge_png
from PIL import Image

from tinlab.data.decode import ImageError, TooManyPixelsError
from tinlab.serve.images import heat, pixels, png


def test_each_size_is_made_as_a_pack_is():
    picture = Image.effect_noise((90, 70), 60).convert("RGB")
    made = pixels(encoded(picture, "PNG"), [32, 64, 32], 10_000)
    assert sorted(made) == [32, 64]
    expected = picture.resize((32, 32), Image.Resampling.BICUBIC, box=(10, 0, 80, 70))
    assert np.array_equal(made[32], np.asarray(expected))


def test_pixels_are_counted_in_the_header():
    picture = encoded(Image.new("RGB", (100, 100)), "PNG")
    assert pixels(picture, [8], 10_000)[8].shape == (8, 8, 3)
    with pytest.raises(TooManyPixelsError, match="100 x 100"):
        pixels(picture, [8], 9_999)
    with pytest.raises(TooManyPixelsError):
        pixels(huge_png(), [8], 25_000_000)
    # A JPEG whose frame header is made to claim 65,000 x 65,000.
    jpeg = bytearray(encoded(Image.new("RGB", (64, 64)), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xfd\xe8\xfd\xe8"
    with pytest.raises(TooManyPixelsError, match="25 million"):
        pixels(bytes(jpeg), [64], 25_000_000)


def test_a_jpeg_of_very_many_scans_is_refused():
    jpeg = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG", progressive=True)
    assert pixels(jpeg, [16], 10_000)
    scan = jpeg.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="scans"):
        pixels(jpeg[:-2] + 200 * jpeg[scan:-2] + jpeg[-2:], [16], 10_000)


def test_what_lies_behind_a_jpegs_end_or_in_a_segment_is_no_scan():
    """As telephones' films of the moment do, and large segments of their makers."""
    jpeg = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    film = 500 * b"\xff\xda\x00\x04"
    assert np.array_equal(pixels(jpeg + film, [64], 10_000)[64], pixels(jpeg, [64], 10_000)[64])
    segment = b"\xff\xe3" + (len(film) + 2).to_bytes(2, "big") + film
    assert pixels(jpeg[:2] + segment + jpeg[2:], [16], 10_000)
    with pytest.raises(ImageError, match="segments"):
        pixels(jpeg[:2] + 20_000 * b"\xff\xfe\x00\x02" + jpeg[2:], [16], 10_000)


@pytest.mark.parametrize("kind", ["PPM", "TIFF", "AVIF"])
def test_formats_that_nobody_sends_or_that_unpack_to_more_than_they_say_are_left_out(kind):
    with pytest.raises(ImageError, match="format"):
        pixels(encoded(Image.new("RGB", (8, 8)), kind), [8], 1000)


def test_orientation_is_respected():
    picture = Image.new("RGB", (32, 32), "white")
    picture.paste("black", (0, 0, 32, 16))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # to be shown upside down
    (made,) = pixels(encoded(picture, "PNG", exif=exif), [32], 10_000).values()
    assert made[:16].min() == 255
    assert made[16:].max() == 0


def test_a_map_becomes_clear_where_it_is_low():
    values = np.zeros((10, 10), np.float32)
    values[0, 0], values[0, 1], values[0, 2] = 100, -1, 0.5  # the highest hundredth is drawn like the next
    coloured = heat(values)
    assert coloured.shape == (10, 10, 4)
    assert coloured[0, 0, 3] == coloured[0].max()
    assert (coloured[1:, :, 3] == 0).all()
    assert coloured[0, 1, 3] > coloured[0, 2, 3] > 0
    back = Image.open(io.BytesIO(png(coloured)))
    assert np.array_equal(np.asarray(back), coloured)


@pytest.mark.parametrize("values", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.full((4, 4), 3.0)])
def test_a_map_of_one_value_can_be_drawn(values):
    assert heat(values).dtype == np.uint8
