import math

import pytest
from scipy import stats
from test_results_page import line, written

from tinlab.errors import TinlabError
from tinlab.papers import page
from tinlab.papers.found import found_of, gain, words
from tinlab.papers.registry import every_row, recipe_called, study_recipes
from tinlab.papers.remarks import Remark, Shown, missing, paragraph, read_remarks, remarks_file, shown
from tinlab.results import results_file


def said(text, lines, measures=None, **more):
    found = shown(Remark("yu_vgg", text, **more), lines, measures or {})
    return None if found is None else paragraph([found])


def test_a_share_is_said_once_for_all_that_have_it():
    share = "(All at 0.1 of each training's length.)"
    some = [Shown("One.", 0.1), Shown("Two.", 0.1), Shown("Three."), Shown("Four.", 0.1)]
    assert paragraph(some) == f"One. Two. {share} Three. Four. {share}"


def toml(tmp_path, text):
    path = tmp_path / "remarks.toml"
    path.write_text(text)
    return path


def test_numbers_come_from_the_rows():
    lines = [
        line("yu_vgg", 0, 40.0), line("yu_vgg", 1, 41.0), line("yu_resnet20", 0, 30.25)
    ]  # fmt: skip
    assert said("{yu_vgg.val} and {yu_resnet20.val:.0f}", lines) == "40.50 and 30"
    assert said("{yu_vgg.val - yu_resnet20.val:+.1f}", lines) == "+10.2"
    assert said("{(yu_vgg.paper_val - yu_vgg.val) / 2}", lines) == f"{(45.88 - 40.5) / 2:.2f}"
    assert said("{yu_vgg.train}\nin {yu_vgg.minutes} minutes", lines) == "90.0 in 12 minutes"


def test_a_remark_waits_until_all_that_it_names_was_measured():
    only = [line("yu_vgg")]
    assert said("{yu_vgg.val} {yu_resnet20.val}", only) is None
    assert said("{yu_vgg.val}", only, when="yu_resnet20.val > 1") is None
    assert said("{yu_vgg.val} {yu_resnet20.paper_val}", only) == "50.00 54.40"
    assert missing(Remark("yu_vgg", "{yu_vgg.val} {yu_resnet20.val}"), only, {}) == ["yu_resnet20"]
    assert said("{shcherbina_ensemble.error_correlation}", only) is None
    assert missing(Remark("yu_vgg", "{shcherbina_ensemble.error_correlation}"), only, {}) == [
        "shcherbina_ensemble"
    ]


def test_what_a_command_measured_is_at_the_share_of_the_runs_that_it_looked_at():
    found = {"measure": "error_correlation", "value": "0.5", "of": "0123", "share": "1"}
    whole = {"shcherbina_ensemble": [found]}
    short = {"shcherbina_ensemble": [{**found, "share": "0.1"}]}
    of_none = {"sun_depth_cost": [{**found, "measure": "mean_blocks", "of": ""}]}
    correlation, blocks = "{shcherbina_ensemble.error_correlation}", "{sun_depth_cost.mean_blocks}"
    at_a_tenth = " (All at 0.1 of each training's length.)"
    both = [line("yu_vgg"), line("yu_vgg-budget-0.1", top1=30.0)]
    for text, lines, measures, full, expected in (
        (correlation, [], whole, None, "0.50"),
        (correlation, [], whole, False, None),
        (correlation, [], short, None, "0.50" + at_a_tenth),
        (correlation, [], short, False, "0.50" + at_a_tenth),
        (correlation, [], short, True, None),
        ("{yu_vgg.val:.0f} " + correlation, both, whole, None, "50 0.50"),
        ("{yu_vgg.val:.0f} " + correlation, both, short, None, "30 0.50" + at_a_tenth),
        ("{yu_vgg.val:.0f} " + correlation, both[:1], short, None, None),
        (blocks, [], of_none, None, "0.50"),
        (blocks, [], of_none, False, None),
        ("{yu_vgg.val:.0f} " + blocks, both[1:], of_none, None, "30 0.50" + at_a_tenth),
    ):
        assert said(text, lines, measures, full=full) == expected, (text, full)


def test_a_remark_is_shown_where_its_condition_holds():
    lines = [line("yu_vgg", top1=40.0), line("yu_resnet20", top1=45.0)]
    assert said("x", lines, when="yu_vgg.val < yu_resnet20.val") == "x"
    assert said("x", lines, when="yu_vgg.val > yu_resnet20.val") is None
    assert said("x", lines, when="not yu_vgg.val > 39 or yu_resnet20.val == 45") == "x"
    assert said("x", lines, when="clear(yu_vgg, yu_resnet20)") == "x"
    assert said("x", lines, when="30 < yu_vgg.val < yu_resnet20.val and clear(yu_vgg, yu_vgg)") is None


def test_all_numbers_are_of_one_share_of_the_length():
    short = [line("yu_vgg-budget-0.1", top1=20.0, budget="x"), line("yu_resnet20-budget-0.1", top1=30.0)]
    mixed = [line("yu_vgg", top1=40.0), short[1]]
    text = "{yu_vgg.val} {yu_resnet20.val}"
    assert said(text, mixed) is None
    assert said(text, short) == "20.00 30.00 (All at 0.1 of each training's length.)"
    assert said(text, short, full=True) is None
    assert said(text, short, full=False) is not None
    assert said(text, [*short, line("yu_vgg"), line("yu_resnet20")], full=False) is None
    assert said(text, [*short, line("yu_vgg"), line("yu_resnet20", top1=51.0)]) == "50.00 51.00"


def test_a_study_has_a_best_and_a_worst():
    recipes = study_recipes("ma_init")
    lines = [line(one.name, top1=10.0 + place) for place, one in enumerate(recipes)]
    text = "{ma_init.best} {ma_init.best_val}, {ma_init.worst} {ma_init.worst_val}"
    assert said(text, lines) == "elu, lsuv 19.00, relu, he 10.00"
    assert said(text, lines[1:]) is None
    assert words(recipes[2]) == "relu, gaussian of variance 0.1"
    named = {"he": recipes[0].name, "xavier": recipes[1].name}
    assert said("{gain(xavier, he)}", lines, names=named).startswith("+1.00 points (95% interval over the")


def test_a_gain_over_seeds_is_a_paired_t_interval_and_over_images_an_unpaired_one():
    ones, others = (53.0, 52.0, 54.5), (50.0, 51.0, 50.5)
    lines = [line("yu_vgg", seed, value) for seed, value in enumerate(ones)]
    lines += [line("yu_resnet20", seed, value) for seed, value in enumerate(others)]
    vgg, resnet = (found_of(recipe_called(name), lines)[0] for name in ("yu_vgg", "yu_resnet20"))
    found = gain(vgg, resnet)
    wanted = stats.ttest_rel(ones, others).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(wanted), abs=1e-9)
    assert found.over == "seeds"
    single = gain(found_of(recipe_called("yu_vgg"), lines[:1])[0], resnet)
    assert single.over == "images"
    mean = 53.0 - sum(others) / 3
    assert (single.mean, single.high) == pytest.approx((mean, round(mean + math.sqrt(2), 2)))


def test_a_seed_that_was_trained_twice_counts_once():
    old, new = line("yu_vgg", top1=40.0), line("yu_vgg", top1=42.0) | {"finished_at": "2099"}
    (found,) = found_of(recipe_called("yu_vgg"), [new, old])
    assert found.values() == {0: 42.0}


BAD = {
    "no row": ('row = "yu_vg"\ntext = "x"', "there is no row 'yu_vg'"),
    "no text": ('row = "yu_vgg"', "a remark has row and text"),
    "another key": ('row = "yu_vgg"\ntext = "x"\nwehn = "1 == 1"', "may have of row, text, when"),
    "no recipe": ('row = "yu_vgg"\ntext = "{yu_vg.val}"', "yu_vg"),
    "no field": ('row = "yu_vgg"\ntext = "{yu_vgg.vall}"', "yu_vgg has no field 'vall'; it has val"),
    "of a study": ('row = "ma_init"\ntext = "{ma_init.val}"', "it has best, worst"),
    "no paper's number": ('row = "yu_tuned"\ntext = "{yu_tuned.paper}"', "the paper reports no paper"),
    "typed": ('row = "yu_vgg"\ntext = "It reaches 44%."', "typed by hand"),
    "typed points": ('row = "yu_vgg"\ntext = "2.5 points more"', "typed by hand"),
    "an open brace": ('row = "yu_vgg"\ntext = "{yu_vgg.val"', "brace"),
    "no expression": ('row = "yu_vgg"\ntext = "{yu_vgg.}"', "cannot be read"),
    "a call": ('row = "yu_vgg"\ntext = "{open(yu_vgg, yu_vgg)}"', "no function 'open'"),
    "code": ('row = "yu_vgg"\ntext = "{[1][0]}"', "is no NAME.FIELD"),
    "a gain of a study": ('row = "ma_init"\ntext = "{gain(ma_init, yu_vgg)}"', "has no single recipe"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_told_whatever_was_measured(case, tmp_path):
    entry, expected = BAD[case]
    path = toml(tmp_path, f"[[remark]]\n{entry}\n")
    with pytest.raises(TinlabError) as told:
        read_remarks(path)
    assert expected in str(told.value)
    assert str(path) in str(told.value)


def test_a_file_that_is_no_toml_is_told(tmp_path):
    with pytest.raises(TinlabError, match=r"remarks\.toml"):
        read_remarks(toml(tmp_path, "[[remark"))
    assert read_remarks(tmp_path / "none.toml") == ()


def test_remarks_stand_under_their_table_and_answers_in_a_place_of_their_own(tmp_path):
    path = written(tmp_path, [line("yu_vgg", top1=40.0)])
    remarks_file(path).write_text(
        '[[remark]]\nrow = "yu_vgg"\ntext = "Ours has {yu_vgg.val}%."\n'
        '[[remark]]\nrow = "yu_tuned"\nquestion = "Better?"\ntext = "{gain(yu_tuned, yu_vgg)}"\n'
        '[[remark]]\nrow = "yu_vgg"\nquestion = "Good?"\ntext = "Yes: {yu_vgg.val}%."\n'
    )
    text = page.results_page(path)
    yu = text.partition("## Yu")[2].partition("## Shcherbina")[0]
    assert "**yu_vgg.** Ours has 40.00%.\n" in yu
    assert "**Better?** Not answered yet; to run: `tinlab reproduce yu_tuned`, about 16 minutes." in text
    assert "**Good?** Yes: 40.00%." in text.partition("## What the papers left open")[2]


def test_a_row_below_its_paper_without_a_word_is_found(tmp_path):
    path = written(tmp_path, [line("yu_vgg", top1=40.0), line("yu_resnet20", top1=60.0)])
    assert page.unexplained(path) == ["yu_vgg"]
    remarks_file(path).write_text('[[remark]]\nrow = "yu_vgg"\ntext = "Because."\n')
    assert page.unexplained(path) == []


def test_the_projects_own_remarks_can_be_read_and_its_rows_below_a_paper_are_explained():
    remarks = read_remarks(remarks_file(results_file()))
    assert {remark.row for remark in remarks} <= {row.id for row in every_row()}
    asked = {remark.row for remark in remarks if remark.question}
    assert asked >= {"ma_init", "yu_tuned", "shcherbina_dropconnect", "shcherbina_targeted"}
    assert asked >= {"shcherbina_pruned", "shcherbina_alexnet", "sun_deeper"}
    assert page.unexplained(results_file()) == []


def test_every_question_has_an_answer_whatever_the_numbers_say():
    """With everything measured, and the numbers in either order, at least one of its remarks is shown."""
    names = sorted({recipe.name for row in every_row() for recipe in row.recipes})
    remarks = read_remarks(remarks_file(results_file()))
    for order in (names, names[::-1]):
        lines = [line(name, top1=20.0 + 0.5 * place) for place, name in enumerate(order)]
        answered = {remark.question for remark in remarks if remark.question and shown(remark, lines, {})}
        assert answered == {remark.question for remark in remarks if remark.question}
