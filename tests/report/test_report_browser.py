"""The report of trained runs, as a browser shows it."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from browser import browser, open_page

from tinlab.report.page import write_report
from tinlab.training import loop

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
TOO_WIDE = """() => [...document.querySelectorAll("main *, header *, footer *")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, svg"))
  .map((e) => e.outerHTML.slice(0, 90))"""


@pytest.fixture(scope="module")
def runs(tiny_recipe, shapes_pack, tmp_path_factory) -> list[Path]:
    """Two trained runs; the first class has HTML for words, and the first recipe a paper."""
    out = tmp_path_factory.mktemp("runs")
    made = [
        loop.train(
            tiny_recipe.model_copy(update={"name": name}), shapes_pack, out, seed=seed, device="cpu"
        ).path
        for seed, name in enumerate(("first", "second"))
    ]
    for run in made:
        classes = json.loads((run / "classes.json").read_text())
        classes[0]["words"] = EVIL
        (run / "classes.json").write_text(json.dumps(classes))
    return made


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("pages")
    return {
        "one": write_report(runs[0], out=out / "one.html"),
        "several": write_report(runs, out=out / "several.html"),
    }


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.mark.parametrize("name", ["one", "several"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_a_page_asks_for_nothing_and_fits(chromium, pages, name, width, scheme):
    page = open_page(chromium, pages[name].as_uri(), width=width, color_scheme=scheme)
    assert page.complaints == []
    assert [url for url in page.asked if not url.startswith("data:")] == [pages[name].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(TOO_WIDE) == []
    broken = "() => [...document.images].filter((i) => !i.naturalWidth || i.alt.length < 3).map((i) => i.alt)"
    assert page.evaluate(broken) == []
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    targets = page.evaluate("[...document.querySelectorAll('a')].map((a) => a.getAttribute('href'))")
    assert all(page.locator(target).count() == 1 for target in targets)
    assert pages[name].stat().st_size < 10_000_000


def test_words_of_a_stranger_are_words(chromium, pages):
    page = open_page(chromium, pages["one"].as_uri())
    assert EVIL in page.locator(".classes").inner_text()
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("script").count() == 1


def test_tables_sort_by_mouse_and_by_keyboard(chromium, pages):
    page = open_page(chromium, pages["one"].as_uri())
    heading = page.locator(".classes th", has_text="top-1")

    def values():
        return page.eval_on_selector_all(
            ".classes tbody tr", "rows => rows.map((r) => +r.cells[1].dataset.value)"
        )

    best_first = values()
    assert len(best_first) == 4
    assert heading.get_attribute("aria-sort") == "descending"
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(best_first)
    name = page.locator(".classes th", has_text="class").first
    name.locator("button").focus()
    page.keyboard.press("Enter")
    assert name.get_attribute("aria-sort") == "ascending"
    assert heading.get_attribute("aria-sort") is None
    names = page.eval_on_selector_all(".classes tbody tr", "rows => rows.map((r) => r.cells[0].textContent)")
    assert names == sorted(names, key=str.casefold)


def test_a_chart_tells_its_values(chromium, pages):
    page = open_page(chromium, pages["one"].as_uri())
    figure = page.locator("figure[data-chart]").first
    assert figure.locator(".where").inner_text() == "at the end"
    figure.locator("svg").focus()
    page.keyboard.press("ArrowLeft")
    assert re.match(r"epoch \d+\.\d", figure.locator(".where").inner_text())


def test_the_first_tab_leads_past_the_contents(chromium, pages):
    page = open_page(chromium, pages["one"].as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#main"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0


def test_curves_go_over_epochs_or_minutes(chromium, pages):
    page = open_page(chromium, pages["several"].as_uri())
    assert page.locator(".by-epochs").is_visible()
    assert not page.locator(".by-minutes").is_visible()
    page.get_by_label("minutes of training").check()
    assert page.locator(".by-minutes").is_visible()
    assert not page.locator(".by-epochs").is_visible()


def test_networks_are_looked_into(chromium, pages):
    one = open_page(chromium, pages["one"].as_uri())
    looks = one.locator("#explanations article")
    assert 1 <= looks.count() <= 6
    assert looks.first.locator("img").count() == 4
    assert one.locator("#filters img").count() == 1
    several = open_page(chromium, pages["several"].as_uri())
    assert several.locator("#explanations .sight").count() >= 2
    assert several.locator("#comparison .runs tbody tr").count() == 2
    assert several.locator("#run-A, #run-B").count() == 2
