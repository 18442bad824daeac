"""How much of each paper was run, counted for the head of RESULTS.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinlab.papers.found import Found, Line, found_of
from tinlab.papers.registry import PAPERS, Paper


@dataclass(frozen=True)
class Glance:
    """What there is of one paper.

    Trainings are recipes: a row has one, or those of its study. Of them `unrun_from_weights` were not run and
    begin from ImageNet's weights, and `unrun` were not run and do not. `beside` of those at full length stand
    beside a number of the paper's, which `reached` are no lower than.
    """

    title: str
    whole: int
    shortened: int
    unrun: int
    unrun_from_weights: int
    beside: int
    reached: int
    commands: int
    commands_run: int


def glance(paper: Paper, lines: Sequence[Line], measures: Mapping[str, Sequence[Line]]) -> Glance:
    """What `lines` of results.csv and `measures` have of `paper`."""
    longest: list[Found] = []
    unrun = from_weights = beside = reached = 0
    for row in paper.rows:
        for recipe in row.recipes:
            found = next(iter(found_of(recipe, lines)), None)
            if found is None:
                from_weights += row.saw_imagenet
                unrun += not row.saw_imagenet
                continue
            longest.append(found)
            if found.share == 1 and row.recipe is not None and row.beside_val is not None:
                beside += 1
                reached += found.mean() >= row.beside_val
    commands = [row for row in paper.rows if row.command]
    whole = sum(found.share == 1 for found in longest)
    return Glance(
        title=paper.title,
        whole=whole,
        shortened=len(longest) - whole,
        unrun=unrun,
        unrun_from_weights=from_weights,
        beside=beside,
        reached=reached,
        commands=len(commands),
        commands_run=sum(row.id in measures for row in commands),
    )


def at_a_glance(lines: Sequence[Line], measures: Mapping[str, Sequence[Line]]) -> str:
    """A table, a line a paper, and what it comes to."""
    columns = (
        "paper",
        *("trainings", "at full length", "shortened", "not yet run", "not yet run: from ImageNet's weights"),
        "measures and pictures made",
    )
    found = [glance(paper, lines, measures) for paper in PAPERS]
    rows = [
        (
            one.title,
            one.whole + one.shortened + one.unrun + one.unrun_from_weights,
            *(one.whole, one.shortened, one.unrun, one.unrun_from_weights),
            f"{one.commands_run} of {one.commands}" if one.commands else "",
        )
        for one in found
    ]
    table = "".join(f"| {' | '.join(str(cell) for cell in row)} |\n" for row in rows)
    head = f"| {' | '.join(columns)} |\n{len(columns) * '| --- '}|\n"
    beside, reached = sum(one.beside for one in found), sum(one.reached for one in found)
    says = ""
    if beside:
        says = f"\nOf {beside} at full length beside a number of their paper's, {reached} reach it.\n"
        if reached < beside:
            says += "Why not, as far as that is known, stands under the tables.\n"
    return f"\n## At a glance\n\n{head}{table}{says}"
