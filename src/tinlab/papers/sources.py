"""docs/papers.md: where each row stands in its paper, and where each value of its recipe comes from."""

from __future__ import annotations

from tinlab.papers.page import said
from tinlab.papers.registry import PAPERS, Row

INTRODUCTION = """# The papers' experiments, and what is known of them

`tinlab results` writes this page from the recipes. A value is **stated** by its paper, **inferred** from what
it says, **assumed** where it says nothing and its field would have done so then, or **ours** where we depart.
`tinlab recipes NAME` prints a recipe whole; our numbers are in [RESULTS.md](../RESULTS.md).
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
    first = next(iter(row.recipes), None)
    if row.command:
        parts.append(f"`{row.command}`. Reported: {said(row)}.\n")
        return "".join(parts)
    assert first is not None
    if first.paper is not None:
        parts.append(f"{first.paper.authors}, {first.paper.section}. ")
    parts.append(f"Reported: {said(row)}.\n")
    if row.study is not None:
        parts.append(f"\nA study of {len(row.recipes)}: {', '.join(r.name for r in row.recipes)}.\n")
    for kind, words in KINDS.items():
        own = [f"`{path}` ({item.why})" for path, item in first.provenance.items() if item.kind == kind]
        if own:
            parts.append(f"\n*{words}:* {'; '.join(own)}.\n")
    return "".join(parts)
