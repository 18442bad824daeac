from test_results_page import line

from tinlab.papers.glance import at_a_glance, glance
from tinlab.papers.registry import PAPERS

YU = next(paper for paper in PAPERS if paper.key == "yu")
SHCHERBINA = next(paper for paper in PAPERS if paper.key == "shcherbina")


def test_each_training_is_counted_once_by_its_longest_run():
    nothing = glance(YU, [], {})
    assert (nothing.whole, nothing.shortened, nothing.unrun, nothing.unrun_from_weights) == (0, 0, 8, 1)
    lines = [
        line("yu_vgg-budget-0.1"),
        line("yu_vgg"),
        line("yu_vgg", seed=1),
        line("yu_alexnet-budget-0.5"),
        line("yu_resnet20-fine_grid"),
        line("sun_vanilla"),
    ]
    found = glance(YU, lines, {})
    assert (found.whole, found.shortened, found.unrun, found.unrun_from_weights) == (2, 1, 5, 1)


def test_what_reaches_its_paper_does_so_at_full_length_and_on_average():
    def counted(*lines):
        found = glance(YU, lines, {})
        return found.beside, found.reached

    assert counted(line("yu_vgg", top1=45.88)) == (1, 1)
    assert counted(line("yu_vgg", top1=45.87)) == (1, 0)
    assert counted(line("yu_vgg", top1=40.0), line("yu_vgg", seed=1, top1=52.0)) == (1, 1)
    assert counted(line("yu_vgg-budget-0.1", top1=90.0)) == (0, 0)
    assert counted(line("yu_resnet20-fine_grid", top1=90.0)) == (0, 0)  # the poster has no number for it


def test_commands_count_where_they_have_a_measure():
    found = glance(SHCHERBINA, [], {"shcherbina_curves": [{"measure": "picture"}]})
    assert (found.commands, found.commands_run) == (16, 1)


def test_the_table_adds_up():
    lines = [line("yu_vgg", top1=50.0), line("yu_alexnet", top1=10.0), line("sun_final-budget-0.1")]
    text = at_a_glance(lines, {})
    cells = [row.strip("| ").split(" | ") for row in text.splitlines() if row.startswith("| ")][2:]
    assert [row[0] for row in cells] == [paper.title for paper in PAPERS]
    trainings = [sum(len(row.recipes) for row in paper.rows) for paper in PAPERS]
    assert [int(row[1]) for row in cells] == trainings
    assert [sum(map(int, row[2:6])) for row in cells] == trainings
    assert "Of 2 at full length beside a number of their paper's, 1 reach it." in text
    assert "reach it" not in at_a_glance([], {})
