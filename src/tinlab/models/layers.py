"""Layers by name."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from torch import nn

from tinlab.errors import TinlabError

SHOWN = 5
"""How many names an error lists."""


def named_layers(model: nn.Module, pattern: str, *, field: str) -> dict[str, nn.Module]:
    """The modules in `model` whose dotted names match `pattern`, in the order in which they were defined.

    `*` stands for any characters, dots included, so `layer4*` names a stage and everything within it; `?`
    stands for one character and `[036]` for one of these. Raises TinlabError where nothing matches; it begins
    with `field`, the recipe's field that holds the pattern.
    """
    names = {name: module for name, module in model.named_modules() if name}
    found = {name: module for name, module in names.items() if fnmatchcase(name, pattern)}
    if not found:
        near = difflib.get_close_matches(pattern, names, n=SHOWN)
        shown = ", ".join(near or list(names)[:SHOWN])
        has = f"it has {shown}{'' if near or len(names) <= SHOWN else ', …'}" if names else "it has no layers"
        raise TinlabError(f"{field}: no layer of the network is called '{pattern}'; {has}")
    return found
