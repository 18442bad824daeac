"""What classes are called, and how a person names one."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence

from tinlab.data.pack import ClassInfo
from tinlab.errors import TinlabError


def short_names(classes: Sequence[ClassInfo]) -> list[str]:
    """The first of each class's words, or all of them where two classes would read the same."""
    first = [c.words.split(",")[0].strip() or c.id for c in classes]
    often = Counter(first)
    return [
        name if often[name] == 1 else f"{c.words} ({c.id})" for name, c in zip(first, classes, strict=True)
    ]


def find_class(classes: Sequence[ClassInfo], name: str, *, field: str = "class") -> int:
    """The number of the class whose id is `name`, or whose words, or one of its comma-separated words, in any
    case.

    Raises TinlabError, which begins with `field`, where there is none or where several are called so.
    """
    wanted = name.strip().casefold()
    called = [[c.id, c.words, *(word.strip() for word in c.words.split(","))] for c in classes]
    found = [n for n, names in enumerate(called) if wanted in (word.casefold() for word in names)]
    if len(found) == 1:
        return found[0]
    if found:
        raise TinlabError(
            f"{field}: {len(found)} classes are called '{name}'; name one by its id: "
            + ", ".join(classes[n].id for n in found)
        )
    known = {word.casefold(): word for id, _, *words in called for word in (*words, id) if word}
    near = difflib.get_close_matches(wanted, known, n=3) or list(known)[:3]
    raise TinlabError(f"{field}: there is no class '{name}'; try {', '.join(known[word] for word in near)}")
