"""docs/papers.md: where each row stands in its paper, and where each value of its recipe comes from."""

from __future__ import annotations

from tinlab import recipes
from tinlab.papers.page import said
from tinlab.papers.registry import PAPERS, Row
from tinlab.recipe import Recipe
from tinlab.study.studies import STUDIES

INTRODUCTION = """# The papers' experiments, and what is known of them

`tinlab results` writes this page from the recipes. A value is **stated** by its paper, **inferred** from what
it says, **assumed** where it says nothing and its field would have done so then, or **ours** where we depart.
`tinlab recipes NAME` prints a recipe whole; our numbers are in [RESULTS.md](../RESULTS.md). In a command
`{NAME}` stands for the finished run of the row NAME and `{out}` for the folder of runs; `tinlab reproduce
ROW` fills them in.
"""

KINDS = {"stated": "Stated", "inferred": "Inferred", "assumed": "Assumed", "changed": "Ours"}


def sources_page() -> str:
    """The page, as Markdown: a heading a row, in the papers' order."""
    parts = [INTRODUCTION]
    for paper in PAPERS:
        parts.append(f"\n## {paper.title}\n\n{paper.about}\n")
        parts += [_row(row) for row in paper.rows]
    return "".join(parts)


def _row(row: Row) -> str:
    parts = [f"\n### {row.id}\n\n{row.what[0].upper()}{row.what[1:]}. "]
    if row.command:
        parts.append(f"`{row.command}`. Reported: {said(row)}.\n")
        return "".join(parts)
    first, *others = _bases(row)
    if first.paper is not None:
        parts.append(f"{first.paper.authors}, {first.paper.section}. ")
    parts.append(f"Reported: {said(row)}.\n")
    if row.study is not None:
        parts.append(f"\nA study of {len(row.recipes)}: {', '.join(r.name for r in row.recipes)}.\n")
    for kind, words in KINDS.items():
        own = [f"`{path}` ({item.why})" for path, item in first.provenance.items() if item.kind == kind]
        own += [
            f"`{path}` of {other.name} ({item.why})"
            for other in others
            for path, item in other.provenance.items()
            if item.kind == kind and item != first.provenance.get(path)
        ]
        if own:
            parts.append(f"\n*{words}:* {'; '.join(own)}.\n")
    return "".join(parts)


def _bases(row: Row) -> list[Recipe]:
    """The recipes of `row`; of a study those that its grid varies, which say where its values are from."""
    if row.study is None:
        return list(row.recipes)
    return [recipes.find(one) if isinstance(one, str) else one for one in STUDIES[row.study]().recipes]
