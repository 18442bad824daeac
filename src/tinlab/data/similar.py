"""Pairs of images that show the same photograph without being equal pixel by pixel.

Three steps, each looking closer at fewer pairs:

1. Every image becomes 63 numbers: the 8x8 lowest coefficients of the cosine transform of its brightness,
   without the mean, each weighted by its frequency (photographs hold less of the high frequencies, and
   without the weights two blurred skies look alike), scaled to length 1. All pairs are compared by matrix
   products. A mirrored image has the same coefficients with the odd horizontal ones negated, so with E and O
   the inner products over the even and the odd ones, E + |O| is the better of both at no extra cost. Pairs of
   at least `CANDIDATE_BAR` go on.
2. The brightness at 32x32 is cut into 5x5 tiles of 6x6 pixels; from each tile its best-fitting plane is taken
   away, so that only detail remains, and the tiles of both images are correlated, for shifts of up to one of
   these pixels. Borders and smooth backgrounds, which different photographs share, thus count for little.
3. The same at full resolution, with shifts of up to two pixels of a 64x64 image, and with the colours
   compared on a 6x6 grid. A pair is reported where the mean correlation over the tiles with detail is at
   least `DETAIL_BAR`, at least `TEXTURED_TILES` of the 25 tiles have detail, and the colours correlate by at
   least `COLOUR_BAR`.

The bars were chosen by looking at the pairs of Tiny ImageNet (120,000 images) in order of their score, for
high precision. Of its pairs that are not pixel-identical they report 14 (15 in another order of the rows:
the search is not symmetric to the last pair), each of which is one photograph, or one scene, twice; about
half of them are mirrored, 3 have two labels, and 3 join two splits. Different photographs begin just below
the bar, at 0.601: pictures in the same frame, slices of two oranges.
What this does not find: other crops, shifts beyond three pixels, rotations, and pictures with little detail.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

CANDIDATE_BAR = 0.75
COARSE_BAR = 0.40
DETAIL_BAR = 0.605
TEXTURED_TILES = 16
COLOUR_BAR = 0.85
CANDIDATE_LIMIT = 250_000  # at most; a set of look-alikes would otherwise have a candidate in every pair
SMALL = 32  # pixels a side of the images of step 2

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_FREQUENCIES = 8
_BLOCK = 1024  # images a side of a block of pairs: its sums (4 MB) stay in a core's cache
_BATCH = 512  # pairs compared at once in steps 2 and 3
_GRID, _TILE = 5, 6
_TEXTURE = 3.0  # a tile has detail where its plane-free standard deviation, in 0..255, is above this


@dataclass(frozen=True)
class Pairs:
    """P pairs of alike images, the most alike first.

    `first`, `second` int64 (P,): their indices, first < second; `score` float32 (P,), 0..1: the mean
    correlation of their details; `mirrored` bool (P,). `candidate_bar` is CANDIDATE_BAR, or higher where more
    than CANDIDATE_LIMIT pairs passed it and only the best were looked at closely.
    """

    first: np.ndarray
    second: np.ndarray
    score: np.ndarray
    mirrored: np.ndarray
    candidate_bar: float


def shrink(rgb: np.ndarray) -> np.ndarray:
    """Brightness at 32x32 of uint8 images (n, size, size, 3) of any size; uint8 (n, 32, 32)."""
    return np.rint(_resized(rgb @ _LUMA, SMALL)).astype(np.uint8)


def similar_pairs(
    small: np.ndarray,
    fetch: Callable[[np.ndarray], np.ndarray],
    progress: Callable[[int, int], None] | None = None,
) -> Pairs:
    """Pairs of alike images among N.

    `small` is what `shrink` makes of all of them, uint8 (N, 32, 32); `fetch(indices)` gives the images
    themselves, uint8 (n, size, size, 3). `progress(done, total)` is called with counts of blocks of pairs.
    Takes time with the square of N (N = 120,000: half a minute on two cores) and about 1.5 kB an image on top
    of `small`.
    """
    first, second, mirrored, bar = _candidates(_descriptors(small), progress)
    closer = (
        (lambda a, b, flip: _coarse(small[a], small[b], flip), COARSE_BAR),
        (lambda a, b, flip: _fine(fetch(a), fetch(b), flip), DETAIL_BAR),
    )
    score = np.empty(0, np.float32)
    for compare, least in closer:
        parts = [slice(start, start + _BATCH) for start in range(0, len(first), _BATCH)]
        scores = [compare(first[part], second[part], mirrored[part]) for part in parts]
        score = np.concatenate([np.empty(0, np.float32), *scores])
        keep = score >= least
        first, second, mirrored, score = first[keep], second[keep], mirrored[keep], score[keep]
    order = np.argsort(-score, kind="stable")
    return Pairs(first[order], second[order], score[order], mirrored[order], bar)


def _descriptors(small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of step 1, float32 (N, 32) each: those that mirroring leaves, and those that it negates."""
    frequency = np.arange(_FREQUENCIES)
    cosine = np.cos(np.pi * frequency[:, None] * (np.arange(SMALL) + 0.5) / SMALL).astype(np.float32)
    weight = np.hypot(frequency[:, None], frequency).astype(np.float32)  # 0 for the mean
    # The rows of `cosine` for frequency 0 are longer than the others by sqrt(2) in the orthonormal transform.
    norm = np.where(frequency == 0, np.sqrt(0.5), 1).astype(np.float32)
    weight *= norm[:, None] * norm
    count = len(small)
    all_numbers = np.empty((count, _FREQUENCIES, _FREQUENCIES), np.float32)
    for start in range(0, count, 4096):
        grey = small[start : start + 4096].astype(np.float32)
        all_numbers[start : start + 4096] = (cosine @ grey @ cosine.T) * weight  # (n, 32, 32) -> (n, 8, 8)
    length = np.sqrt(np.einsum("nij,nij->n", all_numbers, all_numbers))
    # An image of one colour has no direction; as zeros it is like nothing.
    all_numbers /= np.where(length > 1e-3, length, np.inf)[:, None, None]
    even = np.ascontiguousarray(all_numbers[:, :, 0::2]).reshape(count, -1)  # (N, 8, 4) -> (N, 32)
    odd = np.ascontiguousarray(all_numbers[:, :, 1::2]).reshape(count, -1)
    return even, odd


def _candidates(
    descriptors: tuple[np.ndarray, np.ndarray], progress: Callable[[int, int], None] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Step 1: first, second int64 (C,), mirrored bool (C,), and the bar that they passed."""
    import torch

    even, odd = (torch.from_numpy(part) for part in descriptors)
    starts = range(0, len(even), _BLOCK)
    bar = CANDIDATE_BAR
    kept: list[tuple[np.ndarray, ...]] = []
    # Measured for 40,000 images on two cores that others used too: 36 s with NumPy's products, whose threads
    # wait for each other within each small product, 3 s with one thread a product, as here.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            rows = pool.map(lambda start: _row_of_blocks(even, odd, start, bar), starts)
            for done, found in enumerate(rows):
                kept.append(found)
                if sum(len(part[0]) for part in kept) > 2 * CANDIDATE_LIMIT:
                    kept = [_best(kept)]
                    bar = float(kept[0][3].min())
                if progress is not None:
                    progress(done + 1, len(starts))
    finally:
        torch.set_num_threads(threads)
    if not kept:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool), bar
    first, second, mirrored, likeness = _best(kept)
    bar = max(bar, float(likeness.min())) if len(likeness) == CANDIDATE_LIMIT else bar
    order = np.lexsort((second, first))  # neighbours in a batch then lie near each other on the disk
    return first[order], second[order], mirrored[order], bar


def _row_of_blocks(even: torch.Tensor, odd: torch.Tensor, start: int, bar: float) -> tuple[np.ndarray, ...]:
    """The pairs of step 1 between images [start, start + _BLOCK) and those after them: first, second,
    mirrored, and E + |O|, which is at least `bar`."""
    import torch

    rows = slice(start, start + _BLOCK)
    kept: list[tuple[np.ndarray, ...]] = []
    for column in range(start, len(even), _BLOCK):
        columns = slice(column, column + _BLOCK)
        likeness = even[rows] @ even[columns].T  # (n, 32) x (32, m) -> (n, m)
        turned = odd[rows] @ odd[columns].T
        likeness += turned.abs_()
        hits = np.flatnonzero((likeness >= bar).numpy())
        first, second = np.divmod(hits, likeness.shape[1])
        once = first + start < second + column  # a block of the diagonal has each pair twice, and itself
        first, second = first[once] + start, second[once] + column
        kept.append((first, second, likeness.numpy().ravel()[hits[once]]))
        if sum(len(part[0]) for part in kept) > 2 * CANDIDATE_LIMIT:
            kept = [_best(kept)]
            bar = float(kept[0][2].min())
    first, second, best = _best(kept)
    mirrored = np.empty(len(first), bool)
    for part in (slice(at, at + 65536) for at in range(0, len(first), 65536)):
        mirrored[part] = torch.linalg.vecdot(odd[first[part]], odd[second[part]]).numpy() < 0
    return first, second, mirrored, best


def _best(kept: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """The CANDIDATE_LIMIT pairs of greatest likeness, the last of the arrays."""
    joined = tuple(np.concatenate(column) for column in zip(*kept, strict=True))
    if len(joined[-1]) <= CANDIDATE_LIMIT:
        return joined
    best = np.argpartition(-joined[-1], CANDIDATE_LIMIT)[:CANDIDATE_LIMIT]
    return tuple(column[best] for column in joined)


def _coarse(first: np.ndarray, second: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Step 2 for pairs of uint8 (n, 32, 32): the mean correlation of the details, float32 (n,)."""
    second = np.where(mirrored[:, None, None], second[:, :, ::-1], second).astype(np.float32)
    fixed = _tiles(first[:, 1:-1, 1:-1].astype(np.float32))
    best = np.full(len(first), -1, np.float32)
    for down in range(3):
        for right in range(3):
            score, _ = _agreement(fixed, _tiles(second[:, down : down + 30, right : right + 30]))
            np.maximum(best, score, out=best)
    return best


def _fine(first: np.ndarray, second: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Step 3 for pairs of uint8 (n, size, size, 3): the mean correlation of the details at the best shift,
    float32 (n,); -1 where too few tiles have detail or the colours differ."""
    second = np.where(mirrored[:, None, None, None], second[:, :, ::-1], second)
    one, two = (np.stack([_resized(x[..., c], 64) for c in range(3)], 3) for x in (first, second))
    middle = one[:, 2:-2, 2:-2]  # (n, 64, 64, 3) -> (n, 60, 60, 3)
    fixed, fixed_colours = _tiles(_resized(middle @ _LUMA, 30)), _colours(middle)
    best = np.full(len(first), -1, np.float32)
    accepted = np.zeros(len(first), bool)
    for down in range(5):
        for right in range(5):
            moved = two[:, down : down + 60, right : right + 60]
            score, textured = _agreement(fixed, _tiles(_resized(moved @ _LUMA, 30)))
            colours = (fixed_colours * _colours(moved)).sum(1)
            better = score > best
            best[better] = score[better]
            accepted[better] = ((textured >= TEXTURED_TILES) & (colours >= COLOUR_BAR))[better]
    return np.where(accepted, best, np.float32(-1))


def _tiles(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The detail of float32 (n, 30, 30) in tiles, (n, 25, 36), and its standard deviation, (n, 25)."""
    count = len(grey)
    tiles = grey.reshape(count, _GRID, _TILE, _GRID, _TILE).transpose(0, 1, 3, 2, 4)  # (n, 5, 5, 6, 6)
    detail = tiles.reshape(count, _GRID**2, _TILE**2) @ _without_plane()  # (n, 25, 36)
    return detail, np.sqrt(np.einsum("ntk,ntk->nt", detail, detail) / _TILE**2)


def _agreement(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The mean correlation over the tiles that have detail in either image, (n,), and how many have, (n,)."""
    (one, one_spread), (two, two_spread) = first, second
    # Below a product of 1 the spread is rounding, not detail.
    scale = np.maximum(one_spread * two_spread, 1) * _TILE**2
    correlation = np.einsum("ntk,ntk->nt", one, two) / scale
    has_detail = np.maximum(one_spread, two_spread) > _TEXTURE
    textured = has_detail.sum(1)
    return (correlation * has_detail).sum(1) / np.maximum(textured, 1), textured


def _colours(rgb: np.ndarray) -> np.ndarray:
    """float32 (n, 60, 60, 3) as 6x6 colours, without the mean, of length 1: (n, 108)."""
    count = len(rgb)
    grid = rgb.reshape(count, 6, 10, 6, 10, 3).mean((2, 4)).reshape(count, -1)
    grid -= grid.mean(1, keepdims=True)
    return grid / np.maximum(np.linalg.norm(grid, axis=1, keepdims=True), 1e-3)


@cache
def _without_plane() -> np.ndarray:
    """(36, 36): takes a tile of 6x6 values, flattened, to the same less its best-fitting plane."""
    row, column = np.mgrid[:_TILE, :_TILE].reshape(2, -1)
    plane = np.linalg.qr(np.stack([np.ones(_TILE**2), row, column], 1))[0]
    return (np.eye(_TILE**2) - plane @ plane.T).astype(np.float32)


def _resized(planes: np.ndarray, size: int) -> np.ndarray:
    """(n, s, s) as float32 (n, size, size), each new pixel the mean of the area that it covers."""
    return _area(size, planes.shape[1]) @ planes.astype(np.float32) @ _area(size, planes.shape[2]).T


@cache
def _area(new: int, old: int) -> np.ndarray:
    """(new, old): row i has the shares of the old pixels in the interval [i, i + 1) * old / new."""
    edges = np.arange(new + 1)[:, None] * old / new
    left, right = np.maximum(edges[:-1], np.arange(old)), np.minimum(edges[1:], np.arange(old) + 1)
    return (np.maximum(right - left, 0) * new / old).astype(np.float32)
