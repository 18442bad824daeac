"""The report page on made-up runs: what it shows, what it refuses, and that it asks nothing of a network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_run import made_pack, made_run, write
from safetensors.numpy import load_file, save_file

from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.evaluation.metrics import measure
from tinlab.report.page import write_report

VOID = {"meta", "link", "img", "br", "input", "hr"}
SECTIONS = [
    "curves", "paper", "accuracy", "classes", "confusions", "calibration", "errors", "labels",
    "explanations", "recipe", "environment", "repeat",
]  # fmt: skip


class _Page(HTMLParser):
    """Elements with their attributes, the text outside script and style, and a check that tags nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data

    @property
    def sections(self) -> list[str]:
        return [attributes["id"] for tag, attributes in self.elements if tag == "section"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return made_pack(tmp_path_factory.mktemp("packs") / "pack")


@pytest.fixture
def run(tmp_path: Path, pack: Pack) -> Path:
    return made_run(tmp_path / "run", pack=pack)


def _page(run: Path, pack: Pack | None = None) -> _Page:
    return _Page(write_report(run, pack=pack).read_text("utf-8"))


def _change(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(file.read_text())
    change(value)
    write(file, value)


def test_the_file_is_whole_and_needs_no_network(run: Path, pack: Pack) -> None:
    path = write_report(run, pack=pack)
    assert path == run / "report.html"
    assert path.stat().st_size < 10_000_000
    html = path.read_text("utf-8")
    page = _Page(html)
    assert page.sections == SECTIONS
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"@import|url\(|https?://|\bfetch\(|XMLHttpRequest|\bimport\b *[('\"]", html)
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) > 80
    assert all(image["alt"] and image["src"].startswith("data:image/jpeg;base64,") for image in images)
    charts = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(charts) == 6
    assert all(chart["aria-label"] and chart["role"] == "img" for chart in charts)
    assert not re.search(r"\bnan\b|None|undefined", page.text)


def test_the_policy_allows_the_page_its_own_script_only(run: Path) -> None:
    import base64
    import hashlib

    html = write_report(run).read_text("utf-8")
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for t, a in _Page(html).elements if a.get("http-equiv"))
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_the_numbers_are_those_of_the_predictions(run: Path, pack: Pack) -> None:
    tensors = load_file(run / "predictions" / "val.safetensors")
    metrics = measure(tensors["logits"], tensors["labels"])
    text = _page(run, pack).text
    low, high = metrics.top1_interval_percent
    assert f"{metrics.top1_percent:.2f}% of 1,000 validation images right" in text
    assert f"{52 - metrics.top1_percent:.1f} points below the paper’s 52%" in text
    assert f"right ({low:.2f} to {high:.2f}%), " in text
    assert "; guessing would get 5%." in text
    for shown in (metrics.top5_percent, metrics.calibration_error_percent):
        assert f"{shown:.2f}%" in text
    assert f"{metrics.loss:.3f}" in text
    assert (
        "Trained on tiny-imagenet (10,000 images, 200 classes) for 30 epochs in 42 minutes on NVIDIA H200."
        in text
    )
    worst = metrics.confusions[0]
    assert f"{worst.images} of {metrics.per_class_images[worst.true]} images" in text
    assert "ahead of held-out accuracy" in text
    assert "the network overfits" in text
    for words in ("optimizer", "peak lr", "section 4.1: 'we start at 0.1'", "tinlab train he2016-resnet18"):
        assert words in text


def test_a_paper_within_the_interval_is_not_beaten(run: Path) -> None:
    tensors = load_file(run / "predictions" / "val.safetensors")
    top1 = measure(tensors["logits"], tensors["labels"]).top1_percent
    _change(
        run / "recipe.json", lambda v: v["paper"]["reported"].update(val_top1_percent=round(top1 + 0.5, 1))
    )
    assert "no measurable distance from the paper’s" in _page(run).text


def test_what_a_resumed_run_was_trained_on(run: Path) -> None:
    later = {"recorded_at": "2026-11-22T09:00:00+00:00", "gpu": "NVIDIA H100"}

    def resume(environment: dict[str, Any]) -> None:
        first = dict(environment)
        environment["resumed"] = [{**first, "recorded_at": "2026-11-21"}, 3, {**first, **later}]

    _change(run / "environment.json", resume)
    text = _page(run).text
    assert "in 42 minutes on NVIDIA H200, then NVIDIA H100." in text
    assert "2026-11-21; all else as before" in text
    assert "2026-11-22T09:00:00+00:00; gpu NVIDIA H100" in text
    _change(run / "environment.json", lambda v: v.update(resumed="damaged"))
    assert "42 minutes on NVIDIA H200." in _page(run).text


def test_words_cannot_run(run: Path, pack: Pack) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><b>"
    classes = [{"id": evil, "words": evil + str(i)} for i in range(20)]
    write(run / "classes.json", classes)
    _change(run / "recipe.json", lambda v: v.update(name=evil, summary=evil, notes=evil, model={evil: evil}))
    _change(run / "recipe.json", lambda v: v["paper"].update(title=evil, reported={evil: 1.0}))
    _change(run / "recipe.json", lambda v: v.update(provenance={evil: {"kind": evil, "why": evil}}))
    _change(run / "environment.json", lambda v: v.update(command=evil, gpu=evil))
    _change(run / "result.json", lambda v: v.update(finished_at=evil))
    lines = (run / "metrics.jsonl").read_text().replace('"val"', json.dumps(evil))
    (run / "metrics.jsonl").write_text(lines)
    page = _page(run, pack)
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not [a for _, a in page.elements if "onerror" in a or a.get("src") == "x"]
    assert "<script>alert(1)</script>" in page.text


def test_the_stand_in_set_is_named_and_not_held_against_a_paper(run: Path) -> None:
    _change(run / "environment.json", lambda v: v["pack"].update(source_kind="rendered"))
    text = _page(run).text
    assert "rendered stand-in set" in text
    assert "Trained on rendered stand-in images" in text
    assert "below the paper" not in text


@pytest.mark.parametrize("classes", [1, 2, 3, 11, 200])
def test_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    run = made_run(tmp_path / "run", classes=classes, per_class=10, epochs=2)
    page = _page(run)
    assert page.sections == SECTIONS
    assert sum(tag == "tr" for tag, _ in page.elements) > classes


def test_200_classes_with_images_stay_small(tmp_path: Path) -> None:
    pack = made_pack(tmp_path / "pack", classes=200, per_class=5)
    run = made_run(tmp_path / "run", classes=200, per_class=5, pack=pack)
    assert write_report(run, pack=pack).stat().st_size < 1_500_000


def test_a_run_that_has_just_begun(run: Path) -> None:
    for name in (
        "metrics.jsonl",
        "result.json",
        "predictions/val.safetensors",
        "classes.json",
        "environment.json",
    ):
        (run / name).unlink()
    page = _page(run)
    assert "Not finished, and nothing was measured yet." in page.text
    assert "0 epochs of 30" in page.text
    assert page.sections == [
        "curves",
        "paper",
        "classes",
        "explanations",
        "recipe",
        "environment",
        "repeat",
    ]


def test_a_run_that_was_killed(run: Path) -> None:
    (run / "result.json").unlink()
    (run / "predictions" / "val.safetensors").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:300]) + lines[300][:40])
    text = _page(run).text
    last = [line for line in map(json.loads, lines[:300]) if line["kind"] == "eval"][-1]
    assert f"{last['top1_percent']:.2f}% of validation images right at epoch {last['epoch']}" in text
    assert "in a run that is not finished" in text
    assert "1 line of metrics.jsonl was cut short" in text
    assert "were not saved yet" in text


def test_train_lines_only_and_one_line_only(run: Path) -> None:
    (run / "result.json").unlink()
    (run / "predictions" / "val.safetensors").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    for kept in ([line for line in lines if '"train"' in line[:20]], lines[:1], lines[-1:], []):
        (run / "metrics.jsonl").write_text("\n".join(kept))
        assert "not finished" in _page(run).text


def test_the_last_word_on_a_step_counts(run: Path) -> None:
    again = {"kind": "eval", "split": "val", "step": 11730, "epoch": 30, "loss": 9.8765, "top1_percent": 1.25}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    text = _page(run).text
    assert "9.8765" in text
    assert "and after it 1.2% of the validation images" in text


def test_a_diverged_run_says_so(run: Path) -> None:
    line = {"kind": "train", "step": 11740, "epoch": 30.02, "loss": math.nan, "top1_percent": 0.5}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert "Training diverged: the loss is not finite at epoch 30.02 (step 11740)" in _page(run).text


def test_a_result_that_the_predictions_contradict(run: Path) -> None:
    _change(run / "result.json", lambda v: v.update(top1_percent=99.0))
    assert "result.json says 99.00%, but the saved predictions measure" in _page(run).text


def test_without_predictions_the_result_is_shown(run: Path) -> None:
    _change(run / "result.json", lambda v: v.update(top1_percent=61.25))
    (run / "predictions" / "val.safetensors").unlink()
    text = _page(run).text
    assert "61.25% of 1,000 validation images right, 9.2 points above the paper’s 52%" in text
    assert "interval" not in text


def test_unlabelled_predictions_are_not_judged(run: Path) -> None:
    tensors = load_file(run / "predictions" / "val.safetensors")
    tensors["labels"] = np.full_like(tensors["labels"], -1)
    save_file(tensors, run / "predictions" / "test.safetensors")
    nothing = {"split": "test", "top1_percent": None, "top5_percent": None, "loss": None}
    _change(run / "result.json", lambda v: v.update(nothing))
    page = _page(run)
    assert "have no published labels" in page.text
    assert "were never published, so its 1,000 predictions cannot be judged" in page.text
    assert "errors" not in page.sections


def test_predictions_of_another_kind_are_refused(run: Path) -> None:
    path = run / "predictions" / "val.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "logits": tensors["logits"].astype(np.complex64)}, path)
    with pytest.raises(TinlabError, match=r"val\.safetensors is damaged"):
        write_report(run)


def test_text_that_is_no_unicode_is_shown_as_it_is(run: Path) -> None:
    _change(run / "recipe.json", lambda v: v.update(augment="\ud800"))
    assert "\ufffd" in _page(run).text


def test_everything_right(run: Path, pack: Pack) -> None:
    tensors = load_file(run / "predictions" / "val.safetensors")
    tensors["logits"] = 50 * np.eye(20, dtype=np.float32)[tensors["labels"]]
    save_file(tensors, run / "predictions" / "val.safetensors")
    text = _page(run, pack).text
    assert "100.00% of 1,000 validation images right" in text
    assert "Nothing was confused" in text


def test_two_held_out_splits(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text()
    evals = [line for line in lines.splitlines() if '"eval"' in line]
    (run / "metrics.jsonl").write_text(lines + "\n".join(evals).replace('"val"', '"tune"'))
    page = _page(run)
    assert any(
        "val ends at" in a.get("aria-label", "") and "tune ends at" in a["aria-label"]
        for _, a in page.elements
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.json", "{", "recipe.json cannot be read"),
        ("recipe.json", "[]", "does not hold a JSON object"),
        ("result.json", "3", "does not hold a JSON object"),
        ("environment.json", "\x00", "environment.json cannot be read"),
        ("classes.json", '[{"id": "a"}]', "classes.json cannot be read"),
        ("classes.json", '[{"id": "a", "words": "b"}]', "names 1 classes, but the predictions have 20"),
        ("metrics.jsonl", "no\nlines\n", "has no line that can be read"),
        ("predictions/val.safetensors", "no tensors", "val.safetensors cannot be read"),
    ],
)
def test_a_damaged_file_is_named(run: Path, name: str, content: str, message: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(TinlabError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


def test_predictions_that_are_not_finite_name_their_file(run: Path) -> None:
    tensors = load_file(run / "predictions" / "val.safetensors")
    tensors["logits"][3] = np.nan
    save_file(tensors, run / "predictions" / "val.safetensors")
    with pytest.raises(TinlabError, match=r"val\.safetensors: .*not finite"):
        write_report(run)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(TinlabError, match="not a run's folder"):
        write_report(tmp_path)


def test_another_pack_is_refused(run: Path, tmp_path: Path) -> None:
    other = made_pack(tmp_path / "other", per_class=49)
    with pytest.raises(TinlabError, match="not the pack that"):
        write_report(run, pack=other)
    _change(run / "environment.json", lambda v: v["pack"].update(digest=None))
    with pytest.raises(TinlabError, match="do not fit split val"):
        write_report(run, pack=other)


def test_a_damaged_pack_is_not_shown(run: Path, tmp_path: Path) -> None:
    pack = made_pack(tmp_path / "damaged")
    images = np.load(pack.path / "val.npy")
    images[0, 0, 0, 0] ^= 1
    np.save(pack.path / "val.npy", images)
    with pytest.raises(TinlabError, match=r"val\.npy is not what was packed"):
        write_report(run, pack=pack)


def test_another_place(run: Path, tmp_path: Path) -> None:
    assert write_report(run, out=tmp_path / "new" / "page.html") == tmp_path / "new" / "page.html"
    (tmp_path / "file").write_text("")
    with pytest.raises(TinlabError, match="cannot be written"):
        write_report(run, out=tmp_path / "file" / "page.html")
