from __future__ import annotations

import numpy as np
import pytest

from tinlab.errors import TinlabError
from tinlab.explain.drawing import Part, Row, enlarge, gallery, mosaic, shade, sheet

GREY = np.full((4, 4, 3), 100, np.uint8)


def ramp(low, high):
    return np.linspace(low, high, 16).reshape(4, 4)


def test_sizes_are_grey_from_black_to_white():
    shown = shade("size", ramp(0, 5), GREY)
    assert shown.dtype == np.uint8
    assert (shown == shown[..., :1]).all()
    assert shown[0, 0].tolist() == [0, 0, 0]
    assert shown[3, 3].tolist() == [255, 255, 255]


def test_signed_values_are_blue_white_and_red():
    shown = shade("signed", ramp(-2, 2), GREY).astype(int)
    assert shown[0, 0, 2] > shown[0, 0, 0] + 50
    assert shown[3, 3, 0] > shown[3, 3, 2] + 50
    assert shade("signed", np.zeros((4, 4)), GREY).min() > 240


def test_colours_keep_their_channels():
    values = np.zeros((3, 4, 4))
    values[1] = 2.0
    assert shade("colour", values, GREY)[0, 0].tolist() == [0, 255, 0]
    assert shade("signed_colour", values, GREY)[0, 0].tolist() == [128, 255, 128]


def test_a_place_is_drawn_over_the_image():
    image = np.random.default_rng(0).integers(0, 255, (4, 4, 3), np.uint8)
    nowhere = shade("place", np.zeros((4, 4)), image).astype(float)
    assert np.corrcoef(nowhere.mean(2).ravel(), image.mean(2).ravel())[0, 1] > 0.95
    there = np.zeros((4, 4))
    there[2, 1] = 1
    assert shade("place", there, GREY).astype(int).sum(2).argmax() == 9


@pytest.mark.parametrize("kind", ["size", "signed", "place"])
def test_a_map_of_nothing_or_of_no_number_can_be_drawn(kind):
    assert shade(kind, np.zeros((4, 4)), GREY).shape == (4, 4, 3)
    assert shade(kind, np.full((4, 4), np.nan), GREY).shape == (4, 4, 3)


def test_one_pixel_does_not_darken_the_rest():
    values = np.ones((40, 40))
    values[0, 0] = 1000
    assert shade("size", values, np.zeros((40, 40, 3), np.uint8))[5, 5, 0] == 255


def test_pixels_are_enlarged_as_squares():
    tile = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(enlarge(tile, 6), tile.repeat(3, 0).repeat(3, 1))


def test_a_mosaic_reads_from_left_to_right():
    tiles = np.stack([np.full((2, 3, 3), n, np.uint8) for n in range(5)])
    page = mosaic(tiles, columns=3, scale=2, gap=1)
    assert page.shape == (2 * 4 + 1, 3 * 6 + 2, 3)
    assert page[0, 0, 0] == 0
    assert page[0, 7, 0] == 1
    assert page[5, 0, 0] == 3
    assert (page[5:, 14:] == 255).all()
    with pytest.raises(TinlabError, match="no filters"):
        mosaic(tiles[:0], columns=3, scale=2)


def colours_of(image):
    return {tuple(colour) for _, colour in image.getcolors(1 << 20)}


def test_everything_stands_on_the_sheet_and_nothing_overlaps():
    dice = np.random.default_rng(0)
    shades = [tuple(int(v) for v in dice.integers(0, 255, 3)) for _ in range(7)]
    tiles = [np.full((64, 64, 3), shade, np.uint8) for shade in shades]
    captions = ["a caption of many words that goes on and on"] * 6
    rows = [
        Row(["left of it", "and more of it"], tiles[:1], ["one"]),
        *gallery(tiles[1:], captions, columns=4),
    ]
    image = sheet("Title", [Part("A heading", rows, ["how to read it"]), Part("Nothing more")])
    pixels = np.asarray(image)
    for shade_of in shades:
        places = np.argwhere((pixels == shade_of).all(2))
        assert len(places) == 64 * 64, "a picture is covered"
        assert np.ptp(places, axis=0).tolist() == [63, 63]
    border = np.concatenate(
        [pixels[:5].reshape(-1, 3), pixels[-5:].reshape(-1, 3), pixels[:, -5:].reshape(-1, 3)]
    )
    assert (border == 255).all(), "something is cut off"


def test_a_missing_picture_leaves_its_words():
    tile = np.zeros((64, 64, 3), np.uint8)
    bare = sheet("T", [Part("", [Row((), [tile, None])])])
    told = sheet("T", [Part("", [Row((), [tile, None], ["", "does not apply"])])])
    assert told.size == bare.size
    assert colours_of(told) != colours_of(bare)
