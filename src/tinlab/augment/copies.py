"""Fixed copies: a training set enlarged once, without storing a pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinlab.recipe.operations import FixedCopies


def with_copies(
    rows: np.ndarray, operations: Sequence[object], seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """The training rows and after them those of the copies, and which copy each one is.

    `rows` is int64 (N,). Returns two int64 (N + copies,): the row, and 0 for the original or the number, from
    1, of the operation that changes it. Without `fixed_copies` among `operations`: `rows`, and None. Which
    rows are copied is a pure function of `seed` and the operation's number.
    """
    enlarging = [operation for operation in operations if isinstance(operation, FixedCopies)]
    if not enlarging:
        return rows, None
    (operation,) = enlarging
    count = round(operation.share * len(rows))
    every, variants = [rows], [np.zeros(len(rows), np.int64)]
    for number in range(1, len(operation.operations) + 1):
        # The orders of the passes have keys below 2**63. As an array: of a list with so large a number NumPy
        # makes floats, which tell neighbours apart no more.
        key = np.array([seed, 2**63 + number], np.uint64)
        dice = np.random.Generator(np.random.Philox(key=key))
        every.append(rows[np.sort(dice.permutation(len(rows))[:count])])
        variants.append(np.full(count, number))
    return np.concatenate(every), np.concatenate(variants)
