"""Remarks on the papers' rows: sentences in results/remarks.toml, whose numbers come from results.csv.

    [[remark]]
    row = "yu_tuned"
    question = "Can Yu's best network be tuned better?"
    when = "yu_tuned.val > yu_resnet20.val"
    text = "Tuned better it reaches {yu_tuned.val}%, {gain(yu_tuned, yu_resnet20)} more."

`row` is where it stands. What is in braces is computed: `NAME.FIELD`, sums and differences of such, and
functions. NAME is a row, a recipe, or one of `names`, a table of short names for recipes whose own hold a
dash. FIELD is one of FIELDS; or `paper_val`, `paper_train`, `paper_test` and `paper` (what ours on val stands
beside), which the paper reports; or a measure of a row that is a command; or, of a row that is a study,
`best` and `worst` (in words), `best_val` and `worst_val`. `gain(A, B)` is A's top-1 minus B's, in words, and
`clear(A, B)` whether its 95% interval leaves out 0.

A remark is shown where everything that it names was measured, at one and the same share of each length, the
largest there is, and where `when` holds. `full = true` shows it at full length alone, and `full = false` at
less alone. So two remarks can say what either outcome means before there is one. `question` makes it a
conclusion about something that a paper left open.
"""

from __future__ import annotations

import ast
import itertools
import operator
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinlab.errors import TinlabError
from tinlab.papers.found import Found, Gain, Line, found_of, gain, words
from tinlab.papers.registry import Row, every_row, recipe_called
from tinlab.recipe import Recipe

FIELDS = {
    "val": ("top1_percent", ".2f"),
    "top5": ("top5_percent", ".2f"),
    "train": ("train_top1_percent", ".1f"),
    "loss": ("loss", ".3f"),
    "minutes": ("train_minutes", ".0f"),
    "epochs": ("epochs", ".3g"),
    "steps": ("steps", ",.0f"),
    "parameters": ("parameters", ",.0f"),
}
"""Field -> column of results.csv, whose mean over the seeds it is, and how it is written."""

STUDY_FIELDS = ("best", "worst", "best_val", "worst_val")
PAPER_FIELDS = ("paper", "paper_val", "paper_train", "paper_test")
HOLE = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")
TYPED = re.compile(r"\d\s?(%|percent|points)")
"""A measured number that somebody typed."""


@dataclass(frozen=True)
class Remark:
    """One entry of remarks.toml."""

    row: str
    text: str
    when: str = "1 == 1"
    question: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    full: bool | None = None


class _NotMeasured(Exception):
    """Something that a remark names has no number yet."""


def remarks_file(results: Path) -> Path:
    """remarks.toml beside results.csv."""
    return results.parent / "remarks.toml"


def read_remarks(path: Path) -> tuple[Remark, ...]:
    """The remarks in `path`, in its order; none where there is no file.

    Raises TinlabError that names the remark where it names a row, recipe or field that there is not, cannot
    be read as an expression, or has a percentage or a number of points that was typed.
    """
    if not path.is_file():
        return ()
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("remark", [])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TinlabError(f"{path}: {error}") from error
    found = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}, remark {number} ({entry.get('row', 'no row')})"
        try:
            remark = Remark(**entry)
        except TypeError:
            known = ", ".join(Remark.__dataclass_fields__)
            raise TinlabError(f"{where}: a remark has row and text, and may have of {known}") from None
        try:
            _check(remark)
        except TinlabError as error:
            raise TinlabError(f"{where}: {error}") from error
        found.append(remark)
    return tuple(found)


def _check(remark: Remark) -> None:
    """Raise TinlabError for what can be wrong with a remark whatever was measured."""
    if remark.row not in {row.id for row in every_row()}:
        raise TinlabError(f"there is no row '{remark.row}'")
    if typed := TYPED.search(HOLE.sub("", remark.text)):
        raise TinlabError(f"'{typed[0]}' is typed by hand; name it as {{ROW.val}} or the like")
    if remark.text.count("{") != len(HOLE.findall(remark.text)):
        raise TinlabError("a brace is left open")
    for subject, name in _named(remark):
        subject.check(name)


@dataclass(frozen=True)
class Shown:
    """A remark with its numbers, all of them measured at `share` of each training's length."""

    text: str
    share: float = 1.0


def shown(remark: Remark, lines: Sequence[Line], measures: Mapping[str, Sequence[Line]]) -> Shown | None:
    """The remark with its numbers, or None where something is not measured or `when` does not hold."""
    lengths = [subject.shares(lines, measures) for subject in _measured(remark)]
    known = [shares for shares in lengths if shares is not None]
    common = set.intersection(*known) if known else {1.0}
    if not common or remark.full not in (None, 1.0 in common):
        return None
    share = max(common)
    numbers = _Numbers(remark, lines, measures, share)
    try:
        if not numbers.value(remark.when):
            return None
        text = HOLE.sub(lambda hole: numbers.words(hole[1], hole[2]), remark.text)
    except _NotMeasured:
        return None
    return Shown(" ".join(text.split()), share)


def paragraph(remarks: Sequence[Shown]) -> str:
    """The remarks one after the other; a share of the length is stated once after all that have it."""
    parts = []
    for share, group in itertools.groupby(remarks, key=lambda one: one.share):
        parts += [one.text for one in group]
        if share != 1:
            parts.append(f"(All at {share:g} of each training's length.)")
    return " ".join(parts)


def missing(remark: Remark, lines: Sequence[Line], measures: Mapping[str, Sequence[Line]]) -> list[str]:
    """The rows that a remark has numbers of, its own first, which were not measured, or not all of whose
    recipes were."""
    found = []
    for subject in (_subject(remark.row, {}), *_measured(remark)):
        row = subject.row or next(
            (one for one in every_row() if subject.recipes[0].name in {r.name for r in one.recipes}), None
        )
        if row is not None and row.id not in found and subject.shares(lines, measures) == set():
            found.append(row.id)
    return found


def _measured(remark: Remark) -> list[_Subject]:
    """What a remark has numbers of: all that it names for more than what the paper reports."""
    return [subject for subject, name in _named(remark) if name not in PAPER_FIELDS]


@dataclass(frozen=True)
class _Subject:
    """What a name in an expression stands for."""

    name: str
    row: Row | None
    recipes: tuple[Recipe, ...]

    def check(self, name: str) -> None:
        """Raise TinlabError where it has no field `name`; an empty name stands for the recipe itself."""
        single = len(self.recipes) == 1
        known: list[str] = []
        if single:
            known += FIELDS
        elif self.recipes:
            known += STUDY_FIELDS
        if self.row is not None:
            known += [*PAPER_FIELDS, *self.row.measures]
        if (name and name not in known) or (not name and not single):
            what = f"field '{name}'" if name else "single recipe"
            raise TinlabError(f"{self.name} has no {what}; it has {', '.join(known)}")
        if name in PAPER_FIELDS:
            self.paper(name)

    def paper(self, name: str) -> float:
        """What the paper reports. Raises TinlabError where it does not."""
        assert self.row is not None
        if name == "paper":
            value = self.row.beside_val
        else:
            value = self.row.numbers.get(f"{name.removeprefix('paper_')}_top1_percent")
        if value is None:
            raise TinlabError(f"the paper reports no {name.removeprefix('paper_')} of {self.name}")
        return value

    def shares(self, lines: Sequence[Line], measures: Mapping[str, Sequence[Line]]) -> set[float] | None:
        """The shares of their length at which all of its recipes were measured, or the runs that its command
        looked at; None for a measured command that looks at no run, which has no length."""
        if self.recipes:
            every = ({found.share for found in found_of(recipe, lines)} for recipe in self.recipes)
            return set.intersection(*every)
        assert self.row is not None
        own = measures.get(self.row.id, ())
        if own and not any(line["of"] for line in own):
            return None
        return {float(line["share"]) for line in own}


def _subject(name: str, names: Mapping[str, str]) -> _Subject:
    """Raises TinlabError for a name of nothing."""
    full = names.get(name, name)
    row = next((one for one in every_row() if one.id == full), None)
    if row is not None:
        return _Subject(name, row, row.recipes)
    return _Subject(name, None, (recipe_called(full),))


FUNCTIONS = ("gain", "clear")


def _named(remark: Remark) -> list[tuple[_Subject, str]]:
    """What a remark's expressions name, with the field of each; the field is empty in a function's brackets.
    Raises TinlabError for an expression that is none."""
    found: list[tuple[_Subject, str]] = []

    def walk(node: ast.AST) -> None:
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                found.append((_subject(name, remark.names), attribute))
            case ast.Call(func=ast.Name(id=function), args=[ast.Name(id=one), ast.Name(id=other)]):
                if function not in FUNCTIONS:
                    raise TinlabError(f"there is no function '{function}'; there are {', '.join(FUNCTIONS)}")
                found.extend((_subject(name, remark.names), "") for name in (one, other))
            case ast.Constant(value=int() | float()):
                pass
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                walk(left)
                walk(right)
            case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
                walk(operand)
            case ast.BoolOp(values=values):
                for part in values:
                    walk(part)
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(o) in _COMPARE for o in ops):
                for part in (left, *others):
                    walk(part)
            case _:
                raise TinlabError(
                    f"'{ast.unparse(node)}' is no NAME.FIELD, number, sum or comparison of such"
                )

    for text in (remark.when, *(hole[0] for hole in HOLE.findall(remark.text))):
        walk(_parsed(text))
    return found


def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise TinlabError(
            f"'{text}' cannot be read; write NAME.FIELD, or a sum or comparison of such"
        ) from None


_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


@dataclass(frozen=True)
class _Numbers:
    """What a remark's expressions come to, at one share of each length."""

    remark: Remark
    lines: Sequence[Line]
    measures: Mapping[str, Sequence[Line]]
    share: float

    def value(self, text: str) -> Any:
        try:
            return self._of(_parsed(text))
        except (TypeError, ZeroDivisionError) as error:
            raise TinlabError(
                f"the remark on {self.remark.row}: '{text}' comes to nothing ({error})"
            ) from error

    def words(self, text: str, form: str) -> str:
        """An expression as it is written into a text."""
        node = _parsed(text)
        value = self.value(text)
        if isinstance(value, str):
            return value
        if isinstance(value, Gain):
            return (
                f"{value.mean:+.2f} points (95% interval over the {value.over} {value.low:+.2f} to "
                f"{value.high:+.2f})"
            )
        default = FIELDS.get(node.attr, ("", ".2f"))[1] if isinstance(node, ast.Attribute) else ".2f"
        try:
            return format(value, form or default)
        except ValueError as error:
            raise TinlabError(f"the remark on {self.remark.row}: '{form}' is no format ({error})") from error

    def _of(self, node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                return self._field(_subject(name, self.remark.names), attribute)
            case ast.Call(func=ast.Name(id=function), args=[ast.Name(id=one), ast.Name(id=other)]):
                sides = (_subject(name, self.remark.names).recipes[0] for name in (one, other))
                found = gain(*(self._found(side) for side in sides))
                return found if function == "gain" else found.clear
            case ast.BinOp(left=left, op=op, right=right):
                return _ARITHMETIC[type(op)](self._of(left), self._of(right))
            case ast.UnaryOp(op=op, operand=operand):
                return -self._of(operand) if isinstance(op, ast.USub) else not self._of(operand)
            case ast.BoolOp(op=op, values=values):
                return (all if isinstance(op, ast.And) else any)(self._of(one) for one in values)
            case ast.Compare(left=left, ops=ops, comparators=others):
                terms = [self._of(one) for one in (left, *others)]
                pairs = zip(ops, terms, terms[1:], strict=False)
                return all(_COMPARE[type(op)](first, second) for op, first, second in pairs)
        raise AssertionError(node)

    def _field(self, subject: _Subject, name: str) -> Any:
        if name in PAPER_FIELDS:
            return subject.paper(name)
        if subject.row is not None and name in subject.row.measures:
            for line in self.measures.get(subject.row.id, ()):
                # One that looks at no run has no length.
                if line["measure"] == name and (not line["of"] or float(line["share"]) == self.share):
                    return float(line["value"])
            raise _NotMeasured
        if name in STUDY_FIELDS:
            key = {words(recipe): self._found(recipe).mean() for recipe in subject.recipes}
            chosen = (max if name.startswith("best") else min)(key, key=key.__getitem__)
            return key[chosen] if name.endswith("_val") else chosen
        return self._found(subject.recipes[0]).mean(FIELDS[name][0])

    def _found(self, recipe: Recipe) -> Found:
        for found in found_of(recipe, self.lines):
            if found.share == self.share:
                return found
        raise _NotMeasured
