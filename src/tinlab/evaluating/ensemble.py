"""Ensembles of runs: which rule gains what, on logits that were saved once; and ensembles kept as a file.

Whatever selects or weighs members does so on `tune`, never on the split that is measured. Where a member was
trained on `tune`, its accuracy there is that of training images: no rule is fitted then, and ties are decided
by the order in which the members were named.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tinlab import __version__, runs
from tinlab.classifier import Classifier, load
from tinlab.data.given import Guess, Image, guesses, several, squares
from tinlab.data.pack import BOTH, Pack
from tinlab.errors import TinlabError
from tinlab.evaluating import predictions_of
from tinlab.evaluating.evaluation import notes
from tinlab.evaluating.saved import at_one_step
from tinlab.evaluation.ensemble import (
    RULES,
    Combination,
    class_error_rates,
    combine,
    gain_interval,
    pairwise_correlation,
    stated,
)
from tinlab.evaluation.logits import Predictions
from tinlab.evaluation.metrics import judge, top_k_percent
from tinlab.evaluation.predict import BATCH_SIZE
from tinlab.files import read_given_json, write_json
from tinlab.runs import Run
from tinlab.training import checkpoint

FORMAT = "tinlab-ensemble-1"
DEFAULT_RULE = "probabilities"


@dataclass(frozen=True)
class Member:
    """One run, and its top-1 in percent on the split and on `tune` (None where it is not honest there)."""

    run: str
    recipe: str
    recipe_digest: str
    seed: int
    step: int
    top1_percent: float
    top5_percent: float
    loss: float
    tune_top1_percent: float | None


@dataclass(frozen=True)
class Row:
    """What one rule reaches on the split. `gain` is its top-1 minus the best member's, in percentage points,
    with its 95% interval over images. A vote names one class and has no top-5 and no loss; a rule that was
    not fitted has none of the numbers, and `note` says why."""

    rule: str
    summary: str
    top1_percent: float | None = None
    top5_percent: float | None = None
    loss: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    combination: Combination | None = None
    note: str | None = None


@dataclass(frozen=True)
class Ensembles:
    """What `compare_rules` finds.

    `best` is the place of the best member, by top-1 on `best_by`; where that is the split itself, the member
    was picked by what it is measured on, which favours it. `error_correlation` has Pearson's correlation of
    two members' errors, an error counting 1, over images; `class_error_correlation` that of their error rates
    over classes; None where a member has the same everywhere. `any_right_percent` and `all_right_percent`
    are shares of the images that at least one member, and every member, gets right. `notes` say what else
    a reader must know of members, such as that they were trained on the split.
    """

    split: str
    images: int
    pack_digest: str
    members: tuple[Member, ...]
    best: int
    best_by: str
    fitted_on_tune: bool
    why_not_fitted: str | None
    order: tuple[int, ...]
    rows: tuple[Row, ...]
    error_correlation: tuple[tuple[float | None, ...], ...]
    class_error_correlation: tuple[tuple[float | None, ...], ...]
    any_right_percent: float
    all_right_percent: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields and the mean correlations as JSON values."""
        return {
            **asdict(self),
            "mean_error_correlation": self.mean_error_correlation,
            "mean_class_error_correlation": self.mean_class_error_correlation,
        }

    @property
    def mean_error_correlation(self) -> float | None:
        return _mean_of_pairs(self.error_correlation)

    @property
    def mean_class_error_correlation(self) -> float | None:
        return _mean_of_pairs(self.class_error_correlation)


def compare_rules(
    paths: Sequence[str | Path],
    *,
    split: str = "val",
    pack: Pack | None = None,
    device: str = "auto",
    rules: Iterable[str] = RULES,
) -> Ensembles:
    """Measure `rules` on a labelled split for the runs in folders `paths`.

    Raises TinlabError where there are fewer than two different runs, where they were trained on different
    packs or classes, where a rule is unknown and where the split has no labels.
    """
    rules = list(rules)
    for name in rules:
        if name not in RULES:
            raise TinlabError(f"there is no rule '{name}'; there are: {', '.join(RULES)}")
    opened = _open_members([Path(path) for path in paths])
    found = [predictions_of(path, split=split, pack=pack, device=device) for path in paths]
    labels = found[0].labels
    if (labels < 0).any():
        raise TinlabError(
            f"the labels of '{split}' were never published, so no rule can be measured on it; "
            "'tinlab submit' takes it"
        )
    why_not = _why_not_tune(opened, pack)
    logits, judged = np.stack([p.logits for p in found]), [judge(p.logits, labels) for p in found]
    tuned: list[float] = []
    steps = [at_one_step(run, one) for run, one in zip(opened, found, strict=True)]
    if why_not is None:
        held_out = [predictions_of(path, split="tune", pack=pack, device=device) for path in paths]
        for run, pair in zip(opened, zip(found, held_out, strict=True), strict=True):
            at_one_step(run, *pair)
        tune_labels, tune_logits = held_out[0].labels, np.stack([p.logits for p in held_out])
        tuned = [top_k_percent(judge(member, tune_labels), 1) for member in tune_logits]
    members = tuple(
        Member(
            run=str(run.path),
            recipe=run.recipe.name,
            recipe_digest=run.recipe.digest,
            seed=run.seed,
            step=steps[i],
            top1_percent=top_k_percent(of, 1),
            top5_percent=top_k_percent(of, 5),
            loss=float(of.loss.mean()),
            tune_top1_percent=tuned[i] if tuned else None,
        )
        for i, (run, of) in enumerate(zip(opened, judged, strict=True))
    )
    by = tuned or [member.top1_percent for member in members]
    best = by.index(max(by))
    order = tuple(sorted(range(len(opened)), key=lambda i: -tuned[i] if tuned else 0))
    rows = []
    for name in rules:
        rule, how, note = RULES[name], None, None
        try:
            if rule.fit is None:
                how = stated(rule.pool, len(opened), order)
            elif why_not is not None:
                raise TinlabError(why_not)
            else:
                how = rule.fit(tune_logits, tune_labels, order)
                note = "measured on what it was fitted on" if split in ("tune", "train+tune") else None
        except TinlabError as error:
            note = f"not fitted: {error}"
        rows.append(_row(name, how, note, logits, labels, judged[best].correct))
    wrong = np.stack([~of.correct for of in judged]).astype(float)
    return Ensembles(
        split=split,
        images=len(labels),
        pack_digest=pack.digest if pack else opened[0].pack_digest,
        members=members,
        best=best,
        best_by="tune" if tuned else split,
        fitted_on_tune=why_not is None,
        why_not_fitted=why_not,
        order=order,
        rows=tuple(rows),
        error_correlation=_or_none(pairwise_correlation(wrong)),
        class_error_correlation=_or_none(pairwise_correlation(class_error_rates(wrong, labels))),
        any_right_percent=100 * float((wrong.min(axis=0) == 0).mean()),
        all_right_percent=100 * float((wrong.max(axis=0) == 0).mean()),
        notes=notes_of(opened, split, pack),
    )


def notes_of(members: Sequence[Run], split: str, pack: Pack | None = None) -> tuple[str, ...]:
    """What a reader of the members' numbers on this split must know, each note after the names of those
    members that it is about."""
    named: dict[str, list[str]] = {}
    for run in members:
        for note in notes(run, split, pack):
            named.setdefault(note, []).append(run.path.resolve().name)
    return tuple(
        f"{'every member' if len(names) == len(members) > 1 else ', '.join(names)}: {note}"
        for note, names in named.items()
    )


def _row(
    name: str,
    how: Combination | None,
    note: str | None,
    logits: np.ndarray,
    labels: np.ndarray,
    reference: np.ndarray,
) -> Row:
    rule = RULES[name]
    if how is None:
        return Row(name, rule.summary, note=note)
    judged = judge(combine(logits, how), labels)
    gain, low, high = gain_interval(judged.correct, reference)
    vote = rule.pool == "vote"
    return Row(
        rule=name,
        summary=rule.summary,
        top1_percent=top_k_percent(judged, 1),
        top5_percent=None if vote else top_k_percent(judged, 5),
        loss=None if vote else float(judged.loss.mean()),
        gain=gain,
        gain_low=low,
        gain_high=high,
        combination=how,
        note=note,
    )


def _open_members(paths: Sequence[Path]) -> list[Run]:
    """The runs, checked to fit together."""
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise TinlabError("an ensemble needs two or more different runs; name each once")
    opened = [runs.open_run(path) for path in paths]
    first = opened[0]
    for run in opened[1:]:
        if [c.id for c in run.classes] != [c.id for c in first.classes]:
            raise TinlabError(
                f"{run.path} has other classes than {first.path}; an ensemble's members share theirs"
            )
        if run.pack_digest != first.pack_digest:
            raise TinlabError(
                f"{run.path} was trained on another pack than {first.path}; "
                "an ensemble's members share theirs"
            )
    return opened


def _why_not_tune(opened: Sequence[Run], pack: Pack | None) -> str | None:
    """Why nothing may be fitted on `tune`, as the end of a sentence; None where it may."""
    if pack is not None and pack.digest != opened[0].pack_digest:
        return "the members were trained on another pack, whose training images this one's tune may hold"
    for run in opened:
        shown = runs.whether_seen(runs.seen(run, "tune"))
        if shown is None:
            return f"it is not known whether {run.path.name} began with weights that were trained on tune"
        if shown:
            own = run.recipe.data.train_split == BOTH
            how = "data.train_split is train+tune" if own else "by the run that model.weights names"
            return f"{run.path.name} was trained on tune ({how})"
    return None


def _step(run: Run) -> int:
    last = checkpoint.latest(run.path)
    if last is None:
        quoted = shlex.quote(str(run.path))
        raise TinlabError(f"{run.path} has no checkpoint yet; go on with: tinlab train --resume {quoted}")
    return checkpoint.step_of(last)


def _or_none(matrix: np.ndarray) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(float(v) if np.isfinite(v) else None for v in row) for row in matrix)


def _mean_of_pairs(matrix: tuple[tuple[float | None, ...], ...]) -> float | None:
    pairs = [value for i, row in enumerate(matrix) for value in row[:i]]
    known = [value for value in pairs if value is not None]
    return sum(known) / len(known) if len(known) == len(pairs) else None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SavedMember(_Strict):
    """A member in an ensemble's file; `run` is the path of its folder from the file's own folder."""

    run: str
    recipe: str
    recipe_digest: str
    seed: int
    step: int
    weight: float = Field(ge=0, le=1)


class SavedEnsemble(_Strict):
    """An ensemble's file. `order` has the members' places, the one that decides a vote's ties foremost."""

    format: Literal["tinlab-ensemble-1"] = "tinlab-ensemble-1"
    tinlab: str
    rule: str
    pool: Literal["vote", "probabilities", "logits"]
    temperature: float = Field(gt=0)
    order: tuple[int, ...]
    fitted_on: Literal["tune"] | None
    pack_digest: str
    members: tuple[SavedMember, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _whole(self) -> SavedEnsemble:
        if sorted(self.order) != list(range(len(self.members))):
            raise ValueError("order must name each member's place once")
        if abs(sum(member.weight for member in self.members) - 1) > 1e-6:
            raise ValueError("the members' weights must sum to 1")
        return self

    @property
    def combination(self) -> Combination:
        weights = tuple(member.weight for member in self.members)
        return Combination(self.pool, weights, self.order, self.temperature)


def save_ensemble(found: Ensembles, path: str | Path, rule: str = DEFAULT_RULE) -> SavedEnsemble:
    """Write the ensemble that `rule` made of the members to JSON file `path`, atomically.

    Raises TinlabError where the rule was not fitted, and where the file cannot be written.
    """
    path = Path(path)
    row = next((row for row in found.rows if row.rule == rule), None)
    if row is None:
        raise TinlabError(f"there is no rule '{rule}'; there are: {', '.join(r.rule for r in found.rows)}")
    how = row.combination
    if how is None:
        raise TinlabError(
            f"'{rule}' cannot be saved, {row.note}; vote, probabilities and logits need no tune"
        )
    here = path.resolve().parent
    saved = SavedEnsemble(
        tinlab=__version__,
        rule=rule,
        pool=how.pool,
        temperature=how.temperature,
        order=how.order,
        fitted_on="tune" if RULES[rule].fit else None,
        pack_digest=found.pack_digest,
        members=tuple(
            SavedMember(
                run=Path(os.path.relpath(Path(member.run).resolve(), here)).as_posix(),
                recipe=member.recipe,
                recipe_digest=member.recipe_digest,
                seed=member.seed,
                step=member.step,
                weight=weight,
            )
            for member, weight in zip(found.members, how.weights, strict=True)
        ),
    )
    try:
        write_json(path, saved.model_dump(mode="json"))
    except OSError as error:
        raise TinlabError(f"{path} cannot be written: {error.strerror or error}") from error
    return saved


@dataclass(frozen=True)
class Ensemble:
    """An ensemble's file, opened: its runs and how they are combined."""

    path: Path
    saved: SavedEnsemble
    runs: tuple[Run, ...]

    @property
    def pack_digest(self) -> str:
        return self.runs[0].pack_digest

    def predictions(
        self, *, split: str = "val", pack: Pack | None = None, device: str = "auto"
    ) -> Predictions:
        """The members' saved logits on `split`, combined; the result's `logits` are `combine`'s scores."""
        found = [predictions_of(run.path, split=split, pack=pack, device=device) for run in self.runs]
        scores = combine(np.stack([p.logits for p in found]), self.saved.combination)
        about = {"split": split, "pack_digest": found[0].about["pack_digest"]}
        return Predictions(scores, found[0].labels, found[0].indices, about)


def open_ensemble(path: str | Path) -> Ensemble:
    """Open the JSON file that `save_ensemble` wrote.

    Raises TinlabError where it is none, where a member is missing or is another network than it was then,
    and where the members no longer fit together.
    """
    path = Path(path)
    value = read_given_json(path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise TinlabError(f"{path} is no ensemble (its format is not {FORMAT}); make one: 'tinlab ensemble'")
    try:
        saved = SavedEnsemble.model_validate(value)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "the ensemble"
        message = fault["msg"].removeprefix("Value error, ")
        raise TinlabError(f"{path}: {place}: {message[0].lower()}{message[1:]}") from error
    opened = _open_members([path.parent / member.run for member in saved.members])
    for member, run in zip(saved.members, opened, strict=True):
        if (member.recipe_digest, member.seed, member.step) != (run.recipe.digest, run.seed, _step(run)):
            raise TinlabError(
                f"{run.path} is no longer what {path} was made of (its recipe, seed or last step differs); "
                "make the ensemble again"
            )
    return Ensemble(path, saved, tuple(opened))


class EnsembleClassifier:
    """The members of an ensemble as one classifier: `predict` and `probabilities` as `Classifier` has them.

    A vote's probabilities are the shares of the votes, give or take a millionth that orders equal ones.
    """

    def __init__(self, ensemble: Ensemble, members: Sequence[Classifier]) -> None:
        self.ensemble = ensemble
        self.members = list(members)
        self.classes = members[0].classes

    def predict(self, images: Image | Iterable[Image], top: int = 5) -> list[list[Guess]]:
        """The `top` likeliest classes of each image; see `Classifier.predict`."""
        return guesses(self.probabilities(several(images)), self.classes, top)

    def probabilities(self, images: Iterable[Image]) -> np.ndarray:
        """float32 (N, C)."""
        how = self.ensemble.saved.combination
        pixels = torch.from_numpy(squares(images, self.members[0].run.preprocessing.image_size))
        rows = [np.empty((0, len(self.classes)), np.float32)]
        for start in range(0, len(pixels), BATCH_SIZE):
            batch = pixels[start : start + BATCH_SIZE]
            logits = np.stack([member.logits(batch).cpu().numpy() for member in self.members])  # (M, B, C)
            scores = combine(logits, how)
            shares = scores / scores.sum(axis=1, keepdims=True) if how.pool == "vote" else np.exp(scores)
            rows.append(shares.astype(np.float32))
        return np.concatenate(rows)


def load_ensemble(path: str | Path, device: str = "auto") -> EnsembleClassifier:
    """The classifier of the ensemble in JSON file `path`. Raises TinlabError as `open_ensemble` does."""
    ensemble = open_ensemble(path)
    return EnsembleClassifier(ensemble, [load(run.path, device) for run in ensemble.runs])
