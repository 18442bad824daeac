"""A recipe as tables for people: one group of rows for each of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinlab import models, recipes
from tinlab.errors import TinlabError
from tinlab.recipe import Recipe

PROSE = ("name", "summary", "notes", "paper", "provenance")
"""Fields that the page words elsewhere."""

SAID = "in words"
"""Where an operation holds its values as they are to be shown."""


@dataclass(frozen=True)
class Knob:
    """One row: `label` and `value` as shown; `kind` and `why` of its provenance, "" where none is given."""

    label: str
    value: str
    kind: str = ""
    why: str = ""


@dataclass(frozen=True)
class KnobGroup:
    """One part of a recipe, such as its optimizer; `kind` and `why` where the whole part has a source."""

    name: str
    rows: tuple[Knob, ...]
    kind: str = ""
    why: str = ""


def knob_groups(recipe: dict[str, Any]) -> list[KnobGroup]:
    """The recipe's parts in its own order; what belongs to no part comes last, as "other"."""
    sources = _sources(recipe)
    groups, other = [], []
    for name, value in recipe.items():
        if name in PROSE:
            continue
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value)):
            groups.append(KnobGroup(name, tuple(_rows(value, name, "", sources)), *_source(sources, name)))
        else:
            other.append(Knob(_label(name), shown(value), *_source(sources, name)))
    return [*groups, KnobGroup("other", tuple(other))] if other else groups


def with_own_values(recipe: dict[str, Any]) -> dict[str, Any]:
    """`recipe` with the network's own values where its model part says None, without what it lacks, and with
    its operations in words.

    A recipe that this tinlab cannot read, or whose network is not there any more, comes back as it is.
    """
    try:
        read = Recipe.model_validate(recipe)
        resolved = models.find(read.model.name).resolve(read.model).model_dump(mode="json")
    except (TinlabError, ValueError):  # pydantic's own, and text that UTF-8 cannot hold
        return recipe
    model = {name: value for name, value in resolved.items() if value not in (None, [])}
    lines = [line.strip().partition(", ") for operation in read.augment for line in operation.lines()]
    return {**recipe, "model": model, "augment": [{"kind": head, SAID: rest} for head, _, rest in lines]}


def in_words(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe that `with_own_values` made, with its operations as one text."""
    operations = recipe.get("augment")
    if not isinstance(operations, list) or not all(isinstance(o, dict) and SAID in o for o in operations):
        return recipe
    lines = [f"{operation['kind']} ({operation[SAID]})".replace(" ()", "") for operation in operations]
    return {**recipe, "augment": "; ".join(lines) or "none"}


def with_edits(recipe: dict[str, Any]) -> dict[str, Any]:
    """`recipe` with `changed` as the source of every field that is not as in tinlab's recipe of its name: in
    a file that was edited, the provenance is still that of what stood there.

    A recipe that this tinlab cannot read, or whose name it does not know, comes back as it is.
    """
    try:
        read = Recipe.model_validate(recipe)
        known = recipes.known(read.name)
    except (TinlabError, ValueError):  # pydantic's own, and text that UTF-8 cannot hold
        return recipe
    if known is None or read.digest == known.digest:
        return recipe
    own = known.model_dump(mode="json")
    sources = dict(_sources(recipe))
    told = [f"{path}." for path in sources if _source(sources, path)[0] == "changed"]
    for path, (_, value) in differing([read.model_dump(mode="json"), own]):
        if not any(f"{path}.".startswith(one) for one in told):
            as_shown = in_words(with_own_values(own))["augment"] if path == "augment" else shown(value)
            sources.pop(path, None)  # the edits come last, in the order of the fields
            sources[path] = {"kind": "changed", "why": f"tinlab's own {known.name} has {as_shown}"}
    return {**recipe, "provenance": sources}


def provenance_counts(recipe: dict[str, Any]) -> dict[str, int]:
    """How many fields are stated, inferred, assumed or changed."""
    sources = _sources(recipe)
    counts: dict[str, int] = {}
    for path in sources:
        kind = _source(sources, path)[0]
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def differing(recipes: Sequence[dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """The fields that are not the same in all recipes: (path, a value for each; None where one lacks it)."""
    flat = [_flat({name: value for name, value in one.items() if name not in PROSE}) for one in recipes]
    paths = dict.fromkeys(path for one in flat for path in one)
    values = [(path, [one.get(path) for one in flat]) for path in paths]
    return [(path, found) for path, found in values if any(value != found[0] for value in found)]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            found |= _flat(item, f"{prefix}{name}.")
        else:
            found[prefix + name] = item
    return found


def shown(value: Any) -> str:
    """A JSON value as a person would write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(shown(v) for v in value) or "none"
    if isinstance(value, dict):
        return " · ".join(f"{_label(str(k))} {shown(v)}" for k, v in value.items()) or "none"
    return str(value)


def _rows(value: Any, path: str, prefix: str, sources: dict[str, Any]) -> list[Knob]:
    if isinstance(value, list):  # a sequence of operations, in order
        rows = []
        for place, item in enumerate(value, start=1):
            fields = dict(item) if isinstance(item, dict) else {"": item}
            name = _label(str(fields.pop("kind", fields.pop("name", ""))))
            value = fields[SAID] if SAID in fields else shown(fields)
            rows.append(Knob(f"{place}. {name}".strip(), value))
        return rows
    rows = []
    for name, field in value.items():
        below = f"{path}.{name}"
        if isinstance(field, dict) and field:
            rows.extend(_rows(field, below, f"{prefix}{_label(name)} › ", sources))
        else:
            rows.append(Knob(prefix + _label(name), shown(field), *_source(sources, below)))
    return rows


def _sources(recipe: dict[str, Any]) -> dict[str, Any]:
    found = recipe.get("provenance")
    return found if isinstance(found, dict) else {}


def _source(sources: dict[str, Any], path: str) -> tuple[str, str]:
    source = sources.get(path)
    return (str(source.get("kind", "")), str(source.get("why", ""))) if isinstance(source, dict) else ("", "")


def _label(name: str) -> str:
    return name.replace("_", " ")
