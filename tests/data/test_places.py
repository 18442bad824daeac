"""Where data lies when nobody says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinlab.data.places import find_source
from tinlab.errors import TinlabError

USUAL = {"image_size": 64, "tune_fraction": 0.1, "seed": 0, "rules": 1}


@pytest.fixture
def packs(tmp_path, monkeypatch):
    monkeypatch.setenv("TINLAB_CACHE", str(tmp_path))
    monkeypatch.delenv("TINLAB_DATA", raising=False)
    return tmp_path / "packs"


def described(folder: Path, **source: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "pack.json").write_text(json.dumps({"source": source}))
    return folder


def test_a_pack_with_the_default_settings_comes_before_others(packs):
    described(packs / "tiny-imagenet-200-128-x", settings={**USUAL, "image_size": 128})
    described(packs / "tiny-imagenet-200-32-x", settings={**USUAL, "image_size": 32})
    described(packs / "tiny-imagenet-200-3", settings={**USUAL, "tune_fraction": 0})
    described(packs / "tiny-imagenet-200-4", settings={**USUAL, "seed": 1})
    described(packs / "tiny-imagenet-200-5", settings=USUAL, subset_of="another")
    usual = described(packs / "tiny-imagenet-200-64-x", settings=USUAL)
    assert find_source() == usual


def test_one_pack_is_taken_as_it_is_and_several_unusual_ones_are_not_chosen_from(packs):
    assert find_source() is None
    only = described(packs / "tiny-imagenet-200-128-x", settings={**USUAL, "image_size": 128})
    assert find_source() == only
    described(packs / "tiny-imagenet-200-32-x", settings=None)
    with pytest.raises(
        TinlabError, match=r"tiny-imagenet-200-128-x, tiny-imagenet-200-32-x\); name one .*--data"
    ):
        find_source()
    assert find_source("tiny-imagenet-200-128-x") == only


def test_an_empty_name_is_none(packs):
    described(packs / "tiny-imagenet-200-64-x", settings=USUAL)
    with pytest.raises(TinlabError, match="--data is empty"):
        find_source("")
