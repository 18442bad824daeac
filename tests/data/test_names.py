"""Packed names against plain lists of strings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinlab.data import names as module
from tinlab.data.names import Names

TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("/\udc80\udcff"), max_size=8)
"""Names with whatever a file's name may hold, bytes that are no UTF-8 included."""


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, max_size=30), st.integers(1, 7), st.randoms(use_true_random=False))
def test_they_are_what_a_list_is(texts: list[str], at_once: int, random) -> None:
    # surrogateescape joins escaped bytes that happen to be UTF-8, as a file system does too.
    texts = [t.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") for t in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_AT_ONCE", at_once)
        patch.setattr(module, "_RUN", at_once + 1)
        found = Names.of(texts)
        assert (list(found), len(found)) == (texts, len(texts))
        assert [found[row] for row in range(len(texts))] == texts
        assert list(found[1:-1]) == texts[1:-1]
        rows = np.array(random.sample(range(len(texts)), len(texts) // 2), np.int64)
        assert (
            list(found.of_rows(rows))
            == found.some(rows)
            == list(found.take(rows))
            == [texts[r] for r in rows]
        )
        assert [texts[r] for r in found.sort(rows)] == sorted(texts[r] for r in rows)
        assert sorted(found.sort(rows).tolist()) == sorted(rows.tolist())
        assert (found.repeated() is None) == (len(set(texts)) == len(texts))
        if (twice := found.repeated()) is not None:
            assert texts.count(twice) > 1
        prefix = random.choice(texts)[:2] if texts else "a"
        assert list(found.without(prefix)) == [text.removeprefix(prefix) for text in texts]


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_runs_that_overlap_are_merged(order, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RUN", 4)
    texts = [f"{'abc'[order[i % 3]]}/{i:02d}" for i in range(11)]
    assert [texts[row] for row in Names.of(texts).sort(np.arange(11))] == sorted(texts)
